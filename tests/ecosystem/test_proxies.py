"""The real HAProxy and the real nginx in front: they and the server see the same requests.

    client --> proxy, which logs every request that it sees --> a pool of connections --> roomkeyd

Every row of test_rfc.py goes through each proxy, and behind it, on the same connection, a canary,
the question for a room of its own. Then it has to hold that

- the server set the row's room if and only if the proxy logged the set as a request of its own:
  what a proxy took for something else (a body, a field) was no request to the server;
- the replies that came back are, in order and number, those that the proxy logged for that
  connection, and a canary's reply is the last one and names the canary's room;
- a request of another client, over the same pool, gets its own reply and no leftover.

Each proxy is put to it in two ways: as it comes, and as permissive as it can be made. Needs haproxy
and nginx-light of Debian; without, it fails.
"""

import collections
import contextlib
import itertools
import re
import select
import socket
import subprocess

import pytest

from server import (
    ALICE_FIELDS,
    HEALTHZ,
    INFO_PATH,
    JSON_TYPE,
    SET_PATH,
    SUCCESS,
    TIMEOUT_S,
    UNAUTHORIZED,
    Client,
    compact,
    failure,
    info_request,
    request,
    room_info,
    set_request,
    tool,
    wait_until,
)
from test_rfc import MARKER, ROWS, SMUGGLED

# How long a proxy waits for the rest of a request: waited out by each row that has none.
PATIENCE_MS = 300

HAPROXY = """
global
    log stdout len 65535 format raw local0
    nbthread 1
defaults
    mode http
    log global
    log-format "%cp %ST %b/%s %{{+Q}}r"
    timeout connect 5s
    timeout client {patience}ms
    timeout server 2s
    timeout http-request {patience}ms
    timeout http-keep-alive 30s
    http-reuse always
    option disable-h2-upgrade
    retries 0
frontend as_it_comes
    bind 127.0.0.1:{ports[0]}
    default_backend roomkeyd
frontend permissive
    bind 127.0.0.1:{ports[1]}
    option accept-invalid-http-request
    default_backend roomkeyd
backend roomkeyd
    server one 127.0.0.1:{backend}
"""

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ }}
http {{
    log_format seen escape=none '$remote_port $status backend/$upstream_status "$request"';
    access_log {directory}/nginx.log seen;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_header_timeout {patience}ms;
    client_body_timeout {patience}ms;
    lingering_timeout {patience}ms;
    keepalive_timeout 1s;
    upstream roomkeyd {{
        server 127.0.0.1:{backend};
        keepalive 8;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_next_upstream off;
    server {{
        listen 127.0.0.1:{ports[0]};
        location / {{ proxy_pass http://roomkeyd; }}
    }}
    server {{
        listen 127.0.0.1:{ports[1]};
        ignore_invalid_headers off;
        underscores_in_headers on;
        location / {{
            proxy_pass http://roomkeyd;
            proxy_request_buffering off;
        }}
    }}
}}
"""

# A line of a proxy's log: a request as it sees it.
Seen = collections.namedtuple("Seen", "port status backend line")

numbers = itertools.count(1)


def free_ports(count):
    """Ports that are free at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Proxy:
    """A running proxy with two fronts."""

    def __init__(self, name, directory, backend):
        self.ports = free_ports(2)
        self.log = directory / f"{name}.log"
        self.log.touch()
        text = HAPROXY if name == "haproxy" else NGINX
        config = directory / f"{name}.conf"
        config.write_text(text.format(
            ports=self.ports, backend=backend, directory=directory, patience=PATIENCE_MS))
        if name == "haproxy":
            arguments = [tool("haproxy", "haproxy"), "-db", "-f", config]
        else:
            arguments = [tool("nginx", "nginx-light"), "-p", directory, "-c", config,
                         "-e", directory / "error.log"]
        with open(directory / f"{name}.out", "wb") as errors, open(self.log, "ab") as log:
            output = log if name == "haproxy" else errors
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=errors)
        self.errors = directory / f"{name}.out"

    def wait_ready(self):
        def accepts():
            assert self.process.poll() is None, f"did not start: {self.errors.read_text()}"
            try:
                for port in self.ports:
                    Client(("127.0.0.1", port)).close()
                return True
            except ConnectionRefusedError:
                return False

        wait_until(accepts, "a proxy that accepts connections")
        return self

    def log_size(self):
        return self.log.stat().st_size

    def seen(self, begin):
        """The requests that it has seen since its log was that long, in the order in which they
        ended. (Ports come round again, so older lines are no evidence.)"""
        found = []
        for text in self.log.read_bytes()[begin:].decode("latin-1").splitlines():
            match = re.match(r'(\d+) (\d+) (\S*?)/(\S*) "(.*)', text)
            if match:  # or the rest of a line that had a line end in it
                found.append(Seen(int(match[1]), int(match[2]), match[4], match[5]))
        return found

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(name="proxies", scope="module")
def _proxies(tmp_path_factory, shared):
    """Both proxies, in front of the shared server."""
    with contextlib.ExitStack() as stack:
        proxies = {}
        for name in ("haproxy", "nginx"):
            directory = tmp_path_factory.mktemp(name)
            proxies[name] = Proxy(name, directory, shared.address[1])
            stack.callback(proxies[name].stop)
            proxies[name].wait_ready()
        yield proxies


class Front:
    """One of a proxy's two doors."""

    def __init__(self, proxy, port):
        self.proxy, self.address = proxy, ("127.0.0.1", port)

    def client(self):
        return Client(self.address)


@pytest.fixture(name="front", params=[("haproxy", 0), ("haproxy", 1), ("nginx", 0), ("nginx", 1)],
                ids=["haproxy", "haproxy-permissive", "nginx", "nginx-permissive"])
def _front(proxies, request):  # pylint: disable=redefined-outer-name
    name, which = request.param
    return Front(proxies[name], proxies[name].ports[which])


# ---- the plain things --------------------------------------------------------------------------


def fresh(name):
    return f"{name}-{next(numbers)}"


def test_replies_pass_through(front):
    """Every kind of reply, many times over one connection and so over the pool."""
    with front.client() as client:
        for _ in range(20):
            room = fresh("plain")
            client.ask(set_request(room, "k")).is_json(200, SUCCESS)
            client.ask(info_request(room)).is_json(200, room_info(room, "c", "k"))
            assert client.ask(set_request(room, "k")).status == 400
            client.ask(set_request(room, "k", ())).is_json(401, UNAUTHORIZED)
            client.ask(request("GET", f"/{room}")).is_json(404, failure("Resource not found"))
            assert client.ask(HEALTHZ).body == b"ok"
            reply = client.ask(request("HEAD", "/healthz"))
            assert (reply.status, reply.field("Content-Length")) == (200, "2")
            reply = client.ask(request("OPTIONS", "/healthz"))
            assert (reply.status, reply.field("Allow")) == (204, "GET, HEAD, OPTIONS")
            assert client.ask(request("PUT", "/healthz", (), b"x")).status == 405


def test_a_chunked_upload(front):
    room = fresh("chunked")
    body = compact({"rid": room, "keyID": "k"})
    wire = request("POST", SET_PATH, (*ALICE_FIELDS, JSON_TYPE, ("Transfer-Encoding", "chunked")))
    with front.client() as client:
        client.send(wire)
        for i in range(0, len(body), 7):
            client.send(b"%x;a=b\r\n%s\r\n" % (len(body[i : i + 7]), body[i : i + 7]))
        client.send(b"0\r\n\r\n")
        client.reply().is_json(200, SUCCESS)
        client.ask(info_request(room)).is_json(200, room_info(room, "c", "k"))


def test_a_client_that_waits_for_the_go_ahead(front):
    room = fresh("expect")
    wire = request("POST", SET_PATH, (*ALICE_FIELDS, ("Expect", "100-continue")),
                   compact({"rid": room, "keyID": "k"}))
    head, body = wire.split(b"\r\n\r\n", 1)
    with front.client() as client:
        client.send(head + b"\r\n\r\n")
        assert client.head().startswith(b"HTTP/1.1 100 ")
        client.send(body)
        client.reply().is_json(200, SUCCESS)
        client.ask(info_request(room)).is_json(200, room_info(room, "c", "k"))


def test_the_longest_body(front):
    room = fresh("long")
    body = compact({"rid": room, "keyID": "k"}).ljust(65536)
    with front.client() as client:
        client.ask(request("POST", SET_PATH, ALICE_FIELDS, body)).is_json(200, SUCCESS)
    with front.client() as client:  # past the limit: the server closes, the proxy passes it on
        assert client.ask(request("POST", SET_PATH, ALICE_FIELDS, body + b" ")).status == 413


def test_the_pool_is_used(front, shared):
    """Many clients, few connections behind them; and one client's close is not the pool's."""
    for _ in range(50):
        with front.client() as client:
            room = fresh("pool")
            client.ask(info_request(room, (*ALICE_FIELDS, ("Connection", "close")))).is_json(
                200, room_info(room, "c"))
    assert shared.descriptors() < 40


# ---- the table ---------------------------------------------------------------------------------


def receive_all(client, wire, asked_last):
    """Sends wire; returns what comes until the end, or until the canary's reply."""
    received = bytearray()
    try:
        client.send(wire)
        while select.select([client.socket], [], [], TIMEOUT_S)[0]:
            data = client.socket.recv(65536)
            received += data
            if not data or received.endswith(asked_last):
                return bytes(received)
    except (BrokenPipeError, ConnectionResetError):
        return bytes(received)  # a proxy need not linger as the server does
    raise AssertionError(f"neither a reply nor an end: {bytes(received)!r}")


def take_apart(data, are_heads):
    """The statuses of all final replies in data, and the last one's body. A proxy's own replies are
    its own affair: that they are framed is all that is asked of them."""
    statuses, body = [], b""
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        assert end and match, f"no reply: {head!r}"
        status = int(match[1])
        if status < 200:
            continue
        statuses.append(status)
        length = re.search(rb"(?im)^content-length: (\d+)\r?$", head)
        is_head = are_heads(len(statuses) - 1)
        if status == 204 or is_head:
            body = b""
        elif length:
            assert len(data) >= int(length[1]), f"a body cut short: {head!r} {data!r}"
            body, data = data[: int(length[1])], data[int(length[1]) :]
        else:
            body, data = data, b""
    return statuses, body


def seen_behind(front, name, begin):
    """Waits until the log has a request of this name, which came after everything else, and returns
    what the log has from begin on."""
    with front.client() as client:
        reply = client.ask(request("GET", f"/{name}"))
        reply.is_json(404, failure("Resource not found"))

    def logged():
        seen = front.proxy.seen(begin)
        return seen if any(f"/{name} " in one.line for one in seen) else None

    return wait_until(logged, f"{name} in the log")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section}: {row.name}")
def test_same_requests(front, shared, row):
    number = f"{next(numbers):04}"
    smuggled, canary, fence = f"smuggled-{number}", f"canary-{number}", f"fence-{number}"
    wire = row.wire.replace(MARKER, smuggled.encode())
    expected = room_info(canary, "c")
    begin = front.proxy.log_size()
    with front.client() as client:
        port = client.socket.getsockname()[1]
        # No close: what is left in the proxy's or the pool's buffers would be forgiven with it.
        asked = request("GET", f"{INFO_PATH}?roomId={canary}", ALICE_FIELDS)
        data = receive_all(client, wire + asked, expected)

    seen = seen_behind(front, fence, begin)
    mine = [one for one in seen if one.port == port]
    is_head = lambda i: i < len(mine) and mine[i].line.startswith("HEAD ")
    if data and not data.startswith(b"HTTP/"):
        # nginx knows HTTP/0.9, whose replies are a body alone, and makes a proper request of it.
        assert len(mine) == 1 and " HTTP/" not in mine[0].line, mine
        statuses, body = [mine[0].status], data
    else:
        statuses, body = take_apart(data, is_head)

    # Every reply belongs to the request that it answers. A request that was given up for a client
    # that is gone, or never came, is logged without a reply: 408, 499, or HAProxy's status -1.
    logged = [one.status for one in mine]
    assert statuses == logged[: len(statuses)], (statuses, mine)
    assert len(statuses) >= len(logged) - 1, (statuses, mine)
    assert statuses == logged or logged[-1] in (400, 408, 499), (statuses, mine)
    if body == expected:
        assert canary in mine[len(statuses) - 1].line, mine
    for one in mine[:-1]:
        assert canary not in one.line, f"a request behind the canary: {mine}"

    # The server has handled no set that the proxy did not forward as one.
    forwarded = [one for one in mine if f"?{smuggled} " in one.line.split('"')[0]
                 and one.line.startswith("POST ") and one.status == 200]
    key = "key" if forwarded else None
    assert shared.info(smuggled).body == room_info(smuggled, "c", key), mine


def test_the_set_of_the_rows_works_through_a_proxy(front, shared):
    """Or else no row above could fail for it."""
    room = f"smuggled-{next(numbers):04}"
    begin = front.proxy.log_size()
    with front.client() as client:
        client.ask(SMUGGLED.replace(MARKER, room.encode())).is_json(200, SUCCESS)
    assert shared.info(room).body == room_info(room, "c", "key")
    seen = seen_behind(front, fresh("fence"), begin)
    assert any(f"?{room} " in one.line for one in seen)
