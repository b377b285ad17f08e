"""Is one room's key ID one register that is written once? Asked of a server that keeps dying.

Clients set and read the same rooms, each with a key of its own for every attempt. Meanwhile the
server is killed, also while it starts; stopped for a while, killed or not; ended in good order; and
its log meets a size limit, as on a full disk. Clients lose patience, go away and try again. Each
operation is noted with the times between which it must have had its effect, if it had one:

    set a    |-----------------------------------  no reply: it may have won, at any time since
    read          |---|none                        unset at some moment in here
    set b                  |-----|exists           set by the end of this
    read                             |---|a        and by what was a's set, then

Afterwards every room's history must have an explanation: one order of its operations, in which each
takes effect at one moment between its begin and its end, that a register which is written once
would answer in the same way (it is linearizable). As there is one write at most, there is no order
to search for; `why_impossible` says all there is to it. It is tested itself before anything else:
on histories that are wrong in each of the ways there are, and on thousands of random ones, against
a search through all orders.

    ROOMKEYD=build/release/roomkeyd SECONDS=30 SEED=1 python3 tests/crash/torture.py [--self-test]

SEED decides what is tried, but not how the scheduler interleaves it. Exit code 1: a violation, with
the room's history; the data directory is kept then.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

from server import (
    ALREADY_EXISTS,
    EVERY_ROOM,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    USERS,
    Client,
    Server,
    in_threads,
    info_request,
    records,
    set_request,
    write_data,
)

CLIENTS = 8
ROOMS_PER_S = 300  # so many become the newest one, which most clients go for
PATIENCE_S = (0.02, 0.1, 0.5)  # how long a client waits for a reply
PAUSE_S = 0.002  # and, at most, between two requests: histories have to fit into memory
VACUOUS_BELOW_S = 10  # a shorter run need not have seen everything

# What the server may say on standard error while it is treated like this.
EXPECTED_STDERR = (r"keys\.log: (write: File too large: sets are refused while that lasts"
                   r"|there is space again, sets are taken"
                   r"|a crash left a torn tail of .*)$")  # killed between the write and the cut


# ---- histories ---------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Operation:
    """One request, and what its client came to know of it."""

    kind: str  # "set" or "read"
    room: str
    key: str | None = None  # which was to be set, or was read
    invoked: float = 0  # before the first byte was sent
    completed: float = math.inf  # when the reply was there; never, if the effect may be yet to come
    outcome: str = "unknown"  # set: "ok", "exists", "unavailable"; read: "value", "none"

    def __str__(self):
        end = "..." if self.completed == math.inf else f"{self.completed:.6f}"
        return f"{self.invoked:.6f} to {end}: {self.kind} {self.key or ''} -> {self.outcome}"


def why_impossible(operations):
    """Why no order explains one room's operations, or None if one does.

    The room gets its key at one moment. Nobody can have seen it unset later (so that moment is no
    earlier than the begin of any read of none, nor than that of the winning set) and nobody can
    have seen it set before (so it is no later than the end of any operation that showed it set).
    If the two bounds leave a moment, that moment explains every operation.
    """
    shows_set = [one for one in operations if one.outcome in ("ok", "exists", "value")]
    if not shows_set:
        return None
    if sum(one.outcome == "ok" for one in operations) > 1:
        return "two sets succeeded"
    keys = {one.key for one in shows_set if one.outcome != "exists"}
    if len(keys) > 1:
        return f"more than one key: {', '.join(sorted(keys))}"

    first = min(shows_set, key=lambda one: one.completed)
    for one in operations:
        if one.outcome == "none" and one.invoked > first.completed:
            return f"set, and later not: [{first}], then [{one}]"

    sets = [one for one in operations if one.kind == "set"]
    if keys:
        winners = [one for one in sets if one.key in keys]
        if not winners:
            return f"nobody has tried to set {keys.pop()}"
        if winners[0].outcome == "exists":
            return f"a key won whose set was refused: [{winners[0]}]"
    else:
        winners = [one for one in sets if one.outcome in ("unknown", "unavailable")]
    if all(one.invoked > first.completed for one in winners):
        return f"set before anybody can have set it: [{first}]"
    return None


# ---- the checker, checked ----------------------------------------------------------------------


def by_search(remaining, key=None):
    """Whether some order explains operations of a room that has a key: by trying all of them."""
    if all(one.completed == math.inf for one in remaining):
        return True
    horizon = min(one.completed for one in remaining)
    for one in remaining:
        if one.invoked > horizon:
            continue  # another one had ended before this one began
        rest = [other for other in remaining if other is not one]
        if any(by_search(rest, after) for after in keys_after(one, key)):
            return True
    return False


def keys_after(one, key):
    """What an operation may leave of a room that has a key (or None) then; nothing if it cannot."""
    if one.outcome == "ok":
        return [one.key] if key is None else []
    if one.outcome == "exists":
        return [key] if key is not None else []
    if one.outcome == "none":
        return [key] if key is None else []
    if one.outcome == "value":
        return [key] if key == one.key else []
    return [key, one.key] if one.kind == "set" and key is None else [key]


def a_set(key, invoked, completed, outcome):
    return Operation("set", "room", key, invoked, completed, outcome)


def a_read(key, invoked, completed):
    return Operation("read", "room", key, invoked, completed, "value" if key else "none")


NEVER = math.inf
A_WON = a_set("a", 1, 2, "ok")
A_BROKE = a_set("a", 1, NEVER, "unknown")
WRONG = [
    ("two sets", [A_WON, a_set("b", 3, 4, "ok")]),
    ("two sets", [A_WON, a_set("b", 1, 2, "ok")]),
    ("more than one key", [A_WON, a_set("b", 1, 2, "exists"), a_read("b", 3, 4)]),
    ("more than one key", [A_BROKE, a_set("b", 1, NEVER, "unknown"), a_read("a", 3, 4),
                           a_read("b", 3, 4)]),
    ("more than one key", [A_BROKE, a_set("b", 3, 4, "ok"), a_read("a", 5, 6)]),
    ("and later not", [A_WON, a_read(None, 3, 4)]),
    ("and later not", [A_BROKE, a_read("a", 3, 4), a_read(None, 5, 6)]),
    ("and later not", [A_BROKE, a_set("b", 3, 4, "exists"), a_read(None, 5, 6)]),
    ("and later not", [a_set("a", 1, NEVER, "unavailable"), a_read("a", 3, 4),
                       a_read(None, 5, 6), a_read("a", 7, 8)]),
    ("nobody has tried", [a_read("a", 3, 4)]),
    ("nobody has tried", [a_set("b", 1, NEVER, "unknown"), a_read("a", 3, 4)]),
    ("refused", [a_set("b", 1, NEVER, "unknown"), a_set("a", 1, 2, "exists"),
                 a_read("a", 3, 4)]),
    ("before anybody", [a_set("a", 3, 4, "ok"), a_read("a", 1, 2)]),
    ("before anybody", [a_set("a", 3, NEVER, "unknown"), a_read("a", 1, 2)]),
    ("before anybody", [a_set("a", 1, 2, "exists")]),
    ("before anybody", [a_set("b", 1, 2, "exists"), a_set("a", 3, 4, "ok")]),
    ("before anybody", [a_set("b", 1, 2, "exists"), a_set("a", 3, NEVER, "unknown")]),
]
RIGHT = [
    [],
    [a_read(None, 1, 2)],
    [A_BROKE, a_read(None, 3, 4)],
    [A_BROKE, a_read(None, 3, 4), a_read("a", 5, 6)],  # it was under way for long
    [A_BROKE, a_read(None, 3, 9), a_read("a", 5, 6)],  # reads that overlap
    [A_BROKE, a_set("b", 3, 4, "ok"), a_read("b", 5, 6)],
    [A_BROKE, a_set("b", 3, 4, "exists"), a_read("a", 5, 6)],
    [a_set("a", 1, NEVER, "unavailable"), a_read("a", 3, 4)],
    [a_set("a", 1, NEVER, "unavailable"), a_set("b", 3, 4, "ok")],
    [a_set("a", 1, 4, "ok"), a_set("b", 2, 3, "exists"), a_read("a", 2, 3), a_read(None, 1, 5)],
]


def random_history(luck):
    """Up to five operations, overlapping anyhow, answered anyhow."""
    history = []
    for number in range(luck.randint(1, 5)):
        invoked = luck.randrange(10)
        one = Operation("set", "room", f"{number}", invoked, invoked + luck.randrange(10))
        one.outcome = luck.choice(["ok", "exists", "unknown", "unavailable", "value", "none"])
        if one.outcome in ("unknown", "unavailable"):
            one.completed = math.inf
        if one.outcome in ("value", "none"):
            one.kind = "read"
            one.key = f"{luck.randrange(5)}" if one.outcome == "value" else None
        history.append(one)
    return history


def self_test(seed):
    """Holds the checker to the tables above, and to the search."""
    for expected, history in WRONG:
        why = why_impossible(history)
        assert why and expected in why, (expected, why, list(map(str, history)))
        assert not by_search(history), list(map(str, history))
    for history in RIGHT:
        assert why_impossible(history) is None, (why_impossible(history), list(map(str, history)))
        assert by_search(history), list(map(str, history))
    luck = random.Random(f"{seed} self-test")
    verdicts = collections.Counter()
    for _ in range(20_000):
        history = random_history(luck)
        is_possible = by_search(history)
        verdicts[is_possible] += 1
        assert (why_impossible(history) is None) == is_possible, list(map(str, history))
    assert min(verdicts.values()) > 2000, verdicts
    print(f"the checker finds each of {len(WRONG)} kinds of violation, and agrees with a search on "
          f"{verdicts.total()} random histories ({verdicts[False]} of them impossible)")


# ---- clients -----------------------------------------------------------------------------------


class World:
    """What clients and nemesis share."""

    def __init__(self, seed, seconds):
        self.seed, self.seconds = seed, seconds
        self.started = time.monotonic()
        self.is_over = False
        self.addresses = []  # of the server of the moment, or the one before
        self.histories = [[] for _ in range(CLIENTS + 1)]  # each appended to by one thread
        self.done = collections.Counter()  # what the nemesis did

    def now(self):
        return time.monotonic() - self.started

    def operations(self):
        return [one for history in self.histories for one in history]


class Connection(Client):
    """A client for whom the server's end is nothing unusual."""

    def _receive(self):
        data = super()._receive()
        if not data:
            raise ConnectionError("the server has ended the connection")
        return data


def ask(world, connection, operations):
    """Sends operations at once and notes the replies; OSError leaves the rest unknown."""
    invoked = world.now()
    for one in operations:
        one.invoked = invoked
    connection.send(b"".join(set_request(one.room, one.key) if one.kind == "set"
                             else info_request(one.room) for one in operations))
    for one in operations:
        note(one, connection.reply(), world.now())


def note(one, reply, now):
    """What a reply says of its operation."""
    if (reply.status, reply.body) == (503, STORAGE_UNAVAILABLE):
        one.outcome = "unavailable"  # and completed never: it may have happened, or happen yet
        return
    if one.kind == "read":
        assert reply.status == 200, reply
        room = json.loads(reply.body)["room"]
        assert room["_id"] == one.room, f"{one}: answered for another room: {reply}"
        one.key = room.get("e2eKeyId")
        one.outcome = "none" if one.key is None else "value"
    else:
        assert (reply.status, reply.body) in ((200, SUCCESS), (400, ALREADY_EXISTS)), reply
        one.outcome = "ok" if reply.status == 200 else "exists"
    one.completed = now


def client_main(world, number):
    """Connects, talks until something breaks, connects again."""
    luck = random.Random(f"{world.seed} client {number}")
    history = world.histories[number]
    while not world.is_over:
        with contextlib.suppress(OSError):
            with Connection(luck.choice(world.addresses), luck.choice(PATIENCE_S)) as connection:
                while not world.is_over and luck.random() > 0.01:
                    some = [next_operation(world, luck, f"{number}.{len(history) + i}")
                            for i in range(luck.choice((1, 1, 1, 3, 6)))]
                    history += some
                    ask(world, connection, some)
                    time.sleep(luck.uniform(0, PAUSE_S))
        time.sleep(luck.uniform(0, PAUSE_S))


def next_operation(world, luck, key):
    """Mostly of rooms that are new to everybody, some of any room there has ever been."""
    newest = int(world.now() * ROOMS_PER_S)
    back = luck.randrange(newest + 1) if luck.random() < 0.1 else int(luck.expovariate(0.2))
    room = f"room {max(newest - back, 0)}"
    if luck.random() < 0.4:
        return Operation("set", room, key)
    return Operation("read", room)


# ---- the nemesis -------------------------------------------------------------------------------


def launch(directory):
    """A server that does not listen yet. Half of the clients come over TCP."""
    server = Server(directory, listen=(f"unix:{directory}/socket", "127.0.0.1:0"))
    server.expected_stderr = EXPECTED_STDERR
    return server


def fill_the_disk(server, luck):
    """No room but for some of the next records, for a while. (SIGXFSZ must not kill it either.)"""
    size = (server.directory / "keys.log").stat().st_size + luck.randrange(600)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    time.sleep(luck.uniform(0, 0.05))


def free_the_disk(server):
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE,
                     (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def live(world, server, luck):
    """One life, up to and without its end."""
    server.wait_ready(2)
    world.addresses = server.addresses
    time.sleep(luck.expovariate(1 / 0.04))
    while luck.random() < 0.5:
        is_last = luck.random() < 0.3  # killed as it is then: stopped, or out of space
        if luck.random() < 0.7:
            world.done["stops"] += 1
            server.send_signal(signal.SIGSTOP)
            time.sleep(luck.expovariate(1 / 0.03))
            if is_last:
                return
            server.send_signal(signal.SIGCONT)
        else:
            world.done["full disks"] += 1
            fill_the_disk(server, luck)
            if is_last:
                return
            free_the_disk(server)
        time.sleep(luck.expovariate(1 / 0.02))


def nemesis(world, directory):
    """One life after the other, until the time is up."""
    luck = random.Random(f"{world.seed} nemesis")
    while world.now() < world.seconds:
        server = launch(directory)
        try:
            if luck.random() < 0.2:
                time.sleep(luck.uniform(0, 0.02))  # killed before it is ready, or just after
            else:
                live(world, server, luck)
            if server.process.poll() is not None:
                raise AssertionError(f"it ended by itself: {server.process.returncode}, "
                                     f"{server.stderr.all()}")
            if luck.random() < 0.1:
                server.send_signal(signal.SIGCONT)
                server.wait_ready(2)  # before that a signal ends it at once
                world.done["ends"] += 1
                server.stop()
            else:
                world.done["kills"] += 1
                server.kill()
        finally:
            if server.process.poll() is None:
                server.process.kill()


# ---- the end -----------------------------------------------------------------------------------


def read_everything(world, directory):
    """What is left of it all after one more start: noted as reads. Holds the log against them."""
    server = launch(directory).wait_ready(2)
    rooms = sorted({one.room for one in world.operations()})
    final = [Operation("read", room) for room in rooms]
    with server.client() as connection:
        for start in range(0, len(final), 100):
            ask(world, connection, final[start : start + 100])
    server.stop()
    world.histories[CLIENTS] = final
    logged = [(room, key) for _, room, key in records(server.log())]
    shown = {one.room: one.key for one in final if one.key is not None}
    assert len(logged) == len(dict(logged)), "the log has a room twice"
    assert dict(logged) == shown, "the log and the reads differ"
    # More than the interface promises: all these disks were full, and then the log is cut back.
    refused = {one.key for one in world.operations() if one.outcome == "unavailable"}
    assert not refused & set(shown.values()), "answered 503 for want of space, but it is there"


def judge(world):
    """Prints each room whose history is impossible, and returns how many there are."""
    rooms = collections.defaultdict(list)
    for one in world.operations():
        rooms[one.room].append(one)
    violations = 0
    for room, operations in rooms.items():
        why = why_impossible(operations)
        if why:
            violations += 1
            print(f"\nVIOLATION: {room}: {why}")
            for one in sorted(operations, key=lambda one: one.invoked):
                print(f"    {one}")
    return violations


def unseen(world):
    """Prints what happened, and returns what ought to have happened and did not."""
    outcomes = collections.Counter(f"{one.kind} {one.outcome}" for one in world.operations())
    shown = {one.key for one in world.histories[CLIENTS]}
    for one in world.operations():
        if one.kind == "set" and one.outcome == "unknown":
            outcomes[f"unknown, {'and won' if one.key in shown else 'and in vain'}"] += 1
    counts = outcomes + world.done
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    return [name for name in (
        "set ok", "set exists", "set unavailable", "set unknown", "read value", "read none",
        "read unknown", "unknown, and won", "unknown, and in vain", "kills", "stops", "ends",
        "full disks") if counts[name] == 0]


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    seconds = float(os.environ.get("SECONDS") or 30)
    self_test(seed)
    if sys.argv[1:] == ["--self-test"]:
        return 0

    directory = pathlib.Path(tempfile.mkdtemp(prefix="roomkeyd-torture-"))
    print(f"seed {seed}, in {directory}")
    write_data(directory, USERS, EVERY_ROOM)
    launch(directory).wait_ready(2).stop()
    world = World(seed, seconds)
    world.addresses = [f"{directory}/socket"]
    with in_threads(lambda number: client_main(world, number), range(CLIENTS)):
        try:
            nemesis(world, directory)
        finally:
            world.is_over = True
    read_everything(world, directory)
    violations = judge(world)
    missing = unseen(world) if seconds >= VACUOUS_BELOW_S else []
    if missing:
        print(f"this run proves too little; there was no: {', '.join(missing)}")
    if violations == 0:
        shutil.rmtree(directory)
    print(f"linearizability: {len(world.operations())} operations, {world.done['kills']} kills, "
          f"{world.done['stops']} stops, violations {violations}, seed {seed}")
    return 1 if violations or missing else 0


if __name__ == "__main__":
    sys.exit(main())
