"""Disks that are full, read-only, slow or broken, and directories that are not as they should be.

Proves that what was acknowledged survives each of them, that reads go on wherever they can, that
what is wrong is said once and so is its end, and that a server which cannot start says why, touches
nothing, and starts when that is mended. test_store.py has the same promises on a sound disk.

A file system of one's own is mounted where only a helper process sees it, and is entered through
/proc/PID/root: it goes with that process, whatever becomes of the test.
"""

import contextlib
import errno
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess

import pytest

from conftest import starter_in
from server import (
    ALREADY_EXISTS,
    EVERY_ROOM,
    HEALTHZ,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    TIMEOUT_S,
    USERS,
    Server,
    binary,
    in_threads,
    inject,
    records,
    room_info,
    run,
    set_request,
    tool,
    wait_until,
    write_data,
)
from test_store import check_log, keys_of

# What is said when space runs out, and when there is some again. Nothing else is.
FULL = r"roomkeyd: keys\.log: write: {}: sets are refused while that lasts"
SPACE_AGAIN = "roomkeyd: keys.log: there is space again, sets are taken"


def fails_to_start(directory, *patterns, **options):
    """Exit 1, silence on standard output, one line that says what is wrong where."""
    result = run("--listen", "127.0.0.1:0", "--data", directory, **options)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.startswith("roomkeyd: ") and result.stderr.count("\n") == 1, result
    for pattern in patterns:
        assert re.search(pattern, result.stderr), result.stderr


def contents(directory):
    """Everything in a directory: {name: bytes}."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def said(server, *patterns):
    """Holds what a server that has ended has said to these patterns, a line each."""
    lines = server.stderr.all()
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns):
        assert re.fullmatch(pattern, line), (line, pattern)


# ---- a full disk -------------------------------------------------------------------------------

SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1"'
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


@contextlib.contextmanager
def mounted(directory, script):
    """Runs a script of mounts on a directory ($1); yields a path to what is mounted then."""
    directory.mkdir(exist_ok=True)
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = [tool("unshare", "util-linux"), "--mount", *as_root, "sh", "-c",
               script + " && echo mounted && exec cat", "sh", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as holder:
        try:
            if holder.stdout.readline() != b"mounted\n":
                why = holder.communicate(timeout=TIMEOUT_S)[1].decode()
                give_up = pytest.fail if os.environ.get("CI") else pytest.skip
                give_up(f"nobody here may mount a file system, as a container may not: {why}")
            yield pathlib.Path(f"/proc/{holder.pid}/root{directory.resolve()}")
        finally:
            holder.stdin.close()  # cat ends, and the mounts with it


@contextlib.contextmanager
def chattr(path, flag):
    """A file or directory has a flag of chattr(1) meanwhile."""
    change = lambda sign: subprocess.run([tool("chattr", "e2fsprogs"), sign + flag, path],
                                         capture_output=True, text=True, check=False)
    result = change("+")
    if result.returncode != 0:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"nobody here may do that, or the file system knows no such thing: {result.stderr}")
    try:
        yield
    finally:
        assert change("-").returncode == 0


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path):
    """An empty file system of 16 pages."""
    with mounted(tmp_path / "disk", SMALL_DISK) as directory:
        yield directory


@pytest.fixture(name="serve_there")
def _serve_there(small_disk):
    """As `serve`, on the small disk."""
    with starter_in(small_disk) as starter:
        yield starter


def fill(directory):
    """Takes all the space there is."""
    with open(directory / "filler", "wb", buffering=0) as filler:
        with pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(bytes(4096))


def set_until_refused(server, name):
    """Sets rooms until that is refused: {room: key} of those that were acknowledged."""
    acknowledged = {}
    with server.client() as client:
        for i in range(10_000):
            room = f"{name} {i}"
            reply = client.ask(set_request(room, f"key {i}"))
            if reply.status != 200:
                reply.is_json(503, STORAGE_UNAVAILABLE)
                assert reply.reason == "Service Unavailable"
                return acknowledged
            acknowledged[room] = f"key {i}"
    raise AssertionError("there is no end to this disk")


def is_out_of_space(server, acknowledged):
    """Asserts that nothing but sets suffers, for as long as it lasts."""
    for _ in range(3):
        server.set("refused", "key").is_json(503, STORAGE_UNAVAILABLE)
        server.info("refused").is_json(200, room_info("refused", "c"))
        reply = server.ask(HEALTHZ)
        assert (reply.status, reply.body) == (200, b"ok"), "a full disk is not a failed one"
        assert keys_of(server, acknowledged) == acknowledged
        for room in list(acknowledged)[:3]:
            server.set(room, "other").is_json(400, ALREADY_EXISTS)
    logged = {room: key for _, room, key in records(server.log())}
    assert logged == acknowledged, "the log holds what was acknowledged and nothing else"


def test_a_full_file_system(serve_there, small_disk):
    """Twice over: each time it is told once, and once that it is over."""
    server = serve_there()
    server.expected_stderr = "keys.log"
    acknowledged = {}
    for attempt in ("first", "second"):
        fill(small_disk)
        acknowledged.update(set_until_refused(server, attempt))
        is_out_of_space(server, acknowledged)
        (small_disk / "filler").unlink()
        server.set(f"after {attempt}", "key").is_json(200, SUCCESS)
        acknowledged[f"after {attempt}"] = "key"
    server.kill()
    full = FULL.format("No space left on device")
    said(server, full, SPACE_AGAIN, full, SPACE_AGAIN)
    check_log(server.log())
    server = serve_there()
    assert keys_of(server, [*acknowledged, "refused"]) == {**acknowledged, "refused": None}
    server.set("refused", "key").is_json(200, SUCCESS)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_while_the_disk_is_full(serve_there, small_disk, how):
    """What is there is served, and a clean stop is one, though the log cannot be sealed."""
    server = serve_there()
    server.expected_stderr = "keys.log"
    fill(small_disk)
    acknowledged = set_until_refused(server, "room")
    getattr(server, how)()
    server = serve_there(users=None, rooms=None)  # as they are: they could not be written again
    server.expected_stderr = "keys.log"
    is_out_of_space(server, acknowledged)
    (small_disk / "filler").unlink()
    server.set("refused", "key").is_json(200, SUCCESS)
    server.stop()
    said(server, FULL.format("No space left on device"), SPACE_AGAIN)
    check_log(server.log())


def test_no_space_for_the_first_log(serve_there, small_disk):
    data = small_disk / "data"
    write_data(data)
    fill(small_disk)
    fails_to_start(data, r"keys\.log: cannot make it: No space left")
    assert not (data / "keys.log").exists()
    (small_disk / "filler").unlink()
    serve_there().set("room", "key").is_json(200, SUCCESS)


def test_no_space_to_save_a_torn_tail(serve_there, small_disk):
    """It is not cut off while it cannot be kept: the server does not start, and says why."""
    server = serve_there()
    server.set("room", "key").is_json(200, SUCCESS)
    server.kill()
    data = server.directory
    with open(data / "keys.log", "ab") as log:
        log.write(b"torn")
    fill(small_disk)
    before = contents(data)
    fails_to_start(data, r"keys\.log\.torn-\d+: cannot save the torn tail: No space left")
    assert contents(data) == before
    (small_disk / "filler").unlink()
    server = serve_there()
    server.expected_stderr = r"torn tail of 4 bytes"
    server.info("room").is_json(200, room_info("room", "c", "key"))
    assert b"torn" in contents(data).values()


# ---- a size limit: a full disk that needs no mount ---------------------------------------------


def limited_to(size):
    """For before_exec: as the shell's `ulimit -S -f`, in bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [500, 1023, 1024, 4097])
def test_a_size_limit_from_the_start(serve, size):
    """The limit is met inside a record, or at its begin."""
    server = serve(before_exec=limited_to(size))
    server.expected_stderr = "keys.log"
    acknowledged = set_until_refused(server, "room")
    is_out_of_space(server, acknowledged)
    server.kill()
    said(server, FULL.format("File too large"))
    assert len(server.log()) <= size
    check_log(server.log())
    server = serve()
    assert keys_of(server, [*acknowledged, "refused"]) == {**acknowledged, "refused": None}


@pytest.mark.parametrize("state,size,message", [
    ("no log", 5, "cannot make it"),
    ("a log", 30, "cannot bring the last batch to disk again"),
    ("a torn log", 2, "cannot save the torn tail"),
])
def test_a_size_limit_that_is_too_small_to_start(serve, tmp_path, state, size, message):
    """It is said. SIGXFSZ, which the limit sends along, does not kill without a word."""
    data = tmp_path / "data"
    write_data(data)
    if state != "no log":
        server = serve()
        server.set("room", "key").is_json(200, SUCCESS)
        server.kill()
    if state == "a torn log":
        with open(data / "keys.log", "ab") as log:
            log.write(b"torn")
    before = contents(data)
    server = serve.launch(before_exec=limited_to(size), users=None, rooms=None)
    server.expected_stderr, server.expected_exit = rf"{message}: File too large", 1
    server.judge()
    assert len(server.stderr.all()) == 1 and not server.stdout.all()
    assert contents(data) == before or state == "no log" and not (data / "keys.log").exists()
    server = serve()
    server.expected_stderr = "torn tail of 4 bytes" if state == "a torn log" else None
    assert server.set("room", "key").status == (200 if state == "no log" else 400)


def test_a_batch_of_which_some_lines_fit(serve):
    """Whole lines of it are in the file for a moment; none may stay, as all were refused."""
    server = serve(**inject("delay_enter=300000"))
    server.expected_stderr = "keys.log"
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    clients = [server.client() for _ in range(20)]
    clients[0].send(set_request("first", "key"))
    wait_until(lambda: b"\tfirst\tkey\n" in server.log(), "the first batch")
    for number, client in enumerate(clients[1:]):  # these gather while it is synced
        client.send(set_request(f"room {number}", "key"))
    clients[0].reply().is_json(200, SUCCESS)
    statuses = [client.reply().status for client in clients[1:]]
    for client in clients:
        client.close()
    assert 503 in statuses and set(statuses) <= {200, 503}, statuses
    server.kill()
    logged = {room for _, room, _ in records(server.log())}
    refused = {f"room {i}" for i, status in enumerate(statuses) if status == 503}
    assert "first" in logged and not logged & refused
    assert keys_of(serve(), ["first", *refused]) == {"first": "key", **dict.fromkeys(refused)}
    check_log(server.log())


# ---- broken and slow disks, seen by the shipped binaries ---------------------------------------

SHIPPED = ["ROOMKEYD_STATIC", "ROOMKEYD_RELEASE"]


def tampered(*faults):
    """As inject, with any faults. strace counts calls for each thread: on a new directory the
    committer's first write and sync are those of the first set."""
    options = inject(None)
    for expression in ("trace=pwrite64,fdatasync,ftruncate", *(f"inject={one}" for one in faults)):
        options["wrapper"] += ["-e", expression]
    return options


@pytest.mark.parametrize("variable", SHIPPED)
@pytest.mark.parametrize("faults", [
    ["fdatasync:error=EIO:when=2+"],
    ["fdatasync:error=ENOSPC:when=2+"],  # with delayed allocation; pages may be lost by then
    ["pwrite64:error=EIO:when=2+"],
], ids=" ".join)
def test_a_failed_disk(serve, variable, faults):
    """Sets are refused until a restart, which finds all that was acknowledged."""
    serve(program=binary(variable)).stop()  # the mark is there: the next start writes nothing else
    server = serve(program=binary(variable), **tampered(*faults))
    server.expected_stderr, server.expected_exit = "keys.log", 1
    server.set("before", "key").is_json(200, SUCCESS)
    for room in ("room", "another", "room"):
        server.set(room, "key").is_json(503, STORAGE_UNAVAILABLE)
        server.info(room).is_json(200, room_info(room, "c"))
        reply = server.ask(HEALTHZ)
        assert (reply.status, reply.body) == (503, b"storage failed")
    server.info("before").is_json(200, room_info("before", "c", "key"))
    server.set("before", "other").is_json(400, ALREADY_EXISTS)
    server.stop()
    lines = [line for line in server.stderr.all() if line.endswith("refused until restart")]
    assert len(lines) == 1, server.stderr.all()
    server = serve(program=binary(variable))
    server.info("before").is_json(200, room_info("before", "c", "key"))
    assert server.ask(HEALTHZ).status == 200
    server.set("later", "key").is_json(200, SUCCESS)
    server.stop()
    check_log(server.log())


@pytest.mark.parametrize("variable", SHIPPED)
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_write_that_fails_for_want_of_space(serve, variable, error):
    """Two of them. One may be the seal's, so the first set that is tried is the only sure one."""
    serve(program=binary(variable)).stop()
    server = serve(program=binary(variable), **tampered(f"pwrite64:error={error}:when=2..3"))
    server.expected_stderr = "keys.log"
    server.set("before", "key").is_json(200, SUCCESS)
    server.set("room", "key").is_json(503, STORAGE_UNAVAILABLE)
    assert server.ask(HEALTHZ).status == 200
    wait_until(lambda: server.set("room", "key").status == 200, "space")
    server.stop()
    # Each libc has a text of its own.
    said(server, FULL.format("(No space left on device|(Disk q|Q)uota exceeded)"), SPACE_AGAIN)
    check_log(server.log())
    server = serve(program=binary(variable))
    assert keys_of(server, ["before", "room"]) == {"before": "key", "room": "key"}


@pytest.mark.parametrize("variable", SHIPPED)
def test_interrupted_calls_are_made_again(serve, variable):
    server = serve(program=binary(variable), **tampered(
        "pwrite64:error=EINTR:when=1+2", "fdatasync:error=EINTR:when=1+2"))
    for i in range(5):
        server.set(f"room {i}", "key").is_json(200, SUCCESS)
    server.stop()
    check_log(server.log())
    assert len(records(server.log())) == 5


@pytest.mark.parametrize("variable", SHIPPED)
def test_a_slow_disk_loses_nothing(serve, variable):
    """Kills in the middle of the syncs of a disk that takes 50 ms for each."""
    acknowledged = {}
    for life in range(3):
        server = serve(program=binary(variable), **inject("delay_enter=50000"))
        before = len(acknowledged)

        def load(number, server=server, life=life):
            with contextlib.suppress(OSError, AssertionError), server.client() as client:
                for i in range(1000):
                    room = f"{life}-{number}-{i}"
                    reply = client.ask(set_request(room, "key"))  # raises once the server is dead
                    acknowledged[room] = reply.status

        with in_threads(load, range(4)):
            wait_until(lambda before=before: len(acknowledged) >= before + 12, "replies")
            server.kill()
    assert set(acknowledged.values()) == {200}
    server = serve(program=binary(variable))
    assert keys_of(server, acknowledged) == dict.fromkeys(acknowledged, "key")


# ---- who may use the directory -----------------------------------------------------------------


def test_a_second_server_while_the_first_is_stopped(serve):
    """A process that hangs still holds the lock; one that is killed, though it hangs, does not."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.send_signal(signal.SIGSTOP)
    before = contents(server.directory)
    fails_to_start(server.directory, "in use by another roomkeyd")
    assert contents(server.directory) == before
    server.kill()
    serve().info("room").is_json(200, room_info("room", "c", "key"))


def test_a_log_in_two_directories_has_one_server(serve, tmp_path):
    """By a hard link, as `cp -al` makes it; the directories' locks are two."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    write_data(tmp_path / "linked")
    os.link(server.directory / "keys.log", tmp_path / "linked/keys.log")
    fails_to_start(tmp_path / "linked", "in use by another roomkeyd")
    server.set("later", "key").is_json(200, SUCCESS)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_log_that_is_gone_takes_no_sets(serve, is_replaced):
    """What is written to a file without a name would be gone with the server."""
    server = serve()
    server.expected_stderr, server.expected_exit = "keys.log: has been removed", 1
    server.set("before", "key").is_json(200, SUCCESS)
    log = server.directory / "keys.log"
    if is_replaced:
        (server.directory / "new").write_bytes(log.read_bytes())
        (server.directory / "new").rename(log)
    else:
        log.unlink()
    server.set("room", "key").is_json(503, STORAGE_UNAVAILABLE)
    assert server.ask(HEALTHZ).status == 503
    server.info("before").is_json(200, room_info("before", "c", "key"))
    server.stop()


def test_an_http_1_0_client_may_go_on_after_a_set_has_failed(serve):
    """The 503 confirms that the connection persists, as every other reply does."""
    server = serve(**tampered("fdatasync:error=EIO:when=2+"))
    server.expected_stderr, server.expected_exit = "keys.log", 1
    old = set_request("room", "key").replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\nConnection: keep-alive\r\n")
    with server.client() as client:
        for status in (200, 503):
            reply = client.ask(old.replace(b'"room"', b'"roo%d"' % (status % 7)))
            assert (reply.status, reply.field("Connection")) == (status, "keep-alive")
        assert client.ask(HEALTHZ).status == 503


@pytest.mark.parametrize("state", ["no log", "empty log", "a log", "a torn log"])
def test_a_read_only_file_system(serve, tmp_path, state):
    data = tmp_path / "data"
    write_data(data)
    if state == "empty log":
        (data / "keys.log").touch()
    elif state != "no log":
        server = serve()
        server.set("room", "key").is_json(200, SUCCESS)
        server.kill()
        if state == "a torn log":
            with open(data / "keys.log", "ab") as log:
                log.write(b"torn")
    before = contents(data)
    with mounted(data, READ_ONLY) as read_only:
        with pytest.raises(OSError, match="Read-only"):
            (read_only / "file").touch()
        fails_to_start(read_only, r"keys\.log: .*Read-only file system")
    assert contents(data) == before


@pytest.mark.parametrize("error", ["EINVAL", "EROFS", "EOPNOTSUPP"])
def test_where_nothing_can_be_dirty_nothing_has_to_be_synced(serve, tmp_path, error):
    """squashfs and iso9660 are read-only and know no sync: a backup on one can be looked at. Elsewhere
    a sync that fails is an error. strace plays the part of the file system."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()

    def looks(directory, *arguments):
        strace = [tool("strace", "strace"), "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync",
                  "-e", f"inject=fdatasync:error={error}"]
        return subprocess.run([*strace, binary("ROOMKEYD_RELEASE"), *map(str, arguments), "--data",
                               str(directory)], capture_output=True, text=True, timeout=TIMEOUT_S,
                              stdin=subprocess.DEVNULL, check=False)

    commands = [("check",), ("export",), ("check", "--salvage", tmp_path / "new")]
    with mounted(server.directory, READ_ONLY) as read_only:
        for command in commands:
            done = looks(read_only, *command)
            assert (done.returncode, done.stderr) == (0, ""), done
    assert b"\troom\tkey\n" in (tmp_path / "new").read_bytes()
    (tmp_path / "new").unlink()
    for command in commands:
        done = looks(server.directory, *command)
        assert done.returncode == 1 and "keys.log: " in done.stderr, done


def as_nobody(tmp_path):
    """Options for a server without privileges. It need not find its way to tmp_path through
    directories of root's: it starts inside, from a copy of the binary."""
    shutil.copy(binary(), tmp_path / "roomkeyd")
    for path in (tmp_path, tmp_path / "roomkeyd"):
        path.chmod(0o755)
    wrapper = []
    if os.geteuid() == 0:
        wrapper = [tool("setpriv", "util-linux"), "--reuid=65534", "--regid=65534",
                   "--clear-groups"]
    return {"wrapper": wrapper, "program": "./roomkeyd", "before_exec": lambda: os.chdir(tmp_path)}


def give_to_nobody(*paths):
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, 65534, 65534)


@pytest.mark.parametrize("name", ["users", "rooms", "keys.log", "."])
def test_what_an_unprivileged_server_may_not_read(tmp_path, name):
    """Each of the files unreadable in turn; and a directory in which no log can be made."""
    data = tmp_path / "data"
    write_data(data)
    if name == "keys.log":
        (data / name).write_bytes(b"roomkeyd keys.log 1\n")
    give_to_nobody(data, *data.iterdir())
    (data / name).chmod(0o500 if name == "." else 0)
    options = as_nobody(tmp_path)
    server = Server(pathlib.Path("data"), **options)
    server.expected_stderr = rf"roomkeyd: data.*{'keys.log' if name == '.' else name}.*denied"
    server.expected_exit = 1
    server.judge()
    assert len(server.stderr.all()) == 1 and not server.stdout.all()
    (data / name).chmod(0o700)
    server = Server(pathlib.Path("data"), **options).wait_ready()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()
    assert b"\troom\tkey\n" in (data / "keys.log").read_bytes()


# ---- names that are taken, and lines that do not end -------------------------------------------


def test_a_directory_where_the_new_log_is_to_be_made(serve, tmp_path):
    data = tmp_path / "data"
    write_data(data)
    (data / "keys.log.new").mkdir()
    fails_to_start(data, r"keys\.log: cannot make it: Is a directory")
    (data / "keys.log.new").rmdir()
    serve().set("room", "key").is_json(200, SUCCESS)


def test_what_an_interrupted_birth_leaves_is_no_log(serve, tmp_path):
    """A crash before the rename: nothing can have been acknowledged from it."""
    data = tmp_path / "data"
    write_data(data)
    (data / "keys.log.new").write_bytes(b"roomkeyd ke")
    server = serve()
    assert server.log() == b"roomkeyd keys.log 1\n"
    assert not (data / "keys.log.new").exists()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_torn_tail_whose_name_is_taken(serve, kind):
    """What an earlier crash has left is not written over."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.kill()
    log = server.log()
    with open(server.directory / "keys.log", "ab") as file:
        file.write(b"second")
    taken = server.directory / f"keys.log.torn-{len(log)}"
    taken.mkdir() if kind == "directory" else taken.write_bytes(b"first")
    server = serve()
    server.expected_stderr = rf"torn tail of 6 bytes .*{taken.name}\.2$"
    assert (server.directory / f"{taken.name}.2").read_bytes() == b"second"
    assert kind == "directory" or taken.read_bytes() == b"first"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_log_without_its_last_newline(serve, end):
    """It is the end of a write that a crash has cut short, as an acknowledged record never is: kept
    beside the log, and said. After a clean stop the last line is a seal, so no record is lost."""
    server = serve()
    for i in range(3):
        server.set(f"room {i}", "key").is_json(200, SUCCESS)
    getattr(server, end)()
    log = server.log()
    path = server.directory / "keys.log"
    path.write_bytes(log[:-1])
    last_line = log[log.rindex(b"\n", 0, -1) + 1 : -1]
    server = serve()
    server.expected_stderr = rf"torn tail of {len(last_line)} bytes"
    [saved] = server.directory.glob("keys.log.torn-*")
    assert saved.read_bytes() == last_line
    kept = {f"room {i}": "key" if i < 2 or end == "stop" else None for i in range(3)}
    assert keys_of(server, kept) == kept
    server.set("another", "key").is_json(200, SUCCESS)
    server.stop()
    assert len(server.stderr.all()) == 1
    check_log(server.log())


def test_users_and_rooms_without_their_last_newlines(serve):
    server = serve(users=USERS[:-1], rooms=EVERY_ROOM[:-1])
    server.set("room", "key").is_json(200, SUCCESS)


@pytest.mark.parametrize("name", ["users", "rooms", "keys.log"])
@pytest.mark.parametrize("kind", ["fifo", "endless device"])
def test_something_else_in_the_place_of_a_file(tmp_path, name, kind):
    """It is refused at once: nobody waits for a writer, and nothing is written."""
    write_data(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    fails_to_start(tmp_path, name)


@pytest.mark.parametrize("target", ["a log", "nothing"])
def test_a_log_that_is_a_symbolic_link(tmp_path, target):
    """The lock is on the directory, so a log that lies elsewhere could have two servers; and where
    it leads nowhere, to a disk that is not mounted, say, a new log would re-open every room."""
    write_data(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    if target == "a log":
        elsewhere.write_bytes(b"roomkeyd keys.log 1\n")
    (tmp_path / "keys.log").symlink_to(elsewhere)
    fails_to_start(tmp_path, r"keys\.log: .*symbolic link")
    assert (tmp_path / "keys.log").is_symlink() and elsewhere.exists() == (target == "a log")


# ---- chattr ------------------------------------------------------------------------------------


def test_an_append_only_log_serves_until_it_has_to_be_opened(serve):
    """As the README has it: a server that runs goes on, none starts, and looking is allowed."""
    server = serve()
    with chattr(server.directory / "keys.log", "a"):
        server.set("room", "key").is_json(200, SUCCESS)
        server.stop()
        second = serve.launch()
        second.expected_exit, second.expected_stderr = 1, os.strerror(errno.EPERM)
        second.judge()
        for command in ("check", "export"):
            done = run(command, "--data", server.directory)
            assert (done.returncode, done.stderr) == (0, "")
        assert run("import", "--data", server.directory).returncode == 1
    serve().info("room").is_json(200, room_info("room", "c", "key"))


def test_an_append_only_log_cannot_be_cut(serve):
    """Half a line that a full disk has left stays, so no set is taken after it."""
    server = serve()
    server.expected_exit, server.expected_stderr = 1, "^roomkeyd: keys.log: (write|ftruncate): "
    with chattr(server.directory / "keys.log", "a"):
        size = len(server.log())
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
        server.set("room", "key").is_json(503, STORAGE_UNAVAILABLE)
        assert len(server.log()) == size + 10
        assert server.ask(HEALTHZ).status == 503
        server.stop()
    server = serve.launch()
    server.expected_stderr = "a torn tail of 10 bytes"
    server.wait_ready().set("room", "key").is_json(200, SUCCESS)


def test_an_append_only_directory_serves(serve):
    """With a log, and even with a torn tail, for which a file is made."""
    serve().stop()
    data = serve.directory / "data"
    with open(data / "keys.log", "ab") as log:
        log.write(b"torn")
    with chattr(data, "a"):
        server = serve.launch(users=None, rooms=None)
        server.expected_stderr = "a torn tail of 4 bytes"
        server.wait_ready().set("room", "key").is_json(200, SUCCESS)
        server.stop()
