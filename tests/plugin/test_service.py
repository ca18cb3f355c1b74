"""The daemon as the units start it: an inherited socket, readiness, a fed watchdog, an end that leaves the socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3vol_plugin.docker_api import request
from tests.support.minio import wait_for

START_S = 30.0
# systemd gives the first socket as descriptor 3 and names the process that it is for (sd_listen_fds(3)).
_AS_SYSTEMD = "exec {python} -m s3vol_plugin 3<&{descriptor}"


class Service:
    """A daemon whose socket and notifications belong to somebody else."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s3vol.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(folder / "notify"))
        self.told: list[str] = []
        (folder / "registry").mkdir()
        settings = {name: str(folder / name) for name in ("state", "cache", "runtime", "credentials")}
        environment = {
            **os.environ,
            "S3VOL_PLUGIN_SOURCE": f"file://{folder}/registry",
            "S3VOL_PLUGIN_SOCKET": str(self.path),
            "S3VOL_PLUGIN_ADMIN_SOCKET": str(folder / "runtime/plugin.sock"),
            "S3VOL_PLUGIN_DOCKER_SOCKET": str(folder / "docker.sock"),
            **{f"S3VOL_PLUGIN_{name.upper()}_DIRECTORY": path for name, path in settings.items()},
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "1000000",
            "LISTEN_FDS": "1",
        }
        number = self._listener.fileno()
        script = "export LISTEN_PID=$$ WATCHDOG_PID=$$; " + _AS_SYSTEMD.format(python=sys.executable, descriptor=number)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script], pass_fds=[number], env=environment, stdout=log, stderr=log
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while notice := self._notices.recv(4096):
            self.told += notice.decode().splitlines()

    def close(self) -> None:
        """End it, and everything that belongs to it."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._notices.getsockname())  # ends the reader
        self._reader.join(5)
        self._notices.close()
        self._listener.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A daemon that is ready."""
    made = Service(tmp_path)
    try:
        wait_for(lambda: "READY=1" in made.told or made.process.poll() is not None, START_S, "READY=1")
        assert made.process.poll() is None, made.log.read_text()
        yield made
    finally:
        made.close()


def test_an_inherited_socket_is_served_and_left_to_its_owner(service: Service) -> None:
    inode = service.path.stat().st_ino
    status, answer = request(service.path, "POST", "/Plugin.Activate", {})
    assert (status, answer["Implements"]) == (200, ["VolumeDriver"])
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(START_S) == 0, service.log.read_text()
    assert "STOPPING=1" in service.told
    assert service.path.stat().st_ino == inode  # else dockerd would find nobody until systemd makes it anew


def test_the_watchdog_is_fed_as_long_as_questions_are_answered(service: Service) -> None:
    fed = service.told.count("WATCHDOG=1")
    wait_for(lambda: service.told.count("WATCHDOG=1") >= fed + 2, START_S, "two more feedings")
