"""The commands beside `serve`: check, with its --salvage, and export."""

import json
import os
import re
import resource
import struct
import subprocess

import pytest

from server import (
    ALICE, REPOSITORY, TIMEOUT_S, binary, crc32c, records, run, set_request, tool, write_data,
)

ROOMS = [f"room-{i}" for i in range(8)]
ODD_ROOM, ODD_KEY = 'tab\tquote"back\\slash', "new\nline ü"


@pytest.fixture(name="data")
def _data(serve):
    """A directory whose server has set some key IDs, one set a batch, and stopped cleanly."""
    server = serve()
    for room in ROOMS:
        server.set(room, f"key of {room}").is_json(200, b'{"success":true}')
    server.stop()
    return server.directory


def lines_of(data):
    return (data / "keys.log").read_bytes().splitlines(keepends=True)


def command(*arguments):
    """A finished command: (exit code, standard output, standard error)."""
    done = run(*arguments)
    return done.returncode, done.stdout, done.stderr


def damage(data, line):
    """Flips a bit in the key of a line. Returns the line's offset."""
    lines = lines_of(data)
    offset = sum(map(len, lines[:line]))
    log = bytearray(b"".join(lines))
    log[offset + len(lines[line]) - 3] ^= 1
    (data / "keys.log").write_bytes(log)
    return offset


@pytest.mark.parametrize("name", ["README.md", "store.c", "log.c"])
def test_the_record_that_is_drawn_is_one(tmp_path, name):
    """The figure as a log: what it shows of BATCH and CRC is what a server would write."""
    write_data(tmp_path)
    figure = re.search(r"^[ *]+(roomkeyd keys\.log 1\n)?[ *]+([0-9a-f]{8} .*\n)",
                       (REPOSITORY / name).read_text(), re.MULTILINE)
    (tmp_path / "keys.log").write_text("roomkeyd keys.log 1\n" + re.sub(" +", "\t", figure[2]))
    code, output, _ = command("check", "--data", tmp_path)
    assert (code, output) == (0, f"{tmp_path}/keys.log: 1 records in 101 bytes\n")


def test_a_whole_log_passes(data):
    code, output, errors = command("check", "--data", data)
    size = (data / "keys.log").stat().st_size
    assert (code, errors) == (0, "")
    assert output == f"{data}/keys.log: {len(ROOMS)} records in {size} bytes\n"


def test_members_without_a_token_are_counted(data):
    """A likely slip, and no failure. Each is counted once, and the line of the first one is told."""
    for rooms, found in (
        (f"r p {ALICE}\n* c\n", ""),
        (f"# x\nr p {ALICE}\nq p bobby {ALICE} bob\ns d bobby alise\n",
         f"{data}/rooms: 2 members have no token in users, the first one on line 3\n"),
        ("r c bobby", f"{data}/rooms: 1 members have no token in users, the first one on line 1\n"),
    ):
        (data / "rooms").write_text(rooms)
        code, output, errors = command("check", "--data", data)
        assert (code, errors) == (0, "")
        assert output.splitlines(keepends=True)[1:] == found.splitlines(keepends=True)
        assert command("check", "--data", data, "--no-log") == (0, found, "")


def test_both_files_mistakes_are_told(data):
    (data / "users").write_text("alice nonsense\n")
    (data / "rooms").write_text("r p alice\n  # not for bob\n")
    code, output, errors = command("check", "--data", data)
    assert code == 1 and output.count("\n") == 1
    assert errors.splitlines() == [
        f"roomkeyd: {data}/users:1: hashed token must be 44 characters, the base64 of 32 bytes",
        f"roomkeyd: {data}/rooms:2: a comment begins at the start of its line, with #"]
    assert command("check", "--data", data, "--no-log") == (1, "", errors)
    (data / "users").write_text("")
    assert command("check", "--data", data, "--no-log") == (
        1, "", errors.splitlines(keepends=True)[1])


def test_a_check_without_the_log(data, tmp_path):
    """Is not long in reading it, and minds nothing that is wrong with it."""
    damage(data, 3)
    trace = tmp_path / "trace"
    options = os.environ.get("ASAN_OPTIONS", "")
    done = subprocess.run(
        [tool("strace", "strace"), "-f", "-qq", "-o", trace, "-e", "trace=open,openat", binary(), "check",
         "--no-log", "--data", data], capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        env={**os.environ, "ASAN_OPTIONS": f"{options}:detect_leaks=0"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "keys.log" not in trace.read_text() and "/users" in trace.read_text()
    (data / "keys.log").unlink()
    assert command("check", "--no-log", "--data", data) == (0, "", "")
    assert command("check", "--data", data)[0] == 1
    with open("/dev/full", "w", encoding="ascii") as full:
        (data / "rooms").write_text("r p bobby\n")
        done = run("check", "--no-log", "--data", data, stdout=full)
    assert done.returncode == 1 and "No space left" in done.stderr
    code, output, errors = command("check", "--no-log", "--salvage", tmp_path / "new")
    assert (code, output) == (2, "") and "--no-log leaves out" in errors
    assert not (tmp_path / "new").exists()


def test_damage_is_shown_and_nothing_is_changed(data):
    offset = damage(data, 3)
    before = (data / "keys.log").read_bytes()
    code, output, _ = command("check", "--data", data)
    assert code == 1
    assert f"damaged at byte {offset}: its checksum does not match" in output
    assert f"/keys.log: 2 records in {offset} bytes\n" in output
    assert f"{len(ROOMS) - 3} valid records in the {len(before) - offset} bytes behind" in output
    assert (data / "keys.log").read_bytes() == before


def test_a_room_twice_hides_nothing_behind_it(data, tmp_path):
    lines = lines_of(data)
    lines.insert(4, lines[3])
    (data / "keys.log").write_bytes(b"".join(lines))
    code, output, _ = command("check", "--data", data, "--salvage", tmp_path / "salvaged.log")
    offset = sum(map(len, lines[:4]))
    assert code == 1
    assert f"damaged at byte {offset}: its room has a key ID already" in output
    assert f"/keys.log: 3 records in {offset} bytes\n" in output
    assert f"{len(ROOMS) - 3} valid records in the " in output
    assert output.endswith(f"salvaged.log: {len(ROOMS)} records\n")


def test_a_server_refuses_what_check_calls_damaged(data, serve):
    offset = damage(data, 3)
    server = serve.launch()
    server.expected_exit, server.expected_stderr = 1, f"damaged at byte {offset}"
    server.judge()
    assert command("export", "--data", data)[0] == 1


def test_lines_of_an_old_batch_do_not_hide_damage(data, serve):
    """What certifies is the highest BATCH behind it, wherever that stands."""
    offset = damage(data, 1)
    with open(data / "keys.log", "ab") as log:
        log.write(record(20, "-", "old", "k"))
    code, output, _ = command("check", "--data", data)
    assert code == 1 and f"damaged at byte {offset}: " in output
    server = serve.launch()
    server.expected_exit, server.expected_stderr = 1, f"damaged at byte {offset}"
    server.judge()


def test_salvage_writes_a_log_of_all_valid_records(data, tmp_path, serve):
    damage(data, 3)
    new = tmp_path / "salvaged.log"
    code, output, _ = command("check", "--data", data, "--salvage", new)
    assert code == 1 and output.endswith(f"{new}: {len(ROOMS) - 1} records\n")
    (data / "keys.log").unlink()
    new.rename(data / "keys.log")
    assert command("check", "--data", data)[0] == 0
    server = serve()
    for i, room in enumerate(ROOMS):
        status = server.set(room, "another").status
        assert status == (200 if i == 2 else 400), room
    assert server.info(ROOMS[5]).body.endswith(b'"e2eKeyId":"key of room-5"},"success":true}')


def test_salvage_finds_a_record_that_has_run_into_a_damaged_one(data, tmp_path):
    lines = lines_of(data)
    lines[3] = lines[3][:-1] + b"?"
    (data / "keys.log").write_bytes(b"".join(lines))
    new = tmp_path / "new"
    code, _, _ = command("check", "--data", data, "--salvage", new)
    assert code == 1
    assert [room for _, room, _ in records(new.read_bytes())] == ROOMS[:2] + ROOMS[3:]


def test_salvage_keeps_an_existing_file(data, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    code, _, errors = command("check", "--data", data, "--salvage", kept)
    assert code == 1 and "File exists" in errors
    assert kept.read_text() == "mine"


def test_a_salvage_without_space_is_removed(data, tmp_path):
    """Not for its seal, for its last record, for any."""
    new = tmp_path / "new"
    command("check", "--data", data, "--salvage", new)
    whole = new.read_bytes()
    seal = len(whole.splitlines(keepends=True)[-1])
    for size in (len(whole) - 1, len(whole) - seal, len(whole) - seal - 1, 10):
        new.unlink(missing_ok=True)
        done = run("check", "--data", data, "--salvage", new,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        assert done.returncode == 1
        assert done.stderr.startswith(f"roomkeyd: {new}: File too large\n")  # gcov's own may follow
        assert not new.exists()


def test_a_torn_tail_is_no_damage(data):
    log = (data / "keys.log").read_bytes()
    (data / "keys.log").write_bytes(log + b"torn")
    code, output, _ = command("check", "--data", data)
    assert code == 0
    assert f"4 bytes at byte {len(log)} are a torn tail" in output
    assert (data / "keys.log").read_bytes() == log + b"torn"  # only a start moves it
    code, output, _ = command("export", "--data", data)
    assert code == 0 and len(output.splitlines()) == len(ROOMS)
    (data / "keys.log").write_bytes(b"roomkeyd keys.log 1\ntorn")  # where no batch ever was
    code, output, _ = command("check", "--data", data)
    assert code == 0 and "4 bytes at byte 20 are a torn tail" in output


def test_export_ends_where_the_log_is_whole(data):
    """A start will cut off what stands behind, valid lines of the last batch among it."""
    log = b"roomkeyd keys.log 1\n" + record(20, "-", "kept", "k")
    (data / "keys.log").write_bytes(log + b"torn\n" + record(20, "-", "lost", "k"))
    code, output, errors = command("export", "--data", data)
    assert (code, errors) == (0, "")
    assert [json.loads(line)["_id"] for line in output.splitlines()] == ["kept"]


def test_check_reads_users_and_rooms_too(data):
    (data / "rooms").write_text("* c\nlobby x\n")
    code, _, errors = command("check", "--data", data)
    assert code == 1
    assert errors == f"roomkeyd: {data}/rooms:2: type must be c, p or d\n"


@pytest.mark.parametrize("end", [2, None], ids=["last", "first"])
def test_a_newer_log_is_damage_to_this_version(data, end):
    lines = lines_of(data)
    body = lines[1].rstrip(b"\n").split(b"\t", 1)[1].replace(b"\tS\t", b"\tR\t")
    lines[1] = b"%08x\t%s\n" % (crc32c(body), body)
    (data / "keys.log").write_bytes(b"".join(lines[:end]))
    code, output, _ = command("check", "--data", data)
    assert code == 1 and "it was written by a newer roomkeyd" in output


@pytest.mark.parametrize("name", ["check", "export"])
def test_a_log_that_is_not_there(name, tmp_path):
    write_data(tmp_path / "data")
    code, output, errors = command(name, "--data", tmp_path / "data")
    assert (code, output) == (1, "")
    assert errors == f"roomkeyd: {tmp_path}/data: keys.log: No such file or directory\n"


def test_export_prints_json_lines(serve):
    server = serve()
    server.set(ODD_ROOM, ODD_KEY).is_json(200, b'{"success":true}')
    code, output, errors = command("export", "--data", server.directory)  # beside the server
    assert (code, errors) == (0, "")
    line = json.loads(output)
    assert list(line) == ["_id", "e2eKeyId", "setBy", "setAt"]
    assert (line["_id"], line["e2eKeyId"], line["setBy"]) == (ODD_ROOM, ODD_KEY, ALICE)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ", line["setAt"])


def test_check_and_export_beside_a_server_under_load(serve):
    """Neither disturbs the server; what is exported was acknowledged or is about to be."""
    server = serve()
    acknowledged = []
    with server.client() as client:
        for i in range(300):
            client.send(set_request(f"r{i}", f"k{i}"))
            if i % 30 == 15:
                code, output, errors = command("export", "--data", server.directory)
                exported = {json.loads(line)["_id"] for line in output.splitlines()}
                assert (code, errors) == (0, "")
                assert exported >= set(acknowledged)
                assert command("check", "--data", server.directory)[0] == 0
            client.reply().is_json(200, b'{"success":true}')
            acknowledged.append(f"r{i}")
    server.stop()
    assert len(records(server.log())) == 300


@pytest.mark.parametrize("arguments", [
    ("check", "--salvage"), ("check", "--nothing"), ("check", "more"),
    ("export", "--salvage", "x"), ("export", "--listen", "127.0.0.1:0"),
])
def test_bad_usage(arguments):
    code, output, errors = command(*arguments)
    assert (code, output) == (2, "") and "usage: roomkeyd " in errors


@pytest.mark.parametrize("name", ["check", "export"])
def test_help(name):
    code, output, errors = command(name, "--help")
    assert (code, errors) == (0, "") and output.startswith(f"usage: roomkeyd {name} ")


def record(offset, user, room, key):
    """A line of a log, in a batch of its own, for this offset."""
    body = f"{offset:x}\tS\t1732354800000\t{user}\t{room}\t{key}".encode()
    return b"%08x\t%s\n" % (crc32c(body), body)


def test_export_of_a_key_that_nobody_is_known_to_have_set(data):
    log = (data / "keys.log").read_bytes()
    (data / "keys.log").write_bytes(log + record(len(log), "-", "old", "k"))
    code, output, errors = command("export", "--data", data)
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1] == (
        '{"_id":"old","e2eKeyId":"k","setBy":null,"setAt":"2024-11-23T09:40:00.000Z"}')


@pytest.mark.parametrize("log,reason", [
    (b"", "empty, which roomkeyd never leaves it: somebody has emptied it, or a copy has failed. "
          "Restore it from a copy; or, to begin anew without any key ID, remove every file whose name "
          "begins with keys.log"),
])
@pytest.mark.parametrize("name", ["check", "export"])
def test_what_is_no_log(data, name, log, reason):
    (data / "keys.log").write_bytes(log)
    code, output, errors = command(name, "--data", data)
    assert (code, output) == (1, "")
    assert errors == f"roomkeyd: {data}: keys.log: {reason}\n"
    assert (data / "keys.log").read_bytes() == log


def test_a_log_of_a_later_version(data):
    """Which one bad bit can make of it, too: what this version understands of it may be saved."""
    log = (data / "keys.log").read_bytes().replace(b" 1\n", b" 2\n", 1)
    (data / "keys.log").write_bytes(log)
    code, output, errors = command("check", "--data", data)
    assert (code, errors) == (1, "")
    assert "damaged at byte 0: it was written by a newer roomkeyd\n" in output
    assert f"{len(ROOMS)} valid records in the {len(log)} bytes behind that\n" in output
    code, output, errors = command("export", "--data", data)
    assert (code, output) == (1, "")
    assert "damaged at byte 0: it was written by a newer roomkeyd; see check\n" in errors
    assert (data / "keys.log").read_bytes() == log


@pytest.mark.parametrize("name", ["check", "export"])
def test_a_pipe_in_the_log_s_place_is_not_waited_for(data, name):
    (data / "keys.log").unlink()
    os.mkfifo(data / "keys.log")
    code, _, errors = command(name, "--data", data)
    assert (code, errors) == (1, f"roomkeyd: {data}: keys.log: not a regular file\n")


def test_a_long_export_stops_where_the_device_is_full(data, tmp_path):
    """Not at the log's end, which may be far: it reads less than where there is room."""
    log = bytearray((data / "keys.log").read_bytes())
    while len(log) < 4 << 20:
        log += record(len(log), "-", f"r{len(log)}", "k" * 255)
    (data / "keys.log").write_bytes(log)
    report = tmp_path / "report"

    def export(path):
        """(how it ended, how often it read)"""
        with open(path, "w", encoding="ascii") as device:
            done = subprocess.run(
                [binary("ROOMKEYD_FAULTS"), "export", "--data", data], stdout=device,
                stderr=subprocess.PIPE, env={**os.environ, "FAULTS_REPORT": str(report)},
                text=True, check=False, timeout=TIMEOUT_S)
        counts = {name: used for name, used, _ in
                  struct.iter_unpack("16sII", report.read_bytes())}
        report.unlink()
        return (done.returncode, done.stderr), counts[b"pread64".ljust(16, b"\0")]

    ended, reads_of_all = export("/dev/null")
    assert ended == (0, "")
    ended, reads = export("/dev/full")
    assert ended == (1, "roomkeyd: standard output: No space left on device\n")
    assert reads < reads_of_all - 2


@pytest.mark.parametrize("name", ["check", "export"])
def test_a_full_device(data, name):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = run(name, "--data", data, stdout=full)
    assert done.returncode == 1 and "No space left" in done.stderr
