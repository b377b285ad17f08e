"""What deploy/ promises: where `make install` puts what, the manual, and the container.

There need be no container engine: the image is one static binary in a read-only root, which any
shell with the right to mount can have. What needs systemd-analyze and mandoc is in ecosystem/.
"""

import glob
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from server import (
    ALREADY_EXISTS,
    BOB_FIELDS,
    REPOSITORY,
    SUCCESS,
    TIMEOUT_S,
    USERS,
    Server,
    binary,
    hash_token,
    room_info,
    run,
    tool,
    wait_until,
    write_data,
)

DEPLOY = REPOSITORY / "deploy"
BUILD_TIMEOUT_S = 300

# ---- make install ------------------------------------------------------------------------------


def make(target, directory=REPOSITORY, **variables):
    """make, as one would type it: not as a part of the make that runs these tests."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
    command = [tool("make", "make"), target, *(f"{name}={value}" for name, value in
                                                variables.items())]
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True,
                            timeout=BUILD_TIMEOUT_S, check=False)
    assert result.returncode == 0, result


@pytest.fixture(name="tree", scope="module")
def _tree(tmp_path_factory):
    """A copy of what is needed to install, where building disturbs nobody."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("*.c", "*.h", "Makefile"):
        for path in REPOSITORY.glob(name):
            shutil.copy(path, tree)
    shutil.copytree(DEPLOY, tree / "deploy")
    return tree


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr", "/opt/roomkeyd-1"])
def test_install_and_uninstall(tree, tmp_path, prefix):
    make("install", tree, DESTDIR=tmp_path, PREFIX=prefix)
    installed = {f"/{path.relative_to(tmp_path)}": path.stat().st_mode & 0o777
                 for path in tmp_path.rglob("*") if path.is_file()}
    assert installed == {
        f"{prefix}/sbin/roomkeyd": 0o755,
        f"{prefix}/share/man/man8/roomkeyd.8": 0o644,
        f"{prefix}/lib/systemd/system/roomkeyd.service": 0o644,
        f"{prefix}/lib/systemd/system/roomkeyd.socket": 0o644,
    }
    service = (tmp_path / prefix[1:] / "lib/systemd/system/roomkeyd.service").read_text()
    assert re.findall(r"^ExecStart=(\S+)", service, re.M) == [f"{prefix}/sbin/roomkeyd"]
    assert re.findall(r"^ExecReload=(\S+)", service, re.M) == ["/bin/sh", f"{prefix}/sbin/roomkeyd"]
    version = subprocess.run([tmp_path / prefix[1:] / "sbin/roomkeyd", "--version"],
                             capture_output=True, text=True, check=True).stdout
    assert version == run("--version").stdout
    make("uninstall", tree, DESTDIR=tmp_path, PREFIX=prefix)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_unit_starts_with_an_empty_directory(tmp_path, serve):
    """Its ExecStartPre makes the two files, and leaves those alone that are there."""
    service = (DEPLOY / "roomkeyd.service").read_text()
    command, = re.findall(r"^ExecStartPre=/bin/sh -c '(.*)'$", service, re.M)
    for before in ({}, {"users": "alice x\n"}, {"rooms": "* c\n"}):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        for name, text in before.items():
            (directory / name).write_text(text)
        subprocess.run(["/bin/sh", "-c", command.replace("$$", "$")], cwd=directory, check=True)
        found = {path.name: path.read_text() for path in directory.iterdir()}
        assert found == {"users": "", "rooms": "", **before}
    assert serve(users="", rooms="").info("room").status == 401


@pytest.mark.parametrize("bad", ["users", "rooms"])
def test_the_unit_s_reload_reaches_the_server_and_fails_where_a_file_is_bad(serve, bad):
    """Its commands in order, as systemd runs them: up to the first that fails."""
    service = (DEPLOY / "roomkeyd.service").read_text()
    server = serve(rooms="r p alice bob\n* c\n")
    environment = {**os.environ, "MAINPID": str(server.pid)}

    def reload():
        for command in re.findall(r"^ExecReload=(.*)$", service, re.M):
            command = command.replace("$$", "$").replace("%S/roomkeyd", str(server.directory))
            command = command.replace("/usr/local/sbin/roomkeyd", binary())
            done = subprocess.run(shlex.split(command), env=environment, capture_output=True, text=True,
                                  timeout=TIMEOUT_S, check=False)
            if done.returncode != 0:
                break
        return done

    fields = (("X-User-Id", "late"), ("X-Auth-Token", "late"))
    late = f"late {hash_token('late')}\n"
    for text in (USERS + late, late + USERS):
        (server.directory / "users").write_text(text)
        done = reload()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        wait_until(lambda: server.info("x", fields).status == 200, "the reload")
    server.expected_stderr = f"/{bad}:1: "
    (server.directory / "users").write_text("bad\n" if bad == "users" else USERS)
    (server.directory / "rooms").write_text("bad\n" if bad == "rooms" else "r p alice\n* c\n")
    done = reload()
    assert done.returncode == 1 and f"/{bad}:1: line must be" in done.stderr
    # And what is gone from the other one is out of force.
    if bad == "rooms":
        wait_until(lambda: server.info("x", fields).status == 401, "the end of the user")
    else:
        wait_until(lambda: server.info("r", BOB_FIELDS).status == 400, "the end of the membership")


# ---- the manual --------------------------------------------------------------------------------

MANUAL = DEPLOY / "roomkeyd.8"

def manual_section(name):
    text = MANUAL.read_text()
    return re.search(rf"^\.Sh {name}\n(.*?)(?=^\.Sh )", text, re.M | re.S)[1]


def commands_of_manual():
    """{command: its options} of the SYNOPSIS; `serve` for the one that has no name."""
    found = {}
    for block in manual_section("SYNOPSIS").split(".Nm roomkeyd\n")[1:]:
        name = re.search(r"\bCm (.*)", block)
        options = {f"-{option}" for option in re.findall(r"\bFl (-[a-z-]+)", block)}
        found.setdefault(name[1] if name else "serve", set()).update(options)
    return found


def options_named(text):
    """The options of a usage text: in its usage lines, and at the beginning of its others."""
    usage = re.match(r"(?:usage: .*\n)(?: {7}.*\n)*", text)[0]
    usage = re.sub(r"^ {7}roomkeyd .*\n", "", usage, flags=re.M)  # other commands
    starts = re.findall(r"^  (--.*?)(?:  |$)", text[len(usage):], re.M)
    return set(re.findall(r"--[a-z][a-z-]*", usage)), set(
        re.findall(r"--[a-z][a-z-]*", " ".join(starts)))


def commands_of_help():
    """{command: its options} as the program says itself."""
    text = run("--help").stdout
    in_usage, listed = options_named(text)
    assert listed == in_usage | {"--help", "--version"}
    names = re.findall(r"^ {7}roomkeyd (.*) \[--help\] \.\.\.$", text, re.M)
    found = {"serve": listed}
    for name in "|".join(names).split("|"):
        in_usage, listed = options_named(run(*name.split(), "--help").stdout)
        assert in_usage == listed, name
        found[name] = listed
    return found


def test_manual_and_help_name_the_same_commands_and_options():
    manual, program = commands_of_manual(), commands_of_help()
    assert manual == program


def test_the_manual_explains_what_its_synopsis_names():
    text = manual_section("COMMANDS")
    for name, options in commands_of_manual().items():
        assert re.search(rf"^\.It Cm {name}\b", text, re.M), name
        for option in options:
            assert re.search(rf"^\.It Fl {option[1:]}\b", text, re.M), option


# ---- the container -----------------------------------------------------------------------------

NOBODY = 65534


def instructions():
    """The Dockerfile as [(instruction, arguments)], its two stages in one list."""
    text = (DEPLOY / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def values(name):
    return [arguments for instruction, arguments in instructions() if instruction == name]


def test_the_image_is_built_from_what_is_there(tmp_path):
    """What is copied exists, is let through by the ignore file, and is enough for the build."""
    stages = [i for i, (name, _) in enumerate(instructions()) if name == "FROM"]
    build, image = (instructions()[stages[0]:stages[1]], instructions()[stages[1]:])
    assert build[0][1] == "debian:12-slim AS build" and image[0][1] == "scratch"
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()[-4:]
    for name, arguments in build:
        if name == "COPY":
            *sources, target = arguments.split()
            assert target == "./"
            assert ignored == ["*", *(f"!{source}" for source in sources)]
            for source in sources:
                found = glob.glob(str(REPOSITORY / source))
                assert found, source
                for path in found:
                    shutil.copy(path, tmp_path)
    command, = [arguments for name, arguments in build if arguments.startswith("make ")]
    make(command.removeprefix("make "), tmp_path)
    copied = [shlex.split(arguments) for name, arguments in image if name == "COPY"]
    assert copied[0] == ["--from=build", "/build/build/static/roomkeyd", "/roomkeyd"]
    assert (tmp_path / "build/static/roomkeyd").exists()
    assert ("WORKDIR", "/build") in build


def test_the_image_takes_the_packages_of_the_first_command():
    """What README's first command installs, and musl for a small binary."""
    readme = (REPOSITORY / "README.md").read_text()
    wanted = re.search(r"--no-install-recommends (.*?) &&", readme)[1].split()
    packages = re.search(r"--no-install-recommends (.*)", values("RUN")[0])[1].split()
    assert packages == [*wanted, "musl-tools"]


def read_only_root(root, data):
    """A wrapper under which a program runs as the image's user in a root that cannot be written,
    but for /data."""
    if os.geteuid() != 0:
        give_up("only root may change its root directory")
    script = ('mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && '
              'mount --bind "$2" "$1/data" && root=$1 && shift 2 && '
              f'exec chroot --userspec={NOBODY}:{NOBODY} --groups= "$root" "$@"')
    unshare = [tool("unshare", "util-linux"), "--mount", "--propagation", "private"]
    probe = subprocess.run([*unshare, "mount", "--bind", root, root], capture_output=True, text=True,
                           check=False)
    if probe.returncode != 0:
        give_up(f"nobody here may mount a file system, as a container may not: {probe.stderr}")
    return [*unshare, "sh", "-c", script, "sh", str(root), str(data)]


def give_up(why):
    (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


@pytest.fixture(name="container")
def _container(tmp_path):
    """(root, data, wrapper): what the image holds. Its root belongs to the image's user and is
    open to all, so that nothing but the mount keeps anybody from writing."""
    root, data = tmp_path / "root", tmp_path / "data"
    root.mkdir()
    (root / "data").mkdir()
    shutil.copy(binary("ROOMKEYD_STATIC"), root / "roomkeyd")
    write_data(data)
    root.chmod(0o777)
    wrapper = read_only_root(root, data)
    for path in (root, root / "data", data, *data.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    return root, data, wrapper


def in_container(container, *arguments):
    return subprocess.run([*container[2], "/roomkeyd", *map(str, arguments)], capture_output=True,
                          text=True, timeout=TIMEOUT_S, check=False)


def start(container):
    """A server by the image's own command line, on a free port of the loopback."""
    entry, command = (json.loads(values(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert command == ["serve", "--data", "/data", "--listen", "0.0.0.0:3000"]
    return Server(container[1], *command[1:3], program=entry[0], wrapper=container[2]).wait_ready()


def process_status(server, name):
    text = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return re.search(rf"^{name}:[ \t]*(.*)$", text, re.M)[1].split()


def test_the_image_serves_restarts_and_keeps_its_keys(container):
    root, data, _ = container
    for generation in range(3):
        server = start(container)
        try:
            assert process_status(server, "Uid") == process_status(server, "Gid") == [str(NOBODY)] * 4
            assert process_status(server, "Groups") == []
            assert int(process_status(server, "CapEff")[0], 16) == 0
            for old in range(generation):
                server.info(f"room {old}").is_json(200, room_info(f"room {old}", "c", f"key {old}"))
                server.set(f"room {old}", "other").is_json(400, ALREADY_EXISTS)
            server.set(f"room {generation}", f"key {generation}").is_json(200, SUCCESS)
            if generation % 2:
                server.stop()
            else:
                server.kill()
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
    assert sorted(path.name for path in data.iterdir()) == [
        "keys.log", "keys.log.born", "rooms", "users"]
    assert (data / "keys.log").stat().st_uid == NOBODY
    assert sorted(path.name for path in root.iterdir()) == ["data", "roomkeyd"]


def test_the_image_writes_nowhere_but_to_its_volume(container):
    root, data, _ = container
    start(container).stop()
    result = in_container(container, "check", "--data", "/data", "--salvage", "/new.log")
    assert result.returncode == 1 and os.strerror(30) in result.stderr, result
    result = in_container(container, "serve", "--data", "/data", "--listen", "unix:/socket")
    assert result.returncode == 1 and os.strerror(30) in result.stderr, result
    result = in_container(container, "check", "--data", "/data", "--salvage", "/data/new.log")
    assert (result.returncode, result.stderr) == (0, ""), result
    assert (data / "new.log").exists()
    assert sorted(path.name for path in root.iterdir()) == ["data", "roomkeyd"]


def test_the_image_can_tell_whether_it_is_well(container):
    options, command = values("HEALTHCHECK")[0].split(" CMD ")
    assert re.fullmatch(r"--interval=\d+s --timeout=\d+s", options)
    program, verb = json.loads(command)
    assert (program, values("COPY")[1].split()[-1]) == ("/roomkeyd", program)
    assert verb in commands_of_manual()
    server = start(container)
    address = "%s:%d" % server.address
    assert in_container(container, verb, "--listen", address).returncode == 0
    server.stop()
    assert in_container(container, verb, "--listen", address).returncode == 1
