"""deploy/copy.sh: a copy of a server's directory, made while clients set keys; and a fail-over.

Needs rsync of Debian; without, it fails.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from server import (
    ALREADY_EXISTS,
    EVERY_ROOM,
    REPOSITORY,
    SUCCESS,
    TIMEOUT_S,
    Lines,
    Server,
    room_info,
    run,
    set_request,
    tool,
    wait_until,
)

COPY_SH = REPOSITORY / "deploy" / "copy.sh"
TORN = "a crash left a torn tail"
CLIENTS = 3


class Load:
    """Clients that set rooms of their own as fast as they can, and note what was acknowledged."""

    def __init__(self, server):
        self.server = server
        self.acknowledged = {}
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._set_rooms, args=(number,), daemon=True)
                        for number in range(CLIENTS)]
        self.errors = []

    def _set_rooms(self, number):
        try:
            with self.server.client() as client:
                count = 0
                while not self.stopping.is_set():
                    room, key = f"room-{number}-{count}", f"key-{number}-{count}"
                    client.ask(set_request(room, key)).is_json(200, SUCCESS)
                    self.acknowledged[room] = key
                    count += 1
        except (AssertionError, OSError) as error:
            if not self.stopping.is_set():
                self.errors.append(error)

    def wait_for_more(self, count):
        """Waits until that many more sets have been acknowledged."""
        enough = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= enough or self.errors, "more sets")
        assert not self.errors, self.errors

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        assert not self.errors, self.errors


def copy(source, target, **options):
    """One pass. Returns (exit code, standard error)."""
    tool("rsync", "rsync")
    done = subprocess.run([COPY_SH, str(source), str(target)], capture_output=True, text=True,
                          timeout=TIMEOUT_S, check=False, **options)
    assert done.stdout == ""
    return done.returncode, done.stderr


@contextlib.contextmanager
def copying_on(source, target):
    """The script in its loop, until the end of the block; yields what it says."""
    process = subprocess.Popen([COPY_SH, source, target, "0.05"], stdin=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, start_new_session=True)
    lines = Lines(process.stderr)
    try:
        yield lines
        assert process.poll() is None, "it has ended by itself"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(TIMEOUT_S)
        lines.all()  # which closes the pipe: nobody else may while it is being read


def exported(data):
    """What a directory holds, by the program's own word: {room: key}."""
    checked = run("check", "--data", data)
    assert checked.returncode == 0, checked
    done = run("export", "--data", data)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["_id"]: line["e2eKeyId"] for line in lines}


def check_holds(data, expected, sample=None):
    """A copy opens clean, by check and by a server, and holds all of this; a sample of it cannot be
    set again, while other rooms can."""
    found = exported(data)
    missing = {room: key for room, key in expected.items() if found.get(room) != key}
    assert not missing, f"{len(missing)} of {len(expected)} acknowledged keys: {missing}"
    with started_on(data) as server, server.client() as client:
        for room in sample or []:
            client.ask(set_request(room, "second")).is_json(400, ALREADY_EXISTS)
        client.ask(set_request("a-new-room", "k")).is_json(200, SUCCESS)


@contextlib.contextmanager
def started_on(data):
    """A server on a copy; a torn tail is all that it may have to say."""
    server = Server(data)
    server.expected_stderr = TORN
    try:
        yield server.wait_ready()
        server.stop()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(name="seed")
def _seed():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@contextlib.contextmanager
def rsync_daemon(directory, tmp_path):
    """The directory over rsync's own protocol, as from another machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = tmp_path / "rsyncd.conf"
    configuration.write_text(
        f"address = 127.0.0.1\nport = {port}\nuse chroot = no\nlog file = /dev/null\n"
        + ("uid = root\ngid = root\n" if os.geteuid() == 0 else "")
        + f"[data]\npath = {directory}\nread only = yes\n")
    with subprocess.Popen([tool("rsync", "rsync"), "--daemon", "--no-detach",
                           f"--config={configuration}"], stdin=subprocess.DEVNULL) as process:
        try:
            def accepts():
                assert process.poll() is None, "the rsync daemon did not start"
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    return True

            wait_until(accepts, "the rsync daemon")
            yield f"rsync://127.0.0.1:{port}/data"
        finally:
            process.terminate()


@pytest.mark.parametrize("over", ["directory", "network"])
def test_copies_at_random_moments(serve, tmp_path, seed, over):
    """A new copy, or the same one carried on; each holds what was acknowledged before it began."""
    server = serve()
    with contextlib.ExitStack() as stack:
        source = server.directory
        if over == "network":
            source = stack.enter_context(rsync_daemon(source, tmp_path))
        load = stack.enter_context(Load(server))
        snapshots = []
        for number in range(12):
            load.wait_for_more(seed.randrange(1, 200))
            target = tmp_path / (f"fresh-{number}" if number % 4 == 3 else "carried-on")
            before = dict(load.acknowledged)
            assert copy(source, target) == (0, "")
            snapshot = tmp_path / f"snapshot-{number}"
            shutil.copytree(target, snapshot)
            snapshots.append((snapshot, before))
    for snapshot, before in snapshots:
        check_holds(snapshot, before, seed.sample(sorted(before), min(50, len(before))))
        assert (snapshot / "copied").stat().st_size == 0
    # Nothing more happens at the source: the next copy is all of it, byte for byte.
    server.stop()
    assert copy(server.directory, tmp_path / "carried-on") == (0, "")
    assert (tmp_path / "carried-on" / "keys.log").read_bytes() == server.log()


def test_passes_that_are_killed(serve, tmp_path, seed):
    """At any moment; the copy keeps what the last whole pass gave it, and the next one goes on."""
    server, target = serve(), tmp_path / "copy"
    before = {}
    with Load(server) as load:
        for number in range(12):
            load.wait_for_more(seed.randrange(1, 100))
            noted = dict(load.acknowledged)
            with subprocess.Popen([COPY_SH, server.directory, target], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  start_new_session=True) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seed.uniform(0, 0.2))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if process.wait() == 0:
                    before = noted
            if (target / "keys.log").exists():
                snapshot = tmp_path / f"snapshot-{number}"
                shutil.copytree(target, snapshot)
                check_holds(snapshot, before)
        noted = dict(load.acknowledged)
        # The lock goes with the last process of a killed pass.
        wait_until(lambda: copy(server.directory, target) == (0, ""), "a pass")
    check_holds(target, noted)


def test_a_drill_with_a_last_pass(serve, tmp_path):
    """The old server can be stopped: then nothing is missing."""
    old, target = serve(), tmp_path / "copy"
    with copying_on(old.directory, target):
        with Load(old) as load:
            wait_until((target / "copied").exists, "the first pass")
            load.wait_for_more(300)
            # While copying goes on nobody can open the copy.
            done = run("serve", "--listen", "127.0.0.1:0", "--data", target)
            assert done.returncode == 1 and "in use" in done.stderr, done
            load.stopping.set()
        acknowledged = dict(load.acknowledged)
        old.stop()
    wait_until(lambda: copy(old.directory, target) == (0, ""), "the last pass")
    assert (target / "rooms").read_text() == EVERY_ROOM

    with started_on(target) as new, new.client() as client:
        for room, key in acknowledged.items():
            client.ask(set_request(room, "second")).is_json(400, ALREADY_EXISTS)
            assert new.info(room).body == room_info(room, "c", key)
        # And while a server has it nobody copies into it.
        code, errors = copy(old.directory, target)
        assert code == 1 and "is in use" in errors


def test_a_drill_without_a_last_pass(serve, tmp_path):
    """The old machine is gone: what was acknowledged before the last whole pass is there."""
    old, target = serve(), tmp_path / "copy"
    with Load(old) as load:
        load.wait_for_more(200)
        before = dict(load.acknowledged)
        assert copy(old.directory, target) == (0, "")
        load.wait_for_more(200)
        load.stopping.set()
        old.kill()
    shutil.rmtree(old.directory)
    check_holds(target, before, sorted(before))


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_a_source_that_is_no_continuation(serve, tmp_path):
    """Emptied, cut or changed: the copy is not touched, for it may be the last one."""
    server, target = serve(), tmp_path / "copy"
    for number in range(5):
        server.set(f"room-{number}", "k").is_json(200, SUCCESS)
    server.stop()
    source, log = server.directory, server.directory / "keys.log"
    assert copy(source, target) == (0, "")
    whole = log.read_bytes()
    lines = lines_of(log)
    for other in (lines[0], b"".join(lines[:4]), whole.replace(b"room-3", b"room-x"), b""):
        log.write_bytes(other)
        code, errors = copy(source, target)
        assert code == 1 and "is no continuation of" in errors, (other, errors)
        assert (target / "keys.log").read_bytes() == whole
    # Written anew with the same content it is the same.
    log.write_bytes(whole)
    os.utime(log, (0, 0))
    assert copy(source, target) == (0, "")


def test_a_tail_that_the_source_cut(serve, tmp_path):
    """The copy caught a tail that its server then threw away: once the source has gone past it, the
    copy is as the source is."""
    server, target = serve(), tmp_path / "copy"
    server.set("first", "k").is_json(200, SUCCESS)
    server.stop()
    with open(server.directory / "keys.log", "ab") as log:
        log.write(b"torn")
    assert copy(server.directory, target) == (0, "")
    assert exported(target) == {"first": "k"}

    again = serve()
    again.expected_stderr = TORN
    again.set("second", "k").is_json(200, SUCCESS)
    code, errors = copy(again.directory, target)
    assert code == 0 and "failed verification" in errors
    check_holds(target, {"first": "k", "second": "k"})


@pytest.mark.parametrize("arguments", [(), ("a",), ("a", "b", "1", "x")])
def test_bad_usage(arguments):
    done = subprocess.run([COPY_SH, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("usage: copy.sh ")


def test_a_source_that_is_not_there(tmp_path):
    code, errors = copy(tmp_path / "nowhere", tmp_path / "copy")
    assert code == 1 and "copy.sh: users and rooms: not copied" in errors


def test_a_source_that_comes_back(serve, tmp_path):
    """A loop that cannot reach it says so and goes on; a single pass would have failed."""
    server, target, source = serve(), tmp_path / "copy", tmp_path / "mounted"
    server.set("room", "key").is_json(200, SUCCESS)
    with copying_on(source, target) as errors:
        said = "copy.sh: users and rooms: not copied"
        assert errors.wait_for(lambda lines: lines.count(said) >= 2)
        assert not (target / "copied").exists()
        source.symlink_to(server.directory)
        wait_until((target / "copied").exists, "a pass")
    check_holds(target, {"room": "key"}, ["room"])
