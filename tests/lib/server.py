"""What the whole-server tests stand on: a roomkeyd of one's own, and a client that hides nothing.

`Server` runs the binary in a directory of its own on a port that the kernel chose, waits for its
ready lines, and holds it to two promises when it stops: exit code 0 and nothing on standard error
(a test that provokes a message says which). It signals its own child and nothing else.

`Client` is a socket and a buffer: it sends exactly the bytes it is given and reads exactly one
reply at a time, so that a test can see what an HTTP library would hide: the order of pipelined
replies, a byte too many, a reset where there should be an end.

The environment names the binaries: ROOMKEYD (default: ./roomkeyd of the repository), and
ROOMKEYD_SHORT_DEADLINES, the same built with deadlines of less than a second.
"""

import base64
import contextlib
import email.utils
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# How long anything may take that is not a measurement. Only ever waited out by a failing test: the
# machine may be busy and the binary a sanitizer build.
TIMEOUT_S = 60

SET_PATH = "/api/v1/e2e.setRoomKeyID"
CALL_PATH = "/api/v1/method.call/e2e.setRoomKeyID"
INFO_PATH = "/api/v1/rooms.info"

# The users and rooms that tests play with, unless they bring their own.
ALICE, ALICE_TOKEN = "alice", "token-of-alice"
BOB, BOB_TOKEN = "bob", "token-of-bob"
ROOMS = "public c\nprivate p alice\ndirect d alice bob\n"
EVERY_ROOM = "* c\n"


def hash_token(token):
    """HASHED_TOKEN of the users file."""
    return base64.b64encode(hashlib.sha256(token.encode()).digest()).decode()


USERS = f"{ALICE} {hash_token(ALICE_TOKEN)}\n{BOB} {hash_token(BOB_TOKEN)}\n"


def compact(value):
    """JSON as JSON.stringify writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def failure(error, error_type=None, method=None):
    """The body of a refusal: these keys, this order."""
    body = {"success": False, "error": error}
    if error_type:
        body["errorType"] = error_type
    if method:
        body["details"] = {"method": method}
    return compact(body)


SUCCESS = b'{"success":true}'
UNAUTHORIZED = failure("unauthorized")
INVALID_ROOM = failure("Invalid room [error-invalid-room]", "error-invalid-room", "canAccessRoom")
ALREADY_EXISTS = failure(
    "E2E Key ID already exists [error-room-e2e-key-already-exists]",
    "error-room-e2e-key-already-exists",
    "e2e.setRoomKeyID",
)
STORAGE_UNAVAILABLE = failure("Storage unavailable [error-storage]", "error-storage")


def room_info(room, room_type, key=None):
    """The body of a successful rooms.info."""
    described = {"_id": room, "t": room_type}
    if key is not None:
        described["e2eKeyId"] = key
    return compact({"room": described, "success": True})


# ---- requests as bytes -------------------------------------------------------------------------

ALICE_FIELDS = (("X-User-Id", ALICE), ("X-Auth-Token", ALICE_TOKEN))
BOB_FIELDS = (("X-User-Id", BOB), ("X-Auth-Token", BOB_TOKEN))
JSON_TYPE = ("Content-Type", "application/json")


def request(method, target, fields=(), body=None, version="HTTP/1.1"):
    """One request; Host and Content-Length are added, nothing else is."""
    lines = [f"{method} {target} {version}", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def set_request(room, key, fields=ALICE_FIELDS):
    """The set of a room's key ID."""
    return request("POST", SET_PATH, (*fields, JSON_TYPE), compact({"rid": room, "keyID": key}))


def percent_encode(text):
    """Every byte of text as %XX."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def info_request(room, fields=ALICE_FIELDS):
    """The question what a room's key ID is."""
    return request("GET", f"{INFO_PATH}?roomId={percent_encode(room)}", fields)


HEALTHZ = request("GET", "/healthz")


# ---- the client --------------------------------------------------------------------------------


class Reply:
    """A reply as it came: status, reason, fields in order, body."""

    def __init__(self, head, body):
        line, *fields = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) (.*)", line)
        assert match, f"not a status line: {line!r}"
        self.status, self.reason = int(match[1]), match[2]
        self.fields = [tuple(field.split(": ", 1)) for field in fields]
        self.body = body

    def __repr__(self):
        return f"<{self.status} {self.reason} {self.fields} {self.body!r}>"

    def field(self, name):
        """The value of a field, or None; twice the same field is a mistake of the server's."""
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} more than once: {self}"
        return values[0] if values else None

    def names(self):
        """The names of all fields in lower case."""
        return [name.lower() for name, _ in self.fields]

    def check_date(self):
        """Every final reply carries the time in the one form that RFC 9110 lets a server send."""
        date = self.field("Date")
        assert date and re.fullmatch(
            r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date
        ), self
        sent = email.utils.parsedate_to_datetime(date)
        assert email.utils.format_datetime(sent, usegmt=True) == date, "the wrong day of the week"
        assert abs(sent.timestamp() - time.time()) < TIMEOUT_S + 5, self

    def is_json(self, status, body):
        """Asserts that this is a JSON reply, exactly so."""
        assert (self.status, self.body) == (status, body), self
        assert self.field("Content-Type") == "application/json", self
        assert self.field("Cache-Control") == "no-store", self


class Client:
    """A connection to the server. address: (host, port), or the path of a unix socket."""

    def __init__(self, address, timeout=TIMEOUT_S):
        if isinstance(address, (str, os.PathLike)):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(str(address))
        else:
            self.socket = socket.create_connection(address, timeout=timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def finish_sending(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        """Closes the hard way: the server gets a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _receive(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return data

    def head(self):
        """The bytes of the next head, without the empty line."""
        while b"\r\n\r\n" not in self.buffer:
            assert self._receive(), f"the connection ended inside a head: {self.buffer!r}"
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        return head

    def reply(self, to_head=False):
        """Reads one final reply, exactly. to_head: it answers a HEAD, so it has no body."""
        reply = Reply(self.head(), b"")
        length = reply.field("Content-Length")
        if reply.status == 204:
            assert length is None, f"RFC 9110, 8.6: no Content-Length in a 204: {reply}"
        elif not to_head:
            assert length is not None and length.isdigit(), reply
            while len(self.buffer) < int(length):
                assert self._receive(), f"the connection ended inside a body: {self.buffer!r}"
            reply.body, self.buffer = self.buffer[: int(length)], self.buffer[int(length) :]
        reply.check_date()
        return reply

    def ask(self, data):
        """Sends a request and reads its reply."""
        self.send(data)
        return self.reply(to_head=data.startswith(b"HEAD "))

    def end(self):
        """Asserts that the server sends nothing more and ends the connection in good order."""
        assert self.buffer == b""
        assert self._receive() == b"", f"expected the end, got {self.buffer!r}"

    def has_nothing(self):
        """Whether nothing has come that has not been read."""
        self.socket.setblocking(False)
        try:
            self._receive()
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(TIMEOUT_S)
        return self.buffer == b""


# ---- the server --------------------------------------------------------------------------------


def binary(variable="ROOMKEYD"):
    """The program under test. There is no skipping: a missing one is a failure that says why."""
    path = os.environ.get(variable)
    if not path and variable == "ROOMKEYD":
        path = str(REPOSITORY / "roomkeyd")
    assert path, f"{variable} is not set: it has to name the binary (`make test` sets it)"
    assert os.access(path, os.X_OK), f"{variable}={path} is not a program: build it first"
    return os.path.abspath(path)


def tool(name, package):
    """The path of a program that a test needs."""
    path = shutil.which(name)
    assert path, f"{name} is not installed (Debian: apt-get install {package})"
    return path


class Lines:
    """The lines of a pipe, collected by a thread, that can be waited for."""

    def __init__(self, pipe):
        self._lines, self._changed = [], threading.Condition()
        self._thread = threading.Thread(target=self._collect, args=(pipe,), daemon=True)
        self._thread.start()

    def _collect(self, pipe):
        for line in pipe:
            with self._changed:
                self._lines.append(line.decode(errors="backslashreplace").rstrip("\n"))
                self._changed.notify_all()
        pipe.close()

    def wait_for(self, predicate, is_over=lambda: False):
        """Waits until predicate(lines) yields something true, and returns that."""
        deadline = time.monotonic() + TIMEOUT_S
        with self._changed:
            while True:
                over = is_over()
                found = predicate(self._lines)
                if found or over or time.monotonic() > deadline:
                    return found
                self._changed.wait(0.05)

    def all(self):
        """All lines of a pipe whose other end is closed."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "somebody still holds the server's output open"
        return list(self._lines)


def write_data(directory, users=USERS, rooms=EVERY_ROOM):
    """Makes a data directory."""
    directory.mkdir(exist_ok=True)
    for name, text in (("users", users), ("rooms", rooms)):
        if text is not None:
            (directory / name).write_text(text, encoding="utf-8")


class Server:
    """A running roomkeyd. listen: the addresses for --listen."""

    def __init__(self, directory, *options, listen=("127.0.0.1:0",), program=None, wrapper=(),
                 environment=None, before_exec=None, pass_fds=()):
        self.directory = pathlib.Path(directory)
        arguments = [*map(str, wrapper), program or binary()]
        for address in listen:
            arguments += ["--listen", address]
        arguments += ["--data", str(directory), *map(str, options)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})}, preexec_fn=before_exec, pass_fds=pass_fds,
        )
        self.pid = self.process.pid
        self.stdout, self.stderr = Lines(self.process.stdout), Lines(self.process.stderr)
        self.expected_stderr = None  # a pattern that all lines have to match; None: there are none
        self.expected_exit = 0
        self.asked_to_stop = self.judged = False

    def wait_ready(self, listeners=1):
        """Waits for the ready lines; keeps where the server listens in .addresses, in order."""
        exited = lambda: self.process.poll() is not None
        ready = self.stdout.wait_for(lambda lines: len(lines) >= listeners and list(lines), exited)
        if not ready:
            self.kill()
            raise AssertionError(
                f"not ready: exit {self.process.returncode}, stdout {self.stdout.all()}, "
                f"stderr {self.stderr.all()}"
            )
        self.addresses = [parse_ready_line(line) for line in ready]
        self.address = self.addresses[0]
        return self

    def client(self):
        return Client(self.address)

    def ask(self, data):
        """One request on a connection of its own."""
        with self.client() as client:
            return client.ask(data)

    def set(self, room, key, fields=ALICE_FIELDS):
        return self.ask(set_request(room, key, fields))

    def info(self, room, fields=ALICE_FIELDS):
        return self.ask(info_request(room, fields))

    def send_signal(self, number):
        self.asked_to_stop |= number in (signal.SIGTERM, signal.SIGINT)
        self.process.send_signal(number)

    @contextlib.contextmanager
    def standing_still(self):
        """Stops the process for the time of the block: what is sent meanwhile is all there when the
        server looks again."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: self._stat()[0] == "T", "the server to stand still")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self):
        """The end without a warning; nothing is expected of a killed server."""
        self.judged = True
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        self.check_output()

    def stop(self, number=signal.SIGTERM):
        """Asks the server to stop, once (twice would be at once), and judges how it does."""
        if self.process.poll() is None and not self.asked_to_stop:
            self.send_signal(number)
        self.judge()

    def judge(self):
        """Waits for the end and holds the server to its promises."""
        self.judged = True
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(TIMEOUT_S)
            raise AssertionError(f"did not stop; stderr: {self.stderr.all()}") from None
        self.check_output()
        assert self.process.returncode == self.expected_exit, (
            f"exit code {self.process.returncode}, not {self.expected_exit}; "
            f"stderr: {self.stderr.all()}"
        )

    def check_output(self):
        """Nothing on stdout but ready lines; nothing on stderr but what the test expects. (A tracer
        in between has a word of its own for a process that is killed.)"""
        stray = [line for line in self.stdout.all()
                 if not line.startswith("roomkeyd: listening on ")]
        assert not stray, f"stray standard output: {stray}"
        stray = [line for line in self.stderr.all() if "/strace: " not in line
                 and not (self.expected_stderr and re.search(self.expected_stderr, line))]
        assert not stray, "stray standard error:\n" + "\n".join(stray)

    # What the kernel says about the process.

    def _stat(self):
        """The fields of /proc/PID/stat from the state on."""
        return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()

    def cpu_seconds(self):
        """Processor time used so far."""
        user, system = self._stat()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)[1]) * 1024

    def descriptors(self):
        """How many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def log(self):
        """The bytes of the log."""
        return (self.directory / "keys.log").read_bytes()


def parse_ready_line(line):
    """What a ready line says, as an address for Client."""
    pattern = r"roomkeyd: listening on (?:unix:(.+)|\[([0-9a-f:]+)\]:(\d+)|([\d.]+):(\d+))"
    match = re.fullmatch(pattern, line)
    assert match, f"not a ready line: {line!r}"
    path, v6, v6_port, v4, v4_port = match.groups()
    if path:
        return path
    return (v6, int(v6_port)) if v6 else (v4, int(v4_port))


def run(*arguments, **options):
    """Runs the program to its end: for the ways in which it does not start."""
    options = {"timeout": TIMEOUT_S, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
               "stderr": subprocess.PIPE, **options}
    return subprocess.run([binary(), *map(str, arguments)], text=True, check=False, **options)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def port_on_both_families():
    """A port that is free on 127.0.0.1 and ::1 at this moment."""
    for _ in range(100):
        with socket.socket() as v4, socket.socket(socket.AF_INET6) as v6:
            v4.bind(("127.0.0.1", 0))
            try:
                v6.bind(("::1", v4.getsockname()[1]))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return v4.getsockname()[1]
    raise AssertionError("no port is free on both 127.0.0.1 and ::1")


# ---- the log, read as its own format says ------------------------------------------------------


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit: short, and not the server's code."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unescape(text):
    """A field of the log in PostgreSQL's COPY text form."""
    names = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return re.sub(r"\\(.)", lambda match: names[match[1]], text)


def records(log):
    """The sets in a log, in order: (user, room, key)."""
    found = []
    for line in log.decode().split("\n"):
        fields = line.split("\t")
        if len(fields) == 7 and fields[2] == "S":
            found.append(tuple(unescape(field) for field in fields[4:]))
    return found


# ---- what a service manager does ---------------------------------------------------------------

# Moves the descriptors of argument 1 to 3 and those that follow, says so in the environment (of this
# very process: LISTEN_PID), and becomes the rest of the arguments.
PASS_ON = """if True:
    import fcntl, os, sys
    descriptors = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split()]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, 3 + number)
        os.close(descriptor)
    os.environ.setdefault("LISTEN_PID", str(os.getpid()))
    os.environ.setdefault("LISTEN_FDS", str(len(descriptors)))
    os.execv(sys.argv[2], sys.argv[2:])
"""


def passing(*files):
    """Options for a Server that is to find these open files (numbers) at descriptors 3, 4, ..."""
    numbers = [file if isinstance(file, int) else file.fileno() for file in files]
    wrapper = ["/usr/bin/python3", "-I", "-c", PASS_ON, " ".join(map(str, numbers))]
    return {"wrapper": wrapper, "pass_fds": numbers}


# ---- disks that are slow or broken -------------------------------------------------------------


def inject(fault, trace=os.devnull):
    """A wrapper, with its environment, under which every fdatasync suffers fault.

    strace runs as the server's grandchild (-D), so the server stays a direct child with its own
    exit code. LeakSanitizer is a tracer itself and cannot run beside another one.
    """
    wrapper = [tool("strace", "strace"), "-D", "-f", "--seccomp-bpf", "-qq", "-o", str(trace),
               "-e", "trace=fdatasync", "-e", "signal=none"]
    if fault:
        wrapper += ["-e", f"inject=fdatasync:{fault}"]
    options = os.environ.get("ASAN_OPTIONS", "")
    return {"wrapper": wrapper, "environment": {"ASAN_OPTIONS": f"{options}:detect_leaks=0"}}


def wait_until(condition, what):
    """Asks again and again until condition() yields something true, and returns that."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def in_threads(work, arguments):
    """Runs work(argument) in one thread each; at the end joins them and raises what went wrong."""
    errors = []

    def guarded(argument):
        try:
            work(argument)
        except BaseException as error:  # pylint: disable=broad-except
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in arguments]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads), "a client never got its reply"
    if errors:
        raise errors[0]
