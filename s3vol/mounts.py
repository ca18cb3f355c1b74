"""The kernel's table of mounts, and taking mounts out of it.

Nothing here looks at a mounted directory itself: stat() of a mount whose process hangs would hang as well. All is read
from /proc/self/mountinfo, and paths are resolved without their last component.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from s3vol.errors import PosixError, S3volError

TYPE = "fuse.s3vol"
_MOUNTINFO = Path("/proc/self/mountinfo")
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MNT_DETACH = 2  # umount2(2)
_UMOUNT_NOFOLLOW = 8
_FUSERMOUNT_S = 20.0  # fusermount3 answers in milliseconds; it hangs only if the kernel does


@dataclass(frozen=True, slots=True)
class Mount:
    """One row of /proc/self/mountinfo."""

    path: str
    type: str
    source: str
    major: int
    minor: int

    @property
    def connection(self) -> Path:
        """The control directory of a FUSE mount: its name is the minor number of the device."""
        return _CONNECTIONS / str(self.minor)


def _unescape(text: str) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(text))
    return os.fsdecode(plain)


def mount_table() -> list[Mount]:
    """All mounts of this namespace, in mount order: the last one on a path is the visible one."""
    table = []
    for line in _MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        # 36 35 98:0 /root /path opts [tags...] - type source superopts (proc_pid_mountinfo(5))
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(" "), right.split(" ")
        major, _, minor = fields[2].partition(":")
        table.append(Mount(_unescape(fields[4]), kind, _unescape(source), int(major), int(minor)))
    return table


def find_mount(path: str) -> Mount | None:
    """The visible mount exactly on `path`, if there is one."""
    return next((mount for mount in reversed(mount_table()) if mount.path == path), None)


def canonical(path: str) -> str:
    """Absolute path without symbolic links, as the mount table has it. Does not touch a mount at `path`."""
    whole = os.path.abspath(path)
    parent = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
    return parent if find_mount(parent) else os.path.realpath(whole)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Take the mount at `path` out of the tree; `lazy` does it although it is in use.

    Raises PosixError(EBUSY) when it is in use, S3volError with the reason when it cannot be done. Not being mounted is
    success.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) != 0:
            _refused(path, ctypes.get_errno())
        return
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise S3volError("fusermount3 is missing: install the package fuse3")
    command = [program, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_FUSERMOUNT_S, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode != 0 and find_mount(path):
        if "busy" in done.stderr.lower():
            raise PosixError(errno.EBUSY, path)
        raise S3volError(f"{path}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'not unmounted'}")


def _refused(path: str, number: int) -> None:
    if number == errno.EINVAL:  # not a mount point (any more)
        return
    if number == errno.EBUSY:
        raise PosixError(errno.EBUSY, path)
    raise S3volError(f"{path}: cannot be unmounted: {os.strerror(number)}")


def abort(mount: Mount) -> bool:
    """Break the connection of a FUSE mount: every call on it that waits ends with an error. False if not allowed."""
    try:
        (mount.connection / "abort").write_text("1")
    except OSError:
        return False
    return True
