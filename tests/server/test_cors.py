"""--cors: whose scripts a browser lets call, as the WHATWG Fetch standard reads the reply's fields.

Proves that every reply says so, the refused and the failed ones too; that nobody is named who was
not listed; and that without the option not a byte is different.
"""

import subprocess

import pytest

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    CALL_PATH,
    HEALTHZ,
    INFO_PATH,
    JSON_TYPE,
    SET_PATH,
    SUCCESS,
    STORAGE_UNAVAILABLE,
    binary,
    compact,
    inject,
    request,
)

PAGE = "https://chat.example.org"
OTHER = "http://127.0.0.1:8080"
METHODS = {SET_PATH: "POST, OPTIONS", CALL_PATH: "POST, OPTIONS",
           INFO_PATH: "GET, HEAD, OPTIONS", "/healthz": "GET, HEAD, OPTIONS"}
HEADERS = "Content-Type, X-User-Id, X-Auth-Token, X-Requested-With"


def origin(value):
    return (("Origin", value),)


def cors(reply):
    """What a reply says about origins."""
    return {name: reply.field(name) for name in sorted(reply.names())
            if name.startswith("access-control-") or name == "vary"}


def named(value):
    return {"access-control-allow-origin": value, "vary": "Origin"}


def preflight(target, page, method="POST"):
    return request("OPTIONS", target, (
        ("Origin", page), ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", "content-type,x-auth-token,x-user-id")))


def requests_of_all_kinds(fields):
    """Each with the status that it gets."""
    body = compact({"rid": "r", "keyID": "k"})
    everything = (*ALICE_FIELDS, JSON_TYPE, *fields)
    return [
        (200, request("POST", SET_PATH, everything, body)),
        (400, request("POST", SET_PATH, everything, body)),
        (400, request("POST", SET_PATH, everything, b"{")),
        (400, request("POST", CALL_PATH, everything, b"{}")),
        (415, request("POST", SET_PATH, (*ALICE_FIELDS, *fields), body).replace(
            b"X-User-Id", b"Content-Type: text/plain\r\nX-User-Id")),
        (401, request("POST", SET_PATH, (JSON_TYPE, *fields), body)),
        (200, request("GET", INFO_PATH + "?roomId=r", (*ALICE_FIELDS, *fields))),
        (200, request("HEAD", "/healthz", fields)),
        (404, request("GET", "/unknown", fields)),
        (405, request("PUT", SET_PATH, fields)),
        (413, request("POST", SET_PATH, (*fields, ("Content-Length", "65537")))),
        (400, request("POST", SET_PATH, (*fields, ("Content-Length", "x")))),
        (417, request("POST", SET_PATH, (*fields, ("Expect", "x")), body)),
        (501, request("POST", SET_PATH, (*fields, ("Transfer-Encoding", "gzip")))),
    ]


def answers(server, wires):
    """The replies to requests, each over a connection of its own."""
    replies = []
    for status, wire in wires:
        with server.client() as client:
            client.send(wire)
            replies.append(client.reply(to_head=wire.startswith(b"HEAD")))
            assert replies[-1].status == status
    return replies


def test_every_reply_to_a_listed_page(serve):
    server = serve("--cors", f"{OTHER},{PAGE}")
    for page in (PAGE, OTHER):
        wires = requests_of_all_kinds(origin(page))
        for reply in answers(server, wires if page == PAGE else wires[1:]):
            assert cors(reply) == named(page)


def test_every_reply_to_everybody_else(serve):
    server = serve("--cors", PAGE)
    strangers = ["https://chat.example.com", "http://chat.example.org", PAGE + ":8443", PAGE + "/",
                 "https://chat.example.org.evil.example", "https://chat.example.or", "null", "*", "",
                 f"{PAGE} {PAGE}", f"{PAGE},{PAGE}"]
    for number, fields in enumerate([(), *map(origin, strangers), origin(PAGE) + origin(PAGE)]):
        wires = requests_of_all_kinds(fields)
        for reply in answers(server, wires[min(number, 1):]):
            assert cors(reply) == {"vary": "Origin"}


def test_any_page(serve):
    server = serve("--cors", "*")
    star = {"access-control-allow-origin": "*"}
    for number, fields in enumerate([(), origin(PAGE), origin("null"), origin(PAGE) * 2]):
        wires = requests_of_all_kinds(fields)
        for reply in answers(server, wires[min(number, 1):]):
            assert cors(reply) == star


def test_off(server):
    """As if the request had no Origin, to the byte (but for the Date)."""
    wires = [requests_of_all_kinds(fields)[1:] for fields in ((), origin(PAGE))]
    server.set("r", "k").is_json(200, SUCCESS)
    without, with_origin = (answers(server, each) for each in wires)
    for one, other in zip(without, with_origin):
        assert (one.names(), one.body) == (other.names(), other.body)
        assert cors(one) == cors(other) == {}
    assert cors(server.ask(preflight(SET_PATH, PAGE))) == {}


@pytest.mark.parametrize("target", METHODS)
def test_preflight(serve, target):
    server = serve("--cors", PAGE)
    reply = server.ask(preflight(target, PAGE))
    assert (reply.status, reply.body) == (204, b"")
    assert cors(reply) == {**named(PAGE), "access-control-allow-headers": HEADERS,
                           "access-control-allow-methods": METHODS[target]}
    reply = server.ask(preflight(target, OTHER))
    assert (reply.status, cors(reply)) == (204, {"vary": "Origin"})


def test_preflight_of_any_page_and_of_no_path(serve):
    server = serve("--cors", "*")
    assert cors(server.ask(preflight(SET_PATH, PAGE)))["access-control-allow-origin"] == "*"
    assert server.ask(preflight("/unknown", PAGE)).status == 404


def test_case_does_not_count(serve):
    """Browsers write an origin in lower case and compare it byte by byte with what comes back."""
    server = serve("--cors", "HTTPS://Chat.Example.ORG")
    assert cors(server.ask(request("GET", "/healthz", origin(PAGE)))) == named(PAGE)
    assert cors(server.ask(request("GET", "/healthz", origin(PAGE.upper())))) == named(PAGE)


def test_requests_of_one_connection(serve):
    """Each reply names the page of its own request."""
    server = serve("--cors", f"{PAGE},{OTHER}")
    with server.client() as client:
        for page in (PAGE, None, OTHER, "null", PAGE):
            reply = client.ask(request("GET", "/healthz", origin(page) if page else ()))
            expected = named(page) if page in (PAGE, OTHER) else {"vary": "Origin"}
            assert cors(reply) == expected


@pytest.mark.parametrize("listed", ["*", PAGE])
def test_no_disk(serve, listed):
    """Also the reply that replaces one which was never sent."""
    server = serve("--cors", listed, **inject("error=EIO:when=2+"))
    server.expected_stderr, server.expected_exit = "keys.log", 1
    fields, body = (*ALICE_FIELDS, *origin(PAGE)), compact({"rid": "r", "keyID": "k"})
    server.set("before", "key").is_json(200, SUCCESS)
    for _ in range(2):
        reply = server.ask(request("POST", SET_PATH, fields, body))
        reply.is_json(503, STORAGE_UNAVAILABLE)
        assert reply.field("Access-Control-Allow-Origin") == listed
    server.stop()


def test_too_many_connections(serve):
    server = serve("--cors", "*", "--max-connections", "1")
    with server.client() as first:
        assert first.ask(HEALTHZ).status == 200
        with server.client() as second:
            reply = second.reply()
            assert (reply.status, cors(reply)) == (503, {"access-control-allow-origin": "*"})


def test_set_once_for_two_pages(serve):
    server = serve("--cors", f"{PAGE},{OTHER}")
    body = compact({"rid": "r", "keyID": "k"})
    ask = lambda page: server.ask(request("POST", SET_PATH, (*ALICE_FIELDS, *origin(page)), body))
    ask(PAGE).is_json(200, SUCCESS)
    ask(OTHER).is_json(400, ALREADY_EXISTS)


@pytest.mark.parametrize("listed", [
    "", ",", f"{PAGE},,{OTHER}", f",{PAGE}", "chat.example.org", "//chat.example.org", "null",
    "ftp://chat.example.org", "https://", "https://:443", PAGE + "/", PAGE + ":", PAGE + ":x",
    PAGE + "/path", PAGE + "?x", "https://user@chat.example.org", "https://*.example.org",
    "https://*", f"*,{PAGE}", f"{PAGE},*", f"{PAGE} {OTHER}", f"{PAGE}, {OTHER}", "https://[::1",
    "https://" + "x" * 300,
])
def test_bad_lists(tmp_path, listed):
    done = subprocess.run(
        [binary(), "--data", tmp_path, "--cors", listed], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("roomkeyd: --cors: not ")
    assert f"'{listed}'" in done.stderr.splitlines()[0]


@pytest.mark.parametrize("listed", [
    "http://localhost", "http://127.0.0.1:1", "http://[::1]:8080", "https://xn--bcher-kva.example",
    "https://" + "x" * 253 + ":65535", ",".join(f"https://h{n}.example" for n in range(100)),
])
def test_good_lists(serve, listed):
    server = serve("--cors", listed)
    for page in listed.split(","):
        reply = server.ask(preflight(SET_PATH, page))
        assert cors(reply)["access-control-allow-origin"] == page
