"""The private area of a file store, `DIR/.s3vol-store/`: temporary files, locks, and small files written atomically.

Theory of operation. Everything is built in a temporary file of this area and renamed to where it is seen, so it has to
be on the same file system as the objects. Each open store has a session, a directory `tmp/<id>/` that it holds with
flock as long as it lives. Whoever opens the store sweeps the sessions that nobody holds: they are what a crash left.

A key's lock is flock on one of 256 files, which are made once and never removed (removing a lock file lets two
holders in). flock is released by the kernel when its holder dies, works between threads (each call opens the file
anew) and between processes. A thread holds one lock at a time: several keys share a file, and two at once could wait in
a circle. What is done under a lock is short (check, rename), and waiting for one ends when the call is cancelled.

Rejected: fcntl locks (closing any descriptor of the file drops them), and one lock for the whole bucket (a key that
waits for the disk would hold up all others).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from s3vol.store.file_io import write_all

CONTROL = ".s3vol-store"
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LOCK_FILES = 256
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0002, 0.02  # a rename takes 0.05 ms; a busy disk's journal, some ms


@dataclass(frozen=True, slots=True)
class Temp:
    """A file of this session that nobody else sees: open for reading and writing, named relative to the session."""

    fd: int
    name: str


class Control:
    """The area below one bucket directory. Used from many threads: all fields are constant while it is open."""

    def __init__(self, root_fd: int) -> None:
        _make_folder(CONTROL, root_fd)
        self.fd = os.open(CONTROL, FOLDER_FLAGS, dir_fd=root_fd)
        for name in ("tmp", "locks", "meta", "uploads"):
            _make_folder(name, self.fd)
        for fd in (root_fd, self.fd):
            os.fsync(fd)
        self.sync_folder("meta")  # a crash may have come between making a folder of it and syncing that
        self._sweep()
        self.session, self.session_fd = self._begin_session()
        self._numbers = itertools.count()

    def close(self) -> None:
        """Remove the session."""
        shutil.rmtree(f"tmp/{self.session}", ignore_errors=True, dir_fd=self.fd)
        os.close(self.session_fd)
        os.close(self.fd)

    def _begin_session(self) -> tuple[str, int]:
        while True:
            name = uuid.uuid4().hex
            os.mkdir(f"tmp/{name}", dir_fd=self.fd)
            with suppress(FileNotFoundError):  # a sweep came between mkdir and open
                fd = os.open(f"tmp/{name}", FOLDER_FLAGS, dir_fd=self.fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink > 0:
                    return name, fd
                os.close(fd)  # a sweep came between open and flock

    def _sweep(self) -> None:
        for name in os.listdir(folder := os.open("tmp", FOLDER_FLAGS, dir_fd=self.fd)):
            with suppress(OSError):  # swept by another, or held
                fd = os.open(name, FOLDER_FLAGS, dir_fd=folder)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(name, dir_fd=folder)
                finally:
                    os.close(fd)
        os.close(folder)

    @contextmanager
    def temp(self) -> Iterator[Temp]:
        """A new temporary file; removed at the end unless it was renamed away."""
        name = str(next(self._numbers))
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=self.session_fd)
        try:
            yield Temp(fd, name)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.session_fd)

    def has(self, temp: Temp) -> bool:
        """Whether a temporary file was not renamed away."""
        try:
            os.stat(temp.name, dir_fd=self.session_fd)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the lock of `key`. Not to be nested: see the theory of operation."""
        name = f"locks/{zlib.crc32(key.encode()) % _LOCK_FILES:02x}"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=self.fd)
        try:
            wait_for_flock(fd)
            yield
        finally:
            os.close(fd)

    def write_small(self, path: str, data: bytes) -> None:
        """Write a file of this area, whole and durable, replacing what was there. Its folder is made if need be."""
        folder = os.path.dirname(path)
        if _make_folder(folder, self.fd):
            self.sync_folder(os.path.dirname(folder))
        with self.temp() as temp:
            write_all(temp.fd, data)
            os.fsync(temp.fd)
            os.rename(temp.name, path, src_dir_fd=self.session_fd, dst_dir_fd=self.fd)
        self.sync_folder(folder)

    def read_small(self, path: str) -> bytes | None:
        """A file of this area, or None."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            return file.read()

    def names(self, folder: str) -> list[str]:
        """What is in a folder of this area; nothing when there is none."""
        try:
            fd = os.open(folder, FOLDER_FLAGS, dir_fd=self.fd)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def remove_small(self, path: str, *, durable: bool = False) -> None:
        """Remove a file of this area if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self.fd)
            if durable:
                self.sync_folder(os.path.dirname(path))

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder of this area durable."""
        fd = os.open(path, FOLDER_FLAGS, dir_fd=self.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def wait_for_flock(fd: int) -> None:
    """Take the exclusive flock, in a trio worker thread. Ends with trio.Cancelled when the call is cancelled."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            trio.from_thread.check_cancelled()
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        else:
            return


def _make_folder(path: str, dir_fd: int) -> bool:
    try:
        os.mkdir(path, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True
