"""Every kind of fault, once: the shortened run of faults.py, which says what is tried and promised.
And faults that need a scene of their own, which its script does not play.

The environment names the binary: ROOMKEYD_FAULTS (`make test` sets it). The same faults every time;
`make torture` tries them at each use of each call.
"""

import collections
import contextlib
import errno
import os
import select
import signal
import struct
import subprocess

import pytest

import faults
from server import (
    HEALTHZ, SUCCESS, TIMEOUT_S, binary, info_request, request, set_request, wait_until,
)
from test_service import OFTEN_US, WATCHDOG, Manager


@pytest.fixture(name="plan", scope="module")
def _plan(tmp_path_factory):
    plan = faults.Plan(tmp_path_factory.mktemp("faults"))
    plan.measure()
    plan.of_call = collections.defaultdict(list)
    for run in faults.shortened(plan.singles() + plan.together()):
        plan.of_call[run[1][-1].call].append(run)
    return plan


@pytest.mark.parametrize("call", faults.SINGLE)
def test_a_call_that_fails_harms_nobody(plan, call):
    for is_birth, some in plan.of_call[call]:
        plan.live(some, is_birth)
    assert plan.injected[call] > 0, f"{call} never failed"


# ---- scenes of their own -----------------------------------------------------------------------

SOON_S = 8  # less than the deadline for a client that does not read


def run(fault, *arguments):
    """A command under faults, to its end: (exit code, standard error)."""
    done = subprocess.run(
        [binary("ROOMKEYD_FAULTS"), *map(str, arguments)], env={**os.environ, "FAULTS": fault},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return done.returncode, done.stderr


@pytest.fixture(name="data")
def _data(serve):
    """A directory whose log holds a key ID."""
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()
    return server.directory


@pytest.fixture(name="serve_with")
def _serve_with(serve, tmp_path):
    """serve_with(call, n, error): a server whose n-th use of a call after its start fails. It counts
    the uses of a start in one that has no faults. failed(server, call): how often it did."""
    report = tmp_path / "report"

    def counts():
        """{call: (used, failed)}"""
        return {name.rstrip(b"\0").decode(): (used, failed)
                for name, used, failed in struct.iter_unpack("16sII", report.read_bytes())}

    def launch(fault, environment=None):
        report.unlink(missing_ok=True)
        return serve(program=binary("ROOMKEYD_FAULTS"), environment={
            **(environment or {}), "FAULTS": fault, "FAULTS_REPORT": str(report)})

    def serve_with(call, n, error, environment=None):
        launch("").stop()  # the first one makes the log
        server = launch("")
        used = counts()[call][0]
        server.stop()
        return launch(f"{call} {used + n} 1 {error}", environment)

    serve_with.failed = lambda call: counts()[call][1]
    return serve_with


def ends(client):
    """Whether the server ends the connection without a word."""
    try:
        return client.socket.recv(1) == b""
    except ConnectionResetError:
        return True


def test_no_memory_for_a_connection(serve_with):
    server = serve_with("calloc", 1, errno.ENOMEM)
    with server.client() as client:
        assert ends(client)
    assert serve_with.failed("calloc") == 1
    assert server.ask(HEALTHZ).status == 200


def test_no_memory_for_the_rest_of_a_request(serve_with):
    server = serve_with("malloc", 1, errno.ENOMEM)
    with server.client() as other, server.client() as client:
        client.send(HEALTHZ[:10])
        assert ends(client)
        assert serve_with.failed("malloc") == 1
        assert other.ask(HEALTHZ).status == 200


def test_a_connection_that_cannot_be_watched(serve_with):
    """Once its replies fill the kernel's buffers it is watched for room; if that fails, it ends, and
    nobody else notices."""
    server = serve_with("epoll_ctl", 3, errno.ENOMEM)  # the first two: both connections come
    with server.client() as other, server.client() as client:
        assert other.ask(HEALTHZ).status == 200
        client.socket.setblocking(False)
        requests, sent = request("GET", "/x"), 0
        with pytest.raises(ConnectionError):
            while select.select([], [client.socket], [], SOON_S)[1]:
                sent += client.socket.send((requests * 200)[sent % len(requests):])
        assert serve_with.failed("epoll_ctl") == 1
        assert other.ask(HEALTHZ).status == 200


def test_a_defect_of_the_loop_ends_it_at_once(serve_with):
    """An error that epoll_wait cannot give to a program without defects: no spin, but a core."""
    server = serve_with("epoll_wait", 2, errno.EBADF)
    server.expected_stderr = f"roomkeyd: epoll_wait: {os.strerror(errno.EBADF)}"
    server.expected_exit = -signal.SIGABRT
    with contextlib.suppress(ConnectionError), server.client() as client:
        while True:
            client.send(HEALTHZ)
            if not client.socket.recv(65536):
                break
    server.judge()
    assert len(server.stderr.all()) == 1


# What faults.c takes for a call that never returns.
HANG = 0


@pytest.mark.usefixtures("data")
def test_a_loop_that_hangs_does_not_answer_the_watchdog(serve_with, tmp_path):
    """It reads a record back from a disk that is stuck, while the other threads are well."""
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        server = serve_with("pread64", 1, HANG, manager.environment)
        manager.until(WATCHDOG)
        with server.client() as client:
            client.send(info_request("room"))
            wait_until(lambda: serve_with.failed("pread64") == 1, "the loop to hang")
            assert manager.is_silent()
            server.kill()


def test_a_stuck_disk_does_not_keep_the_loop_from_the_watchdog(serve_with, tmp_path):
    """The committer hangs, and the loop is well: a restart would mend nothing."""
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        server = serve_with("fdatasync", 1, HANG, manager.environment)
        with server.client() as client:
            client.send(set_request("room", "key"))
            wait_until(lambda: serve_with.failed("fdatasync") == 1, "the committer to hang")
            assert server.ask(HEALTHZ).status == 200
            for _ in range(200):  # more than have been said before
                manager.until(WATCHDOG)
            assert server.info("other").status == 200
            server.kill()


@pytest.mark.parametrize("fault,message", [
    ("calloc 1 1 12", "roomkeyd: out of memory\n"),
    ("epoll_ctl 2 1 12", f"roomkeyd: signalfd: {os.strerror(errno.ENOMEM)}\n"),
])
def test_a_start_that_fails_says_why(data, fault, message):
    assert run(fault, "--listen", "127.0.0.1:0", "--data", data) == (1, message)


@pytest.mark.parametrize("fault", ["pread64 2 1 5", "fdatasync 1 1 5", "malloc 1 1 12"])
@pytest.mark.parametrize("name", ["check", "export"])
def test_a_log_that_cannot_be_read_is_not_judged(data, name, fault):
    code, errors = run(fault, name, "--data", data)
    reason = "out of memory" if fault.endswith("12") else "keys.log: " + os.strerror(errno.EIO)
    assert (code, errors) == (1, f"roomkeyd: {data}: {reason}\n")


def test_an_export_that_cannot_read_again_fails(data):
    code, errors = run("fdatasync 2 1 5", "export", "--data", data)
    assert (code, errors) == (1, f"roomkeyd: {data}: keys.log: {os.strerror(errno.EIO)}\n")


@pytest.mark.parametrize("use", [
    "pwrite64 1", "pwrite64 2", "fsync 1", "pwrite64 3", "fsync 2", "fsync 3",
], ids=["first line", "record", "both on disk", "seal", "all on disk", "its name on disk"])
def test_a_salvage_that_is_not_on_disk_is_removed(data, tmp_path, use):
    new = tmp_path / "new"
    code, errors = run(f"{use} 1 5", "check", "--data", data, "--salvage", new)
    assert (code, errors) == (1, f"roomkeyd: {new}: {os.strerror(errno.EIO)}\n")
    assert not new.exists()


def test_what_a_killed_command_has_left_is_no_part_of_users(data):
    """Where it cannot be removed, nothing is changed: its end would stand after what is new."""
    before = (data / "users").read_bytes()
    (data / "users.new").write_text("# left\n" * 1000)
    code, errors = run(f"ftruncate64 1 1 {errno.EIO}", "user", "add", "--data", data, "carol")
    assert (code, errors) == (
        1, f"roomkeyd: {data}: cannot change users: users.new: {os.strerror(errno.EIO)}\n")
    assert (data / "users").read_bytes() == before


def test_an_import_fails_when_the_disk_does_at_its_very_end(data):
    """All is counted by then; the seal remains."""
    log = data / "keys.log"
    first, record, _ = log.read_bytes().splitlines(True)
    log.write_bytes(first + record)
    code, errors = run(f"pwrite64 2 1 {errno.EIO}", "import", "--data", data)
    assert code == 1
    assert f"roomkeyd: keys.log: write: {os.strerror(errno.EIO)}: " in errors
