"""How fast: durable sets beside nginx that answers from memory, and Redis with and without HTTP.

`make bench` runs it against build/release/roomkeyd. Every peer is started from Debian's packages on
loopback, on a port the kernel chose, with its data in one temporary directory on the disk of the
repository; rounds alternate, so that a noisy machine is noisy for all; ratios are taken round by
round and printed as min, median and max. ROUNDS= and SECONDS= set how long it takes.

wrk keeps one core, the servers have the rest. Each request of a set names a new room.
"""

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
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("ROUNDS") or 3)
SECONDS = int(os.environ.get("SECONDS") or 4)
USER, TOKEN = "d26x6zSkaPSe5gCyy", "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU"

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
WEBDIS = 'return wrk.format("GET", "/SETNX/" .. room .. "/my-UniQu3_ke4_Id")'
DENIED = """fields["X-Auth-Token"] = "wrong"
  return wrk.format("POST", "/api/v1/e2e.setRoomKeyID", fields, '{"rid":"a","keyID":"b"}')"""
EXISTS = """return wrk.format("POST", "/api/v1/e2e.setRoomKeyID", fields, '{"rid":"a","keyID":"b"}')"""

NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log; user root;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 1000000000;
  client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;
  uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;
  server {{ listen 127.0.0.1:{port}; default_type application/json;
            location / {{ return 200 '{{"success":true}}'; }} }} }}
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


def processor_s(pid):
    """Processor time of a process and its children that still run, in seconds."""
    total = 0
    family = [pid, *map(int, subprocess.run(["pgrep", "-P", str(pid)], capture_output=True,
                                            text=True, check=False).stdout.split())]
    for member in family:
        fields = pathlib.Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


class Peer:
    """A server under load; started once, used in every round."""

    def __init__(self, name, arguments, port, **options):
        self.name, self.port = name, port
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, **options)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    sys.exit(f"bench: {name} does not start: {arguments}")

    def load(self, directory, script, connections):
        """Figures of one round: requests/s, p99 in ms, processor microseconds a request."""
        path = directory / "request.lua"
        prefix = f"r{time.monotonic_ns()}-"
        path.write_text(LUA % (USER, TOKEN, prefix, script))
        before = processor_s(self.process.pid)
        output = subprocess.run(
            ["taskset", "-c", "0", tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{SECONDS}s",
             "-s", str(path), f"http://127.0.0.1:{self.port}/"],
            capture_output=True, text=True, check=True).stdout
        used = processor_s(self.process.pid) - before
        requests, duration, errors, p99 = map(float, re.search(
            r"FIGURES\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", output).groups())
        say(f"  {self.name}, {connections} connections: {requests / duration * 1e6:,.0f}/s, "
            f"p99 {p99 / 1000:.2f} ms, {errors:.0f} not 2xx or 3xx")
        return requests / duration * 1e6, p99 / 1000, used / requests * 1e6


def syncs_per_second(directory):
    """The floor: a lone append of 100 bytes and its fdatasync."""
    descriptor = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    started, count = time.monotonic(), 0
    while time.monotonic() - started < 1:
        os.write(descriptor, b"x" * 100)
        os.fdatasync(descriptor)
        count += 1
    os.close(descriptor)
    return count / (time.monotonic() - started)


def spread(values, digits=2):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def start_peers(directory):
    data = directory / "data"
    data.mkdir()
    shutil.copy(REPOSITORY / "data/users", data)
    (data / "rooms").write_text("* c\n")
    ports = [free_port() for _ in range(4)]
    roomkeyd = Peer("roomkeyd", [os.environ.get("ROOMKEYD") or REPOSITORY / "build/release/roomkeyd",
                                 "--data", data, "--listen", f"127.0.0.1:{ports[0]}"], ports[0])
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(dir=directory, port=ports[1]))
    nginx = Peer("nginx", [tool("nginx", "nginx-light"), "-c", configuration], ports[1])
    redis = Peer("redis", [tool("redis-server", "redis-server"), "--port", str(ports[2]), "--bind",
                           "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "yes",
                           "--appendfsync", "always"], ports[2])
    webdis_file = directory / "webdis.json"
    webdis_file.write_text('{"redis_host": "127.0.0.1", "redis_port": %d, "http_host": "127.0.0.1",'
                           '"http_port": %d, "threads": 1, "pool_size": 20, "daemonize": false,'
                           '"logfile": "%s/webdis.log"}' % (ports[2], ports[3], directory))
    webdis = Peer("webdis+redis", [tool("webdis", "webdis"), webdis_file], ports[3])
    return roomkeyd, nginx, redis, webdis


def redis_benchmark(redis, connections):
    output = subprocess.run(
        ["taskset", "-c", "0", tool("redis-benchmark", "redis-tools"), "-p", str(redis.port), "-c",
         str(connections), "-n", str(60000 * SECONDS), "-r", "1000000000", "--csv", "SETNX",
         "r__rand_int__", "my-UniQu3_ke4_Id"], capture_output=True, text=True, check=True).stdout
    figure = float(output.strip().split("\n")[-1].split(",")[1].strip('"'))
    say(f"  redis, {connections} connections: {figure:,.0f}/s")
    return figure


def main():
    with tempfile.TemporaryDirectory(prefix="bench-", dir=REPOSITORY / "build") as name:
        directory = pathlib.Path(name)
        peers = start_peers(directory)
        roomkeyd, nginx, redis, webdis = peers
        rows = {}

        def note(row, value):
            rows.setdefault(row, []).append(value)

        try:
            for turn in range(ROUNDS):
                say(f"round {turn + 1} of {ROUNDS}")
                note("bare append and fdatasync, a second", syncs_per_second(directory))
                for connections in (64, 256):
                    ours = roomkeyd.load(directory, SET, connections)
                    theirs = nginx.load(directory, SET, connections)
                    note(f"durable sets/s, {connections} connections", ours[0])
                    note(f"nginx requests/s, {connections} connections", theirs[0])
                    note(f"sets/s over nginx, {connections} connections", ours[0] / theirs[0])
                    note(f"processor time a set over nginx's a request, {connections} connections",
                         ours[2] / theirs[2])
                    note(f"p99 of a set in ms, {connections} connections", ours[1])
                for what, script in (("401", DENIED), ("already exists", EXISTS)):
                    note(f"processor time of {what} over nginx's a request",
                         roomkeyd.load(directory, script, 64)[2]
                         / nginx.load(directory, SET, 64)[2])
                ours = roomkeyd.load(directory, SET, 64)[0]
                note("sets/s over webdis and Redis", ours / webdis.load(directory, WEBDIS, 64)[0])
                note("sets/s over Redis itself", ours / redis_benchmark(redis, 64))
        finally:
            for peer in peers:
                peer.process.terminate()
                peer.process.wait()

    print(f"\n{os.cpu_count()} cores, Linux {platform.release()}; {ROUNDS} rounds of {SECONDS} s; "
          "median (min to max)\n\n| figure | value |\n|---|---|")
    for row, values in rows.items():
        print(f"| {row} | {spread(values, 0 if max(values) > 1000 else 2)} |")


if __name__ == "__main__":
    main()
