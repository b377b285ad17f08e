"""Every system call of the server's fails: each in its turn, in every way in which it can.

A roomkeyd with faults.c in it is started, asked, made to reread its files and stopped, always by
the same script, while one of its calls fails:

    start    no log yet | a log with a torn tail; users, rooms; TCP and a stale unix socket
    ask      sets, repeated sets, reads; one at a time, pipelined, racing; a chunked body in pieces,
             Expect, a large body; a request to be refused
    reload   SIGHUP, with a room more
    log      every request, in an access log
    stop     SIGTERM, with requests in flight
    start    again, without a fault: what is there?

Whatever fails, each request is answered right, or 503, or its connection is closed; or the server
refuses to start, with exit code 1 and a message that says why. There is no wrong answer, no hang,
no crash, no busy loop, no report of a sanitizer, no exit code that contradicts the messages. What
was acknowledged is there after the restart; what was answered 503 is not (unless the log could not
be cut); the torn tail is in a file of its own. A fault that the interface says nothing of (EINTR, a
short count, a false alarm) is not to be noticed at all.

First all single faults, shuffled: each use of each call, with each errno, once and from then on for
good; and some that belong together. In the time that is left, several at random. SEED decides the
order and the random ones.

    ROOMKEYD_FAULTS=build/asan/tests/faults SECONDS=60 SEED=1 python3 tests/crash/faults.py
    FAULTS='send 3 1 11' ... python3 tests/crash/faults.py      only this run, told in detail

Exit code 1: a violation, with the FAULTS that repeat it; or a call that never failed.
"""

import collections
import dataclasses
import errno
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    HEALTHZ,
    INVALID_ROOM,
    JSON_TYPE,
    SET_PATH,
    STORAGE_UNAVAILABLE,
    SUCCESS,
    USERS,
    Client,
    Server,
    binary,
    compact,
    info_request,
    parse_ready_line,
    records,
    request,
    room_info,
    set_request,
)

HANG_S = 20  # longer than anything that the script asks for may take, on a busy machine
STARVED_S = 1.5  # for a reply that will never come, since no connection can be accepted any more
BUSY_S = 0.6  # of processor time more than a run without faults: a loop that spins
BUSY_PASSES = 3000  # of the server's loop, likewise
VACUOUS_BELOW_RUNS = 400  # fewer runs need not have made every call fail

FOR_GOOD = 4_000_000_000
ONCE = 1

ROOMS = [f"r{i}" for i in range(16)]
OLD = {"old0": "key of old0", "old1": "key\tof\\old1"}
LATE_ROOM = "late"  # which is there after the reload
TORN = b"00c0ffee\t15\tS\t17"


# ---- what can fail -----------------------------------------------------------------------------

# A short count, as faults.c takes it.
BYTES_1, BYTES_20 = -1, -20

# errno: what a call can give now and then. NO_HARM: what nobody is to notice.
NO_HARM = "EINTR EAGAIN BYTES_1 BYTES_20"
SINGLE = {
    "pwrite64": "EIO ENOSPC EDQUOT EFBIG EINTR BYTES_1 BYTES_20",
    "pread64": "EIO EINTR BYTES_1 BYTES_20",
    "read": "EIO EINTR BYTES_1 BYTES_20",
    "fdatasync": "EIO ENOSPC EDQUOT EINTR",
    "fsync": "EIO ENOSPC EDQUOT EINTR",
    "ftruncate64": "EIO EPERM EINTR",
    "open64": "EACCES EMFILE ENFILE ENOMEM",
    "openat64": "EACCES EMFILE ENFILE ENOMEM ENOSPC EDQUOT EROFS EIO",
    "renameat": "EIO ENOSPC EDQUOT EROFS",
    "unlink": "EACCES EROFS",
    "unlinkat": "EIO EROFS",
    "flock": "EWOULDBLOCK ENOLCK ENOMEM",
    "fstat64": "EIO ENOMEM",
    "lstat64": "EACCES ENOMEM",
    "eventfd": "EMFILE ENFILE ENOMEM ENODEV",
    "eventfd_write": "EAGAIN",
    "epoll_create1": "EMFILE ENFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR",
    "socket": "EMFILE ENFILE ENOBUFS ENOMEM EACCES EAFNOSUPPORT",
    "getsockopt": "ENOBUFS",
    "setsockopt": "ENOBUFS",
    "bind": "EACCES EADDRINUSE EADDRNOTAVAIL ENOMEM",
    "listen": "EADDRINUSE",
    "getsockname": "ENOBUFS",
    "connect": "EAGAIN EACCES",
    "accept4": "EINTR EAGAIN ECONNABORTED EPROTO EPERM EMFILE ENFILE ENOBUFS ENOMEM",
    "recv": "EINTR EAGAIN ECONNRESET ETIMEDOUT ENOMEM BYTES_1 BYTES_20",
    "send": "EINTR EAGAIN ECONNRESET EPIPE ETIMEDOUT ENOBUFS ENOMEM BYTES_1 BYTES_20",
    "shutdown": "ENOTCONN ENOBUFS",
    "write": "EIO ENOSPC EINTR EAGAIN BYTES_1 BYTES_20",
    "getpeername": "ENOTCONN ENOBUFS",
    "pthread_create": "EAGAIN",
    "getrandom": "ENOSYS",
    "malloc": "ENOMEM",
    "calloc": "ENOMEM",
    "realloc": "ENOMEM",
}
# And what may stay that way: a full or a dead disk, no memory, no descriptors, a security policy.
FOR_GOOD_TOO = {
    "pwrite64": "EIO ENOSPC EDQUOT EFBIG",
    "pread64": "EIO",
    "read": "EIO",
    "fdatasync": "EIO",
    "fsync": "EIO",
    "ftruncate64": "EIO",
    "open64": "EACCES EMFILE",
    "openat64": "EACCES EMFILE",
    "eventfd": "EMFILE",
    "epoll_ctl": "ENOMEM",
    "socket": "EMFILE",
    "accept4": "EMFILE ENFILE ENOBUFS ENOMEM EPERM",
    "recv": "ENOMEM",
    "send": "ENOMEM EPIPE",
    "write": "EIO ENOSPC EAGAIN BYTES_1",
    "getpeername": "ENOTCONN",
    "pthread_create": "EAGAIN",
    "malloc": "ENOMEM",
    "calloc": "ENOMEM",
    "realloc": "ENOMEM",
}
# Calls for which EAGAIN is an answer like any other.
FINAL = {"connect", "flock", "pthread_create"}
# Calls on behalf of one connection: if one fails, no other connection is to notice.
OF_A_CONNECTION = set("accept4 calloc epoll_ctl malloc realloc recv send shutdown".split())
MOST_REPLIES = 6  # on one connection of the script
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def number_of(what):
    return {"BYTES_1": BYTES_1, "BYTES_20": BYTES_20}.get(what) or getattr(errno, what)


@dataclasses.dataclass(frozen=True)
class Fault:
    """From the first use on, so many times, call fails with errno what; or does -what bytes."""

    call: str
    first: int
    times: int
    what: int

    def __str__(self):
        return f"{self.call} {self.first} {self.times} {self.what}"

    def is_harmless(self):
        return self.what in map(number_of, NO_HARM.split()) and self.call not in FINAL

    def shuts_out(self):
        """Whether clients may wait in vain for their connection to be accepted."""
        return self.times == FOR_GOOD and self.call in ("accept4", "epoll_ctl")


def parse_faults(text):
    """Faults as faults.c takes them."""
    quadruples = [one.split() for one in text.split(";") if one.strip()]
    return tuple(Fault(call, *map(int, numbers)) for call, *numbers in quadruples)


# ---- what clients know -------------------------------------------------------------------------


class Violation(Exception):
    """What must not happen."""


def expect(condition, *what):
    if not condition:
        raise Violation(" ".join(map(str, what)))


class Book:
    """What the server has said of each room, and what may be true on top of that."""

    def __init__(self, known):
        self.known = dict(known)  # room -> its key
        self.possible = collections.defaultdict(set)  # room -> keys whose set has no reply (yet)
        self.refused = set()  # (room, key) of a set that was answered 503
        self.harm = []  # what a client could notice
        self.is_failed = False  # sets are refused until restart, as /healthz has said

    def set_request(self, room, key):
        self.possible[room].add(key)
        return set_request(room, key)

    def note_set(self, room, key, reply):
        if reply is None:
            self.harm.append(f"no reply to set {room}")
            return
        self.possible[room].discard(key)
        if (reply.status, reply.body) == (200, SUCCESS):
            expect(room not in self.known, f"{room} is set to {key}, and was known:", self.known)
            expect(not self.is_failed, f"{room} is set, on a disk that has failed")
            self.known[room] = key
        elif (reply.status, reply.body) == (400, ALREADY_EXISTS):
            expect(room in self.known or self.possible[room], f"{room} is said to be set: {reply}")
        else:
            self.note_503(reply)
            self.refused.add((room, key))

    def note_info(self, room, reply):
        if reply is None:
            self.harm.append(f"no reply about {room}")
            return
        if reply.status != 200:
            self.note_503(reply)
            return
        key = json.loads(reply.body)["room"].get("e2eKeyId")
        expect(reply.body == room_info(room, "c", key), f"asked for {room}: {reply}")
        self.note_key(room, key)

    def note_health(self, reply):
        if reply is None:
            self.harm.append("no reply about its health")
        elif (reply.status, reply.body) == (200, b"ok"):
            expect(not self.is_failed, "a disk that has failed is said to be well")
        else:
            expect((reply.status, reply.body) == (503, b"storage failed"), reply)
            self.harm.append("storage failed")
            self.is_failed = True

    def note_key(self, room, key):
        if room in self.known:
            expect(key == self.known[room], f"{room} had {self.known[room]!r}, has {key!r}")
        elif key is not None:
            expect(key in self.possible[room], f"nobody has set {room} to {key!r}")
            self.known[room] = key

    def note_503(self, reply):
        expect((reply.status, reply.body) == (503, STORAGE_UNAVAILABLE), f"a wrong answer: {reply}")
        self.harm.append("503")


# ---- a connection ------------------------------------------------------------------------------


class Lost(Exception):
    """The connection has ended before the reply: that is always allowed."""


class Starved(Exception):
    """Nobody is accepted any more, and the fault explains it."""


class Connection(Client):
    """A client for whom an end of the connection is a Lost, and waiting too long a Violation."""

    def __init__(self, run, address):
        self.run = run
        self.guard(lambda: Client.__init__(self, address, run.patience_s()))

    def guard(self, work):
        try:
            return work()
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise Violation(f"it does not listen: {error}") from error
        except ConnectionError as error:
            raise Lost from error
        except TimeoutError as error:
            if self.run.shuts_out:
                raise Starved from error
            raise Violation(f"no reply for {HANG_S} s") from error
        except AssertionError as error:
            raise Violation(f"a malformed reply: {error}") from error

    def _receive(self):
        data = super()._receive()
        if not data:
            raise ConnectionError("the server has ended the connection")
        return data

    def send(self, data):
        self.guard(lambda: super(Connection, self).send(data))

    def reply(self, to_head=False):
        return self.guard(lambda: super(Connection, self).reply(to_head))

    def head(self):
        return self.guard(lambda: super(Connection, self).head())


# ---- the script --------------------------------------------------------------------------------


class Run:
    """One life of the server under faults, and the next one without."""

    def __init__(self, directory, faults, is_birth):
        self.directory = directory / "data"
        self.faults = faults
        self.is_birth = is_birth
        self.shuts_out = any(fault.shuts_out() for fault in faults)
        self.report = directory / "report"
        self.book = Book({} if is_birth else OLD)
        self.server = None
        self.harm_until_end = []  # what could be noticed before it was told to stop
        self.at_start = {}  # the report when the ready lines were there
        self.processor_s = 0

    def patience_s(self):
        return STARVED_S if self.shuts_out else HANG_S

    # Starting and stopping.

    def launch(self, faults):
        self.report.unlink(missing_ok=True)
        self.server = Server(
            self.directory, "--access-log", self.directory / "access.log", listen=("127.0.0.1:0", f"unix:{self.directory}/socket"),
            program=binary("ROOMKEYD_FAULTS"),
            environment={"FAULTS": ";".join(map(str, faults)), "FAULTS_REPORT": str(self.report),
                         "ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"},
        )

    def has_ended(self):
        return self.server.process.poll() is not None

    def starts(self):
        """Waits for the ready lines, which have to be right; or for a clean refusal."""
        lines = self.server.stdout.wait_for(lambda lines: len(lines) >= 2 and list(lines),
                                            self.has_ended)
        if not lines:
            expect(self.has_ended(), "neither ready nor ended")
            expect(self.server.process.wait() == 1, "exit code", self.server.process.returncode)
            expect(self.server.stderr.all(), "it refuses to start without a word")
            expect(not self.server.stdout.all(), "a ready line of a server that did not start")
            self.book.harm.append("refused to start")
            return False
        self.tcp, self.unix = map(parse_ready_line, lines)
        expect(self.tcp[0] == "127.0.0.1" and self.tcp[1] > 0, "a wrong ready line:", lines)
        expect(self.unix == f"{self.directory}/socket", "a wrong ready line:", lines)
        return True

    def stop(self):
        """Ends the server and holds what it said against its exit code."""
        has_ended_by_itself = self.has_ended() and not self.server.asked_to_stop
        expect(not has_ended_by_itself, "it ended by itself, exit code", self.server.process.poll())
        if not self.server.asked_to_stop:
            self.server.send_signal(signal.SIGTERM)
        try:
            code = self.server.process.wait(HANG_S)
        except subprocess.TimeoutExpired as error:
            raise Violation(f"it did not stop in {HANG_S} s") from error
        failed = any("sets are refused until restart" in line for line in self.server.stderr.all())
        expect(code == (1 if failed else 0), "exit code", code)
        if failed:
            self.book.harm.append("exit code 1")

    def check_stderr(self):
        stray = [line for line in self.server.stderr.all() if not line.startswith("roomkeyd: ")]
        expect(not stray, "stray standard error:", "\n".join(stray))

    # Asking.

    def ask(self, address, *questions):
        """Sends questions on one connection at once. Returns the replies, None for one lost."""
        replies = []
        try:
            with Connection(self, address) as connection:
                connection.send(b"".join(questions))
                for _ in questions:
                    replies.append(connection.reply())
        except Lost:
            pass
        return replies + [None] * (len(questions) - len(replies))

    def set(self, address, *pairs):
        replies = self.ask(address, *(self.book.set_request(*pair) for pair in pairs))
        for (room, key), reply in zip(pairs, replies):
            self.book.note_set(room, key, reply)

    def info(self, address, *rooms):
        for room, reply in zip(rooms, self.ask(address, *map(info_request, rooms))):
            self.book.note_info(room, reply)

    def health(self):
        """Also a barrier: what was sent to the server before has been looked at since."""
        (reply,) = self.ask(self.tcp, HEALTHZ)
        self.book.note_health(reply)

    def pipeline(self):
        """Sets and reads of rooms in one segment: replies in order, each after the one before."""
        replies = self.ask(
            self.tcp, self.book.set_request("r1", "a"), info_request("r1"),
            self.book.set_request("r1", "b"), self.book.set_request("r2", "c"),
            info_request("old0"), info_request("r2"))
        self.book.note_set("r1", "a", replies[0])
        self.book.note_info("r1", replies[1])
        self.book.note_set("r1", "b", replies[2])
        self.book.note_set("r2", "c", replies[3])
        self.book.note_info("old0", replies[4])
        self.book.note_info("r2", replies[5])

    def pieces(self, room, *pieces):
        """A set whose request arrives in pieces; a piece of None waits for the 100 (Continue)."""
        reply = None
        self.book.possible[room].add("key")
        try:
            with Connection(self, self.tcp) as connection:
                for piece in pieces:
                    if piece is None:
                        expect(connection.head() == b"HTTP/1.1 100 Continue", "no 100")
                    else:
                        connection.send(piece)
                        self.health()
                reply = connection.reply()
        except Lost:
            pass
        self.book.note_set(room, "key", reply)

    def chunked(self):
        body = compact({"rid": "r3", "keyID": "key"})
        fields = (*ALICE_FIELDS, JSON_TYPE, ("Transfer-Encoding", "chunked"))
        head = request("POST", SET_PATH, fields)
        self.pieces("r3", head[:30], head[30:], b"5\r\n" + body[:5] + b"\r\n%x;x=y\r\n"
                    % len(body[5:]), body[5:] + b"\r\n", b"0\r\nTrailer: x\r\n\r\n")

    def expectation(self):
        fields = (*ALICE_FIELDS, JSON_TYPE, ("Expect", "100-continue"))
        whole = request("POST", SET_PATH, fields, compact({"rid": "r4", "keyID": "key"}))
        cut = whole.index(b"\r\n\r\n") + 4
        self.pieces("r4", whole[:cut], None, whole[cut:])

    def large(self):
        """A body for which inbox and tokens have to be allocated."""
        body = compact({"filler": [0] * 20000, "rid": "r5", "keyID": "key"})
        whole = request("POST", SET_PATH, (*ALICE_FIELDS, JSON_TYPE), body)
        self.pieces("r5", whole[:1000], whole[1000:5000], whole[5000:])

    def race(self):
        """Two connections set one room; both batches may be under way."""
        sets = [["r6", "a", None], ["r6", "b", None]]
        connections = []
        for one in sets:
            try:
                connections.append(Connection(self, self.unix))
                connections[-1].send(self.book.set_request(*one[:2]))
            except Lost:
                connections.append(None)
        for one, connection in zip(sets, connections):
            try:
                one[2] = connection and connection.reply()
            except Lost:
                pass
            if connection:
                connection.close()
        for one in sets:
            self.book.note_set(*one)

    def refusal(self):
        """A request that ends the connection."""
        try:
            with Connection(self, self.tcp) as connection:
                connection.send(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n")
                expect(connection.reply().status == 505, "not refused")
                connection.guard(connection._receive)
                raise Violation("not closed")
        except Lost:
            pass

    def reload(self):
        """A room more: it is there in the end, or a message says why not; twice at most."""
        self.write_rooms(*ROOMS, *OLD, LATE_ROOM)
        for _ in range(2):
            said = len(self.failed_reloads())
            self.server.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + HANG_S
            while len(self.failed_reloads()) == said:
                (reply,) = self.ask(self.tcp, self.book.set_request(LATE_ROOM, "key"))
                if reply is None or reply.body != INVALID_ROOM:
                    self.book.note_set(LATE_ROOM, "key", reply)
                    return
                expect(time.monotonic() < deadline, "users and rooms are never reread")
                time.sleep(0.005)
            self.book.harm.append("no reload")

    def failed_reloads(self):
        return self.server.stderr.wait_for(
            lambda lines: [line for line in lines if re.search(
                "cannot reload|users and rooms stay as they were|is mended$", line)], lambda: True)

    def end(self):
        """Requests that are in flight when the server is told to stop are answered."""
        self.harm_until_end = list(self.book.harm)
        sets = [["r7", "key", None], ["r8", "key", None]]
        try:
            with Connection(self, self.tcp) as connection:
                connection.send(b"".join(self.book.set_request(*one[:2]) for one in sets))
                self.server.send_signal(signal.SIGTERM)
                for one in sets:
                    one[2] = connection.reply()
        except Lost:
            pass
        for one in sets:
            self.book.note_set(*one)

    def ask_everything(self):
        self.info(self.tcp, "r0")
        self.set(self.tcp, ("r0", "key\t0"), ("r0", "another"))
        self.info(self.unix, "r0")
        if self.is_birth:
            return
        self.set(self.tcp, ("old0", "late"))
        self.info(self.tcp, *OLD)
        self.pipeline()
        self.chunked()
        self.expectation()
        self.large()
        self.race()
        self.refusal()
        self.health()
        self.reload()
        self.end()

    # The files.

    def write_rooms(self, *rooms):
        members = " ".join(f"user{i}" for i in range(12))
        text = "".join(f"{room} c\n" for room in rooms) + f"large p {members}\n"
        (self.directory / "rooms").write_text(text, encoding="utf-8")

    def prepare(self, old_log):
        self.directory.mkdir()
        (self.directory / "users").write_text(USERS, encoding="utf-8")
        self.write_rooms(*ROOMS, *OLD)
        if not self.is_birth:
            (self.directory / "keys.log").write_bytes(old_log + TORN)
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(self.directory / "socket"))

    def check_files(self, old_log):
        """No room twice, nothing before the torn tail changed, the torn tail in its own file."""
        log = (self.directory / "keys.log").read_bytes()
        rooms = [room for _, room, _ in records(log)]
        expect(len(rooms) == len(set(rooms)), "the log has a room twice")
        if not self.is_birth:
            expect(log.startswith(old_log), "the log has lost its beginning")
            torn = [path.read_bytes() for path in self.directory.glob("keys.log.torn-*")]
            expect(TORN in torn, "the torn tail is gone:", torn)

    # All of it.

    def live(self):
        """The life under faults."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.launch(self.faults)
        try:
            if self.starts():
                self.at_start = self.read_report()
                try:
                    self.ask_everything()
                except Starved:
                    self.book.harm.append("nobody is accepted")
                self.stop()
        finally:
            if not self.has_ended():
                self.server.process.kill()
                self.server.process.wait()
        self.check_stderr()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.processor_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    def read_report(self):
        """{call: (used, failed)}"""
        entries = struct.iter_unpack("16sII", self.report.read_bytes())
        return {name.rstrip(b"\0").decode(): counts for name, *counts in entries}

    def check_afterwards(self, old_log):
        """The next life: is it all there?"""
        self.launch(())
        self.shuts_out = self.book.is_failed = False
        try:
            expect(self.starts(), "it does not start again")
            rooms = [*ROOMS, *OLD]
            for room, reply in zip(rooms, self.ask(self.tcp, *map(info_request, rooms))):
                expect(reply is not None and reply.status == 200, f"about {room}: {reply}")
                key = json.loads(reply.body)["room"].get("e2eKeyId")
                expect(self.may_be_there(room, key), f"{room} was refused {key!r}, and has it")
                if (room, key) not in self.book.refused:
                    self.book.note_key(room, key)
            self.set(self.tcp, ("r15", "works"))
            expect(self.book.known.get("r15") == "works", "sets do not work again")
            self.stop()
        finally:
            if not self.has_ended():
                self.server.process.kill()
                self.server.process.wait()
        self.check_files(old_log)

    def may_be_there(self, room, key):
        could_not_cut = any(fault.call == "ftruncate64" for fault in self.faults)
        return (room, key) not in self.book.refused or could_not_cut


# ---- what is tried -----------------------------------------------------------------------------


class Plan:
    """How often the script uses each call, and what that leaves to be tried."""

    def __init__(self, directory):
        self.directory = directory
        self.old_log = b""
        self.used = {}  # is_birth -> {call: uses in a run without faults}
        self.passes = self.processor_s = 0
        self.runs = 0
        self.injected = collections.Counter()  # call -> faults that happened

    def measure(self):
        """Makes the old log, and runs the script without faults."""
        run = self.new_run((), True)
        run.prepare(b"")
        run.book.known = {}
        run.launch(())
        expect(run.starts(), "no server without faults")
        run.write_rooms(*ROOMS, *OLD)
        run.set(run.tcp, *OLD.items())
        expect(run.book.known == OLD, "not set without faults:", run.book.harm)
        run.stop()
        self.old_log = (run.directory / "keys.log").read_bytes()
        for is_birth in (True, False):
            run, report = self.live((), is_birth)
            expect(not run.book.harm, "harm without faults:", run.book.harm)
            counts = run.at_start if is_birth else report
            self.used[is_birth] = {call: used for call, (used, _) in counts.items()}
        self.passes, self.processor_s = self.used[False]["epoll_wait"], run.processor_s

    def new_run(self, faults, is_birth):
        self.runs += 1
        directory = self.directory / f"{self.runs}"
        directory.mkdir()
        return Run(directory, faults, is_birth)

    def live(self, faults, is_birth):
        """Runs the script once. Returns the run and its report; judges everything."""
        run = self.new_run(faults, is_birth)
        run.prepare(self.old_log)
        try:
            try:
                run.live()
            finally:
                report = run.read_report()
                self.injected.update({call: failed for call, (_, failed) in report.items()})
            if faults:
                self.judge(run, report)
            run.check_afterwards(self.old_log)
        except Violation as violation:
            tell(run, violation)
            raise
        shutil.rmtree(run.directory.parent)
        return run, report

    def judge(self, run, report):
        busy = run.processor_s - self.processor_s
        expect(busy < BUSY_S, f"{busy:.1f} s of processor time too many")
        passes = report["epoll_wait"][0] - self.passes
        expect(passes < BUSY_PASSES, passes, "passes of the loop too many")
        if all(fault.is_harmless() for fault in run.faults):
            # To a server that stops, a client with nothing to receive from is an idle one.
            harm = run.harm_until_end if any(fault.call == "recv" for fault in run.faults) \
                else run.book.harm
            expect(not harm, "it could be noticed:", harm)
        if len(run.faults) == 1:
            self.judge_one(run.book.harm, *run.faults)
        if not any(failed for _, failed in report.values()):
            expect(not run.book.harm, "harm without a fault:", run.book.harm)

    @staticmethod
    def judge_one(harm, fault):
        """What one fault alone is not to do."""
        if fault.call == "pwrite64" and fault.what in FULL_DISK:
            expect("exit code 1" not in harm, "a full disk is no failed disk")
        if fault.call in OF_A_CONNECTION and fault.times == ONCE:
            expect("exit code 1" not in harm, "the disk has not failed")
            expect(len(harm) <= MOST_REPLIES, "more than one connection has noticed:", harm)

    def together(self):
        """Faults that mean something new when they meet: (is_birth, faults)."""
        writes = range(1, self.used[False]["pwrite64"] + 1)
        half = [(Fault("pwrite64", n, ONCE, BYTES_20), Fault("pwrite64", n + 1, ONCE, errno.ENOSPC))
                for n in writes]  # as a disk fills up
        cut = Fault("ftruncate64", 2, ONCE, errno.EIO)  # the first one cuts the torn tail
        uncut = [(Fault("pwrite64", n, ONCE, errno.ENOSPC), cut) for n in writes]
        unclean = [(Fault("pwrite64", 1, ONCE, errno.EIO), Fault("unlinkat", 1, ONCE, errno.EROFS))]
        return [(False, faults) for faults in half + uncut + unclean]

    def singles(self):
        """All runs with one fault: (is_birth, faults)."""
        return [(is_birth, (Fault(call, first, times, number_of(what)),))
                for is_birth, used in self.used.items()
                for table, times in ((SINGLE, ONCE), (FOR_GOOD_TOO, FOR_GOOD))
                for call, whats in table.items()
                for what in whats.split()
                for first in self.uses(Fault(call, 1, times, number_of(what)), used[call])]

    @staticmethod
    def uses(fault, used):
        """Which uses of a call are to fail: all; or some, where each costs a second; or the first half,
        where how many there are depends on who was quicker: requests that are found together take
        fewer passes of the loop."""
        if fault.call == "epoll_wait":
            return range(1, used // 2 + 1)
        if fault.call == "accept4" and not fault.is_harmless():
            return range(1 + fault.what % 9, used + 1, 9)
        return range(1, used + 1)

    def several(self, luck):
        """A run with some faults."""
        is_birth = luck.random() < 0.1
        faults = []
        for _ in range(luck.randint(2, 4)):
            table, times = luck.choice(((SINGLE, luck.choice((1, 1, 2, 5))),
                                        (FOR_GOOD_TOO, FOR_GOOD)))
            call = luck.choice(list(table))
            most = max(self.used[is_birth][call], 1)
            faults.append(Fault(call, luck.randint(1, most), times,
                                number_of(luck.choice(table[call].split()))))
        return is_birth, tuple(faults)


def tell(run, violation):
    """Prints a violation, with how to repeat it."""
    lines = run.server.stderr.wait_for(list, lambda: True) if run.server else []
    print(f"\nVIOLATION: {violation}\n"
          f"    {'BIRTH=1 ' if run.is_birth else ''}FAULTS='{'; '.join(map(str, run.faults))}'\n"
          f"    in {run.directory}, the server said:")
    print("".join(f"        {line}\n" for line in lines), flush=True)


def shortened(runs):
    """One of each kind, at a use that differs from kind to kind."""
    kinds = collections.defaultdict(list)
    for is_birth, faults in runs:
        kind = tuple((fault.call, fault.times, fault.what) for fault in faults)
        kinds[is_birth, kind].append((is_birth, faults))
    return [some[7 * number % len(some)] for number, some in enumerate(kinds.values())]


def in_order(runs, luck):
    """Shuffled, but each call has its turn early."""
    luck.shuffle(runs)
    early = {faults[-1].call: (is_birth, faults) for is_birth, faults in runs}
    return [*early.values(), *(run for run in runs if run not in early.values())]


def never_failed(plan):
    return [call for call in SINGLE if plan.injected[call] == 0]


def try_all(plan, runs, end):
    """Makes runs until the time is up. Returns how many violated what was promised."""
    violations = 0
    for is_birth, faults in runs:
        if time.monotonic() > end:
            break
        try:
            plan.live(faults, is_birth)
        except Violation:
            violations += 1
    return violations


def endless(plan, luck):
    while True:
        yield plan.several(luck)


def repeat(plan, faults, is_birth):
    """One run, told in detail."""
    try:
        run, report = plan.live(faults, is_birth)
    except Violation:
        return 1
    print("failed:", {call: failed for call, (_, failed) in report.items() if failed})
    print("noticed:", run.book.harm)
    shutil.rmtree(plan.directory)
    return 0


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    seconds = float(os.environ.get("SECONDS") or 60)
    end = time.monotonic() + seconds
    directory = pathlib.Path(tempfile.mkdtemp(prefix="roomkeyd-faults-"))
    luck, plan = random.Random(seed), Plan(directory)
    plan.measure()
    if "FAULTS" in os.environ:
        return repeat(plan, parse_faults(os.environ["FAULTS"]), "BIRTH" in os.environ)

    runs = in_order(plan.singles() + plan.together(), luck)
    measured = plan.runs
    violations = try_all(plan, runs, end)
    planned = plan.runs - measured
    violations += try_all(plan, endless(plan, luck), end)
    missing = never_failed(plan) if planned >= VACUOUS_BELOW_RUNS else []
    print(f"{planned} of {len(runs)} planned runs, {plan.runs - measured - planned} with several "
          f"faults at random; {len(+plan.injected)} calls failed")
    if missing:
        print(f"this run proves too little; these calls never failed: {', '.join(missing)}")
    if not violations:
        shutil.rmtree(directory)
    print(f"faults: {plan.injected.total()} injected, violations {violations}, seed {seed}")
    return 1 if violations or missing else 0


if __name__ == "__main__":
    sys.exit(main())
