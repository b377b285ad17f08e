"""HTTP/1.1 over real sockets: what is a request, where it ends, and what a mistake in one costs.

Proves that the split of the bytes into segments does not matter, that replies come in the order of
their requests, that a connection persists exactly as long as both sides want, and that every way
in which two parsers could disagree about where a request ends is refused and ends the connection.
"""

import array
import itertools
import os
import random
import re
import select
import signal
import socket
import subprocess

import pytest

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    HEALTHZ,
    JSON_TYPE,
    SET_PATH,
    SUCCESS,
    TIMEOUT_S,
    Client,
    compact,
    failure,
    info_request,
    passing,
    request,
    room_info,
    set_request,
    wait_until,
)

IPPROTO_MPTCP = 262  # which Python knows from 3.10 on

HEAD_LIMIT, TARGET_LIMIT, FIELD_LIMIT, BODY_LIMIT = 16384, 8192, 100, 65536


def chunked(room, key, body):
    """A set with a chunked body."""
    head = request("POST", SET_PATH, (*ALICE_FIELDS, JSON_TYPE, ("Transfer-Encoding", "chunked")))
    return head + body % compact({"rid": room, "keyID": key})


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


# ---- where a request ends ----------------------------------------------------------------------


def test_one_byte_at_a_time(server):
    body = compact({"rid": "b", "keyID": "k"})
    wire = set_request("a", "k") + request(
        "POST", SET_PATH, (*ALICE_FIELDS, ("Transfer-Encoding", "chunked"))
    ) + b"".join(chunk(body[i : i + 5]) for i in range(0, len(body), 5))
    wire += b"0\r\nX: y\r\n\r\n" + HEALTHZ
    with server.client() as client:
        for i in range(len(wire)):
            client.send(wire[i : i + 1])
        client.reply().is_json(200, SUCCESS)
        client.reply().is_json(200, SUCCESS)
        assert client.reply().body == b"ok"


def test_the_largest_request_after_its_first_bytes(server):
    """Its buffer grows with it, to no more than any request may need."""
    fields = [*ALICE_FIELDS, JSON_TYPE, ("X-Filler", "f" * (HEAD_LIMIT - 1000))]
    body = compact({"filler": "", "rid": "large", "keyID": "k"})
    body = body.replace(b'""', b'"%s"' % (b"x" * (BODY_LIMIT - len(body))), 1)
    wire = request("POST", SET_PATH, fields, body)
    assert len(body) == BODY_LIMIT and len(wire) > BODY_LIMIT + HEAD_LIMIT - 1000
    with server.client() as client:
        client.send(wire[:10])
        assert server.ask(HEALTHZ).status == 200  # by now the first bytes have been looked at
        client.send(wire[10:])
        client.reply().is_json(200, SUCCESS)
        client.ask(info_request("large")).is_json(200, room_info("large", "c", "k"))


def test_a_hundred_requests_in_one_segment(server):
    wire, expected = b"", []
    for i in range(25):
        wire += set_request(f"r{i}", f"k{i}") + info_request(f"r{i}")
        wire += set_request(f"r{i}", "late") + request("GET", f"/{i}")
        expected += [(200, SUCCESS), (200, room_info(f"r{i}", "c", f"k{i}")), (400, ALREADY_EXISTS),
                     (404, failure("Resource not found"))]
    with server.client() as client:
        client.send(wire)
        for status, body in expected:
            client.reply().is_json(status, body)
        assert client.has_nothing()


def test_a_pipeline_longer_than_any_buffer(server):
    """2,000 requests and replies of more bytes than the server keeps of one client."""
    padding = b" " * 2000
    one = request("POST", SET_PATH, ALICE_FIELDS, padding + b"{}")
    expected = failure("Match error: Expected string, got undefined")
    with server.client() as client:
        sender = client.socket.dup()
        sent = 0
        for _ in range(20):
            sender.sendall(one * 100)
            sent += 100
            for _ in range(100):
                client.reply().is_json(400, expected)
        sender.close()
    assert sent == 2000


def test_keep_alive_for_many_requests(server):
    with server.client() as client:
        for i in range(300):
            reply = client.ask(info_request(f"r{i}"))
            reply.is_json(200, room_info(f"r{i}", "c"))
            assert reply.field("Connection") is None


def test_the_date_goes_on(server):
    first = server.ask(HEALTHZ).field("Date")
    wait_until(lambda: server.ask(HEALTHZ).field("Date") != first, "the next second")


def test_empty_lines_before_a_request_are_passed_over(server):
    """RFC 9112, 2.2: clients of old send one after a body."""
    with server.client() as client:
        client.send(b"\r\n" + HEALTHZ)
        assert client.reply().body == b"ok"


@pytest.mark.parametrize(
    "body",
    [
        b"%x\r\n%%s\r\n0\r\n\r\n",
        b"%X\r\n%%s\r\n0\r\n\r\n",
        b"00000%x\r\n%%s\r\n0000\r\n\r\n",
        b"%x;name=value\r\n%%s\r\n0;last\r\n\r\n",
        b'%x;a="b;c";d\r\n%%s\r\n0\r\n\r\n',
        b"%x ; a = b\r\n%%s\r\n0\r\n\r\n",
        b"%x\r\n%%s\r\n0\r\nTrailer: value\r\nX-User-Id: mallory\r\n\r\n",
    ],
)
def test_chunked_bodies(server, body):
    size = len(compact({"rid": "r", "keyID": "k"}))
    with server.client() as client:
        client.send(chunked("r", "k", body % size) + info_request("r"))
        client.reply().is_json(200, SUCCESS)
        client.reply().is_json(200, room_info("r", "c", "k"))


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED"])
def test_a_body_in_single_bytes(server, coding):
    body = compact({"rid": "r", "keyID": "k"})
    fields = (*ALICE_FIELDS, JSON_TYPE, ("Transfer-Encoding", coding))
    wire = request("POST", SET_PATH, fields) + b"".join(chunk(bytes([byte])) for byte in body)
    server.ask(wire + b"0\r\n\r\n").is_json(200, SUCCESS)


def test_a_chunked_body_may_be_as_long_as_any(server):
    body = compact({"rid": "r", "keyID": "k"})
    body += b" " * (BODY_LIMIT - len(body))
    wire = request("POST", SET_PATH, (*ALICE_FIELDS, ("Transfer-Encoding", "chunked")))
    wire += b"".join(chunk(body[i : i + 1000]) for i in range(0, len(body), 1000)) + b"0\r\n\r\n"
    server.ask(wire).is_json(200, SUCCESS)


def test_the_longest_of_everything(server):
    """Each limit, met exactly."""
    body = compact({"rid": "r", "keyID": "k"})
    body += b" " * (BODY_LIMIT - len(body))
    server.ask(request("POST", SET_PATH, ALICE_FIELDS, body)).is_json(200, SUCCESS)
    assert server.ask(request("GET", "/".ljust(TARGET_LIMIT, "x"))).status == 404
    assert server.ask(request("GET", "/healthz", [("X", "y")] * (FIELD_LIMIT - 1))).status == 200
    bare = request("GET", "/healthz", [("X", "")])
    full = request("GET", "/healthz", [("X", "y" * (HEAD_LIMIT - len(bare)))])
    assert len(full) == HEAD_LIMIT
    assert server.ask(full).status == 200


def test_absolute_form(server):
    for target in ("http://localhost/healthz", "HTTP://example.org:80/healthz",
                   "http://h/healthz?"):
        assert server.ask(request("GET", target)).body == b"ok"
    server.ask(request("GET", "http://localhost")).is_json(404, failure("Resource not found"))
    assert server.ask(request("OPTIONS", "http://localhost/healthz")).status == 204


def test_a_body_where_none_is_needed(server):
    """A GET's body is read and dropped, never taken for the next request."""
    with server.client() as client:
        client.send(request("GET", "/healthz", (), HEALTHZ) + request("GET", "/"))
        assert client.reply().status == 200
        assert client.reply().status == 404
        assert client.has_nothing()


def test_a_post_without_a_body(server):
    server.ask(request("POST", SET_PATH, ALICE_FIELDS)).is_json(
        400, failure("Match error: Expected string, got undefined"))


# ---- how long a connection lasts ---------------------------------------------------------------


def test_http_1_0(server):
    with server.client() as client:
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n")  # not even a Host
        reply = client.reply()
        assert (reply.status, reply.body) == (200, b"ok")
        client.end()


def test_http_1_0_keep_alive(server):
    with server.client() as client:
        for value in ("keep-alive", "Keep-Alive", "foo, keep-alive"):
            client.send(f"GET /healthz HTTP/1.0\r\nConnection: {value}\r\n\r\n".encode())
            assert client.reply().field("Connection").lower() == "keep-alive"
        assert client.ask(b"GET /healthz HTTP/1.0\r\n\r\n").body == b"ok"
        client.end()


@pytest.mark.parametrize(
    "value", ["close", "Close", "foo, close", "close, foo", "keep-alive, close"]
)
def test_a_client_that_says_close(server, value):
    with server.client() as client:
        reply = client.ask(request("GET", "/healthz", [("Connection", value)]) + HEALTHZ)
        assert (reply.status, reply.field("Connection")) == (200, "close")
        client.end()  # the request behind it gets no reply


def test_higher_minor_versions_are_1_1(server):
    with server.client() as client:
        for version in ("HTTP/1.1", "HTTP/1.2", "HTTP/1.9"):
            reply = client.ask(request("GET", "/healthz", version=version))
            assert (reply.status, reply.field("Connection")) == (200, None)


def test_a_client_that_closes_its_half_still_gets_its_replies(server):
    with server.client() as client:
        client.send(set_request("r", "k") + info_request("r") + HEALTHZ)
        client.finish_sending()
        client.reply().is_json(200, SUCCESS)
        client.reply().is_json(200, room_info("r", "c", "k"))
        assert client.reply().body == b"ok"
        client.end()


@pytest.mark.parametrize("part", [b"", HEALTHZ[:1], HEALTHZ[:-1], set_request("r", "k")[:-1]])
def test_a_client_that_closes_its_half_inside_a_request(server, part):
    """What was asked in full is answered; what was not never happens."""
    with server.client() as client:
        client.send(HEALTHZ + part)
        client.finish_sending()
        assert client.reply().body == b"ok"
        rest = b""
        while data := client.socket.recv(65536):
            rest += data
        assert rest == b"" or rest.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 "))
    assert server.info("r").body == room_info("r", "c")


def test_a_client_that_closes_its_half_after_too_much_reads_its_reply(serve, tmp_path):
    """More than the server has read when it refuses, and nothing more to come: closing then would
    reset the connection, and the reset overtake the reply."""
    server = serve(listen=[f"unix:{tmp_path / 'socket'}"])
    with server.client() as client:
        with server.standing_still():
            client.send(b"BAD\r\n\r\n" + b"x" * 150_000)
            client.finish_sending()
        wait_until(lambda: server.ask(HEALTHZ).body == b"ok", "the others to be served")
        assert client.reply().status == 400
        client.end()


def test_an_end_right_behind_a_request(server):
    """Both are there before the server looks: the end, too, is seen at once."""
    with server.client() as client:
        with server.standing_still():
            client.send(HEALTHZ)
            client.finish_sending()
        assert client.reply().body == b"ok"
        client.end()


# ---- what a recv leaves behind -----------------------------------------------------------------
#
# A recv may stop before the end of what is there although it has room for more. The server stands
# still while the bytes arrive, so that they are all there when it looks; nothing comes afterwards
# that could make it look again.


def send_urgent(client):
    """Sends a byte that is no part of the stream; a recv stops where it stands."""
    client.socket.send(b"!", socket.MSG_OOB)


def with_descriptor(client, data):
    """Sends bytes with a descriptor, after which a recv stops."""
    with open("/dev/null", "rb") as file:
        client.socket.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])


def of_another_process(client, data):
    """Sends bytes that are another process's: a recv does not join them to ours where it could be
    asked whose they are (SO_PASSCRED)."""
    program = "import os, sys; os.write(1, sys.stdin.buffer.read())"
    subprocess.run(["/usr/bin/python3", "-I", "-c", program], input=data,
                   stdout=client.socket.fileno(), check=True, timeout=TIMEOUT_S)


@pytest.fixture(name="unix")
def _unix(serve, tmp_path):
    """A server on a Unix socket."""
    return serve(listen=[f"unix:{tmp_path / 'socket'}"])


def test_an_urgent_byte_inside_a_request(server):
    with server.client() as client:
        with server.standing_still():
            client.send(HEALTHZ[:9])
            send_urgent(client)
            client.send(HEALTHZ[9:])
        assert client.reply().body == b"ok"
        assert client.ask(HEALTHZ).body == b"ok"


@pytest.mark.parametrize("first", [b"", HEALTHZ, set_request("r", "k"), HEALTHZ * 20],
                         ids=["nothing", "a read", "a set", "more than a pass takes"])
def test_an_urgent_byte_between_requests(server, first):
    with server.client() as client:
        for _ in range(3):
            with server.standing_still():
                client.send(first)
                send_urgent(client)
                client.send(HEALTHZ)
            for _ in range(first.count(b" HTTP/1.1")):
                assert client.reply().status in (200, 400)
            assert client.reply().body == b"ok"
        assert client.has_nothing()


def test_an_urgent_byte_alone(server):
    with server.client() as client:
        used = server.cpu_seconds()
        send_urgent(client)
        select.select([client.socket], [], [], 0.5)
        assert server.cpu_seconds() - used < 0.25, "it spins"
        assert client.ask(HEALTHZ).body == b"ok"


def test_an_urgent_byte_to_a_server_that_stops(server):
    """It says in its last reply that it is the last: the one behind the urgent byte."""
    with server.client() as client:
        assert client.ask(HEALTHZ).body == b"ok"
        with server.standing_still():
            client.send(HEALTHZ)
            send_urgent(client)
            client.send(HEALTHZ)
            server.send_signal(signal.SIGTERM)
        assert client.reply().field("Connection") is None
        assert client.reply().field("Connection") == "close"
        client.end()


def test_an_urgent_byte_after_a_mistake(server):
    """What a refused client still sends is read to its end. To close before that would be a reset,
    and a reset may overtake the reply."""
    with server.client() as client:
        client.send(b"BAD\r\n\r\n")
        assert select.select([client.socket], [], [], TIMEOUT_S)[0]  # so it waits for our end
        descriptors = server.descriptors()
        with server.standing_still():
            client.send(b"x" * 1000)
            send_urgent(client)
            client.send(b"x" * 1000)
        wait_until(lambda: server.descriptors() < descriptors, "the connection to be closed")
        assert client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "it was reset"
        assert client.reply().status == 400
        client.end()


@pytest.mark.parametrize("first", [HEALTHZ, set_request("r", "k"), HEALTHZ[:9]],
                         ids=["a read", "a set", "a part"])
def test_a_descriptor_with_a_request(unix, first):
    """It is dropped, whether it comes with a whole request or not."""
    rest = HEALTHZ[9:] if first == HEALTHZ[:9] else HEALTHZ
    with unix.client() as client:
        assert client.ask(HEALTHZ).body == b"ok"
        descriptors = unix.descriptors()
        for _ in range(3):
            with unix.standing_still():
                with_descriptor(client, first)
                with_descriptor(client, rest)
                client.send(HEALTHZ)
            for _ in range(2 + (rest == HEALTHZ)):
                assert client.reply().status in (200, 400)
        assert client.has_nothing()
        assert unix.descriptors() == descriptors, "it keeps what it was passed"


def test_requests_of_two_processes(serve, tmp_path):
    """A connection that two processes share, to a manager's socket that is to tell who sends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = serve.launch(listen=[], **passing(listener)).wait_ready()
        with server.client() as client:
            with server.standing_still():
                client.send(HEALTHZ)
                of_another_process(client, set_request("r", "k"))
                client.send(HEALTHZ)
            assert [client.reply().status for _ in range(3)] == [200, 200, 200]


def test_a_listener_that_waits_for_more_bytes_than_a_request_has(serve):
    """SO_RCVLOWAT, which connections inherit: no event tells of fewer bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
        server = serve.launch(listen=[], **passing(listener)).wait_ready()
        assert server.ask(HEALTHZ).body == b"ok"


def mptcp_listener():
    """A listener of the protocol that uses several paths as one connection, or None."""
    listener = None
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return listener
    except OSError:
        if listener:
            listener.close()
        return None


class AnyTransport:
    """A client that sends in every way that its socket has, in an order that chance decides."""

    def __init__(self, chance, server, kind, names):
        self.chance, self.server, self.kind, self.names = chance, server, kind, names
        if kind == "mptcp":
            self.client = Client.__new__(Client)
            self.client.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
            self.client.socket.settimeout(TIMEOUT_S)
            self.client.socket.connect(server.address)
            self.client.buffer = b""
        else:
            self.client = server.client()

    def request(self):
        """A request and its reply."""
        name = f"room-{next(self.names)}"
        padding = b" " * self.chance.choice([0, 0, 0, 1, 50, 4000, 12_000])
        body = padding + compact({"rid": name, "keyID": "k"})
        half = self.chance.randrange(1, len(body))
        return self.chance.choice([
            (HEALTHZ, 200, b"ok"),
            (info_request(name), 200, room_info(name, "c")),
            (request("POST", SET_PATH, ALICE_FIELDS, body), 200, SUCCESS),
            (request("POST", SET_PATH, (*ALICE_FIELDS, ("Transfer-Encoding", "chunked")))
             + chunk(body[:half]) + chunk(body[half:]) + b"0\r\n\r\n", 200, SUCCESS),
        ])

    def send(self, requests):
        """Sends requests in pieces, many of which end with a request. Of urgent bytes the kernel
        knows one at a time: an earlier one that is not passed yet becomes a part of the stream. So
        there is one at most, and not last."""
        data, ends = b"".join(requests), list(itertools.accumulate(map(len, requests)))
        cuts = set(self.chance.sample(range(1, len(data)), self.chance.randrange(4)))
        cuts = sorted(cuts | {end for end in ends[:-1] if self.chance.random() < 0.6})
        pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)])]
        urgent = self.chance.randrange(len(pieces)) if self.chance.random() < 0.6 else None
        for number, piece in enumerate(pieces):
            if number == urgent and self.kind in ("tcp", "unix"):
                send_urgent(self.client)
            if self.kind.startswith("unix") and self.chance.random() < 0.3:
                with_descriptor(self.client, piece)
            else:
                self.client.send(piece)

    def turn(self):
        """Sends some requests, mostly while the server does not look, and reads the replies."""
        requests = [self.request() for _ in range(self.chance.randrange(1, 5))]
        wires = [wire for wire, _, _ in requests]
        if self.chance.random() < 0.8:
            with self.server.standing_still():
                self.send(wires)
        else:
            self.send(wires)
        for wire, status, body in requests:
            reply = self.client.reply()
            assert (reply.status, reply.body) == (status, body), wire[:100]


@pytest.mark.parametrize("kind", ["tcp", "unix", "unix without urgent data", "mptcp"])
def test_whatever_a_recv_leaves_behind(serve, tmp_path, kind):
    """Any order of requests, pieces of them, urgent bytes and descriptors: every reply comes."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    if kind == "mptcp":
        with mptcp_listener() or pytest.skip("no MPTCP here") as listener:
            server = serve.launch(listen=[], **passing(listener)).wait_ready()
    elif kind == "tcp":
        server = serve()
    else:
        server = serve(listen=[f"unix:{tmp_path / 'socket'}"])
    names, before = itertools.count(), None
    for _ in range(3):
        one = AnyTransport(chance, server, kind, names)
        with one.client as client:
            for _ in range(25):
                one.turn()
            assert client.has_nothing()
            before = before or server.descriptors()
            assert server.descriptors() == before, "it keeps what it was passed"
        wait_until(lambda: server.descriptors() < before, "the connection to be closed")


# ---- Expect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["100-continue", "100-Continue"])
def test_a_client_that_waits_for_the_go_ahead(server, value):
    wire = request("POST", SET_PATH, (*ALICE_FIELDS, ("Expect", value)),
                   compact({"rid": value, "keyID": "k"}))
    head, body = wire.split(b"\r\n\r\n", 1)
    with server.client() as client:
        client.send(head + b"\r\n\r\n")
        assert client.head() == b"HTTP/1.1 100 Continue"
        assert client.has_nothing()
        client.send(body)
        client.reply().is_json(200, SUCCESS)
        assert client.ask(HEALTHZ).body == b"ok"


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_client_that_does_not_wait(server, coding):
    """The 100 may be left out once the body is there; if it is sent, it comes first and once."""
    body = compact({"rid": "r", "keyID": "k"})
    fields = (*ALICE_FIELDS, ("Expect", "100-continue"))
    if coding == "length":
        wire = request("POST", SET_PATH, fields, body)
    else:
        wire = request("POST", SET_PATH, (*fields, ("Transfer-Encoding", "chunked")))
        wire += chunk(body) + b"0\r\n\r\n"
    with server.client() as client:
        client.send(wire + HEALTHZ)
        first = client.head()
        if first != b"HTTP/1.1 100 Continue":
            client.buffer = first + b"\r\n\r\n" + client.buffer
        client.reply().is_json(200, SUCCESS)
        assert client.reply().body == b"ok"


def test_the_go_ahead_waits_for_its_turn(server):
    """The 100 comes behind the replies to earlier requests, the set's among them."""
    late = request("POST", SET_PATH, (*ALICE_FIELDS, ("Expect", "100-continue")), b"{}")[:-2]
    with server.client() as client:
        client.send(set_request("r", "k") + info_request("r") + late)
        client.reply().is_json(200, SUCCESS)
        client.reply().is_json(200, room_info("r", "c", "k"))
        assert client.head() == b"HTTP/1.1 100 Continue"
        client.send(b"{}")
        assert client.reply().status == 400


def test_http_1_0_knows_no_expectations(server):
    """RFC 9110, 10.1.1: a 1.0 client could not make sense of a 100."""
    body = compact({"rid": "r", "keyID": "k"})
    with server.client() as client:
        client.send(request("POST", SET_PATH, (*ALICE_FIELDS, ("Expect", "100-continue")), body,
                            version="HTTP/1.0"))
        client.reply().is_json(200, SUCCESS)
        client.end()


def test_nothing_to_wait_for(server):
    with server.client() as client:
        assert client.ask(request("GET", "/healthz", [("Expect", "100-continue")])).body == b"ok"


# ---- mistakes ----------------------------------------------------------------------------------


def get(*lines, first="GET /healthz HTTP/1.1"):
    """A request of raw lines."""
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


HOST = "Host: h"


def post(*lines):
    return get(HOST, *lines, first=f"POST {SET_PATH} HTTP/1.1")


REFUSED = {
    # The request line.
    "no version": (get(HOST, first="GET /healthz"), 400),
    "no target": (get(HOST, first="GET  HTTP/1.1"), 400),
    "two spaces": (get(HOST, first="GET  /healthz HTTP/1.1"), 400),
    "a tab": (get(HOST, first="GET\t/healthz HTTP/1.1"), 400),
    "a space at the end": (get(HOST, first="GET /healthz HTTP/1.1 "), 400),
    "a space in the target": (get(HOST, first="GET /heal thz HTTP/1.1"), 400),
    "a space before the method": (get(HOST, first=" GET /healthz HTTP/1.1"), 400),
    "a control in the target": (get(HOST, first="GET /\x01 HTTP/1.1"), 400),
    "a raw byte in the target": (get(HOST, first="GET /\xe9 HTTP/1.1"), 400),
    "a method that is no token": (get(HOST, first="G@T /healthz HTTP/1.1"), 400),
    "a target that is no path": (get(HOST, first="GET healthz HTTP/1.1"), 400),
    "a NUL": (get(HOST, first="GET /\x00 HTTP/1.1"), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "lower-case http": (get(HOST, first="GET /healthz http/1.1"), 400),
    "HTTP/1": (get(HOST, first="GET /healthz HTTP/1"), 400),
    "HTTP/1.10": (get(HOST, first="GET /healthz HTTP/1.10"), 400),
    "HTTP/11.1": (get(HOST, first="GET /healthz HTTP/11.1"), 400),
    "HTTP/2.0": (get(HOST, first="GET /healthz HTTP/2.0"), 505),
    "HTTP/0.9": (get(HOST, first="GET /healthz HTTP/0.9"), 505),
    "HTTP/3.0": (get(HOST, first="GET /healthz HTTP/3.0"), 505),
    "target of 8193": (get(HOST, first="GET /".ljust(TARGET_LIMIT + 5, "x") + " HTTP/1.1"), 414),
    "target without end": (b"GET /" + b"x" * 20000, 414),
    # The fields.
    "no Host": (get(), 400),
    "two Hosts": (get(HOST, HOST), 400),
    "space before the colon": (get(HOST, "X : y"), 400),
    "no colon": (get(HOST, "X"), 400),
    "no name": (get(HOST, ": y"), 400),
    "obs-fold": (get(HOST, "X: y", " z"), 400),
    "obs-fold with a tab": (get(HOST, "X: y", "\tz"), 400),
    "space before the first field": (get(" " + HOST), 400),
    "a NUL in a value": (get(HOST, "X: \x00"), 400),
    "a control in a value": (get(HOST, "X: a\x08b"), 400),
    "a bare CR in a value": (get(HOST, "X: a\rb"), 400),
    "a name that is no token": (get(HOST, "X@: y"), 400),
    "bare LF after the request line": (b"GET /healthz HTTP/1.1\nHost: h\r\n\r\n", 400),
    "bare LF after a field": (b"GET /healthz HTTP/1.1\r\nHost: h\n\r\n", 400),
    "bare LF at the end": (b"GET /healthz HTTP/1.1\r\nHost: h\r\n\n", 400),
    "101 fields": (get(HOST, *["X: y"] * FIELD_LIMIT), 431),
    "head of 16 KiB and a byte": (
        get(HOST, "X: " + "y" * (HEAD_LIMIT + 1 - len(get(HOST, "X: ")))), 431),
    "head without end": (b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 40000, 431),
    # The framing.
    "length and chunked": (post("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
    "chunked and length": (post("Transfer-Encoding: chunked", "Content-Length: 5"), 400),
    "differing lengths": (post("Content-Length: 2", "Content-Length: 3"), 400),
    "differing lengths in one": (post("Content-Length: 2, 3"), 400),
    "negative length": (post("Content-Length: -1"), 400),
    "length with a sign": (post("Content-Length: +2"), 400),
    "hexadecimal length": (post("Content-Length: 0x2"), 400),
    "empty length": (post("Content-Length: "), 400),
    "length with a space": (post("Content-Length: 1 2"), 400),
    "length that is a word": (post("Content-Length: two"), 400),
    "body of 64 KiB and a byte": (post(f"Content-Length: {BODY_LIMIT + 1}"), 413),
    "length of 2**64 + 2": (post(f"Content-Length: {2**64 + 2}"), 413),
    "length of 40 digits": (post("Content-Length: " + "9" * 40), 413),
    "gzip": (post("Transfer-Encoding: gzip"), 501),
    "gzip, chunked": (post("Transfer-Encoding: gzip, chunked"), 501),
    "identity": (post("Transfer-Encoding: identity"), 501),
    "xchunked": (post("Transfer-Encoding: xchunked"), 501),
    "unknown expectation": (post("Content-Length: 2", "Expect: 200-ok"), 417),
    "too much expected": (post("Content-Length: 2", "Expect: 100-continue, x"), 417),
    "go-ahead for too much": (post("Content-Length: 99999999", "Expect: 100-continue"), 413),
    # Chunks.
    "chunk size that is none": (post("Transfer-Encoding: chunked") + b"x\r\n", 400),
    "empty chunk size": (post("Transfer-Encoding: chunked") + b"\r\n", 400),
    "chunk size with 0x": (post("Transfer-Encoding: chunked") + b"0x2\r\n{}\r\n", 400),
    "chunk size with a sign": (post("Transfer-Encoding: chunked") + b"+2\r\n{}\r\n", 400),
    "chunk size before a space": (post("Transfer-Encoding: chunked") + b" 2\r\n{}\r\n", 400),
    "chunk longer than it says": (post("Transfer-Encoding: chunked") + b"1\r\n{}\r\n", 400),
    "bare LF after a chunk size": (post("Transfer-Encoding: chunked") + b"2\n{}\r\n", 400),
    "bare LF after a chunk": (post("Transfer-Encoding: chunked") + b"2\r\n{}\n0\r\n\r\n", 400),
    "bare LF in an extension": (post("Transfer-Encoding: chunked") + b"2;a\n{}\r\n", 400),
    "chunk of 64 KiB and a byte": (post("Transfer-Encoding: chunked") + b"10001\r\n", 413),
    "chunk of 2**64 + 2": (post("Transfer-Encoding: chunked") + b"10000000000000002\r\n", 413),
    "chunks of 64 KiB and a byte": (
        post("Transfer-Encoding: chunked") + chunk(b" " * (BODY_LIMIT // 2)) * 2 + b"1\r\n", 413),
    "extension without end": (post("Transfer-Encoding: chunked") + b"1;" + b"x" * 2000, 400),
    "a trailer that is none": (post("Transfer-Encoding: chunked") + b"0\r\nx\r\n\r\n", 400),
    "trailers without end": (
        post("Transfer-Encoding: chunked") + b"0\r\n" + b"X: y\r\n" * 4000, 431),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_closed(shared, name):
    wire, status = REFUSED[name]
    with shared.client() as client:
        client.send(wire)
        reply = client.reply()
        assert reply.status == status, reply
        assert re.fullmatch(rb'\{"success":false,"error":"[^"\\]+"\}', reply.body), reply
        reply.is_json(status, reply.body)
        assert reply.field("Connection") == "close"
        client.end()


@pytest.mark.parametrize("name", ["bare LF after a field", "differing lengths", "gzip", "HTTP/2.0",
                                  "unknown expectation", "body of 64 KiB and a byte", "101 fields"])
def test_a_mistake_in_the_middle_of_a_pipeline(shared, name):
    """What was before it is answered, then the mistake, and what is behind it never happens."""
    wire, status = REFUSED[name]
    room = f"behind {name}"
    with shared.client() as client:
        client.send(HEALTHZ + info_request("r") + wire + set_request(room, "k") + HEALTHZ)
        assert client.reply().body == b"ok"
        assert client.reply().status == 200
        assert client.reply().status == status
        client.end()
    assert shared.info(room).body == room_info(room, "c")


def test_a_mistake_behind_a_set_waits_for_the_set(server):
    with server.client() as client:
        client.send(set_request("r", "k") + b"nonsense\r\n\r\n")
        client.reply().is_json(200, SUCCESS)
        assert client.reply().status == 400
        client.end()


@pytest.mark.parametrize(
    "lines", [("Content-Length: 2", "Content-Length: 2"), ("Content-Length: 2, 2",)]
)
def test_equal_lengths_twice(shared, lines):
    """RFC 9110, 8.6 leaves both ways open: refuse, or take it as one. Only these two."""
    with shared.client() as client:
        client.send(post(*lines) + b"{}" + HEALTHZ)
        reply = client.reply()
        if reply.status == 400:
            client.end()
        else:
            assert reply.status == 401
            assert client.reply().body == b"ok"


def test_chunked_in_http_1_0_is_faulty_framing(shared):
    """RFC 9112, 6.1: whatever is answered, the connection ends."""
    with shared.client() as client:
        lines = ("Transfer-Encoding: chunked", "Connection: keep-alive")
        client.send(get(*lines, first="GET / HTTP/1.0") + b"0\r\n\r\n" + HEALTHZ)
        reply = client.reply()
        assert 400 <= reply.status < 500
        assert reply.field("Connection") == "close"
        client.end()


@pytest.mark.parametrize("extra", [0, 1_000_000])
def test_a_refused_body_does_not_turn_the_reply_into_a_reset(server, extra):
    """A client that sends all of its body first still reads the 413: closing on unread data would
    make the kernel reset the connection and throw the reply away."""
    body = b" " * (BODY_LIMIT + 1 + extra)
    for _ in range(5):
        with server.client() as client:
            client.send(request("POST", SET_PATH, ALICE_FIELDS, body))
            assert client.reply().status == 413
            client.finish_sending()
            client.end()


def test_whatever_is_sent_behind_a_refused_request_is_taken(server):
    """And dropped: more than the kernel's buffers and the largest request hold."""
    with server.client() as client:
        assert client.ask(b"BROKEN\r\n\r\n").status == 400
        client.send(bytes(16 << 20))
        client.end()


def test_the_same_in_chunks(server):
    with server.client() as client:
        client.send(request("POST", SET_PATH, (*ALICE_FIELDS, ("Transfer-Encoding", "chunked"))))
        for _ in range(200):
            client.send(chunk(b" " * 4096))
        assert client.reply().status == 413
        client.finish_sending()
        client.end()


def test_the_sending_side_is_closed_at_once_after_an_error(server):
    """The reply, then the end; not only when the client has closed too."""
    with server.client() as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.reply().status == 400
        client.end()


def test_small_receive_window(server):
    """A client that takes replies in small bites gets every byte of them, in order."""
    count = 500
    with Client(server.address) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(b"".join(request("GET", f"/{i}") for i in range(count)))
        for _ in range(count):
            client.reply().is_json(404, failure("Resource not found"))
        assert client.has_nothing()
