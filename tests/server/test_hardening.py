"""Least privilege: how the shipped binaries are linked, and how little they do and need once they run.

The first half reads the ELF files (System V ABI, chapters 4 and 5; x86-64 or any other 64-bit
little-endian machine). The second watches the programs with strace, and runs them as nobody, without
a capability and without the means to get one.
"""

import os
import pathlib
import re
import shutil
import signal
import struct

import pytest

from server import (
    ALICE,
    ALREADY_EXISTS,
    BOB,
    EVERY_ROOM,
    SUCCESS,
    USERS,
    Server,
    binary,
    hash_token,
    request,
    room_info,
    tool,
    wait_until,
    write_data,
)

RELEASE, STATIC = "ROOMKEYD_RELEASE", "ROOMKEYD_STATIC"
BOTH = pytest.mark.parametrize("variable", [RELEASE, STATIC])

NOBODY = 65534

# ---- the files ---------------------------------------------------------------------------------

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PT_GNU_STACK, PT_GNU_RELRO = 0x6474E551, 0x6474E552
PF_X, PF_W = 1, 2
SHT_DYNSYM = 11
DT_FLAGS, DT_TEXTREL, DT_FLAGS_1 = 30, 22, 0x6FFFFFFB
DF_TEXTREL, DF_BIND_NOW = 0x4, 0x8
DF_1_NOW, DF_1_PIE = 0x1, 0x08000000


class Elf:
    """What hardening leaves in an ELF file: its type, segments, dynamic tags and imports."""

    def __init__(self, variable):
        self.data = pathlib.Path(binary(variable)).read_bytes()
        assert self.data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
        self.type, = struct.unpack_from("<H", self.data, 16)
        self.segments = [dict(zip(("type", "flags", "offset", "address", "_", "size"), header))
                         for header in self._table(32, 54, "<IIQQQQ")]

    def _table(self, at_offset, at_size, form):
        """The entries of one of the two tables that the file's header points at."""
        offset, = struct.unpack_from("<Q", self.data, at_offset)
        size, count = struct.unpack_from("<HH", self.data, at_size)
        return [struct.unpack_from(form, self.data, offset + i * size) for i in range(count)]

    def of_type(self, segment_type):
        return [segment for segment in self.segments if segment["type"] == segment_type]

    def dynamic_tags(self):
        """{tag: value} of the dynamic segment."""
        segment, = self.of_type(PT_DYNAMIC)
        end = segment["offset"] + segment["size"]
        return dict(struct.unpack_from("<QQ", self.data, at)
                    for at in range(segment["offset"], end, 16))

    def imports(self):
        """The names of the functions that a library has to provide."""
        sections = self._table(40, 58, "<IIQQQQIIQQ")
        symbols, = [section for section in sections if section[1] == SHT_DYNSYM]
        names, found = sections[symbols[6]], set()
        for at in range(symbols[4], symbols[4] + symbols[5], 24):
            name, _, _, section = struct.unpack_from("<IBBH", self.data, at)
            start = names[4] + name
            if section == 0 and name:
                found.add(self.data[start : self.data.index(b"\0", start)].decode())
        return found


def test_the_release_binary_is_position_independent():
    elf = Elf(RELEASE)
    assert elf.type == ET_DYN
    assert elf.of_type(PT_INTERP), "a library, not a program"
    assert elf.dynamic_tags()[DT_FLAGS_1] & DF_1_PIE
    assert DT_TEXTREL not in elf.dynamic_tags()
    assert not elf.dynamic_tags().get(DT_FLAGS, 0) & DF_TEXTREL


def test_the_release_binary_has_full_relro():
    """All is bound at the start, and then read-only: there is no function pointer to overwrite."""
    elf = Elf(RELEASE)
    assert len(elf.of_type(PT_GNU_RELRO)) == 1
    tags = elf.dynamic_tags()
    assert tags.get(DT_FLAGS, 0) & DF_BIND_NOW or tags.get(DT_FLAGS_1, 0) & DF_1_NOW


def test_the_release_binary_checks_its_stack_and_its_copies():
    imports = Elf(RELEASE).imports()
    assert "__stack_chk_fail" in imports, "no stack protector"
    assert "__memcpy_chk" in imports, f"no _FORTIFY_SOURCE: {imports}"
    # Copies that no compiler can bound, and ways to run something else.
    assert not imports & {"gets", "strcpy", "strcat", "sprintf", "vsprintf", "system", "popen",
                          "execve", "execvp", "dlopen"}


@BOTH
def test_no_memory_is_both_writable_and_executable(variable):
    elf = Elf(variable)
    assert elf.of_type(PT_LOAD)
    for segment in elf.segments:
        assert segment["flags"] & (PF_W | PF_X) != PF_W | PF_X, segment
    stack, = elf.of_type(PT_GNU_STACK)  # without this one the kernel makes the stack executable
    assert not stack["flags"] & PF_X


def test_the_static_binary_needs_no_loader():
    """No interpreter and nothing to bind, so nothing that RELRO would still have to make read-only
    but tables of the libc's; where the linker marks those, the mark covers them."""
    elf = Elf(STATIC)
    assert elf.type == ET_EXEC or not elf.of_type(PT_INTERP)
    assert not elf.of_type(PT_INTERP) and not elf.of_type(PT_DYNAMIC)
    for relro in elf.of_type(PT_GNU_RELRO):
        begin, end = relro["address"], relro["address"] + relro["size"]
        assert relro["size"] > 0
        assert any(load["address"] <= begin and end <= load["address"] + load["size"]
                   and load["flags"] & PF_W for load in elf.of_type(PT_LOAD))


@BOTH
def test_what_runs_is_what_was_linked(serve, variable):
    """The same, as the kernel sees it in the running process."""
    server = serve(program=binary(variable))
    maps = pathlib.Path(f"/proc/{server.pid}/maps").read_text().splitlines()
    assert any("[stack]" in line for line in maps)
    for line in maps:
        assert not re.match(r"\S+ .wx", line), line


# ---- what it asks the kernel for ---------------------------------------------------------------

# All that names a file, makes a process, or reaches out; and write, in which the ready line is seen.
TRACED = ("%file,creat,open_by_handle_at,execve,execveat,fork,vfork,socket,connect,bind,listen,"
          "ptrace,setuid,setgid,capset,write,writev")
WRITES = ("write", "writev")


class Trace:
    """strace's record of a server, which is the tracer's grandparent and nobody's child but ours."""

    def __init__(self, path):
        self.path = path
        self.options = {
            "wrapper": [tool("strace", "strace"), "-D", "-f", "-q", "-o", str(path), "-s", "200",
                        "-e", f"trace={TRACED}", "-e", "signal=none"],
        }

    def calls(self):
        """(name, arguments) of every call, in order of their beginning, once the server is gone. One
        that another thread's call came into is in two parts."""
        text = wait_until(self._whole, "strace's last word")
        found, unfinished = [], {}
        for line in text.splitlines():
            thread, rest = line.split(maxsplit=1)
            if match := re.match(r"(\w+)\((.*?)( <unfinished \.\.\.>)?$", rest):
                if match[3]:
                    unfinished[thread] = len(found)
                found.append((match[1], match[2]))
            elif match := re.match(r"<\.\.\. \w+ resumed>(.*)", rest):
                name, arguments = found[unfinished[thread]]
                found[unfinished.pop(thread)] = name, f"{arguments} {match[1]}"
        return found

    def _whole(self):
        text = self.path.read_text()
        return text if re.search(r"^(\d+) .*\n(?:.*\n)*\1 +\+\+\+ exited", text) else None

    def around_ready_line(self):
        """The calls before the ready line, and those after it; writes are in neither, nor are the
        looks at the log's identity, which change nothing and may come at any time."""
        calls = self.calls()
        ready, = [i for i, (name, arguments) in enumerate(calls)
                  if name in WRITES and re.match(r'1, .*"roomkeyd: listening on ', arguments)]
        return [[call for call in part if call[0] not in WRITES and not is_look(call)]
                for part in (calls[:ready], calls[ready:])]


def is_look(call):
    """Whether it is a stat: of an open descriptor, of the log, or of its directory."""
    return call[0] in ("stat", "lstat", "fstat", "newfstatat", "statx", "stat64", "fstatat64")


def file_named(arguments):
    """The last path among a call's arguments."""
    paths = re.findall(r'"([^"]*)"', arguments)
    return paths[-1] if paths else None


def reload_with(server, users):
    """Changes users, sends SIGHUP, and waits until that has taken effect, for a token `late`."""
    write_data(server.directory, users + f"late {hash_token('late')}\n", EVERY_ROOM)
    server.send_signal(signal.SIGHUP)
    late = (("X-User-Id", "late"), ("X-Auth-Token", "late"))
    wait_until(lambda: server.info("room", late).status == 200, "the reload")


@BOTH
def test_a_running_server_opens_users_and_rooms_and_nothing_else(serve, tmp_path, variable):
    trace = Trace(tmp_path / "trace")
    server = serve(program=binary(variable), **trace.options)
    data = str(server.directory)
    server.set("room", "key").is_json(200, SUCCESS)
    server.set("room", "other").is_json(400, ALREADY_EXISTS)
    server.info("room").is_json(200, room_info("room", "c", "key"))
    wait_until(lambda: server.log().endswith(b"\t-\n"), "the seal of a log at rest")
    reload_with(server, USERS)
    (server.directory / "rooms").write_text("broken\n")  # a reload that fails opens no more either
    server.expected_stderr = "rooms:1: .*until rooms is mended"
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.stderr.wait_for(bool), "the report")
    server.set("room2", "key").is_json(200, SUCCESS)
    server.stop()

    before, after = trace.around_ready_line()
    assert [file_named(arguments) for _, arguments in after] == [
        f"{data}/users", f"{data}/rooms"] * 2, after
    for name, arguments in after:
        assert name in ("open", "openat"), after
        assert "O_RDONLY" in arguments and "O_CREAT" not in arguments, arguments
    # Before that line the static one, which has nothing to load, opens the directory's own alone.
    if variable == STATIC:
        opened = {file_named(arguments) for name, arguments in before
                  if name.startswith("open") or name.startswith("rename")}
        assert opened == {data, ".", "keys.log", "keys.log.new", "keys.log.born", "keys.log.failed",
                          f"{data}/users", f"{data}/rooms"}
    assert [name for name, _ in before].count("execve") == 1


@BOTH
def test_the_access_log_is_opened_again_on_sighup_alone(serve, tmp_path, variable):
    trace, log = Trace(tmp_path / "trace"), str(tmp_path / "access.log")
    server = serve("--access-log", log, program=binary(variable), **trace.options)
    server.set("room", "key").is_json(200, SUCCESS)
    server.ask(request("GET", "/metrics"))
    reload_with(server, USERS)
    server.stop()
    before, after = trace.around_ready_line()
    opened = [[arguments for name, arguments in part
               if name.startswith("open") and file_named(arguments) == log]
              for part in (before, after)]
    assert [len(part) for part in opened] == [1, 1], opened
    for arguments in opened[0] + opened[1]:
        for flag in ("O_WRONLY", "O_CREAT", "O_APPEND", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "0640"):
            assert flag in arguments, arguments
    assert sorted(file_named(arguments) for _, arguments in after) == sorted(
        [log, f"{server.directory}/users", f"{server.directory}/rooms"]), after


@BOTH
def test_a_torn_tail_is_saved_before_the_server_is_ready(serve, tmp_path, variable):
    server = serve(program=binary(variable))
    server.set("room", "key").is_json(200, SUCCESS)
    server.kill()
    with open(server.directory / "keys.log", "ab") as log:
        log.write(b"torn")
    trace = Trace(tmp_path / "trace")
    server = serve(program=binary(variable), **trace.options)
    server.expected_stderr = "torn tail of 4 bytes"
    server.set("room", "other").is_json(400, ALREADY_EXISTS)
    server.stop()
    before, after = trace.around_ready_line()
    assert any("keys.log.torn-" in arguments and "O_CREAT" in arguments for _, arguments in before)
    assert after == []


# ---- what it needs -----------------------------------------------------------------------------


def unprivileged(tmp_path, variable):
    """Options for a server that is nobody, has no capability and can get none. It starts inside
    tmp_path, to which root's directories would not let it pass."""
    shutil.copy(binary(variable), tmp_path / "roomkeyd")
    tmp_path.chmod(0o755)
    (tmp_path / "roomkeyd").chmod(0o755)
    wrapper = [tool("setpriv", "util-linux"), "--no-new-privs"]
    if os.geteuid() == 0:
        wrapper += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
                    "--inh-caps=-all", "--bounding-set=-all"]
    return {"wrapper": wrapper, "program": "./roomkeyd", "before_exec": lambda: os.chdir(tmp_path)}


def status_of(pid):
    """{name: value} of /proc/PID/status."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(re.split(r":\s*", line, maxsplit=1) for line in lines)


@BOTH
def test_it_needs_no_privilege(tmp_path, variable):
    """Everything it does, start to stop and start again, in a directory of its own."""
    data = tmp_path / "data"
    write_data(data)
    if os.geteuid() == 0:
        for path in (data, *data.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    options = unprivileged(tmp_path, variable)
    for reply in (SUCCESS, ALREADY_EXISTS):
        server = Server(pathlib.Path("data"), **options)
        try:
            server.wait_ready()
            status = status_of(server.pid)
            assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh")] == [0, 0, 0]
            assert status["NoNewPrivs"] == "1"
            assert "0" not in status["Uid"].split() and "0" not in status["Gid"].split()
            assert server.set("room", "key").body == reply
            server.send_signal(signal.SIGHUP)
            assert server.info("room").body == room_info("room", "c", "key")
            server.stop()
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
    log = data / "keys.log"
    assert b"\troom\tkey\n" in log.read_bytes()
    assert log.stat().st_mode & 0o077 == 0, "the log is nobody else's to read"
