"""The units and the manual before their own judges: systemd-analyze and mandoc; and the programs
under the unit's system call filter.

The filter is put together from the unit as systemd does it, from `systemd-analyze syscall-filter`,
and loaded by libseccomp into the process that becomes the server. What it does not let through kills
the process here, while systemd lets the call fail; the service as a whole is in test_systemd.py.
Needs systemd, man-db, mandoc and python3-seccomp of Debian.
"""

import os
import re
import signal
import socket
import subprocess

import pytest

from server import (
    ALREADY_EXISTS,
    REPOSITORY,
    SUCCESS,
    TIMEOUT_S,
    USERS,
    binary,
    passing,
    room_info,
    set_request,
    tool,
    wait_until,
    write_data,
)
from test_deploy import DEPLOY, MANUAL, make

EXPOSURE_MAX = 20  # tenths, as systemd-analyze counts them

SERVICE = DEPLOY / "roomkeyd.service"


def analyze(*arguments, **options):
    return subprocess.run([tool("systemd-analyze", "systemd"), *map(str, arguments)], text=True,
                          capture_output=True, timeout=TIMEOUT_S, check=False, **options)


def test_the_units_are_in_order(tmp_path):
    """As installed: the program is there, the manual is found, and there is nothing to say."""
    make("install", REPOSITORY, PREFIX=tmp_path)
    manual = {**os.environ, "MANPATH": str(tmp_path / "share/man")}
    units = [tmp_path / "lib/systemd/system" / f"roomkeyd.{kind}" for kind in ("service", "socket")]
    tool("man", "man-db")
    result = analyze("verify", *units, env=manual)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result
    # Would it say something? Of a unit whose program is gone, yes.
    (tmp_path / "sbin/roomkeyd").unlink()
    assert "not executable" in analyze("verify", *units, env=manual).stderr


def test_the_service_is_hardly_exposed(tmp_path):
    arguments = ("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}")
    result = analyze(*arguments, SERVICE)
    assert result.returncode == 0, result.stdout
    level, = re.findall(r"exposure level for roomkeyd\.service: ([\d.]+)", result.stdout)
    assert float(level) < EXPOSURE_MAX / 10
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze(*arguments, bare).returncode != 0, "this test would not see the difference"


def test_the_manual_is_in_order(tmp_path):
    lint = [tool("mandoc", "mandoc"), "-Tlint", "-W", "warning"]
    result = subprocess.run([*lint, MANUAL], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result
    broken = tmp_path / "broken.8"
    broken.write_text(MANUAL.read_text().replace(".El\n", "", 1))
    assert subprocess.run([*lint, broken], capture_output=True, check=False).returncode != 0


# ---- the system call filter --------------------------------------------------------------------


def settings(name):
    """The words of all lines of a setting of the service."""
    found = re.findall(rf"^{name}=(.*)$", SERVICE.read_text(), re.M)
    assert found, name
    return " ".join(found).split()


def expand(names):
    """The system calls behind names, some of which may be sets of systemd's."""
    calls = set()
    for name in names:
        if name[0] != "@":
            calls.add(name)
            continue
        lines = analyze("syscall-filter", name).stdout.split("\n")[1:]
        calls |= expand(line.strip() for line in lines if line.strip() and "#" not in line)
    return calls


# Loads a filter that kills the process at any other call, at memory that is to be both writable and
# executable (MemoryDenyWriteExecute), and at sockets of other families; then becomes its arguments.
# The scheduling policy is the unit's, too: with another one the server would ask for it by itself.
FILTER = """if True:
    import os, seccomp, socket, sys
    one = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
    rest = {}
    if "mmap" in sys.argv[1].split():
        rest = {
            "mmap": [[seccomp.Arg(2, seccomp.MASKED_EQ, 4, 0)],
                     [seccomp.Arg(2, seccomp.MASKED_EQ, 6, 4)]],
            "socket": [[seccomp.Arg(0, seccomp.EQ, socket.AF_UNIX)]],
        }
    for name in sys.argv[1].split():
        try:
            for rule in rest.get(name, [[]]):
                one.add_rule(seccomp.ALLOW, name, *rule)
        except RuntimeError:
            pass  # a call of other machines
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    one.load()
    os.execv(sys.argv[2], sys.argv[2:])
"""


def filtered(calls):
    """A wrapper under which a program may make only these system calls."""
    return ["/usr/bin/python3", "-I", "-c", FILTER, " ".join(sorted(calls))]


@pytest.fixture(name="allowed", scope="module")
def _allowed():
    """What the unit lets through; systemd always adds @default."""
    calls = expand(["@default", *settings("SystemCallFilter")])
    assert settings("RestrictAddressFamilies") == ["AF_UNIX"]
    assert settings("MemoryDenyWriteExecute") == ["yes"]
    assert settings("CPUSchedulingPolicy") == ["batch"]
    assert {"mmap", "pwrite64", "fdatasync", "accept4", "clone3", "fadvise64"} <= calls
    assert not {"ptrace", "mount", "chroot", "setuid", "bpf", "reboot", "swapon"} & calls
    return calls


def listening():
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    one.listen(4096)
    return one


def lead_a_life(serve, calls, program):
    """All that a service does: it is born, serves, rereads, rests, stops, and mends a torn tail."""
    with listening() as passed, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind("")
        options = passing(passed)
        options["wrapper"] += filtered(calls)
        name = "@" + manager.getsockname()[1:].decode()
        for generation in range(2):
            server = serve.launch(listen=(), program=program, environment={"NOTIFY_SOCKET": name},
                                  **options).wait_ready()
            assert manager.recv(99) == b"READY=1"
            clients = [server.client() for _ in range(50)]
            for number, client in enumerate(clients):
                client.ask(set_request(f"{generation} {number}", "key")).is_json(200, SUCCESS)
            server.set(f"{generation} 0", "other").is_json(400, ALREADY_EXISTS)
            server.info("0 0").is_json(200, room_info("0 0", "c", "key"))
            write_data(server.directory, USERS, "* c\nclosed p\n")
            server.send_signal(signal.SIGHUP)
            assert manager.recv(99).startswith(b"RELOADING=1\n")
            assert manager.recv(99) == b"READY=1"
            assert server.info("closed").status == 400
            wait_until(lambda: server.log().endswith(b"\t-\n"), "the seal of a log at rest")
            for client in clients:
                client.close()
            server.expected_stderr = "keys.log.torn-"
            server.stop()
            assert manager.recv(99) == b"STOPPING=1"
            with open(server.directory / "keys.log", "ab") as log:
                log.write(b"torn")
        assert list(server.directory.glob("keys.log.torn-*"))


@pytest.mark.parametrize("variable", ["ROOMKEYD_RELEASE", "ROOMKEYD_STATIC"])
def test_the_filter_lets_through_what_the_server_needs(serve, allowed, variable):
    lead_a_life(serve, allowed, binary(variable))


@pytest.mark.parametrize("missing", ["fdatasync", "fadvise64", "renameat"])
def test_the_filter_is_in_force(serve, allowed, missing):
    """Without a call that it needs the server is killed."""
    with pytest.raises((AssertionError, OSError)):
        lead_a_life(serve, allowed - {missing}, binary("ROOMKEYD_RELEASE"))
    for server in serve.servers:
        server.judged = True
        assert server.process.wait(TIMEOUT_S) == -signal.SIGSYS


def test_the_filter_keeps_it_from_opening_other_sockets(serve, allowed):
    server = serve.launch(program=binary("ROOMKEYD_RELEASE"), wrapper=filtered(allowed))
    server.judged = True
    assert server.process.wait(TIMEOUT_S) == -signal.SIGSYS


def test_the_filter_lets_through_the_shells_of_the_unit(tmp_path, allowed):
    """ExecStartPre and ExecReload run under it, too; the second of these is the program itself."""
    text = SERVICE.read_text()
    prepare, = re.findall(r"^ExecStartPre=/bin/sh -c '(.*)'$", text, re.M)
    reload, = re.findall(r"^ExecReload=/bin/sh -c '(.*)'$", text, re.M)
    check, = re.findall(r"^ExecReload=\S+/roomkeyd (.*)$", text, re.M)
    shell = [*filtered(allowed), "/bin/sh", "-c"]
    subprocess.run([*shell, prepare.replace("$$", "$")], cwd=tmp_path, check=True)
    assert sorted(os.listdir(tmp_path)) == ["rooms", "users"]
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        subprocess.run([*shell, reload.replace("$$", "$")], check=True,
                       env={"MAINPID": str(sleeper.pid)})
        assert sleeper.wait(TIMEOUT_S) == -signal.SIGHUP
    arguments = check.replace("%S/roomkeyd", str(tmp_path)).split()
    for variable in ("ROOMKEYD_RELEASE", "ROOMKEYD_STATIC"):
        subprocess.run([*filtered(allowed), binary(variable), *arguments], check=True)
