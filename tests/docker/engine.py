"""A real dockerd on a node, with Docker's own default paths, and the docker client that talks to it.

dockerd and everything below it (containerd, shims, containers) run inside the node's namespaces, so the paths that a
user sees are the paths here: /run/docker.sock, /run/docker/plugins, /var/lib/docker. The client runs outside and
reaches the socket through /proc. No default socket of this machine is ever asked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.docker.images import BUSYBOX, busybox_image
from tests.docker.node import CommandFailed, Node, Process
from tests.support.minio import wait_for

START_S = 120.0  # a start takes about 2 s; with a plugin that is down, 15 s for each volume and container
STOP_S = 60.0
RUN_S = 120.0


def client() -> str:
    """The docker client: Debian's own where there are several, so that its version is the engine's."""
    return next(path for path in ("/usr/bin/docker", shutil.which("docker")) if path and os.access(path, os.X_OK))


class Engine:
    """One dockerd. `live_restore` keeps containers running while it is away (not possible in a swarm)."""

    def __init__(self, node: Node, *, live_restore: bool = False) -> None:
        self.node = node
        self._options = ["--live-restore"] if live_restore else []
        self._process: Process | None = None

    @property
    def log_path(self) -> Path:
        """What dockerd wrote, in all its lives."""
        return self.node.folder / "dockerd.log"

    @property
    def log(self) -> str:
        """The same, as text."""
        return self.log_path.read_text(errors="replace")

    @property
    def host(self) -> str:
        """The value for `docker -H` from outside."""
        return f"unix://{self.node.path('run/docker.sock')}"

    @property
    def pid(self) -> int:
        """dockerd's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Engine:
        """Start dockerd; returns when its API answers."""
        self.launch()
        self.await_ready()
        return self

    def launch(self) -> None:
        """Start dockerd without waiting for it."""
        if self._process is not None:
            self._process.wait(STOP_S)
        # The pid file of a killed dockerd names a process that may exist again by chance
        self.node.path("run/docker.pid").unlink(missing_ok=True)
        arguments = ["--cgroup-parent", f"/{self.node.cgroup}", "--shutdown-timeout", "5", "--userland-proxy=false"]
        self._process = self.node.start(
            ["dockerd", "-H", "unix:///run/docker.sock", *arguments, *self._options], self.log_path
        )

    def await_ready(self, timeout_s: float = START_S) -> float:
        """Wait for the API; returns the seconds that it took."""
        begin = time.monotonic()
        process = self._process
        assert process is not None

        def ready() -> bool:
            if not process.alive():
                raise AssertionError(f"dockerd ended: {self.log[-3000:]}")
            return self.run("info", "--format", "{{.ID}}").returncode == 0

        wait_for(ready, timeout_s, "dockerd")
        return time.monotonic() - begin

    def alive(self) -> bool:
        """True while dockerd runs."""
        return self._process is not None and self._process.alive()

    def stop(self) -> None:
        """SIGTERM: containers stop, unless live-restore keeps them."""
        if self._process is not None and self.node.running:
            self._process.end(timeout_s=STOP_S)

    def kill(self) -> None:
        """SIGKILL of dockerd alone: its containers go on until the next start."""
        if self._process is not None:
            self._process.end(signal.SIGKILL)

    def restart(self, *, live_restore: bool | None = None) -> None:
        """Stop and start, with other options if they are given."""
        self.stop()
        if live_restore is not None:
            self._options = ["--live-restore"] if live_restore else []
        self.start()

    def run(
        self, *arguments: str, timeout_s: float = RUN_S, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`docker ARGUMENTS`, whatever its status."""
        environment = {**os.environ, "DOCKER_CONFIG": str(self.node.folder / "docker-config"), "DOCKER_BUILDKIT": "0"}
        environment.pop("DOCKER_HOST", None)
        done = subprocess.run(
            [client(), "-H", self.host, *arguments],
            input=stdin or b"",
            capture_output=True,
            timeout=timeout_s,
            env=environment,
        )
        return subprocess.CompletedProcess(
            ["docker", *arguments],
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def docker(self, *arguments: str, timeout_s: float = RUN_S, stdin: bytes | None = None) -> str:
        """`docker ARGUMENTS` that has to succeed; returns its standard output without the last newline."""
        done = self.run(*arguments, timeout_s=timeout_s, stdin=stdin)
        if done.returncode != 0:
            raise CommandFailed(["docker", *arguments], done.returncode, done.stdout + done.stderr)
        return done.stdout.rstrip("\n")

    def refused(self, *arguments: str, timeout_s: float = RUN_S) -> str:
        """`docker ARGUMENTS` that has to fail; returns what it said."""
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode != 0, f"`docker {' '.join(arguments)}` worked: {done.stdout}"
        return done.stdout + done.stderr

    def sh(self, container: str, script: str, timeout_s: float = RUN_S) -> str:
        """A shell script inside a running container."""
        return self.docker("exec", container, "sh", "-ec", script, timeout_s=timeout_s)

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """`docker KIND inspect NAME`."""
        found: list[dict[str, Any]] = json.loads(self.docker(kind, "inspect", name))
        return found[0]

    def volumes(self, driver: str = "s3vol") -> list[str]:
        """Names in `docker volume ls` of this driver (the filter is exact only so)."""
        rows = self.docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}").splitlines()
        return sorted(row.split(" ", 1)[1] for row in rows if row.split(" ", 1)[0] == driver)

    def sleeper(self, name: str, *options: str, image: str = BUSYBOX, command: Sequence[str] = ("sleep", "1d")) -> str:
        """Start a container that does nothing; returns its id."""
        return self.docker("run", "-d", "--name", name, *options, image, *command)

    def remove_containers(self) -> None:
        """Every container of this engine, by force."""
        found = self.docker("ps", "-aq").split()
        if found:
            self.docker("rm", "-fv", *found)

    def load_images(self) -> None:
        """Give the engine the image that nearly all tests run."""
        self.build(BUSYBOX, busybox_image())

    def build(self, tag: str, context: bytes) -> None:
        """`docker build` of a tar with a Dockerfile that needs no registry."""
        self.docker("build", "-q", "-t", tag, "-", stdin=context)

    def load(self, tag: str, root: bytes) -> None:
        """`docker import` of a root file system, with all attributes that a tar can say."""
        self.docker("import", "--change", "ENV PATH=/bin", "-", tag, stdin=root)
