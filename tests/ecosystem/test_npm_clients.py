"""Rocket.Chat's own JavaScript clients, from npm: a set, and reading why another is refused.

Neither package installs as it is (a patched or a git dependency that the calls here do not need),
so each is unpacked beside the few packages that they do need. Needs node, npm and the registry;
without, it fails.
"""

import json
import os
import subprocess

import pytest

from server import ALICE, ALICE_TOKEN, ALREADY_EXISTS, room_info, tool

CLIENTS = {"api-client": "0.2.57", "sdk": "0.2.9"}
NEEDED = ["query-string@7.1.3", "node-rest-client@3.1.1", "lru-cache@4.1.5"]

API_CLIENT = """
const { RestClient } = require('@rocket.chat/api-client');
const [baseUrl, userId, token] = process.argv.slice(2);
const client = new RestClient({ baseUrl, credentials: { 'X-User-Id': userId, 'X-Auth-Token': token } });
const call = (...params) => client.post('/v1/method.call/e2e.setRoomKeyID', {
    message: JSON.stringify({ msg: 'method', id: 'a1', method: 'e2e.setRoomKeyID', params }) });
const told = (promise) => promise.then(
    (value) => ['resolved', value], async (reply) => ['rejected', reply.status, await reply.json()]);
(async () => {
    const results = [];
    for (const ask of [
        () => client.post('/v1/e2e.setRoomKeyID', { rid: 'one', keyID: 'key' }),
        () => client.post('/v1/e2e.setRoomKeyID', { rid: 'one', keyID: 'other' }),
        () => client.get('/v1/rooms.info', { roomId: 'one' }),
        () => call('two', 'key'),
        () => call('two', 'other'),
        () => call('two'),
    ]) results.push(await told(ask()));
    console.log(JSON.stringify(results));
})();
"""

# Its post prints what was refused, and then returns nothing.
SDK = """
const [url, userId, authToken] = process.argv.slice(2);
process.env.ROCKETCHAT_URL = url;
const api = require('@rocket.chat/sdk/dist/lib/api');
require('@rocket.chat/sdk/dist/lib/log').silence();
const refusals = [];
console.error = (refusal) => refusals.push(refusal);
api.setAuth({ authToken, userId });
api.currentLogin = { userId };
(async () => {
    const results = [
        await api.post('e2e.setRoomKeyID', { rid: 'one', keyID: 'key' }),
        await api.post('e2e.setRoomKeyID', { rid: 'one', keyID: 'other' }),
        await api.get('rooms.info', { roomId: 'one' }),
        await api.post('method.call/e2e.setRoomKeyID', { message: JSON.stringify(
            { msg: 'method', id: 'a1', method: 'e2e.setRoomKeyID', params: ['two', 'key'] }) }),
    ];
    console.log(JSON.stringify([results, refusals]));
    process.exit(0); // its connections are kept alive
})();
"""


@pytest.fixture(name="packages", scope="module")
def _packages(tmp_path_factory):
    """A directory in which both can be required."""
    directory = tmp_path_factory.mktemp("npm")
    modules = directory / "node_modules" / "@rocket.chat"
    run = lambda *arguments: subprocess.run(
        arguments, cwd=directory, check=True, timeout=600, capture_output=True)
    (directory / "package.json").write_text("{}", encoding="ascii")
    npm = tool("npm", "npm")
    run(npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *NEEDED)
    for name, version in CLIENTS.items():
        run(npm, "pack", f"@rocket.chat/{name}@{version}")
        (modules / name).mkdir(parents=True)
        run("tar", "-xzf", f"rocket.chat-{name}-{version}.tgz", "-C", str(modules / name),
            "--strip-components=1")
    return directory


def run_script(packages, server, script):
    """What a script prints, called with the server's address and alice's credentials."""
    done = subprocess.run(
        [tool("node", "nodejs"), "-", "http://%s:%d" % server.address, ALICE, ALICE_TOKEN],
        input=script, text=True, cwd=packages, capture_output=True, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(packages)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def result(**members):
    return {"msg": "result", "id": "a1", **members}


def test_api_client(server, packages):
    one, again, info, two, two_again, half = run_script(packages, server, API_CLIENT)
    assert one == ["resolved", {"success": True}]
    assert again == ["rejected", 400, json.loads(ALREADY_EXISTS)]
    assert info == ["resolved", json.loads(room_info("one", "c", "key"))]
    assert two[1]["success"] and json.loads(two[1]["message"]) == result()
    assert two_again[:2] == half[:2] == ["rejected", 400]
    error = json.loads(two_again[2]["message"])["error"]
    assert (error["error"], error["reason"]) == (
        "error-room-e2e-key-already-exists", "E2E Key ID already exists")
    error = json.loads(half[2]["message"])["error"]
    assert error["message"] == "Match error: Expected string, got undefined"
    server.info("two").is_json(200, room_info("two", "c", "key"))


def test_sdk(server, packages):
    (one, again, info, two), refusals = run_script(packages, server, SDK)
    assert one == {"success": True}
    assert (again, refusals) == (None, [json.loads(ALREADY_EXISTS)])
    assert info == json.loads(room_info("one", "c", "key"))
    assert two["success"] and json.loads(two["message"]) == result()
