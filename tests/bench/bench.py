"""How fast: durable sets beside nginx that answers from memory, and Redis with and without HTTP.

`make bench` runs it against build/release/roomkeyd and prints a Markdown table; then it measures
1 to 1,024 connections, three times each, and draws the medians: bench.tsv and bench.svg, beside this file.
Every peer is started from Debian's packages on loopback, on a port the kernel chose, with its data
in one temporary directory on the disk of the repository. Rounds alternate, so that a noisy machine is
noisy for all, and each begins with peers that have nothing stored (bench_scale.py is for the others);
ratios are taken round by round and printed as median, min and max. ROUNDS= and SECONDS= set how long
it takes; `bench.py --plot` does only the second half, `bench.py --table` only the first.

wrk keeps one core, the servers have the rest. Each request of a set names a new room.
"""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

import server

REPOSITORY = server.REPOSITORY
ROOMKEYD = os.environ.get("ROOMKEYD") or str(REPOSITORY / "build/release/roomkeyd")
ROUNDS = int(os.environ.get("ROUNDS") or 5)
SECONDS = int(os.environ.get("SECONDS") or 3)
USER, TOKEN = "d26x6zSkaPSe5gCyy", "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU"
FIELDS = (("X-User-Id", USER), ("X-Auth-Token", TOKEN))

LUA = """
local n = 0
local fields = {["X-User-Id"] = "%s", ["X-Auth-Token"] = "%s", ["Content-Type"] = "application/json"}
function request()
  n = n + 1
  local room = "%s" .. string.format("%%09d", n)
  %s
end
function done(summary, latency)
  print("FIGURES", summary.requests, summary.duration, summary.errors.status, latency:percentile(99))
end
"""
SET = """return wrk.format("POST", "/api/v1/e2e.setRoomKeyID", fields,
    '{"rid":"' .. room .. '","keyID":"my-UniQu3_ke4_Id"}')"""
WEBDIS = 'return wrk.format("POST", "/", fields, "SETNX/" .. room .. "/my-UniQu3_ke4_Id")'
DENIED = """fields["X-Auth-Token"] = "wrong"
  return wrk.format("POST", "/api/v1/e2e.setRoomKeyID", fields, '{"rid":"a","keyID":"b"}')"""
EXISTS = """return wrk.format("POST", "/api/v1/e2e.setRoomKeyID", fields, '{"rid":"a","keyID":"b"}')"""
EXISTS_OF_MANY = """return wrk.format("POST", "/api/v1/e2e.setRoomKeyID", fields,
    '{"rid":"many-' .. n * 7919 % 10000 .. '","keyID":"b"}')"""

NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log; user root;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 1000000000;
  client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;
  uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;
  server {{ listen 127.0.0.1:{port}; default_type application/json;
            location / {{ return 200 '{{"success":true}}'; }} }} }}
"""

PLOT = """
set terminal svg size 900,420 font "sans-serif,13" background "white"
set output "{svg}"
set multiplot layout 1,2
set logscale x 2
set xrange [0.9:1150]
set xtics (1, 4, 16, 64, 256, 1024)
set xlabel "connections"
set grid
set key below
set title "thousand requests a second"
set yrange [0:*]
plot for [i=0:2] "{tsv}" index i using 1:($2/1000) with linespoints pointtype 7 pointsize 0.5 title columnheader(1)
set title "p99 in milliseconds"
set logscale y
set yrange [*:*]
plot for [i=0:2] "{tsv}" index i using 1:3 with linespoints pointtype 7 pointsize 0.5 title columnheader(1)
"""


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def tool(name, package):
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        sys.exit(f"bench: no {name}: apt-get install {package}")
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children(pid):
    return list(map(int, subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True,
                                        check=False).stdout.split()))


def processor_s(pid):
    """Processor time of a process and its children that still run, in seconds."""
    total = 0
    for member in [pid, *children(pid)]:
        fields = pathlib.Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(values):
    digits = 0 if max(values) > 1000 else 2
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


class Peer:
    """A server under load; started once, used in every round."""

    def __init__(self, name, arguments, port, script):
        self.name, self.port, self.script = name, port, script
        self.process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    sys.exit(f"bench: {name} does not start: {arguments}")
                time.sleep(0.01)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def load(self, directory, connections, script=None):
        """Figures of one round: requests/s, p99 in ms, processor microseconds a request."""
        path = directory / "request.lua"
        path.write_text(LUA % (USER, TOKEN, f"r{time.monotonic_ns()}-", script or self.script))
        before = processor_s(self.process.pid)
        output = subprocess.run(
            ["taskset", "-c", "0", tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{SECONDS}s",
             "-s", str(path), f"http://127.0.0.1:{self.port}/"],
            capture_output=True, text=True, check=True).stdout
        used = processor_s(self.process.pid) - before
        requests, duration, errors, p99 = map(float, re.search(
            r"FIGURES\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", output).groups())
        say(f"  {self.name}, {connections} connections: {requests / duration * 1e6:,.0f}/s, "
            f"p99 {p99 / 1000:.2f} ms, {used / requests * 1e6:.2f} us of processor, "
            f"{errors:.0f} not 2xx or 3xx")
        return requests / duration * 1e6, p99 / 1000, used / requests * 1e6


def make_data(directory):
    """A data directory in which the load's user may set any room."""
    directory.mkdir()
    shutil.copy(REPOSITORY / "data/users", directory)
    (directory / "rooms").write_text("* c\n")
    return directory


def start_roomkeyd(data):
    port = free_port()
    return Peer("roomkeyd", [ROOMKEYD, "--data", data, "--listen", f"127.0.0.1:{port}"], port, SET)


def start_redis(directory):
    port = free_port()
    return Peer("redis", [tool("redis-server", "redis-server"), "--port", port, "--bind",
                          "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "yes",
                          "--appendfsync", "always", "--auto-aof-rewrite-percentage", 0], port, "")


def start_nginx(directory):
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(dir=directory, port=port))
    return Peer("nginx", [tool("nginx", "nginx-light"), "-c", configuration], port, SET)


def start_peers(directory):
    roomkeyd, nginx = start_roomkeyd(make_data(directory / "data")), start_nginx(directory)
    redis = start_redis(directory)
    port = free_port()
    configuration = directory / "webdis.json"
    configuration.write_text('{"redis_host": "127.0.0.1", "redis_port": %d, "http_host": "127.0.0.1",'
                             '"http_port": %d, "threads": 1, "pool_size": 20, "daemonize": false,'
                             '"logfile": "%s/webdis.log"}' % (redis.port, port, directory))
    webdis = Peer("webdis and Redis", [tool("webdis", "webdis"), configuration], port, WEBDIS)
    return roomkeyd, nginx, redis, webdis


@contextlib.contextmanager
def new_peers(directory):
    """All of them, in a directory of their own, with nothing stored."""
    directory.mkdir()
    peers = start_peers(directory)
    try:
        yield peers
    finally:
        for peer in peers:
            peer.stop()
        shutil.rmtree(directory)


def redis_benchmark(redis, connections):
    output = subprocess.run(
        ["taskset", "-c", "0", tool("redis-benchmark", "redis-tools"), "-p", str(redis.port), "-c",
         str(connections), "-n", str(60000 * SECONDS), "-r", "1000000000", "--csv", "SETNX",
         "r__rand_int__", "my-UniQu3_ke4_Id"], capture_output=True, text=True, check=True).stdout
    figure = float(output.strip().split("\n")[-1].split(",")[1].strip('"'))
    say(f"  redis, {connections} connections: {figure:,.0f}/s")
    return figure


# ---- one by one ----------------------------------------------------------------------------------


def timed(action):
    """How long it took, in milliseconds."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000


class Appender:
    """The floor: a lone append of 100 bytes and its fdatasync."""

    def __init__(self, directory):
        self.descriptor = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append(self):
        os.write(self.descriptor, b"x" * 100)
        os.fdatasync(self.descriptor)


def sync_under_load(directory, load):
    """What load() yields, and the p99 of a sync beside it, in ms."""
    appender, over, taken = Appender(directory), threading.Event(), []

    def probe():
        while not over.wait(0.004):
            taken.append(timed(appender.append))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        return load(), percentile(taken, 0.99)
    finally:
        over.set()
        thread.join()


def set_request(number):
    return server.set_request(f"one-{time.monotonic_ns()}-{number}", "my-UniQu3_ke4_Id", FIELDS)


def single_client(directory, port, count=1000):
    """p50 in ms of a set, of a bare append with its sync, and of a round trip: one of each in turn, since
    all three depend on how deeply the processors sleep in between. A loop of nothing but appends never
    lets them. The first turns, while the scheduler moves threads that were busy just before, do not
    count."""
    appender = Appender(directory)
    with server.Client(("127.0.0.1", port)) as client:
        turns = [(timed(lambda n=n: client.ask(set_request(n))), timed(appender.append),
                  timed(lambda: client.ask(server.HEALTHZ))) for n in range(2 * count)]
    return tuple(map(statistics.median, zip(*turns[count:])))


def health_while_syncs_are_slow(directory):
    """p99 in ms of /healthz while sets are taken and every fdatasync takes 50 ms."""
    port, over = free_port(), threading.Event()
    peer = Peer("roomkeyd under strace", [
        tool("strace", "strace"), "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e",
        "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=50000", ROOMKEYD, "--data",
        make_data(directory / "slow"), "--listen", f"127.0.0.1:{port}"], port, SET)

    def keep_setting():
        with server.Client(("127.0.0.1", port)) as client:
            number = 0
            while not over.is_set():
                client.ask(set_request(number))
                number += 1

    setters = [threading.Thread(target=keep_setting) for _ in range(2)]
    for setter in setters:
        setter.start()
    with server.Client(("127.0.0.1", port)) as client:
        taken = []
        while len(taken) < 1000:
            taken.append(timed(lambda: client.ask(server.HEALTHZ)))
            over.wait(0.002)
    over.set()
    for setter in setters:
        setter.join()
    peer.stop()
    return percentile(taken, 0.99)


def instructions_a_set(directory):
    """In user space, by callgrind: 32 connections set in turn, then read their replies; what 100 such
    turns take more than none, so that the start does not count."""
    figures = []
    for turns in (10, 110):
        port_line = subprocess.Popen(
            [tool("valgrind", "valgrind"), "--tool=callgrind", "--callgrind-out-file=/dev/null", ROOMKEYD,
             "--data", make_data(directory / f"callgrind{turns}"), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        port = int(port_line.stdout.readline().rsplit(":", 1)[1])
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.Client(("127.0.0.1", port))) for _ in range(32)]
            for turn in range(turns):
                for number, client in enumerate(clients):
                    client.send(server.set_request(f"room-{turn:06}-{number:06}", "my-UniQu3_ke4_Id",
                                                   FIELDS))
                for client in clients:
                    client.reply().is_json(200, server.SUCCESS)
        port_line.terminate()
        figures.append(int(re.search(r"Collected : (\d+)", port_line.communicate()[1])[1]))
    return (figures[1] - figures[0]) / 3200


# ---- the two halves ------------------------------------------------------------------------------


def measure_round(directory, peers, note):
    roomkeyd, nginx, redis, webdis = peers
    appender = Appender(directory)
    syncs = [timed(appender.append) for _ in range(2000)]
    note("bare appends with fdatasync, a second", 1000 / statistics.mean(syncs))
    sets = None  # a second, with 64 connections
    for connections in (64, 256):
        ours, theirs = roomkeyd.load(directory, connections), nginx.load(directory, connections)
        note(f"durable sets/s, {connections} connections", ours[0])
        note(f"nginx, requests/s, {connections} connections", theirs[0])
        note(f"sets/s over nginx's requests/s, {connections} connections", ours[0] / theirs[0])
        note(f"processor time of a set over nginx's of a request, {connections} connections",
             ours[2] / theirs[2])
        sets = sets or ours[0]
    nginx_figures = nginx.load(directory, 64)
    for what, script in (("401", DENIED), ("already exists, all of one room", EXISTS),
                         ("already exists, of 10,000 rooms in turn", EXISTS_OF_MANY)):
        if script == EXISTS_OF_MANY:
            roomkeyd.load(directory, 64, script)  # the first of them set the rooms
        note(f"processor time of {what} over nginx's of a request",
             roomkeyd.load(directory, 64, script)[2] / nginx_figures[2])
    ours, sync_p99 = sync_under_load(directory, lambda: roomkeyd.load(directory, 64))
    note("p99 of a set in ms, 64 connections", ours[1])
    note("p99 of a set beyond nginx's over a sync's p99 under that load",
         (ours[1] - nginx_figures[1]) / sync_p99)
    note("sets/s over webdis and Redis", sets / webdis.load(directory, 64)[0])
    note("sets/s over Redis itself", sets / redis_benchmark(redis, 64))
    one_set, one_sync, one_trip = single_client(directory, roomkeyd.port)
    note("p50 of a lone client's set over a bare sync and a round trip", one_set / (one_sync + one_trip))


def print_table(directory):
    rows = {}
    for turn in range(ROUNDS):
        say(f"round {turn + 1} of {ROUNDS}")
        with new_peers(directory / "round") as peers:
            measure_round(directory, peers,
                          lambda row, value: rows.setdefault(row, []).append(value))
    say("slow syncs, then instructions")
    rows["p99 of /healthz in ms while every fdatasync takes 50 ms"] = [
        health_while_syncs_are_slow(directory)]
    rows["instructions of a set, user space"] = [instructions_a_set(directory)]
    versions = [subprocess.run(command, capture_output=True, text=True, check=True) for command in (
        [tool("nginx", "nginx-light"), "-v"], [tool("redis-server", "redis-server"), "--version"])]
    nginx, redis = (re.search(r"[0-9]+\.[0-9.]+", run.stdout + run.stderr)[0] for run in versions)
    print(f"\n{os.cpu_count()} cores, Linux {platform.release()}, nginx {nginx}, Redis {redis}; "
          f"{ROUNDS} rounds of {SECONDS} s; median (min to max)\n\n| figure | value |\n|---|---|")
    for row, values in rows.items():
        print(f"| {row} | {spread(values)} |")


def plot(directory):
    tsv, svg = REPOSITORY / "tests/bench/bench.tsv", REPOSITORY / "tests/bench/bench.svg"
    blocks = {title: [] for title in ("nginx, nothing stored", "roomkeyd, on disk",
                                      "webdis and Redis, on disk")}
    for connections in (2**i for i in range(11)):
        with new_peers(directory / "plot") as (roomkeyd, nginx, _, webdis):
            rounds = [[peer.load(directory, connections)[:2] for peer in (nginx, roomkeyd, webdis)]
                      for _ in range(3)]
        for lines, figures in zip(blocks.values(), zip(*rounds)):
            rate, p99 = map(statistics.median, zip(*figures))
            lines.append(f"{connections}\t{rate:.0f}\t{p99:.3f}\n")
    tsv.write_text("\n\n".join(f'"{title}"\n{"".join(lines)}' for title, lines in blocks.items()))
    subprocess.run([tool("gnuplot", "gnuplot-nox")], input=PLOT.format(tsv=tsv, svg=svg), text=True,
                   check=True)
    say(f"wrote {tsv} and {svg}")


def main():
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=REPOSITORY / "build") as name:
        directory = pathlib.Path(name)
        if "--plot" not in sys.argv:
            print_table(directory)
        if "--table" not in sys.argv:
            plot(directory)


if __name__ == "__main__":
    main()
