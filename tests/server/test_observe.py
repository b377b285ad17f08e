"""What an operator sees of a running server: GET /metrics, the access log, lines on standard error.

Proves that the numbers are those of what happened, that every request has exactly one line of the
access log with the status that its client got, that no reader of that log, slow, stuck or gone, and
no full disk can hold up the server, that a rotation loses no line; and that no token ever gets out.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import threading
import time

import pytest

from server import (
    ALICE, ALICE_FIELDS, ALICE_TOKEN, ALREADY_EXISTS, BOB_TOKEN, CALL_PATH, EVERY_ROOM, HEALTHZ,
    INFO_PATH, JSON_TYPE, REPOSITORY, SET_PATH, STORAGE_UNAVAILABLE, SUCCESS, TIMEOUT_S, USERS, Client,
    Server, binary, compact, failure, has_ipv6, hash_token, info_request, inject, parse_ready_line,
    records, request, run,
    set_request, wait_until, write_data,
)

METRICS = request("GET", "/metrics")
NOT_FOUND = failure("Resource not found")

# ---- /metrics ----------------------------------------------------------------------------------


def metrics(server):
    """{series: value} of a scrape, which has to be well-formed."""
    reply = server.ask(METRICS)
    assert reply.status == 200
    assert reply.field("Content-Type") == "text/plain; version=0.0.4"
    found, families = {}, {}
    for line in reply.body.decode().splitlines():
        meta = re.fullmatch(r"# (HELP|TYPE) ([a-z_]+) (.+)", line)
        if meta:
            families.setdefault(meta[2], {})[meta[1]] = meta[3]
            continue
        series = re.fullmatch(r'(([a-z_]+)(?:\{[a-z]+="[^"]+"(?:,[a-z]+="[^"]+")*\})?) ([0-9.]+)', line)
        assert series, line
        assert series[1] not in found, f"twice: {line}"
        family = re.sub(r"_(bucket|sum|count)$", "", series[2])
        family = family if families.get(family, {}).get("TYPE") == "histogram" else series[2]
        assert set(families[family]) == {"HELP", "TYPE"}, line
        assert family.endswith("_total") == (families[family]["TYPE"] == "counter")
        found[series[1]] = float(series[3])
    return found


def requests_at(seen, endpoint):
    """{status: number} of an endpoint's requests."""
    pattern = r'roomkeyd_http_requests_total\{endpoint="%s",code="(\d+)"\}' % re.escape(endpoint)
    return {int(re.fullmatch(pattern, name)[1]): value for name, value in seen.items()
            if re.fullmatch(pattern, name)}


def sets_by_outcome(seen):
    """{outcome: number} without the zeros."""
    pattern = r'roomkeyd_sets_total\{outcome="(\w+)"\}'
    return {re.fullmatch(pattern, name)[1]: value for name, value in seen.items()
            if re.fullmatch(pattern, name) and value}


def test_a_new_server(server):
    seen = metrics(server)
    assert sets_by_outcome(seen) == {} and requests_at(seen, "e2e.setRoomKeyID") == {}
    assert requests_at(seen, "metrics") == {}, "this scrape is not answered yet when it is counted"
    assert seen["roomkeyd_key_ids"] == 0
    assert seen["roomkeyd_log_size_bytes"] == len(server.log())
    assert seen["roomkeyd_storage_failed"] == 0
    assert abs(seen["process_start_time_seconds"] - time.time()) < TIMEOUT_S
    version = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True)
    assert seen['roomkeyd_build_info{version="%s"}' % version.stdout.split()[1]] == 1
    assert requests_at(metrics(server), "metrics") == {200: 1}


def test_requests_and_sets_are_counted(server):
    with server.client() as client:
        for data, status in [
            (set_request("a", "k"), 200), (set_request("b", "k"), 200), (set_request("a", "x"), 400),
            (set_request("c", ""), 400), (set_request("c", "k", ()), 401),
            (request("POST", SET_PATH, (*ALICE_FIELDS, ("Content-Type", "text/plain")), b"{}"), 415),
            (request("POST", SET_PATH, (*ALICE_FIELDS, JSON_TYPE), b"{"), 400),
            (request("OPTIONS", SET_PATH), 204), (request("GET", SET_PATH), 405),
            (info_request("a"), 200), (info_request("a", ()), 401), (HEALTHZ, 200),
            (request("HEAD", "/healthz"), 200), (request("GET", "/nowhere"), 404),
            (b"BROKEN\r\n\r\n", 400),
        ]:
            assert client.ask(data).status == status, data
    seen = metrics(server)
    assert requests_at(seen, "e2e.setRoomKeyID") == {200: 2, 204: 1, 400: 3, 401: 1, 405: 1, 415: 1}
    assert requests_at(seen, "rooms.info") == {200: 1, 401: 1}
    assert requests_at(seen, "healthz") == {200: 2}
    assert requests_at(seen, "other") == {400: 1, 404: 1}
    assert sets_by_outcome(seen) == {"success": 2, "already_exists": 1, "unauthorized": 1,
                                     "invalid": 3}
    assert seen["roomkeyd_http_request_duration_seconds_count"] == 15
    assert 0 < seen["roomkeyd_http_request_duration_seconds_sum"] < TIMEOUT_S
    assert seen["roomkeyd_key_ids"] == 2
    assert seen["roomkeyd_commit_duration_seconds_count"] == 2
    assert seen["roomkeyd_commit_batch_size_sum"] == 2
    assert seen["roomkeyd_log_size_bytes"] == len(server.log())


def test_sets_by_method_call_are_counted(server):
    message = {"msg": "method", "id": "1", "method": "e2e.setRoomKeyID", "params": ["a", "k"]}
    body = compact({"message": compact(message).decode()})
    call = request("POST", CALL_PATH, (*ALICE_FIELDS, JSON_TYPE), body)
    assert [server.ask(call).status for _ in range(3)] == [200, 400, 400]
    assert sets_by_outcome(metrics(server)) == {"success": 1, "already_exists": 2}


def test_buckets_rise(server):
    server.set("a", "k")
    seen = metrics(server)
    for name in ("http_request_duration_seconds", "commit_duration_seconds", "commit_batch_size"):
        buckets = [(bound, value) for series, value in seen.items()
                   for bound in re.findall(r'^roomkeyd_%s_bucket\{le="(.+)"\}$' % name, series)]
        bounds = [float(bound) for bound, _ in buckets]
        counts = [value for _, value in buckets]
        assert len(bounds) == 18 and bounds == sorted(set(bounds)) and bounds[-1] == float("inf")
        assert counts == sorted(counts) and counts[-1] == seen[f"roomkeyd_{name}_count"] > 0


def test_connections_are_counted(server):
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(server.client()).ask(HEALTHZ)
        seen = metrics(server)
        assert seen["roomkeyd_connections"] == 6
        assert seen["roomkeyd_connections_accepted_total"] == 6
    wait_until(lambda: metrics(server)["roomkeyd_connections"] == 1, "the connections to be gone")


def test_the_time_of_a_commit_and_what_gathers_meanwhile(serve):
    """Under a sync that takes 0.2 s: one set is a batch of its own, the next eight gather."""
    server = serve(**inject("delay_enter=200000"))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(server.client())
        first.send(set_request("first", "k"))
        wait_until(lambda: b"\tfirst\t" in server.log(), "the first batch to be written")
        others = [stack.enter_context(server.client()) for _ in range(8)]
        for number, client in enumerate(others):
            client.send(set_request(f"r{number}", "k"))
        for client in (first, *others):
            client.reply().is_json(200, SUCCESS)
    seen = metrics(server)
    assert seen["roomkeyd_commit_batch_size_sum"] == 9
    batches = seen["roomkeyd_commit_batch_size_count"]
    assert 2 <= batches < 9
    assert seen["roomkeyd_commit_duration_seconds_sum"] >= 0.2 * batches
    assert seen['roomkeyd_commit_duration_seconds_bucket{le="0.131072"}'] == 0
    assert seen["roomkeyd_http_request_duration_seconds_sum"] >= 0.2 * 9


def test_a_failed_disk_is_seen(serve):
    server = serve(**inject("error=EIO:when=2+"))  # in each thread
    server.expected_stderr, server.expected_exit = "sets are refused until restart", 1
    server.set("first", "k").is_json(200, SUCCESS)
    server.set("a", "k").is_json(503, STORAGE_UNAVAILABLE)
    server.set("b", "k").is_json(503, STORAGE_UNAVAILABLE)
    seen = metrics(server)
    assert sets_by_outcome(seen) == {"success": 1, "storage_unavailable": 2}
    assert requests_at(seen, "e2e.setRoomKeyID") == {200: 1, 503: 2}
    assert seen["roomkeyd_storage_failed"] == 1 and seen["roomkeyd_key_ids"] == 1


def reloads(server):
    """{file: (whether its last reading has succeeded, when the last one did)}"""
    seen = metrics(server)
    return {name: (seen['roomkeyd_reload_successful{file="%s"}' % name],
                   seen['roomkeyd_reload_timestamp_seconds{file="%s"}' % name])
            for name in ("users", "rooms")}


def test_a_reload_that_fails_is_seen(serve):
    """Of each file, whatever becomes of the other one; and when it was good last."""
    begin = int(time.time()) - 1
    server = serve()
    server.expected_stderr = "users:1: |rooms:1: "
    good, last = {"users": USERS, "rooms": EVERY_ROOM}, reloads(server)
    for name in good:
        assert last[name][0] == 1 and begin <= last[name][1] <= time.time()
    for bad in (["users"], ["rooms"], ["users", "rooms"], ["users"], []):
        wait_until(lambda: time.time() >= max(at for _, at in last.values()) + 2, "a later second")
        for name in good:
            (server.directory / name).write_text("bad\n" if name in bad else good[name])
        before = int(time.time()) - 1  # time(2) may be a tick behind that
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: reloads(server) != last, "the reload")
        now = reloads(server)
        for name in good:
            assert now[name][0] == (name not in bad)
            if name in bad:
                assert now[name][1] == last[name][1]
            else:
                assert before <= now[name][1] <= time.time()
        last = now


def test_a_reload_that_cannot_begin_is_seen(serve):
    """Where no thread can be made, neither file has been read."""
    server = serve(program=binary("ROOMKEYD_FAULTS"),
                   environment={"FAULTS": f"pthread_create 2 1 {errno.EAGAIN}"})  # 1: the committer
    server.expected_stderr = "^roomkeyd: cannot reload: Resource temporarily unavailable$"
    before = reloads(server)
    server.send_signal(signal.SIGHUP)
    assert server.stderr.wait_for(len)
    assert reloads(server) == {name: (0, before[name][1]) for name in before}
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: [good for good, _ in reloads(server).values()] == [1, 1], "the next reload")
    server.stop()
    assert len(server.stderr.all()) == 1


def test_metrics_like_the_other_endpoints(server):
    allow = "GET, HEAD, OPTIONS"
    with server.client() as client:
        head = client.ask(request("HEAD", "/metrics"))
        assert head.status == 200 and int(head.field("Content-Length")) > 1000
        reply = client.ask(request("OPTIONS", "/metrics"))
        assert (reply.status, reply.field("Allow")) == (204, allow)
        reply = client.ask(request("POST", "/metrics", body=b""))
        assert (reply.status, reply.field("Allow")) == (405, allow)
        client.send(METRICS * 40)  # a pipeline of long replies, in order and whole
        for _ in range(40):
            assert client.reply().body.startswith(b"# HELP ")


def test_no_metrics(serve):
    server = serve("--no-metrics")
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        reply = server.ask(request(method, "/metrics"))
        assert reply.status == 404
        assert method == "HEAD" or reply.body == NOT_FOUND
    assert server.ask(HEALTHZ).status == 200


# ---- the access log ----------------------------------------------------------------------------

MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
QUOTED = r'"((?:[^"\\\x00-\x1f\x7f-\xff]|\\["\\t]|\\x[0-9a-f]{2})*)"'
COMBINED = re.compile(
    r"(\S+) - (\S+) \[(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) \+0000\] "
    + QUOTED + r" (\d{3}) (\d+|-) " + QUOTED + " " + QUOTED)


class Line:
    """A line in Combined Log Format."""

    def __init__(self, text):
        match = COMBINED.fullmatch(text)
        assert match, f"not Combined Log Format: {text!r}"
        (self.address, self.user, day, month, year, hour, minute, second, self.request, status,
         self.bytes, self.referer, self.agent) = match.groups()
        self.status = int(status)
        self.time = time.strptime(f"{year}-{MONTHS.index(month) + 1}-{day} {hour}:{minute}:{second}",
                                  "%Y-%m-%d %H:%M:%S")

    def summary(self):
        return self.user, self.request, self.status, self.bytes


def read_lines(path):
    """All lines of a log, each whole."""
    text = path.read_bytes().decode("latin-1")
    assert text == "" or text.endswith("\n")
    return [Line(line) for line in text.split("\n")[:-1]]


def wait_lines(path, number):
    """The lines of a log as soon as there are so many; there must not be more."""
    lines = wait_until(lambda: len(found := read_lines(path)) >= number and found, "the access log")
    assert len(lines) == number, [line.request for line in lines]
    return lines


@pytest.fixture(name="path")
def _path(tmp_path):
    return tmp_path / "access.log"


def test_a_line_for_every_request(serve, path):
    server = serve("--access-log", path)
    assert path.stat().st_mode & 0o777 == 0o640 & ~os.umask(os.umask(0))
    about = (("Referer", "http://a/b?c"), ("User-Agent", "test/1 (x; y)"))
    with server.client() as client:
        for data in (
            set_request("a", "k", (*ALICE_FIELDS, *about)), set_request("a", "k"),
            set_request("a", "k", (("X-User-Id", ALICE), ("X-Auth-Token", "wrong"))),
            info_request("a"), request("HEAD", "/healthz"), request("GET", "/x?y=%20z"),
            request("GET", "http://other/healthz"), request("OPTIONS", "*"),
            request("GET", "/healthz", (("Connection", "keep-alive"),), version="HTTP/1.0"),
            request("GET", "/" + "x" * 8000), b"BROKEN\r\n\r\n",
        ):
            client.ask(data)
    lines = wait_lines(path, 11)
    info = info_request("a").split(b"\r\n")[0].decode()
    exists, unauthorized = str(len(ALREADY_EXISTS)), str(len(failure("unauthorized")))
    shown = str(len(b'{"room":{"_id":"a","t":"c","e2eKeyId":"k"},"success":true}'))
    not_found = str(len(NOT_FOUND))
    assert [line.summary() for line in lines[:-1]] == [
        (ALICE, f"POST {SET_PATH} HTTP/1.1", 200, "16"),
        (ALICE, f"POST {SET_PATH} HTTP/1.1", 400, exists),
        ("-", f"POST {SET_PATH} HTTP/1.1", 401, unauthorized),
        (ALICE, info, 200, shown),
        ("-", "HEAD /healthz HTTP/1.1", 200, "-"),
        ("-", "GET /x?y=%20z HTTP/1.1", 404, not_found),
        ("-", "GET http://other/healthz HTTP/1.1", 200, "2"),
        ("-", "OPTIONS * HTTP/1.1", 204, "-"),
        ("-", "GET /healthz HTTP/1.0", 200, "2"),
        ("-", "GET /" + "x" * 8000 + " HTTP/1.1", 404, not_found),
    ]
    assert (lines[-1].user, lines[-1].request, lines[-1].status) == ("-", "-", 400)
    assert (lines[0].referer, lines[0].agent) == ("http://a/b?c", "test/1 (x; y)")
    assert {(line.referer, line.agent) for line in lines[1:]} == {("-", "-")}
    assert {line.address for line in lines} == {"127.0.0.1"}
    now = time.gmtime()
    for line in lines:
        assert 0 <= time.mktime(now) - time.mktime(line.time) < TIMEOUT_S


def test_what_clients_send_is_escaped(serve, path):
    """As Apache does it. (A request's head holds no other control byte, and a target none of these.)"""
    user = 'a"b\\\u00fc'
    server = serve("--access-log", path, users=f"{user} {hash_token('t')}\n")
    head = (f"GET {INFO_PATH}?roomId=%22%5C HTTP/1.1\r\nHost: h\r\nX-User-Id: {user}\r\n"
            "X-Auth-Token: t\r\nReferer: \" 200 1 \"\\x0a\r\nUser-Agent: q\"\\\t").encode()
    with server.client() as client:
        assert client.ask(head + b"\xff\x80e\r\n\r\n").status == 200
    text = wait_until(path.read_bytes, "the access log")
    assert text.count(b"\n") == 1 and Line(text.decode("ascii")[:-1])
    assert b' - a\\"b\\\\\\xc3\\xbc [' in text
    assert text.endswith(b' "\\" 200 1 \\"\\\\x0a" "q\\"\\\\\\t\\xff\\x80e"\n')


def test_the_longest_line(serve, path):
    """Every byte of the longest fields there may be takes four."""
    server = serve("--access-log", path)
    fields = (("Referer", "ü" * 3950), ("User-Agent", "ü" * 3950))
    assert server.ask(request("GET", "/healthz", fields)).status == 200
    line, = wait_lines(path, 1)
    text = r"\xc3\xbc" * 3950
    assert path.read_text().endswith(f' "{text}" "{text}"\n'), line


def test_a_file_that_is_cut_is_gone_on_with_from_its_start(serve, path):
    """As logrotate's copytruncate does."""
    server = serve("--access-log", path)
    for target in ("/one", "/two"):
        assert server.ask(request("GET", target)).status == 404
        line, = wait_lines(path, 1)
        assert line.request == f"GET {target} HTTP/1.1"
        assert b"\0" not in path.read_bytes(), "a hole where the first line was"
        os.truncate(path, 0)


def test_addresses(serve, path, tmp_path):
    listen = ["127.0.0.1:0", f"unix:{tmp_path}/socket"] + ["[::1]:0"] * has_ipv6()
    server = serve("--access-log", path, listen=listen)
    for address in server.addresses:
        with Client(address) as client:
            client.ask(HEALTHZ)
    expected = ["127.0.0.1", "-"] + ["::1"] * has_ipv6()
    assert [line.address for line in wait_lines(path, len(expected))] == expected


def test_an_address_that_anybody_can_claim_is_not_logged(serve, path):
    """Whoever is behind a proxy is in the log of that."""
    server = serve("--access-log", path)
    fields = [("X-Forwarded-For", "203.0.113.9"), ("X-Real-IP", "203.0.113.9"),
              ("Forwarded", "for=203.0.113.9")]
    assert server.ask(request("GET", "/healthz", fields)).status == 200
    server.stop()
    line = path.read_text()
    assert line.startswith("127.0.0.1 ") and "203.0.113.9" not in line


def test_a_set_is_logged_as_it_ended(serve, path):
    """Not as it looked when it was taken."""
    server = serve("--access-log", path, **inject("error=EIO:when=2+"))
    server.expected_stderr, server.expected_exit = "sets are refused until restart", 1
    server.set("first", "k").is_json(200, SUCCESS)
    with server.client() as client:
        client.send(set_request("a", "k") + set_request("a", "l") + HEALTHZ)
        assert [client.reply().status for _ in range(3)] == [503, 503, 503]
    lines = wait_lines(path, 4)
    body = str(len(STORAGE_UNAVAILABLE))
    assert [(line.user, line.status, line.bytes) for line in lines] == [
        (ALICE, 200, "16"), (ALICE, 503, body), (ALICE, 503, body),
        ("-", 503, str(len("storage failed")))]


def test_a_client_that_does_not_wait(serve, path):
    server = serve("--access-log", path, **inject("delay_enter=300000"))
    client = server.client()
    client.send(set_request("a", "k"))
    wait_until(lambda: b"\ta\t" in server.log(), "the record to be written")
    client.reset()
    line, = wait_lines(path, 1)
    assert line.summary() == (ALICE, f"POST {SET_PATH} HTTP/1.1", 499, "-")
    wait_until(lambda: server.info("a").body.count(b"e2eKeyId"), "the set, which happened")
    assert sets_by_outcome(metrics(server)) == {"client_gone": 1}


def test_a_client_that_leaves_before_it_is_looked_at(serve, path, tmp_path):
    """Whatever it has asked for happens, is counted and has its line: 499, as it got no reply."""
    server = serve("--access-log", path, listen=["127.0.0.1:0", f"unix:{tmp_path / 'socket'}"])
    with server.standing_still():
        for address, leave in zip(server.addresses, (Client.reset, Client.close)):
            client = Client(address)
            room = leave.__name__
            client.send(set_request(room, "k") + set_request(room, "l") + info_request(room)
                        + request("POST", SET_PATH, ALICE_FIELDS, b"{") + HEALTHZ)
            leave(client)
    lines = wait_lines(path, 10)
    assert sorted(line.request.split(" ")[0] for line in lines) == ["GET"] * 4 + ["POST"] * 6
    assert {(line.address, line.status, line.bytes) for line in lines} == {("-", 499, "-")}
    assert sorted(records(server.log())) == [(ALICE, "close", "k"), (ALICE, "reset", "k")]
    seen = metrics(server)
    assert sets_by_outcome(seen) == {"client_gone": 6}
    assert requests_at(seen, "rooms.info") == requests_at(seen, "healthz") == {499: 2}
    assert seen["roomkeyd_key_ids"] == 2


def test_rotation_loses_no_line(serve, path):
    server = serve("--access-log", path)
    done = threading.Event()
    asked = []

    def ask():
        with server.client() as client:
            while not done.is_set():
                assert client.ask(request("GET", f"/n{len(asked)}")).status == 404
                asked.append(None)

    thread = threading.Thread(target=ask)
    thread.start()
    rotated = []
    for number in range(5):
        rotated.append(path.with_suffix(f".{number}"))
        wait_until(lambda: path.exists() and path.stat().st_size > 0, "lines in the new file")
        path.rename(rotated[-1])
        server.send_signal(signal.SIGHUP)
    wait_until(lambda: path.exists() and path.stat().st_size > 0, "lines in the last file")
    done.set()
    thread.join(TIMEOUT_S)
    server.stop()
    requests = [line.request for file in (*rotated, path) for line in read_lines(file)]
    assert requests == [f"GET /n{number} HTTP/1.1" for number in range(len(asked))]


def test_a_file_that_cannot_be_reopened(serve, tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "access.log"
    server = serve("--access-log", path)
    server.ask(HEALTHZ)
    moved = tmp_path / "moved"
    directory.rename(moved)
    server.expected_stderr = r"^roomkeyd: access log: \S+/access\.log: No such file or directory$"
    server.send_signal(signal.SIGHUP)
    assert wait_until(lambda: server.stderr.wait_for(bool), "the report")
    server.ask(HEALTHZ)
    wait_lines(moved / "access.log", 2)  # the old one is still written


def test_a_rotation_keeps_no_descriptor(serve, path):
    server = serve("--access-log", path)
    before = server.descriptors()
    for _ in range(5):
        path.unlink()
        server.send_signal(signal.SIGHUP)
        wait_until(path.exists, "the log to be opened again")
    wait_until(lambda: server.descriptors() == before, "the old ones to be closed")


def test_a_log_that_cannot_be_opened(tmp_path):
    write_data(tmp_path / "data")
    os.mkfifo(tmp_path / "pipe")
    for path, why in ((tmp_path / "none" / "log", "No such file"), (tmp_path, "Is a directory"),
                      (tmp_path / "pipe", "No such device")):
        result = run("--listen", "127.0.0.1:0", "--data", tmp_path / "data", "--access-log", path)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(f"roomkeyd: access log: {path}: {why}"), result
        assert result.stderr.count("\n") == 1


def test_a_full_disk(serve):
    server = serve("--access-log", "/dev/full")
    server.expected_stderr = "^roomkeyd: access log: /dev/full: No space left on device$"
    for _ in range(50):
        assert server.ask(HEALTHZ).status == 200
    server.set("a", "k").is_json(200, SUCCESS)
    server.stop()
    assert len(server.stderr.all()) == 1, "said once"


def fill(server, number):
    """Asks so often, in order; every reply comes in time. The agent makes the lines long."""
    agent = (("User-Agent", "x" * 4000),)
    with server.client() as client:
        for first in range(0, number, 20):
            client.send(b"".join(request("GET", f"/n{i}", agent) for i in range(first, first + 20)))
            for _ in range(20):
                assert client.reply().status == 404


def check_dropped(lines, dropped, number):
    """What was written are whole lines, in order; with those that were dropped it is all."""
    numbers = [int(re.fullmatch(r"GET /n(\d+) HTTP/1.1", line.request)[1]) for line in lines
               if line.request.startswith("GET /n")]
    assert numbers == sorted(set(numbers))
    assert 0 < len(numbers) < number and len(numbers) + dropped == number


def test_a_slow_reader_of_a_pipe_holds_up_nobody(serve, path):
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    server = serve("--access-log", path)
    server.expected_stderr = "^roomkeyd: access log: .*: lines are dropped"
    fill(server, 400)
    busy = server.cpu_seconds()
    dropped = metrics(server)["roomkeyd_access_log_dropped_total"]
    assert dropped > 0
    text = read_pipe(reader, lambda text: text.endswith(b"\n") and b"GET /metrics " in text,
                     server)
    assert server.cpu_seconds() - busy < 5
    check_dropped([Line(line) for line in text.decode().splitlines()], dropped, 400)
    assert server.stderr.wait_for(lambda lines: len(lines) == 1), "said once"
    os.close(reader)
    server.ask(HEALTHZ)  # nobody reads it any more: EPIPE, which is no SIGPIPE
    server.expected_stderr = "^roomkeyd: access log: .*: (lines are dropped|Broken pipe)"
    assert server.ask(HEALTHZ).status == 200


def test_lines_that_nobody_takes_before_the_end(serve, path):
    """There is room for them until the end, so nothing is dropped until then."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    server = serve("--access-log", path)
    server.expected_stderr = r"^roomkeyd: access log: the last \d+ bytes are lost"
    fill(server, 40)  # 160 KB: more than a pipe takes, less than the buffer
    assert metrics(server)["roomkeyd_access_log_dropped_total"] == 0
    server.stop()
    assert len(server.stderr.all()) == 1
    os.close(reader)


def test_lines_follow_when_there_is_space_again(serve, path):
    """By themselves: nobody asks anything any more."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    server = serve("--access-log", path)
    with server.client() as client:
        for _ in range(200):
            assert client.ask(HEALTHZ).status == 200
        text = b""
        while text.count(b"\n") < 200:
            assert select.select([reader], [], [], TIMEOUT_S)[0], text.count(b"\n")
            text += os.read(reader, 65536)
    os.close(reader)


def read_pipe(reader, is_enough, server):
    """Reads from a non-blocking pipe until there is enough; the server is asked meanwhile, so that
    there is a last line."""
    text, deadline = b"", time.monotonic() + TIMEOUT_S
    while not is_enough(text):
        assert time.monotonic() < deadline, text[-200:]
        if select.select([reader], [], [], 0.3)[0]:
            text += os.read(reader, 65536)
        else:
            server.ask(METRICS)
    return text


@contextlib.contextmanager
def with_output(directory, output, *options):
    """A server whose standard output is this descriptor."""
    process = subprocess.Popen(
        [binary(), "--listen", "127.0.0.1:0", "--data", str(directory), *options],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True)
    try:
        yield process
        process.terminate()
        process.errors = process.communicate(timeout=TIMEOUT_S)[1]
        assert process.returncode == 0, process.errors
    finally:
        process.kill()
        process.wait()


def first_line(reader):
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(reader, 1)
        assert byte, line
        line += byte
    return line.decode().strip()


class At:
    """What fill and metrics need of a server that is not a Server."""

    def __init__(self, address):
        self.address = address

    def client(self):
        return Client(self.address)

    def ask(self, data):
        with self.client() as client:
            return client.ask(data)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_slow_reader_of_standard_output_holds_up_nobody(tmp_path, kind):
    """The ready line comes first; the description, which is shared, stays as it was: blocking."""
    write_data(tmp_path / "data")
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        pair = [end.detach() for end in socket.socketpair()]  # what systemd gives
        reader, writer = pair
    with with_output(tmp_path / "data", writer, "--access-log", "-") as process:
        server = At(parse_ready_line(first_line(reader)))
        fill(server, 400)
        assert fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK == 0
        os.close(writer)
        dropped = metrics(server)["roomkeyd_access_log_dropped_total"]
        assert dropped > 0
        os.set_blocking(reader, False)
        text = read_pipe(reader, lambda text: text.endswith(b"\n") and b"GET /metrics " in text,
                         server)
        check_dropped([Line(line) for line in text.decode().splitlines()], dropped, 400)
        os.set_blocking(reader, True)
    os.close(reader)
    assert re.fullmatch("roomkeyd: access log: -: lines are dropped: .*\n", process.errors)


def test_standard_output_into_a_file(tmp_path):
    write_data(tmp_path / "data")
    path = tmp_path / "out"
    with open(path, "wb") as output, \
            with_output(tmp_path / "data", output, "--access-log", "-") as process:
        text = wait_until(lambda: (found := path.read_text()).endswith("\n") and found, "ready")
        server = At(parse_ready_line(text.strip()))
        fill(server, 400)
        process.send_signal(signal.SIGHUP)  # there is nothing to reopen
        fill(server, 20)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("roomkeyd: listening on ")
    assert [Line(line).request for line in lines[1:]] == [
        f"GET /n{i} HTTP/1.1" for i in (*range(400), *range(20))]
    assert process.errors == ""


def test_standard_output_that_is_closed(tmp_path):
    """Then the log cannot be written, and nothing else is written to in its place."""
    write_data(tmp_path / "data")
    script = 'exec "$@" <&- >&-'
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", binary(), "--listen", f"unix:{tmp_path}/socket", "--data",
         str(tmp_path / "data"), "--access-log", "-"], stderr=subprocess.PIPE, text=True)
    try:
        wait_until((tmp_path / "socket").exists, "the socket")
        server = At(str(tmp_path / "socket"))
        server.ask(set_request("a", "k")).is_json(200, SUCCESS)
        server.ask(set_request("a", "k")).is_json(400, ALREADY_EXISTS)
        process.terminate()
        errors = process.communicate(timeout=TIMEOUT_S)[1]
        assert (process.returncode, errors) == (
            0, "roomkeyd: access log: -: Bad file descriptor\n")
        log = (tmp_path / "data" / "keys.log").read_text().splitlines()
        assert log[0] == "roomkeyd keys.log 1" and len(log) == 3, log
    finally:
        process.kill()
        process.wait()


# ---- what must not be seen ---------------------------------------------------------------------


def test_no_token_is_ever_printed(serve, path, tmp_path):
    """Whatever a client does with it: in its place, in others, twice, in broken requests."""
    server = serve("--access-log", path)
    tokens = ALICE_TOKEN, BOB_TOKEN, "a-token-of-nobody"
    for token in tokens:
        right = ("X-User-Id", ALICE), ("X-Auth-Token", token)
        for fields in (right, right[::-1], right[1:], right + right[1:],
                       (("X-User-Id", token), ("X-Auth-Token", ALICE)),
                       (("X-User-Id", token), ("X-Auth-Token", token)),
                       right + (("Authorization", f"Bearer {token}"), ("Cookie", f"t={token}"))):
            for data in (set_request("a", "k", fields), info_request("a", fields),
                         request("GET", "/healthz", fields), request("GET", "/metrics", fields),
                         request("GET", "/nowhere", fields), request("OPTIONS", "*", fields),
                         request("POST", SET_PATH, (*fields, JSON_TYPE), compact({"t": token})),
                         request("POST", SET_PATH, (*fields, JSON_TYPE), b"{" + token.encode()),
                         request("GET", "/healthz", (*fields, ("Content-Length", "x"))),
                         f"X-Auth-Token: {token}\r\n\r\n".encode(),
                         f"GET / HTTP/1.1\r\nX-Auth-Token : {token}\r\n\r\n".encode()):
                with server.client() as client:
                    reply = client.ask(data)
                    assert token.encode() not in reply.body, data
    (server.directory / "users").write_text(f"{ALICE} {ALICE_TOKEN}\n")  # no hash: a mistake
    server.expected_stderr = "^roomkeyd: .*users:1: "
    server.send_signal(signal.SIGHUP)
    assert wait_until(lambda: server.stderr.wait_for(bool), "the report")
    server.stop()
    seen = [path.read_text(), *server.stdout.all(), *server.stderr.all(), server.log().decode()]
    assert len(read_lines(path)) > 100
    for text in seen:
        for token in tokens:
            assert token not in text, text


def test_errors_are_lines():
    """What goes to standard error goes through tell(), which makes one line of it, but for the usage
    and a terminal's progress line."""
    literal = r'"(?:[^"\\]|\\.)*"'
    found = 0
    for source in REPOSITORY.glob("*.c"):
        text = source.read_text()
        assert text.count("stderr") - text.count("print_usage(stderr") == {
            "text.c": 1, "admin.c": 1}.get(source.name, 0), source.name
        for call in re.findall(r"\btell\((.*?)\);\n", text, re.S):
            assert not any("\\n" in part for part in re.findall(literal, call)), (source.name, call)
            found += 1
    assert found > 15
