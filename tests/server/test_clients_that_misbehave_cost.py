"""What clients that misbehave cost everybody else, in milliseconds and in bytes.

test_clients_that_misbehave.py shows that each of them is cut off. Here the binaries as they are
shipped are held to two figures of the README while a crowd misbehaves as hard as it can: the 99th
percentile of a client that behaves, and the most memory that a connection can take.

How the time is measured, and what that is worth. The crowd is a process of its own; the client that
behaves sends REQUESTS requests, one after the other over one connection, and the 99th percentile of
their times has to be under P99_MAX_MS. The machine may be busy with other things, which the server
cannot help: so the best of ATTEMPTS counts, and the first that is good ends the test. That misses a
server that is slow now and then; it does not miss one that a crowd can slow down, which is slow in
every attempt. The requests are reads: a set takes as long as the disk does, crowd or no crowd.
"""

import contextlib
import multiprocessing
import re
import resource
import select
import socket
import time
from pathlib import Path

import pytest

from server import (
    ALICE_FIELDS,
    HEALTHZ,
    SET_PATH,
    SUCCESS,
    binary,
    info_request,
    request,
    set_request,
    wait_until,
)

P99_MAX_MS = 20
REQUESTS, ATTEMPTS = 3000, 5

CROWD = 200  # connections, of those kinds of crowd that hold theirs
PIPELINING = 20  # of those that never read
DRIP_S = 0.005

# ---- crowds: each runs in a process of its own until that is ended ------------------------------
#
# started() is to be called once the crowd is at it.


def connect(address, receive_bytes=None):
    """A connection of the crowd's, blocking."""
    one = socket.socket(socket.AF_INET)
    if receive_bytes:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    one.connect(address)
    return one


def drip(address, started, beginning, byte):
    """Requests that never end, a byte at a time; who is cut off comes back at once."""
    crowd = []
    while True:
        while len(crowd) < CROWD:
            crowd.append(connect(address))
            crowd[-1].sendall(beginning)
        started()
        for one in list(crowd):
            try:
                one.sendall(byte)
            except OSError:
                crowd.remove(one)
        time.sleep(DRIP_S)


def slow_heads(address, started):
    drip(address, started, HEALTHZ[:-2] + b"X: ", b"x")


def slow_bodies(address, started):
    drip(address, started, set_request("room", "k" * 60000)[:-60000], b"k")


def never_read(address, started, reconnects=False):
    """Pipelines without reading, until the server takes no more."""
    crowd, wire = [], info_request("room") * 200
    while True:
        while len(crowd) < PIPELINING:
            crowd.append(connect(address, receive_bytes=4096))
            crowd[-1].setblocking(False)
        for one in crowd:
            with contextlib.suppress(OSError):
                one.send(wire)
        started()
        if reconnects:
            crowd.pop(0).close()


def never_read_and_reconnect(address, started):
    """A new connection with a full pipeline, again and again."""
    never_read(address, started, reconnects=True)


def pipeline_and_read(address, started):
    """Thousands of requests at a time, all of them answered: work without end."""
    crowd = [connect(address) for _ in range(8)]
    for one in crowd:
        one.setblocking(False)
    started()
    while True:
        readable, writable, _ = select.select(crowd, crowd, [])
        for one in readable:
            one.recv(1 << 20)
        for one in writable:
            with contextlib.suppress(BlockingIOError):
                one.send(HEALTHZ * 100)


def silent(address, started):
    crowd = [connect(address) for _ in range(CROWD)]
    started()
    select.select(crowd, [], [])


def reset_at_every_stage(address, started):
    wire = set_request("room", "key") + info_request("room")
    while True:
        for cut in range(0, len(wire) + 1, 7):
            one = connect(address)
            one.sendall(wire[:cut])
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.close()
        started()


def reconnect(address, started):
    """Connects, asks, goes, as fast as it can; every other one without asking."""
    while True:
        for _ in range(50):
            with connect(address) as one:
                one.sendall(HEALTHZ)
                one.recv(1024)
            connect(address).close()
        started()


def want_every_descriptor(address, started):
    """More connections than the server has descriptors, and when one is closed another one."""
    crowd = []
    while True:
        while len(crowd) < CROWD:
            crowd.append(connect(address))
            crowd[-1].setblocking(False)
        started()
        for one in list(crowd):
            try:
                one.send(HEALTHZ)
                if one.recv(4096) == b"":
                    raise ConnectionError
            except BlockingIOError:
                pass
            except OSError:
                one.close()
                crowd.remove(one)
        time.sleep(DRIP_S)


@contextlib.contextmanager
def misbehaving(crowd, address):
    """While this lasts a crowd is at work."""
    context = multiprocessing.get_context("fork")
    event = context.Event()
    process = context.Process(target=crowd, args=(address, event.set), daemon=True)
    process.start()
    try:
        while not event.wait(0.1):
            assert process.is_alive(), "the crowd never got going"
        yield
        assert process.is_alive(), "the crowd gave up"
    finally:
        process.kill()
        process.join()


# ---- time ---------------------------------------------------------------------------------------


def p99_ms(client):
    """The 99th percentile of what a request takes, in milliseconds; as soon as it is certain to be
    too much, the least that it can be."""
    wire, times = info_request("room"), []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        reply = client.ask(wire)
        times.append(time.perf_counter() - started)
        assert reply.status == 200
        slow = sorted(1000 * one for one in times if 1000 * one >= P99_MAX_MS)
        if len(slow) > REQUESTS // 100:
            return slow[0]
    return 1000 * sorted(times)[REQUESTS * 99 // 100]


def assert_is_served_in_time(client):
    measured = []
    while not measured or min(measured) >= P99_MAX_MS:
        assert len(measured) < ATTEMPTS, f"p99 in ms, attempt by attempt: {measured}"
        measured.append(round(p99_ms(client), 3))
    print(f"p99: {measured[-1]} ms")


@pytest.mark.parametrize("crowd", [
    slow_heads, slow_bodies, never_read, never_read_and_reconnect,
    pipeline_and_read, silent, reset_at_every_stage, reconnect,
], ids=lambda crowd: crowd.__name__)
def test_a_client_that_behaves_is_served_in_time(serve, crowd):
    server = serve(program=binary("ROOMKEYD_RELEASE"))
    with server.client() as client, misbehaving(crowd, server.address):
        assert_is_served_in_time(client)


def test_64_descriptors(serve):
    """Those who are in are served as ever, the others are told or wait, and when the crowd has gone
    everybody gets in again."""
    server = serve(program=binary("ROOMKEYD_RELEASE"),
                   before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    server.expected_stderr = "roomkeyd: cannot accept connections for now: "
    with server.client() as client:
        assert client.ask(set_request("room", "key")).body == SUCCESS
        with misbehaving(want_every_descriptor, server.address):
            assert_is_served_in_time(client)
            assert server.descriptors() <= 64
        wait_until(lambda: server.ask(HEALTHZ).body == b"ok", "room for one more")
        client.ask(set_request("another", "key")).is_json(200, SUCCESS)


# ---- memory -------------------------------------------------------------------------------------

# A connection with the largest unfinished request in and all the replies out that it may have before
# it is parsed no further. As in conn.c and http.h, in bytes. The README's bound is the one in which the
# last of those replies is that of /metrics.
MAX_REQUEST = 16384 + 65536 + 16384  # HTTP_MAX_REQUEST_BYTES
INBOX = MAX_REQUEST + 1024  # and the state of its parsing
OUTBOX = 65536 + 512 + 3188 + 24  # OUT_LIMIT_BYTES, one reply more, its size
CONNECTION = 128  # struct conn, with what malloc adds to the three
BOUND = CONNECTION + INBOX + OUTBOX
METRICS_BOUND = BOUND - 3188 + 20480  # METRICS_TEXT_BYTES
assert METRICS_BOUND <= 182 << 10
ROOM = "\x01" * 255  # the longest of replies but that: each byte of both IDs becomes \u0001

GREEDY = 100
SHARED = 1 << 20  # what the process takes besides: buffers that the loop shares, malloc's own


def anonymous_bytes(server):
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1]) * 1024


def stuff(greedy, wire):
    """Sends all of wire to everyone, or as much as is taken until nobody takes any more."""
    taken = [0] * len(greedy)
    for one in greedy:
        one.setblocking(False)
    while select.select([], [one for one, n in zip(greedy, taken) if n < len(wire)], [], 0.5)[1]:
        for i, one in enumerate(greedy):
            with contextlib.suppress(BlockingIOError):
                taken[i] += one.send(wire[taken[i] : taken[i] + 65536])


@pytest.mark.parametrize("asked, bound", [(info_request(ROOM), BOUND),
                                          (request("GET", "/metrics"), METRICS_BOUND)])
def test_the_worst_that_connections_can_take(serve, asked, bound):
    """Half of them full of replies and of requests behind those, half with a request that is nearly
    whole: the bound holds, and it is no idle one, since a good part of it is really taken."""
    server = serve(program=binary("ROOMKEYD_RELEASE"))
    pipeline = asked * 20_000
    large = request("POST", SET_PATH, (*ALICE_FIELDS, ("X-Fill", "x" * 8000),
                                       ("X-Fill", "x" * 8000)), b" " * 65536)[:-1]
    with server.client() as client:
        client.ask(set_request(ROOM, ROOM)).is_json(200, SUCCESS)
        assert len(client.ask(asked).body) > 3000
        before = anonymous_bytes(server)
        greedy = [connect(server.address, receive_bytes=4096) for _ in range(GREEDY)]
        stuff(greedy[: GREEDY // 2], pipeline)
        stuff(greedy[GREEDY // 2 :], large)
        client.ask(HEALTHZ).check_date()
        grown = anonymous_bytes(server) - before
        print(f"{grown // GREEDY} bytes a connection of at most {bound}")
        assert grown <= GREEDY * bound + SHARED
        assert grown >= GREEDY * bound // 3, f"only {grown // GREEDY} each: nobody was greedy"
        for one in greedy:
            one.close()
        assert server.ask(HEALTHZ).body == b"ok"


def test_sets_whose_replies_nobody_takes(serve):
    """Whenever one is on disk the requests behind it have their turn, up to the same bound."""
    server = serve(program=binary("ROOMKEYD_RELEASE"))
    with server.client() as client:
        client.ask(set_request("room", ROOM)).is_json(200, SUCCESS)
        before = anonymous_bytes(server)
        greedy = [connect(server.address, receive_bytes=4096) for _ in range(10)]
        for number, one in enumerate(greedy):
            stuff([one], b"".join(info_request("room") * 15 + set_request(f"{number} {i}", "k")
                                  for i in range(200)))
        client.ask(HEALTHZ).check_date()
        assert anonymous_bytes(server) - before <= len(greedy) * BOUND + SHARED
        for one in greedy:
            one.close()
