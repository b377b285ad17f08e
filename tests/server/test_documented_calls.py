"""The example calls of the API's documentation, run as they are printed there.

Proves that what people copy from that page works against a fresh checkout: each runs on a copy of
the repository's data/, with the port substituted and nothing else. Set once, the same call is told
that the key exists. Where an example is wrong itself (PHP), the reply says what is wrong with it.
"""

import os
import shutil
import subprocess
import sys

import pytest

from server import (
    ALREADY_EXISTS,
    JSON_TYPE,
    REPOSITORY,
    SET_PATH,
    SUCCESS,
    TIMEOUT_S,
    failure,
    has_ipv6,
    info_request,
    port_on_both_families,
    request,
    room_info,
    tool,
)

CURL = """\
curl --location --request POST 'http://localhost:3000/api/v1/e2e.setRoomKeyID' \\
--header 'X-User-Id: d26x6zSkaPSe5gCyy' \\
--header 'X-Auth-Token: Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU' \\
--header 'Content-Type: application/json' \\
--data-raw '{
"rid": "wCiXndNp5NqNY3uCc",
"keyID": "my-UniQu3_ke4_Id"
}'
"""

NODE = """\
var request = require('request');
var options = {
'method': 'POST',
'url': 'http://localhost:3000/api/v1/e2e.setRoomKeyID',
'headers': {
'X-User-Id': 'd26x6zSkaPSe5gCyy',
'X-Auth-Token': 'Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU',
'Content-Type': 'application/json'
},
body: JSON.stringify({"rid":"wCiXndNp5NqNY3uCc","keyID":"my-UniQu3_ke4_Id"})
};
request(options, function (error, response) {
if (error) throw new Error(error);
console.log(response.body);
});
"""

PYTHON = r"""
import requests
url = "http://localhost:3000/api/v1/e2e.setRoomKeyID"
payload="{\n \"rid\": \"wCiXndNp5NqNY3uCc\",\n \"keyID\": \"my-UniQu3_ke4_Id\"\n}"
headers = {
'X-User-Id': 'd26x6zSkaPSe5gCyy',
'X-Auth-Token': 'Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU',
'Content-Type': 'application/json'
}
response = requests.request("POST", url, headers=headers, data=payload)
print(response.text)
"""

# In PHP's single quotes \n is two characters, and that is what its example sends.
PHP_BODY = rb'{\n "rid": "wCiXndNp5NqNY3uCc",\n "keyID": "my-UniQu3_ke4_Id"\n}'

USER_FIELDS = (("X-User-Id", "d26x6zSkaPSe5gCyy"),
               ("X-Auth-Token", "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU"))
ROOM, KEY = "wCiXndNp5NqNY3uCc", "my-UniQu3_ke4_Id"


@pytest.fixture(name="fresh")
def _fresh(serve, tmp_path):
    """A server on a copy of data/, at localhost however a client resolves that."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("users", "rooms"):
        shutil.copy(REPOSITORY / "data" / name, data)
    listen = ["127.0.0.1:0"]
    if has_ipv6():
        port = port_on_both_families()
        listen = [f"127.0.0.1:{port}", f"[::1]:{port}"]
    return serve(users=None, rooms=None, listen=listen)


def at_port(text, server):
    """The example with the port substituted: the only thing about it that changes."""
    assert text.count("localhost:3000") == 1
    return text.replace("localhost:3000", f"localhost:{server.address[1]}")


def run_twice(server, command, **options):
    """Runs an example two times: first it sets the key, then the key exists."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.lower().endswith("_proxy")}
    environment.update(options.pop("environment", {}))
    for expected in (SUCCESS, ALREADY_EXISTS):
        result = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False,
                                env=environment, **options)
        assert (result.returncode, result.stdout.strip()) == (0, expected), result
    server.ask(info_request(ROOM, USER_FIELDS)).is_json(200, room_info(ROOM, "c", KEY))


def test_curl(fresh):
    tool("curl", "curl")
    run_twice(fresh, ["sh", "-c", at_port(CURL, fresh)])


def test_python(fresh):
    run_twice(fresh, [sys.executable, "-c", at_port(PYTHON, fresh)])


def folder_of_node_request():
    """A NODE_PATH under which `request` is found: Debian's node-request where it is installed, or
    npm's, installed once under build/ where npm is."""
    tool("node", "nodejs node-request")
    for folder in ("/usr/share/nodejs", "/usr/lib/nodejs"):
        if os.path.isdir(f"{folder}/request"):
            return folder
    cache = REPOSITORY / "build" / "node"
    if not (cache / "node_modules" / "request" / "package.json").exists():
        assert shutil.which("npm"), (
            "the `request` package is missing: apt-get install node-request (Debian's node), or "
            "install npm, which this test then uses")
        cache.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            ["npm", "install", "--prefix", str(cache), "--no-save", "--no-audit", "--no-fund",
             "--loglevel=error", "request@2.88.2"],
            capture_output=True, text=True, timeout=300, check=False, cwd=cache)
        assert result.returncode == 0, f"npm install request@2.88.2: {result.stderr}"
    return str(cache / "node_modules")


def test_node(fresh, tmp_path):
    """The deprecated modules that `request` still uses may say so on node's standard error."""
    (tmp_path / "example.js").write_text(at_port(NODE, fresh))
    run_twice(fresh, ["node", "--no-deprecation", "example.js"], cwd=tmp_path,
              environment={"NODE_PATH": folder_of_node_request()})


def test_php(fresh):
    """Its body is no JSON, and the reply says where: at the backslash behind the brace."""
    assert len(PHP_BODY) == 64 and PHP_BODY[1:3] == b"\\n"
    reply = fresh.ask(request("POST", SET_PATH, (*USER_FIELDS, JSON_TYPE), PHP_BODY))
    prefix, suffix = failure("Invalid JSON: WHY at byte 1 [error-invalid-json]",
                             "error-invalid-json").split(b"WHY")
    reply.is_json(400, reply.body)
    assert reply.body.startswith(prefix) and reply.body.endswith(suffix), reply
    # Nothing was set. In PHP's double quotes the same text is JSON.
    assert fresh.ask(info_request(ROOM, USER_FIELDS)).body == room_info(ROOM, "c")
    mended = PHP_BODY.replace(rb"\n", b"\n")
    fresh.ask(request("POST", SET_PATH, (*USER_FIELDS, JSON_TYPE), mended)).is_json(200, SUCCESS)


def test_the_example_payload(fresh):
    """The page's other room, from its "Example Payload"."""
    payload = b'{\n"rid": "Qe3Wa3outaDMKzAZC",\n"keyID": "my-UniQu3_ke4_Id"\n}'
    fresh.ask(request("POST", SET_PATH, (*USER_FIELDS, JSON_TYPE), payload)).is_json(200, SUCCESS)
    fresh.ask(info_request("Qe3Wa3outaDMKzAZC", USER_FIELDS)).is_json(
        200, room_info("Qe3Wa3outaDMKzAZC", "p", KEY))


def test_the_example_errors(fresh):
    """The page's four errors, byte for byte but for the white space it prints them with."""

    def post(body, fields=USER_FIELDS):
        return fresh.ask(request("POST", SET_PATH, (*fields, JSON_TYPE), body))

    unauthorized = b'{"success":false,"error":"unauthorized"}'
    undefined = b'{"success":false,"error":"Match error: Expected string, got undefined"}'
    invalid = (b'{"success":false,"error":"Invalid room [error-invalid-room]",'
               b'"errorType":"error-invalid-room","details":{"method":"canAccessRoom"}}')
    exists = (b'{"success":false,"error":"E2E Key ID already exists '
              b'[error-room-e2e-key-already-exists]",'
              b'"errorType":"error-room-e2e-key-already-exists",'
              b'"details":{"method":"e2e.setRoomKeyID"}}')
    post(b"{}", ()).is_json(401, unauthorized)
    post(b'{"keyID":"k"}').is_json(400, undefined)
    post(b'{"rid":"no such room","keyID":"k"}').is_json(400, invalid)
    post(b'{"rid":"wCiXndNp5NqNY3uCc","keyID":"k"}').is_json(200, SUCCESS)
    post(b'{"rid":"wCiXndNp5NqNY3uCc","keyID":"k"}').is_json(400, exists)
