"""import: key IDs from another roomkeyd or from a real server's database, each set once."""

import gzip
import json
import os
import pty
import re
import resource
import struct
import subprocess
import time

import pytest

from server import ALICE, TIMEOUT_S, binary, records, run, tool, write_data
from test_disk import contents

ODD_ROOM, ODD_KEY = 'tab\tquote"back\\slash', "new\nline ü \U0001f511"


@pytest.fixture(name="data")
def _data(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path / "data"


def command(*arguments, text="", **options):
    """A finished command: (exit code, standard output, standard error)."""
    done = run(*arguments, stdin=None, input=text, **options)
    return done.returncode, done.stdout, done.stderr


def line(room, key):
    return json.dumps({"_id": room, "e2eKeyId": key}) + "\n"


def lines(count, start=0):
    return "".join(line(f"room-{i}", f"key {i}") for i in range(start, start + count))


def summary(new, known=0, without=0, another=0):
    end = f", {another} with another key ID" if another else ""
    return f"{new} set, {known} set already, {without} without a key ID{end}\n"


def conflict(number, room):
    """What is said of a line whose room has another key ID; json.dumps writes ASCII."""
    return f"roomkeyd: line {number}: the room {json.dumps(room)} has another key ID\n"


def log_of(data):
    return records((data / "keys.log").read_bytes())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_is_the_directory_s_owner_s(data):
    """The log, and a torn tail beside it: for the server, which is not root."""
    os.chown(data, 65534, 65533)
    assert command("import", "--data", data, text=lines(2)) == (0, summary(2), "")
    with open(data / "keys.log", "ab") as log:
        log.write(b"torn")
    assert command("import", "--data", data, text=lines(1))[0] == 0
    made = [path for path in data.iterdir() if path.name.startswith("keys.log")]
    assert len(made) == 3  # with the mark
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65534, 65533)}


def test_what_export_prints_can_be_imported(serve, tmp_path):
    server = serve()
    for room, key in (("a", "1"), (ODD_ROOM, ODD_KEY), ("r" * 255, "k" * 255)):
        assert server.set(room, key).status == 200
    server.stop()
    exported = command("export", "--data", server.directory)[1]
    exported += json.dumps({"_id": "nobody's", "e2eKeyId": "x", "setBy": None}) + "\n"
    write_data(tmp_path / "copy")
    assert command("import", "--data", tmp_path / "copy", text=exported) == (0, summary(4), "")
    assert log_of(tmp_path / "copy") == log_of(server.directory) + [("-", "nobody's", "x")]
    assert command("check", "--data", tmp_path / "copy")[0] == 0
    again = command("export", "--data", tmp_path / "copy")[1]
    without_time = lambda text: re.sub(r',"setAt":"[^"]*"', "", text)
    assert without_time(again) == without_time(exported.replace(": ", ":").replace(", ", ","))


def test_a_server_goes_on_from_there(data, serve):
    assert command("import", "--data", data, text=line("room", "old"))[0] == 0
    server = serve()
    assert server.set("room", "new").status == 400
    assert b'"e2eKeyId":"old"' in server.info("room").body


def test_what_mongoexport_prints(data):
    text = ('{"_id":"GENERAL"}\n'
            '{"_id":"a","e2eKeyId":"eyJhbGciOiJB","u":{"_id":"x"}}\n'
            '{"_id":"b","e2eKeyId":null}\n\n'
            '{"_id":"c","e2eKeyId":""}\r\n'
            '{"e2eKeyId":"0d3c","_id":"d"}')
    assert command("import", "--data", data, text=text) == (0, summary(2, 0, 3), "")
    assert log_of(data) == [("-", "a", "eyJhbGciOiJB"), ("-", "d", "0d3c")]


def test_the_same_value_is_counted(data):
    text = line("a", "1") + line("b", "2") + line("a", "1")
    assert command("import", "--data", data, text=text) == (0, summary(2, 1), "")
    assert command("import", "--data", data, text=text) == (0, summary(0, 3), "")
    assert len(log_of(data)) == 2


@pytest.mark.parametrize("is_before", [True, False])
def test_another_value_is_passed_over_and_named(data, is_before):
    """Whether it was there, or has come with the same input. The rest is imported."""
    if is_before:
        command("import", "--data", data, text=line("b", "1"))
    text = line("a", "1") + ("" if is_before else line("b", "1")) + line("b", "2") + line("c", "3")
    number = 2 if is_before else 3
    assert command("import", "--data", data, text=text) == (
        1, summary(number, another=1), conflict(number, "b"))
    assert sorted(room for _, room, _ in log_of(data)) == ["a", "b", "c"]
    assert ("-", "b", "1") in log_of(data)
    assert command("import", "--data", data, text=text.replace(line("b", "2"), ""))[0] == 0


def test_all_rooms_with_another_value_are_named_at_the_end(data):
    """In order, each time that they come; after a line that ends the import, too."""
    command("import", "--data", data, text=lines(4))
    text = "".join(line(f"room-{i}", "new") + line(f"more-{i}", "1") for i in (3, 1, 3)) + "\n[]\n"
    code, output, errors = command("import", "--data", data, text=text + lines(9))
    assert (code, output) == (1, summary(2, known=1, another=3))
    first, *named = errors.splitlines(keepends=True)
    assert first.startswith("roomkeyd: line 8: not a JSON object")
    assert named == [conflict(1, "room-3"), conflict(3, "room-1"), conflict(5, "room-3")]


@pytest.mark.parametrize("room", [
    "\x1b[2J\x1b]0;title\x07", "line\nroomkeyd: line 9: \r", 'quote"back\\slash', "\x7f", "\x9b31m", "ü",
    "\u202egpj", "\u2028", "\U0001f511", "r" * 255, "\x01" * 255, "\U0010ffff" * 63, "%s%n",
], ids=ascii)
def test_a_name_does_no_harm_on_a_terminal(data, room):
    """A client has chosen it: it comes as a JSON string of printable ASCII, whole."""
    assert command("import", "--data", data, text=line(room, "1"))[0] == 0
    code, _, errors = command("import", "--data", data, text=line(room, "2"))
    assert code == 1 and errors.isascii() and errors[:-1].isprintable()
    named = re.fullmatch(r'roomkeyd: line 1: the room (".*") has another key ID\n', errors)
    assert json.loads(named[1]) == room


def test_a_hundred_thousand_rooms_with_another_value(data):
    """All of them are named, in little memory and time, and no line between them is lost."""
    count = 100_000
    command("import", "--data", data, text=lines(count))
    text = "".join(line(f"room-{i}", "new") for i in range(count)) + line("the last", "1")
    began = time.monotonic()
    done = subprocess.run([binary("ROOMKEYD_RELEASE"), "import", "--data", data], input=text, text=True,
                          capture_output=True, check=False, timeout=TIMEOUT_S)
    assert time.monotonic() - began < 10
    assert (done.returncode, done.stdout) == (1, summary(1, another=count))
    assert done.stderr == "".join(conflict(i + 1, f"room-{i}") for i in range(count))


def test_no_memory_to_keep_their_names(data, tmp_path):
    """Then they are named at once, those that were kept first. Whichever allocation fails: what is
    printed as done is done, and nobody is left out."""
    count = 1000  # more than fit into the first space
    command("import", "--data", data, text=lines(count))
    before = contents(data)
    text = "".join(line(f"room-{i}", "new") for i in range(count)) + line("the last", "1")
    expected = "".join(conflict(i + 1, f"room-{i}") for i in range(count))
    report = tmp_path / "report"

    def import_with(fault):
        for name, content in before.items():
            (data / name).write_bytes(content)
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [binary("ROOMKEYD_FAULTS"), "import", "--data", data], input=text, capture_output=True, text=True,
            check=False, timeout=TIMEOUT_S,
            env={**os.environ, "FAULTS": fault, "FAULTS_REPORT": str(report)})
        used = {name.rstrip(b"\0"): used for name, used, _ in
                struct.iter_unpack("16sII", report.read_bytes())}
        return done, used[b"realloc"]

    done, uses = import_with("")
    assert (done.stdout, done.stderr) == (summary(1, another=count), expected) and uses >= 4
    named = 0
    for first in range(1, uses + 1):
        for times in (1, 4_000_000_000):
            done, _ = import_with(f"realloc {first} {times} 12")
            assert done.returncode == 1
            if done.stdout == summary(1, another=count):
                assert done.stderr == expected
                named += 1
            else:
                assert "roomkeyd: " in done.stderr, done
    assert named > 0


@pytest.mark.parametrize("bad, why", [
    ("{", "unexpected end: this is an object over several lines"),
    ("nonsense", "expected"),
    ("[]", "not a JSON object: this is an array"),
    ("\0", "expected a value"),
    ("{}\ufeff", "text after the value"),
    ('{"_id":"x","e2eKeyId":"y"} {}', "text after the value"),
    ('{"e2eKeyId":"y"}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"","e2eKeyId":"y"}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":{"$oid":"01"},"e2eKeyId":"y"}', "_id, e2eKeyId, setBy must be strings of 1 to 255 bytes, no "
                                             'NUL: the ID is an ObjectId ({"$oid":...})'),
    ('{"_id":{"$OID":"01"},"e2eKeyId":"y"}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":7}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":["y"]}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":"y","setBy":""}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":"y","setBy":1}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"%s","e2eKeyId":"y"}' % ("x" * 256), "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":"%s"}' % ("\\u00e4" * 128), "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":"\\u0000"}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"\\ud800","e2eKeyId":"y"}', "_id, e2eKeyId, setBy must be"),
    ('{"_id":"x","e2eKeyId":"\\udc00"}', "_id, e2eKeyId, setBy must be"),
])
def test_a_bad_line_ends_it(data, bad, why):
    """What was read before is in; what comes behind is not."""
    text = line("a", "1") + line("b", "2") + bad + "\n" + line("c", "3")
    code, output, errors = command("import", "--data", data, text=text)
    assert (code, output) == (1, summary(2))
    assert errors.startswith("roomkeyd: line 3: ") and why in errors
    assert [room for _, room, _ in log_of(data)] == ["a", "b"]
    assert command("import", "--data", data, text=text.replace(f"\n{bad}\n", "\n")) == (0, summary(1, 2), "")


def bson(rid):
    """A room as mongodump writes it."""
    members = b"".join(b"\2%s\0%s%s\0" % (name, struct.pack("<i", len(value) + 1), value) for name, value in
                       ((b"_id", rid), (b"t", b"c"), (b"e2eKeyId", b"k")))
    return struct.pack("<i", len(members) + 5) + members + b"\0"


ROOM = {"_id": "r", "t": "c", "e2eKeyId": "k"}
JSON_LINE = json.dumps(ROOM) + "\r\n"
TABLE = [[*ROOM], [*ROOM.values()]]
FORMATS = {
    "--pretty": (json.dumps(ROOM, indent=2).encode(), "an object over several lines"),
    "--jsonArray": (json.dumps([ROOM]).encode() + b"\n", "an array"),
    "Compass": (json.dumps([ROOM], indent=2).encode(), "an array"),
    "UTF-16": (JSON_LINE.encode("utf-16"), "UTF-16"),
    "UTF-16LE": (JSON_LINE.encode("utf-16-le"), "UTF-16"),
    "UTF-16BE": (JSON_LINE.encode("utf-16-be"), "UTF-16"),
    "CSV": ("".join(",".join(row) + "\n" for row in TABLE).encode(), "CSV or TSV"),
    "TSV": ("".join("\t".join(row) + "\n" for row in TABLE).encode(), "CSV or TSV"),
    "BSON": (bson(b"r"), "BSON"),
    "BSON with a newline in its size": (bson(b"r" * (266 - len(bson(b"")))), "BSON"),
    "gzip": (gzip.compress(JSON_LINE.encode()), "compressed"),
    "HTML": (b"<!DOCTYPE html>\n<title>502 Bad Gateway</title>\n", "HTML or XML"),
    "the shell": (b'{ "_id" : ObjectId("5f1b1a2b3c4d5e6f7a8b9c0d"), "t" : "c" }\n', "the mongo shell"),
    "the new shell": (b"{ _id: 'r', t: 'c' }\n", "the mongo shell"),
    "news": (b"2024-11-23T12:00:00.000+0000\tconnected to: mongodb://localhost/\n", "a message of mongoexport's"),
    "a log of roomkeyd's": (b"roomkeyd keys.log 1\n", "a log of roomkeyd's"),
    "cut": (JSON_LINE.encode() + b'{"_id":"s","t', "its end is missing"),
}


@pytest.mark.parametrize("name", ["import", "users import", "rooms import"])
@pytest.mark.parametrize("form", FORMATS)
def test_other_formats_are_recognised(data, name, form):
    """One sentence names the format, and changes nothing."""
    text, why = FORMATS[form]
    before = contents(data)
    done = subprocess.run([binary(), *name.split(), "--data", data], input=text, capture_output=True,
                          check=False, timeout=TIMEOUT_S)
    errors = done.stderr.decode()
    assert done.returncode == 1 and re.match(r"roomkeyd: line [12]: [^:]+: ", errors), errors
    assert why in errors and errors.count("\n") == 1 and errors.isascii()
    after = contents(data)
    for made in ("keys.log", "keys.log.born"):
        after.pop(made, None)
    assert after == before


def test_the_newline_in_a_size_is_one():
    assert FORMATS["BSON with a newline in its size"][0][:1] == b"\n"


@pytest.mark.parametrize("bad, name", [
    ('{"_id":{"$oid":"01"},"t":"c"}', "rooms import"),
    ('{"_id":"s","rid":{"$oid":"01"},"u":{"_id":"u"}}', "rooms import"),
    ('{"_id":"s","rid":"r","u":{"_id":{"$oid":"01"}}}', "rooms import"),
    ('{"_id":{"$oid":"01"},"services":{}}', "users import"),
])
def test_object_ids_are_named(data, bad, name):
    code, _, errors = command(*name.split(), "--data", data, text=bad + "\n")
    assert code == 1 and 'the ID is an ObjectId ({"$oid":...})' in errors


@pytest.mark.parametrize("text", ["", "\n", " \r\n\n", "\ufeff", "\ufeff\r\n"], ids=ascii)
def test_nothing_to_import(data, text):
    """A mistake that was made before: no -i for docker exec, a failed mongoexport in a pipe."""
    code, output, errors = command("import", "--data", data, text=text)
    assert (code, output) == (1, summary(0))
    assert errors.startswith("roomkeyd: nothing to import: standard input is empty")


def test_rooms_without_a_key_id_are_no_mistake(data):
    """Nobody of this workspace has encrypted a room yet."""
    text = '{"_id":"GENERAL"}\n{"_id":"a","e2eKeyId":null}\n'
    assert command("import", "--data", data, text=text) == (0, summary(0, 0, 2), "")


def test_byte_order_marks_are_passed_over(data):
    """At the beginning of the input, and of the second file that `cat` has put after the first."""
    text = "\ufeff" + line("a", "1") + line("b", "2") + "\ufeff" + line("c", "3")
    assert command("import", "--data", data, text=text) == (0, summary(3), "")
    assert [room for _, room, _ in log_of(data)] == ["a", "b", "c"]


def test_not_beside_a_server(serve):
    server = serve()
    assert server.set("a", "1").status == 200
    before = server.log()
    code, output, errors = command("import", "--data", server.directory, text=line("b", "2"))
    assert (code, output) == (1, "") and "in use by another roomkeyd" in errors
    assert server.log() == before


def test_one_sync_for_many(data, tmp_path):
    """Also where every second line is known already."""
    text = lines(100_000)
    half = "".join(text.splitlines(keepends=True)[::2])
    command("import", "--data", data, text=half)
    trace = tmp_path / "trace"
    done = subprocess.run(
        [tool("strace", "strace"), "-f", "-qq", "-o", trace, "-e", "trace=fdatasync",
         binary("ROOMKEYD_RELEASE"), "import", "--data", data],
        input=text, text=True, capture_output=True, check=True, timeout=TIMEOUT_S)
    assert done.stdout == summary(50_000, 50_000)
    assert 1 <= trace.read_text().count("fdatasync(") <= 6
    assert len(log_of(data)) == 100_000


def test_a_million_lines_in_five_seconds(data):
    """A fifth of them, in a fifth of the time and a second more: the machine may be busy."""
    text = lines(200_000).encode()
    began = time.monotonic()
    done = subprocess.run([binary("ROOMKEYD_RELEASE"), "import", "--data", data], input=text,
                          capture_output=True, check=True, timeout=TIMEOUT_S)
    assert time.monotonic() - began < 2
    assert done.stdout.decode() == summary(200_000)


def test_progress_on_a_terminal_alone(data):
    terminal, stderr = pty.openpty()
    done = run("import", "--data", data, stdin=None, input=lines(40_000), stderr=stderr)
    os.close(stderr)
    assert (done.returncode, done.stdout) == (0, summary(40_000))
    assert os.read(terminal, 4096) == b"roomkeyd: 16384 lines\rroomkeyd: 32768 lines\r"
    os.close(terminal)
    assert command("import", "--data", data, text=lines(40_000)) == (0, summary(0, 40_000), "")


def test_a_log_that_cannot_grow(data):
    """What is counted is there, and the rest can follow."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    text = lines(100_000)
    code, output, errors = command("import", "--data", data, text=text, preexec_fn=limit)
    there = len(log_of(data))
    assert (code, output) == (1, summary(there)) and 0 < there < 100_000
    assert "keys.log: write: File too large" in errors
    assert re.search(r"roomkeyd: line \d+: the disk is full or has failed\n", errors)
    assert command("check", "--data", data)[0] == 0
    assert command("import", "--data", data, text=text) == (0, summary(100_000 - there, there), "")


def test_a_disk_without_space_for_the_last_few(data):
    """They are written when the input has ended."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    code, output, errors = command("import", "--data", data, text=lines(10), preexec_fn=limit)
    assert (code, output) == (1, summary(0))
    assert "\nroomkeyd: line 10: the disk is full or has failed\n" in errors  # gcov's may follow
    assert command("import", "--data", data, text=lines(10)) == (0, summary(10), "")


@pytest.mark.parametrize("call", ["fdatasync", "pread64"])
def test_a_disk_that_fails(data, call):
    """Once, at the first call of any thread, at the second and so on: what is printed as set is there,
    and nothing is printed as done that is not. (A room twice is one commit, twice so another one.)"""
    assert command("import", "--data", data, text=lines(2))[0] == 0
    text = lines(2) + 2 * line("new", "n") + 2 * line("newer", "n") + lines(1, start=5)
    before, codes = contents(data), set()
    options = os.environ.get("ASAN_OPTIONS", "")
    for number in range(1, 16):
        for name, content in before.items():
            (data / name).write_bytes(content)
        done = subprocess.run(
            [tool("strace", "strace"), "-f", "-qq", "-o", os.devnull, "-P", data / "keys.log", "-e",
             f"trace={call}", "-e", f"inject={call}:error=EIO:when={number}", binary(), "import",
             "--data", data],
            input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            env={**os.environ, "ASAN_OPTIONS": f"{options}:detect_leaks=0"})
        codes.add(done.returncode)
        if found := re.match(r"(\d+) set, ", done.stdout):
            assert len(log_of(data)) >= 2 + int(found[1]), done
        if done.returncode == 0:
            assert done.stdout == summary(3, 4)
        else:
            assert done.stderr.startswith("roomkeyd: "), done
    assert codes == {0, 1}


def test_input_that_cannot_be_read(data):
    directory = os.open(data, os.O_RDONLY)
    done = run("import", "--data", data, stdin=directory)
    os.close(directory)
    assert (done.returncode, done.stdout) == (1, summary(0))
    assert done.stderr == "roomkeyd: line 0: Is a directory\n"


def test_a_directory_that_is_not_there(tmp_path):
    code, output, errors = command("import", "--data", tmp_path / "none", text=line("a", "1"))
    assert (code, output) == (1, "") and "No such file or directory" in errors


def test_a_log_that_is_damaged_is_not_added_to(data):
    command("import", "--data", data, text=lines(3))
    log = bytearray((data / "keys.log").read_bytes())
    log[40] ^= 1
    (data / "keys.log").write_bytes(log)
    before = contents(data)
    code, output, errors = command("import", "--data", data, text=lines(9))
    assert (code, output) == (1, "") and "damaged" in errors and contents(data) == before


def test_who_set_it_is_kept(data):
    text = json.dumps({"_id": "a", "e2eKeyId": "1", "setBy": ALICE, "setAt": "2020-01-01"}) + "\n"
    assert command("import", "--data", data, text=text)[0] == 0
    assert log_of(data) == [(ALICE, "a", "1")]


def test_usage_and_help():
    code, output, errors = command("import", "file")
    assert (code, output) == (2, "") and errors.endswith("usage: roomkeyd import [--data DIR] <FILE\n")
    code, output, errors = command("import", "--help")
    assert (code, errors) == (0, "") and output.startswith("usage: roomkeyd import ")
