"""The system calls that the promise rests on: that each is made, in time, and of the right file.

A sync that is left out, that comes too late or that is given another descriptor changes nothing
which a test could read back: only a power failure shows it. torture.c has a model of the disk for
the store; here strace watches whole programs, and writes for each descriptor which file it is:

    fdatasync(4</tmp/.../data/keys.log>) = 0   -->   Call("fdatasync", "keys.log", ...)

Each scene states the steps that have to follow one another: a step is done when its call has
returned, and only after that may the next one begin. What comes between them is not judged.
"""

import dataclasses
import os
import re
import socket
import subprocess

import pytest

from server import SUCCESS, TIMEOUT_S, USERS, binary, tool, wait_until, write_data

NOBODY = 65534
DIRECTORY = "data"
LOG, BIRTH = "keys.log", "keys.log.new"
TRACED = ("open,openat,flock,pread64,pwrite64,write,writev,fsync,fdatasync,ftruncate,fchown,fchmod,"
          "rename,renameat,renameat2,unlink,unlinkat,close,bind,listen,sendto")

# The same call under the names that libcs and processors have for it.
ONE_NAME = {"open": "openat", "rename": "renameat", "renameat2": "renameat", "writev": "write",
            "pread64": "pread", "pwrite64": "pwrite", "ftruncate64": "ftruncate",
            "fchown32": "fchown", "unlink": "unlinkat"}
NAMING = ("openat", "renameat", "unlinkat")  # the last name among its arguments is what it makes

BOTH = pytest.mark.parametrize("variable", ["ROOMKEYD_RELEASE", "ROOMKEYD_STATIC"])


@dataclasses.dataclass
class Call:
    """What a call was given: its name, the name of the file that its first descriptor is (or that
    it makes), all of its arguments, and what it returned; and when, in lines of the trace."""

    name: str
    of: str
    arguments: str
    result: str
    begin: int
    end: int

    def is_done(self):
        return not self.result.startswith(("-1", "?"))


class Trace:
    """strace's record of a program, which is the tracer's grandparent and nobody's child but ours."""

    def __init__(self, path):
        self.path = path
        self.wrapper = [tool("strace", "strace"), "-D", "-f", "-q", "-y", "-s", "300",
                        "-o", str(path), "-e", f"trace={TRACED}", "-e", "signal=none"]

    def _whole(self):
        text = self.path.read_text() if self.path.exists() else ""
        return text if re.search(r"^(\d+) .*\n(?:.*\n)*\1 +\+\+\+ exited", text) else None

    def calls(self):
        """All calls in the order in which they began, once the program is gone."""
        text = wait_until(self._whole, "strace's last word")
        found, unfinished = [], {}
        for at, line in enumerate(text.splitlines()):
            thread, rest = line.split(maxsplit=1)
            if match := re.match(r"(\w+)\((.*) <unfinished \.\.\.>$", rest):
                unfinished[thread] = Call(match[1], "", match[2], "?", at, 1 << 30)
                found.append(unfinished[thread])
            elif match := re.match(r"<\.\.\. \w+ resumed>(.*)\) += (\S+)", rest):
                call = unfinished.pop(thread)
                call.arguments, call.result, call.end = call.arguments + match[1], match[2], at
            elif match := re.match(r"(\w+)\((.*)\) += (\S+)", rest):
                found.append(Call(match[1], "", match[2], match[3], at, at))
        for call in found:
            call.name = ONE_NAME.get(call.name, call.name)
            of = r'.*"([^"]*)"' if call.name in NAMING else r"\d+<(.*?)(?: \(deleted\))?>"
            match = re.match(of, call.arguments)
            call.of = os.path.basename(match[1]) if match else ""
        return found


@dataclasses.dataclass
class Step:
    """A call that has to be there: its name, its file, and a pattern for its arguments."""

    name: str
    of: str
    pattern: str = ""

    def fits(self, call):
        return (call.is_done() and call.name == self.name and
                (re.fullmatch(self.of, call.of) if self.of else True) and
                re.search(self.pattern, call.arguments) is not None)


def follow(calls, steps, after=-1):
    """Asserts that all steps were done, one after the other, and returns the calls that did them."""
    done = []
    for step in steps:
        found = [call for call in calls if call.begin > after and step.fits(call)]
        assert found, f"{step} does not follow {done[-1:]}\n" + "\n".join(map(str, calls))
        done.append(found[0])
        after = found[0].end
    return done


def none_before(calls, first, *steps):
    """Asserts that none of these steps began before a call was done."""
    early = [call for call in calls if call.begin < first.end and call is not first
             and any(step.fits(call) for step in steps)]
    assert not early, f"before {first}: {early}"


OWNER = [Step("fchown", BIRTH, rf"{NOBODY}, {NOBODY}")] if os.geteuid() == 0 else []
REPLAYED = [Step("fdatasync", LOG), Step("fsync", DIRECTORY)]
READY = [Step("bind", ""), Step("listen", ""), Step("write", "", "roomkeyd: listening")]
REPLIED = Step("sendto", "", "success.*:true")
PRINTED = Step("write", "", "^1<")
LOCKED = Step("flock", DIRECTORY, r"LOCK_EX\|LOCK_NB")


@pytest.fixture(name="data")
def _data(tmp_path):
    """A data directory, which belongs to another user where that is possible."""
    data = tmp_path / DIRECTORY
    write_data(data)
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
    return data


def run(trace, variable, *arguments, data, text="", code=0):
    """A command, to its end: its calls."""
    done = subprocess.run(
        [*trace.wrapper, binary(variable), *map(str, arguments), "--data", str(data)], input=text,
        capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr == "") == (code, code == 0), done
    return trace.calls()


def set_one(serve):
    """A directory whose log holds a key ID and ends with a seal."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()
    return server.directory


@BOTH
def test_a_first_start_and_a_set(serve, data, tmp_path, variable):
    """The log is whole on disk before it has its name, and the name is before anybody can ask; the
    reply to a set comes after the sync that came after its line."""
    trace = Trace(tmp_path / "trace")
    server = serve(program=binary(variable), wrapper=trace.wrapper)
    assert server.directory == data
    server.set("room", "key").is_json(200, SUCCESS)
    server.set("room2", "key2").is_json(200, SUCCESS)
    server.stop()
    calls = trace.calls()
    start = follow(calls, [
        LOCKED,
        Step("openat", BIRTH, r"O_CREAT\|O_EXCL.*, 0600"),
        *OWNER,
        Step("pwrite", BIRTH, r'"roomkeyd keys.log 1\\n", 20, 0$'),
        Step("fsync", BIRTH),
        Step("renameat", LOG),
        Step("fsync", DIRECTORY),
        Step("flock", LOG, r"LOCK_EX\|LOCK_NB"),
        *REPLAYED,
    ])
    none_before(calls, start[0], Step("openat", "keys[.]log.*"))
    none_before(calls, start[-1], *READY)
    first = follow(calls, [
        *READY,
        Step("pwrite", LOG, r"\\troom\\tkey\\n"),
        Step("fdatasync", LOG),
    ], after=start[-1].end)
    none_before(calls, first[-1], REPLIED)
    second = follow(calls, [
        REPLIED,
        Step("pwrite", LOG, r"\\troom2\\tkey2\\n"),
        Step("fdatasync", LOG),
    ], after=first[-1].end)
    assert len([call for call in calls if REPLIED.fits(call) and call.begin < second[-1].end]) == 1
    follow(calls, [REPLIED], after=second[-1].end)


@BOTH
def test_a_start_with_a_torn_tail(serve, data, tmp_path, variable):
    """What is cut off is safe under a name of its own before it is cut off; what is kept is written
    again and synced before anybody can ask."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.kill()
    first, record, *_ = server.log().splitlines(True)  # without the seal that may be there
    log = first + record
    (data / LOG).write_bytes(log + b"torn")
    trace = Trace(tmp_path / "trace")
    server = serve(program=binary(variable), wrapper=trace.wrapper)
    server.expected_stderr = "torn tail of 4 bytes"
    server.stop()
    torn = f"keys.log.torn-{len(log)}"
    calls = trace.calls()
    cut = follow(calls, [
        LOCKED,
        Step("flock", LOG, r"LOCK_EX\|LOCK_NB"),
        Step("openat", torn, r"O_CREAT\|O_EXCL.*, 0600"),
        *(Step(step.name, torn, step.pattern) for step in OWNER),
        Step("pwrite", torn, r'"torn", 4, 0$'),
        Step("fsync", torn),
        Step("fsync", DIRECTORY),
        Step("ftruncate", LOG, f", {len(log)}$"),
    ])
    none_before(calls, cut[-1], Step("pwrite", LOG))
    replayed = follow(calls, [
        Step("pwrite", LOG, f", {len(record)}, {len(first)}$"),
        *REPLAYED,
    ], after=cut[-1].end)
    none_before(calls, replayed[-1], *READY)


USER_OWNER = [Step("fchown", "users.new", rf"{NOBODY}, {NOBODY}")] if os.geteuid() == 0 else []


@BOTH
def test_a_user_is_added(data, tmp_path, variable):
    """NAME.new is whole on disk, and judged, before it becomes NAME; and the token is told when a
    power failure cannot take it back."""
    if os.geteuid() == 0:
        os.chown(data / "users", NOBODY, NOBODY)
    os.chmod(data / "users", 0o640)
    trace = Trace(tmp_path / "trace")
    calls = run(trace, variable, "user", "add", "carol", data=data)
    done = follow(calls, [
        Step("openat", "users.new", r"O_WRONLY\|O_CREAT\|.*O_NOFOLLOW.*, 0600"),
        Step("flock", "users.new", "LOCK_EX$"),
        Step("ftruncate", "users.new", ", 0$"),
        *USER_OWNER,
        Step("fchmod", "users.new", ", 0640$"),
        Step("write", "users.new", "carol"),
        Step("fsync", "users.new"),
        Step("openat", "users.new", "O_RDONLY"),
        Step("renameat", "users"),
        Step("fsync", DIRECTORY),
    ])
    none_before(calls, done[-1], PRINTED)
    assert not any(call.name == "unlinkat" for call in calls), "it may be the next one's by then"
    assert (data / "users").read_text().startswith(USERS)


@BOTH
def test_a_user_is_not_added(data, tmp_path, variable):
    """NAME.new is its own lock: it has to be gone before somebody who waits for it can have it."""
    (data / "users").write_text("broken\n")
    trace = Trace(tmp_path / "trace")
    calls = run(trace, variable, "user", "add", "carol", data=data, code=1)
    gone = follow(calls, [Step("flock", "users.new", "LOCK_EX$"), Step("unlinkat", "users.new")])
    none_before(calls, gone[-1], Step("flock", "users.new", "LOCK_UN"), Step("close", "users.new"))
    assert (data / "users").read_text() == "broken\n"


@BOTH
def test_an_import(serve, data, tmp_path, variable):
    """What is counted as set is on disk."""
    trace = Trace(tmp_path / "trace")
    directory = set_one(serve)
    assert directory == data
    calls = run(trace, variable, "import", data=data, text='{"_id":"more","e2eKeyId":"k"}\n')
    done = follow(calls, [
        LOCKED,
        *REPLAYED,
        Step("pwrite", LOG, r"\\tmore\\tk\\n"),
        Step("fdatasync", LOG),
    ])
    none_before(calls, done[-1], PRINTED)


@BOTH
@pytest.mark.parametrize("command", ["check", "export"])
def test_what_is_read_is_synced_before_it_is_told(serve, data, tmp_path, command, variable):
    """The log belongs to a server perhaps, which has yet to sync what is read of it."""
    set_one(serve)
    trace = Trace(tmp_path / "trace")
    calls = run(trace, variable, command, data=data)
    at_end = Step("pread", LOG, '"", ')
    first, *_ = [call for call in calls if at_end.fits(call)]
    synced, = follow(calls, [Step("fdatasync", LOG)], after=first.end)
    none_before(calls, synced, PRINTED)


@BOTH
def test_a_salvage(serve, data, tmp_path, variable):
    """The seal certifies what is before it, so that is on disk first; and it is all told after the
    seal, too, is on disk."""
    set_one(serve)
    trace = Trace(tmp_path / "trace")
    calls = run(trace, variable, "check", "--salvage", tmp_path / "saved", data=data)
    size = (tmp_path / "saved").stat().st_size
    lines = (tmp_path / "saved").read_bytes().splitlines(True)
    done = follow(calls, [
        Step("openat", "saved", r"O_CREAT\|O_EXCL.*, 0600"),
        Step("pwrite", "saved", r'"roomkeyd keys.log 1\\n", 20, 0$'),
        Step("pwrite", "saved", r"\\troom\\tkey\\n"),
        Step("fdatasync", LOG),
        Step("fsync", "saved"),
        Step("pwrite", "saved", f", {len(lines[-1])}, {size - len(lines[-1])}$"),
        Step("fsync", "saved"),
    ])
    none_before(calls, done[-1], Step("write", "", "^1<.*saved: "))


@BOTH
def test_a_server_that_stops_removes_no_socket_but_its_own(serve, tmp_path, variable):
    path = tmp_path / "socket"
    server = serve(listen=(f"unix:{path}",), program=binary(variable))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        server.stop()
        assert path.is_socket()
