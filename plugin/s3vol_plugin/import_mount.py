"""A mount of a volume for as long as an import makes hard links in it.

Theory of operation. It is a mount like the driver's (s3vol_plugin.workers): a process of its own, proved before it is
used, drained before it is unmounted. Only its directories and its name are apart: `imports` in the state directory,
which nobody but root may enter, a cache of its own, and the node's name with an ending, so that it meddles with nothing
that the driver's mount of the same volume has. The mount point is named by the volume: what an import that was killed
has left there is found by the next one, and ended first.

One import of a node at a time is here: the lock on `imports` is held from the first look to the end of the mount. Who
waits for it finds the other's links when it comes to its own.

Paths go down from the root one component at a time and follow no symbolic link: a container may put one in the place of
a directory meanwhile, and this is root.

Rejected: writing stubs and records here, straight to the bucket. The rules of a link (who may finish what a crash has
left, and how) would have a second implementation, for the sake of one second that a mount takes to start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from s3vol.errors import PosixError, S3volError
from s3vol_plugin.base import Left
from s3vol_plugin.invocation import log_file
from s3vol_plugin.launch import undo
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume
from s3vol_plugin.workers import MountWorkers

_DEVICE = "/dev/fuse"
_START_S = 60.0  # a start takes a second; a store that does not answer has ended the import before
_DRAIN_S = 60.0  # nothing is written through this mount: links are in the bucket when link() returns
_POLL_S = 0.2
_TRIES = 5
_PAUSE_S = 0.5
_NODE_MAX = 40  # characters of the node's name that are kept: with the ending it must remain a label
_OF_ONE_NAME = (
    errno.EEXIST,
    errno.EMLINK,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EPERM,
    errno.EINVAL,
    errno.ENAMETOOLONG,
)


class Tree:
    """The mounted volume. Paths are relative to its root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def link(self, first: bytes, name: bytes) -> None:
        """Give the file `first` another name, and see that both are one inode.

        Raises PosixError for what is wrong with these two (EEXIST, EMLINK, ENOENT, …), S3volError for what would be
        wrong with any.
        """
        await trio.to_thread.run_sync(_link, self._root, first, name)


def _link(root: Path, first: bytes, name: bytes) -> None:
    try:
        with _parent(root, first) as (here, old), _parent(root, name) as (there, new):
            os.link(old, new, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
            made = os.stat(new, dir_fd=there, follow_symlinks=False)
            same = os.stat(old, dir_fd=here, follow_symlinks=False).st_ino == made.st_ino
    except OSError as error:
        if error.errno in _OF_ONE_NAME:
            raise PosixError(error.errno) from None
        raise S3volError(f"{os.fsdecode(name)}: cannot be linked: {error.strerror}") from None
    if not same:
        raise PosixError(errno.ENOENT)  # somebody has replaced one of them in this moment


@contextlib.contextmanager
def _parent(root: Path, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The directory of `path`, open, and the last component. Raises OSError; ENOTDIR or ELOOP for a symbolic link."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, name = path.split(b"/")
    directory = os.open(root, flags)
    try:
        for folder in folders:
            below = os.open(folder, flags, dir_fd=directory)
            os.close(directory)
            directory = below
        yield directory, name
    finally:
        os.close(directory)


@asynccontextmanager
async def mounted(volume: Volume, settings: Settings, base: Mapping[str, str] | None = None) -> AsyncIterator[Tree]:
    """The volume, mounted until the end of the block; then all is in the bucket, and nothing is left here.

    `base` is the environment of the mount process, by default that of this one. Raises S3volError with one line when no
    mount can be made here, and at the end when the mount cannot be ended or has left something in its journal.
    """
    _check_possible()
    own = _apart(settings)
    changed = replace(volume, options={**volume.options, "mode": "shared"})  # a read-only one is filled all the same
    async with _alone(own.mounts_directory):
        workers = MountWorkers(own, base=base)
        await workers.adopt()
        await workers.stop(changed, drain_s=_DRAIN_S)  # of an import that was killed; its journal is replayed now
        worker = await workers.start(changed, deadline_s=_START_S)
        try:
            yield Tree(Path(worker.mountpoint))
        except BaseException:
            with trio.CancelScope(shield=True), contextlib.suppress(S3volError):  # the first error is what to tell
                await _end(workers, changed, own)
            raise
        with trio.CancelScope(shield=True):
            await _end(workers, changed, own)


def _check_possible() -> None:
    """Raises S3volError where a mount would fail anyway, and its own line would say less."""
    if os.geteuid() != 0:
        raise S3volError("only root can mount the volume")
    if not os.path.exists(_DEVICE):
        raise S3volError(f"there is no {_DEVICE} to mount the volume with")


def _apart(settings: Settings) -> Settings:
    """Settings under which no mount of this one is the driver's."""
    return replace(
        settings,
        node=f"{settings.node[:_NODE_MAX]}.import",
        mount_directory=settings.state_directory / "imports",
        cache_directory=settings.cache_directory / "imports",
    )


@asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """The directory is there, of mode 700, and locked."""
    directory = _private(folder)
    try:
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await trio.sleep(_POLL_S)
        yield
    finally:
        os.close(directory)


def _private(folder: Path) -> int:
    """The directory, open. Raises S3volError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchmod(directory, 0o700)
        return directory
    except OSError as error:
        raise S3volError(f"mount directory {folder}: {error.strerror}") from None


async def _stop(workers: MountWorkers, volume: Volume) -> Left:
    """Unmount, again when somebody else has the mount: a container that starts copies the mount table for a moment."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(S3volError):
            return await workers.stop(volume, drain_s=_DRAIN_S)
        await trio.sleep(_PAUSE_S)
    return await workers.stop(volume, drain_s=_DRAIN_S)


async def _end(workers: MountWorkers, volume: Volume, own: Settings) -> None:
    """Drain, unmount, remove the mount point, and the cache if all of it is in the bucket.

    Raises S3volError if not: the next import of the volume on this node finds the journal and replays it.
    """
    point, cache = own.mountpoint(volume.uuid), own.cache_directory / volume.uuid
    try:
        left = await _stop(workers, volume)
    except S3volError as error:
        await undo(point)
        raise S3volError(str(error)) from None
    if left != Left(0, 0):
        raise S3volError(f"volume {volume.name}: the mount that made its hard links has left a journal in {cache}")
    await trio.to_thread.run_sync(lambda: shutil.rmtree(cache, ignore_errors=True))
    log_file(own, volume.uuid).unlink(missing_ok=True)
