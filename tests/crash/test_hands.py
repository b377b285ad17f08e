"""What people do to a log: while its server runs, and to one at rest.

Proves that a server which no longer finds its log as it left it says so within two seconds, without
a request, and takes no sets; that it does not write a byte into what stands there; that nothing
starts before somebody has put the log back, and that everything is there then. And that a log which
has been put together or converted is refused, told apart from what a crash leaves, and salvaged.

The deeds are those of torture_hands.py, which does them at random instants under load.
"""

import json
import os
import pathlib
import random
import re
import time

import pytest

from server import (
    EVERY_ROOM,
    HEALTHZ,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    TIMEOUT_S,
    USERS,
    Server,
    binary,
    crc32c,
    in_threads,
    records,
    request,
    room_info,
    run,
    set_request,
    wait_until,
    write_data,
)
from test_store import keys_of
from torture_hands import DEEDS, HARMS, KEEPS, LINKED, Scene

NOTICE_S = 2
FIRST_LINE = b"roomkeyd keys.log 1\n"
METRICS = request("GET", "/metrics")

# ---- a running server's log --------------------------------------------------------------------

REPLACED = "has been replaced by another file"
GROWN = "has grown: somebody else has written to it"
MOVED = "is no longer in use: its directory has been moved"
OTHER_DIRECTORY = "is no longer in use: another directory has taken the place of its own"

# What is said of each deed, by kinds.
TOLD = {
    "renamed": {
        "renamed": "has been renamed",
        "renamed out of the directory": "has been renamed",
        "renamed, an empty file created": REPLACED,
        "renamed, a new log put there": REPLACED,
        "renamed, an older copy put there": REPLACED,
        "renamed, a symbolic link to it put there": REPLACED,
        "renamed, a directory put there": REPLACED,
    },
    "replaced": {
        "replaced by another log": "has been removed",
        "replaced by an older copy": "has been removed",
        "replaced by an equal copy": "has been removed",
        "replaced by an empty file": "has been removed",
        "replaced by another log, with a hard link left": REPLACED,
        "replaced by an older copy, with a hard link left": REPLACED,
        "removed": "has been removed",
        "removed, with a hard link left": "has been renamed",
    },
    "cut": {
        "cut to nothing": "has been cut",
        "cut to the first line": "has been cut",
        "cut at a line": "has been cut",
        "cut inside a line": "has been cut",
        "cut to a larger size": GROWN,
        "a byte appended": GROWN,
        "its last line appended": GROWN,
        "another log appended": GROWN,
        "itself appended": GROWN,
    },
    "overwritten": {
        "overwritten by an older copy (cp)": "has been cut",
        "overwritten by a shorter log (cp)": "has been cut",
        "overwritten by a longer log (cp)": GROWN,
        "overwritten by a log of equal size (cp)": "has been overwritten",
        "overwritten by a shorter log (dd)": "has been overwritten",
        "overwritten by a longer log (dd)": GROWN,
        "overwritten by a log of equal size (dd)": "has been overwritten",
    },
    "directory": {
        "directory moved": MOVED,
        "directory moved, an empty one put there": OTHER_DIRECTORY,
        "directory moved, an older copy put there": OTHER_DIRECTORY,
        "directory removed": "has been removed",
        "directory's link swapped": OTHER_DIRECTORY,
        "directory's link removed": MOVED,
    },
}
INNOCENT = ["renamed, and back", "overwritten by an older copy (dd)", "overwritten by itself (cp)",
            "overwritten by itself (dd)"]


@pytest.fixture(name="strangers", scope="module")
def _strangers(tmp_path_factory):
    """Two logs of other servers, of different lengths."""
    directory = tmp_path_factory.mktemp("strangers")
    return [make_log(directory / f"{count}", "elsewhere", count) for count in (3, 60)]


def make_log(data, name, count, end="stop", per_batch=1):
    """A log of so many rooms, set so many a batch, whose server was stopped (it is sealed then) or
    killed. Returns its path."""
    write_data(data)
    server = Server(data).wait_ready()
    with server.client() as client:
        for start in range(0, count, per_batch):
            some = range(start, min(start + per_batch, count))
            client.send(b"".join(set_request(f"{name} {i}", f"key of {name} {i}") for i in some))
            for _ in some:
                client.reply().is_json(200, SUCCESS)
    getattr(server, end)()
    return data / "keys.log"


class Case:
    """One deed, done to a server of its own."""

    def __init__(self, deed, directory, strangers, variable="ROOMKEYD_RELEASE"):
        self.deed = deed
        self.root = directory / re.sub(r"\W+", "-", deed)
        self.root.mkdir()
        data = self.root / "data"
        if deed in LINKED:
            write_data(self.root / "target")
            os.symlink(self.root / "target", data)
        else:
            write_data(data)
        self.server = Server(data, program=binary(variable)).wait_ready()
        self.scene = Scene(data, strangers, random.Random(1))
        self.keys = {}

    def set(self, room):
        self.server.set(room, f"key of {room}").is_json(200, SUCCESS)
        self.keys[room] = f"key of {room}"

    def do(self):
        """Some sets, and the deed; what is there after it."""
        for i in range(8):
            self.set(f"room {i}")
            if i == 3:
                self.scene.older = self.scene.log.read_bytes()
        assert self.server.ask(HEALTHZ).status == 200
        self.locked = os.open(self.scene.data, os.O_RDONLY)
        self.own = os.open(self.scene.log, os.O_RDONLY)
        self.scene.saved = self.scene.log.read_bytes()
        DEEDS[self.deed][1](self.scene)
        self.done = time.monotonic()
        self.left = self.tree()

    def tree(self):
        """Every file below, but for the note: {path: bytes}."""
        return {path: path.read_bytes() for path in sorted(self.root.rglob("*"))
                if path.is_file() and path.name != "keys.log.failed"}

    def own_log(self):
        """What is in the server's own file, wherever that is."""
        return os.pread(self.own, os.fstat(self.own).st_size, 0)

    def is_noticed(self):
        """By /healthz alone, and in time."""
        with self.server.client() as client:
            while client.ask(HEALTHZ).status == 200:
                assert time.monotonic() < self.done + TIMEOUT_S, f"{self.deed}: unnoticed"
                time.sleep(0.01)
            assert time.monotonic() < self.done + NOTICE_S, self.deed
            assert client.ask(HEALTHZ).body == b"storage failed"
            assert b"\nroomkeyd_storage_failed 1\n" in client.ask(METRICS).body
            client.ask(set_request("new", "key")).is_json(503, STORAGE_UNAVAILABLE)
            if DEEDS[self.deed][0] == KEEPS:
                self.server.info("room 1").is_json(200, room_info("room 1", "c", "key of room 1"))

    def end(self, how):
        """The server's end: what it says, and that it has not touched anything."""
        line = (f"roomkeyd: keys.log: {how}: nothing more is written, sets are refused. Put the "
                "right log back, remove keys.log.failed, and start again")
        gone = "roomkeyd: keys.log: cannot make keys.log.failed: "
        self.server.expected_exit = 1
        self.server.expected_stderr = f"^({re.escape(line)}$|{gone})"
        self.server.stop()
        told = [one for one in self.server.stderr.all() if not one.startswith(gone)]
        assert told == [line], (self.deed, self.server.stderr.all())
        assert (len(self.server.stderr.all()) > 1) == (self.deed == "directory removed"), self.deed
        assert self.tree() == self.left, f"{self.deed}: something was written"

    def is_refused(self, how):
        """The note keeps everything that writes from starting, and check tells of it."""
        directory = pathlib.Path(f"/proc/self/fd/{self.locked}").resolve()
        note = directory / "keys.log.failed"
        assert note.read_text().startswith(f"keys.log: {how}\n\nroomkeyd does not start"), note
        assert note.stat().st_mode & 0o777 == 0o600
        for command in (["--listen", "127.0.0.1:0"], ["import"], ["check"]):
            done = run(*command, "--data", directory, input=json.dumps({"_id": "new"}), stdin=None)
            assert done.returncode == 1 and "keys.log.failed" in done.stderr, (self.deed, done)
            assert how in done.stderr, (self.deed, done)
        assert self.tree() == self.left, f"{self.deed}: something was written"
        return note

    def put_back(self):
        """What the message says is the way out."""
        data, scene = self.scene.data, self.scene
        right = self.own_log() if DEEDS[self.deed][0] == KEEPS else scene.saved
        if self.deed.startswith("directory"):
            if data.is_symlink():
                data.unlink()
            elif data.exists():
                data.rename(self.root / "impostor")
            if scene.moved.exists():
                scene.moved.rename(data)
        write_data(data, USERS, EVERY_ROOM)
        if scene.log.is_dir():
            scene.log.rmdir()
        scene.log.unlink(missing_ok=True)
        scene.log.write_bytes(right)

    def starts_again(self):
        """With every key ID, and for new ones."""
        server = Server(self.scene.data).wait_ready()
        assert keys_of(server, self.keys) == self.keys, self.deed
        server.set("new", "key").is_json(200, SUCCESS)
        server.stop()

    def finish(self):
        os.close(self.own)
        os.close(self.locked)
        if self.server.process.poll() is None:
            self.server.process.kill()
            self.server.process.wait()


def play(deed, how, directory, strangers, variable="ROOMKEYD_RELEASE"):
    """A deed from the first set to the last."""
    case = Case(deed, directory, strangers, variable)
    try:
        case.do()
        case.is_noticed()
        case.end(how)
        note = deed != "directory removed" and case.is_refused(how)
        case.put_back()
        if note:
            inside = case.scene.data / note.name
            done = run("--listen", "127.0.0.1:0", "--data", case.scene.data)
            assert done.returncode == 1 and "keys.log.failed" in done.stderr, (deed, done)
            inside.unlink()
        case.starts_again()
    finally:
        case.finish()


def test_every_deed_is_told():
    """What the torture may do is here, too."""
    told = {deed for kind in TOLD.values() for deed in kind}
    assert told | set(INNOCENT) == set(DEEDS)


@pytest.mark.parametrize("kind", TOLD)
def test_a_deed_at_rest(tmp_path, strangers, kind):
    with in_threads(lambda told: play(*told, tmp_path, strangers), TOLD[kind].items()):
        pass


def test_the_static_binary_notices_too(tmp_path, strangers):
    told = [next(iter(kind.items())) for kind in TOLD.values()]
    with in_threads(lambda one: play(*one, tmp_path, strangers, "ROOMKEYD_STATIC"), told):
        pass


def test_a_deed_between_two_sets(tmp_path, strangers):
    """Then nobody waits for the second: the set itself is refused."""
    for deed in ("renamed, an empty file created", "replaced by an equal copy", "cut to nothing",
                 "overwritten by a shorter log (dd)", "a byte appended", "directory moved"):
        case = Case(deed, tmp_path, strangers)
        try:
            case.do()
            case.server.set("new", "key").is_json(503, STORAGE_UNAVAILABLE)
            assert case.server.ask(HEALTHZ).status == 503
            case.end(next(kind[deed] for kind in TOLD.values() if deed in kind))
        finally:
            case.finish()


def innocent(case):
    """What backups and people do to a log without any harm."""
    log, beside = case.scene.log, case.scene.aside
    beside.write_bytes(log.read_bytes())  # cp
    os.link(log, case.root / "link")  # cp -l
    os.utime(log)
    log.chmod(0o640)
    done = run("check", "--data", case.scene.data)
    assert done.returncode == 0, done
    (case.scene.data / "keys.log.1").write_bytes(beside.read_bytes())  # a backup of one's own


def test_what_leaves_the_log_as_it_was_is_no_deed(tmp_path, strangers):
    for deed in INNOCENT:
        case = Case(deed, tmp_path, strangers)
        try:
            case.do()
            innocent(case)
            case.set("afterwards")
            assert case.server.ask(HEALTHZ).status == 200
            case.server.stop()  # exit code 0, and silence
            assert not (case.scene.data / "keys.log.failed").exists()
            case.starts_again()
        finally:
            case.finish()


# ---- a log without its server ------------------------------------------------------------------


def body(log):
    """As tail -n +2."""
    return log[log.index(b"\n") + 1 :]


def crlf(log):
    return log.replace(b"\n", b"\r\n")


def whole_records(content, *logs):
    """The records of logs whose lines are whole in what somebody has made of them."""
    plain = content.replace(b"\r\n", b"\n")
    lines = [line for log in logs for line in body(log).splitlines(keepends=True) if line in plain]
    return list(dict.fromkeys(records(b"".join(lines))))


def is_left_alone(data, content, pattern):
    """Puts content in the place of a log. Nothing that writes starts with it, all say why, and
    nothing is changed or made."""
    write_data(data)
    (data / "keys.log").write_bytes(content)
    before = sorted(os.listdir(data))
    for command in (["--listen", "127.0.0.1:0"], ["import"]):
        done = run(*command, "--data", data, input=json.dumps({"_id": "new"}), stdin=None)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert re.search(pattern, done.stderr) and done.stderr.count("\n") == 1, done
        assert "nothing has been changed" in done.stderr, done
        assert (data / "keys.log").read_bytes() == content
        assert sorted(os.listdir(data)) == before


def salvages(data, new, expected):
    """check --salvage writes these records, and a server starts with them."""
    done = run("check", "--data", data, "--salvage", new)
    assert done.returncode == 1 and f"{new}: {len(expected)} records\n" in done.stdout, done
    assert sorted(records(new.read_bytes())) == sorted(expected)
    saved = new.parent / f"{new.name}.data"
    write_data(saved)
    new.rename(saved / "keys.log")
    assert run("check", "--data", saved).returncode == 0
    server = Server(saved).wait_ready()
    keys = {room: key for _, room, key in expected}
    assert keys_of(server, keys) == keys
    server.stop()
    return done.stdout


@pytest.fixture(name="logs", scope="module")
def _logs(tmp_path_factory):
    """Logs of two shards, each sealed and not: {"a": sealed, "a unsealed": ..., ...}"""
    directory = tmp_path_factory.mktemp("logs")
    return {f"{name}{how}": make_log(directory / f"{name}{how}", name, count, end, 3).read_bytes()
            for name, count in (("a", 6), ("b", 9))
            for how, end in (("", "stop"), (" unsealed", "kill"))}


SECOND = r"keys\.log: byte \d+: a second log begins here: .* merge them by export and import"
STRANGER = r"keys\.log: byte \d+: the line here is whole, but was written for another place: "
CONVERTED = r"keys\.log: byte \d+: lines end in CR LF from here on: a program has converted them"

JOINED = {
    "a log": (lambda a, b: a + b, SECOND),
    "a log without its first line": (lambda a, b: a + body(b), STRANGER),
    "itself": (lambda a, b: a + a, SECOND),
    "itself without its first line": (lambda a, b: a + body(a), STRANGER),
    "three logs": (lambda a, b: a + b + a, SECOND),
    "converted lines": (lambda a, b: a + crlf(body(b)), CONVERTED),
    "its own lines, converted": (lambda a, b: a[: a.index(b"\n", 40) + 1]
                                 + crlf(a[a.index(b"\n", 40) + 1 :]), CONVERTED),
    "a log with a byte order mark": (lambda a, b: a + b"\xef\xbb\xbf" + b, SECOND),
    "a log after blank lines": (lambda a, b: a + b"\n\n" + b, SECOND),
    "a log after a line that is cut": (lambda a, b: a[:-5] + b"\n" + b, SECOND),
}


@pytest.mark.parametrize("seals", [("", ""), (" unsealed", ""), ("", " unsealed"),
                                   (" unsealed", " unsealed")])
def test_logs_that_were_put_together(tmp_path, logs, seals):
    a, b = logs[f"a{seals[0]}"], logs[f"b{seals[1]}"]
    count = len(JOINED) if seals[0] == seals[1] else 4
    for number, (name, (join, pattern)) in enumerate(list(JOINED.items())[:count]):
        data, content = tmp_path / f"{number}", join(a, b)
        is_left_alone(data, content, pattern)
        done = run("check", "--data", data)
        assert done.returncode == 1 and re.search(pattern, done.stdout), (name, done)
        if seals[0] == seals[1]:
            salvages(data, tmp_path / f"new {number}", whole_records(content, a, b))


def test_a_torn_tail_that_was_put_back(tmp_path):
    """By somebody who takes it for lost records, after others were set in its place. A crash may
    leave the same: it is moved away once more, and nothing is lost."""
    data = tmp_path / "data"
    log = make_log(data, "room", 4, "kill")
    whole = log.read_bytes()
    lines = [line_of(len(whole), f"torn {i}") for i in range(3)]
    log.write_bytes(whole + b"?" + b"".join(lines)[1:])
    keys = {f"room {i}": f"key of room {i}" for i in range(4)}
    keys |= {f"later {i}": "key" for i in range(3)}
    server = Server(data).wait_ready()
    server.expected_stderr = "a crash left a torn tail of"
    for i in range(3):
        server.set(f"later {i}", "key").is_json(200, SUCCESS)
    server.stop()
    [torn] = data.glob("keys.log.torn-*")
    sealed = log.read_bytes()
    log.write_bytes(sealed + torn.read_bytes())
    server = Server(data).wait_ready()
    server.expected_stderr = f"a crash left a torn tail of {len(torn.read_bytes())} bytes"
    assert keys_of(server, [*keys, "torn 1"]) == keys | {"torn 1": None}
    server.stop()
    assert log.read_bytes().startswith(sealed)
    first, second = data.glob("keys.log.torn-*")
    assert first.read_bytes() == second.read_bytes()


def line_of(batch, room):
    """A line of the log."""
    covered = f"{batch:x}\tS\t1732354800000\talice\t{room}\tkey".encode()
    return b"%08x\t%s\n" % (crc32c(covered), covered)


HEADS = {
    "zeroed sector": (lambda log: bytes(512) + log[512:], "its first line is not that of a log"),
    "byte order mark": (lambda log: b"\xef\xbb\xbf" + log, "a byte order mark"),
    "CR LF": (crlf, "its lines end in CR LF"),
    "CR LF and a byte order mark": (lambda log: b"\xef\xbb\xbf" + crlf(log), "a byte order mark"),
    "first line missing": (body, "its first line is not that of a log"),
    "two lines missing": (lambda log: body(body(log)), "its first line is not that of a log"),
    "one bad byte": (lambda log: log[:3] + b"\0" + log[4:], "its first line is not that of a log"),
    "one bad bit, which makes a later version": (lambda log: log.replace(b" 1\n", b" 3\n", 1),
                                                 "it was written by a newer roomkeyd"),
    "newline that has become a digit": (lambda log: log.replace(b"\n", b"1", 1),
                                        "its first line is not that of a log"),
    "bad version": (lambda log: log.replace(b" 1\n", b" ?\n", 1),
                    "its first line is not that of a log"),
    "newline missing": (lambda log: log.replace(b"\n", b"", 1),
                        "its first line is not that of a log"),
    "head cut off": (lambda log: log[300:], "its first line is not that of a log"),
}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_damaged_beginning_loses_nothing_else(tmp_path, how):
    log = make_log(tmp_path / "whole", "room", 40, how, 4).read_bytes()
    for number, (name, (harm, pattern)) in enumerate(HEADS.items()):
        data, content = tmp_path / f"{number}", harm(log)
        is_left_alone(data, content, pattern)
        expected = whole_records(content, log)
        assert len(expected) >= 30, name
        output = salvages(data, tmp_path / f"new {number}", expected)
        assert "damaged at byte 0: " in output and re.search(pattern, output), (name, output)
        assert f"{len(expected)} valid records in the {len(content)} bytes behind" in output


def test_another_encoding_is_named(tmp_path, logs):
    """What UTF-16 holds is no log, and nothing is to be saved from it as it is."""
    for number, codec in enumerate(("utf-16-le", "utf-16-be")):
        content = "\ufeff".encode(codec) + logs["a"].decode().encode(codec)
        is_left_alone(tmp_path / f"{number}", content, "it is UTF-16: a program has converted it")
        done = run("check", "--data", tmp_path / f"{number}")
        assert done.returncode == 1 and "it is UTF-16" in done.stdout, done


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", FIRST_LINE[:-1], FIRST_LINE[:5]])
def test_what_a_log_never_is(tmp_path, content):
    """An accident of somebody's, and no first start."""
    write_data(tmp_path)
    (tmp_path / "keys.log").write_bytes(content)
    for command in (["--listen", "127.0.0.1:0"], ["import"]):
        done = run(*command, "--data", tmp_path, input=json.dumps({"_id": "new"}), stdin=None)
        assert done.returncode == 1 and "estore it from a copy" in done.stderr, done
        assert (tmp_path / "keys.log").read_bytes() == content
        assert sorted(os.listdir(tmp_path)) == ["keys.log", "rooms", "users"]
    done = run("check", "--data", tmp_path)
    assert done.returncode == 1 and "keys.log" in done.stdout + done.stderr, done


@pytest.mark.parametrize("name", ["keys.log.torn-99", "keys.log.torn-99.2", "keys.log.1",
                                  "keys.log.old", "keys.log~", "keys.log.born", "keys.log.2.gz",
                                  ".keys.log.swp", "keys.log.new", "keys.log-20261201"])
def test_a_log_that_is_missing(tmp_path, logs, name):
    """What stands beside it shows that there was one."""
    write_data(tmp_path)
    (tmp_path / name).write_bytes(logs["a"])
    for command in (["--listen", "127.0.0.1:0"], ["import"], ["check"], ["export"]):
        done = run(*command, "--data", tmp_path, input=json.dumps({"_id": "new"}), stdin=None)
        assert done.returncode == 1, done
        assert f"keys.log: missing, but {name} shows that there was one" in done.stderr, done
        assert sorted(os.listdir(tmp_path)) == sorted([name, "rooms", "users"])
    (tmp_path / name).rename(tmp_path / "keys.log")
    server = Server(tmp_path).wait_ready()
    keys = {room: key for _, room, key in records(logs["a"])}
    assert keys_of(server, keys) == keys
    server.stop()


def test_an_old_log_gets_its_mark(tmp_path, logs):
    """Without it, a start would take the absence of the log for a first start."""
    write_data(tmp_path)
    log, mark = tmp_path / "keys.log", tmp_path / "keys.log.born"
    log.write_bytes(logs["a"])
    assert run("check", "--data", tmp_path).returncode == 0 and not mark.exists()
    server = Server(tmp_path).wait_ready()
    assert mark.exists()
    server.stop()
    log.unlink()
    done = run("--listen", "127.0.0.1:0", "--data", tmp_path)
    assert done.returncode == 1 and "missing, but keys.log.born shows" in done.stderr, done
    mark.unlink()
    server = Server(tmp_path).wait_ready()  # to begin anew
    wait_until(mark.exists, "the mark of the new log")
    server.stop()
