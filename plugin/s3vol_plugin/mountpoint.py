"""The directory that a volume is mounted on: made, examined, freed of dead mounts, and removed.

Theory of operation. The directory is named by the volume's uuid, belongs to root and is of mode 000, so that a program
that meets it without its mount is refused and writes nothing to this machine's disk. One that holds something is
refused: a mount would hide files that somebody believes to be in the volume. Nothing is ever removed from it; rmdir()
is the strongest word that is said here.

A mount whose process died answers ENOTCONN, and one whose process hangs does not answer at all: what looks at a mount
does so in a thread of its own, for ANSWER_S, and leaves the thread behind when that is over. It ends when the process
does, or when the connection is aborted.

Rejected: os.path.ismount and stat as proofs that something is mounted. The first is False on a dead mount, and what the
directory below answers is not distinguished from what the volume answers; the mount table and inode 1 are.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from pathlib import Path

import trio

from s3vol import mounts
from s3vol.errors import S3volError

ANSWER_S = 2.0  # the root answers from memory; a cold one took 20 ms on a loaded machine
_ROOT_INO = 1  # FUSE_ROOT_ID; a directory of a disk's file system never has it below its own root
_LAYERS_MAX = 64  # mounts on one path, each left by a crash


class Answer(enum.Enum):
    """What a mounted directory says when its root is asked for its attributes."""

    ALIVE = "alive"
    DEAD = "dead"  # its process is gone
    SILENT = "silent"  # an error, or nothing within ANSWER_S


def prepare(root: Path, name: str) -> Path:
    """Make the directory `name` in `root`, or take the one that is there. Nothing may be mounted on it.

    Symbolic links are not followed. Raises S3volError when it is not a directory, or not empty.
    """
    path = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(root) as folder:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode=0o000, dir_fd=folder)
            with _opened(name, folder) as directory:
                os.fchmod(directory, 0o000)
                left = os.listdir(directory)
    except OSError as error:
        raise S3volError(f"mount directory {path}: {error.strerror}; it must be a directory of ours") from None
    if left:
        raise S3volError(
            f"mount directory {path}: holds {left[0]!r}, which no volume has; move it away, and mount again"
        )
    return path


@contextlib.contextmanager
def _opened(name: str | Path, folder: int | None = None) -> Iterator[int]:
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield directory
    finally:
        os.close(directory)


def remove(path: Path) -> None:
    """Remove the directory if it is empty and nothing is mounted on it; else it stays as it is."""
    if mounts.find_mount(str(path)) is None:
        with contextlib.suppress(OSError):
            path.rmdir()


def detach(path: Path) -> None:
    """Take every mount of ours off a path, whoever still uses it elsewhere. Raises S3volError when one stays."""
    for _ in range(_LAYERS_MAX):
        mount = mounts.find_mount(str(path))
        if mount is None or mount.type != mounts.TYPE:
            return
        mounts.unmount(str(path), lazy=True)
    raise S3volError(f"mount directory {path}: more than {_LAYERS_MAX} mounts are on it; `umount -l {path}`")


async def examine(path: Path) -> Answer:
    """Ask the root of the mount on `path`; at most ANSWER_S."""
    with trio.move_on_after(ANSWER_S):
        # A limiter of its own: threads that hang on other mounts must not keep this one from asking.
        return await trio.to_thread.run_sync(_ask, path, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    return Answer.SILENT


def _ask(path: Path) -> Answer:
    try:
        os.statvfs(path)  # always asks the process, where attributes come from the kernel's memory for a second
        return Answer.ALIVE if os.stat(path).st_ino == _ROOT_INO else Answer.SILENT
    except OSError as error:
        return Answer.DEAD if error.errno in mounts.DEAD else Answer.SILENT
