"""What a 200 is worth: restarts, kills, races, slow and broken disks.

Proves over real sockets and with real signals that no acknowledged key ID is ever lost or changed,
that a room has one winner whatever happens, that no reply runs ahead of the disk, and that nothing
but the disk's own sets wait for the disk.
"""

import json
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time

import pytest

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    BOB_FIELDS,
    HEALTHZ,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    TIMEOUT_S,
    crc32c,
    in_threads,
    info_request,
    inject,
    records,
    room_info,
    run,
    set_request,
    unescape,
    wait_until,
    write_data,
)


def keys_of(server, rooms):
    """What the server says of many rooms: {room: key or None}."""
    found = {}
    rooms = list(rooms)
    with server.client() as client:
        for start in range(0, len(rooms), 200):
            some = rooms[start : start + 200]
            client.send(b"".join(map(info_request, some)))
            for room in some:
                reply = json.loads(client.reply().body)
                assert reply["success"] and reply["room"]["_id"] == room
                found[room] = reply["room"].get("e2eKeyId")
    return found


# ---- restarts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_keeps_everything(serve, how):
    keys = {f"room {i}": f"key\t{i}\n\\" for i in range(300)}
    for attempt in range(3):
        server = serve()
        with server.client() as client:
            for room, key in keys.items():
                client.send(set_request(room, key if attempt == 0 else "late"))
            for _ in keys:
                client.reply().is_json(*((200, SUCCESS) if attempt == 0 else (400, ALREADY_EXISTS)))
            for room, key in keys.items():
                client.ask(info_request(room)).is_json(200, room_info(room, "c", key))
        getattr(server, how)()


def test_a_room_taken_out_keeps_its_key(serve):
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()
    server = serve(rooms="other c\n")
    assert server.info("room").status == 400
    server.stop()
    server = serve(rooms="room p alice\n")
    server.info("room").is_json(200, room_info("room", "p", "key"))
    server.set("room", "other").is_json(400, ALREADY_EXISTS)


def test_a_long_log_is_read_back(serve):
    """More bytes than any buffer of the replay's, in long lines."""
    count = 4000
    key = "\n" * 200  # 400 bytes each when escaped
    server = serve()
    with server.client() as client:
        for start in range(0, count, 200):
            client.send(b"".join(set_request(f"r{i}", key) for i in range(start, start + 200)))
            for _ in range(200):
                client.reply().is_json(200, SUCCESS)
    server.kill()
    server = serve()
    with server.client() as client:
        for i in random.sample(range(count), 100):
            client.ask(info_request(f"r{i}")).is_json(200, room_info(f"r{i}", "c", key))
    assert len(records(server.log())) == count


# ---- kills -------------------------------------------------------------------------------------


class Book:
    """What clients have been told, over all lives of the server."""

    def __init__(self):
        self.lock = threading.Lock()
        self.winner = {}  # room -> key, after a 200
        self.taken = {}  # room -> life in which somebody was first told that it has a key
        self.replies = 0

    def note(self, life, room, key, reply):
        with self.lock:
            self.replies += 1
            if reply.status == 200:
                assert room not in self.winner, f"{room} has two winners"
                # Within a life the loser's thread may come here before the winner's.
                assert self.taken.get(room, life) == life, f"{room} was taken, then won"
                self.winner[room] = key
            else:
                reply.is_json(400, ALREADY_EXISTS)
            self.taken.setdefault(room, life)


def test_sigkill_under_load_loses_nothing_that_was_acknowledged(serve):
    kills, clients = 20, 8
    book, dice = Book(), random.Random()

    for life in range(kills):
        server = serve()
        dead = threading.Event()
        before = book.replies

        def load(number, server=server, dead=dead, life=life):
            luck = random.Random(number * 1000 + life)
            try:
                with server.client() as client:
                    for i in range(100_000):
                        # One's own rooms, rooms that all race for now, and those of earlier lives:
                        # a kill may have left the last kind set without anybody knowing.
                        rooms = [f"{life}-{number}-{i}", f"{life}-{i}",
                                 f"{luck.randrange(life + 1)}-{luck.randrange(300)}"]
                        keys = [f"{life}.{number}.{i}.{n}" for n in range(3)]
                        client.send(b"".join(map(set_request, rooms, keys)))
                        for room, key in zip(rooms, keys):
                            book.note(life, room, key, client.reply())
            except (OSError, AssertionError) as error:
                if isinstance(error, AssertionError) and "connection ended" not in str(error):
                    raise
                assert dead.is_set(), f"dropped before the server was killed: {error!r}"

        with in_threads(load, range(clients)):
            wait_until(lambda: book.replies > before + 3 * clients, "the load")
            target = book.replies + dice.randrange(2000)
            wait_until(lambda: book.replies >= target or server.process.poll() is not None, "load")
            dead.set()
            server.kill()

    server = serve()
    known = keys_of(server, book.taken)
    lost = {room for room, key in book.winner.items() if known[room] != key}
    assert not lost, f"{len(lost)} of {len(book.winner)} acknowledged keys are lost: {lost}"
    assert not [room for room in book.taken if known[room] is None], "taken, and free again"
    contested = sum(1 for room in book.winner if room.count("-") == 1)
    assert contested > kills and len(book.winner) > kills * clients
    server.stop()
    rooms = [room for _, room, _ in records(server.log())]
    assert len(rooms) == len(set(rooms)), "the log has a room twice"


# ---- races -------------------------------------------------------------------------------------


def test_64_clients_race_for_the_same_rooms(server):
    rooms = [f"room {i}" for i in range(40)]
    winners, lock = {room: [] for room in rooms}, threading.Lock()
    start = threading.Barrier(64)

    def race(number):
        order = random.Random(number).sample(rooms, len(rooms))
        with server.client() as client:
            start.wait(TIMEOUT_S)
            for room in order:  # all in flight at once, replies in order
                client.send(set_request(room, f"key of {number}"))
            for room in order:
                reply = client.reply()
                if reply.status == 200:
                    with lock:
                        winners[room].append(f"key of {number}")
                else:
                    reply.is_json(400, ALREADY_EXISTS)

    with in_threads(race, range(64)):
        pass
    assert all(len(keys) == 1 for keys in winners.values()), winners
    for room, [key] in winners.items():
        server.info(room).is_json(200, room_info(room, "c", key))


def test_two_users_race_through_separate_requests(serve):
    """The same without pipelining: each client one request in flight, both users."""
    server = serve()
    wins, lock = [], threading.Lock()

    def race(number):
        with server.client() as client:
            for i in range(50):
                fields = ALICE_FIELDS if number % 2 else BOB_FIELDS
                if client.ask(set_request(f"r{i}", f"{number}", fields)).status == 200:
                    with lock:
                        wins.append(i)

    with in_threads(race, range(8)):
        pass
    assert sorted(wins) == list(range(50))


# ---- the log -----------------------------------------------------------------------------------


def test_the_log_can_be_read_with_the_tools_there_are(serve):
    server = serve()
    pairs = [("room", "key"), ("tab\tbed", "new\nline"), ("back\\slash", "return\r"),
             ("\u20ac", "\\N")]
    for room, key in pairs:
        server.set(room, key, BOB_FIELDS).is_json(200, SUCCESS)
    server.stop()
    script = 'grep -P "\\tS\\t" keys.log | cut -f 5-'
    output = subprocess.check_output(["sh", "-c", script], cwd=server.directory).decode()
    lines = [line.split("\t") for line in output.rstrip("\n").split("\n")]
    assert [tuple(map(unescape, line)) for line in lines] == [("bob", *pair) for pair in pairs]
    assert records(server.log()) == [("bob", *pair) for pair in pairs]


def check_log(log):
    """Holds a log to its format; returns the fields of its lines."""
    first, rest = log.split(b"\n", 1)
    assert log.endswith(b"\n") and first.startswith(b"roomkeyd"), first
    offset, parsed = len(first) + 1, []
    for line in rest.split(b"\n")[:-1]:
        crc, certified = line.split(b"\t", 1)
        assert crc == b"%08x" % crc32c(certified), line
        fields = certified.decode().split("\t")
        assert int(fields[0], 16) <= offset and re.fullmatch("[0-9a-f]+", fields[0]), line
        parsed.append((offset, *fields))
        offset += len(line) + 1
    return parsed


def test_a_clean_stop_seals_the_log(serve):
    assert crc32c(b"123456789") == 0xE3069283
    server = serve()
    before = time.time()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()
    *_, [_, _, op, stamp, user, room, key], [offset, batch, seal] = check_log(server.log())
    assert (op, user, room, key) == ("S", "alice", "room", "key")
    assert before - 5 < int(stamp) / 1000 < time.time() + 5
    assert (seal, int(batch, 16)) == ("-", offset)
    # The seal is a line like any other: the log goes on behind it.
    server = serve()
    server.set("other", "key").is_json(200, SUCCESS)
    server.kill()
    check_log(server.log())
    assert [room for _, room, _ in records(server.log())] == ["room", "other"]
    assert serve().info("other").body == room_info("other", "c", "key")


def test_a_log_at_rest_is_sealed_after_a_while(server):
    server.set("room", "key").is_json(200, SUCCESS)
    wait_until(lambda: server.log().endswith(b"\t-\n"), "the seal")
    assert check_log(server.log())[-1][2] == "-"


def test_a_torn_tail_is_saved_reported_and_cut(serve):
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.kill()
    log = server.log()
    torn = b"0badc0de\t14\tS\t17"
    (server.directory / "keys.log").write_bytes(log + torn)
    server = serve()
    server.expected_stderr = rf"keys\.log\.torn-0*({len(log)}|{len(log):x})\b"
    server.info("room").is_json(200, room_info("room", "c", "key"))
    server.set("other", "key").is_json(200, SUCCESS)
    server.stop()
    assert len(server.stderr.all()) == 1, server.stderr.all()
    [saved] = server.directory.glob("keys.log.torn-*")
    assert saved.read_bytes() == torn and saved.stat().st_mode & 0o777 == 0o600
    check_log(server.log())
    assert serve().info("other").body == room_info("other", "c", "key")


def test_damage_is_refused_and_left_alone(serve):
    server = serve()
    for i in range(5):
        server.set(f"room {i}", "key").is_json(200, SUCCESS)
    server.stop()
    log = server.log()
    at = log.index(b"room 1")
    damaged = log[:at] + b"mooR" + log[at + 4 :]
    (server.directory / "keys.log").write_bytes(damaged)
    line = log.rindex(b"\n", 0, at) + 1
    refuse_to_start(server.directory, rf"keys\.log.*\b({line}|0x{line:x})\b")
    assert server.log() == damaged


def refuse_to_start(directory, pattern):
    """Asserts that the server does not start there, says why in one line, and exits with 1."""
    result = run("--listen", "127.0.0.1:0", "--data", directory)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert re.fullmatch(rf"roomkeyd: .*{pattern}.*\n", result.stderr), result.stderr


@pytest.mark.parametrize("content,pattern", [
    (b"hello, world\n", "keys.log"),
    (b"\n", "keys.log"),
    (b"\0" * 4096, "keys.log"),
    (b"\x89PNG\r\n\x1a\n" + b"x" * 100_000, "keys.log"),
    ("next version", "newer"),
    ("new operation", "newer"),
    ("cut first line", "keys.log"),
])
def test_a_log_of_somebody_elses_is_refused_and_left_alone(serve, content, pattern):
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop()
    first, rest = server.log().split(b"\n", 1)
    if content == "next version":
        content = re.sub(rb"\d+$", lambda match: b"%d" % (int(match[0]) + 1), first) + b"\n" + rest
        assert content != server.log()
    elif content == "new operation":
        offset = len(server.log())
        line = b"%x\tQ\twhatever\tthis\tis" % offset
        content = server.log() + b"%08x\t%s\n" % (crc32c(line), line)
    elif content == "cut first line":
        content = first[:-1]
    path = server.directory / "keys.log"
    path.write_bytes(content)
    refuse_to_start(server.directory, pattern)
    assert path.read_bytes() == content
    assert sorted(os.listdir(server.directory)) == ["keys.log", "keys.log.born", "rooms", "users"]


def test_two_servers_on_one_directory(server):
    refuse_to_start(server.directory, rf"{re.escape(str(server.directory))}")
    server.set("room", "key").is_json(200, SUCCESS)


# ---- stopping ----------------------------------------------------------------------------------


def test_sigterm_under_load_answers_everything_in_flight(serve):
    """Every request that had been sent in full before the signal gets its reply, then the end."""
    clients, each = 24, 25
    server = serve()
    connections = [server.client() for _ in range(clients)]
    for connection in connections:  # accepted, that is: not merely waiting in the kernel's queue
        assert connection.ask(HEALTHZ).status == 200
    for number, connection in enumerate(connections):
        connection.send(b"".join(set_request(f"{number}-{i}", "k") + info_request(f"{number}-{i}")
                                 for i in range(each)))
    server.send_signal(signal.SIGTERM)
    for number, connection in enumerate(connections):
        for i in range(each):
            connection.reply().is_json(200, SUCCESS)
            connection.reply().is_json(200, room_info(f"{number}-{i}", "c", "k"))
        connection.end()
        connection.close()
    server.judge()
    *_, [offset, batch, seal] = check_log(server.log())
    assert (seal, int(batch, 16)) == ("-", offset)
    assert len(records(server.log())) == clients * each


def test_sigterm_finds_pipelines_cut_anywhere(serve):
    """What a receive takes may end just where a request does, with more behind it in the kernel."""
    each = 200
    server = serve()
    connections = [server.client() for _ in range(1, len(HEALTHZ))]
    for cut, connection in enumerate(connections, 1):
        connection.send(HEALTHZ[:cut])
    for _ in range(2):  # by then the server has taken those beginnings
        assert server.ask(HEALTHZ).status == 200
    server.send_signal(signal.SIGSTOP)
    for cut, connection in enumerate(connections, 1):
        connection.send(HEALTHZ[cut:] + HEALTHZ * (each - 1))
    server.send_signal(signal.SIGTERM)
    server.send_signal(signal.SIGCONT)
    for cut, connection in enumerate(connections, 1):
        for i in range(each):
            assert connection.reply().body == b"ok", f"{cut} bytes and {i} replies before"
        connection.end()
        connection.close()
    server.judge()


def test_sigterm_lets_idle_connections_go_at_once(serve):
    server = serve()
    with server.client() as fresh, server.client() as used:
        used.ask(HEALTHZ)
        fresh.ask(HEALTHZ)
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        fresh.end()
        used.end()
        server.judge()
        assert time.monotonic() - started < 5, "idle connections must not use up the 10 s of grace"


def test_sigint_stops_it_too(serve):
    server = serve()
    server.set("room", "key").is_json(200, SUCCESS)
    server.stop(signal.SIGINT)
    assert server.log().endswith(b"\t-\n")


# ---- slow disks --------------------------------------------------------------------------------

SYNC_S = 2


@pytest.fixture(name="slow")
def _slow(serve):
    """A server whose every fdatasync takes two seconds."""
    return serve(**inject(f"delay_enter={SYNC_S * 1_000_000}"))


def test_only_sets_wait_for_the_disk(slow):
    with slow.client() as setter, slow.client() as rival, slow.client() as other:
        other.ask(HEALTHZ)
        started = time.monotonic()
        setter.send(set_request("room", "key"))
        # Once the record is in the file, the sync is what is waited for.
        wait_until(lambda: b"\troom\tkey\n" in slow.log(), "the write")
        rival.send(set_request("room", "other"))
        took = []
        for _ in range(50):
            asked = time.monotonic()
            assert other.ask(HEALTHZ).body == b"ok"
            # A read does not show a key that a crash could still take back.
            other.ask(info_request("room")).is_json(200, room_info("room", "c"))
            took.append(time.monotonic() - asked)
        assert other.ask(set_request("room", "")).status == 400
        assert setter.has_nothing() and rival.has_nothing(), (
            "a reply ran ahead of the disk (or 100 requests took two seconds)")
        setter.reply().is_json(200, SUCCESS)
        assert time.monotonic() - started >= SYNC_S * 0.99
        # "Already exists" rested on the same sync, so it could not come any earlier either.
        rival.reply().is_json(400, ALREADY_EXISTS)
        other.ask(info_request("room")).is_json(200, room_info("room", "c", "key"))
        assert sorted(took)[len(took) // 2] < 0.1, "reads must take no notice of a slow disk"


def test_what_is_sent_behind_a_set_costs_nothing_while_it_waits(slow):
    """It is more than one receive takes, and is not looked at again and again."""
    with slow.client() as client:
        client.send(set_request("room", "key"))
        wait_until(lambda: b"\troom\t" in slow.log(), "the record to be written")
        before = slow.cpu_seconds()
        client.send(HEALTHZ * 4000)
        client.reply().is_json(200, SUCCESS)
        assert slow.cpu_seconds() - before < SYNC_S / 10
        for _ in range(4000):
            assert client.reply().body == b"ok"


def test_an_already_exists_of_a_durable_key_does_not_wait(slow):
    slow.set("room", "key").is_json(200, SUCCESS)
    with slow.client() as setter, slow.client() as other:
        setter.send(set_request("pending", "key"))
        wait_until(lambda: b"\tpending\tkey\n" in slow.log(), "the write")
        other.ask(set_request("room", "other")).is_json(400, ALREADY_EXISTS)
        assert setter.has_nothing()
        setter.reply().is_json(200, SUCCESS)


def test_sets_gather_while_the_disk_is_busy(slow):
    """Group commit: 100 sets that arrive during one sync share the next one."""
    clients = [slow.client() for _ in range(100)]
    started = time.monotonic()
    for number, client in enumerate(clients):
        client.send(set_request(f"room {number}", "key"))
    for client in clients:
        client.reply().is_json(200, SUCCESS)
        client.close()
    assert time.monotonic() - started < 5 * SYNC_S


def test_a_kill_during_the_sync(serve):
    """Nobody was told, so either outcome is right, but it has to be one of the two, and to stay."""
    server = serve(**inject(f"delay_enter={SYNC_S * 1_000_000}"))
    with server.client() as client:
        client.send(set_request("room", "key"))
        wait_until(lambda: b"\troom\tkey\n" in server.log(), "the write")
        assert client.has_nothing()
        server.kill()
    server = serve()
    before = server.info("room")
    reply = server.set("room", "second")
    assert (before.body, reply.status) in [
        (room_info("room", "c"), 200), (room_info("room", "c", "key"), 400)]


def test_sigterm_waits_for_the_sync(slow):
    with slow.client() as client, slow.client() as behind:
        behind.ask(HEALTHZ)
        client.send(set_request("room", "key"))
        wait_until(lambda: b"\troom\tkey\n" in slow.log(), "the write")
        behind.send(set_request("behind", "key") + info_request("behind"))
        slow.send_signal(signal.SIGTERM)
        client.reply().is_json(200, SUCCESS)
        client.end()
        behind.reply().is_json(200, SUCCESS)
        behind.reply().is_json(200, room_info("behind", "c", "key"))
        behind.end()
    slow.judge()


# ---- broken disks ------------------------------------------------------------------------------


def test_a_full_disk_is_survived(serve):
    """A write fails for want of space: 503. All is well as soon as there is space again."""
    server = serve()
    server.set("before", "key").is_json(200, SUCCESS)
    size = len(server.log())
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
    server.expected_stderr = "keys.log"  # an operator wants to hear of it
    for _ in range(3):
        server.set("room", "key").is_json(503, STORAGE_UNAVAILABLE)
        assert server.ask(HEALTHZ).body == b"ok"
        server.info("room").is_json(200, room_info("room", "c"))
        server.info("before").is_json(200, room_info("before", "c", "key"))
    server.set("before", "other").is_json(400, ALREADY_EXISTS)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE,
                     (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    server.set("room", "second").is_json(200, SUCCESS)
    server.stop()
    check_log(server.log())
    server = serve()
    server.info("room").is_json(200, room_info("room", "c", "second"))


def test_a_failed_sync_ends_sets_until_a_restart(serve, tmp_path):
    write_data(tmp_path / "data")
    serve().stop()  # makes the log, so that the starts below are alike
    # strace counts for each thread: as many syncs of sets have to succeed as the start needs.
    trace = tmp_path / "trace"
    serve(**inject(None, trace)).kill()
    at_start = trace.read_text().count("fdatasync(")
    assert at_start > 0, "what was read has to be synced before anything rests on it"
    server = serve(**inject(f"error=EIO:when={at_start + 1}+"))
    for i in range(at_start):
        server.set("before" if i == 0 else f"before {i}", "key").is_json(200, SUCCESS)
    server.expected_stderr, server.expected_exit = "keys.log", 1
    for room in ("room", "another"):
        server.set(room, "key").is_json(503, STORAGE_UNAVAILABLE)
        server.info(room).is_json(200, room_info(room, "c"))
    reply = server.ask(HEALTHZ)
    assert (reply.status, reply.body) == (503, b"storage failed")
    assert reply.field("Content-Type") == "text/plain"
    server.info("before").is_json(200, room_info("before", "c", "key"))
    server.set("before", "other").is_json(400, ALREADY_EXISTS)
    server.stop()
    assert server.stderr.all()
    server = serve()
    server.info("before").is_json(200, room_info("before", "c", "key"))
    assert server.set("another", "second").status in (200, 400)


def test_a_disk_that_fails_at_the_start(serve, tmp_path):
    """No ready line: what was read might not be on disk."""
    serve().stop()
    server = serve.launch(**inject("error=EIO:when=1+"))
    server.expected_stderr, server.expected_exit = "keys.log", 1
    server.judge()
    assert server.stdout.all() == []


def test_the_log_is_readable_by_its_owner_alone(serve):
    old = os.umask(0)
    try:
        server = serve()
    finally:
        os.umask(old)
    assert (server.directory / "keys.log").stat().st_mode & 0o777 == 0o600
