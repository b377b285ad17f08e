"""Fixtures of the whole-server tests, and how hypothesis behaves in them."""

import contextlib
import signal

import hypothesis
import pytest

from server import EVERY_ROOM, USERS, Server, write_data

# The heavy ones have a target of their own: make test-ecosystem.
collect_ignore = ["ecosystem"]

# A failing example is printed with the blob that replays it. No deadline: the server is a process
# of its own on a machine that may be busy.
hypothesis.settings.register_profile("roomkeyd", deadline=None, print_blob=True, max_examples=150)
hypothesis.settings.load_profile("roomkeyd")

# A shell ignores some signals for what runs in its background, and every child inherits that: a server
# or a command that a test stops by one of them would go on.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


class Starter:
    """Starts servers and, at the end of the test, stops and judges those that still run."""

    def __init__(self, directory):
        self.directory = directory
        self.servers = []

    def __call__(self, *options, listen=("127.0.0.1:0",), **others):
        return self.launch(*options, listen=listen, **others).wait_ready(len(listen))

    def launch(self, *options, users=USERS, rooms=EVERY_ROOM, **others):
        """As a call, but does not wait for the ready line."""
        data = self.directory / "data"
        write_data(data, users, rooms)
        server = Server(data, *options, **others)
        self.servers.append(server)
        return server

    def finish(self):
        for server in self.servers:
            if not server.judged:
                server.stop()


@contextlib.contextmanager
def starter_in(directory):
    """A Starter that leaves no process behind."""
    starter = Starter(directory)
    try:
        yield starter
        starter.finish()
    finally:
        for server in starter.servers:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


@pytest.fixture(name="serve")
def _serve(tmp_path):
    """serve(...) starts a server in this test's directory; call it again after a stop or kill."""
    with starter_in(tmp_path) as starter:
        yield starter


@pytest.fixture(name="server")
def _server(serve):
    """A server where every room is public."""
    return serve()


@pytest.fixture(name="shared", scope="module")
def _shared(tmp_path_factory):
    """One server for all tests of a file that leave nothing but keys of rooms of their own."""
    with starter_in(tmp_path_factory.mktemp("shared")) as starter:
        yield starter()
