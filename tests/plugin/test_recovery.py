"""The daemon, its mount processes and containers, killed with -9 in every order; no dockerd is needed for that.

The test says to the driver's socket what dockerd says; a process in a mount namespace of its own stands for a container
that has been given what Mount answered.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol import mounts
from s3vol.errors import Unavailable
from s3vol_plugin.docker_api import request
from s3vol_plugin.process import mounting
from s3vol_plugin.volume import decode
from s3vol_plugin.workers import MountWorkers
from tests.plugin.containers import Bind, Container, ended
from tests.plugin.rig import DEADLINE_S, Rig, rig_in
from tests.support.minio import wait_for

pytestmark = pytest.mark.kernel

HEAL_S = 20.0  # took 1.3 s; this is for a machine under load
ID = "a" * 64


class Daemon:
    """`s3vol-plugin` on one node, and what a container was told."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.settings = rig.settings
        self._process: subprocess.Popen[bytes] | None = None
        (rig.folder / "objects").mkdir()
        names = ("source", "node", "socket", "admin_socket", "docker_socket", "state_directory", "cache_directory")
        rows = (*names, "runtime_directory", "credentials_directory")
        lines = [f'{name.replace("_", "-")} = "{getattr(self.settings, name)}"\n' for name in rows]
        (rig.folder / "plugin.toml").write_text("".join(lines))

    @property
    def pid(self) -> int:
        """The daemon."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote, in all its lives."""
        return (self.rig.folder / "daemon.log").read_text()

    def start(self) -> None:
        """Returns when it answers."""
        with (self.rig.folder / "daemon.log").open("ab") as log:
            command = [sys.executable, "-m", "s3vol_plugin", "--config", str(self.rig.folder / "plugin.toml")]
            self._process = subprocess.Popen(command, env=self.rig.environment, stdout=log, stderr=log)
        wait_for(self._answers, DEADLINE_S, "s3vol-plugin")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return request(self.settings.socket, "POST", "/Plugin.Activate")[0] == 200
        except Unavailable:
            return False

    def kill(self) -> None:
        """SIGKILL, of the daemon alone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)
            self._process = None

    def ask(self, verb: str, **body: Any) -> dict[str, Any]:
        """One call of dockerd's; it has to succeed."""
        status, reply = request(self.settings.socket, "POST", f"/VolumeDriver.{verb}", body, timeout_s=120)
        assert status == 200, reply
        assert not reply.get("Err"), reply
        return dict(reply)

    def mount(self, name: str, identity: str = ID) -> Path:
        """Create if necessary, and mount; returns the mount point."""
        self.ask("Create", Name=name, Opts={})
        return Path(self.ask("Mount", Name=name, ID=identity)["Mountpoint"])

    def unmount(self, name: str, identity: str = ID) -> None:
        """What dockerd says when a container ends."""
        self.ask("Unmount", Name=name, ID=identity)

    def worker(self, point: Path) -> int:
        """The one mount process of a mount point."""
        (process,) = mounting(point)
        return process.pid


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon of a node with an empty registry."""
    with rig_in(tmp_path) as rig:
        made = Daemon(rig)
        try:
            made.start()
            yield made
        finally:
            made.kill()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    ended(pid)


def works(container: Container, target: Path, text: str) -> bool:
    return container.run("bash", "-c", f"cat {target}/f").stdout == text


def await_works(container: Container, target: Path, text: str = "before\n") -> None:
    """The container reads its file, and writes."""
    wait_for(lambda: works(container, target, text), HEAL_S, "the container's volume")
    container.shell(f"echo after > {target}/g && cat {target}/g")


def await_unmounted(point: Path) -> None:
    """Nothing is left of a volume on this node."""

    def gone() -> bool:
        return not mounting(point) and mounts.find_mount(str(point)) is None and not point.exists()

    wait_for(gone, DEADLINE_S, f"the end of {point}")


def with_container(daemon: Daemon, *, read_only: bool = False) -> tuple[Path, Path, Container]:
    """Mount point, the container's path, and the container; it has written `f`."""
    point, target = daemon.mount("web"), daemon.rig.folder / "c"
    (point / "f").write_text("before\n")
    return point, target, Container(Bind(point, target, read_only))


def test_the_death_of_the_daemon_is_nothing_to_the_container_and_the_process_serves_on(daemon: Daemon) -> None:
    point, target, container = with_container(daemon)
    with container:
        worker = daemon.worker(point)
        daemon.kill()
        await_works(container, target)
        daemon.start()
        await_works(container, target)
        assert daemon.mount("web", "b" * 64) == point
        assert daemon.worker(point) == worker
    daemon.unmount("web")
    daemon.unmount("web", "b" * 64)
    await_unmounted(point)


def test_the_death_of_a_mount_process_is_healed_as_often_as_it_happens(daemon: Daemon) -> None:
    point, target, container = with_container(daemon)
    with container:
        for _ in range(3):
            kill(daemon.worker(point))
            await_works(container, target)
        # A container has its volume again before the driver has counted that
        wait_for(lambda: daemon.ask("Get", Name="web")["Volume"]["Status"]["heals"] == 3, HEAL_S, "three healings")
    daemon.unmount("web")
    await_unmounted(point)


@pytest.mark.parametrize("first", ["daemon", "worker"])
def test_the_death_of_both_is_healed_by_the_next_daemon(daemon: Daemon, first: str) -> None:
    point, target, container = with_container(daemon)
    with container:
        worker = daemon.worker(point)
        if first == "daemon":
            daemon.kill()
            kill(worker)
        else:
            os.kill(worker, signal.SIGKILL)
            daemon.kill()  # in the middle of repairing
        daemon.start()
        await_works(container, target)
    daemon.unmount("web")
    await_unmounted(point)


def test_a_daemon_killed_again_and_again_while_it_repairs_ends_in_a_healed_container(daemon: Daemon) -> None:
    point, target, container = with_container(daemon)
    with container:
        kill(daemon.worker(point))
        for pause_s in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            time.sleep(pause_s)  # not waited for anything: it is killed at different points of its repair
            daemon.kill()
            daemon.start()
        await_works(container, target)
        assert len(mounting(point)) == 1
    daemon.unmount("web")
    await_unmounted(point)


def test_a_daemon_killed_between_the_new_mount_and_the_healing_leaves_that_to_the_next(daemon: Daemon) -> None:
    point, target, container = with_container(daemon)
    with container:
        worker = daemon.worker(point)
        record = next(daemon.settings.state_directory.glob("volumes/*.json"))
        daemon.kill()
        kill(worker)
        volume = decode(record_volume(record), "record")

        async def mount_only() -> None:
            workers = MountWorkers(daemon.settings, base=daemon.rig.environment)
            await workers.adopt()
            await workers.start(volume, deadline_s=DEADLINE_S)

        trio.run(mount_only)
        assert not works(container, target, "before\n")
        daemon.start()
        await_works(container, target)
    daemon.unmount("web")
    await_unmounted(point)


def record_volume(path: Path) -> bytes:
    """The volume's part of a record of this node's state."""
    return json.dumps(json.loads(path.read_text())["volume"]).encode()


def test_a_container_that_ended_while_all_was_dead_leaves_nothing(daemon: Daemon) -> None:
    point, _, container = with_container(daemon)
    worker = daemon.worker(point)
    daemon.kill()
    kill(worker)
    container.kill()
    daemon.start()
    daemon.unmount("web")
    await_unmounted(point)
    again = daemon.mount("web")
    assert (again / "f").read_text() == "before\n"
    daemon.unmount("web")
    await_unmounted(again)


def test_a_read_only_container_is_read_only_after_both_have_died(daemon: Daemon) -> None:
    point, target, container = with_container(daemon, read_only=True)
    with container:
        worker = daemon.worker(point)
        daemon.kill()
        kill(worker)
        daemon.start()
        wait_for(lambda: works(container, target, "before\n"), HEAL_S, "the container's volume")
        assert "Read-only" in container.run("touch", f"{target}/x").stderr
    daemon.unmount("web")
    await_unmounted(point)


def test_a_volume_unmounted_by_hand_under_a_container_serves_the_next_one(daemon: Daemon) -> None:
    point, target, container = with_container(daemon)
    with container:
        worker = daemon.worker(point)
        subprocess.run(["umount", point], check=True)
        assert daemon.mount("web", "b" * 64) == point
        assert daemon.worker(point) == worker
        assert (point / "f").read_text() == "before\n"
        await_works(container, target)
    daemon.unmount("web")
    daemon.unmount("web", "b" * 64)
    await_unmounted(point)
