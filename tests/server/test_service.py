"""As a service under a manager such as systemd, whose part is played here.

    notification   the manager binds a datagram socket and names it in NOTIFY_SOCKET (sd_notify(3))
    activation     the manager binds and listens, and the server finds the sockets at descriptors 3
                   and on, counted in LISTEN_FDS (sd_listen_fds(3))

    watchdog       the manager says how long the server may be silent (sd_watchdog_enabled(3))

Proves that the news is true and comes in time, that no manager, however broken, keeps the server
from its work, that the watchdog is answered as long as the loop runs, and no longer, and that sockets that outlive the server lose no connection when it is restarted.
"""

import os
import queue
import re
import resource
import signal
import socket
import stat
import threading
import time

import pytest

from server import (
    ALREADY_EXISTS,
    EVERY_ROOM,
    HEALTHZ,
    SUCCESS,
    TIMEOUT_S,
    Client,
    has_ipv6,
    in_threads,
    info_request,
    passing,
    records,
    room_info,
    set_request,
    wait_until,
    write_data,
)
from test_process import is_stopped

LOCAL = "127.0.0.1:0"

# ---- notification ------------------------------------------------------------------------------


class Manager:
    """Hears what the server says of itself. A thread listens: a kernel may keep no more than ten
    datagrams, and those that come then are lost."""

    END, MARK = "END", "MARK"

    def __init__(self, directory, is_abstract=False, watchdog_us=None):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # An empty name: the kernel makes up an abstract one.
        self.socket.bind("" if is_abstract else str(directory / "notify"))
        name = self.socket.getsockname()
        self.name = "@" + name[1:].decode() if is_abstract else name
        self.environment = {"NOTIFY_SOCKET": self.name}
        if watchdog_us is not None:
            self.environment["WATCHDOG_USEC"] = str(watchdog_us)
        self.heard = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        while (news := self.socket.recv(4096).decode()) != self.END:
            self.heard.put(news)

    def _say(self, news):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(news.encode(), self.socket.getsockname())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._say(self.END)
        self.thread.join(TIMEOUT_S)
        self.socket.close()

    def news(self):
        return self.heard.get(timeout=TIMEOUT_S)

    def until(self, last):
        """The news before this one."""
        heard = []
        while (news := self.news()) != last:
            heard.append(news)
        return heard

    def reload_time(self):
        """The microsecond of the next news, which has to be that of a reload."""
        news = self.news()
        match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", news)
        assert match, news
        return int(match[1])

    def so_far(self):
        """What has been said by now and was not asked for."""
        self._say(self.MARK)
        return self.until(self.MARK)

    def has_none(self):
        return self.so_far() == []

    def is_silent(self):
        """Whether nothing more comes, in a hundred times as long as an answer to a watchdog takes."""
        self.so_far()
        with pytest.raises(queue.Empty):
            print(self.heard.get(timeout=0.2))
        return True


def monotonic_us():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_the_manager_hears_of_it(serve, tmp_path, is_abstract):
    with Manager(tmp_path, is_abstract) as manager:
        server = serve(environment=manager.environment)
        assert manager.news() == "READY=1"
        with server.client() as client:
            # News may be heard before its descriptor is closed, but the loop runs only after that.
            assert client.ask(HEALTHZ).status == 200
            descriptors = server.descriptors()
            for text in (EVERY_ROOM, "nonsense\n"):  # a reload is over when it has failed, too
                write_data(server.directory, rooms=text)
                server.expected_stderr = "rooms:1: "
                before = monotonic_us()
                server.send_signal(signal.SIGHUP)
                assert before <= manager.reload_time() <= monotonic_us()
                assert manager.news() == "READY=1"
            wait_until(lambda: server.descriptors() == descriptors, "what it opened to be closed")
        server.stop()
        assert manager.news() == "STOPPING=1"
        assert manager.has_none()


def test_ready_is_said_when_it_is_true(tmp_path, serve):
    """Whoever has read READY=1 can connect; not a word from a server that does not start."""
    with Manager(tmp_path) as manager:
        path = tmp_path / "socket"
        server = serve.launch(listen=[f"unix:{path}"], environment=manager.environment)
        assert manager.news() == "READY=1"
        with Client(path) as client:
            assert client.ask(HEALTHZ).status == 200
        server.wait_ready()
        second = serve.launch(listen=[LOCAL], environment=manager.environment)  # same directory
        second.expected_exit, second.expected_stderr = 1, "another"
        second.judge()
        assert manager.has_none()


def test_a_reload_asked_for_during_the_start_is_done(tmp_path, serve):
    """The files may have been read before they were changed. And it ends nothing."""
    with Manager(tmp_path) as manager:
        server = serve.launch(rooms="".join(f"room-{i} p alice bob\n" for i in range(100_000)),
                              environment=manager.environment)

        def holds_the_signal():
            with open(f"/proc/{server.pid}/status", encoding="ascii") as status:
                blocked = int(re.search("SigBlk:\t(.*)", status.read())[1], 16)
            return blocked >> (signal.SIGHUP - 1) & 1

        wait_until(holds_the_signal, "the server to begin")
        server.send_signal(signal.SIGHUP)
        assert manager.news() == "READY=1"
        manager.reload_time()
        assert manager.news() == "READY=1"
        server.stop()


def test_every_reload_is_answered(tmp_path, serve):
    """A signal that comes while a reload runs is one of its own: the manager hears of a reload that
    began after it, and of the end of all only when that is over."""
    with Manager(tmp_path) as manager:
        server = serve(rooms="".join(f"room-{i} p alice bob\n" for i in range(100_000)),
                       environment=manager.environment)
        assert manager.news() == "READY=1"
        server.send_signal(signal.SIGHUP)
        manager.reload_time()
        last = monotonic_us()
        server.send_signal(signal.SIGHUP)
        assert manager.reload_time() >= last  # at once, while the first still runs
        news = manager.news()
        if news != "READY=1":  # the first is over, the second begins
            assert news.startswith("RELOADING=1\n")
            assert manager.news() == "READY=1"
        server.stop()
        assert manager.news() == "STOPPING=1"


# ---- watchdog ----------------------------------------------------------------------------------

WATCHDOG = "WATCHDOG=1"
OFTEN_US = 2000  # a watchdog that is answered every millisecond
SELDOM_US = 400_000


def test_the_watchdog_is_answered_twice_in_its_time(tmp_path, serve):
    """Not before the server is ready, and by an idle server, too; until it has stopped."""
    with Manager(tmp_path, watchdog_us=SELDOM_US) as manager:
        server = serve.launch(listen=[LOCAL], environment=manager.environment,
                              rooms="".join(f"room-{i} p alice bob\n" for i in range(100_000)))
        assert manager.news() == "READY=1"
        server.wait_ready()
        began = time.monotonic()
        heard = [manager.news() for _ in range(6)]
        assert heard == [WATCHDOG] * 6
        # The first is at once; rounded to milliseconds.
        assert time.monotonic() - began > 5 * (SELDOM_US / 2e6 - 0.002)
        server.stop()
        assert set(manager.until("STOPPING=1")) <= {WATCHDOG}


def test_the_watchdog_is_answered_while_the_server_stops(tmp_path, serve):
    """For as long as that takes: a client is slow."""
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        server = serve(environment=manager.environment)
        with server.client() as slow:
            slow.send(HEALTHZ[:-2])
            server.send_signal(signal.SIGTERM)
            manager.until("STOPPING=1")
            assert [manager.news() for _ in range(20)] == [WATCHDOG] * 20
            slow.send(HEALTHZ[-2:])
            assert slow.reply().status == 200
        server.judge()


def test_the_watchdog_is_answered_by_a_busy_server(tmp_path, serve):
    """Every wait finds events at once."""
    over = threading.Event()
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        server = serve(environment=manager.environment)

        def ask(_):
            with server.client() as client:
                while not over.is_set():
                    client.send(HEALTHZ * 50)
                    for _ in range(50):
                        assert client.reply().status == 200

        assert manager.news() == "READY=1"
        with in_threads(ask, range(3)):
            try:
                assert [manager.news() for _ in range(50)] == [WATCHDOG] * 50
            finally:
                over.set()
        server.stop()


def test_the_watchdog_is_answered_without_descriptors(tmp_path, serve):
    """Then the server is well, and would be killed by a watchdog that it had to open a socket for."""
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        server = serve(environment=manager.environment)
        server.expected_stderr = "cannot accept connections for now: " + os.strerror(24)
        assert manager.news() == "READY=1"
        hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
        highest = max(map(int, os.listdir(f"/proc/{server.pid}/fd")))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (highest + 2, hard))
        clients = [server.client() for _ in range(4)]
        assert server.stderr.wait_for(len), "all of them were accepted"
        manager.so_far()
        assert [manager.news() for _ in range(20)] == [WATCHDOG] * 20
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for client in clients:
            client.close()
        server.stop()


def test_a_stopped_server_does_not_answer(tmp_path, serve):
    """(Of a loop that hangs, while other threads run, see test_faults.py.)"""
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        server = serve(environment=manager.environment)
        assert manager.news() == "READY=1" and manager.news() == WATCHDOG
        server.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(server.pid), "the server to stop")
        assert manager.is_silent()
        server.send_signal(signal.SIGCONT)
        assert manager.news() == WATCHDOG
        server.stop()


@pytest.mark.parametrize("pid,is_answered", [("own", True), ("1", False), ("", False), ("x", False)])
def test_a_watchdog_for_another_process_is_not_answered(tmp_path, serve, pid, is_answered):
    """A shell's child inherits the variables, too."""
    wrapper = ["/bin/sh", "-c", 'export WATCHDOG_PID; WATCHDOG_PID=$$; exec "$0" "$@"']
    with Manager(tmp_path, watchdog_us=OFTEN_US) as manager:
        environment = {**manager.environment, "WATCHDOG_PID": pid}
        server = serve(environment=environment, wrapper=wrapper if pid == "own" else ())
        assert server.ask(HEALTHZ).status == 200
        server.stop()
        assert manager.news() == "READY=1"
        assert set(manager.until("STOPPING=1")) == ({WATCHDOG} if is_answered else set())


@pytest.mark.parametrize("limit,is_answered", [
    ("", False), ("0", False), ("x", False), ("-1", False), ("1.5", False), (" 1000", False),
    ("18446744073709551616", False), ("18446744073709551615", True), ("9223372036854775808", True),
    ("4294967296000000", True), ("1", True),
])
def test_any_time_of_a_watchdog(tmp_path, serve, limit, is_answered):
    """What is no number of microseconds is none; a long time is no longer wait than others have."""
    with Manager(tmp_path, watchdog_us=limit) as manager:
        server = serve(environment=manager.environment)
        assert manager.news() == "READY=1"
        assert server.ask(HEALTHZ).status == 200
        used = server.cpu_seconds()
        with server.client() as client:
            client.ask(HEALTHZ)
        assert server.cpu_seconds() - used < 1
        server.stop()
        heard = manager.until("STOPPING=1")
        assert set(heard) == ({WATCHDOG} if is_answered else set())
        assert limit == "1" or len(heard) <= 1


def occupied(directory):
    """A notification socket whose owner never reads, and which takes no more."""
    owner = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    owner.bind(str(directory / "full"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"x", str(directory / "full"))
    return owner


@pytest.mark.parametrize("name", ["", "@", "/", "relative", "@nobody-has-this", "none", "data/users",
                                  "full", "/" + "x" * 107, "/" + "x" * 108, "/" + "x" * 5000])
def test_a_broken_manager_is_no_trouble(serve, tmp_path, name):
    owner = occupied(tmp_path)
    known = name in ("none", "data/users", "full")
    server = serve(environment={"NOTIFY_SOCKET": str(tmp_path / name) if known else name,
                                "WATCHDOG_USEC": str(OFTEN_US)})
    server.set("room", "key").is_json(200, SUCCESS)
    write_data(server.directory, rooms=EVERY_ROOM + "new p bob\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.info("new").status == 400, "the reload")
    server.stop()
    owner.close()


# ---- activation --------------------------------------------------------------------------------


def listening(family, address, kind=socket.SOCK_STREAM):
    """A socket that listens, as a manager makes it: it blocks, and is inherited."""
    one = socket.socket(family, kind)
    one.bind(address)
    one.listen(4096)
    return one


def listening_on_tcp():
    return listening(socket.AF_INET, ("127.0.0.1", 0))


def test_passed_sockets_are_listened_on(serve, tmp_path):
    """Each is named in its ready line and serves; the default listeners are not opened; a path
    stays when the server goes; and the sockets take the next server's connections."""
    path = str(tmp_path / "socket")
    sockets = [listening_on_tcp(), listening(socket.AF_UNIX, path), listening(socket.AF_UNIX, "")]
    names = ["127.0.0.1:%d" % sockets[0].getsockname()[1], f"unix:{path}",
             "unix:@" + sockets[2].getsockname()[1:].decode()]
    addresses = [sockets[0].getsockname(), path, sockets[2].getsockname()]
    if has_ipv6():
        sockets.append(listening(socket.AF_INET6, ("::1", 0)))
        names.append("[::1]:%d" % sockets[3].getsockname()[1])
        addresses.append(sockets[3].getsockname()[:2])
    inode = os.stat(path).st_ino
    for generation in range(2):
        server = serve.launch(listen=(), **passing(*sockets))
        server.wait_ready(len(sockets))
        assert server.stdout.wait_for(list) == [f"roomkeyd: listening on {name}" for name in names]
        for number, address in enumerate(addresses):
            with connect(address) as client:
                client.ask(set_request(f"{generation} {number}", "key")).is_json(200, SUCCESS)
                client.ask(info_request("0 0")).is_json(200, room_info("0 0", "c", "key"))
        server.stop()
        assert os.stat(path).st_ino == inode and stat.S_ISSOCK(os.stat(path).st_mode)
    for one in sockets:
        one.close()


def connect(address):
    """A Client; one's own socket where Client would take an abstract name for a path."""
    if not isinstance(address, bytes):
        return Client(address)
    client = Client.__new__(Client)
    client.buffer, client.socket = b"", socket.socket(socket.AF_UNIX)
    client.socket.settimeout(TIMEOUT_S)
    client.socket.connect(address)
    return client


def test_other_addresses_are_added(serve, tmp_path):
    path = tmp_path / "socket"
    with listening_on_tcp() as passed:
        server = serve.launch(listen=[LOCAL, f"unix:{path}"], **passing(passed)).wait_ready(3)
        assert server.addresses[0] == passed.getsockname()
        assert server.addresses[2] == str(path)
        for address in server.addresses:
            with Client(address) as client:
                assert client.ask(HEALTHZ).status == 200
        server.stop()
        assert not path.exists(), "its own socket's path is unlinked"


def test_passed_sockets_neither_block_nor_are_passed_on(serve):
    with listening_on_tcp() as passed:
        os.set_blocking(passed.fileno(), True)
        server = serve.launch(listen=(), **passing(passed)).wait_ready()
        with open(f"/proc/{server.pid}/fdinfo/3", encoding="ascii") as info:
            flags = int(re.search(r"flags:\s+(\d+)", info.read())[1], 8)
        assert flags & os.O_NONBLOCK and flags & os.O_CLOEXEC
        with server.client() as client:
            client.ask(HEALTHZ)
            assert client.socket.getpeername() == passed.getsockname()


def test_a_socket_that_is_shut_down_stops_the_server(serve):
    """It could not be listened on any more, and would be ready for ever."""
    with listening_on_tcp() as passed:
        server = serve.launch(listen=(), **passing(passed)).wait_ready()
        with server.client() as client:
            assert client.ask(HEALTHZ).status == 200
            server.expected_stderr = "^roomkeyd: a listening socket has been shut down: stopping$"
            passed.shutdown(socket.SHUT_RDWR)
            client.end()
        server.judge()


def test_sockets_for_another_process_are_left_alone(serve):
    """LISTEN_PID names whom they are for: a shell's child inherits the variables, too."""
    with listening_on_tcp() as passed:
        server = serve.launch(listen=[LOCAL], environment={"LISTEN_PID": "1"}, **passing(passed))
        server.wait_ready()
        assert server.address != passed.getsockname()
        server.stop()
        assert len(server.stdout.all()) == 1


def make_datagram(_):
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def make_bound(_):
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def make_connected(_):
    pair = socket.socketpair()
    pair[1].close()
    return pair[0]


def make_file(directory):
    return open(directory / "precious", "wb")  # pylint: disable=consider-using-with


def make_packets(_):
    return listening(socket.AF_UNIX, "", socket.SOCK_SEQPACKET)


@pytest.mark.parametrize(
    "make", [make_datagram, make_bound, make_connected, make_file, make_packets])
def test_what_is_no_listening_socket_is_refused(serve, tmp_path, make):
    with listening_on_tcp() as good, make(tmp_path) as bad:
        server = serve.launch(listen=(), **passing(good, bad))
        server.expected_exit = 1
        server.expected_stderr = "roomkeyd: LISTEN_FDS: descriptor 4 is no listening stream socket$"
        server.judge()
        assert not server.stdout.all() and len(server.stderr.all()) == 1


@pytest.mark.parametrize("count,listen,message", [
    ("2", (), "LISTEN_FDS: descriptor 4 is no"),
    ("x", (), "LISTEN_FDS is not a number from 0 to 16$"),
    ("-1", (), "LISTEN_FDS is not a number from 0 to 16$"),
    ("17", (), "LISTEN_FDS is not a number from 0 to 16$"),
    ("16", (LOCAL,), "LISTEN_FDS is not a number from 0 to 15$"),
    ("99999999999999999999", (), "LISTEN_FDS is not a number from 0 to 16$"),
])
def test_a_wrong_count_is_refused(serve, count, listen, message):
    """Also of one descriptor more than there is: that number is then one of the server's own."""
    with listening_on_tcp() as passed:
        server = serve.launch(listen=listen, environment={"LISTEN_FDS": count}, **passing(passed))
        server.expected_exit, server.expected_stderr = 1, message
        server.judge()
        assert not server.stdout.all() and len(server.stderr.all()) == 1


# ---- restarts ----------------------------------------------------------------------------------


def refuses(address):
    try:
        Client(address).close()
    except ConnectionError:
        return True
    return False


def test_who_has_just_connected_is_served_before_the_end(serve):
    """A request that is on its way when the signal comes is not answered with a closed door."""
    server = serve()
    before = server.descriptors()
    with server.client() as client:
        wait_until(lambda: server.descriptors() > before, "the connection to be accepted")
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.address), "the server to stop listening")
        reply = client.ask(set_request("room", "key"))
        reply.is_json(200, SUCCESS)
        assert reply.field("Connection") == "close"
        client.end()
    server.judge()


RESTARTS = 8
CLIENTS = 6
ANSWERS = 20  # of each client, by each server


def test_a_restart_loses_no_connection(serve, tmp_path):
    """Clients connect all the time, over TCP and a unix socket, each for one set, while the server
    is stopped and started again and again: every attempt gets its answer, and a good one."""
    path = str(tmp_path / "socket")
    sockets = [listening_on_tcp(), listening(socket.AF_UNIX, path)]
    addresses = [sockets[0].getsockname(), path]
    over = threading.Event()
    generation = [0]
    answered = [[0] * (RESTARTS + 1) for _ in range(CLIENTS)]

    def attempts(number):
        count = 0
        while not over.is_set():
            key = f"{number}-{count}"
            with Client(addresses[number % 2]) as client:
                client.ask(set_request(key, key)).is_json(200, SUCCESS)
            count += 1
            answered[number][generation[0]] += 1

    with in_threads(attempts, range(CLIENTS)):
        try:
            for generation[0] in range(RESTARTS + 1):
                server = serve.launch(listen=(), **passing(*sockets)).wait_ready(2)
                wait_until(lambda: all(row[generation[0]] >= ANSWERS for row in answered), "some answers")
                if generation[0] < RESTARTS:
                    server.stop()
        finally:
            over.set()
    server.stop()
    total = sum(map(sum, answered))
    assert total == len(records(server.log())), "each answer is a record, and each record an answer"
    for one in sockets:
        one.close()


def test_who_comes_between_two_servers_is_served_by_the_next(serve):
    with listening_on_tcp() as passed:
        serve.launch(listen=(), **passing(passed)).wait_ready().stop()
        clients = [Client(passed.getsockname()) for _ in range(50)]
        for number, client in enumerate(clients):
            client.send(set_request("room", str(number)))
        server = serve.launch(listen=(), **passing(passed)).wait_ready()
        bodies = [client.reply().body for client in clients]
        assert sorted(bodies) == sorted([SUCCESS] + [ALREADY_EXISTS] * 49)
        for client in clients:
            client.close()
        server.stop()


def test_a_killed_server_leaves_the_queue_to_the_next(serve):
    """SIGKILL: who is connected loses, as ever; who is in the queue does not."""
    with listening_on_tcp() as passed:
        server = serve.launch(listen=(), **passing(passed)).wait_ready()
        server.send_signal(signal.SIGSTOP)
        client = Client(passed.getsockname())
        client.send(set_request("room", "key"))
        server.kill()
        server = serve.launch(listen=(), **passing(passed)).wait_ready()
        client.reply().is_json(200, SUCCESS)
        client.close()
        server.stop()
