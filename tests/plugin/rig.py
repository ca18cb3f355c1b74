"""A node of the volume driver in a directory: settings, volumes, and their mount processes, which always end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import trio

from s3vol import mounts
from s3vol_plugin.process import mounting
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume
from s3vol_plugin.workers import MountWorkers
from tests.support.minio import wait_for

DEADLINE_S = 60.0  # a mount takes about 0.8 s; this is for a machine under load
DRAIN_S = 20.0


def settings_in(folder: Path, source: str = "") -> Settings:
    """Settings with every path below `folder`."""
    return Settings(
        source=source or f"file://{folder / 'objects'}",
        node="here",
        socket=folder / "plugin.sock",
        admin_socket=folder / "run/admin.sock",
        docker_socket=folder / "docker.sock",
        state_directory=folder / "state",
        cache_directory=folder / "cache",
        runtime_directory=folder / "run",
        credentials_directory=folder / "credentials.d",
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll in a thread, so that the event loop goes on."""
    await trio.to_thread.run_sync(wait_for, condition, DEADLINE_S, what)


def command(*words: str | Path, said: str = "") -> None:
    """Run a command that has to succeed; `said` is its standard input."""
    subprocess.run(words, input=said, text=True, check=True, timeout=DEADLINE_S)


def create(path: Path) -> io.FileIO:
    """A new file, open for writing without a buffer."""
    return open(path, "wb", buffering=0)


def environment_of(pid: int) -> bytes:
    """Environment of a process, as root can read it."""
    return Path(f"/proc/{pid}/environ").read_bytes()


def command_line_of(pid: int) -> bytes:
    """What `ps` shows of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def open_files(pid: int | str) -> set[str]:
    """What the descriptors of a process are."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add(os.readlink(path))
    return found


class Rig:
    """One node. `workers` may be replaced by `restart`, as after a crash of the driver."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = settings_in(folder)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "PYTHONWARNINGS": "default",
            **environment,
        }
        self.workers = self.restart()

    def restart(self) -> MountWorkers:
        """A driver that remembers nothing."""
        self.workers = MountWorkers(self.settings, base=self.environment)
        return self.workers

    def volume(self, name: str = "web", source: str = "", **options: str) -> Volume:
        """A volume; without a source, of a directory of this machine."""
        objects = self.folder / "objects" / name
        if not source:
            objects.mkdir(parents=True, exist_ok=True)
        return Volume(
            name=name,
            uuid=uuid.uuid5(uuid.NAMESPACE_URL, name).hex,
            source=source or f"file://{objects}",
            created_at="2026-01-01T00:00:00Z",
            created_by="here",
            options={key.replace("_", "-"): text for key, text in options.items()},
        )

    def point(self, volume: Volume) -> Path:
        """Where a volume is mounted."""
        return self.settings.mountpoint(volume.uuid)

    async def start(self, volume: Volume) -> int:
        """Mount; returns the process id."""
        return (await self.workers.start(volume, deadline_s=DEADLINE_S)).pid

    async def crash(self, volume: Volume) -> str:
        """SIGKILL of a volume's mount process; returns the device of its dead mount."""
        worker = self.workers.get(volume.uuid)
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: self.workers.get(volume.uuid) is None, "the end of the mount process")
        return worker.device

    def left(self) -> list[str]:
        """What of mounts and mount directories there is."""
        folder = self.settings.mounts_directory
        return sorted(os.listdir(folder)) if folder.exists() else []

    def close(self) -> None:
        """No process and no mount are left, whatever happened."""
        for mount in mounts.mount_table():
            path = Path(mount.path)
            if path.parent != self.settings.mounts_directory:
                continue
            for process in mounting(path):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            mounts.unmount(mount.path, lazy=True)


@contextlib.contextmanager
def rig_in(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Rig]:
    """A node that is cleared at the end."""
    rig = Rig(folder, environment or {})
    try:
        yield rig
    finally:
        rig.close()


def with_settings(rig: Rig, **changes: object) -> None:
    """Give a node other settings."""
    rig.settings = replace(rig.settings, **changes)  # type: ignore[arg-type]  # names are checked by the dataclass
    rig.restart()
