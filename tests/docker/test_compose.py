"""docker-compose.minio.yml as it stands: one machine with docker-compose, and as a stack of a swarm.

The image is built from programs of this machine, as plugin/Dockerfile.minio says for places without a registry.

In a stack the server's port is published on its node and not by the swarm's routing mesh: the mesh is made by IPVS,
which is not in the kernel of every machine where tests run. That is the only line of the file which is overridden.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.docker.engine import Engine
from tests.docker.node import CommandFailed, Node
from tests.docker.plugin import Plugin
from tests.support.minio import ensure_binary, wait_for

pytestmark = pytest.mark.docker

REPOSITORY = Path(__file__).parents[2]
FILE = "docker-compose.minio.yml"
UP_S = 150.0  # tasks of a stack that came before the server are started again, each time a little later
_HOST_PORT = """
version: "3.8"
services:
  s3:
    ports: [{target: 9000, published: 9000, mode: host}]
"""
_KEYS = "[default]\naws_access_key_id = s3vol\naws_secret_access_key = s3vol-secret\n"


class Machine:
    """A node with dockerd and the driver, whose registry is where the test says."""

    def __init__(self, folder: Path, registry: str) -> None:
        self.node = Node("compose", folder)
        self.node.boot()
        if registry.startswith("file://"):
            self.node.path(registry.removeprefix("file://")).mkdir(parents=True)
        self.plugin = Plugin(self.node, registry, "http://127.0.0.1:9000")
        self.plugin.configure()
        keys = self.node.path("etc/s3vol/credentials.d/demo")
        keys.write_text(_KEYS)
        keys.chmod(0o600)
        settings = self.node.path("etc/s3vol/plugin.toml")
        settings.write_text(settings.read_text().replace('credentials = "test"', 'credentials = "demo"'))
        self.plugin.start()
        self.engine = Engine(self.node).start()

    def close(self) -> None:
        """All of it, gone."""
        self.plugin.close()
        self.node.close()

    def build(self) -> None:
        """The image, without a registry."""
        dockerfile = (REPOSITORY / "plugin/Dockerfile.minio").read_bytes()
        self.engine.docker("build", "-t", "s3vol-demo:1", "--target", "copied", "-", stdin=_context(dockerfile))

    def compose(self, *words: str) -> str:
        """`docker-compose WORDS` that has to succeed; what it said."""
        program = shutil.which("docker-compose")
        assert program, "docker-compose is missing: tools/bootstrap test installs it"
        command = [program, "-f", FILE, "-p", "demo", *words]
        environment = {**os.environ, "DOCKER_HOST": self.engine.host, "COMPOSE_INTERACTIVE_NO_CLI": "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, done.stdout + done.stderr + self.plugin.log[-3000:])
        return done.stdout + done.stderr

    def web(self) -> list[str]:
        """Names of the running replicas of the web server."""
        rows = self.engine.docker("ps", "--filter", "status=running", "--format", "{{.Names}}").splitlines()
        return sorted(row for row in rows if re.match(r"demo[_-]web[_.-]", row))

    def await_replicas(self, count: int) -> list[str]:
        """Wait until so many of them run."""
        wait_for(lambda: len(self.web()) == count, UP_S, f"{count} replicas")
        return self.web()

    def check_shared(self, names: list[str]) -> None:
        """What one replica writes, all of them serve."""
        self.engine.sh(names[0], "echo hello from one > /srv/index.html")
        for name in names:
            assert self.engine.sh(name, "wget -q -O - http://127.0.0.1:8080/") == "hello from one"

    @property
    def drivers(self) -> dict[str, str]:
        """Driver by volume name."""
        rows = self.engine.docker("volume", "ls", "--format", "{{.Name}} {{.Driver}}").splitlines()
        return dict(row.split(" ") for row in rows)


def _context(dockerfile: bytes) -> bytes:
    """A folder with what the image is to hold: MinIO, the libraries that it needs, busybox."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is missing: tools/bootstrap test installs it"
    minio = ensure_binary()
    told = subprocess.run(["ldd", minio], capture_output=True, text=True, check=False).stdout
    files = {"bin/minio": minio, "bin/busybox": busybox}
    files |= {path.lstrip("/"): path for path in re.findall(r"(/lib\S+) \(0x", told)}
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, dereference=True) as tar:
        for name, source in files.items():
            tar.add(source, name)
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(dockerfile)
        tar.addfile(info, BytesIO(dockerfile))
    return out.getvalue()


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """The machine with the image on it."""
    made = Machine(tmp_path / "node", request.param)
    try:
        made.build()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("machine", ["file:///var/lib/s3vol-registry"], indirect=True)
def test_compose_starts_three_replicas_that_share_a_volume_and_keeps_it(machine: Machine) -> None:
    machine.compose("up", "-d")
    names = machine.await_replicas(3)
    assert machine.drivers["demo_web"] == "s3vol"
    machine.check_shared(names)
    machine.compose("up", "-d", "--scale", "web=1")
    machine.compose("up", "-d", "--scale", "web=3")
    for name in machine.await_replicas(3):
        assert machine.engine.sh(name, "cat /srv/index.html") == "hello from one"
    machine.compose("rm", "-sf", "web")
    machine.compose("up", "-d")
    assert machine.engine.sh(machine.await_replicas(3)[0], "cat /srv/index.html") == "hello from one"


@pytest.mark.parametrize("machine", ["s3://demo"], indirect=True)
def test_the_same_file_is_a_stack_whose_registry_is_in_its_own_bucket(machine: Machine) -> None:
    machine.engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    override = machine.node.folder / "host-port.yml"
    override.write_text(_HOST_PORT)
    files = ("-c", str(REPOSITORY / FILE), "-c", str(override))
    machine.engine.docker("stack", "deploy", "--resolve-image", "never", *files, "demo")
    names = machine.await_replicas(3)
    assert machine.drivers["demo_web"] == "s3vol"
    machine.check_shared(names)
