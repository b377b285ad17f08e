"""The process as its operator meets it: options, exit codes, listeners, signals, limits.

Proves that what is wrong is said once, clearly, on standard error and with the right exit code,
that nothing is overwritten that is not the server's own, that a reload lets nobody in by a file that
is bad and leaves nobody in by the other one, and that running out of descriptors costs neither the server's life nor a whole processor.
"""

import contextlib
import errno
import os
import re
import resource
import select
import signal
import socket
import subprocess
import threading
import time

import pytest

from server import (
    ALICE_FIELDS, BOB_FIELDS, HEALTHZ, INVALID_ROOM, ROOMS, SUCCESS, TIMEOUT_S, UNAUTHORIZED, USERS, Client,
    binary, has_ipv6, hash_token, in_threads, info_request, port_on_both_families, request,
    room_info, run, set_request, tool, wait_until, write_data,
)

LOCAL = "127.0.0.1:0"

# ---- options -----------------------------------------------------------------------------------


def test_help():
    for option in ("--help", "--version"):
        with open("/dev/full", "w", encoding="ascii") as full:
            assert run(option, stdout=full).returncode == 1
    result = run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for option in ("--listen", "--data", "--max-connections", "--access-log", "--no-metrics", "--help",
                   "--version"):
        assert option in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_version():
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"roomkeyd \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    "arguments,quoted",
    [
        (["--nonsense"], "nonsense"),
        (["-q"], "q"),
        (["nonsense"], "nonsense"),
        (["serve", "nonsense"], "nonsense"),
        (["--data"], "data"),
        (["--listen"], "listen"),
        (["--access-log"], "access-log"),
        (["--no-metrics=1"], "no-metrics"),
        (["--listen", ""], "listen"),
        (["--listen", "nonsense"], "nonsense"),
        (["--listen", "127.0.0.1"], "127.0.0.1"),
        (["--listen", "127.0.0.1:"], "127.0.0.1:"),
        (["--listen", "127.0.0.1:x"], "127.0.0.1:x"),
        (["--listen", "127.0.0.1:65536"], "127.0.0.1:65536"),
        (["--listen", "127.0.0.1:70000"], "127.0.0.1:70000"),
        (["--listen", "127.0.0.1:-1"], "127.0.0.1:-1"),
        (["--listen", "127.0.0.1:+1"], "127.0.0.1:"),
        (["--listen", "127.0.0.1: 1"], "127.0.0.1:"),
        (["--listen", "127.0.0.1:4294967297"], "4294967297"),
        (["--listen", "127.0.0.1:18446744073709551617"], "18446744073709551617"),
        (["--listen", "127.0.0.256:0"], "127.0.0.256:0"),
        (["--listen", "localhost:0"], "localhost:0"),
        (["--listen", "::1:0"], "::1:0"),
        (["--listen", "[::1]"], "[::1]"),
        (["--listen", "[::1:0"], "[::1:0"),
        (["--listen", "[127.0.0.1]:0"], "[127.0.0.1]:0"),
        (["--listen", "unix:"], "unix:"),
        (["--listen", "unix:/" + "x" * 200], "unix:/"),
        (["--listen", LOCAL] * 17, "more than 16 times"),
        (["--max-connections", "0"], "0"),
        (["--max-connections", "-1"], "-1"),
        (["--max-connections", "x"], "x"),
        (["--max-connections", "1x"], "1x"),
        (["--max-connections", ""], "max-connections"),
        (["--max-connections", "18446744073709551617"], "18446744073709551617"),
        (["--max-connections", "99999999999999999999999"], "99999999999999999999999"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_usage(tmp_path, arguments, quoted):
    """Exit 2, nothing on standard output, and a message that quotes what is wrong."""
    result = run(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, ""), result
    assert result.stderr.startswith("roomkeyd: ") and quoted in result.stderr, result
    assert len(result.stderr) < 1000 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments,message", [
    (["check", "--listen", LOCAL], "--listen is not an option of check"),
    (["check", f"--listen={LOCAL}"], "--listen is not an option of check"),
    (["user", "add", "bob", "--salvage", "x"], "--salvage is not an option of user add"),
    (["hash-token", "--data", "x"], "--data is not an option of hash-token"),
    (["export", "--version"], "--version is not an option of export"),
    (["--salvage", "x"], "--salvage is not an option of serve"),
    (["health", "--no-metrics"], "--no-metrics is not an option of health"),
    (["--nonsense"], "unknown option: '--nonsense' (options are not abbreviated)"),
    (["--nonsense=x"], "unknown option: '--nonsense' (options are not abbreviated)"),
    (["check", "-d", "x"], "unknown option: '-d' (options are not abbreviated)"),
    (["--dat", "x"], "unknown option: '--dat' (options are not abbreviated)"),
    (["--lis=x"], "unknown option: '--lis' (options are not abbreviated)"),
    (["check", "--he"], "unknown option: '--he' (options are not abbreviated)"),
    (["---data", "x"], "unknown option: '---data' (options are not abbreviated)"),
    (["-data", "x"], "unknown option: '-d' (options are not abbreviated)"),
    (["-Data", "x"], "unknown option, not repeated here: it may be a token"),
    (["--=x"], "unknown option: '--' (options are not abbreviated)"),
    (["--listen"], "--listen needs a value"),
    (["check", "--data"], "--data needs a value"),
    (["--data", "--no-metrics"],
     "--data needs a value; one that begins with -- is written --data=VALUE"),
    (["--data", "--", "x"], "--data needs a value; one that begins with -- is written --data=VALUE"),
    (["--data", ""], "--data: the path is empty"),
    (["--access-log="], "--access-log: the path is empty"),
    (["check", "--salvage="], "--salvage: the path is empty"),
    (["--no-metrics=1"], "--no-metrics takes no value"),
    (["--no-metrics="], "--no-metrics takes no value"),
    (["--help=x"], "--help takes no value"),
    (["--data", "x", "check"], "not a command, or not the first word: 'check'"),
    (["-"], "not a command, or not the first word: '-'"),
    (["check", "-"], "too few words, or too many"),
], ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "")
def test_what_is_wrong_with_an_option_is_named(tmp_path, arguments, message):
    """In one line, before the usage of its command; whatever POSIXLY_CORRECT says."""
    for environment in ({}, {"POSIXLY_CORRECT": "1"}):
        result = run(*arguments, cwd=tmp_path, env={**os.environ, **environment})
        assert (result.returncode, result.stdout) == (2, ""), result
        first, usage = result.stderr.split("\n", 1)
        assert first == f"roomkeyd: {message}" and usage.startswith("usage: roomkeyd ")
    assert os.listdir(tmp_path) == []


def test_values_that_begin_with_dashes(tmp_path):
    """After --data= any, and after --data what is no option for the eye."""
    for name, arguments in (("--d", ["--data=--d"]), ("-d", ["--data", "-d"]), ("=d", ["--data==d"])):
        write_data(tmp_path / name)
        done = run("import", *arguments, cwd=tmp_path, stdin=None, input='{"_id":"r","e2eKeyId":"k"}\n')
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / name / "keys.log").exists()


LONGEST_PATH = 107  # bytes of sun_path (unix(7)), less a NUL


@pytest.mark.parametrize("address,reason", [
    ("localhost:3000", "a name is not looked up"),
    ("roomkeyd.example:0", "a name is not looked up"),
    ("3000", "a port alone"),
    (":3000", "no address before the port"),
    ("*:3000", "no address before the port"),
    ("", "no port"),
    ("127.0.0.1", "no port"),
    ("127.0.0.1:", "no port"),
    ("[::1]", "no port"),
    ("[::1]:", "no port"),
    ("[::1]3000", "no port"),
    ("127.0.0.1:65536", "not a number from 0 to 65535"),
    ("127.0.0.1:http", "not a number from 0 to 65535"),
    ("127.0.0.1:3000/", "not a number from 0 to 65535"),
    ("[::1]:99999999999999999999", "not a number from 0 to 65535"),
    ("127.0.0.256:0", "four numbers from 0 to 255"),
    ("127.1:0", "four numbers from 0 to 255"),
    ("1" * 100 + ":0", "four numbers from 0 to 255"),
    ("::1:3000", "needs brackets"),
    ("::", "needs brackets"),
    ("fe80::1", "needs brackets"),
    ("[::1:0", "no ] after"),
    ("[127.0.0.1]:0", "no IPv6 address"),
    ("[localhost]:0", "no IPv6 address"),
    ("[]:0", "no IPv6 address"),
    ("[" + "1" * 100 + "]:0", "no IPv6 address"),
    ("[fe80::1%lo]:0", "a zone"),
    ("http://127.0.0.1:3000", "a URL"),
    ("/run/roomkeyd.sock", "needs unix: before it"),
    ("./roomkeyd.sock", "needs unix: before it"),
    ("unix:", "needs a path"),
    ("unix:@name", "an abstract socket"),
    ("unix:@", "an abstract socket"),
    ("unix:/" + "x" * LONGEST_PATH, f"too long: at most {LONGEST_PATH} bytes"),
], ids=lambda text: text[:30])
@pytest.mark.parametrize("command", ["serve", "health"])
def test_addresses_that_are_none_are_told_apart(tmp_path, command, address, reason):
    result = run(command, "--listen", address, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, ""), result
    first = result.stderr.splitlines()[0]
    assert first.startswith(f"roomkeyd: --listen '{address}': ") and reason in first
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments", [("serve", "--listen", LOCAL), ("--listen", LOCAL, "serve")])
def test_serve_may_be_said(serve, tmp_path, arguments):
    """The main job's name may be left out; the data directory defaults to data."""
    write_data(tmp_path / "data")
    process = subprocess.Popen([binary(), *arguments], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("roomkeyd: listening on 127.0.0.1:")
    process.terminate()
    assert process.communicate(timeout=TIMEOUT_S) == ("", "")
    assert process.returncode == 0
    assert (tmp_path / "data" / "keys.log").exists()
    assert serve("--max-connections=100").ask(HEALTHZ).status == 200  # and the other spelling


# ---- listeners ---------------------------------------------------------------------------------


def test_several_listeners(serve, tmp_path):
    path = tmp_path / "socket"
    listen = [LOCAL, f"unix:{path}", LOCAL] + ["[::1]:0"] * has_ipv6()
    server = serve(listen=listen)
    assert server.addresses[1] == str(path)
    assert all(address[1] != 0 for address in server.addresses)
    for number, address in enumerate(server.addresses):
        with Client(address) as client:
            client.ask(set_request(f"room {number}", "key")).is_json(200, SUCCESS)
            client.ask(info_request("room 0")).is_json(200, room_info("room 0", "c", "key"))


def test_the_default_listeners(tmp_path):
    """127.0.0.1:3000 and [::1]:3000, seen from a network of its own, where port 3000 is free."""
    unshare = [tool("unshare", "util-linux"), "--net", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody make a network namespace")
    write_data(tmp_path / "data")
    up = (
        "import fcntl, os, socket, struct, sys; s = socket.socket();"
        "fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 1));"  # SIOCSIFFLAGS, IFF_UP
        "s.close(); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [*unshare, "/usr/bin/python3", "-c", up, binary(), "--data", str(tmp_path / "data")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline().strip() for _ in range(1 + has_ipv6())]
    process.terminate()
    assert process.communicate(timeout=TIMEOUT_S) == ("", "")
    assert lines == ["roomkeyd: listening on 127.0.0.1:3000",
                     "roomkeyd: listening on [::1]:3000"][: 1 + has_ipv6()]


def test_an_ipv6_listener_takes_ipv6_alone(tmp_path):
    """Or [::] and 0.0.0.0 could not be given together. Seen by what only a socket for both families
    can be bound to, without listening anywhere but on loopback."""
    assert has_ipv6(), "this test needs ::1"
    write_data(tmp_path / "data")
    result = run("--listen", "[::ffff:127.0.0.1]:0", "--data", tmp_path / "data")
    assert (result.returncode, result.stdout) == (1, "")
    assert "cannot listen on [::ffff:127.0.0.1]:0" in result.stderr


def test_an_address_in_use(serve, tmp_path):
    server = serve()
    address = "127.0.0.1:%d" % server.address[1]
    write_data(tmp_path / "other")
    result = run("--listen", address, "--data", tmp_path / "other")
    assert (result.returncode, result.stdout) == (1, "")
    assert address in result.stderr and os.strerror(98) in result.stderr
    assert server.ask(HEALTHZ).status == 200


def test_the_port_is_free_again_at_once(serve):
    """A restart must not have to wait for the old connections' TIME-WAIT."""
    server = serve()
    client = server.client()
    client.ask(HEALTHZ)
    address = "127.0.0.1:%d" % server.address[1]
    server.stop()
    client.close()
    assert serve(listen=[address]).ask(HEALTHZ).status == 200


def test_a_stale_unix_socket_is_replaced(serve, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    assert path.exists()
    for _ in range(2):
        server = serve(listen=[f"unix:{path}"])
        assert server.ask(HEALTHZ).status == 200
        server.kill()
        assert path.exists()


def test_a_live_unix_socket_is_left_alone(serve, tmp_path):
    path = tmp_path / "socket"
    server = serve(listen=[f"unix:{path}"])
    write_data(tmp_path / "other")
    result = run("--listen", f"unix:{path}", "--data", tmp_path / "other")
    assert (result.returncode, result.stdout) == (1, "")
    assert str(path) in result.stderr
    assert server.ask(HEALTHZ).status == 200


def test_a_file_in_the_place_of_the_unix_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("precious")
    write_data(tmp_path / "data")
    result = run("--listen", f"unix:{path}", "--data", tmp_path / "data")
    assert (result.returncode, result.stdout) == (1, "")
    assert str(path) in result.stderr and path.read_text() == "precious"
    assert not path.is_socket()


def fails_to_listen(tmp_path, address, error, reason, wrapper=()):
    """Exit 1, and one line that says why, by errno and in words."""
    write_data(tmp_path / "data")
    command = [*wrapper, binary(), "--listen", address, "--data", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.startswith(
        f"roomkeyd: cannot listen on {address}: {os.strerror(error)}: {reason}"), result
    assert result.stderr.count("\n") == 1


def test_what_is_wrong_with_a_unix_path_is_named(tmp_path):
    directory, file, link = tmp_path / "directory", tmp_path / "file", tmp_path / "link"
    directory.mkdir()
    file.write_text("precious")
    link.symlink_to("nowhere")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    dropped = "-dac_override,-dac_read_search"
    as_user = [tool("setpriv", "util-linux"), "--bounding-set", dropped, "--inh-caps", dropped]
    fails_to_listen(tmp_path, f"unix:{directory}", errno.EADDRINUSE, "that is a directory")
    for kept in (file, link):
        fails_to_listen(tmp_path, f"unix:{kept}", errno.EADDRINUSE, "a file is there that is no socket")
    fails_to_listen(tmp_path, f"unix:{tmp_path}/none/socket", errno.ENOENT, "the directory of the socket")
    fails_to_listen(tmp_path, f"unix:{closed}/socket", errno.EACCES, "this user may not",
                    as_user if os.geteuid() == 0 else ())
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen()
        fails_to_listen(tmp_path, f"unix:{tmp_path}/socket", errno.EADDRINUSE, "another process listens")
    assert file.read_text() == "precious" and link.is_symlink() and directory.is_dir()


def test_what_is_wrong_with_an_ip_address_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        fails_to_listen(tmp_path, "127.0.0.1:%d" % other.getsockname()[1], errno.EADDRINUSE,
                        "another process listens there")
    # TEST-NET-1 (RFC 5737) is nobody's.
    fails_to_listen(tmp_path, "192.0.2.1:0", errno.EADDRNOTAVAIL, "no interface of this machine")


def test_the_longest_unix_path(serve, tmp_path):
    path = str(tmp_path / "x")
    path += "x" * (LONGEST_PATH - len(path))
    assert serve(listen=[f"unix:{path}"]).ask(HEALTHZ).status == 200


@pytest.mark.parametrize("families", ["IPv4 alone", "both"])
def test_localhost_for_a_client_that_tries_ipv6_first(serve, families):
    """Resolvers may give ::1 for localhost before 127.0.0.1, and where nobody listens there the
    client has to get a clean refusal, not silence."""
    assert has_ipv6(), "this test needs ::1"
    port = port_on_both_families()
    listen = [f"127.0.0.1:{port}"] + [f"[::1]:{port}"] * (families == "both")
    server = serve(listen=listen)
    result = subprocess.run(
        [tool("curl", "curl"), "-sv", "--noproxy", "*",
         "--resolve", f"localhost:{port}:[::1],127.0.0.1",
         "--happy-eyeballs-timeout-ms", "60000", f"http://localhost:{port}/healthz"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout) == (0, "ok"), result
    tried = re.findall(r"Trying \[?([0-9a-f:.]+?)\]?:\d+\.\.\.", result.stderr)
    assert tried == (["::1"] if families == "both" else ["::1", "127.0.0.1"]), result.stderr
    assert server.ask(HEALTHZ).status == 200


def test_a_unix_socket_whose_owner_is_busy_is_not_taken(tmp_path):
    """Nobody else can connect to it at this moment, and yet somebody listens."""
    write_data(tmp_path / "data")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as owner, contextlib.ExitStack() as waiting:
        owner.bind(str(path))
        owner.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(path))
        before = path.stat().st_ino
        result = run("--listen", f"unix:{path}", "--data", tmp_path / "data")
        assert result.returncode == 1 and "Address already in use" in result.stderr
        assert path.stat().st_ino == before


# ---- files -------------------------------------------------------------------------------------


def fails_to_start(directory, *patterns, **options):
    """Exit 1, silence on standard output, one line that says what is wrong where."""
    result = run("--listen", LOCAL, "--data", directory, **options)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.startswith("roomkeyd: ") and result.stderr.count("\n") == 1, result
    for pattern in patterns:
        assert re.search(pattern, result.stderr), result.stderr


def test_no_data_directory(tmp_path):
    fails_to_start(tmp_path / "none", re.escape(str(tmp_path / "none")), os.strerror(2))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("missing", ["users", "rooms"])
def test_missing_files(tmp_path, missing):
    write_data(tmp_path)
    (tmp_path / missing).unlink()
    fails_to_start(tmp_path, re.escape(str(tmp_path / missing)), os.strerror(2))


@pytest.mark.parametrize("name", ["users", "rooms", "keys.log"])
def test_a_directory_in_the_place_of_a_file(tmp_path, name):
    write_data(tmp_path, *(None if name == other else text for other, text in
                           (("users", USERS), ("rooms", ROOMS))))
    (tmp_path / name).mkdir()
    fails_to_start(tmp_path, name)


@pytest.mark.parametrize("name", ["users", "rooms", "keys.log"])
def test_unreadable_files(serve, tmp_path, name):
    """As root, too: without the capability to pass over permissions."""
    serve().stop()
    (tmp_path / "data" / name).chmod(0)
    dropped = "-dac_override,-dac_read_search"
    wrapper = []
    if os.geteuid() == 0:
        wrapper = [tool("setpriv", "util-linux"), "--bounding-set", dropped, "--inh-caps", dropped]
    command = [*wrapper, binary(), "--listen", LOCAL, "--data", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S,
                            check=False)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert name in result.stderr and os.strerror(13) in result.stderr, result


BAD_USERS = {
    "no hash": "alice\n",
    "too much": f"alice {hash_token('x')} more\n",
    "too short": f"alice {hash_token('x')[:-2]}=\n",
    "no padding": f"alice {hash_token('x')[:-1]}\n",
    "the token itself": "alice Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU\n",
    "no base64": "alice " + "!" * 43 + "=\n",
    "a NUL": f"al\0ice {hash_token('x')}\n",
    "a long name": f"{'x' * 256} {hash_token('x')}\n",
}
BAD_ROOMS = {
    "no type": "room\n",
    "unknown type": "room x\n",
    "long type": "room cc\n",
    "room twice": "room c\nroom c\n",
    "room twice, differently": "room p alice\nroom p bob\n",
    "wildcard twice": "* c\n* c\n",
    "a long name": f"{'x' * 256} c\n",
    "a NUL": "ro\0om c\n",
}


def bad_files():
    for case, text in BAD_USERS.items():
        yield pytest.param("users", text, id=f"users: {case}")
    for case, text in BAD_ROOMS.items():
        yield pytest.param("rooms", text, id=f"rooms: {case}")


@pytest.mark.parametrize("name", ["users", "rooms"])
def test_a_byte_order_mark_is_refused(tmp_path, name):
    """It would be part of the first line's ID, where nobody sees it."""
    write_data(tmp_path / "data")
    path = tmp_path / "data" / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    result = run("--listen", LOCAL, "--data", tmp_path / "data")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{path}:1: begins with a byte order mark" in result.stderr


@pytest.mark.parametrize("name,text", bad_files())
def test_bad_files(tmp_path, name, text):
    """File, line and reason; never the hash, never the token."""
    before = "# a comment\n\n" + ("x c\n" if name == "rooms" else USERS)
    write_data(tmp_path, **{name: before + text})
    line = (before + text).count("\n")
    fails_to_start(tmp_path, rf"{re.escape(str(tmp_path / name))}:{line}: \S+")
    result = run("--listen", LOCAL, "--data", tmp_path)
    assert hash_token("x")[:20] not in result.stderr and "Di9OKW" not in result.stderr


def test_what_files_may_hold(serve):
    """Comments, empty lines, tabs, carriage-return-free ends, no newline at the end."""
    server = serve(users=f"\n#c\n  \nalice\t \t{hash_token('token-of-alice')} \n# {USERS}",
                   rooms="# *  c\n\n \t\nprivate\tp  alice\talice \n#\nempty p\n\u00e4 c")
    server.info("private").is_json(200, room_info("private", "p"))
    server.info("\u00e4").is_json(200, room_info("\u00e4", "c"))
    assert server.info("empty").status == server.info("#").status == 400


# ---- reloads -----------------------------------------------------------------------------------


def test_reload(serve):
    server = serve(rooms=ROOMS)
    assert server.info("new").status == 400
    server.info("public", BOB_FIELDS).is_json(200, room_info("public", "c"))
    write_data(server.directory, f"alice {hash_token('token-of-alice')}\n", ROOMS + "new c\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("new").status == 200, "the reload")
    server.info("public", BOB_FIELDS).is_json(401, UNAUTHORIZED)


def change(server, generation):
    """Writes users and rooms so that every name in them tells which generation they are of."""
    token = hash_token(f"token {generation}")
    texts = {"users": f"{USERS}user {token}\n", "rooms": f"{ROOMS}room-{generation} c\n"}
    for name, text in texts.items():
        new = server.directory / f"{name}.new"  # swapped in whole, as an operator's tool would
        new.write_text(text)
        new.rename(server.directory / name)


def test_reload_under_load(serve):
    """Again and again while clients set and read: none fails, and none sees half a reload."""
    server = serve(rooms=ROOMS)
    done = threading.Event()

    def load(number):
        with server.client() as client:
            while not done.is_set():
                client.ask(info_request("private")).is_json(200, room_info("private", "p"))
                assert client.ask(set_request("direct", str(number))).status in (200, 400)
                client.ask(set_request("private", "k", BOB_FIELDS)).is_json(400, INVALID_ROOM)

    with in_threads(load, range(4)):
        try:
            for generation in range(25):
                change(server, generation)
                server.send_signal(signal.SIGHUP)
                fields = (("X-User-Id", "user"), ("X-Auth-Token", f"token {generation}"))
                # The new user is known: then the new room is, too, and the old one is not any more.
                wait_until(lambda: server.info("public", fields).status == 200, "the reload")
                assert server.info(f"room-{generation}", fields).status == 200
                assert server.info(f"room-{generation - 1}", fields).status == 400
        finally:
            done.set()


CAROL_FIELDS = (("X-User-Id", "carol"), ("X-Auth-Token", "token-of-carol"))
CAROL = f"carol {hash_token('token-of-carol')}\n"
ONLY_ALICE = USERS.splitlines(keepends=True)[0]


def write_or_remove(server, **texts):
    """Changes users and rooms; None: the file is gone."""
    for name, text in texts.items():
        if text is None:
            (server.directory / name).unlink()
        else:
            (server.directory / name).write_text(text)


def reload_with(server, lines, **texts):
    """Changes users and rooms, sends SIGHUP and waits for so many lines of standard error more, by
    which what has been read is in force. Returns them, without what they all begin with."""
    server.expected_stderr = "/(users|rooms):"  # and the test looks at all of them
    before = len(server.stderr.wait_for(list, lambda: True))
    write_or_remove(server, **texts)
    server.send_signal(signal.SIGHUP)
    found = server.stderr.wait_for(lambda all: len(all) >= before + lines and all[before:])
    assert found and len(found) == lines, found
    begin = f"roomkeyd: {server.directory}/"
    assert all(line.startswith(begin) for line in found), found
    return [line[len(begin):] for line in found]


def status_of(server, room, fields):
    return server.info(room, fields).status


TOKENS_TAKEN = ("; users: tokens that are gone are out of force, new ones wait until rooms is mended")
ROOMS_TAKEN = ("; rooms: rooms and members that are gone are out of force, new ones wait until users is "
               "mended")
NOTHING_TAKEN = "; users and rooms stay as they were"


@pytest.mark.parametrize("bad,why", [
    (ROOMS + "#\nroom x\n", "rooms:5: type must be c, p or d"),
    (ROOMS + "more p alice # not for bob\n",
     "rooms:4: a comment begins at the start of its line, with #"),
    (None, "rooms: No such file or directory"),
], ids=["type", "comment", "none"])
def test_while_rooms_is_bad_users_takes_away_and_does_not_add(serve, bad, why):
    server = serve(rooms=ROOMS)
    assert reload_with(server, 1, users=ONLY_ALICE + CAROL, rooms=bad) == [why + TOKENS_TAKEN]
    server.info("public", BOB_FIELDS).is_json(401, UNAUTHORIZED)  # out of force at once
    server.info("public", CAROL_FIELDS).is_json(401, UNAUTHORIZED)  # it waits
    server.set("private", "key").is_json(200, SUCCESS)  # as it was
    # Bob's token comes back: that is new, and waits, too.
    assert reload_with(server, 1, users=USERS + CAROL) == [why + TOKENS_TAKEN]
    assert status_of(server, "public", BOB_FIELDS) == 401
    write_data(server.directory, USERS + CAROL, ROOMS + "mended c\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("mended").status == 200, "the reload")
    assert status_of(server, "public", BOB_FIELDS) == status_of(server, "public", CAROL_FIELDS) == 200
    server.stop()
    assert len(server.stderr.all()) == 2


@pytest.mark.parametrize("bad,why", [
    (USERS + "alice nonsense\n",
     "users:3: hashed token must be 44 characters, the base64 of 32 bytes"),
    (None, "users: No such file or directory"),
], ids=["hash", "none"])
def test_while_users_is_bad_rooms_takes_away_and_does_not_add(serve, bad, why):
    server = serve(rooms="a p alice bob\nb c\nc p alice\nd p alice\n* c\n")
    rooms = "a p alice\nb p alice\nc c\nnew p alice\n* c\n"
    assert reload_with(server, 1, users=bad, rooms=rooms) == [why + ROOMS_TAKEN]
    # bob is out of a; b is not open any more; c does not open yet, nor d by the loss of its line; the
    # line for all others let bob into `new`, and does not any more.
    for room in ("a", "b", "c", "d", "new"):
        server.info(room).is_json(200, room_info(room, "p"))
        assert status_of(server, room, BOB_FIELDS) == 400
    server.info("other", BOB_FIELDS).is_json(200, room_info("other", "c"))
    assert reload_with(server, 1, rooms="a p alice bob\n") == [why + ROOMS_TAKEN]
    assert [status_of(server, room, BOB_FIELDS) for room in ("a", "b", "other")] == [400] * 3
    assert [status_of(server, room, ALICE_FIELDS) for room in ("a", "b", "other")] == [200, 400, 400]
    write_data(server.directory, USERS, "a p alice bob\nmended c\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("mended").status == 200, "the reload")
    assert status_of(server, "a", BOB_FIELDS) == 200
    server.stop()


def test_while_both_are_bad_nothing_changes(serve):
    """Both mistakes are told; a good file then takes away from what was in force before."""
    server = serve(rooms=ROOMS)
    bad = {"users": ONLY_ALICE + "bob\n", "rooms": "private p bob\npublic\n"}
    users, rooms = "users:2: line must be USERID HASHED_TOKEN", "rooms:2: line must be RID TYPE [USERID...]"
    assert reload_with(server, 2, **bad) == [users + NOTHING_TAKEN, rooms + NOTHING_TAKEN]
    assert status_of(server, "public", BOB_FIELDS) == 200
    assert status_of(server, "private", ALICE_FIELDS) == 200
    assert reload_with(server, 1, users=ONLY_ALICE) == [rooms + TOKENS_TAKEN]
    assert status_of(server, "public", BOB_FIELDS) == 401
    # The files change places: users has been read and is kept, without bob.
    assert reload_with(server, 1, users=bad["users"], rooms="private p alice\n") == [users + ROOMS_TAKEN]
    assert status_of(server, "private", ALICE_FIELDS) == 200
    assert status_of(server, "public", ALICE_FIELDS) == 400
    assert status_of(server, "private", BOB_FIELDS) == 401
    server.stop()


@pytest.mark.parametrize("name", ["users", "rooms"])
def test_a_start_takes_both_or_none(serve, name):
    server = serve.launch(**{name: "bad\n"})
    server.expected_exit, server.expected_stderr = 1, f"/{name}:1: line must be "
    server.judge()


def test_many_hangups_at_once(serve):
    """Signals that come while a reload runs: in the end the files' last state counts."""
    server = serve(rooms=ROOMS)
    for generation in range(50):
        change(server, generation)
        server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("room-49").status == 200, "the last reload")
    assert server.info("room-48").status == 400


def test_a_hangup_while_rooms_are_read(serve, tmp_path):
    """Users have been read by then: they are once more, when that is over."""
    options, trace = os.environ.get("ASAN_OPTIONS", ""), tmp_path / "trace"
    server = serve(rooms=ROOMS, environment={"ASAN_OPTIONS": f"{options}:detect_leaks=0"}, wrapper=[
        tool("strace", "strace"), "-D", "-f", "-qq", "-o", trace, "-P", tmp_path / "data" / "rooms",
        "-e", "trace=open,openat,read", "-e", "inject=read:delay_enter=500000",
        "-e", "signal=none"])
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: trace.read_text().count("open") == 2, "rooms to be opened again")
    write_data(server.directory, USERS + f"late {hash_token('t')}\n", ROOMS)
    server.send_signal(signal.SIGHUP)
    fields = (("X-User-Id", "late"), ("X-Auth-Token", "t"))
    wait_until(lambda: server.info("public", fields).status == 200, "the second reload")


def test_a_stop_during_a_reload(serve):
    server = serve(rooms="".join(f"room-{i} p alice bob\n" for i in range(100_000)))
    server.send_signal(signal.SIGHUP)
    server.stop()


# ---- stopping ----------------------------------------------------------------------------------


def never_read(client):
    """Asks on and on without reading a reply, until nothing more can be sent; returns the bytes."""
    sent, requests = 0, request("GET", "/x", [("X", "y" * 100)]) * 200
    while select.select([], [client.socket], [], 2)[1]:
        sent += client.socket.send(requests[sent % (len(requests) // 200) :])
        assert sent < 200_000_000, "the server reads on and on"
    return sent


def test_a_server_that_is_never_idle_can_be_stopped(server):
    """Signals come through although every wait finds events at once."""
    over = threading.Event()
    received = []

    def flood(_):
        with contextlib.suppress(OSError), server.client() as client:
            reader = threading.Thread(target=drop_replies, args=(client,), daemon=True)
            reader.start()
            while not over.is_set():
                client.send(HEALTHZ * 200)

    def drop_replies(client):
        with contextlib.suppress(OSError):
            while data := client.socket.recv(1 << 20):
                received.append(len(data))

    def refuses():
        try:
            server.client().close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # the listener closed while this was in its queue
        return False

    with in_threads(flood, range(4)):
        try:
            wait_until(lambda: sum(received) > 50_000_000, "the flood")
            server.send_signal(signal.SIGTERM)
            wait_until(refuses, "the listener to close")
        finally:
            over.set()


def test_a_second_signal_stops_it_at_once(serve):
    server = serve()
    with server.client() as stuck:
        stuck.socket.setblocking(False)
        never_read(stuck)
        server.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for the stuck client ...
            server.process.wait(1.5)
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.judged = True
        server.process.wait(TIMEOUT_S)
        assert time.monotonic() - started < 5  # ... but not now
        assert server.process.returncode == 1  # it has left somebody without a reply
        server.check_output()


def test_a_crowd_that_has_just_connected_is_served_to_the_end(server):
    """More of them than are accepted in one pass."""
    server.send_signal(signal.SIGSTOP)
    crowd = [server.client() for _ in range(400)]
    for client in crowd:
        client.send(HEALTHZ)
    server.send_signal(signal.SIGTERM)
    server.send_signal(signal.SIGCONT)
    for client in crowd:
        assert client.reply().status == 200
        client.close()


def test_no_new_connections_while_it_stops(serve):
    server = serve()
    with server.client() as stuck:
        stuck.socket.setblocking(False)
        never_read(stuck)
        server.send_signal(signal.SIGTERM)

        def refused():
            try:
                server.client().close()
            except ConnectionError:
                return True
            return False

        wait_until(refused, "the listener to be closed")
        assert server.process.poll() is None
        started = time.monotonic()
        server.judge()  # by itself after ten seconds at most, and in good order
        assert time.monotonic() - started < 15


def test_broken_pipes_are_no_news(serve):
    """A client that is gone before its replies are written: no SIGPIPE, no message."""
    server = serve()
    with server.client() as client:
        client.send(HEALTHZ * 1000)
        client.reset()
    assert server.ask(HEALTHZ).status == 200


# ---- limits ------------------------------------------------------------------------------------


def limit_of(pid):
    """(soft, hard) number of descriptors."""
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        return re.search(r"Max open files\s+(\S+)\s+(\S+)", file.read()).groups()


def test_the_descriptor_limit_is_raised_to_the_hard_one(serve):
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4000)
    server = serve(
        before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 4, hard)))
    assert limit_of(server.pid) == (str(hard), str(hard))


def test_max_connections(serve):
    server = serve("--max-connections", "3")
    clients = [server.client() for _ in range(3)]
    for client in clients:
        assert client.ask(HEALTHZ).status == 200
    for _ in range(3):
        with server.client() as late:
            late.send(HEALTHZ)  # already on its way: the reply must not be lost in a reset
            reply = late.reply()
            reply.is_json(503, reply.body)
            assert re.fullmatch(rb'\{"success":false,"error":"[^"\\]+"\}', reply.body)
            assert int(reply.field("Retry-After")) >= 1
            assert reply.field("Connection") == "close"
            late.end()
    for client in clients:
        assert client.ask(HEALTHZ).status == 200
    clients.pop().close()

    def served():
        with server.client() as client:
            return client.ask(HEALTHZ).status == 200

    wait_until(served, "a place to be free again")
    for client in clients:
        assert client.ask(HEALTHZ).status == 200
        client.close()


def test_who_has_been_told_so_takes_nobody_s_place(serve):
    server = serve("--max-connections", "2")
    with server.client() as first, server.client() as second, server.client() as late:
        assert first.ask(HEALTHZ).status == second.ask(HEALTHZ).status == 200
        assert late.reply().status == 503  # and keeps its end open
        second.close()
        assert first.ask(HEALTHZ).status == 200
        assert server.ask(HEALTHZ).status == 200


def test_many_connections_beyond_the_limit(serve):
    """Only so many are told at a time that there are too many: the rest waits in the kernel's queue
    until some of those have gone, and no descriptors are spent on it."""
    server = serve("--max-connections", "1")
    server.expected_stderr = "cannot accept connections for now: too many connections beyond"
    with server.client() as first:
        assert first.ask(HEALTHZ).status == 200
        late = [server.client() for _ in range(80)]
        assert server.stderr.wait_for(len), "all of them were accepted"
        assert server.descriptors() < 80
        for client in late:  # in order, as they were accepted
            assert client.reply().status == 503
            client.close()
        assert first.ask(HEALTHZ).status == 200
    wait_until(lambda: server.ask(HEALTHZ).status == 200, "the one place to be free again")


def test_out_of_descriptors(serve):
    """EMFILE: connections wait in the kernel's queue, nothing spins, and all is well again by
    itself when a connection closes, and when an operator raises the limit."""
    server = serve()
    server.expected_stderr = "cannot accept connections for now: " + os.strerror(24)
    first = server.client()
    assert first.ask(HEALTHZ).status == 200
    hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
    highest = max(map(int, os.listdir(f"/proc/{server.pid}/fd")))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (highest + 3, hard))
    clients = [server.client() for _ in range(8)]
    for client in clients:
        client.send(HEALTHZ)
    sockets = {client.socket: client for client in clients}
    waiting = dict(sockets)

    def collect(timeout):
        """Reads the replies that come within the time; returns how many."""
        readable = select.select(list(waiting), [], [], timeout)[0]
        for one in readable:
            assert waiting.pop(one).reply().body == b"ok"
        return len(readable)

    while collect(1):
        pass
    assert 0 < len(waiting) < 8
    used = server.cpu_seconds()
    assert collect(1.5) == 0
    assert server.cpu_seconds() - used < 0.3, "it spins"
    assert first.ask(HEALTHZ).status == 200, "those who are in are served on"
    # One leaves: one more gets in.
    still = len(waiting)
    next(client for one, client in sockets.items() if one not in waiting).close()
    assert collect(TIMEOUT_S) >= 1
    assert len(waiting) < still
    # The limit goes up: all get in.
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
    while waiting:
        assert collect(TIMEOUT_S), "some were never served"
    server.set("room", "key").is_json(200, SUCCESS)
    for client in (first, *clients):
        client.close()


def is_stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_a_stopped_process_does_not_punish_its_clients(serve):
    """SIGSTOP, time passes, SIGCONT: what came meanwhile is served before deadlines are judged."""
    server = serve(program=binary("ROOMKEYD_SHORT_DEADLINES"))
    with server.client() as client, server.client() as halfway:
        crowd = [server.client() for _ in range(600)]  # more than are looked at in two passes
        assert client.ask(HEALTHZ).status == 200
        halfway.send(HEALTHZ[:10])
        server.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(server.pid), "the server to stop")
        late = select.select([one.socket for one in crowd], [], [], 0)[0]  # on a slow machine: for those
        crowd = [one for one in crowd if one.socket not in late]  # the deadline has come before
        for one in (client, *crowd):
            one.send(HEALTHZ)
        halfway.send(HEALTHZ[10:])
        assert not select.select([client.socket], [], [], 3)[0]
        server.send_signal(signal.SIGCONT)
        for one in (client, halfway, *crowd):
            assert one.reply().status == 200
        for one in crowd:
            one.close()
