"""As process 1, which every command is that a container is started for.

The kernel spares process 1 the signals whose action it has not chosen itself. So a command that waits
for its input, for a lock or for a disk outlives Ctrl-C and `docker stop`, unless it asks to end.

Proves that each command, and a server before and after its loop, ends at each of these signals, with
the exit code that a shell has for it, and leaves no more behind than a crash may.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess

import pytest

from server import (
    TIMEOUT_S, Client, binary, hash_token, parse_ready_line, records, run, set_request,
    tool, wait_until, write_data,
)
from test_deploy import give_up
from test_disk import contents

SIGNALS = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]
HANG = 0  # what faults.c takes for a call that never returns


class First:
    """A roomkeyd as process 1 of a PID namespace; .pid is its number outside."""

    def __init__(self, *arguments, program=None, environment=None, **options):
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        unshare = [tool("unshare", "util-linux"), "--fork", "--pid", "--mount-proc", "--kill-child", *as_root]
        probe = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            give_up(f"nobody here may make a PID namespace: {probe.stderr}")
        options = {"stdin": subprocess.PIPE, **options}
        self.outer = subprocess.Popen(
            [*unshare, program or binary(), *map(str, arguments)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}, **options)
        children = pathlib.Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        self.pid = int(wait_until(lambda: children.read_text().split(), "process 1")[0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.outer.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.outer.communicate()

    def set_of(self, name):
        """The numbers of the signals in a set of /proc/PID/status, of the first thread."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        bits = int(re.search(rf"^{name}:\t(.*)$", status, re.M)[1], 16)
        return {number for number in range(1, 65) if bits >> (number - 1) & 1}

    def is_asleep(self):
        state = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "S" and signal.SIGTERM in self.set_of("SigCgt")

    def wait_asleep(self):
        """Until it waits for something, in roomkeyd's own code."""
        wait_until(self.is_asleep, "process 1 to choose its signals, and to wait")

    def send(self, number):
        os.kill(self.pid, number)

    def end(self):
        """(exit code, standard output, standard error)"""
        output, errors = self.outer.communicate(timeout=TIMEOUT_S)
        return self.outer.returncode, output.decode(), errors.decode()

    def ends_by(self, number):
        """Whether it ends, at a signal that it has been sent, without a word."""
        code, output, errors = self.end()
        assert (code, output, errors) == (128 + number, "", "")


@pytest.fixture(name="data")
def _data(tmp_path):
    """A directory with a log."""
    write_data(tmp_path / "data")
    done = run("import", "--data", tmp_path / "data", stdin=None, input='{"_id":"r","e2eKeyId":"k"}\n')
    assert done.returncode == 0, done
    return tmp_path / "data"


@contextlib.contextmanager
def locked(path):
    """The new file that another command is writing."""
    with open(path, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink()


@contextlib.contextmanager
def silent():
    """The address of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield "127.0.0.1:%d" % listening.getsockname()[1]


STUCK = {"program": "ROOMKEYD_FAULTS", "environment": {"FAULTS": f"pread64 1 1 {HANG}"}}
WAITING = {  # by what it waits for
    "import": {},
    "users import": {},
    "rooms import": {},
    "hash-token": {},
    "user add carol": {},
    "user revoke alice": {},
    "health": {},
    "check": STUCK,
    "export": STUCK,
    "serve --listen 127.0.0.1:0": STUCK,  # a replay that takes long
}


def ends():
    """Each command with each signal; a server's SIGHUP waits for the loop, as it does anywhere."""
    for command in WAITING:
        for number in SIGNALS[command.startswith("serve") :]:
            yield pytest.param(command, number, id=f"{command}-{number.name}")


@pytest.mark.parametrize("command,number", ends())
def test_a_command_that_waits_ends(data, command, number):
    before = contents(data)
    options = dict(WAITING[command])
    if "program" in options:
        options["program"] = binary(options["program"])
    with contextlib.ExitStack() as stack:
        arguments = command.split()
        if arguments[0] == "user":
            stack.enter_context(locked(data / "users.new"))
        if arguments[0] == "health":
            arguments += ["--listen", stack.enter_context(silent())]
        elif arguments[0] != "hash-token":
            arguments += ["--data", data]
        first = stack.enter_context(First(*arguments, **options))
        first.wait_asleep()
        first.send(number)
        first.ends_by(number)
    after = contents(data)
    left = after.pop(f"{arguments[0]}.new", b"")
    assert left == b"" and after == before
    # The next one does what it is asked for: no lock is left, and nothing in the way.
    assert run("user", "add", "--data", data, "dave").returncode == 0
    done = run("import", "--data", data, stdin=None, input='{"_id":"s","e2eKeyId":"k"}\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert run("check", "--data", data).returncode == 0
    assert not (data / "users.new").exists()


@pytest.mark.parametrize("name", ["users", "rooms"])
def test_what_an_interrupted_import_leaves_is_no_part_of_the_next_one(data, name):
    """Half a new file, of which the old one knows nothing; the next import begins anew."""
    half = ("".join('{"_id":"u%d","services":{"resume":{"loginTokens":[{"hashedToken":"%s"}]}}}\n' %
                    (number, hash_token(str(number))) for number in range(1000)) if name == "users" else
            "".join('{"_id":"room-%d","t":"c"}\n' % number for number in range(1000)))
    before = contents(data)[name]
    with First(name, "import", "--data", data) as first:
        first.outer.stdin.write(half.encode())
        first.outer.stdin.flush()
        if name == "users":  # rooms are sorted first
            new = data / "users.new"
            wait_until(lambda: new.exists() and new.stat().st_size > 0, "the first of them")
        first.wait_asleep()
        first.send(signal.SIGTERM)
        first.ends_by(signal.SIGTERM)
    assert contents(data)[name] == before and (data / f"{name}.new").exists()
    whole = half.splitlines(keepends=True)[-1]
    done = run(name, "import", "--data", data, stdin=None, input=whole)
    assert (done.returncode, done.stdout) == (0, f"{name}: 1 lines, 0 passed over\n")
    assert contents(data)[name].count(b"\n") == 1 and not (data / f"{name}.new").exists()


def test_what_an_interrupted_import_has_brought_to_disk_stays(data):
    """And the same input does no harm a second time."""
    text = "".join('{"_id":"room-%d","e2eKeyId":"%d"}\n' % (number, number) for number in range(40_000))
    with First("import", "--data", data) as first:
        size = (data / "keys.log").stat().st_size
        first.outer.stdin.write(text.encode())
        first.outer.stdin.flush()
        wait_until(lambda: (data / "keys.log").stat().st_size > size, "the first batch")
        first.send(signal.SIGINT)
        first.ends_by(signal.SIGINT)
    there = len(records((data / "keys.log").read_bytes())) - 1
    assert 0 < there < 40_000
    done = run("import", "--data", data, stdin=None, input=text)
    assert done.returncode == 0
    assert done.stdout == f"{40_000 - there} set, {there} set already, 0 without a key ID\n"


def test_a_signal_that_is_ignored_stays_so(data):
    """As nohup ignores SIGHUP, and a shell SIGINT for what runs in the background. Of two signals
    the one with the lower number would come first."""
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    with First("import", "--data", data, preexec_fn=ignore) as first:
        first.wait_asleep()
        assert signal.SIGINT in first.set_of("SigIgn")
        first.send(signal.SIGINT)
        first.send(signal.SIGTERM)
        first.ends_by(signal.SIGTERM)


# ---- the server --------------------------------------------------------------------------------


def address_of(first):
    return parse_ready_line(first.outer.stdout.readline().decode().rstrip("\n"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_stops_in_good_order(data, number):
    with First("--data", data, "--listen", "127.0.0.1:0") as first:
        with Client(address_of(first)) as client:
            assert client.ask(set_request("room", "key")).status == 200
        first.send(number)
        assert first.end() == (0, "", "")


def test_a_server_that_stops_ends_at_a_second_signal(data):
    with First("--data", data, "--listen", "127.0.0.1:0") as first:
        address = address_of(first)
        with Client(address) as stuck:
            stuck.send(set_request("room", "key")[:10])

            def refuses():
                with contextlib.suppress(ConnectionError):
                    Client(address).close()
                    return False
                return True

            first.send(signal.SIGTERM)
            wait_until(refuses, "the server to stop listening")
            first.send(signal.SIGTERM)
            assert first.end() == (1, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_whose_disk_is_stuck_ends(data, tmp_path, number):
    """When its loop is over it waits for the last write, that of the seal, which never returns."""
    report = tmp_path / "report"
    environment = {"FAULTS_REPORT": str(report)}
    arguments = ("--data", data, "--listen", "127.0.0.1:0")
    with First(*arguments, program=binary("ROOMKEYD_FAULTS"), environment=environment) as first:
        address_of(first)
        writes = {name.rstrip(b"\0"): used for name, used, _ in
                  struct.iter_unpack("16sII", report.read_bytes())}[b"pwrite64"]
        first.send(signal.SIGTERM)
        assert first.end()[0] == 0
    report.unlink()
    environment["FAULTS"] = f"pwrite64 {writes + 2} 4000000000 {HANG}"  # the set's goes well
    with First(*arguments, program=binary("ROOMKEYD_FAULTS"), environment=environment) as first:
        with Client(address_of(first)) as client:
            assert client.ask(set_request("room", "key")).status == 200
        first.send(number)
        wait_until(lambda: number not in first.set_of("SigBlk"), "the end of the loop")
        first.wait_asleep()
        assert first.outer.poll() is None
        first.send(number)
        first.ends_by(number)
    assert run("check", "--data", data).returncode == 0


def test_a_server_whose_disk_is_stuck_at_the_start_ends(data):
    environment = {"FAULTS": f"fdatasync 1 4000000000 {HANG}"}
    with First("--data", data, program=binary("ROOMKEYD_FAULTS"), environment=environment) as first:
        first.wait_asleep()
        first.send(signal.SIGTERM)
        first.ends_by(signal.SIGTERM)
