"""Does a key survive what people do to the log of a running server?

Rounds of one server each, on a directory of its own, many rounds at the same time. Clients set and
read rooms; at a random instant a second process, the hand, does one deed to the log: it renames,
replaces, cuts, overwrites, appends to or removes the file, or moves its directory.

    clients   set, read, set ...                              503, 503, read ...
    the hand  ......... older copy ...... saved copy, deed
    round                                                | healthz is 503? | end, restarts, reads

What has to hold then:

    1. The server notices within two seconds, also when nobody sets anything: /healthz is 503, sets
       are refused until the end, one line on standard error says what happened, the exit code is 1.
       Only what left the file as the server wrote it may go unnoticed.
    2. No room has two winners while the server lives, noticed or not.
    3. What was asked for after the deed and acknowledged is in the log.
    4. A restart is refused while the note keys.log.failed is there; and without the note where the
       log is missing or empty.
    5. When the right log is put back and the note is removed, the server starts, and what it shows
       belongs to one history with all that was acknowledged. Where the deed has destroyed bytes,
       the right log is the copy that was saved just before, and what had been acknowledged by then
       is in it.

The self-test is the same with a server that never looks (build/.../tests/blind): there the checks
have to find violations, and keys that are lost, or they prove nothing.

    ROOMKEYD=build/release/roomkeyd ROOMKEYD_BLIND=build/release/tests/blind SECONDS=30 SEED=1 \\
        python3 tests/crash/torture_hands.py [--self-test]

SEED decides the deeds and when they are done, but not how the scheduler interleaves them. DEED=
(a part of a name) does only some. Exit code 1: a violation; its directory is kept.
"""

import collections
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

from server import (
    EVERY_ROOM,
    HEALTHZ,
    STORAGE_UNAVAILABLE,
    USERS,
    Server,
    binary,
    in_threads,
    records,
    set_request,
    write_data,
)
from torture import Operation, World, ask, client_main, why_impossible

WORKERS = 12  # rounds at the same time; most of one is waiting
CLIENTS = 4
NOTICE_S = 2  # how long the server may take
LOAD_S = 0.2  # and how long the clients go on meanwhile
POLL_S = 0.004
BLIND_NOTICE_S = 0.3  # no sense in waiting for one that does not look
VACUOUS_BELOW_S = 10  # a shorter run need not have seen everything
LOST_LINE = (r"roomkeyd: keys\.log: (has|is no longer) .*: nothing more is written, sets are "
             r"refused\. Put the right log back, remove keys\.log\.failed, and start again")
NOTE_LINE = r"roomkeyd: keys\.log: cannot make keys\.log\.failed: .*"  # its directory is gone


# ---- deeds: what the hand does -----------------------------------------------------------------


class Scene:
    """What a deed finds: the log, copies, and other logs."""

    def __init__(self, data, strangers, luck):
        self.data, self.luck = pathlib.Path(data), luck
        self.log = self.data / "keys.log"
        self.aside = self.data.parent / "aside"  # not in the directory that the server looks at
        self.moved = self.data.parent / "moved"
        self.strangers = [pathlib.Path(path).read_bytes() for path in strangers]
        self.older = self.saved = b""  # what the log was a while ago, and just before the deed
        self.kept = None  # where the server's own file is now, if it has a name

    def stranger(self, size):
        """Another shard's log: "shorter" or "longer" than this one, or of "equal" size, which cuts
        its last line."""
        short, long = sorted(self.strangers, key=len)
        if size == "shorter":
            return short[: short.rindex(b"\n", 0, max(len(self.saved) // 2, 21)) + 1]
        return long if size == "longer" else long[: len(self.saved)]

    def beside(self, content):
        """A new file in the directory, to be renamed to the log's name."""
        path = self.data / "incoming"
        path.write_bytes(content)
        return path

    def overwrite(self, content, cut):
        """Writes into the log's own file, as cp (which cuts it first) or dd conv=notrunc would: in
        pieces."""
        with open(self.log, "r+b", buffering=0) as file:
            if cut:
                file.truncate(0)
            half = self.luck.randrange(len(content) + 1)
            file.write(content[:half])
            if self.luck.random() < 0.3:
                time.sleep(self.luck.uniform(0, 0.002))
            file.write(content[half:])

    def append(self, content):
        with open(self.log, "ab", buffering=0) as file:
            file.write(content)

    def line_boundary(self):
        """Where some line of the log begins, but not the first one and not behind the last."""
        ends = [match.end() for match in re.finditer(rb"\n", self.saved)]
        return self.luck.choice(ends[:-1] or ends)


def rename(content=None, aside=False):
    """Renames the log away, and perhaps puts something new in its place."""

    def deed(scene):
        scene.kept = scene.aside if aside else scene.data / "keys.log.1"
        os.rename(scene.log, scene.kept)
        if content:
            scene.log.write_bytes(content(scene))

    return deed


def rename_and_link(scene):
    scene.kept = scene.aside
    os.rename(scene.log, scene.aside)
    os.symlink(scene.aside, scene.log)


def rename_and_make_directory(scene):
    scene.kept = scene.aside
    os.rename(scene.log, scene.aside)
    scene.log.mkdir()


def rename_and_back(scene):
    os.rename(scene.log, scene.aside)
    time.sleep(scene.luck.choice((0, 0, 0.001)))
    os.rename(scene.aside, scene.log)


def replace(content, link=False):
    """Renames another file over the log, which may have a second name."""

    def deed(scene):
        incoming = scene.beside(content(scene))
        if link:
            scene.kept = scene.data / "keys.log~"
            os.link(scene.log, scene.kept)
        os.rename(incoming, scene.log)

    return deed


def remove(link=False):
    def deed(scene):
        if link:
            scene.kept = scene.aside
            os.link(scene.log, scene.kept)
        os.unlink(scene.log)

    return deed


def cut(size):
    def deed(scene):
        os.truncate(scene.log, size(scene))

    return deed


def overwrite(content, cut_first):
    def deed(scene):
        scene.overwrite(content(scene), cut_first)

    return deed


def append(content):
    def deed(scene):
        scene.append(content(scene))

    return deed


def move_directory(make=None):
    """Moves the data directory, and perhaps puts another one in its place."""

    def deed(scene):
        scene.kept = scene.moved / "keys.log"
        os.rename(scene.data, scene.moved)
        if make:
            scene.data.mkdir()
            make(scene)

    return deed


def copy_data(scene):
    write_data(scene.data)
    scene.log.write_bytes(scene.older)


def move_target(scene):
    """Swaps what a symbolic link, which is the data directory, points to."""
    target = pathlib.Path(os.readlink(scene.data))
    scene.moved = target
    scene.kept = target / "keys.log"
    other = scene.data.parent / "other"
    write_data(other)
    (other / "keys.log").write_bytes(scene.older)
    os.symlink(other, scene.data.parent / "link")
    os.rename(scene.data.parent / "link", scene.data)


def remove_link(scene):
    scene.moved = pathlib.Path(os.readlink(scene.data))
    scene.kept = scene.moved / "keys.log"
    os.unlink(scene.data)


def remove_directory(scene):
    """As rm -rf, again and again: the server may leave its note there meanwhile."""
    while scene.data.exists():
        with contextlib.suppress(OSError):
            shutil.rmtree(scene.data)


def older(scene):
    return scene.older


def just_now(scene):
    return scene.log.read_bytes()


def stranger(size):
    return lambda scene: scene.stranger(size)


def first_line(scene):
    return scene.saved[: scene.saved.index(b"\n") + 1]


def last_line(scene):
    return scene.saved[scene.saved.rindex(b"\n", 0, len(scene.saved) - 1) + 1 :]


def nothing(_):
    return b""


KEEPS = "keeps"  # the server's own file stays whole, with a name or without, but in another place
HARMS = "harms"  # its bytes may be gone; where they are not, by chance, nobody needs to notice
HARMLESS = "harmless"  # likewise, but often they are not

DEEDS = {
    "renamed": (KEEPS, rename()),
    "renamed out of the directory": (KEEPS, rename(aside=True)),
    "renamed, an empty file created": (KEEPS, rename(nothing)),
    "renamed, a new log put there": (KEEPS, rename(first_line)),
    "renamed, an older copy put there": (KEEPS, rename(older)),
    "renamed, a symbolic link to it put there": (KEEPS, rename_and_link),
    "renamed, a directory put there": (KEEPS, rename_and_make_directory),
    "renamed, and back": (HARMLESS, rename_and_back),
    "replaced by another log": (KEEPS, replace(stranger("longer"))),
    "replaced by an older copy": (KEEPS, replace(older)),
    "replaced by an equal copy": (KEEPS, replace(just_now)),
    "replaced by an empty file": (KEEPS, replace(nothing)),
    "replaced by another log, with a hard link left": (KEEPS, replace(stranger("equal"), True)),
    "replaced by an older copy, with a hard link left": (KEEPS, replace(older, True)),
    "removed": (KEEPS, remove()),
    "removed, with a hard link left": (KEEPS, remove(link=True)),
    "cut to nothing": (HARMS, cut(lambda _: 0)),
    "cut to the first line": (HARMS, cut(lambda scene: len(first_line(scene)))),
    "cut at a line": (HARMS, cut(Scene.line_boundary)),
    "cut inside a line": (HARMS, cut(lambda scene: scene.luck.randrange(1, len(scene.saved)))),
    "cut to a larger size": (HARMLESS, cut(lambda scene: len(scene.saved)
                                           + scene.luck.choice((1, 100, 512, 4096, 1 << 20)))),
    "overwritten by an older copy (cp)": (HARMS, overwrite(older, True)),
    "overwritten by an older copy (dd)": (HARMLESS, overwrite(older, False)),
    "overwritten by a shorter log (cp)": (HARMS, overwrite(stranger("shorter"), True)),
    "overwritten by a longer log (cp)": (HARMS, overwrite(stranger("longer"), True)),
    "overwritten by a log of equal size (cp)": (HARMS, overwrite(stranger("equal"), True)),
    "overwritten by a shorter log (dd)": (HARMS, overwrite(stranger("shorter"), False)),
    "overwritten by a longer log (dd)": (HARMS, overwrite(stranger("longer"), False)),
    "overwritten by a log of equal size (dd)": (HARMS, overwrite(stranger("equal"), False)),
    "overwritten by itself (cp)": (HARMLESS, overwrite(just_now, True)),
    "overwritten by itself (dd)": (HARMLESS, overwrite(just_now, False)),
    "a byte appended": (HARMLESS, append(lambda _: b"\n")),
    "its last line appended": (HARMLESS, append(last_line)),
    "another log appended": (HARMLESS, append(stranger("longer"))),
    "itself appended": (HARMLESS, append(just_now)),
    "directory moved": (KEEPS, move_directory()),
    "directory moved, an empty one put there": (KEEPS, move_directory(lambda _: None)),
    "directory moved, an older copy put there": (KEEPS, move_directory(copy_data)),
    "directory removed": (KEEPS, remove_directory),
    "directory's link swapped": (KEEPS, move_target),
    "directory's link removed": (KEEPS, remove_link),
}
LINKED = {"directory's link swapped", "directory's link removed"}


def hand_main():
    """The second process: does what each line of standard input asks for, and says when it did."""
    for line in sys.stdin:
        order = json.loads(line)
        luck = random.Random(order["seed"])
        scene = Scene(order["data"], order["strangers"], luck)
        time.sleep(luck.expovariate(1 / 0.01))
        scene.older = scene.log.read_bytes()
        time.sleep(luck.expovariate(1 / 0.03))
        report = {"saving": time.monotonic()}
        scene.saved = scene.log.read_bytes()
        DEEDS[order["deed"]][1](scene)
        report["done"] = time.monotonic()
        saved = scene.data.parent / "saved"
        saved.write_bytes(scene.saved)
        report |= {"kept": str(scene.kept) if scene.kept else None, "moved": str(scene.moved)}
        print(json.dumps(report), flush=True)


# ---- a round -----------------------------------------------------------------------------------


class Violation(Exception):
    """Something that must not be."""


class Round(World):
    """One server, from its first start to its last."""

    def __init__(self, number, deed, place, work):
        super().__init__(f"{work.seed} round {number}", 0)
        self.work, self.deed, self.kind = work, deed, DEEDS[deed][0]
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="round-", dir=place))
        self.luck = random.Random(f"{self.seed} deed")
        self.is_quiet = self.luck.random() < 0.15  # nobody sets anything when the deed is done
        self.data = self.directory / "data"
        self.violations = []
        self.noticed_s = None  # after the deed
        self.own_log = self.own_directory = -1  # the server's log and directory, wherever they are
        self.server = None

    def violate(self, text):
        self.violations.append(text)

    def launch(self, directory):
        self.server = Server(directory, listen=(f"unix:{self.directory}/socket",),
                             program=self.work.program)
        return self.server

    def refuses(self, directory, *patterns):
        """Starts a server that should refuse. If it does not, its reads join the history."""
        server = self.launch(directory)
        try:
            server.wait_ready()
        except AssertionError:
            lines = server.stderr.all()
            is_right = server.process.returncode == 1 and len(lines) == 1 and all(
                re.search(pattern, lines[0]) for pattern in patterns)
            if not is_right:
                self.violate(f"exit {server.process.returncode}, {lines}, not {patterns}")
            return True
        self.read_everything(server)
        server.kill()
        return False

    def read_everything(self, server):
        """Notes as reads what is there now."""
        rooms = sorted({one.room for one in self.operations()})
        final = [Operation("read", room) for room in rooms]
        with server.client() as connection:
            for start in range(0, len(final), 100):
                ask(self, connection, final[start : start + 100])
        self.histories[-1] += final
        logged = [(room, key) for _, room, key in records(server.log())]
        shown = {one.room: one.key for one in final if one.key is not None}
        if len(logged) != len(dict(logged)) or {
            room: key for room, key in logged if room in rooms
        } != shown:
            self.violate("the log and the reads differ")

    # What happens, in order.

    def play(self, hand):
        """All of it."""
        if self.deed in LINKED:
            target = self.directory / "target"
            write_data(target, USERS, EVERY_ROOM)
            os.symlink(target, self.data)
        else:
            write_data(self.data, USERS, EVERY_ROOM)
        server = self.launch(self.data).wait_ready()
        self.addresses = server.addresses
        self.own_log = os.open(self.data / "keys.log", os.O_RDONLY)
        self.own_directory = os.open(self.data, os.O_RDONLY)
        report = self.under_load(server, hand)
        self.check_run(report)
        is_noticed = self.noticed_s is not None
        if not is_noticed and self.kind == KEEPS:
            self.violate("unnoticed")
        self.end(server, is_noticed)
        if is_noticed:
            self.check_note(report)
            self.put_back(report)
        else:
            self.restart_unaware()

    def under_load(self, server, hand):
        """The clients, and the deed; until it is noticed, or not. Returns the hand's report."""
        order = {"deed": self.deed, "data": str(self.data), "seed": f"{self.seed} hand",
                 "strangers": self.work.strangers}
        threads = in_threads(lambda number: client_main(self, number), range(CLIENTS))
        with threads:
            try:
                if self.is_quiet:
                    time.sleep(0.03)
                    self.is_over = True
                report = hand.do(order)
                report["saving"] -= self.started
                report["done"] -= self.started
                self.wait_for_notice(server, report)
                if not self.is_over:
                    time.sleep(self.luck.uniform(0, 0.02))
            finally:
                self.is_over = True
        return report

    def wait_for_notice(self, server, report):
        """Asks /healthz until it is 503, or for so long."""
        with server.client() as client:
            while self.now() - report["done"] < self.work.notice_s:
                asked = self.now()
                reply = client.ask(HEALTHZ)
                if reply.status != 200:
                    assert reply.status == 503 and b"storage failed" in reply.body, reply
                    self.noticed_s = asked - report["done"]
                    reply = client.ask(set_request("too late", "key"))
                    assert (reply.status, reply.body) == (503, STORAGE_UNAVAILABLE), reply
                    return
                self.is_over |= asked - report["done"] > LOAD_S
                time.sleep(POLL_S)

    def check_run(self, report):
        """Judges the server's first life."""
        self.judge("in one run")
        there = self.own_records()
        with contextlib.suppress(OSError):
            there |= read_records((self.data / "keys.log").read_bytes())
        for one in self.operations():
            is_late = one.outcome == "ok" and one.invoked > report["done"]
            if is_late and (one.room, one.key) not in there:
                self.violate(f"lost: acknowledged after the deed, and not in the log: {one}")

    def own_records(self):
        size = os.fstat(self.own_log).st_size
        return read_records(os.pread(self.own_log, size, 0))

    def judge(self, when, operations=None):
        """Holds the rooms' histories (all that happened, if not told otherwise) to the checker."""
        rooms = collections.defaultdict(list)
        for one in self.operations() if operations is None else operations:
            rooms[one.room].append(one)
        for room, history in rooms.items():
            why = why_impossible(history)
            if why:
                self.violate(f"lost, {when}: {room}: {why}")

    def end(self, server, is_noticed):
        """The server's end, and its words."""
        server.expected_exit = 1 if is_noticed else 0
        server.expected_stderr = f"{LOST_LINE}$|{NOTE_LINE}$" if is_noticed else None
        server.stop()
        lines = server.stderr.all()
        if is_noticed and [bool(re.fullmatch(LOST_LINE, line)) for line in lines].count(True) != 1:
            self.violate(f"standard error: {lines}")

    def check_note(self, report):
        """The note is where the server's directory is now, and keeps it from starting there."""
        if self.deed == "directory removed":
            return
        locked = pathlib.Path(f"/proc/self/fd/{self.own_directory}").resolve()
        note = locked / "keys.log.failed"
        if not note.exists():
            self.violate("no note")
            return
        if not note.read_text().startswith("keys.log: "):
            self.violate(f"the note says {note.read_text()}")
        if not self.refuses(locked, "keys.log.failed keeps servers from starting"):
            self.violate("started beside a note")
        here = self.data / "keys.log"
        if report["kept"] != str(locked / "keys.log") and is_nothing(here):
            note.unlink()
            if not self.refuses(self.data, "missing, but keys.log|keys.log: empty"):
                self.violate("started where the log is missing or empty")
                self.judge("without the note")
            note.write_text("keys.log: put back by the test\n")

    def put_back(self, report):
        """Does what the message says; then everything has to be there."""
        if self.kind == KEEPS:
            right = os.pread(self.own_log, os.fstat(self.own_log).st_size, 0)
        else:
            right = (self.directory / "saved").read_bytes()
        moved = pathlib.Path(report["moved"])
        if moved.exists():  # the directory's move is undone
            if self.data.is_symlink():
                self.data.unlink()
            elif self.data.exists():
                shutil.rmtree(self.data)
            if self.deed in LINKED:
                os.symlink(moved, self.data)
            else:
                os.rename(moved, self.data)
        elif not self.data.exists():
            write_data(self.data, USERS, EVERY_ROOM)
        if (self.data / "keys.log").is_dir():
            (self.data / "keys.log").rmdir()
        with contextlib.suppress(FileNotFoundError):
            (self.data / "keys.log").unlink()
        (self.data / "keys.log").write_bytes(right)
        (self.data / "keys.log.failed").unlink(missing_ok=True)
        server = self.launch(self.data).wait_ready()
        before = self.operations()
        self.histories[-1] = []
        self.read_everything(server)
        server.stop()
        if self.kind != KEEPS:
            before = known_by(before, report["saving"])
        self.judge("after the right log was put back", before + self.histories[-1])

    def restart_unaware(self):
        """Nothing was noticed: the server starts again as a supervisor would start it."""
        if self.refuses(self.data):
            self.violate("nothing was noticed, but a restart is refused")
        else:
            self.judge("after a restart")

    def finish(self):
        """Leaves no process behind; and no files, if all is well."""
        if self.server and self.server.process.poll() is None:
            self.server.process.kill()
            self.server.process.wait()
        for descriptor in (self.own_log, self.own_directory):
            if descriptor >= 0:
                os.close(descriptor)
        if not self.violations or self.work.is_self_test:
            shutil.rmtree(self.directory)


def is_nothing(path):
    return not os.path.lexists(path) or (path.is_file() and path.stat().st_size == 0)


def read_records(log):
    """(room, key) of all that looks like a record, also in a log that is damaged."""
    text = log.decode(errors="replace")
    return {(room, key) for _, room, key in records(text.encode())}


def known_by(operations, since):
    """What has to be there later of a history that was copied at a time: what ended after that may
    have had its effect before, or not. (Reads after it, by which nothing is changed, are left out.)
    """
    unknown = [Operation("set", one.room, one.key, one.invoked)
               for one in operations if one.kind == "set" and one.completed > since]
    return unknown + [one for one in operations if one.completed <= since]


# ---- workers -----------------------------------------------------------------------------------


class Hand:
    """The second process, for one round after the other."""

    def __init__(self):
        self.process = None

    def do(self, order):
        """Has one deed done. Returns when, and where the server's log is now."""
        if not self.process:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--hand"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True)
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise AssertionError(f"the hand has died of {order}")
        return json.loads(line)

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.process = None


class Work:
    """What all rounds of a run have in common."""

    def __init__(self, seed, directory, is_self_test):
        self.seed, self.is_self_test = seed, is_self_test
        self.program = binary("ROOMKEYD_BLIND") if is_self_test else binary()
        self.notice_s = BLIND_NOTICE_S if is_self_test else NOTICE_S
        self.places = [str(directory)]
        if os.path.isdir("/dev/shm"):  # where a sync takes no time
            self.places.append(tempfile.mkdtemp(prefix="roomkeyd-hands-", dir="/dev/shm"))
        self.strangers = [str(make_stranger(directory, count)) for count in (30, 2000)]
        chosen = [deed for deed in DEEDS if os.environ.get("DEED", "") in deed]
        self.deeds = random.Random(f"{seed} deeds").sample(chosen, len(chosen))


def make_stranger(directory, count):
    """The log of another server, with so many records."""
    data = directory / f"stranger-{count}"
    if data.exists():
        return data / "keys.log"
    write_data(data, USERS, EVERY_ROOM)
    server = Server(data, listen=(f"unix:{directory}/socket",)).wait_ready()
    with server.client() as client:
        for start in range(0, count, 100):
            numbers = range(start, min(start + 100, count))
            client.send(b"".join(set_request(f"elsewhere {i}", "key") for i in numbers))
            for _ in numbers:
                assert client.reply().status == 200
    server.stop()
    return data / "keys.log"


def play(work, number, hand):
    """One round. Returns what came of it: a dictionary."""
    deed = work.deeds[number % len(work.deeds)]
    game = Round(number, deed, work.places[number // len(work.deeds) % len(work.places)], work)
    try:
        game.play(hand)
    except Exception:  # pylint: disable=broad-except
        game.violate(traceback.format_exc())
    game.finish()
    outcomes = collections.Counter(f"{one.kind} {one.outcome}" for one in game.operations())
    return {"number": number, "deed": deed, "violations": game.violations, "outcomes": outcomes,
            "noticed_s": game.noticed_s, "is_quiet": game.is_quiet,
            "directory": str(game.directory)}


def worker_main(work, first, end, rounds):
    """Every WORKERSth round, until the time is up."""
    results = []
    hand = Hand()
    for number in range(first, rounds, WORKERS):
        if time.monotonic() > end:
            break
        results.append(play(work, number, hand))
    hand.close()
    return results


def play_all(work, end, rounds):
    """All rounds, in several processes. Returns their results."""
    with concurrent.futures.ProcessPoolExecutor(
        WORKERS, mp_context=multiprocessing.get_context("fork")
    ) as pool:
        parts = [pool.submit(worker_main, work, first, end, rounds) for first in range(WORKERS)]
        results = [result for part in parts for result in part.result()]
    for place in work.places[1:]:
        with contextlib.suppress(OSError):
            os.rmdir(place)  # unless something was kept
    return results


# ---- the end -----------------------------------------------------------------------------------


def self_test(seed, directory):
    """A server that does not look at its log has to be found out, and has to lose keys."""
    work = Work(seed, directory, True)
    work.deeds = [deed for deed in work.deeds if DEEDS[deed][0] != HARMLESS]
    results = play_all(work, time.monotonic() + 300, len(work.deeds))
    found = {result["deed"] for result in results if result["violations"]}
    lost = {result["deed"] for result in results
            if any("lost" in text for text in result["violations"])}
    print(f"a server that does not look is found out in {len(found)} of {len(results)} deeds; keys "
          f"are lost in {len(lost)}: {'; '.join(sorted(lost))}")
    # What is gone from the file itself shows as soon as a room is read.
    overlooked = {deed for deed in work.deeds if DEEDS[deed][0] == KEEPS} - found
    assert not overlooked, f"the checks overlook: {overlooked}"
    assert len(lost) >= 3, f"the checks overlook lost keys: {lost}"


def report(results, seconds, seed):
    """Prints what happened. Returns whether nothing was wrong, and all was seen that should be."""
    outcomes, noticed, quiet = collections.Counter(), collections.Counter(), 0
    for result in results:
        outcomes += result["outcomes"]
        noticed[result["deed"]] += result["noticed_s"] is not None
        quiet += result["is_quiet"]
        for text in result["violations"]:
            print(f"\nVIOLATION: round {result['number']}, {result['deed']}, in "
                  f"{result['directory']}: {text}")
    times = sorted(result["noticed_s"] for result in results if result["noticed_s"] is not None)
    print(", ".join(f"{name}: {count}" for name, count in sorted(outcomes.items())))
    if times:
        print(f"noticed {len(times)} of {len(results)} deeds ({quiet} were done while nobody set "
              f"anything), the latest after {times[-1]:.3f} s, half within "
              f"{times[len(times) // 2]:.3f} s")
    missing = [name for name in ("set ok", "set exists", "set unavailable", "set unknown",
                                 "read value", "read none") if outcomes[name] == 0]
    if "DEED" not in os.environ:
        missing += [deed for deed in DEEDS if deed not in {one["deed"] for one in results}]
    bad = sum(bool(result["violations"]) for result in results)
    if seconds >= VACUOUS_BELOW_S and missing:
        print(f"this run proves too little; there was no: {', '.join(missing)}")
    print(f"deeds {len(results)}, acknowledged sets {outcomes['set ok']}, violations {bad}, "
          f"SEED={seed}")
    return bad == 0 and (seconds < VACUOUS_BELOW_S or not missing)


def main():
    if sys.argv[1:] == ["--hand"]:
        hand_main()
        return 0
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    seconds = float(os.environ.get("SECONDS") or 30)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="roomkeyd-hands-"))
    print(f"seed {seed}, in {directory}")
    self_test(seed, directory)
    if sys.argv[1:] == ["--self-test"]:
        shutil.rmtree(directory)
        return 0
    results = play_all(Work(seed, directory, False), time.monotonic() + seconds, 1 << 30)
    is_good = report(results, seconds, seed)
    if not any(result["violations"] for result in results):
        shutil.rmtree(directory)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
