"""What the shipped binaries are: the static one alone in an empty root, and how little both take."""

import os
import pathlib
import re
import shutil
import struct

from server import Server, binary, write_data

STATIC_MAX_BYTES = 160 * 1024
START_MAX_BYTES = 2 << 20
IDLE_CONNECTIONS = 1000
IDLE_MAX_BYTES = 256

PT_DYNAMIC, PT_INTERP = 2, 3


def program_headers(path):
    """The types of an ELF file's segments (System V ABI, chapter 5), 64-bit little-endian."""
    data = pathlib.Path(path).read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return {struct.unpack_from("<I", data, offset + i * size)[0] for i in range(count)}


def test_static_binary_needs_no_other_file():
    """musl-gcc makes a dynamic one of -static-pie without a word, so the file itself is asked."""
    static, release = binary("ROOMKEYD_STATIC"), binary("ROOMKEYD_RELEASE")
    assert not program_headers(static) & {PT_INTERP, PT_DYNAMIC}
    assert program_headers(release) >= {PT_INTERP, PT_DYNAMIC}, "this test would not see the difference"


def test_static_binary_is_small_and_stripped():
    static = pathlib.Path(binary("ROOMKEYD_STATIC"))
    assert static.stat().st_size < STATIC_MAX_BYTES
    assert b".symtab" not in static.read_bytes()


def test_static_binary_serves_in_an_empty_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(binary("ROOMKEYD_STATIC"), root / "roomkeyd")
    write_data(root / "data")

    def enter():
        os.chroot(root)
        os.chdir("/")

    server = Server(root / "data", "--data", "/data", program="/roomkeyd", before_exec=enter)
    try:
        server.wait_ready()
        server.set("room", "key").is_json(200, b'{"success":true}')
        assert b"\tS\t" in server.log()
        server.stop()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    assert sorted(path.name for path in root.iterdir()) == ["data", "roomkeyd"]


def anonymous_bytes(server):
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1]) * 1024


def test_memory_at_start_and_for_idle_connections(serve):
    server = serve(program=binary("ROOMKEYD_STATIC"))
    assert server.resident_bytes() < START_MAX_BYTES
    server.set("first", "key").is_json(200, b'{"success":true}')  # buffers that the loop shares
    before = anonymous_bytes(server)
    clients = [server.client() for _ in range(IDLE_CONNECTIONS)]
    try:
        for client in clients:  # each has had a request: idle, not new
            client.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").check_date()
        assert anonymous_bytes(server) - before <= IDLE_CONNECTIONS * IDLE_MAX_BYTES
    finally:
        for client in clients:
            client.close()
