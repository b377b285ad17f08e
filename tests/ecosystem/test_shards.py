"""Three shards and the real HAProxy, from deploy/haproxy.cfg: one winner a room, whatever happens.

    clients --TLS--> HAProxy --unix sockets--> three roomkeyd, each with its part of the rooms

Of that file only the paths, the port, the certificate and the user are replaced. Needs haproxy and
openssl of Debian; without, it fails.
"""

import contextlib
import http.client
import json
import os
import pwd
import random
import re
import socket
import ssl
import subprocess
import zlib

import pytest

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    BOB_FIELDS,
    INFO_PATH,
    INVALID_ROOM,
    REPOSITORY,
    SET_PATH,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    TIMEOUT_S,
    USERS,
    Lines,
    Server,
    binary,
    compact,
    failure,
    in_threads,
    percent_encode,
    records,
    room_info,
    tool,
    wait_until,
    write_data,
)

CALL_PATH = "/api/v1/method.call/e2e.setRoomKeyID"
SLOTS, SHARDS = 12, 3
CONFIGURATION = REPOSITORY / "deploy" / "haproxy.cfg"
SLOTS_PY = REPOSITORY / "deploy" / "slots.py"
NO_ROOM = failure("No room: rid in the body, or roomId in the query, is missing")
HEADERS = {**dict(ALICE_FIELDS), "Content-Type": "application/json"}


def slot_of(room):
    return zlib.crc32(room.encode()) % SLOTS


def shard_of(room):
    """The shard that has the room's slot in the configuration: four slots each."""
    return slot_of(room) // (SLOTS // SHARDS)


def rooms_of(shard, count, prefix):
    """Names of rooms that this shard has."""
    found = []
    number = 0
    while len(found) < count:
        name = f"{prefix}-{number}"
        if shard_of(name) == shard:
            found.append(name)
        number += 1
    return found


def fill_in(text, directory, port, certificate):
    """The configuration with this test's paths, port, certificate and user."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    for pattern, replacement in (
        (r"/run/roomkeyd-(\d)/", rf"{directory}/\1/"),
        (r"bind :443 ssl crt \S+", f"bind 127.0.0.1:{port} ssl crt {certificate}"),
        (r"(?m)^( *)(user|group) haproxy$", rf"\1# \2 of the test: {user}"),
    ):
        text, count = re.subn(pattern, replacement, text)
        assert count, f"not in haproxy.cfg: {pattern}"
    return text


class Cluster:
    """Three shards and HAProxy in front of them."""

    def __init__(self, directory, rooms_files):
        self.directory = directory
        self.shards = []
        for rooms in rooms_files:
            self.add_shard(rooms)
        self.certificate = self._make_certificate()
        self.proxy = None

    def add_shard(self, rooms):
        self.shards.append(None)
        home = self.data(len(self.shards) - 1).parent
        home.mkdir()
        write_data(home / "data", USERS, rooms)

    def _make_certificate(self):
        """Self-signed; key and certificate in one file, as HAProxy wants them."""
        key, certificate = self.directory / "key.pem", self.directory / "certificate.pem"
        subprocess.run(
            [tool("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate,
             "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            check=True, capture_output=True)
        both = self.directory / "chat.pem"
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        return both

    def data(self, shard):
        return self.directory / str(shard + 1) / "data"

    def start_shard(self, shard):
        address = f"unix:{self.directory}/{shard + 1}/http.sock"
        self.shards[shard] = Server(self.data(shard), listen=[address]).wait_ready()

    def start_proxy(self, text=CONFIGURATION.read_text()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        path = self.directory / "haproxy.cfg"
        path.write_text(fill_in(text, self.directory, self.port, self.certificate))
        self.proxy = subprocess.Popen([tool("haproxy", "haproxy"), "-db", "-f", path],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE)
        self.log, self.errors = Lines(self.proxy.stdout), Lines(self.proxy.stderr)
        self.context = ssl.create_default_context(cafile=self.certificate)

        def accepts():
            assert self.proxy.poll() is None, f"HAProxy did not start: {self.errors.all()}"
            with contextlib.suppress(ConnectionRefusedError):
                return self.client().ask("GET", "/") == (404, failure("Resource not found"))

        wait_until(accepts, "HAProxy")

    def __enter__(self):
        try:
            for shard in range(SHARDS):
                self.start_shard(shard)
            self.start_proxy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def stop_proxy(self):
        if self.proxy:
            self.proxy.kill()
            self.proxy.wait()

    def __exit__(self, *_):
        self.stop_proxy()
        for server in self.shards:
            if server and server.process.poll() is None:
                server.process.kill()
                server.process.wait()

    def client(self):
        return Client(self.port, self.context)

    def ask(self, *arguments, **options):
        """One request on a connection of its own."""
        with contextlib.closing(self.client()) as client:
            return client.ask(*arguments, **options)

    def set(self, room, key):
        return self.ask("POST", SET_PATH, compact({"rid": room, "keyID": key}))

    def info(self, room):
        return self.ask("GET", f"{INFO_PATH}?roomId={percent_encode(room)}")

    def keys(self, shard):
        """What the shard's log holds: {room: key}."""
        found = records((self.data(shard) / "keys.log").read_bytes())
        keys = {room: key for _, room, key in found}
        assert len(keys) == len(found)
        return keys


class Client:
    """A TLS connection that believes in the test's certificate alone."""

    def __init__(self, port, context):
        self.connection = http.client.HTTPSConnection("localhost", port, timeout=TIMEOUT_S,
                                                      context=context)

    def close(self):
        self.connection.close()

    def ask(self, method, target, body=None, headers=None, **options):
        """The status and the body of the reply; an error without JSON is no error for a client."""
        self.connection.request(method, target, body, headers or HEADERS, **options)
        reply = self.connection.getresponse()
        text = reply.read()
        if reply.status != 204:
            assert reply.getheader("Content-Type") == "application/json", (reply.status, text)
            assert reply.getheader("Cache-Control") == "no-store", (reply.status, text)
        return reply.status, text


@pytest.fixture(name="cluster", scope="module")
def _cluster(tmp_path_factory):
    """Shards with disjoint files, made from one as the configuration says."""
    names = [name for shard in range(SHARDS) for kind in KINDS
             for name in rooms_of(shard, KINDS[kind], kind)]
    everything = "# all rooms\n\n" + "".join(f"{name} c\n" for name in [*names, *ODD_ROOMS])
    files = [rooms_of_slots(everything, range(shard * 4, shard * 4 + 4))
             for shard in range(SHARDS)]
    with Cluster(tmp_path_factory.mktemp("shards"), files) as cluster:
        yield cluster
        for server in cluster.shards:
            server.stop()


def rooms_of_slots(text, slots):
    """The lines of a rooms file that are of these slots, by the tool that comes with it."""
    done = subprocess.run([SLOTS_PY, *map(str, slots)], input=text.encode(),
                          capture_output=True, check=True)
    return done.stdout.decode()


# Names of the rooms that the shards know, how many of each shard.
KINDS = {"race": 20, "dead": 14, "doubled": 4, "big": 6, "plain": 2, "call": 2}
ODD_ROOMS = ['tab-and-"quote"\\', "größe", "a+b", "50%", "a?b&c=d.e", "x" * 255]


# ---- one winner --------------------------------------------------------------------------------


def test_the_files_are_disjoint(cluster):
    """By the command that the configuration recommends; and it finds what it has to find."""
    command = re.search(r"#     (cat .*uniq -d)\n", CONFIGURATION.read_text())[1]
    here = command.replace("/var/lib/roomkeyd-*/rooms", f"{cluster.directory}/*/data/rooms")
    assert here != command

    def printed():
        return subprocess.run(["sh", "-c", here], capture_output=True, check=True).stdout

    assert printed() == b""
    first, second = (cluster.data(shard) / "rooms" for shard in (0, 1))
    before = second.read_text()
    try:
        for added in ("* c", first.read_text().split("\n")[0]):
            second.write_text(f"{before}{added}\n")
            assert printed().decode().split() == [added.split()[0]]
    finally:
        second.write_text(before)


def test_one_winner_a_room(cluster):
    """Six clients race for sixty rooms, each in an order of its own."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rooms = [name for shard in range(SHARDS) for name in rooms_of(shard, KINDS["race"], "race")]
    replies = {room: {} for room in rooms}

    def race(number):
        mine = list(rooms)
        random.Random(seed + number).shuffle(mine)
        with contextlib.closing(cluster.client()) as client:
            for room in mine:
                body = compact({"rid": room, "keyID": f"key-{number}"})
                fields = (ALICE_FIELDS, BOB_FIELDS)[number % 2]
                replies[room][number] = client.ask("POST", SET_PATH, body, dict(fields))

    with in_threads(race, range(6)):
        pass
    for room in rooms:
        winners = [number for number, reply in replies[room].items() if reply == (200, SUCCESS)]
        assert len(winners) == 1, (room, replies[room])
        losers = [reply for reply in replies[room].values() if reply != (200, SUCCESS)]
        assert losers == [(400, ALREADY_EXISTS)] * 5, (room, replies[room])
        key = f"key-{winners[0]}"
        assert cluster.info(room) == (200, room_info(room, "c", key))
        # It is where the slots say, and nowhere else.
        holders = [shard for shard in range(SHARDS) if room in cluster.keys(shard)]
        assert holders == [shard_of(room)]
        assert cluster.keys(holders[0])[room] == key


@pytest.mark.parametrize("room", ODD_ROOMS)
def test_bytes_of_all_kinds_find_one_shard(cluster, room):
    """A set and a read of the same room agree on its slot, however the name is written."""
    assert cluster.set(room, "k") == (200, SUCCESS)
    assert cluster.set(room, "l") == (400, ALREADY_EXISTS)
    assert cluster.info(room) == (200, room_info(room, "c", "k"))
    assert room in cluster.keys(shard_of(room))
    # In escapes that HAProxy reads as something else it is refused, by it or by a wrong shard.
    escaped = json.dumps({"rid": room, "keyID": "m"}).encode()
    assert cluster.ask("POST", SET_PATH, escaped) in (
        (400, ALREADY_EXISTS), (400, NO_ROOM), (400, INVALID_ROOM))


def test_an_escaped_name_finds_its_shard(cluster):
    """ASCII in JSON's escapes, plain characters in the query."""
    room = rooms_of(1, 1, "plain")[0]
    body = compact({"rid": room, "keyID": "k"}).replace(b"plain", b"\\u0070l\\u0061in")
    assert cluster.ask("POST", SET_PATH, body) == (200, SUCCESS)
    assert cluster.ask("GET", f"{INFO_PATH}?x=y&roomId={room}") == (200, room_info(room, "c", "k"))


# ---- a dead shard ------------------------------------------------------------------------------


def test_a_dead_shard(cluster):
    """503 for its rooms alone; it comes back by itself, with what it had."""
    set_before, set_after = [], []
    for shard in range(SHARDS):
        one, two = rooms_of(shard, 2, "dead")
        set_before.append(one)
        set_after.append(two)
        assert cluster.set(one, "before") == (200, SUCCESS)
    dead = 1
    cluster.shards[dead].kill()

    for room in (set_before[dead], set_after[dead]):
        assert cluster.set(room, "second") == (503, STORAGE_UNAVAILABLE)
        assert cluster.info(room) == (503, STORAGE_UNAVAILABLE)
    for shard in (0, 2):
        assert cluster.info(set_before[shard]) == (200, room_info(set_before[shard], "c", "before"))
        assert cluster.set(set_before[shard], "second") == (400, ALREADY_EXISTS)
        assert cluster.set(set_after[shard], "after") == (200, SUCCESS)
    status, _ = cluster.ask("OPTIONS", SET_PATH)
    assert status == 204  # about no room

    cluster.start_shard(dead)
    expected = (200, room_info(set_before[dead], "c", "before"))
    wait_until(lambda: cluster.info(set_before[dead]) == expected, "the shard to be back")
    assert cluster.set(set_before[dead], "second") == (400, ALREADY_EXISTS)
    assert cluster.set(set_after[dead], "after") == (200, SUCCESS)


def test_shards_that_die_under_load(cluster):
    """One after the other is killed and started while clients race: at most one winner each."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rooms = [name for shard in range(SHARDS) for name in rooms_of(shard, KINDS["dead"], "dead")[2:]]
    won = {room: [] for room in rooms}
    refused = []

    def race(number):
        order = random.Random(seed + number)
        pending = list(rooms)
        while pending:
            room = order.choice(pending)
            status, body = cluster.set(room, f"key-{number}")
            if status == 200:
                won[room].append(f"key-{number}")
            if status in (200, 400):
                assert body in (SUCCESS, ALREADY_EXISTS)
                pending.remove(room)
            else:
                assert (status, body) in ((502, STORAGE_UNAVAILABLE), (503, STORAGE_UNAVAILABLE))
                refused.append(room)

    for shard in range(SHARDS):  # all of them are down when the race begins
        cluster.shards[shard].kill()
    with in_threads(race, range(4)):
        wait_until(lambda: refused, "a refusal")
        for shard in range(SHARDS):
            cluster.start_shard(shard)
            cluster.shards[shard].kill()
            cluster.start_shard(shard)
    for room in rooms:
        assert len(won[room]) <= 1
        key = cluster.keys(shard_of(room))[room]
        assert cluster.info(room) == (200, room_info(room, "c", key))
        assert won[room] in ([], [key])  # none: the winner was cut off from its reply


# ---- what the proxy and the server see differently ---------------------------------------------


def doubled(first, last, key):
    """A body whose rid is the first one to HAProxy and the last one to roomkeyd."""
    return b'{"rid":%s,"keyID":%s,"rid":%s}' % (
        compact(first), compact(key), compact(last))


def test_two_rids_in_a_body_make_no_second_winner(cluster):
    rooms = [rooms_of(shard, KINDS["doubled"], "doubled") for shard in range(SHARDS)]
    room, untouched, neighbour, _ = rooms[0]
    assert cluster.set(room, "winner") == (200, SUCCESS)
    for elsewhere in (rooms[1][0], rooms[2][0]):
        # HAProxy sends it to another shard, which knows no such room.
        for target in (room, untouched):
            body = doubled(elsewhere, target, "second")
            assert cluster.ask("POST", SET_PATH, body) == (400, INVALID_ROOM)
    # The room's own shard judges it like any other.
    body = doubled(neighbour, room, "second")
    assert cluster.ask("POST", SET_PATH, body) == (400, ALREADY_EXISTS)

    assert cluster.info(room) == (200, room_info(room, "c", "winner"))
    assert cluster.info(untouched) == (200, room_info(untouched, "c"))
    assert cluster.info(rooms[1][0]) == (200, room_info(rooms[1][0], "c"))
    assert [room in cluster.keys(shard) for shard in range(SHARDS)] == [True, False, False]


def test_it_is_the_files_and_not_the_proxy(tmp_path):
    """The same body, were every shard to take every room: a second winner. So it is the disjoint
    files that keep the promise, and the test above can fail."""
    with Cluster(tmp_path, ["* c\n"] * SHARDS) as cluster:
        room, elsewhere = rooms_of(0, 1, "doubled")[0], rooms_of(1, 1, "doubled")[0]
        assert cluster.set(room, "winner") == (200, SUCCESS)
        body = doubled(elsewhere, room, "second")
        assert cluster.ask("POST", SET_PATH, body) == (200, SUCCESS)
        assert cluster.keys(0)[room] == "winner" and cluster.keys(1)[room] == "second"
    done = subprocess.run([SLOTS_PY, "0"], input=b"a c\n* c\n",
                          capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"line 2: * is every room" in done.stderr


# ---- one more shard ----------------------------------------------------------------------------


def test_a_slot_moves(tmp_path):
    """As the configuration describes it, with its own commands."""
    moved = [name for name in (f"moving-{i}" for i in range(200)) if slot_of(name) == 11]
    stays = [name for name in rooms_of(2, 20, "moving") if slot_of(name) != 11]
    files = ["", "", "".join(f"{name} c\n" for name in [*moved, *stays])]
    comment = CONFIGURATION.read_text().replace("\n#", "\n")
    command = re.search(r"\n +(roomkeyd export .*slot\.json; \})\n", comment, re.S)[1]
    for pattern, replacement in (
        (r"roomkeyd (export|import)", rf"{binary()} \1"),
        (r"/var/lib/roomkeyd-(\d)", rf"{tmp_path}/\1/data"),
        (r"deploy/slots\.py", str(SLOTS_PY)),
    ):
        command, count = re.subn(pattern, replacement, command)
        assert count
    with Cluster(tmp_path, files) as cluster:
        for room in (moved[0], stays[0]):
            assert cluster.set(room, "k") == (200, SUCCESS)
        cluster.shards[2].stop()
        assert cluster.info(moved[0]) == (503, STORAGE_UNAVAILABLE)

        cluster.add_shard(rooms_of_slots(files[2], [11]))
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)
        write_data(cluster.data(2), USERS, rooms_of_slots(files[2], [8, 9, 10]))
        text = CONFIGURATION.read_text()
        third = "    server shard3 unix@/run/roomkeyd-3/http.sock"
        fourth = third.replace("3", "4")
        text = text.replace(f"{third}\n", f"{third}\n{fourth}\n")
        text = text.replace(f"backend slot11\n{third} track any/shard3",
                            f"backend slot11\n{fourth} track any/shard4")
        assert text.count(fourth) == 2
        cluster.stop_proxy()
        cluster.start_shard(2)
        cluster.start_shard(3)
        cluster.start_proxy(text)

        for room in (moved[0], stays[0]):
            assert cluster.info(room) == (200, room_info(room, "c", "k"))
            assert cluster.set(room, "second") == (400, ALREADY_EXISTS)
        for shard, room in ((3, moved[1]), (2, stays[1])):
            assert cluster.set(room, "k") == (200, SUCCESS)
            assert room in cluster.keys(shard)
        # The old shard still has the slot's key ID in its log, and takes no more of its rooms.
        assert moved[0] in cluster.keys(2)
        assert cluster.shards[2].set(moved[2], "k").body == INVALID_ROOM


# ---- requests without a room, and long ones ----------------------------------------------------


@pytest.mark.parametrize("body", [
    b"", b"{}", b"[]", b"null", b'"rid"', b'{"keyID":"k"}', b'{"rid":null,"keyID":"k"}',
    b'{"rid":{},"keyID":"k"}', b'{"rid":[],"keyID":"k"}', b"not JSON", b'{"room":{"rid":"x"}}',
    b'{"rid":"cut off',
])
def test_a_body_without_a_room(cluster, body):
    assert cluster.ask("POST", SET_PATH, body) == (400, NO_ROOM)


def test_a_room_that_is_no_string(cluster):
    """Numbers have a slot too: any shard says what is wrong."""
    for body, what in ((b'{"rid":5,"keyID":"k"}', "number"), (b'{"rid":true}', "boolean")):
        reply = cluster.ask("POST", SET_PATH, body)
        assert reply == (400, failure(f"Match error: Expected string, got {what}"))


@pytest.mark.parametrize("query", ["", "?", "?roomName=x", "?roomid=x", "?x=roomId=y"])
def test_a_query_without_a_room(cluster, query):
    assert cluster.ask("GET", INFO_PATH + query) == (400, NO_ROOM)


def test_what_is_not_for_the_edge(cluster):
    for path in ("/", "/healthz", "/metrics", SET_PATH + "/", "/api/v1/method.call/other"):
        assert cluster.ask("GET", path) == (404, failure("Resource not found"))
        assert cluster.ask("POST", path, b"{}") == (404, failure("Resource not found"))


def test_the_longest_bodies(cluster):
    """64 KiB of body, the rid at its end, behind a long head; whole and in chunks."""
    rooms = [name for shard in range(SHARDS) for name in rooms_of(shard, KINDS["big"], "big")]
    long_head = {**HEADERS, **{f"X-Long-{i}": "x" * 1000 for i in range(14)}}

    def body_of(room, size, filler):
        text = compact({"filler": "", "rid": room, "keyID": "k"})
        count = size - len(text)
        assert count % len(filler) == 0 or len(filler) == 1
        return text.replace(b'""', b'"%s"' % (filler * (count // len(filler))))

    def chunks_of(body, size):
        return (body[i : i + size] for i in range(0, len(body), size))

    for headers in (HEADERS, long_head):
        room = rooms.pop()
        body = body_of(room, 65536, b"x")
        assert len(body) == 65536
        assert cluster.ask("POST", SET_PATH, body, headers) == (200, SUCCESS)
        for chunk in (40_000, 1_000, 100):
            room = rooms.pop()
            body = body_of(room, 65536, b"y")
            reply = cluster.ask("POST", SET_PATH, chunks_of(body, chunk), headers,
                                encode_chunked=True)
            assert reply == (200, SUCCESS), chunk
            assert cluster.info(room) == (200, room_info(room, "c", "k"))
    room = rooms.pop()
    assert cluster.ask("POST", SET_PATH, body_of(room, 65537, b"x"))[0] == 413
    assert cluster.info(room) == (200, room_info(room, "c"))


# ---- the other door ----------------------------------------------------------------------------


def call(room, key):
    """The body of method.call: JSON in a string in JSON."""
    message = {"msg": "method", "id": "1", "method": "e2e.setRoomKeyID", "params": [room, key]}
    return compact({"message": compact(message).decode()})


@pytest.mark.parametrize("body", [
    b"{}", b'{"message":5}', b'{"message":"{}"}', compact({"message": '{"params":[]}'}),
    compact({"message": '{"params":[null,"k"]}'}), compact({"message": "no JSON"}),
])
def test_a_call_without_a_room(cluster, body):
    assert cluster.ask("POST", CALL_PATH, body) == (400, NO_ROOM)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_call_goes_where_the_set_goes(cluster, shard):
    room, other = rooms_of(shard, KINDS["call"], "call")
    result = (200, compact({"message": '{"msg":"result","id":"1"}', "success": True}))
    assert cluster.ask("POST", CALL_PATH, call(room, "k")) == result
    assert cluster.set(room, "l") == (400, ALREADY_EXISTS)
    assert cluster.info(room) == (200, room_info(room, "c", "k"))
    key = 'a "quoted" \\ key'
    assert cluster.ask("POST", CALL_PATH, call(other, key)) == result
    assert cluster.info(other) == (200, room_info(other, "c", key))
    status, body = cluster.ask("POST", CALL_PATH, call(other, "l"))
    assert status == 400 and b"error-room-e2e-key-already-exists" in body
    pattern = rf" slot{slot_of(room)}/shard{shard + 1} .*POST {CALL_PATH} "
    seen = lambda lines: [line for line in lines if re.search(pattern, line)]
    assert cluster.log.wait_for(seen), pattern
