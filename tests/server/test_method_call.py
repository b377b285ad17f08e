"""The second door, POST /api/v1/method.call/e2e.setRoomKeyID: as the web client calls it.

The body's `message` is a JSON text in a string, and so is the reply's. Proves every outcome's exact
status and bytes, that both doors keep one set of rules, and that what one has set the other sees.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    BOB_FIELDS,
    CALL_PATH,
    JSON_TYPE,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    UNAUTHORIZED,
    compact,
    failure,
    inject,
    request,
    room_info,
)

METHOD = "e2e.setRoomKeyID"
DETAILS = {"details": {"method": METHOD}}
INVALID_CALL = failure("Invalid method call")


def raw_call(message, fields=(*ALICE_FIELDS, JSON_TYPE)):
    """A call with any message."""
    return request("POST", CALL_PATH, fields, compact({"message": message}))


def call(*params, fields=(*ALICE_FIELDS, JSON_TYPE), **others):
    """A call with these arguments; others change or (None) remove the message's members."""
    message = {"msg": "method", "id": "1", "method": METHOD, "params": params, **others}
    message = {name: value for name, value in message.items() if value is not None}
    return raw_call(compact(message).decode(), fields)


def result(error=None, call_id="1"):
    """The body of a reply to a call, down to the order of its keys."""
    message = {"msg": "result", "id": call_id, "error": error}
    message = {name: value for name, value in message.items() if value is not None}
    return compact({"message": compact(message).decode(), "success": error is None})


def meteor_error(error, reason, **details):
    return {"isClientSafe": True, "error": error, "reason": reason, **details,
            "message": f"{reason} [{error}]", "errorType": "Meteor.Error"}


def match_error(got):
    return {
        "message": f"Match error: Expected string, got {got}",
        "path": "",
        "sanitizedError": meteor_error(400, "Match failed"),
        "errorType": "Match.Error",
    }


KEY_EXISTS = meteor_error(
    "error-room-e2e-key-already-exists", "E2E Key ID already exists", **DETAILS
)
INVALID_ROOM = meteor_error("error-invalid-room", "Invalid room", **DETAILS)
INVALID_KEY_ID = meteor_error("error-invalid-key-id", "Invalid key ID: 1 to 255 bytes, no NUL")


def test_the_bytes_on_the_wire(server):
    """Written out once, as EJSON.stringify writes them."""
    message = r'{"message":"{\"msg\":\"result\",\"id\":\"1\"'
    server.ask(call("r", "k")).is_json(200, (message + r'}","success":true}').encode())
    server.ask(call("r", "k")).is_json(400, (
        message + r',\"error\":{\"isClientSafe\":true,'
        r'\"error\":\"error-room-e2e-key-already-exists\",\"reason\":\"E2E Key ID already exists\",'
        r'\"details\":{\"method\":\"e2e.setRoomKeyID\"},'
        r'\"message\":\"E2E Key ID already exists [error-room-e2e-key-already-exists]\",'
        r'\"errorType\":\"Meteor.Error\"}}","success":false}').encode())
    server.ask(call()).is_json(400, (
        message + r',\"error\":{\"message\":\"Match error: Expected string, got undefined\",'
        r'\"path\":\"\",\"sanitizedError\":{\"isClientSafe\":true,\"error\":400,'
        r'\"reason\":\"Match failed\",\"message\":\"Match failed [400]\",'
        r'\"errorType\":\"Meteor.Error\"},\"errorType\":\"Match.Error\"}}","success":false}').encode())
    server.ask(call("r", "k", method="nope")).is_json(400, (
        message + r',\"error\":{\"isClientSafe\":true,\"error\":404,'
        r"\"reason\":\"Method 'nope' not found\",\"message\":\"Method 'nope' not found [404]\","
        r'\"errorType\":\"Meteor.Error\"}}","success":false}').encode())


def test_both_doors_lead_to_one_room(server):
    server.ask(call("a", "key")).is_json(200, result())
    server.info("a").is_json(200, room_info("a", "c", "key"))
    server.set("a", "other").is_json(400, ALREADY_EXISTS)
    server.set("b", "key").is_json(200, SUCCESS)
    server.ask(call("b", "other")).is_json(400, result(KEY_EXISTS))
    server.ask(call("b", "key")).is_json(400, result(KEY_EXISTS))
    server.info("b").is_json(200, room_info("b", "c", "key"))


@pytest.mark.parametrize(
    "params, error",
    [
        ((), match_error("undefined")),
        ((None, "k"), match_error("null")),
        ((5, "k"), match_error("number")),
        ((True, "k"), match_error("boolean")),
        (({}, "k"), match_error("object")),
        ((["r"], "k"), match_error("object")),
        (({"$date": 0}, "k"), match_error("object")),  # what EJSON makes of it, too
        (("never",), match_error("undefined")),
        (("never", None), match_error("null")),
        (("never", 1.5), match_error("number")),
        (("never", False), match_error("boolean")),
        (("never", []), match_error("object")),
        ((5, {}), match_error("number")),  # the room comes first
        (("", "k"), INVALID_ROOM),
        (("r" * 256, "k"), INVALID_ROOM),
        (("never\0", "k"), INVALID_ROOM),
        (("", ""), INVALID_ROOM),
        (("never", ""), INVALID_KEY_ID),
        (("never", "k" * 256), INVALID_KEY_ID),
        (("never", "k\0"), INVALID_KEY_ID),
    ],
)
def test_what_the_method_refuses(shared, params, error):
    shared.ask(call(*params)).is_json(400, result(error))
    assert shared.info("never").body == room_info("never", "c")


def test_further_arguments_are_ignored(server):
    server.ask(call("r", "k", 3, [[]])).is_json(200, result())


def test_an_outsider_learns_nothing(serve):
    server = serve(rooms="private p alice\n")
    server.ask(call("private", "k")).is_json(200, result())
    for room in ("private", "unknown"):
        outside = call(room, "k", fields=(*BOB_FIELDS, JSON_TYPE))
        server.ask(outside).is_json(400, result(INVALID_ROOM))


def test_before_the_message_is_opened(shared):
    assert shared.ask(call("r", "k", fields=())).body == UNAUTHORIZED
    mixed = (ALICE_FIELDS[0], BOB_FIELDS[1], JSON_TYPE)
    shared.ask(raw_call("nonsense", mixed)).is_json(401, UNAUTHORIZED)
    text = (*ALICE_FIELDS, ("Content-Type", "text/plain"))
    assert shared.ask(raw_call("nonsense", text)).status == 415
    coded = shared.ask(raw_call("nonsense", (*ALICE_FIELDS, ("Content-Encoding", "gzip"))))
    assert (coded.status, coded.field("Accept-Encoding")) == (415, "identity")
    for body, why in ((b"{", "unexpected end at byte 1"),
                      (rb'{"message":"\ud800"}', "lone surrogate at byte 12")):
        shared.ask(request("POST", CALL_PATH, ALICE_FIELDS, body)).is_json(
            400, failure(f"Invalid JSON: {why} [error-invalid-json]", "error-invalid-json"))


@pytest.mark.parametrize("body, got", [
    (b"", "undefined"), (b"{}", "undefined"), (b"[]", "undefined"), (b'"message"', "undefined"),
    (b'{"message":null}', "null"), (b'{"message":1}', "number"), (b'{"message":true}', "boolean"),
    (b'{"message":{"msg":"method"}}', "object"), (b'{"message":[]}', "object"),
])
def test_message_is_a_string(shared, body, got):
    shared.ask(request("POST", CALL_PATH, ALICE_FIELDS, body)).is_json(
        400, failure(f"Match error: Expected string, got {got}"))


@pytest.mark.parametrize("message", [
    "", "{", "nonsense", "[]", "null", "5", '"x"', "{}", '{"method":"e2e.setRoomKeyID"}',
    '{"params":["r","k"]}', '{"method":5,"params":["r","k"]}', '{"method":null,"params":[]}',
    '{"method":"e2e.setRoomKeyID","params":{"0":"r","1":"k"}}',
    '{"method":"e2e.setRoomKeyID","params":"rk"}', '{"method":"e2e.setRoomKeyID","params":null}',
    '{"msg":"sub","method":"e2e.setRoomKeyID","params":["r","k"]}',
    '{"msg":1,"method":"e2e.setRoomKeyID","params":["r","k"]}',
    '{"id":true,"method":"e2e.setRoomKeyID","params":["r","k"]}',
    '{"id":{},"method":"e2e.setRoomKeyID","params":["r","k"]}',
    '{"id":["1"],"method":"e2e.setRoomKeyID","params":["r","k"]}',
    '{"id":%s,"method":"e2e.setRoomKeyID","params":["r","k"]}' % ("1" * 256),
    '{"id":01,"method":"e2e.setRoomKeyID","params":["r","k"]}',
    '{"id":"%s","method":"e2e.setRoomKeyID","params":["r","k"]}' % ("i" * 256),
    '{"method":"%s","params":["r","k"]}' % ("m" * 256),
    r'{"id":"\ud800","method":"e2e.setRoomKeyID","params":["r","k"]}',
    r'{"method":"e2e.setRoomKeyID","params":["\ud800","k"]}',
    r'{"method":"e2e.setRoomKeyID","params":["r","\udc00"]}',
    '{"method":"e2e.setRoomKeyID","params":["r","k"]} x',
    '{"method":"e2e.setRoomKeyID","params":["r","k"],"x":"\0"}',
    '{"method":"e2e.setRoomKeyID","params":["r","k"],"x":' + "[" * 64 + "]" * 64 + "}",
])
def test_shape_of_the_message(shared, message):
    shared.ask(raw_call(message)).is_json(400, INVALID_CALL)
    assert shared.info("r").body == room_info("r", "c")


def test_members_of_the_message(server):
    server.ask(call("a", "k", id=None)).is_json(200, result(call_id=None))
    server.ask(call("b", "k", msg=None)).is_json(200, result())
    server.ask(call("c", "k", extra=[{"id": "2"}])).is_json(200, result())
    twice = '{"id":"1","id":"2","params":0,"method":0,"method":"%s","params":["d","k"]}' % METHOD
    server.ask(raw_call(twice)).is_json(200, result(call_id="2"))
    server.ask(call("d", "k", id=None)).is_json(400, result(KEY_EXISTS, call_id=None))
    escaped = r'{"\u0069d":"\u0031","method":"e2e.set\u0052oomKeyID","params":["\u0065","\u006b"]}'
    server.ask(raw_call(escaped)).is_json(200, result())
    server.info("e").is_json(200, room_info("e", "c", "k"))


@pytest.mark.parametrize("written, repeated", [
    ("null", ""), ('""', ""), ("7", "7"), ("0", "0"), ("-0", "-0"), ("1e3", "1e3"),
    ("-1.50E+2", "-1.50E+2"), ("9007199254740993", "9007199254740993"), ("9" * 255, "9" * 255),
    ('"7"', "7"), (" 7 ", "7"),
    ('"1","id":null', ""), ('null,"id":7', "7"),
])
def test_how_a_client_may_write_its_id(server, written, repeated):
    """A number comes back as a string of the same digits, and null as an empty one; no ID as none."""
    call_with_id = raw_call('{"id":%s,"method":"%s","params":["r","k"]}' % (written, METHOD))
    server.ask(call_with_id).is_json(200, result(call_id=repeated))
    server.ask(call_with_id).is_json(400, result(KEY_EXISTS, call_id=repeated))


def test_the_bytes_of_a_call_without_an_id(server):
    message = '{"msg":"method",%s"method":"e2e.setRoomKeyID","params":["%s","k"]}'
    server.ask(raw_call(message % ("", "a"))).is_json(
        200, rb'{"message":"{\"msg\":\"result\"}","success":true}')
    server.ask(raw_call(message % ('"id":null,', "b"))).is_json(
        200, rb'{"message":"{\"msg\":\"result\",\"id\":\"\"}","success":true}')
    server.ask(raw_call(message % ('"id":7,', "c"))).is_json(
        200, rb'{"message":"{\"msg\":\"result\",\"id\":\"7\"}","success":true}')


def test_the_method_in_the_message_counts(shared):
    for name in ("", "e2e.setRoomKeyId", "e2e.resetRoomKey", "m" * 255, "%s%n%", '"\\\x01é'):
        error = meteor_error(404, f"Method '{name}' not found")
        shared.ask(call("never", "k", method=name)).is_json(400, result(error))


def test_longest_reply(shared):
    name = "\x01" * 255
    error = meteor_error(404, f"Method '{name}' not found")
    shared.ask(call(method=name, id=name)).is_json(400, result(error, call_id=name))


def test_largest_message(server):
    """Long in the body, every character of it escaped, and mostly unasked for."""
    message = '{"method":"%s","params":["r","k"],"x":"%%s"}' % METHOD
    escaped = "".join(f"\\u{ord(c):04x}" for c in message % ("x" * 10500))
    body = b'{"message":"' + escaped.encode() + b'"}'
    assert 60000 < len(body) < 65536
    server.ask(request("POST", CALL_PATH, ALICE_FIELDS, body)).is_json(200, result(call_id=None))


def test_no_disk(serve):
    """What is not the method's fault is said outside of the message."""
    server = serve(**inject("error=EIO:when=2+"))
    server.expected_stderr, server.expected_exit = "keys.log", 1
    server.ask(call("before", "key")).is_json(200, result())
    for _ in range(2):  # when the ticket fails, and when none is given any more
        server.ask(call("room", "key")).is_json(503, STORAGE_UNAVAILABLE)
    server.ask(call("before", "key")).is_json(400, result(KEY_EXISTS))
    server.stop()


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=255))
def test_any_text(shared, room, key, call_id):
    usable = [text.encode("utf-8", "ignore").decode().replace("\0", "") for text in (room, key)]
    room, key = ("x" + text for text in usable)
    call_id = call_id.encode("utf-8", "ignore").decode()[:63]
    reply = shared.ask(call(room, key, id=call_id))
    known = json.loads(shared.info(room).body)["room"]["e2eKeyId"]
    assert reply.body in (result(call_id=call_id), result(KEY_EXISTS, call_id=call_id))
    assert known == key or reply.status == 400
