"""The service under the real systemd, with all of its sandbox: started in namespaces of its own.

    unshare: mounts, processes, network, cgroups --> a root of tmpfs, with this machine's /usr
        --> /lib/systemd/systemd as process 1 --> roomkeyd.socket, roomkeyd.service

Nothing of it is seen from outside: it has no network but a loopback, no device, /proc/sys read-only,
a cgroup of its own, and it goes with the process that holds it. Where nobody may mount, that is said
(see give_up). What the tests do in there, they do by nsenter. Needs systemd, curl and python3.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess

import pytest

from server import TIMEOUT_S, binary, tool, wait_until
from test_deploy import DEPLOY, give_up

SYSTEMD = "/lib/systemd/systemd"
PROGRAM, DATA = "/opt/roomkeyd/roomkeyd", "/var/lib/roomkeyd"
MASKED = """systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket
systemd-journald-audit.socket systemd-journal-flush.service systemd-udevd.service
systemd-udev-trigger.service systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service
systemd-remount-fs.service systemd-sysctl.service systemd-modules-load.service modprobe@.service
systemd-random-seed.service systemd-update-utmp.service kmod-static-nodes.service
systemd-logind.service dbus.service dbus.socket dev-hugepages.mount dev-mqueue.mount
sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount
sys-kernel-config.mount proc-sys-fs-binfmt_misc.automount"""

# $1: an empty directory; $2: the units; $3: the program; $4: what to mask; $5: a name for the cgroup.
BOOT = r"""set -e
root=$1
mount -t tmpfs tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system var/lib run proc sys dev tmp old opt/roomkeyd
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin sbin lib lib32 lib64; do [ ! -e /usr/$name ] || ln -s usr/$name $name; done
cp /etc/ld.so.cache /etc/nsswitch.conf etc/
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
echo 0123456789abcdef0123456789abcdef >etc/machine-id
for unit in $4; do ln -s /dev/null etc/systemd/system/$unit; done
cp "$2"/roomkeyd.service "$2"/roomkeyd.socket etc/systemd/system/
sed -i 's|/usr/local/sbin|/opt/roomkeyd|' etc/systemd/system/roomkeyd.service
cp "$3" opt/roomkeyd/roomkeyd
printf '[Unit]\nDefaultDependencies=no\n' >etc/systemd/system/test.target
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs run
pivot_root . old
exec chroot . /bin/sh -c 'umount -l /old && exec "$@"' sh /usr/bin/env -i container=test \
    PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system --unit=test.target --log-target=null \
    --show-status=no
"""

# The process that holds all: makes the cgroup, waits for the end of its standard input, cleans up.
HOLD = r"""
mount -t tmpfs tmpfs /mnt && mkdir /mnt/cgroup && mount -t cgroup2 cgroup2 /mnt/cgroup || exit 1
cgroup=/mnt/cgroup/$5
mkdir "$cgroup" && echo $$ >"$cgroup/cgroup.procs" || exit 1
unshare --cgroup --mount --propagation private --pid --fork --kill-child --ipc --uts --net \
    sh -c "$0" sh "$@" </dev/null >&2 &
echo $!
cat >/dev/null
kill -KILL $!
wait $!
echo $$ >/mnt/cgroup/cgroup.procs
for _ in $(seq 200); do
    [ -d "$cgroup" ] || exit 0
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
    sleep 0.05
done
echo "$cgroup is still there" >&2
exit 1
"""


class Machine:
    """A running systemd."""

    def __init__(self, pid):
        self.pid = pid

    def run(self, *command, **options):
        enter = [tool("nsenter", "util-linux"), f"--target={self.pid}", "--mount", "--pid", "--net",
                 "--uts", "--ipc", "--cgroup", "--root", "--wd=/", *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
                              **options)

    def does(self, *command, **options):
        """Runs what has to succeed; returns what it prints."""
        result = self.run(*command, **options)
        assert result.returncode == 0, (result, self.status())
        return result.stdout

    def status(self):
        return self.run("systemctl", "--no-pager", "status", "roomkeyd.service", "roomkeyd.socket")

    def property(self, name, unit="roomkeyd.service"):
        return self.does("systemctl", "show", "-P", name, unit).strip()

    def room_status(self, user, token):
        """The status of a read of the room called `room`."""
        return self.does("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}",
                         "-H", f"X-User-Id: {user}", "-H", f"X-Auth-Token: {token}",
                         "http://127.0.0.1:3000/api/v1/rooms.info?roomId=room")

    def healthz(self, host="127.0.0.1"):
        return self.does("curl", "-sgS", "--max-time", "20", f"http://{host}:3000/healthz")


@pytest.fixture(name="machine", scope="module")
def _machine(tmp_path_factory):
    assert os.path.exists(SYSTEMD), "systemd is not installed (Debian: apt-get install systemd)"
    tool("curl", "curl")
    if os.geteuid() != 0:
        give_up("only root may start a systemd")
    root = tmp_path_factory.mktemp("root")
    arguments = [root, DEPLOY, binary("ROOMKEYD_RELEASE"), MASKED, f"roomkeyd-test-{os.getpid()}"]
    with subprocess.Popen(
        [tool("unshare", "util-linux"), "--mount", "--propagation", "private", "sh", "-c", HOLD, BOOT,
         *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as holder:
        try:
            line = holder.stdout.readline()
            if not line:
                give_up(f"nobody here may mount a file system: {holder.stderr.read()}")
            children = pathlib.Path(f"/proc/{line.strip()}/task/{line.strip()}/children")
            machine = Machine(wait_until(lambda: children.read_text().strip(), "process 1"))
            wait_until(lambda: has_booted(machine, holder), "systemd")
            machine.does("systemctl", "start", "roomkeyd.socket", "roomkeyd.service")
            yield machine
        finally:
            with contextlib.suppress(BrokenPipeError):
                holder.stdin.close()
            holder.wait(TIMEOUT_S)
    assert holder.returncode == 0


def has_booted(machine, holder):
    assert holder.poll() is None, holder.stderr.read()
    return machine.run("systemctl", "is-active", "test.target").stdout == "active\n"


@pytest.fixture(autouse=True)
def _patient(machine):
    """So many starts in so little time are no sign of trouble here."""
    machine.does("systemctl", "reset-failed")


def test_it_starts_with_an_empty_directory(machine):
    assert machine.property("ActiveState") == "active"
    assert machine.property("NRestarts") == "0"
    assert machine.does("ls", "/var/lib/roomkeyd/").split() == [
        "keys.log", "keys.log.born", "rooms", "users"]
    assert machine.healthz() == machine.healthz("[::1]") == "ok"


def test_it_runs_with_nothing_that_it_does_not_need(machine):
    status = machine.does("cat", f"/proc/{machine.property('MainPID')}/status")
    fields = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.M))
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "0" not in fields["Uid"].split()


def reload_with_alice(machine):
    """The manual's own example, and `systemctl reload` for a user and a room more. Returns the token."""
    token = machine.does(PROGRAM, "user", "add", "--data", DATA, "alice").strip()
    machine.does("sh", "-c", f"echo 'room c' >>{DATA}/rooms")
    machine.does("systemctl", "reload", "roomkeyd")
    wait_until(lambda: machine.property("ActiveState") == "active", "the end of the reload")
    wait_until(lambda: machine.room_status("alice", token) == "200", "the new user")
    return token


def test_a_reload_is_seen_through(machine):
    before, token = machine.property("MainPID"), reload_with_alice(machine)
    machine.does(PROGRAM, "user", "revoke", "--data", DATA, "alice")
    machine.does("sh", "-c", f"echo nonsense >>{DATA}/rooms")
    failed = machine.run("systemctl", "reload", "roomkeyd")
    assert failed.returncode != 0 and "failed" in failed.stderr, failed
    wait_until(lambda: machine.property("ActiveState") == "active", "the end of the reload")
    assert machine.property("MainPID") == before and machine.healthz() == "ok"
    wait_until(lambda: machine.room_status("alice", token) == "401", "the end of the user")
    machine.does("sed", "-i", "/nonsense/d", f"{DATA}/rooms")
    machine.does("systemctl", "reload", "roomkeyd")
    wait_until(lambda: machine.property("ActiveState") == "active", "the end of the reload")


ATTEMPTS = """if True:
    import json, socket, subprocess, threading
    over, counts = threading.Event(), []
    def attempts(number):
        counts.append(0)
        while not over.is_set():
            with socket.create_connection(("::1" if number % 2 else "127.0.0.1", 3000), 30) as one:
                one.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
                reply = b""
                while data := one.recv(4096):
                    reply += data
            if not (reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"ok")):
                failed.append(reply.decode())
            counts[number] += 1
    failed = []
    def guarded(number):
        try:
            attempts(number)
        except OSError as error:
            failed.append(repr(error))
    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        subprocess.run(["systemctl", "restart", "roomkeyd"], check=True)
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"failed": failed, "counts": counts}))
"""


def test_a_restart_loses_no_connection(machine):
    before = machine.property("MainPID")
    report = json.loads(machine.does("/usr/bin/python3", "-I", "-c", ATTEMPTS))
    assert report["failed"] == [] and min(report["counts"]) >= 4, report
    assert machine.property("MainPID") != before


def test_a_connection_starts_it(machine):
    assert machine.property("NRestarts") == "0"
    machine.does("systemctl", "stop", "roomkeyd.service")
    assert machine.property("ActiveState") == "inactive"
    assert machine.healthz() == "ok"
    assert machine.property("ActiveState") == "active"


def test_it_is_started_again_when_it_dies(machine):
    machine.does("systemctl", "kill", "-s", "KILL", "roomkeyd.service")
    wait_until(lambda: machine.property("NRestarts") != "0", "the restart")
    assert machine.healthz() == "ok"


def test_the_watchdog_is_answered(machine):
    """As systemd itself hears it, in a second: the unit's own time would take too long. A server that
    hangs is started again."""
    assert machine.property("WatchdogUSec") == "5min"
    machine.does("sh", "-c", "mkdir -p /run/systemd/system/roomkeyd.service.d && printf "
                 "'[Service]\\nWatchdogSec=1s\\n' >/run/systemd/system/roomkeyd.service.d/watchdog.conf")
    try:
        machine.does("systemctl", "daemon-reload")
        machine.does("systemctl", "restart", "roomkeyd.service")
        restarts, process = machine.property("NRestarts"), machine.property("MainPID")
        for _ in range(4):  # each half a second later
            before = machine.property("WatchdogTimestampMonotonic")
            wait_until(lambda: machine.property("WatchdogTimestampMonotonic") != before, "an answer")
        assert (machine.property("NRestarts"), machine.property("MainPID")) == (restarts, process)
        machine.does("kill", "-s", "STOP", process)
        wait_until(lambda: machine.property("NRestarts") != restarts, "the restart")
        wait_until(lambda: machine.property("ActiveState") == "active", "the server")
        assert machine.healthz() == "ok"
    finally:
        machine.does("rm", "-r", "/run/systemd/system/roomkeyd.service.d")
        machine.does("systemctl", "daemon-reload")
    machine.does("systemctl", "restart", "roomkeyd.service")


def test_it_stops_well(machine):
    machine.does("systemctl", "stop", "roomkeyd.socket", "roomkeyd.service")
    assert machine.property("Result") == "success"
    assert machine.property("ExecMainStatus") == "0"
