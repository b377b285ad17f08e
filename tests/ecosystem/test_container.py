"""The image, made from the Dockerfile and run by container engines: buildah, podman, runc.

    debootstrap --> debian:12-slim, by that name --> buildah bud --> image --> podman run

The registry is not asked: the base image is made from Debian's packages. All storage is in a directory
of the test's own, and the containers have a network of their own with nothing but a loopback, so the
image's own command line, which listens on every address, can run as it stands; what asks it goes in
there by nsenter. Needs root, and Debian's archive. Complements test_deploy.py, which runs the same
program without an engine.
"""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess

import pytest

from server import (
    ALICE_FIELDS, ALREADY_EXISTS, JSON_TYPE, REPOSITORY, SET_PATH, SUCCESS, TIMEOUT_S, compact, tool,
    wait_until, write_data,
)
from test_deploy import NOBODY, give_up

BASE = "docker.io/library/debian:12-slim"
IMAGE = "localhost/roomkeyd"
BUILD_S = 600  # what fetching and building may take

# podman gives a container more processes and descriptors than some machines' root may have.
LIMITS = [f"--ulimit={name}={min(resource.getrlimit(which)[1] % 2**63, 4096)}"
          for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))]


class Engine:
    """buildah and podman with a storage of their own."""

    def __init__(self, directory):
        self.directory = directory
        self.storage = [f"--root={directory}/storage", f"--runroot={directory}/run",
                        "--storage-driver=vfs"]

    def run(self, program, *arguments, timeout=TIMEOUT_S):
        command = [tool(program, program), *self.storage, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def buildah(self, *arguments):
        result = self.run("buildah", *arguments, timeout=BUILD_S)
        assert result.returncode == 0, result
        return result.stdout.strip()

    def podman(self, *arguments):
        """The exit code and what was printed, both streams."""
        result = self.run("podman", f"--tmpdir={self.directory}/tmp", "--runtime=runc",
                          "--cgroup-manager=cgroupfs", "--events-backend=none", *arguments)
        return result.returncode, result.stdout + result.stderr

    def inspect(self, name, kind="container"):
        code, text = self.podman("inspect", f"--type={kind}", name)
        assert code == 0, text
        return json.loads(text)[0]


@pytest.fixture(name="engine", scope="module")
def _engine(tmp_path_factory):
    if os.geteuid() != 0:
        give_up("only root may make an image and run it")
    engine = Engine(tmp_path_factory.mktemp("engine"))
    base = engine.directory / "base"
    result = subprocess.run(
        [tool("debootstrap", "debootstrap"), "--variant=minbase", "bookworm", str(base)],
        capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert result.returncode == 0, result
    container = engine.buildah("from", "scratch")
    engine.buildah("copy", "-q", container, base, "/")
    engine.buildah("commit", "-q", "--rm", container, BASE)
    shutil.rmtree(base)
    engine.buildah("bud", "--pull-never", "--isolation=chroot", "--format=docker",
                   f"--file={REPOSITORY}/deploy/Dockerfile", f"--tag={IMAGE}", REPOSITORY)
    yield engine
    shutil.rmtree(engine.directory)


class Container:
    """A container that runs by the README's line, but for its network."""

    def __init__(self, engine, data):
        self.engine = engine
        code, text = engine.podman(
            "run", "--detach", "--read-only", "--cap-drop=ALL", "--network=none", "--no-healthcheck",
            *LIMITS, f"--volume={data}:/data", IMAGE)
        assert code == 0, text
        self.name = text.split()[-1]

    def does(self, verb, *arguments):
        code, text = self.engine.podman(verb, *arguments)
        assert code == 0, text
        return text

    def state(self):
        return self.engine.inspect(self.name)["State"]

    def asks_itself(self):
        """The exit code of the image's own check, in the container."""
        check = self.engine.inspect(IMAGE, "image")["Healthcheck"]["Test"]
        assert check[0] == "CMD"
        return self.engine.podman("exec", self.name, *check[1:])[0]

    def sets(self, key):
        """What the set of room `room` is answered, asked from within the container's network."""
        fields = [f"-H{name}: {value}" for name, value in (*ALICE_FIELDS, JSON_TYPE)]
        result = subprocess.run(
            [tool("nsenter", "util-linux"), f"--target={self.state()['Pid']}", "--net",
             tool("curl", "curl"), "-sS", "--noproxy", "*", *fields,
             "--data-binary", compact({"rid": "room", "keyID": key}),
             f"http://127.0.0.1:3000{SET_PATH}"],
            capture_output=True, timeout=TIMEOUT_S, check=False)
        assert result.returncode == 0, result
        return result.stdout

    def ends(self):
        """The exit code, once it has ended."""
        wait_until(lambda: self.state()["Status"] == "exited", "the container to end")
        return self.state()["ExitCode"]


@pytest.fixture(name="container")
def _container(engine, tmp_path):
    write_data(tmp_path / "data")
    for path in (tmp_path / "data", *(tmp_path / "data").iterdir()):
        os.chown(path, NOBODY, NOBODY)
    container = Container(engine, tmp_path / "data")
    yield container
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.podman("rm", "--force", "--time=0", container.name)


def test_the_image_holds_one_program_and_an_empty_directory(engine):
    config = engine.inspect(IMAGE, "image")["Config"]
    assert config["User"] == f"{NOBODY}:{NOBODY}" and config["StopSignal"] in ("SIGTERM", "15")
    assert list(config["Volumes"]) == ["/data"] and list(config["ExposedPorts"]) == ["3000/tcp"]
    container = engine.buildah("from", IMAGE)
    root = pathlib.Path(engine.buildah("mount", container))
    assert sorted(path.name for path in root.rglob("*")) == ["data", "roomkeyd"]
    assert (root / "data").stat().st_uid == (root / "data").stat().st_gid == NOBODY
    assert (root / "roomkeyd").stat().st_size < 256 * 1024
    engine.buildah("umount", container)
    engine.buildah("rm", container)


def test_a_key_outlives_the_container_s_end(container):
    """Stopped in good order, killed, and started again each time."""
    wait_until(lambda: container.asks_itself() == 0, "the server to be well")
    assert container.sets("first") == SUCCESS
    container.does("kill", "--signal=HUP", container.name)  # a reload
    assert container.asks_itself() == 0
    container.does("stop", "--time=15", container.name)
    assert container.ends() == 0
    for _ in range(2):
        container.does("start", container.name)
        wait_until(lambda: container.asks_itself() == 0, "the server to be well")
        assert container.sets("second") == ALREADY_EXISTS
        container.does("kill", "--signal=KILL", container.name)
        assert container.ends() == 128 + 9


def test_a_new_volume_belongs_to_the_image_s_user(engine):
    """So the server may write to it; that it holds no users yet is said, and that is all."""
    code, text = engine.podman("run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none",
                               "--no-healthcheck", *LIMITS, "--volume=keys:/data", IMAGE)
    assert code == 1 and text.startswith("roomkeyd: /data/users: "), text
    code, text = engine.podman("volume", "inspect", "keys")
    assert code == 0, text
    volume = pathlib.Path(json.loads(text)[0]["Mountpoint"]).stat()
    assert volume.st_uid == volume.st_gid == NOBODY
