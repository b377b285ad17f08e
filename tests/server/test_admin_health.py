"""health: exit code 0 for a server that says that it is well, and for nothing else."""

import contextlib
import fcntl
import socket
import termios
import threading
import time

import pytest

from server import TIMEOUT_S, has_ipv6, run, wait_until


def health(address):
    """(exit code, standard error); nothing is ever printed."""
    done = run("health", "--listen", address)
    assert done.stdout == ""
    return done.returncode, done.stderr


@contextlib.contextmanager
def answering(answer):
    """Plays a server for one connection; yields its address. answer: bytes, or None for silence."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT_S)
        over = threading.Event()

        def serve():
            connection = listening.accept()[0]
            with connection:
                connection.recv(4096)
                if answer is not None:
                    connection.sendall(answer)
                else:
                    over.wait(TIMEOUT_S)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            thread.join(TIMEOUT_S)


def test_a_server_that_is_well(serve, tmp_path):
    path = f"unix:{tmp_path}/socket"
    addresses = ["127.0.0.1:0", "0.0.0.0:0", path] + (["[::1]:0", "[::]:0"] if has_ipv6() else [])
    server = serve(listen=addresses)
    for listen, where in zip(addresses, server.addresses):
        address = path if listen == path else f"{listen.rsplit(':', 1)[0]}:{where[1]}"
        assert health(address) == (0, ""), address
    server.stop()
    code, errors = health(path)
    assert code == 1 and errors == f"roomkeyd: {path}: No such file or directory\n"


def test_nobody_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert health(address) == (1, f"roomkeyd: {address}: Connection refused\n")


@pytest.mark.parametrize("answer, said", [
    (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 503"),
    (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "HTTP/1.1 401"),
    (b"HTTP/1.1 20", "HTTP/1.1 20"),
    (b"", "no answer"),
    (b"SSH-2.0-something\r\n", "SSH-2.0-some"),
    (b"\x1b[2J\r\nHello!", "?[2J??Hello!"),
])
def test_any_other_answer(answer, said):
    with answering(answer) as address:
        assert health(address) == (1, f"roomkeyd: {address}: {said}\n")


def test_a_plain_yes():
    with answering(b"HTTP/1.1 200 OK\r\n\r\nok") as address:
        assert health(address) == (0, "")


def test_an_answer_in_two_pieces(tmp_path):
    """The second one when the first has been read (a Unix socket tells)."""
    codes = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        thread = threading.Thread(target=lambda: codes.append(health(f"unix:{tmp_path}/socket")))
        thread.start()
        with listening.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 ")
            unread = lambda: fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
            wait_until(lambda: unread() == bytes(4), "the first piece to be read")
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(b"200 OK\r\n\r\nok")
            thread.join(TIMEOUT_S)
    assert codes == [(0, "")]


def test_silence_has_a_limit():
    with answering(None) as address:
        began = time.monotonic()
        code, errors = health(address)
        assert code == 1 and errors.endswith(" timed out\n")  # one libc says more than another
        assert 2.9 < time.monotonic() - began < TIMEOUT_S / 2


def test_the_last_address_counts(serve, tmp_path):
    """As of every option that is given twice: who adds one means that one."""
    path = f"unix:{tmp_path}/socket"
    serve(listen=[path])
    assert run("health", "--listen", f"{path}-of-nobody", "--listen", path).returncode == 0


@pytest.mark.parametrize("arguments", [
    ("--listen", "localhost:3000"), ("--listen", "127.0.0.1"), ("--listen",), ("--data", "x"), ("x",),
])
def test_bad_usage(arguments):
    done = run("health", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("usage: roomkeyd health [--listen ADDR]\n")


def test_help():
    done = run("health", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "(default 127.0.0.1:3000)" in done.stdout
