"""The cache directory itself: made, checked, locked.

Layout: `lock` (flock, holds the pid of the user), `journal.db`, `data/<content id in hex>` one sparse file per content
(cache/disk.py), `quarantine/` what a corrupt journal record leaves behind. Mode 0700; a directory of another user, one
that others can replace, and one that holds something else are refused. No symbolic link is followed to it or inside;
SQLite, which follows them, finds none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path

from s3vol.errors import NoSpace, PosixError, S3volError, UsageError

_FILES = {"lock", "journal.db", "journal.db-wal", "journal.db-shm", "journal.db-journal"}
_FOLDERS = {"data", "quarantine"}
_FULL = {errno.ENOSPC, errno.EDQUOT}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = [ctypes.c_int]


def boot_id() -> str:
    """Changes with each boot of the kernel; "" when unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def translate(error: OSError, what: str) -> S3volError:
    """What the cache disk refused, as an error of ours."""
    if error.errno in _FULL:
        return NoSpace(f"{what}: {error.strerror}")
    return PosixError(error.errno or errno.EIO, what)


class CacheDirectory:
    """The locked directory. Blocking; made and closed in a thread."""

    def __init__(self, path: Path) -> None:
        """Create it if needed, check it and lock it. Raises UsageError naming the directory and the way out."""
        self.path = path
        try:
            for folder in (path.parent, path):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cache directory {path}: {error.strerror}; use another --cache-dir") from None
        try:
            self._check()
            self._lock_fd = self._lock()
            for name in ("data", "quarantine"):
                if name not in os.listdir(self.fd):
                    os.mkdir(name, 0o700, dir_fd=self.fd)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self.data_fd = os.open("data", flags, dir_fd=self.fd)
            self.quarantine_fd = os.open("quarantine", flags, dir_fd=self.fd)
            os.fsync(self.fd)
        except OSError as error:
            os.close(self.fd)
            raise UsageError(f"cache directory {path}: {error.strerror}; use another --cache-dir") from None
        except UsageError:
            os.close(self.fd)
            raise

    def _check(self) -> None:
        info = os.fstat(self.fd)
        if info.st_uid != os.geteuid():
            raise UsageError(f"cache directory {self.path} belongs to uid {info.st_uid}; use another --cache-dir")
        above = self.path.parent.stat()
        if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
            raise UsageError(
                f"cache directory {self.path}: everybody can replace it; `chmod o-w {self.path.parent}`, "
                "or use another --cache-dir"
            )
        if stat.S_IMODE(info.st_mode) != 0o700:
            os.fchmod(self.fd, 0o700)  # nobody else puts something into it from here on
        names = set(os.listdir(self.fd))
        foreign = names - _FILES - _FOLDERS
        if foreign:
            raise UsageError(
                f"cache directory {self.path} is no cache of s3vol (it holds {min(foreign)!r}); use another --cache-dir"
            )
        for name in names:
            self._check_entry(name)

    def _check_entry(self, name: str) -> None:
        info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        right_kind = stat.S_ISDIR if name in _FOLDERS else stat.S_ISREG
        if not right_kind(info.st_mode) or info.st_uid != os.geteuid():
            what = "a symbolic link" if stat.S_ISLNK(info.st_mode) else "not what s3vol made"
            raise UsageError(f"cache directory {self.path}: {name} in it is {what}; use another --cache-dir")

    def _lock(self) -> int:
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise UsageError(
                f"cache directory {self.path} is in use by process {holder}; stop it or use another --cache-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def sync_file_system(self) -> None:
        """Force everything below to the disk (syncfs)."""
        if _libc.syncfs(self.fd) != 0:
            raise translate(OSError(ctypes.get_errno(), "syncfs"), str(self.path))

    def free_bytes(self) -> int:
        """What a user may still write to this disk. About 1 µs."""
        info = os.fstatvfs(self.fd)
        return info.f_bavail * info.f_frsize

    def close(self) -> None:
        """Unlock."""
        for fd in (self._lock_fd, self.data_fd, self.quarantine_fd, self.fd):
            os.close(fd)
