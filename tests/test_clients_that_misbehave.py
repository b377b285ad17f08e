"""Clients that are slow, silent, greedy or gone, and what they cost everybody else: nothing.

Proves each deadline and each bound on a connection, always with a second client that is served in
the meantime. The deadlines themselves are seen on ROOMKEYD_QUICK, whose constants are about half a
second; the other bounds with the constants as they are shipped.
"""

import os
import resource
import select
import socket
import time

import pytest

from server import (
    ALICE_FIELDS,
    HEALTHZ,
    SUCCESS,
    TIMEOUT_S,
    binary,
    in_threads,
    info_request,
    inject,
    request,
    room_info,
    set_request,
    wait_until,
)

# Longer than any deadline of the quick binary, and how far apart a slow client's bytes are.
LONG_S, DRIP_S = 30, 0.1


@pytest.fixture(name="quick")
def _quick(serve):
    return serve(program=binary("ROOMKEYD_QUICK"))


def is_served(client):
    """One more request of the client that behaves."""
    assert client.ask(HEALTHZ).body == b"ok"


def drip(server, client, data):
    """Sends a byte now and then until the server says something; others are served all the while.
    Returns the seconds that took. (Sleeping is what such a client does; it is no wait.)"""
    started = time.monotonic()
    for i in range(len(data)):
        if select.select([client.socket], [], [], DRIP_S)[0]:
            return time.monotonic() - started
        client.send(data[i : i + 1])
        is_served(server)
        assert time.monotonic() - started < LONG_S, "it never lost its patience"
    raise AssertionError("all was sent, and the server still listened")


@pytest.mark.parametrize("prefix", [b"G", HEALTHZ[:-2], HEALTHZ[:-2] + b"X: "])
def test_a_slow_head_is_cut_off(quick, prefix):
    """Slowloris: each byte in time, the head never complete. The deadline is for the whole head."""
    with quick.client() as slow:
        slow.send(prefix)
        took = drip(quick, slow, b"x" * 1000)
        reply = slow.reply()
        reply.is_json(408, reply.body)
        assert reply.field("Connection") == "close"
        slow.end()
        assert took > 0.2, "that was no deadline"


@pytest.mark.parametrize("coding", ["length", "chunked", "trailers"])
def test_a_slow_body_is_cut_off(quick, coding):
    chunked = [*ALICE_FIELDS, ("Transfer-Encoding", "chunked")]
    wire = {
        "length": set_request("room", "key" * 50)[:-160],
        "chunked": request("POST", "/api/v1/e2e.setRoomKeyID", chunked) + b"1000\r\n",
        "trailers": request("POST", "/api/v1/e2e.setRoomKeyID", chunked) + b"0\r\nX: ",
    }[coding]
    with quick.client() as slow:
        slow.send(wire)
        drip(quick, slow, b" " * 150)
        assert slow.reply().status == 408
        slow.end()
    assert quick.info("room").body == room_info("room", "c")


@pytest.mark.parametrize("part", [b"G", HEALTHZ[:-1], set_request("room", "key")[:-1]])
def test_a_request_that_stops_is_cut_off(quick, part):
    with quick.client() as silent:
        silent.send(part)
        assert silent.reply().status == 408
        silent.end()


def test_a_head_that_stops_is_told_so_without_content(quick):
    with quick.client() as silent:
        silent.send(b"HEAD /healthz HTTP/1.1\r\n")
        assert silent.reply(to_head=True).status == 408
        silent.end()


def test_a_page_may_read_that_its_request_stopped(serve):
    """Of the request that stopped, not of the one before it."""
    quick = serve("--cors", "https://a.example,https://b.example",
                  program=binary("ROOMKEYD_QUICK"))
    with quick.client() as client:
        client.ask(request("GET", "/healthz", (("Origin", "https://a.example"),)))
        client.send(request("POST", "/", (("Origin", "https://b.example"), ("Content-Length", "5"))))
        reply = client.reply()
        assert reply.status == 408
        assert reply.field("Access-Control-Allow-Origin") == "https://b.example"


def test_idle_connections_are_closed_without_a_word(quick):
    with quick.client() as fresh, quick.client() as used:
        assert used.ask(HEALTHZ).status == 200
        fresh.end()
        used.end()


@pytest.mark.parametrize("part", [b"\r", b"\r\n"])
def test_an_empty_line_is_no_request_that_stopped(quick, part):
    """It may come before a request (RFC 9112, 2.2), and none has begun."""
    with quick.client() as silent:
        silent.send(part)
        silent.end()


def test_a_busy_connection_is_not_idle(quick):
    """Requests further apart than nothing, but closer than the deadline, for longer than it."""
    with quick.client() as client:
        started = time.monotonic()
        while time.monotonic() - started < 3:
            is_served(client)
            select.select([client.socket], [], [], DRIP_S)


def test_a_connection_that_waits_for_the_disk_is_not_idle(serve):
    """A sync may take longer than any deadline for clients: it is the server that is slow here."""
    server = serve(program=binary("ROOMKEYD_QUICK"), **inject("delay_enter=2500000"))
    server.set("room", "key").is_json(200, SUCCESS)


def ask_without_reading(client, one, seconds=1.0):
    """Pipelines requests until the server has taken none for a while. Returns the bytes it took."""
    client.socket.setblocking(False)
    wire, sent = one * (200_000 // len(one)), 0
    while select.select([], [client.socket], [], seconds)[1]:
        try:
            sent += client.socket.send(wire[sent % len(one) :])
        except (ConnectionError, BlockingIOError):
            break
        assert sent < 500_000_000, "it takes everything and keeps it"
    client.socket.settimeout(TIMEOUT_S)
    return sent


def test_a_client_that_never_reads_is_not_buffered_for(serve):
    """What it gets buffered is bounded, whatever it asks for, and nobody else notices."""
    # AddressSanitizer keeps what is freed, up to this much.
    options = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"
    server = serve(environment={"ASAN_OPTIONS": options})
    with server.client() as other:
        other.ask(set_request("r", "k" * 255)).is_json(200, SUCCESS)
        before = server.resident_bytes()
        greedy = [server.client() for _ in range(5)]
        for client in greedy:
            ask_without_reading(client, info_request("r"))
            is_served(other)
        grown = server.resident_bytes() - before
        assert grown < len(greedy) * 3_000_000, f"{grown} bytes for {len(greedy)} clients"
        # They get every reply, to the last byte, when they read after all.
        for client in greedy[:2]:
            for _ in range(1000):
                client.reply().is_json(200, room_info("r", "c", "k" * 255))
        for client in greedy:
            client.close()
        is_served(other)


def test_a_client_that_never_reads_is_cut_off(quick):
    with quick.client() as greedy:
        ask_without_reading(greedy, info_request("r"), 0.2)
        descriptors = quick.descriptors()
        wait_until(lambda: quick.descriptors() < descriptors or _is_gone(greedy), "the cut")
        assert quick.ask(HEALTHZ).status == 200


def _is_gone(client):
    """Whether the server has ended the connection (as seen by sending: nothing is read)."""
    try:
        client.socket.setblocking(False)
        client.socket.send(b"x")
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return False


def test_a_client_that_reads_at_its_own_pace_is_not_cut_off(quick):
    """Replies wait for the client all the time, for longer than the deadline; but it takes them."""
    count, pace_bytes = 20_000, 300_000
    quick.set("r", "k" * 255).is_json(200, SUCCESS)
    with quick.client() as slow:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        one = slow.ask(info_request("r"))
        left = count * (sum(map(len, map(": ".join, one.fields))) + 2 * len(one.fields)
                        + len(f"HTTP/1.1 200 {one.reason}") + 4 + len(one.body))
        with in_threads(slow.send, [info_request("r") * count]):
            while left > 0:
                pause = left - pace_bytes
                while left > max(pause, 0):
                    data = slow.socket.recv(min(left, 65536))
                    assert data, f"cut off with {left} bytes to go"
                    left -= len(data)
                select.select([], [], [], DRIP_S)


def test_lingering_has_an_end(quick):
    """After an error the server reads on for a while, to save its reply; not for ever."""
    with quick.client() as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.reply().status == 400
        client.end()
        descriptors = quick.descriptors()
        started = time.monotonic()
        while time.monotonic() - started < LONG_S:
            try:
                client.send(b"x")
            except ConnectionError:
                break
            select.select([], [], [], DRIP_S)
        else:
            raise AssertionError("it lingers on and on")
        wait_until(lambda: quick.descriptors() < descriptors, "the descriptor to be closed")


def test_2000_idle_connections(serve):
    count = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= count + 200, (
        f"this test needs {count + 200} descriptors; the hard limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = []
    try:
        server = serve()
        with server.client() as client:
            is_served(client)
            before = server.resident_bytes()
            crowd += [server.client() for _ in range(count)]
            # All are accepted when the last is, since the queue is one.
            is_served(crowd[-1])
            for one in crowd[:: count // 20]:
                is_served(one)
            grown = server.resident_bytes() - before
            assert grown < count * 4096, f"{grown // count} bytes a connection"
            for i in range(100):
                client.ask(set_request(f"r{i}", "k")).is_json(200, SUCCESS)
            used, started = server.cpu_seconds(), time.monotonic()
            select.select([crowd[0].socket], [], [], 1)
            assert server.cpu_seconds() - used < 0.5 * (time.monotonic() - started), "it spins"
            for one in crowd:
                one.close()
            is_served(client)
            wait_until(lambda: server.descriptors() < 30, "the descriptors to be closed")
    finally:
        for one in crowd:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_resets_at_every_stage(serve):
    """A connection that is reset after any number of a request's bytes takes nothing with it."""
    server = serve()
    wire = set_request("room", "key") + info_request("room")
    end = len(set_request("room", "key"))
    with server.client() as other:
        for cut in [*range(0, end - 1, 3), end - 1]:
            client = server.client()
            client.send(wire[:cut])
            client.reset()
        is_served(other)
        other.ask(info_request("room")).is_json(200, room_info("room", "c"))
        for cut in range(end, len(wire) + 1, 5):  # now the set is whole: it counts, or it does not
            client = server.client()
            client.send(wire[:cut])
            client.reset()
        is_served(other)
        other.ask(set_request("room", "late"))
        assert other.ask(info_request("room")).body in (
            room_info("room", "c", "key"), room_info("room", "c", "late"))
        wait_until(lambda: server.descriptors() < 30, "the descriptors to be closed")


def test_a_reset_while_the_set_is_on_its_way(serve):
    """The client is gone when the sync ends: the key is set, the reply goes nowhere."""
    server = serve(**inject("delay_enter=1000000"))
    clients = [server.client() for _ in range(10)]
    for number, client in enumerate(clients):
        client.send(set_request(f"r{number % 3}", f"k{number}") + HEALTHZ)
    wait_until(lambda: b"\tk" in server.log(), "the write")
    for client in clients[:5]:
        client.reset()
    for client in clients[5:]:
        client.close()
    wait_until(lambda: b"e2eKeyId" in server.info("r0").body, "the commit")
    with server.client() as other:
        other.ask(set_request("new", "k")).is_json(200, SUCCESS)


def test_connections_that_are_opened_and_closed(server):
    for _ in range(500):
        server.client().close()
    for _ in range(500):
        server.client().reset()
    assert server.ask(HEALTHZ).status == 200
    wait_until(lambda: server.descriptors() < 30, "the descriptors to be closed")
