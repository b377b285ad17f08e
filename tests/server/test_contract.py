"""Every outcome of the endpoints: exact status, exact body, exact media type, in the exact order.

Proves that each check answers as the README's tables say, that the first failing check wins
whatever else is wrong with the request, and that any room and key ID that may exist is set once and
read back as it was sent.
"""

import gzip
import json
import re

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    BOB_FIELDS,
    CALL_PATH,
    HEALTHZ,
    INFO_PATH,
    INVALID_ROOM,
    JSON_TYPE,
    ROOMS,
    SET_PATH,
    SUCCESS,
    UNAUTHORIZED,
    USERS,
    compact,
    failure,
    hash_token,
    info_request,
    request,
    room_info,
    set_request,
)

UNSUPPORTED = failure(
    "Content-Type must be application/json [error-unsupported-media-type]",
    "error-unsupported-media-type",
)
CODED = failure(
    "Content-Encoding must be identity [error-unsupported-content-encoding]",
    "error-unsupported-content-encoding",
)
INVALID_KEY_ID = failure(
    "Invalid key ID: 1 to 255 bytes, no NUL [error-invalid-key-id]", "error-invalid-key-id"
)
NO_ROOM_ID = failure(
    'The parameter "roomId" or "roomName" is required [error-roomid-param-not-provided]',
    "error-roomid-param-not-provided",
)
ROOM_NOT_FOUND = failure(
    'The required "roomId" or "roomName" param provided does not match any channel '
    "[error-room-not-found]",
    "error-room-not-found",
)
NOT_FOUND = failure("Resource not found")
NOT_ALLOWED = failure("Method Not Allowed")


def match_error(got):
    return failure(f"Match error: Expected string, got {got}")


def post(body, fields=ALICE_FIELDS, media_type=JSON_TYPE):
    """A set with any body."""
    if not isinstance(body, bytes):
        body = compact(body)
    return request("POST", SET_PATH, (*fields, media_type) if media_type else fields, body)


def get(query, fields=ALICE_FIELDS):
    """A rooms.info with any query."""
    return request("GET", INFO_PATH + query, fields)


# ---- setting a key ID --------------------------------------------------------------------------


def test_set_once_and_read_back(server):
    assert server.info("room").body == room_info("room", "c")
    server.set("room", "key").is_json(200, SUCCESS)
    server.info("room").is_json(200, room_info("room", "c", "key"))
    server.set("room", "other").is_json(400, ALREADY_EXISTS)
    server.set("room", "key").is_json(400, ALREADY_EXISTS)  # the same value again counts as one
    server.info("room").is_json(200, room_info("room", "c", "key"))


def test_the_same_through_a_library(server):
    url = "http://%s:%d" % server.address
    headers = dict(ALICE_FIELDS)
    first, second = (
        requests.post(url + SET_PATH, json={"rid": "r", "keyID": "k"}, headers=headers, timeout=60)
        for _ in range(2)
    )
    assert (first.status_code, first.json()) == (200, {"success": True})
    assert (second.status_code, second.content) == (400, ALREADY_EXISTS)
    third = requests.get(url + INFO_PATH, params={"roomId": "r"}, headers=headers, timeout=60)
    assert third.json() == {"room": {"_id": "r", "t": "c", "e2eKeyId": "k"}, "success": True}


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ALICE_FIELDS[:1],
        ALICE_FIELDS[1:],
        (ALICE_FIELDS[0], BOB_FIELDS[1]),
        (("X-User-Id", "nobody"), ALICE_FIELDS[1]),
        (("X-User-Id", "Alice"), ALICE_FIELDS[1]),
        (("X-User-Id", ""), ("X-Auth-Token", "")),
        (ALICE_FIELDS[0], ("X-Auth-Token", "")),
        (ALICE_FIELDS[0], ("X-Auth-Token", "token-of-alic")),
        (ALICE_FIELDS[0], ("X-Auth-Token", "token-of-alicee")),
        (ALICE_FIELDS[0], ("X-Auth-Token", hash_token("token-of-alice"))),
        (*ALICE_FIELDS, ALICE_FIELDS[0]),
        (*ALICE_FIELDS, ALICE_FIELDS[1]),
        (*ALICE_FIELDS, *BOB_FIELDS),
        (ALICE_FIELDS[0], ("X-Auth-Token", "x" * 10000)),
    ],
)
@pytest.mark.parametrize("door", [lambda fields: post({"rid": "never", "keyID": "k"}, fields),
                                  lambda fields: get("?roomId=never", fields)])
def test_unauthorized(shared, fields, door):
    shared.ask(door(fields)).is_json(401, UNAUTHORIZED)
    assert shared.info("never").body == room_info("never", "c")


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_field_names_in_any_case_and_white_space_around_values(shared, spell):
    fields = [(spell(name), f" \t{value}\t ") for name, value in ALICE_FIELDS]
    shared.ask(get(f"?roomId={spell('r')}", fields)).is_json(200, room_info(spell("r"), "c"))


@pytest.mark.parametrize(
    "value",
    ["application/json", "Application/JSON", "application/json; charset=utf-8",
     "application/json;charset=latin1", "application/json ; a=b; c=\"d\"", None],
)
def test_media_types_that_are_json(server, value):
    media_type = value and ("Content-Type", value)
    server.ask(post({"rid": "r", "keyID": "k"}, media_type=media_type)).is_json(200, SUCCESS)


@pytest.mark.parametrize(
    "value",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/jso", "",
     "application/json-patch+json", "xapplication/json", "application", "multipart/form-data"],
)
def test_media_types_that_are_not(shared, value):
    reply = shared.ask(post({"rid": "r", "keyID": "k"}, media_type=("Content-Type", value)))
    reply.is_json(415, UNSUPPORTED)


def coding(*values):
    return tuple(("Content-Encoding", value) for value in values)


@pytest.mark.parametrize("values", [("identity",), ("Identity",), ("IDENTITY",), ("",), ()])
def test_bodies_that_are_not_coded(server, values):
    fields = (*ALICE_FIELDS, *coding(*values))
    server.ask(post({"rid": "r", "keyID": "k"}, fields)).is_json(200, SUCCESS)
    call = request("POST", CALL_PATH, fields, b"{}")
    server.ask(call).is_json(400, match_error("undefined"))


@pytest.mark.parametrize("values", [
    ("gzip",), ("x-gzip",), ("deflate",), ("br",), ("identit",), ("identity, gzip",),
    ("gzip, identity",), ("identity, identity",), ("identity", "identity"), ("identity", "gzip"),
    ("", "gzip"), (",",), ("*",)])
@pytest.mark.parametrize("body", [compact({"rid": "never", "keyID": "k"}), b"",
                                  gzip.compress(compact({"rid": "never", "keyID": "k"}))],
                         ids=["plain", "empty", "gzip"])
def test_bodies_that_are_coded(shared, values, body):
    """Or are said to be, which is the same: nobody can tell who is right."""
    for path in (SET_PATH, CALL_PATH):
        for fields in ((JSON_TYPE,), ()):
            reply = shared.ask(request(
                "POST", path, (*ALICE_FIELDS, *fields, *coding(*values)), body))
            reply.is_json(415, CODED)
            assert reply.field("Accept-Encoding") == "identity"
    assert shared.info("never").body == room_info("never", "c")


def test_a_coding_where_there_is_no_body(shared):
    for data in (HEALTHZ, info_request("r"), request("OPTIONS", SET_PATH)):
        with_coding = data.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        coded, plain = shared.ask(with_coding), shared.ask(data)
        assert (coded.status, coded.body) == (plain.status, plain.body)
        assert coded.field("Accept-Encoding") is None


# The body, and where its offending byte is.
INVALID_JSON = [
    (b" ", 1),
    (b"{", 1),
    (b"}", 0),
    (b"nul", 3),
    (b"nulx", 3),
    (b"truefalse", 4),
    (b"{} {}", 3),
    (b"{}x", 2),
    (b"[1,,3]", 3),
    (b"[1,]", 3),
    (b'{"a"}', 4),
    (b'{"a":1,}', 7),
    (b'{a:1}', 1),
    (b"{'a':1}", 1),
    (b'{"a" 1}', 5),
    (b'{1:1}', 1),
    (b"01", 1),
    (b"-", 1),
    (b"1.", 2),
    (b".5", 0),
    (b"+1", 0),
    (b"1e", 2),
    (b"1e+", 3),
    (b"0x1", 1),
    (b"NaN", 0),
    (b'"abc', 4),
    (b'"\t"', 1),
    (b'"\x00"', 1),
    (b'{}\x00', 2),
    (b"\xef\xbb\xbf{}", 0),
    (b"\x0c{}", 0),
    (b"// x", 0),
    (rb'"\x"', 2),
    (rb'"\u12g4"', 5),
    (b'"\xff"', 1),
    (b'"\x80"', 1),
    (b"[" * 65 + b"]" * 65, 64),
    (b'{"rid":"r","keyID":"k"]', 22),
    (b'{"rid":"r","keyID":"k"', 22),
]

# The same, where more than one byte could be called the offending one.
INVALID_JSON_SOMEWHERE = [
    b'"\xc0\xaf"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"\xe2\x82"',
    b"[" * 30000,
    b'[{"a":' * 9000,
]


# Grammatical, but no character: an error in the two strings that are used, at its own offset.
LONE_SURROGATES = [
    (rb'{"rid":"\ud800","keyID":"k"}', 8),
    (rb'{"rid":"ab\ud83d","keyID":"k"}', 10),
    (rb'{"rid":"\ud83d\ud83d\udd11","keyID":"k"}', 8),
    (rb'{"rid":"\ud83d\u0041","keyID":"k"}', 8),
    (rb'{"rid":"\udd11\ud83d","keyID":"k"}', 8),
    (rb'{"rid":"\ud83d\udd11\udd11","keyID":"k"}', 20),
    (rb'{"rid":"r","keyID":"\ude00"}', 20),
    (rb'{"rid":5,"keyID":"\ude00"}', 18),  # check 3 comes before check 4
    (rb'{"rid":"\ud800","keyID":"\ud800"}', 8),
    (rb'{"keyID":"\ud800","rid":"\ud800"}', 10),
]


def invalid_json_at(reply):
    """Asserts that this is the refusal of a body, and returns the offset it names."""
    match = re.fullmatch(r"Invalid JSON: ([^\"\\]+) at byte (\d+) \[error-invalid-json\]",
                         json.loads(reply.body)["error"])
    assert match, reply
    reply.is_json(400, failure(match[0], "error-invalid-json"))
    return int(match[2])


@pytest.mark.parametrize("body,offset", INVALID_JSON, ids=[repr(b)[:30] for b, _ in INVALID_JSON])
def test_invalid_json(shared, body, offset):
    assert invalid_json_at(shared.ask(post(body))) == offset


@pytest.mark.parametrize("body,offset", LONE_SURROGATES)
def test_lone_surrogates(shared, body, offset):
    assert invalid_json_at(shared.ask(post(body))) == offset


@pytest.mark.parametrize("body", INVALID_JSON_SOMEWHERE, ids=lambda body: repr(body)[:30])
def test_invalid_json_somewhere(shared, body):
    assert 0 <= invalid_json_at(shared.ask(post(body))) < len(body)


def test_nesting_too_deep_says_so(shared):
    assert b"nesting too deep" in shared.ask(post(b'{"a":' * 70)).body


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b" \t\r\n{} \n", b"[]", b"[[],{}]", b"5", b"-0.5e-10", b'"rid"', b"true", b"null",
     b"false", b'["rid","keyID"]', b"[" * 64 + b"]" * 64, b"[0" + b",0" * 31999 + b"]",
     b'{"Rid":"r","keyid":"k"}', b'{"keyID":"k"}', b'{"":"r"}', b'{"ri":"r"}', b'{"ridd":"r"}',
     b'{"x":{"rid":"r","keyID":"k"}}', b'[{"rid":"r","keyID":"k"}]', rb'"\ud800"',
     rb'{"x":"\ud83d"}', rb'{"ri\ud864":"\udd11"}'],
    ids=lambda body: repr(body)[:30],
)
def test_no_rid(shared, body):
    shared.ask(post(body)).is_json(400, match_error("undefined"))


WRONG_TYPES = [("null", "null"), ("5", "number"), ("-1.5e9", "number"), ("true", "boolean"),
               ("false", "boolean"), ("{}", "object"), ("[]", "object"), ('["r"]', "object"),
               ('{"rid":"r"}', "object")]


@pytest.mark.parametrize("value,got", WRONG_TYPES)
def test_rid_and_key_of_a_wrong_type(shared, value, got):
    shared.ask(post(b'{"rid":%s,"keyID":"k"}' % value.encode())).is_json(400, match_error(got))
    shared.ask(post(b'{"rid":"r","keyID":%s}' % value.encode())).is_json(400, match_error(got))


def test_no_key_id(shared):
    shared.ask(post({"rid": "r"})).is_json(400, match_error("undefined"))
    shared.ask(post({"rid": "r", "keyId": "k"})).is_json(400, match_error("undefined"))


@pytest.mark.parametrize("room", ["", "x" * 256, "\u00e4" * 128, "a\0b", "\0"])
def test_names_that_no_room_can_have(shared, room):
    shared.set(room, "k").is_json(400, INVALID_ROOM)


@pytest.mark.parametrize("key", ["", "x" * 256, "\U0001f511" * 64, "a\0b", "\0"])
def test_keys_that_cannot_be(shared, key):
    shared.set("r", key).is_json(400, INVALID_KEY_ID)
    assert shared.info("r").body == room_info("r", "c")


@pytest.mark.parametrize(
    "text",
    ["x", "x" * 255, "\u00e4" * 127, "\U0001f511" * 63, "*", "#", " ", "\t", "\n", "\\", "\\n", '"',
     "\x7f", "\u2028", "a/b", "-", "\r\n", "\x1b[31m"],
)
def test_ids_that_can_be(server, text):
    server.set(text, text).is_json(200, SUCCESS)
    server.info(text).is_json(200, room_info(text, "c", text))


def test_access(serve):
    server = serve(rooms=ROOMS)
    for room, room_type in (("public", "c"), ("private", "p"), ("direct", "d")):
        server.info(room).is_json(200, room_info(room, room_type))
    for room in ("private", "unknown", "*", "c"):
        server.set(room, "k", BOB_FIELDS).is_json(400, INVALID_ROOM)
        server.info(room, BOB_FIELDS).is_json(400, ROOM_NOT_FOUND)
    server.set("private", "k").is_json(200, SUCCESS)
    # An outsider does not learn that the room has a key, or that there is a room at all.
    assert server.set("private", "k", BOB_FIELDS).body == server.set("none", "k", BOB_FIELDS).body
    server.info("private", BOB_FIELDS).is_json(400, ROOM_NOT_FOUND)
    for room in ("public", "direct"):
        server.set(room, f"of {room}", BOB_FIELDS).is_json(200, SUCCESS)
        server.set(room, "k").is_json(400, ALREADY_EXISTS)
        assert server.info(room).body == server.info(room, BOB_FIELDS).body


def test_the_wildcard_is_no_room_and_yields_to_a_rooms_own_line(serve):
    server = serve(rooms="* d alice\nprivate p bob\n")
    server.set("anything", "k").is_json(200, SUCCESS)
    server.set("anything else", "k", BOB_FIELDS).is_json(400, INVALID_ROOM)
    server.set("private", "k").is_json(400, INVALID_ROOM)
    server.set("*", "k").is_json(200, SUCCESS)  # a room called *
    server.info("anything").is_json(200, room_info("anything", "d", "k"))
    server.info("new").is_json(200, room_info("new", "d"))


def test_a_user_with_several_tokens(serve):
    server = serve(users=USERS + f"alice {hash_token('second')}\n")
    for token in ("token-of-alice", "second"):
        fields = (ALICE_FIELDS[0], ("X-Auth-Token", token))
        assert server.info("r", fields).status == 200
    server.info("r", (BOB_FIELDS[0], ("X-Auth-Token", "second"))).is_json(401, UNAUTHORIZED)


def test_the_first_failing_check_answers(server):
    """A request that fails every check is mended one check at a time, in the order of the table."""
    server.set("taken", "k").is_json(200, SUCCESS)
    wrong = ("Content-Type", "text/plain")
    steps = [
        (post(b"{", coding("gzip"), wrong), 401, UNAUTHORIZED),
        (post(b"{", (*ALICE_FIELDS, *coding("gzip")), wrong), 415, UNSUPPORTED),
        (post(b"{", (*ALICE_FIELDS, *coding("gzip"))), 415, CODED),
        (post(b"{"), 400, None),
        (post(b'{"rid":1,"keyID":2}'), 400, match_error("number")),
        (post(b'{"rid":1,"keyID":null}'), 400, match_error("number")),
        (post(b'{"rid":"","keyID":null}'), 400, match_error("null")),
        (post(b'{"rid":"","keyID":""}'), 400, INVALID_ROOM),
        (post(b'{"rid":"taken","keyID":""}'), 400, INVALID_KEY_ID),
        (post(b'{"rid":"taken","keyID":"k2"}'), 400, ALREADY_EXISTS),
        (post(b'{"rid":"free","keyID":"k2"}'), 200, SUCCESS),
    ]
    with server.client() as client:
        for data, status, body in steps:
            reply = client.ask(data)
            if body is None:
                invalid_json_at(reply)
            else:
                reply.is_json(status, body)


@pytest.mark.parametrize(
    "body,room,key",
    [
        (rb'{"rid":"\u0061","keyID":"\u006b"}', "a", "k"),
        (rb'{"\u0072id":"escaped name","key\u0049D":"k"}', "escaped name", "k"),
        (rb'{"rid":"\"\\\/\b\f\n\r\t","keyID":"\u00e9"}', '"\\/\b\f\n\r\t', "\u00e9"),
        (rb'{"rid":"\ud83d\udd11","keyID":"\uD83D\uDE00"}', "\U0001f511", "\U0001f600"),
        (b'{"rid":"first","rid":"last","keyID":"a","keyID":"b"}', "last", "b"),
        (rb'{"rid":5,"rid":"mended","\u006beyID":null,"keyID":"b"}', "mended", "b"),
        (b'{"x":{"rid":"no","keyID":"no"},"rid":"outer","y":[{"rid":1}],"keyID":"k","z":null}',
         "outer", "k"),
        (b' {\r\n\t"rid" : "spaces" ,\n "keyID":\t"k" } \n', "spaces", "k"),
        (b'{"keyID":"k","rid":"other order"}', "other order", "k"),
        (b'{"rid":"\xf0\x9f\x94\x91 raw","keyID":"\xc3\xa9"}', "\U0001f511 raw", "\u00e9"),
    ],
)
def test_how_a_body_may_be_written(server, body, room, key):
    server.ask(post(body)).is_json(200, SUCCESS)
    server.info(room).is_json(200, room_info(room, "c", key))


def test_the_last_of_duplicates_counts_even_when_it_is_the_worse(shared):
    shared.ask(post(b'{"rid":"r","rid":5,"keyID":"k"}')).is_json(400, match_error("number"))
    shared.ask(post(b'{"rid":"r","keyID":"k","keyID":""}')).is_json(400, INVALID_KEY_ID)


def test_an_escape_may_be_much_longer_than_what_it_means(server):
    body = b'{"rid":"%s","keyID":"%s"}' % (rb"\u0061" * 255, rb"\u0001" * 255)
    server.ask(post(body)).is_json(200, SUCCESS)
    reply = server.info("a" * 255)
    reply.is_json(200, room_info("a" * 255, "c", "\x01" * 255))
    server.ask(post(b'{"rid":"%s","keyID":"k"}' % (rb"\u0061" * 256))).is_json(400, INVALID_ROOM)


# ---- reading it back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["", "?", "?x=y", "?roomId", "?roomId=", "?roomId=&x=y", "?roomId=a&roomId=b",
     "?roomId=a&roomId=a", "?roomId=%", "?roomId=%4", "?roomId=%zz", "?roomId=a%2", "?roomId=%%41",
     "?RoomId=a", "?roomid=a", "?xroomId=a", "?roomIds=a", "?roomId=a&roomId"],
)
def test_no_room_id(shared, query):
    shared.ask(get(query)).is_json(400, NO_ROOM_ID)


@pytest.mark.parametrize(
    "query", ["?roomId=" + "x" * 256, "?roomId=a%00b", "?roomId=%FF", "?roomId=%C0%AF",
              "?roomId=%ED%A0%80", "?roomName=general", "?roomName="]
)
def test_a_room_that_cannot_be(shared, query):
    shared.ask(get(query)).is_json(400, ROOM_NOT_FOUND)


@pytest.mark.parametrize(
    "query,room",
    [("?roomId=a", "a"), ("?x=y&roomId=a", "a"), ("?roomId=a&x=y", "a"), ("?&&roomId=a&", "a"),
     ("?roomId=a+b", "a+b"), ("?roomId=%61", "a"), ("?roomId=a%20b", "a b"), ("?roomId=a=b", "a=b"),
     ("?roomId=a?b", "a?b"), ("?roomId=%e2%82%AC", "\u20ac"), ("?roomName=x&roomId=a", "a"),
     ("?roomId=a&roomName=x", "a"), ("?roomId=%2A", "*"), ("?roomId=*", "*"),
     ("?roomId=a%26b", "a&b")],
)
def test_how_a_query_may_be_written(shared, query, room):
    shared.ask(get(query)).is_json(200, room_info(room, "c"))


def test_a_read_takes_no_part_in_setting(server):
    """The other checks of rooms.info: authentication first; a body and its type do not matter."""
    server.ask(get("", ())).is_json(401, UNAUTHORIZED)
    server.ask(
        request("GET", INFO_PATH + "?roomId=r", (*ALICE_FIELDS, ("Content-Type", "x/y")), b"{")
    ).is_json(200, room_info("r", "c"))
    assert server.log().count(b"\n") == 1, "reads must leave the log alone"


# ---- everything else ---------------------------------------------------------------------------


def test_healthz(shared):
    reply = shared.ask(HEALTHZ)
    assert (reply.status, reply.body) == (200, b"ok")
    assert reply.field("Content-Type") == "text/plain"
    assert shared.ask(request("GET", "/healthz?x=y")).body == b"ok"


@pytest.mark.parametrize(
    "target",
    ["/", "/api", "/api/v1/e2e.setRoomKeyI", SET_PATH + "/", SET_PATH + "x", "/healthz/",
     "/HEALTHZ", "/api/v1/e2e.setroomkeyid", "//healthz", "/%68ealthz", "/api/v1/./rooms.info",
     "/x/../healthz"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
def test_unknown_paths(shared, target, method):
    shared.ask(request(method, target)).is_json(404, NOT_FOUND)


ALLOWED = {
    SET_PATH: {"OPTIONS", "POST"},
    CALL_PATH: {"OPTIONS", "POST"},
    INFO_PATH: {"GET", "HEAD", "OPTIONS"},
    "/healthz": {"GET", "HEAD", "OPTIONS"},
}


def allow(reply):
    """The methods of a reply's Allow."""
    return set(reply.field("Allow").split(", "))


@pytest.mark.parametrize("target", ALLOWED)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "get"])
def test_other_methods_on_known_paths(shared, target, method):
    if method in ALLOWED[target]:
        return
    reply = shared.ask(request(method, target))
    reply.is_json(405, NOT_ALLOWED)
    assert allow(reply) == ALLOWED[target]


@pytest.mark.parametrize("target", [*ALLOWED, "*"])
def test_options(shared, target):
    with shared.client() as client:
        reply = client.ask(request("OPTIONS", target))
        assert (reply.status, reply.reason, reply.body) == (204, "No Content", b"")
        assert reply.field("Content-Type") is None
        assert allow(reply) == ALLOWED.get(target, {"GET", "HEAD", "OPTIONS", "POST"})
        assert client.ask(HEALTHZ).body == b"ok"  # and the connection is where it should be


def test_asterisk_is_for_options_alone(shared):
    assert shared.ask(request("GET", "*")).status in (400, 404, 405)


@pytest.mark.parametrize(
    "target,fields", [("/healthz", ()), (INFO_PATH + "?roomId=r", ALICE_FIELDS), (INFO_PATH, ()),
                      (INFO_PATH, ALICE_FIELDS), ("/unknown", ()), (SET_PATH, ALICE_FIELDS)]
)
def test_head_is_get_without_the_body(shared, target, fields):
    with shared.client() as client:
        head = client.ask(request("HEAD", target, fields))
        got = client.ask(request("GET", target, fields))
        assert (head.status, head.reason, head.body) == (got.status, got.reason, b"")
        same = lambda reply: [field for field in reply.fields if field[0] != "Date"]
        assert same(head) == same(got)
        assert head.field("Content-Length") == str(len(got.body))
        assert client.ask(HEALTHZ).body == b"ok"


def test_replies_carry_nothing_more_than_they_should(shared):
    """The fields of each kind of reply, so that a new one is added on purpose."""
    usual = ["cache-control", "content-length", "content-type", "date"]
    assert sorted(shared.set("fields", "k").names()) == usual
    assert sorted(shared.info("fields").names()) == usual
    assert sorted(shared.ask(request("GET", "/")).names()) == usual
    assert sorted(shared.ask(request("GET", SET_PATH)).names()) == ["allow", *usual]
    assert sorted(shared.ask(HEALTHZ).names()) == usual[1:]
    assert sorted(shared.ask(request("OPTIONS", SET_PATH)).names()) == ["allow", "date"]


def test_tokens_are_never_printed(serve):
    server = serve()
    server.set("r", "k").is_json(200, SUCCESS)
    server.set("r", "k", (ALICE_FIELDS[0], BOB_FIELDS[1])).is_json(401, UNAUTHORIZED)
    assert b"token-of" not in server.log()
    server.stop()  # and nothing at all on standard error


# ---- any ID there may be -----------------------------------------------------------------------

IDS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=255
).filter(lambda text: len(text.encode()) <= 255)


def test_any_room_and_key_are_set_once_and_read_back(shared):
    known = {}

    with shared.client() as client:

        @given(IDS, IDS, st.booleans())
        def run(room, key, ascii_only):
            body = json.dumps({"rid": room, "keyID": key}, ensure_ascii=ascii_only).encode()
            if room in known:
                client.ask(post(body)).is_json(400, ALREADY_EXISTS)
            else:
                client.ask(info_request(room)).is_json(200, room_info(room, "c"))
                client.ask(post(body)).is_json(200, SUCCESS)
                known[room] = key
            client.ask(info_request(room)).is_json(200, room_info(room, "c", known[room]))
            client.ask(set_request(room, key + "x"[: len(key.encode()) < 255])).is_json(
                400, ALREADY_EXISTS)

        run()
    assert len(known) > 50


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(
        st.characters(blacklist_categories=["Cs"])) | st.sampled_from(["rid", "keyID"]), inner,
        max_size=4),
    max_leaves=15,
)


def expected_refusal(value):
    """What a set with this JSON value as its body is told, by the README's table."""
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", list: "object",
             dict: "object"}
    value = value if isinstance(value, dict) else {}
    for name in ("rid", "keyID"):
        if name not in value:
            return match_error("undefined")
        if not isinstance(value[name], str):
            return match_error(names[type(value[name])])
    return INVALID_ROOM


def test_any_json_is_judged_by_the_table(serve):
    """No room is known, so that nothing is ever set and each body can come again."""
    server = serve(rooms="")
    with server.client() as client:

        @given(JSON_VALUES, st.booleans(), st.sampled_from([None, 0, 3]))
        def run(value, ascii_only, indent):
            text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
            client.ask(post(text)).is_json(400, expected_refusal(value))

        run()


def test_any_bytes_are_refused_or_judged(serve):
    """Whatever the body is: JSON for the server exactly if it is JSON for Python, strictly read."""
    server = serve(rooms="")
    pieces = st.sampled_from([
        b'{"rid":', b'"keyID":', b'"r"', b",", b"}", b"{", b"[", b"]", b":", b'"', b"1", b"-", b".",
        b"e5", b"null", b"true", rb"\u", rb"\ud83d", rb"\udd11", b"0041", b" ", b"\n", b"\x00",
        b"\xff", b"\xc3\xa9", b"//", b"\\",
    ])
    bodies = st.lists(pieces | st.binary(max_size=3), max_size=8).map(b"".join)

    def refuse(text):
        raise ValueError(text)

    def parse(body):
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=refuse)
        if isinstance(value, dict):
            for name in ("rid", "keyID"):
                if isinstance(value.get(name), str):
                    value[name].encode()  # raises for a lone surrogate
        return value

    with server.client() as client:

        @given(bodies.filter(bool))
        def run(body):
            reply = client.ask(post(body))
            try:
                value = parse(body)
            except ValueError:
                assert 0 <= invalid_json_at(reply) <= len(body)
            else:
                reply.is_json(400, expected_refusal(value))

        run()
