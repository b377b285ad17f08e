"""Clients that are slow, silent, greedy or gone, and what they cost everybody else: nothing.

Proves each deadline and each bound on a connection, always with a second client that is served in
the meantime. The deadlines themselves are seen on ROOMKEYD_SHORT_DEADLINES, whose constants are less
than a second; the other bounds with the constants as they are shipped.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import time

import pytest

from server import (
    ALICE_FIELDS,
    HEALTHZ,
    SUCCESS,
    TIMEOUT_S,
    Client,
    Server,
    binary,
    in_threads,
    info_request,
    inject,
    records,
    request,
    room_info,
    set_request,
    wait_until,
)

# Longer than any deadline of the impatient server, and how far apart a slow client's bytes are.
LONG_S, DRIP_S = 30, 0.1


@pytest.fixture(name="impatient")
def _impatient(serve):
    """A server with short deadlines."""
    return serve(program=binary("ROOMKEYD_SHORT_DEADLINES"))


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
def test_a_slow_head_is_cut_off(impatient, prefix):
    """Slowloris: each byte in time, the head never complete. The deadline is for the whole head."""
    with impatient.client() as slow:
        slow.send(prefix)
        took = drip(impatient, slow, b"x" * 1000)
        reply = slow.reply()
        reply.is_json(408, reply.body)
        assert reply.field("Connection") == "close"
        slow.end()
        assert took > 0.2, "that was no deadline"


@pytest.mark.parametrize("coding", ["length", "chunked", "trailers"])
def test_a_slow_body_is_cut_off(impatient, coding):
    chunked = [*ALICE_FIELDS, ("Transfer-Encoding", "chunked")]
    wire = {
        "length": set_request("room", "key" * 50)[:-160],
        "chunked": request("POST", "/api/v1/e2e.setRoomKeyID", chunked) + b"1000\r\n",
        "trailers": request("POST", "/api/v1/e2e.setRoomKeyID", chunked) + b"0\r\nX: ",
    }[coding]
    with impatient.client() as slow:
        slow.send(wire)
        drip(impatient, slow, b" " * 150)
        assert slow.reply().status == 408
        slow.end()
    assert impatient.info("room").body == room_info("room", "c")


@pytest.mark.parametrize("part", [b"G", HEALTHZ[:-1], set_request("room", "key")[:-1]])
def test_a_request_that_stops_is_cut_off(impatient, part):
    with impatient.client() as silent:
        silent.send(part)
        assert silent.reply().status == 408
        silent.end()


def test_a_head_that_stops_is_told_so_without_content(impatient):
    with impatient.client() as silent:
        silent.send(b"HEAD /healthz HTTP/1.1\r\n")
        assert silent.reply(to_head=True).status == 408
        silent.end()


def test_a_page_may_read_that_its_request_stopped(serve):
    """Of the request that stopped, not of the one before it."""
    impatient = serve("--cors", "https://a.example,https://b.example",
                      program=binary("ROOMKEYD_SHORT_DEADLINES"))
    with impatient.client() as client:
        client.ask(request("GET", "/healthz", (("Origin", "https://a.example"),)))
        client.send(request("POST", "/", (("Origin", "https://b.example"), ("Content-Length", "5"))))
        reply = client.reply()
        assert reply.status == 408
        assert reply.field("Access-Control-Allow-Origin") == "https://b.example"


def test_idle_connections_are_closed_without_a_word(impatient):
    with impatient.client() as fresh, impatient.client() as used:
        assert used.ask(HEALTHZ).status == 200
        fresh.end()
        used.end()


@pytest.mark.parametrize("part", [b"\r", b"\r\n"])
def test_an_empty_line_is_no_request_that_stopped(impatient, part):
    """It may come before a request (RFC 9112, 2.2), and none has begun."""
    with impatient.client() as silent:
        silent.send(part)
        silent.end()


def test_a_busy_connection_is_not_idle(impatient):
    """Requests further apart than nothing, but closer than the deadline, for longer than it."""
    with impatient.client() as client:
        started = time.monotonic()
        while time.monotonic() - started < 3:
            is_served(client)
            select.select([client.socket], [], [], DRIP_S)


def test_a_connection_that_waits_for_the_disk_is_not_idle(serve):
    """A sync may take longer than any deadline for clients: it is the server that is slow here."""
    server = serve(program=binary("ROOMKEYD_SHORT_DEADLINES"), **inject("delay_enter=2500000"))
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


def test_a_client_that_never_reads_is_cut_off(impatient):
    with impatient.client() as greedy:
        ask_without_reading(greedy, info_request("r"), 0.2)
        descriptors = impatient.descriptors()
        wait_until(lambda: impatient.descriptors() < descriptors or _is_gone(greedy), "the cut")
        assert impatient.ask(HEALTHZ).status == 200


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


def test_a_client_that_reads_at_its_own_pace_is_not_cut_off(impatient):
    """Replies wait for the client all the time, for longer than the deadline; but it takes them."""
    count, pace_bytes = 20_000, 300_000
    impatient.set("r", "k" * 255).is_json(200, SUCCESS)
    with impatient.client() as slow:
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


def test_lingering_has_an_end(impatient):
    """After an error the server reads on for a while, to save its reply; not for ever."""
    with impatient.client() as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.reply().status == 400
        client.end()
        descriptors = impatient.descriptors()
        started = time.monotonic()
        while time.monotonic() - started < LONG_S:
            try:
                client.send(b"x")
            except ConnectionError:
                break
            select.select([], [], [], DRIP_S)
        else:
            raise AssertionError("it lingers on and on")
        wait_until(lambda: impatient.descriptors() < descriptors, "the descriptor to be closed")


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


# ---- clients that do not wait for their replies ------------------------------------------------
#
# What a client has sent in full is applied, over both kinds of sockets alike, and however it leaves.


@pytest.fixture(name="serve_at", params=["tcp", "unix"])
def _serve_at(request, serve, tmp_path):  # pylint: disable=redefined-outer-name
    """serve_at(...) starts a server that listens on both; .client() is of one of the two kinds, and
    .ask(...) is not."""
    def start(**others):
        server = serve(listen=["127.0.0.1:0", f"unix:{tmp_path / 'socket'}"], **others)
        number = ["tcp", "unix"].index(request.param)
        server.client = lambda: Client(server.addresses[number])
        server.ask = lambda data: _ask(server.addresses[1 - number], data)
        return server

    start.is_unix = request.param == "unix"
    return start


def _ask(address, data):
    with Client(address) as client:
        return client.ask(data)


def shut_both_ends(client):
    client.socket.shutdown(socket.SHUT_RDWR)


def shut_the_reading_end(client):
    """Nobody reads, but what the client sends may still come."""
    client.socket.shutdown(socket.SHUT_RD)


WAYS_TO_LEAVE = [Client.close, shut_both_ends, shut_the_reading_end]


def leave_unread(client):
    """To close with something unread is a reset for the other end, on a Unix socket, too."""
    client.send(HEALTHZ)
    assert select.select([client.socket], [], [], TIMEOUT_S)[0]


def wait_for_key(server, room, key):
    wait_until(lambda: server.info(room).body == room_info(room, "c", key), f"{room} to be set")


def wait_for_end(server, descriptors):
    """Waits until no connection is left of those that were there beside this many descriptors."""
    wait_until(lambda: server.descriptors() <= descriptors, "the connection to be closed")


def sets(first, last, padding=0):
    """Pipelined sets of the rooms of these numbers."""
    fields = (*ALICE_FIELDS, *([("X-Padding", "x" * padding)] if padding else []))
    return b"".join(set_request(f"r{i}", f"k{i}", fields) for i in range(first, last))


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
@pytest.mark.parametrize("before", [lambda client: None, leave_unread], ids=["", "unread"])
@pytest.mark.parametrize("stand", [Server.standing_still, contextlib.nullcontext],
                         ids=["at once", "or not"])
@pytest.mark.parametrize("count, between", [(1, b""), (3, b""), (3, HEALTHZ * 7)],
                         ids=["a set", "three", "three, and reads"])
def test_sets_of_a_client_that_leaves(serve_at, leave, before, stand, count, between):
    """Each set is made, though each next one is only looked at when the one before is on disk."""
    server = serve_at()
    for first in (0, 10, 20):
        with server.client() as client:
            assert client.ask(HEALTHZ).body == b"ok"
            descriptors = server.descriptors()
            before(client)
            with stand(server):
                for i in range(first, first + count):
                    client.send(sets(i, i + 1) + between)
                leave(client)
            for i in range(first, first + count):
                wait_for_key(server, f"r{i}", f"k{i}")
            if leave is not shut_the_reading_end:
                wait_for_end(server, descriptors - 1)
        wait_for_end(server, descriptors - 1)


def test_a_client_that_leaves_before_it_is_accepted(serve_at):
    server = serve_at()
    with server.standing_still():
        for i in range(20):
            client = server.client()
            client.send(sets(i, i + 1))
            client.close()
    for i in range(20):
        wait_for_key(server, f"r{i}", f"k{i}")


def test_sets_before_a_reset(server):
    """The kernel keeps what has arrived before it."""
    with server.standing_still():
        clients = [server.client() for _ in range(3)]
        for i, client in enumerate(clients):
            client.send(sets(10 * i, 10 * i + 3))
            client.reset()
    for i in (0, 1, 2, 10, 11, 12, 20, 21, 22):
        wait_for_key(server, f"r{i}", f"k{i}")


def test_more_sets_than_fit_a_buffer_of_a_client_that_leaves(serve_at):
    """They take several recv, and many passes."""
    server = serve_at()
    count, padding = 120, 900
    wire = sets(0, count, padding)
    assert len(wire) > 98304
    client = server.client()
    assert client.ask(HEALTHZ).body == b"ok"
    descriptors = server.descriptors()
    with server.standing_still():
        client.send(wire + HEALTHZ[:-1])
        client.close()
    for i in range(count):
        wait_for_key(server, f"r{i}", f"k{i}")
    wait_for_end(server, descriptors - 1)


def test_many_clients_that_leave(serve_at):
    """More than the server remembers: each has had its turn, those that are remembered get the rest
    of theirs, and the others do not wait for that."""
    server, count, remembered = serve_at(), 300, 256
    with server.client() as other:
        assert other.ask(HEALTHZ).body == b"ok"
        descriptors = server.descriptors()
        clients = [server.client() for _ in range(count)]
        for client in clients:
            assert client.ask(HEALTHZ).body == b"ok"
        with server.standing_still():
            for i, client in enumerate(clients):
                client.send(sets(10 * i, 10 * i + 3))
                client.socket.shutdown(socket.SHUT_RDWR)
        assert other.ask(HEALTHZ).body == b"ok"
        wait_for_end(server, descriptors)
        for client in clients:
            client.close()
    server.stop()
    made = {room for _, room, _ in records(server.log())}
    assert {f"r{10 * i}" for i in range(count)} <= made
    for i in range(count):
        assert f"r{10 * i + 1}" in made or f"r{10 * i + 2}" not in made, "not in order"
    assert len(made) >= 3 * remembered + (count - remembered)


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE[:2])
@pytest.mark.parametrize("part", [1, 100, -1])
def test_half_a_request_of_a_client_that_leaves(serve_at, leave, part):
    """It never happens, and nothing waits for its rest."""
    server = serve_at()
    client = server.client()
    assert client.ask(HEALTHZ).body == b"ok"
    descriptors = server.descriptors()
    client.send(sets(0, 1) + sets(1, 2)[:part])
    leave(client)
    wait_for_key(server, "r0", "k0")
    wait_for_end(server, descriptors - 1)
    assert server.info("r1").body == room_info("r1", "c")


@pytest.mark.parametrize("rest", [b"", sets(1, 2), sets(1, 4), HEALTHZ * 40 + sets(1, 2),
                                  b"BAD\r\n\r\n" + sets(1, 2)],
                         ids=["nothing", "a set", "three", "reads and a set", "a mistake"])
def test_a_client_that_leaves_while_its_set_waits(serve_at, rest):
    """What it has sent behind it is applied in its turn, and costs no processor until then."""
    server = serve_at(**inject("delay_enter=700000"))
    client = server.client()
    client.send(sets(0, 1) + rest[:5])
    wait_until(lambda: b"\tk0" in server.log(), "the write")
    client.send(rest[5:])
    used, started = server.cpu_seconds(), time.monotonic()
    client.close()
    wait_for_key(server, "r0", "k0")
    assert server.cpu_seconds() - used < 0.5 * (time.monotonic() - started), "it spins"
    for i in range(1, 1 + rest.count(b"POST") * (not rest.startswith(b"BAD"))):
        wait_for_key(server, f"r{i}", f"k{i}")
    if rest.startswith(b"BAD"):
        assert server.info("r1").body == room_info("r1", "c")


@pytest.mark.parametrize("leave", [Client.reset, shut_both_ends])
def test_a_client_that_leaves_is_forgotten_before_a_slow_disk_is_done(serve, tmp_path, leave):
    """Where nothing else of it is to be applied: clients that lose their patience and come again
    are not to fill up the connections."""
    server = serve(listen=["127.0.0.1:0", f"unix:{tmp_path / 'socket'}"],
                   **inject("delay_enter=3000000"))
    client = Client(server.addresses[leave is shut_both_ends])
    assert client.ask(HEALTHZ).body == b"ok"
    descriptors = server.descriptors()
    client.send(sets(0, 1))
    wait_until(lambda: b"\tk0" in server.log(), "the write")
    leave(client)
    wait_for_end(server, descriptors - 1)
    assert server.info("r0").body == room_info("r0", "c"), "the disk was too fast for this test"
    wait_for_key(server, "r0", "k0")


def test_a_client_that_leaves_while_replies_wait_for_it(serve_at):
    """Of what it has sent, the server has read a part; the rest is in the kernel. On a Unix socket
    that is all of it; of TCP, what lies at the client's end is lost."""
    server = serve_at()
    server.set("r", "k" * 255).is_json(200, SUCCESS)
    descriptors = server.descriptors()
    units = [sets(i, i + 1) + info_request("r") * 20 for i in range(100_000, 102_000)]
    wire, sent = memoryview(b"".join(units)), 0
    client = server.client()
    client.socket.setblocking(False)
    while select.select([], [client.socket], [], 1)[1]:
        sent += client.socket.send(wire[sent : sent + 65536])
    client.close()
    wait_for_end(server, descriptors)
    server.stop()
    made = [room for _, room, _ in records(server.log()) if room != "r"]
    assert made == [f"r{i}" for i in range(100_000, 100_000 + len(made))], "not in order"
    most = sent // len(units[0]) + (sent % len(units[0]) >= len(sets(100_000, 100_001)))
    assert len(made) == most if serve_at.is_unix else 0 < len(made) <= most


def test_a_client_that_leaves_a_server_that_stops(serve_at):
    server = serve_at()
    clients = [server.client() for _ in range(3)]
    with server.standing_still():
        for i, client in enumerate(clients):
            client.send(sets(10 * i, 10 * i + 2))
            client.close()
        server.send_signal(signal.SIGTERM)
    server.stop()
    made = {room for _, room, _ in records(server.log())}
    assert made == {"r0", "r1", "r10", "r11", "r20", "r21"}


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
def test_a_refused_client_that_leaves(serve_at, leave):
    """While the server waits for it to see the refusal; and more is unread than a buffer takes."""
    server = serve_at()
    with server.client() as client:
        client.send(b"BAD\r\n\r\n")
        assert select.select([client.socket], [], [], TIMEOUT_S)[0]
        descriptors = server.descriptors()
        with server.standing_still():
            client.send(b"x" * 50_000)
            client.send(b"x" * 50_000)
            leave(client)
        wait_for_end(server, descriptors - 1)


def has_more_to_say(client):
    client.send(HEALTHZ)


def says_no_more(client):
    client.finish_sending()


def says_something_urgent(client):
    client.socket.send(b"!", socket.MSG_OOB)
    client.send(HEALTHZ)


def says_much_and_no_more(client):
    client.send(HEALTHZ * 17)
    client.socket.send(b"!", socket.MSG_OOB)
    client.finish_sending()


@pytest.mark.parametrize("then", [has_more_to_say, says_no_more, says_something_urgent,
                                  says_much_and_no_more])
def test_waiting_for_the_disk_costs_no_processor(serve_at, then):
    """Whatever the client does in the meantime, in which it is not listened to."""
    server = serve_at(**inject("delay_enter=1000000"))
    with server.client() as client:
        client.send(sets(0, 1))
        wait_until(lambda: b"\tk0" in server.log(), "the write")
        used, started = server.cpu_seconds(), time.monotonic()
        then(client)
        client.reply().is_json(200, SUCCESS)
        assert server.cpu_seconds() - used < 0.5 * (time.monotonic() - started), "it spins"
        expected = {has_more_to_say: 1, says_something_urgent: 1, says_much_and_no_more: 17}
        for _ in range(expected.get(then, 0)):
            assert client.reply().body == b"ok"


@pytest.mark.parametrize("is_urgent", [False, True], ids=["", "urgent"])
def test_a_client_that_never_reads_costs_no_processor(serve_at, is_urgent):
    server = serve_at()
    with server.client() as client:
        if is_urgent:
            says_something_urgent(client)
            assert client.reply().body == b"ok"
        ask_without_reading(client, info_request("r"))
        used, started = server.cpu_seconds(), time.monotonic()
        select.select([], [], [], 1)
        assert server.cpu_seconds() - used < 0.5 * (time.monotonic() - started), "it spins"
