"""A target that has files: how it is started, where its files are, what it promises, how it is ended.

Theory of operation. Each mount is a process in the foreground and in a session of its own: its id is known, its use of
processor and memory can be read, and ^C in the terminal reaches the benchmark only, which then unmounts. What has to be
killed is killed with its children: the process that was started may only watch over the one that serves, and start it
again. A mount gets a fresh folder for its cache each time, so that a new mount is a cold one. What has to outlive a
mount within a session (a metadata database of a peer) is in `state`.

Cold means: nothing of the content in the file system's own cache (a fresh folder) and nothing in this machine's page
cache. Pages are dropped file by file with posix_fadvise(2) after they were written out: that needs no root and leaves
other programs' pages alone, which writing to drop_caches does not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from s3vol import mounts
from s3vol_bench.endpoint import Endpoint
from s3vol_bench.errors import BenchError
from s3vol_bench.rows import Promise

START_S = 60.0
STOP_S = 180.0
_POLL_S = 0.005
_LOG_SHOWN = 600
_LONG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Ground:
    """Where one mount is made. `below` is the target's prefix within the run's, ending in `/`."""

    endpoint: Endpoint
    below: str
    folder: Path  # fresh for each mount: cache, log, mount point
    state: Path  # the same for all mounts of a session

    @property
    def point(self) -> Path:
        """The mount point."""
        return self.folder / "mnt"

    @property
    def cache(self) -> Path:
        """Where the file system may keep what it likes."""
        return self.folder / "cache"

    @property
    def prefix(self) -> str:
        """The prefix of this target in the bucket, without its last `/`."""
        return (self.endpoint.prefix + self.below).rstrip("/")


@dataclass(frozen=True, slots=True)
class Launch:
    """How the process of a mount is started."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A file system that can be mounted. `prepare` is called once a session, before its first mount."""

    name: str
    label: str
    promise: Promise
    launch: Callable[[Ground], Launch]
    program: str = ""  # has to be on PATH; empty: it is s3vol itself
    version_flag: str = "--version"
    prepare: Callable[[Ground], contextlib.AbstractContextManager[None]] | None = None
    needs: tuple[str, ...] = ()  # other programs on PATH
    fsync_does_nothing: str = ""  # where its source says so; figures that an fsync ends do not count then
    own_format: bool = False  # objects in the bucket are not the files
    stages: Callable[[Path], bool] | None = None  # whether a cache holds what an unmount would not upload
    ends_on_sigterm: bool = False  # and publishes what is pending; others are unmounted

    @property
    def is_ours(self) -> bool:
        """True for s3vol in any of its modes."""
        return not self.program

    def missing(self) -> str:
        """The first program that is not on PATH; empty when it can be run."""
        return next((name for name in (self.program, *self.needs) if name and not shutil.which(name)), "")

    def version(self) -> str:
        """The first line of what the program says of itself."""
        command = [self.program, self.version_flag] if self.program else [sys.executable, "-m", "s3vol", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return next(iter((done.stdout or done.stderr).strip().splitlines()), "unknown")


class Mounted:
    """A mount that answers; `took_s` from the start of the command to the first answer."""

    def __init__(self, target: Target, ground: Ground) -> None:
        self.target = target
        self.path = ground.point
        self.cache = ground.cache
        ground.point.mkdir(parents=True)
        ground.cache.mkdir()
        self._log = ground.folder / "log"
        launch = target.launch(ground)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3VOL_", "RCLONE_"))}
        began_s = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                launch.command,
                env={**kept, **ground.endpoint.environment, **launch.environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await()
        except BaseException:
            self._destroy()
            raise
        self.took_s = time.perf_counter() - began_s

    @property
    def pid(self) -> int:
        """Of the mount process."""
        return self._process.pid

    def kill(self) -> None:
        """End the process and its children at once; calls on the mount that wait get an error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def said(self) -> str:
        """The end of what the process wrote, on one line."""
        return " ".join(self._log.read_text(errors="replace").split())[-_LOG_SHOWN:]

    def _await(self) -> None:
        end_s = time.monotonic() + START_S
        while not os.path.ismount(self.path):
            if self._process.poll() is not None:
                raise BenchError(f"{self.target.name} ended with {self._process.returncode}: {self.said()}")
            if time.monotonic() > end_s:
                raise BenchError(f"{self.target.name} was not mounted within {START_S:g} s: {self.said()}")
            time.sleep(_POLL_S)
        # A question to the bucket. Not a listing: after one, GeeseFS has the tree in memory before a clock runs.
        os.path.lexists(self.path / "no-such-name")

    def close(self) -> None:
        """Unmount; no process and no mount are left. Raises BenchError when it did not end by itself."""
        try:
            if self.target.ends_on_sigterm:
                self._process.terminate()
            else:
                mounts.unmount(str(self.path))
            status = self._process.wait(STOP_S)
        except Exception as error:
            self._destroy()
            raise BenchError(f"{self.target.name} was not unmounted: {error} {self.said()}") from None
        except BaseException:
            self._destroy()
            raise
        if status != 0 and self.target.is_ours:
            raise BenchError(f"{self.target.name} ended with {status}: {self.said()}")

    def _destroy(self) -> None:
        self.kill()
        self._process.wait()
        if mounts.find_mount(str(self.path)):
            mounts.unmount(str(self.path), lazy=True)


@contextlib.contextmanager
def mounted(target: Target, ground: Ground) -> Iterator[Mounted]:
    """A mount of a target, and its end. Raises BenchError."""
    mount = Mounted(target, ground)
    try:
        yield mount
    except BaseException:
        with contextlib.suppress(BenchError):  # the first failure is what has to be told
            mount.close()
        raise
    mount.close()


def drop_pages(*folders: Path) -> None:
    """Forget this machine's page cache of all files below these folders; long files are written out first."""
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # sockets, and files that went away meanwhile
                if path.is_file():
                    _drop(path)


def _drop(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(file).st_size >= _LONG_BYTES:  # dirty pages stay; those of small files are read by no cached row
            os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
