"""How large: ten million key IDs, their memory, their replay beside Redis's, sets among them.

`make bench-scale` runs it against build/release/roomkeyd and prints a Markdown table. The key IDs are
set over HTTP like any others; the log that this leaves is what both servers then load, with their
files in the page cache. COUNT= is how many.
"""

import contextlib
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

import bench
import server

COUNT = int(os.environ.get("COUNT") or 10_000_000)
IDLE_CONNECTIONS = 10_000


def anonymous_bytes(pid):
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.M)[1]) * 1024


def key_count(data):
    return int(subprocess.run(["grep", "-c", "\tS\t", data / "keys.log"], capture_output=True,
                              check=False).stdout)


@contextlib.contextmanager
def growth_event():
    """The name of a perf event: a part of a table is about to grow."""
    name, perf = f"bench_{os.getpid()}:growth", bench.tool("perf", "linux-perf")
    subprocess.run([perf, "probe", "-q", "-x", bench.ROOMKEYD, f"{name}=rebuild"], check=True)
    try:
        yield name
    finally:
        subprocess.run([perf, "probe", "-q", "-d", name], check=True)


@contextlib.contextmanager
def traced_passes(pid, *marks):
    """A list of the loop's passes: how long each took, in ms, from what ends a wait for events to the next
    wait, and whether one of the events in marks happened in it. It is filled at the end. The trace is
    kept in memory, so as not to disturb the disk."""
    passes, perf = [], bench.tool("perf", "linux-perf")
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        trace = pathlib.Path(name) / "trace"
        events = ["syscalls:sys_enter_epoll_wait", "syscalls:sys_exit_epoll_wait", *marks]
        with subprocess.Popen([perf, "record", "-q", "-m", "16M", "-o", trace, "-t", str(pid), "-e",
                               ",".join(events)]) as recorder:
            try:
                yield passes
            finally:
                recorder.send_signal(signal.SIGINT)
        ended = None
        with subprocess.Popen([perf, "script", "--ns", "--show-lost-events", "-F", "time,event", "-i", trace],
                              stdout=subprocess.PIPE, text=True) as script:
            for line in script.stdout:
                if "PERF_RECORD_LOST" in line:
                    ended = None  # by now there have been other passes
                    continue
                at = float(line.split(":")[0])
                if "sys_exit" in line:
                    ended, is_marked = at, False
                elif "sys_enter" not in line:
                    is_marked = True
                elif ended is not None:
                    passes.append(((at - ended) * 1000, is_marked))


def fill(directory, peer, data):
    """Sets until there are COUNT; returns a read's waits beside it, in ms, the passes, and the seconds."""
    over, taken, began = threading.Event(), [], time.monotonic()

    def probe():
        with server.Client(("127.0.0.1", peer.port)) as client:
            while not over.wait(0.001):
                taken.append(bench.timed(lambda: client.ask(server.HEALTHZ)))

    thread = threading.Thread(target=probe)
    thread.start()
    with growth_event() as growth, traced_passes(peer.process.pid, growth) as passes:
        while (have := key_count(data)) < COUNT:
            bench.say(f"{have:,} of {COUNT:,} key IDs")
            peer.load(directory, 256)
        over.set()  # before the trace is read, for which the probe would have to wait
        thread.join()
        seconds = time.monotonic() - began
    return taken, passes, seconds


def passes_of_nginx(directory):
    """The same of a server that has nothing to grow: what is as long there is the machine's."""
    nginx = bench.start_nginx(directory)
    with traced_passes(bench.children(nginx.process.pid)[0]) as passes:
        for _ in range(10):
            nginx.load(directory, 256)
    nginx.stop()
    return passes


def standstill(seconds):
    """The longest time in ms for which a program that only reads the clock gets no answer: so long the
    machine itself stands still."""
    longest, last = 0, time.perf_counter()
    end = last + seconds
    while last < end:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest * 1000


def describe(whose, passes):
    return [(f"p99 of {whose}, ms", bench.percentile(passes, 0.99)),
            ("p99.9 of them, ms", bench.percentile(passes, 0.999)),
            (f"the longest of those {len(passes):,}, ms", max(passes))]


def start_time(data):
    """Seconds from the start to the ready line."""
    started = time.monotonic()
    process = subprocess.Popen([bench.ROOMKEYD, "--data", data, "--listen", "127.0.0.1:0"],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    taken = time.monotonic() - started
    process.terminate()
    process.wait()
    return taken


def redis_load_time(directory, data):
    """Seconds that Redis takes to load the same keys from its append-only file."""
    redis = bench.start_redis(directory)
    cli = [bench.tool("redis-cli", "redis-tools"), "-p", str(redis.port)]
    subprocess.run([*cli, "CONFIG", "SET", "appendfsync", "no"], check=True, stdout=subprocess.DEVNULL)
    program = ('$3 == "S" { printf "*3\\r\\n$5\\r\\nSETNX\\r\\n$%d\\r\\n%s\\r\\n$%d\\r\\n%s\\r\\n", '
               'length($6), $6, length($7), $7 }')
    with subprocess.Popen(["awk", "-F\t", program, data / "keys.log"], stdout=subprocess.PIPE) as awk:
        subprocess.run([*cli, "--pipe"], stdin=awk.stdout, check=True, stdout=subprocess.DEVNULL)
    redis.stop()
    with subprocess.Popen(
            [bench.tool("redis-server", "redis-server"), "--port", str(bench.free_port()), "--dir",
             directory, "--save", "", "--appendonly", "yes"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if found := re.search(r"DB loaded from append only file: ([0-9.]+) seconds", line):
                process.terminate()
                return float(found[1])
    sys.exit("bench: Redis did not load its append-only file")


def idle_connection_bytes(peer):
    before = anonymous_bytes(peer.process.pid)
    connections = [socket.create_connection(("127.0.0.1", peer.port)) for _ in range(IDLE_CONNECTIONS)]
    with server.Client(("127.0.0.1", peer.port)) as client:
        client.ask(server.HEALTHZ)  # so the server has seen all that came before
    after = anonymous_bytes(peer.process.pid)
    for connection in connections:
        connection.close()
    return (after - before) / IDLE_CONNECTIONS


def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=bench.REPOSITORY / "build") as name:
        directory = pathlib.Path(name)
        small, large = (bench.make_data(directory / name) for name in ("small", "large"))
        peer = bench.start_roomkeyd(large)
        rows.append((f"anonymous memory of one of {IDLE_CONNECTIONS:,} idle connections, bytes",
                     idle_connection_bytes(peer)))
        before = anonymous_bytes(peer.process.pid)
        waits, passes, seconds = fill(directory, peer, large)
        count = key_count(large)
        rows += [("anonymous memory of a key ID, bytes",
                  (anonymous_bytes(peer.process.pid) - before) / count),
                 ("longest wait for /healthz while growing, ms", max(waits)),
                 ("p99.9 of them, ms", bench.percentile(waits, 0.999)),
                 *describe("the loop's passes while growing", [ms for ms, _ in passes]),
                 *describe("those in which a table grew", [ms for ms, has_grown in passes if has_grown]),
                 *describe("nginx's, which stores nothing",
                           [ms for ms, _ in passes_of_nginx(directory)]),
                 ("longest standstill of a program that only reads the clock, ms", standstill(seconds))]
        other = bench.start_roomkeyd(small)
        ratios = []
        for _ in range(bench.ROUNDS):
            among_many = peer.load(directory, 64)[0]
            ratios.append(among_many / other.load(directory, 64)[0])
        rows.append(("sets/s among them over sets/s in a new log", statistics.median(ratios)))
        peer.stop()
        other.stop()
        count = key_count(large)
        ours = min(start_time(large) for _ in range(3))
        rows.append(("records replayed a second", count / ours))
        (directory / "redis").mkdir()
        theirs = redis_load_time(directory / "redis", large)
        rows += [("Redis, keys loaded a second from its AOF", count / theirs),
                 ("replay over Redis's", theirs / ours)]
    print(f"\n{count:,} key IDs\n\n| figure | value |\n|---|---|")
    for row, value in rows:
        print(f"| {row} | {value:,.{0 if value > 1000 else 2}f} |")


if __name__ == "__main__":
    sys.exit(main())
