"""The commands that change users and rooms: user add, user revoke, users import, rooms import; and
hash-token.

Proves that a file is replaced whole or not at all, whatever fails; that changes made at the same
time all stay; and that no token is seen anywhere but where it has to be.
"""

import datetime
import errno
import fcntl
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import time

import pytest

from server import (
    ALICE, ALICE_TOKEN, BOB, REPOSITORY, TIMEOUT_S, USERS, binary, hash_token, run, tool, wait_until,
    write_data,
)
from test_deploy import give_up
from test_disk import SMALL_DISK, chattr, contents, fill, mounted

TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\n")
HASH = hash_token(ALICE_TOKEN)
ODD_USERS = f"# who may\n\n  {ALICE}\t{HASH} \r\n#{BOB} {HASH}\n{BOB} {hash_token('x')}"  # no newline


@pytest.fixture(name="data")
def _data(tmp_path):
    write_data(tmp_path / "data", ODD_USERS)
    return tmp_path / "data"


def command(*arguments, text="", **options):
    """A finished command: (exit code, standard output, standard error)."""
    done = run(*arguments, stdin=None, input=text, **options)
    return done.returncode, done.stdout, done.stderr


def lines(*objects):
    """JSON lines."""
    return "".join(json.dumps(one) + "\n" for one in objects)


def user(name, *tokens):
    """A user as mongoexport gives it, with more than is needed."""
    entries = [{"when": {"$date": "2024-11-23T12:00:00Z"}, "hashedToken": hash_token(token)}
               for token in tokens]
    return {"_id": name, "username": name, "roles": ["user"],
            "services": {"password": {"bcrypt": "$2b$10$x"}, "resume": {"loginTokens": entries}}}


def room(rid, kind):
    return {"_id": rid, "t": kind, "u": {"_id": "creator", "username": "c"}, "usersCount": 2}


def subscription(rid, member):
    return {"_id": f"{rid}-{member}", "rid": rid, "t": "p", "u": {"_id": member, "username": "m"}}


# ---- user add, user revoke, hash-token ---------------------------------------------------------


def test_add_prints_the_token_and_keeps_all_lines(data):
    os.chmod(data / "users", 0o640)
    code, token, errors = command("user", "add", "--data", data, "carol")
    assert (code, errors) == (0, "") and TOKEN.fullmatch(token)
    expected = f"{ODD_USERS}\ncarol {hash_token(token.strip())}\n"
    assert (data / "users").read_bytes() == expected.encode()
    assert (data / "users").stat().st_mode & 0o7777 == 0o640
    assert sorted(contents(data)) == ["rooms", "users"]
    again = command("user", "add", "--data", data, "carol")[1]
    assert again != token and (data / "users").read_text().count("carol ") == 2


def test_the_first_user_of_a_directory(tmp_path):
    code, token, errors = command("user", "add", "--data", tmp_path, ALICE)
    assert (code, errors) == (0, "")
    assert (tmp_path / "users").read_text() == f"{ALICE} {hash_token(token.strip())}\n"
    assert (tmp_path / "users").stat().st_mode & 0o7777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays_or_is_the_directory_s(tmp_path):
    os.chown(tmp_path, 65534, 65533)
    for owner, group in ((65534, 65533), (1, 2)):  # that of the directory, and then of the old file
        assert command("user", "add", "--data", tmp_path, ALICE)[0] == 0
        status = (tmp_path / "users").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (owner, group, 0o600)
        os.chown(tmp_path / "users", 1, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("has_users", [False, True])
def test_an_interrupted_root_does_not_lock_the_owner_out(tmp_path, has_users):
    """What it leaves belongs to the owner already; and while it runs, the owner waits."""
    os.chown(tmp_path, 65534, 65534)
    if has_users:
        write_data(tmp_path)
        os.chown(tmp_path / "users", 65534, 65534)
    root = subprocess.Popen([binary(), "users", "import", "--data", tmp_path], stdin=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        new = tmp_path / "users.new"
        wait_until(lambda: new.exists() and new.stat().st_uid == 65534, "the new file")
    finally:
        root.kill()
        root.communicate()
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(path, path.stat().st_mode | 0o055)
    as_nobody = [tool("setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run([*as_nobody, binary(), "user", "add", "--data", tmp_path, "carol"],
                          capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "") and TOKEN.fullmatch(done.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_cannot_be_given_back_to_its_owner_is_kept(tmp_path):
    write_data(tmp_path / "data")
    os.chmod(tmp_path / "data", 0o777)
    os.chmod(tmp_path / "data/users", 0o644)
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(path, path.stat().st_mode | 0o055)
    as_nobody = [tool("setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run([*as_nobody, binary(), "user", "add", "--data", tmp_path / "data", "carol"],
                          capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (1, "") and "Operation not permitted" in done.stderr
    assert contents(tmp_path / "data")["users"].decode() == USERS
    assert "users.new" not in contents(tmp_path / "data")


def test_a_running_server_takes_users_and_forgets_them(serve):
    server = serve()
    token = command("user", "add", "--data", server.directory, "carol")[1].strip()
    fields = (("X-User-Id", "carol"), ("X-Auth-Token", token))
    assert server.info("r", fields).status == 401
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("r", fields).status == 200, "the new user")
    assert command("user", "revoke", "--data", server.directory, "carol") == revoked(1)
    assert command("user", "add", "--data", server.directory, "dave")[0] == 0
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("r", fields).status == 401, "the end of the user")
    assert server.info("r").status == 200
    for name, content in contents(server.directory).items():
        assert token.encode() not in content, name


def test_many_at_once_all_stay(data):
    """Each of them reads what the ones before have written; each is waited for, none is lost."""
    names = [f"user{i}" for i in range(40)]
    for name in names[:20]:
        command("user", "add", "--data", data, name)
    running = [subprocess.Popen([binary(), "user", "revoke", "--data", data, name])
               for name in names[:20]]
    running += [subprocess.Popen([binary(), "user", "add", "--data", data, name],
                                 stdout=subprocess.PIPE, text=True) for name in names[20:]]
    tokens = [process.communicate(timeout=TIMEOUT_S)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    expected = {f"{name} {hash_token(token.strip())}" for name, token in
                list(zip(names, tokens))[20:]}
    text = (data / "users").read_bytes().decode()
    assert text.startswith(ODD_USERS + "\n")
    written = text[len(ODD_USERS) + 1 :].splitlines()
    assert len(written) == 20 and set(written) == expected
    assert sorted(contents(data)) == ["rooms", "users"]


@pytest.mark.parametrize("end", ["renamed", "thrown away", "left behind"])
def test_who_waits_reads_what_the_one_before_has_written(data, end):
    """The file that is locked may become users, or vanish, or be what a crash has left."""
    with open(data / "users.new", "w", encoding="utf-8") as new:
        fcntl.flock(new, fcntl.LOCK_EX)
        with subprocess.Popen([binary(), "user", "add", "--data", data, "carol"],
                              stdout=subprocess.PIPE, text=True) as waiting:
            wait_until(lambda: re.search(rf"-> FLOCK .* {waiting.pid} ",
                                         pathlib.Path("/proc/locks").read_text()), "the other one")
            new.write(f"first {HASH}\n# more\n" if end == "renamed" else "half a li")
            new.flush()
            if end == "renamed":
                (data / "users.new").rename(data / "users")
            elif end == "thrown away":
                (data / "users.new").unlink()
            fcntl.flock(new, fcntl.LOCK_UN)
            token = waiting.communicate(timeout=TIMEOUT_S)[0].strip()
    before = f"first {HASH}\n# more\n" if end == "renamed" else ODD_USERS + "\n"
    assert waiting.returncode == 0
    assert (data / "users").read_bytes().decode() == f"{before}carol {hash_token(token)}\n"
    assert sorted(contents(data)) == ["rooms", "users"]


def revoked(count):
    """What a revoke says that has taken out so many tokens, and when that is in force."""
    return (0, f"users: {count} tokens taken out; out of force once the server has reread users: SIGHUP "
               "or systemctl reload\n", "")


def test_a_revoke_that_cannot_say_so_is_done_all_the_same(data):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = run("user", "revoke", "--data", data, ALICE, stdout=full)
    assert done.returncode == 1 and "standard output: No space left" in done.stderr
    assert ALICE not in (data / "users").read_text()


def test_revoke(data):
    before = (data / "users").read_bytes().decode()
    with open(data / "users", "a", encoding="utf-8") as users:
        users.write(f"\n{ALICE} {hash_token('second')}\n{ALICE} {hash_token('third')}\n")
    revoke = ("user", "revoke", "--data", data)
    assert command(*revoke, ALICE, hash_token("third")) == revoked(1)
    after = f"{before}\n{ALICE} {hash_token('second')}\n"
    assert (data / "users").read_bytes().decode() == after
    for unknown in (("nobody",), (ALICE, hash_token("third")), (ALICE, "x"), (ALICE, ""),
                    ("#bob",), ("#",)):
        code, output, errors = command(*revoke, *unknown)
        assert (code, output, errors) == (1, "", f"roomkeyd: {unknown[0]}: no such token\n")
        assert (data / "users").read_bytes().decode() == after
    assert command(*revoke, ALICE) == revoked(2)
    assert (data / "users").read_bytes().decode() == f"# who may\n\n#{BOB} {HASH}\n{BOB} {hash_token('x')}\n"


@pytest.mark.parametrize("name,why", [
    ("", "1 to 255 bytes"), (" ", "one word"), ("a b", "one word"), ("a\tb", "one word"),
    ("a\nb", "one word"), ("a\r", "one word"), ("u" * 256, "1 to 255 bytes"), ("#a", "comment"),
    ("-", "dashes"), ("--", "dashes"), ("*", "alone"), ("a*", "alone"), ("a,b", "separated"),
    ("a,", "separated"), ("a;", "separated"), ("a:", "colon"), ('"a"', "quotes"), ("'a", "quotes"),
    ("a\u201d", "quotes"), ("[a]", "brackets"), ("<USERID>", "brackets"), ("a\u00a0b", "invisible"),
    ("&", "punctuation"),
], ids=ascii)
def test_add_refuses_what_users_cannot_hold(data, name, why):
    """It says why, and does not repeat what could be a token."""
    before = contents(data)
    code, output, errors = command("user", "add", "--data", data, "--", name)
    assert (code, output) == (1, "") and contents(data) == before
    assert errors.startswith("roomkeyd: users cannot hold this USERID: ") and why in errors
    assert errors.count("\n") == 1 and (len(name) < 2 or name not in errors)


@pytest.mark.parametrize("name", ["u" * 255, "ü", "a\rb", "a#", "--data", "rocket.cat", "a-_b@c"],
                         ids=ascii)
def test_add_takes_what_users_can_hold(data, name):
    code, token, _ = command("user", "add", "--data", data, "--", name)
    assert code == 0
    assert command("import", "--data", data, text='{"_id":"r"}\n')[0] == 0  # there is a log now
    assert command("check", "--data", data)[0] == 0
    end = f"\n{name} {hash_token(token.strip())}\n".encode()
    assert (data / "users").read_bytes().endswith(end)


@pytest.mark.parametrize("change", ["add carol", f"revoke {ALICE}"])
def test_users_that_a_server_would_refuse_are_not_changed(data, change):
    """The message names the line of the file that is there."""
    (data / "users").write_text(f"{ALICE} {HASH}\n{BOB} nonsense\n")
    before = contents(data)
    code, output, errors = command("user", *change.split()[:1], "--data", data, *change.split()[1:])
    assert (code, output) == (1, "")
    assert f"{data}/users:2: hashed token must be" in errors
    assert errors.endswith(": nothing has been changed\n") and contents(data) == before


def test_a_symbolic_link_is_not_replaced(data):
    (data / "users").rename(data / "elsewhere")
    (data / "users").symlink_to("elsewhere")
    code, output, errors = command("user", "add", "--data", data, "carol")
    assert (code, output) == (1, "") and "cannot change users: a symbolic link" in errors
    assert (data / "users").is_symlink() and (data / "elsewhere").read_bytes().decode() == ODD_USERS
    assert not (data / "users.new").exists()


def test_a_symbolic_link_in_the_new_file_s_place_is_not_followed(data):
    (data / "mine").write_text("mine")
    (data / "users.new").symlink_to("mine")
    before = contents(data)
    code, output, errors = command("user", "add", "--data", data, "carol")
    assert (code, output) == (1, "") and "cannot change users: users.new: a symbolic link" in errors
    assert contents(data) == before


def test_what_a_killed_command_has_left_is_no_part_of_the_next_one(data):
    (data / "users.new").write_text(f"mallory {HASH}\n" * 100)
    code, token, errors = command("user", "add", "--data", data, "carol")
    assert (code, errors) == (0, "")
    expected = f"{ODD_USERS}\ncarol {hash_token(token.strip())}\n"
    assert (data / "users").read_bytes() == expected.encode()


def test_a_directory_that_is_not_there(tmp_path):
    for name in (("user", "add", "x"), ("users", "import"), ("rooms", "import")):
        code, output, errors = command(*name, "--data", tmp_path / "none")
        assert (code, output) == (1, "") and errors.endswith(": No such file or directory\n")


def test_a_token_that_cannot_be_printed_can_be_revoked(data):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = run("user", "add", "--data", data, "carol", stdout=full)
    assert done.returncode == 1 and "No space left" in done.stderr
    hashed = (data / "users").read_text().split()[-1]
    assert f"roomkeyd: {hashed}: revoke this token" in done.stderr
    assert command("user", "revoke", "--data", data, "carol", hashed)[0] == 0


def test_a_token_that_nobody_reads_is_told_of(data):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("user", "add", "--data", data, "carol", stdout=writer)
    os.close(writer)
    assert done.returncode == 1 and "Broken pipe" in done.stderr
    hashed = (data / "users").read_text().split()[-1]
    assert f"roomkeyd: {hashed}: revoke this token" in done.stderr


def test_a_token_in_the_wrong_place_is_not_repeated(data):
    """Nor where it looks like an option: a token is of letters, digits, - and _, in any place."""
    made = "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU"
    for wrong in (("hash-token", ALICE_TOKEN), ("user", "add", "--data", data, "bob", ALICE_TOKEN),
                  ("user", "revoke", ALICE, HASH, ALICE_TOKEN), ("hash-token", "-" + ALICE_TOKEN),
                  ("hash-token", "--" + made), ("hash-token", f"--token={made}"),
                  ("hash-token", f"--help={made}"), ("user", "add", "bob", f"-{made}=x"),
                  ("-" + made,), ("--data", data, "--" + made), ("check", f"--listen={made}")):
        code, output, errors = command(*wrong)
        assert (code, output) == (2, "") and "usage: " in errors
        assert ALICE_TOKEN not in errors and made not in errors


@pytest.mark.parametrize("text", [ALICE_TOKEN, ALICE_TOKEN + "\n", ALICE_TOKEN + "\r\n"])
def test_hash_token(text):
    assert command("hash-token", text=text) == (0, HASH + "\n", "")


@pytest.mark.parametrize("text", ["", "\n", "\r\n", "two\nlines\n", "a\n\n", " a", "a ", "a\tb",
                                  "a\0b", "a\x7f"], ids=ascii)
def test_hash_token_of_what_is_none(text):
    code, output, errors = command("hash-token", text=text)
    assert (code, output) == (1, "") and "not a token" in errors


@pytest.mark.parametrize("text, why", [
    (ALICE_TOKEN.encode("utf-16"), "UTF-16"), ((ALICE_TOKEN + "\r\n").encode("utf-16-le"), "UTF-16"),
    ((ALICE_TOKEN + "\r\n").encode("utf-16-be"), "UTF-16"),
    (b"\xef\xbb\xbf" + ALICE_TOKEN.encode(), "a byte order mark"), (b"", "docker exec needs -i"),
])
def test_hash_token_of_what_windows_makes(text, why):
    """What would be hashed is not what was meant; neither is shown."""
    done = subprocess.run([binary(), "hash-token"], input=text, capture_output=True, check=False,
                          timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not a token alone on its line" in done.stderr and why.encode() in done.stderr
    assert ALICE_TOKEN[:8].encode() not in done.stderr.replace(b"\0", b"")


# ---- users import, rooms import ----------------------------------------------------------------


def test_users_import(data, serve):
    text = lines(user(ALICE, ALICE_TOKEN), user(BOB, "b1", "b2"), {"_id": "rocket.cat"},
                 user("nobody"), {"_id": "app", "services": {"resume": {}}})
    assert command("users", "import", "--data", data, text=text) == (
        0, "users: 3 lines, 0 passed over\n", "")
    assert (data / "users").read_text() == (
        f"{ALICE} {HASH}\n{BOB} {hash_token('b1')}\n{BOB} {hash_token('b2')}\n")
    server = serve.launch(users=None).wait_ready()
    assert server.info("r").status == 200


def test_users_that_cannot_be_held_are_told_of(data):
    wrong = user("carol", "x")
    wrong["services"]["resume"]["loginTokens"][0]["hashedToken"] = "short"
    text = lines(user("a b", "x"), user(ALICE, ALICE_TOKEN), {"_id": {"$oid": "0123"}}, wrong)
    text += '{"_id":"\\ud800"}\n' + lines(user("u1,u2", "x"), user('"u1"', "x"), user("u1:", "x"))
    code, output, errors = command("users", "import", "--data", data, text=text)
    assert (code, output) == (0, "users: 1 lines, 7 passed over\n")
    assert re.findall(r"line (\d+) is passed over", errors) == ["1", "3", "5", "6", "7", "8"]
    assert "line 4 has a token that is passed over" in errors
    assert (data / "users").read_text() == f"{ALICE} {HASH}\n"


def test_a_token_that_is_none_does_not_cost_the_others(data):
    both = user(ALICE, "one", "two")
    both["services"]["resume"]["loginTokens"].insert(1, {"when": 1, "token": "x"})
    code, output, errors = command("users", "import", "--data", data, text=lines(both))
    assert (code, output) == (0, "users: 2 lines, 1 passed over\n")
    assert errors == "roomkeyd: line 1 has a token that is passed over: without a hashedToken\n"
    assert (data / "users").read_text() == (
        f"{ALICE} {hash_token('one')}\n{ALICE} {hash_token('two')}\n")


def aged(name, when, token="t", **more):
    """A user with one token of this age, if any."""
    entry = {"hashedToken": hash_token(token), **more}
    return {"_id": name, "services": {"resume": {"loginTokens": [
        entry if when is None else {**entry, "when": when}]}}}


def names_in(data):
    return [line.split()[0] for line in (data / "users").read_text().splitlines()]


def test_users_who_are_not_active_are_passed_over(data):
    off = {**user("off", "o1", "o2"), "active": False}
    text = lines({**user(ALICE, "a"), "active": True}, off, {**user(BOB, "b"), "active": None},
                 {"active": False, "_id": "no tokens"}, user("carol", "c"), {**user("d", "d"), "active": 0},
                 {**user("e", "e"), "active": "false"}, {**user("f", "f"), "active": {"a": False}})
    code, output, errors = command("users", "import", "--data", data, text=text)
    assert (code, output) == (0, "users: 6 lines, 2 passed over\n")
    assert errors.splitlines() == ["roomkeyd: line 2 is passed over: its user is not active",
                                   "roomkeyd: line 4 is passed over: users cannot hold its _id"]
    assert names_in(data) == [ALICE, BOB, "carol", "d", "e", "f"]


def test_where_nobody_is_active_nobody_is_left(serve):
    """That is no mistake: a user who was there before is out of force."""
    server = serve()
    off = {**user(ALICE, ALICE_TOKEN), "active": False}
    old = aged(BOB, "2015-01-01T00:00:00Z")
    result = command("users", "import", "--data", server.directory, "--max-age", "90", text=lines(off, old))
    assert result[:2] == (0, "users: 0 lines, 2 passed over\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("r").status == 401, "the end of the users")
    # But if it may have been a mistake, nothing is changed.
    write_data(server.directory)
    for wrong in (aged(BOB, "yesterday"), {**off, "_id": "a b", "active": True}):
        code, output, errors = command("users", "import", "--data", server.directory, "--max-age", "90",
                                       text=lines(off, wrong))
        assert (code, output) == (1, "") and "users: nothing to import: no line has a login token\n" in errors
        assert (server.directory / "users").read_text() == USERS


DAY_S = 86400


def iso(seconds, zone="Z", offset_s=0, fraction=""):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds + offset_s)) + fraction + zone


# What mongoexport and its older versions make of a date, and what is inside of that alone.
WHEN = {
    "relaxed": lambda s: {"$date": iso(s)},
    "milliseconds": lambda s: {"$date": iso(s, fraction=".123")},
    "canonical": lambda s: {"$date": {"$numberLong": str(s * 1000)}},
    "date of a number": lambda s: {"$date": s * 1000},
    "number": lambda s: s * 1000,
    "double": lambda s: float(s * 1000),
    "long": lambda s: {"$numberLong": str(s * 1000)},
    "string": iso,
    "old zone": lambda s: {"$date": iso(s, "+0000", fraction=".000")},
    "east": lambda s: {"$date": iso(s, "+05:30", 19800)},
    "west": lambda s: {"$date": iso(s, "-0930", -34200)},
}


@pytest.mark.parametrize("form", WHEN)
def test_tokens_that_are_too_old_are_passed_over(data, form):
    """To the hour, across years, months and leap days; tokens of any age without the option."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for days in (1, 90, rng.randint(2, 2000), rng.randint(2000, 20000)):
        now = int(time.time())
        edge = now - days * DAY_S
        ages = {"new": now - 60, "ahead": now + 7 * DAY_S, "in": edge + 3600, "out": edge - 3600,
                "old": edge - DAY_S, "older": edge - 400 * DAY_S}
        text = lines(*(aged(name, WHEN[form](seconds)) for name, seconds in ages.items()))
        code, output, errors = command("users", "import", "--data", data, "--max-age", str(days), text=text)
        assert (code, output) == (0, "users: 3 lines, 3 passed over\n"), (days, errors)
        assert names_in(data) == ["new", "ahead", "in"]
        assert errors.splitlines() == [
            f"roomkeyd: line {number} has a token that is passed over: older than --max-age"
            for number in (4, 5, 6)]
        assert command("users", "import", "--data", data, text=text)[:2] == (
            0, "users: 6 lines, 0 passed over\n")


def test_dates_are_read_as_python_reads_them(data):
    """Any day of two centuries, an hour on either side of an edge that is a whole number of days."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    now = int(time.time())
    days = [rng.randint(1, 36500) for _ in range(40)] + [1, 36500]
    for number in days:
        edge = now - number * DAY_S
        day = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=edge)
        entries = [aged("in", (day + datetime.timedelta(hours=1)).isoformat() + "Z"),
                   aged("out", (day - datetime.timedelta(hours=1)).isoformat() + "Z")]
        assert command("users", "import", "--data", data, "--max-age", str(number),
                       text=lines(*entries))[0] == 0
        assert names_in(data) == ["in"], day


UNREADABLE = [
    None, "", "yesterday", "2015", "2015-01-01", "2015-13-01T00:00:00Z", "2015-00-01T00:00:00Z",
    "2015-01-32T00:00:00Z", "2015-01-01T24:00:00Z", "2015-01-01T00:60:00Z", "2015-01-01T00:00:00",
    "2015-01-01T00:00:00+5", "2015-01-01T00:00:00+05:3", "2015-01-01T00:00:00Zx", "2015-01-01 00:00:00Z",
    "15-01-01T00:00:00Z", "0x10", "1e12", "--1", "-", "99999999999999999999", True, [], {},
    {"$date": None}, {"$date": {}}, {"$date": {"$numberLong": "x"}}, {"$numberLong": []}, "\ud800",
    "2" * 100,
]


@pytest.mark.parametrize("when", UNREADABLE, ids=ascii)
def test_a_token_whose_age_is_not_known_is_passed_over(data, when):
    """Where the age matters. It costs the user's other tokens nothing."""
    both = aged("u", when)
    both["services"]["resume"]["loginTokens"].append(
        {"when": {"$date": iso(time.time())}, "hashedToken": hash_token("new")})
    arguments = ("users", "import", "--data", data)
    code, output, errors = command(*arguments, "--max-age", "36500", text=lines(both))
    assert (code, output) == (0, "users: 1 lines, 1 passed over\n")
    assert errors == ("roomkeyd: line 1 has a token that is passed over: without a `when` that can be "
                      "read, so its age is not known\n")
    assert (data / "users").read_text() == f"u {hash_token('new')}\n"
    assert command(*arguments, text=lines(both)) == (0, "users: 2 lines, 0 passed over\n", "")


@pytest.mark.parametrize("when", [{"$date": {"$numberLong": "-1"}}, {"$date": "1969-12-31T23:59:59Z"},
                                  {"$date": "0001-01-01T00:00:00Z"}, -62135596800000, 0])
def test_a_token_from_before_1970_is_old(data, when):
    text = lines(aged("old", when), aged("new", iso(time.time())))
    assert command("users", "import", "--data", data, "--max-age", "9999", text=text)[0] == 0
    assert names_in(data) == ["new"]


def test_personal_access_tokens_stay(data):
    """They have no `when`, since they do not expire."""
    text = lines(aged("own", None, type="personalAccessToken", bypassTwoFactor=False),
                 aged("other", None, type="other"),
                 aged("odd", "2015-01-01T00:00:00Z", type="personalAccessToken"))
    code, output, errors = command("users", "import", "--data", data, "--max-age", "1", text=text)
    assert (code, output) == (0, "users: 2 lines, 1 passed over\n") and "line 2 has a token" in errors
    assert names_in(data) == ["own", "odd"]


@pytest.mark.parametrize("days", ["0", "-1", "", "x", "1.5", "36501", "99999999999999999999", "90d"])
def test_a_max_age_that_is_none(data, days):
    before = contents(data)
    code, output, errors = command("users", "import", "--data", data, f"--max-age={days}", text="{}")
    assert (code, output) == (2, "") and "not a number of days from 1 to 36500" in errors
    assert contents(data) == before


def projected(document, fields):
    """What mongoexport -f keeps of a document."""
    if isinstance(document, list):
        return [projected(one, fields) for one in document]
    names = {field.split(".")[0] for field in fields}
    kept = {}
    for name in names & set(document):
        rest = [field.split(".", 1)[1] for field in fields if field.startswith(name + ".")]
        kept[name] = projected(document[name], rest) if rest else document[name]
    return kept


def test_the_readme_s_export_has_what_an_import_needs(data):
    """Of each of its lines for users: who is active, and, where --max-age is used, how old a token is."""
    readme = (REPOSITORY / "README.md").read_text()
    exports = re.findall(r"mongoexport [^&|]*-c users [^&|]*-f (\S+) (.*)", readme)
    assert len(exports) == 2
    everything = [{**user(ALICE, ALICE_TOKEN), "active": True}, {**user("off", "x"), "active": False},
                  aged("own", None, type="personalAccessToken", lastTokenSixDigits="abcdef"),
                  aged("old", {"$date": "2015-01-01T00:00:00Z"})]
    everything[0]["services"]["resume"]["loginTokens"][0]["when"] = {"$date": iso(time.time())}
    for fields, rest in exports:
        text = lines(*(projected(one, fields.split(",")) for one in everything))
        assert "active" in fields.split(",")
        if "|" in rest:  # to jq, which has to leave out the same
            assert "select(.active != false)" in readme
            continue
        assert command("users", "import", "--data", data, "--max-age", "90", text=text)[0] == 0
        assert names_in(data) == [ALICE, "own"]


def test_rooms_import(data):
    text = lines(
        subscription("P", "u2"), room("GENERAL", "c"), subscription("GENERAL", "u1"),
        room("P", "p"), room("D", "d"), subscription("P", "u1"), subscription("D", "u1"),
        subscription("D", "u2"), room("P1", "p"), subscription("P", "u1"), room("P1", "p"),
        room("L", "l"), subscription("L", "u1"), room("V", "dialog"),
    )
    code, output, errors = command("rooms", "import", "--data", data, text="\n" + text + " \n")
    assert (code, output, errors) == (0, "rooms: 4 lines, 5 passed over\n", "")
    assert (data / "rooms").read_text() == "D d u1 u2\nGENERAL c\nP p u1 u2\nP1 p\n"


def test_rooms_that_cannot_be_held_are_told_of(data):
    text = lines(room("*", "c"), room("a b", "p"), room("#x", "c"), room("r" * 256, "p"),
                 room("P", "p"), subscription("P", "u v"), subscription("P", "-"), room("\0", "c"),
                 room("r,", "c"))
    text += lines(subscription("P", "u1,u2"), subscription("P", "u1:"), subscription("P", "*"))
    code, output, errors = command("rooms", "import", "--data", data, text=text)
    assert (code, output) == (0, "rooms: 1 lines, 11 passed over\n")
    assert re.findall(r"line (\d+) is passed over", errors) == "1 2 3 4 6 7 8 9 10 11 12".split()
    assert (data / "rooms").read_text() == "P p\n"


def test_rooms_import_against_a_model(tmp_path):
    """Rooms whose names begin alike, in any order, against dictionaries."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    names = ["".join(rng.choices("ab\x01!~ü", k=rng.randint(0, 3))) + "z" for _ in range(60)]
    kinds = {name: rng.choice("cpdl") for name in names[:40]}
    said, members = [room(name, kind) for name, kind in kinds.items()], {}
    for _ in range(400):
        rid, member = rng.choice(names), rng.choice(names)
        members.setdefault(rid, set()).add(member.encode())
        said.append(subscription(rid, member))
    rng.shuffle(said)
    write_data(tmp_path / "data")
    assert command("rooms", "import", "--data", tmp_path / "data", text=lines(*said))[0] == 0
    written = (tmp_path / "data/rooms").read_bytes().splitlines()
    expected = [b" ".join([name.encode(), kind.encode(),
                           *([] if kind == "c" else sorted(members.get(name, ())))])
                for name, kind in kinds.items() if kind != "l"]
    assert sorted(written) == sorted(expected)


REFUSED = {
    "nothing": ("", "nothing to import"),
    "blank": ("\n \n", "nothing to import: standard input is empty"),
    "nothing that counts": ('{"_id":"x","t":"l"}\n' * 2, "nothing to import: no line has a "),
    "no JSON": ('{"_id":"x","t":"c"}\n{"_id":\n', "line 2: "),
    "no object": ("[1]\n", "line 1: not a JSON object"),
    "an array": ('[{"_id":"x","t":"c"}]\n', "line 1: not a JSON object"),
    "cut": ('{"_id":"x","t":"c"}\n{"_id":"y","t":"c', "line 2: unexpected end"),
}


@pytest.mark.parametrize("name", ["users", "rooms"])
@pytest.mark.parametrize("what", REFUSED)
def test_an_import_that_is_refused_changes_nothing(data, name, what):
    before = contents(data)
    text, why = REFUSED[what]
    code, output, errors = command(name, "import", "--data", data, text=text)
    assert (code, output) == (1, "") and why in errors
    assert contents(data) == before


@pytest.mark.parametrize("text, why", [
    (lines(room("P", "p"), room("P", "c")), 'roomkeyd: the room "P" has two types\n'),
    (lines(room("\x1b[2J", "p"), room("\x1b[2J", "c")), 'the room "\\u001b[2J" has two types\n'),
    (lines(room("P", "p"), {"_id": "x"}), "line 2: neither a room"),
    (lines(room("P", "p"), {"_id": "x", "rid": "P"}), "line 2: neither a room"),
    (lines(room("P", "p"), {"_id": "x", "rid": 1, "u": {"_id": "u"}}), "line 2: neither a room"),
])
def test_rooms_that_are_none(data, text, why):
    before = contents(data)
    code, output, errors = command("rooms", "import", "--data", data, text=text)
    assert (code, output) == (1, "") and why in errors and contents(data) == before


def test_a_hundred_thousand_rooms(tmp_path):
    """In the time that a sort takes, not its square."""
    text = "".join(f'{{"_id":"s","rid":"room{i}","u":{{"_id":"u{i % 7}"}}}}\n'
                   f'{{"_id":"room{i}","t":"p"}}\n' for i in range(100_000))
    write_data(tmp_path / "data")
    began = time.monotonic()
    done = subprocess.run([binary("ROOMKEYD_RELEASE"), "rooms", "import", "--data", tmp_path / "data"],
                          input=text, text=True, capture_output=True, check=True, timeout=TIMEOUT_S)
    assert done.stdout == "rooms: 100000 lines, 0 passed over\n"
    assert time.monotonic() - began < 10


# ---- what fails --------------------------------------------------------------------------------

CHANGES = {
    "add": (("user", "add", "carol"), ""),
    "revoke": (("user", "revoke", BOB), ""),
    "users": (("users", "import"), lines(*(user(f"u{i}", "t") for i in range(900)))),
    "rooms": (("rooms", "import"), lines(*(room(f"room number {i}".replace(" ", "-"), "c")
                                           for i in range(9000)))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_changes_nothing(tmp_path, change):
    arguments, text = CHANGES[change]
    with mounted(tmp_path / "disk", SMALL_DISK) as disk:
        write_data(disk / "data", ODD_USERS)
        fill(disk)
        before = contents(disk / "data")
        code, output, errors = command(*arguments, "--data", disk / "data", text=text)
        assert (code, output) == (1, "") and "No space left on device" in errors
        assert contents(disk / "data") == before
        (disk / "filler").unlink()
        if change in ("add", "revoke"):
            assert command(*arguments, "--data", disk / "data", text=text)[0] == 0


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_at_its_size_limit_changes_nothing(data, change):
    arguments, text = CHANGES[change]
    before = contents(data)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
    code, output, errors = command(*arguments, "--data", data, text=text, preexec_fn=limit)
    assert (code, output) == (1, "") and "File too large" in errors
    assert contents(data) == before


MOUNT_BY_ITSELF = 'mount --bind "$1/elsewhere" "$1/$2"'
MOUNT_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


def after_mounts(script, data, name, *arguments, text=""):
    """A command, and before it a script ($1: the directory, $2: a file's name) that mounts: (exit
    code, standard output, standard error)."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = [tool("unshare", "util-linux"), "--mount", *as_root, "sh", "-c"]
    probe = subprocess.run([*unshare, 'mount --bind "$0" "$0"', data], capture_output=True, check=False)
    if probe.returncode != 0:
        give_up(f"nobody here may mount a file system, as a container may not: {probe.stderr}")
    done = subprocess.run(
        [*unshare, f'set -e; {script}; shift 2; exec "$@"', "sh", data, name, binary(), *arguments],
        input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_mounted_by_itself_is_named(data, change):
    """docker -v ./users:/data/users. It is that file that is busy, not the new one."""
    arguments, text = CHANGES[change]
    name = "rooms" if change == "rooms" else "users"
    (data / "elsewhere").write_bytes((data / name).read_bytes())
    before = contents(data)
    code, output, errors = after_mounts(
        MOUNT_BY_ITSELF, data, name, *arguments, "--data", data, text=text)
    assert (code, output) == (1, "") and contents(data) == before
    assert errors.startswith(f"roomkeyd: {data}: cannot change {name}: {os.strerror(errno.EBUSY)}: ")
    assert "mounted by itself" in errors and "mount its directory" in errors


@pytest.mark.parametrize("change", CHANGES)
def test_a_directory_that_is_mounted_read_only_is_named(data, change):
    arguments, text = CHANGES[change]
    before = contents(data)
    code, output, errors = after_mounts(
        MOUNT_READ_ONLY, data, "", *arguments, "--data", data, text=text)
    assert (code, output) == (1, "") and contents(data) == before
    assert f"new: {os.strerror(errno.EROFS)}: it is mounted read-only here" in errors


@pytest.mark.parametrize("change", CHANGES)
def test_a_directory_of_somebody_else_s_is_named(data, change):
    """As root, too: without the capability to pass over permissions."""
    arguments, text = CHANGES[change]
    before = contents(data)
    data.chmod(0o555)
    dropped = "-dac_override,-dac_read_search"
    wrapper = []
    if os.geteuid() == 0:
        wrapper = [tool("setpriv", "util-linux"), "--bounding-set", dropped, "--inh-caps", dropped]
    done = subprocess.run([*wrapper, binary(), *arguments, "--data", data], input=text, text=True,
                          capture_output=True, check=False, timeout=TIMEOUT_S)
    data.chmod(0o755)
    assert (done.returncode, done.stdout) == (1, "") and contents(data) == before
    assert f"new: {os.strerror(errno.EACCES)}: run this as the owner" in done.stderr


@pytest.mark.parametrize("flag", ["a", "i"])
@pytest.mark.parametrize("where", ["users", "."])
def test_what_chattr_keeps_from_changes_is_named(data, where, flag):
    """Nothing is changed. (An append-only directory keeps even what was begun.)"""
    before = contents(data)
    with chattr(data / where, flag):
        code, output, errors = command("user", "add", "--data", data, "carol")
    after = contents(data)
    if (where, flag) == (".", "a"):
        after.pop("users.new")
    assert (code, output) == (1, "") and after == before
    assert f": {os.strerror(errno.EPERM)}: it or its directory is immutable or append-only" in errors
    assert command("user", "add", "--data", data, "carol")[0] == 0
    assert sorted(contents(data)) == sorted(before)


def add_under(call, data, *only):
    """user add, for carol, under strace, which makes a call fail, perhaps only those that touch a
    path (-P): (exit code, standard output, standard error)."""
    options = os.environ.get("ASAN_OPTIONS", "")
    done = subprocess.run(
        [tool("strace", "strace"), "-qq", "-o", os.devnull, *only, "-e",
         f"trace={call.split(':')[0]}", "-e", f"inject={call}", binary(), "user", "add", "--data",
         data, "carol"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        env={**os.environ, "ASAN_OPTIONS": f"{options}:detect_leaks=0"})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name,call", [("users.new", "write:error=ENOSPC:when=1"),
                                       ("users", "read:error=EIO:when=2")])
def test_half_a_file_replaces_none(data, name, call):
    """A failure in the middle, after which all goes well. The lines have 64 bytes: what a buffer
    holds of them is a file that a server would load."""
    (data / "users").write_text("".join(f"{i:018} {HASH}\n" for i in range(1000)))
    before = contents(data)
    code, output, errors = add_under(call, data, "-P", data / name)
    assert (code, output) == (1, "") and errors.startswith("roomkeyd: ")
    assert contents(data) == before


def test_a_first_file_may_keep_its_maker_s_owner(data):
    (data / "users").unlink()
    code, token, errors = add_under("fchown,fchown32:error=EPERM", data, "-P",
                                    data / "users.new")
    assert (code, errors) == (0, "")
    assert (data / "users").read_text() == f"carol {hash_token(token.strip())}\n"


@pytest.mark.parametrize("call", ["fsync:error=EIO:when=1", "fsync:error=EIO:when=2",
                                  "rename,renameat,renameat2:error=EIO", "fchown,fchown32:error=EPERM",
                                  "fchmod:error=EPERM", "getrandom:error=ENOSYS", "flock:error=ENOLCK"])
def test_a_call_that_fails_prints_no_token(data, call):
    before = contents(data)
    code, output, errors = add_under(call, data)
    assert (code, output) == (1, "") and errors.startswith("roomkeyd: ")
    after = contents(data)
    if "when=2" in call:  # the directory's: the file has been replaced, but may come back
        assert after.pop("users") != before.pop("users")
    after.pop("users.new", None) if "flock" in call else None  # which may be somebody's
    assert after == before


@pytest.mark.parametrize("arguments", [
    ("user",), ("users",), ("rooms", "export"), ("user", "add"), ("user", "add", "a", "b"),
    ("user", "revoke"), ("user", "revoke", "a", "b", "c"), ("users", "import", "file"),
    ("user", "add", "a", "--salvage", "x"), ("hash-token", "token"), ("hash-token", "--data", "x"),
    ("rooms", "import", "--data"), ("user add", "a", "b"), ("user revoke", "a", "b"),
])
def test_bad_usage(arguments):
    code, output, errors = command(*arguments)
    assert (code, output) == (2, "") and f"usage: roomkeyd {arguments[0]}" in errors


@pytest.mark.parametrize("name", ["user add", "user revoke", "users import", "rooms import",
                                  "hash-token", "user", "users", "rooms"])
def test_help(name):
    code, output, errors = command(*name.split(), "--help")
    assert (code, errors) == (0, "") and output.startswith(f"usage: roomkeyd {name}")
