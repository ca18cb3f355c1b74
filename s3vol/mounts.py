"""The kernel's table of mounts, and taking mounts out of it.

Nothing here looks at a mounted directory itself: stat() of a mount whose process hangs would hang as well. All is read
from mountinfo, and paths are resolved without their last component.
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
_PROC = Path("/proc")
_CONNECTIONS = Path("/sys/fs/fuse/connections")
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)  # what a FUSE mount answers whose process is gone
_MNT_FORCE = 1  # umount2(2)
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_LINKS_MAX = 40  # path_resolution(7)
_FUSERMOUNT_S = 20.0  # fusermount3 answers in milliseconds; it hangs only if the kernel does


@dataclass(frozen=True, slots=True)
class Mount:
    """One row of a mount table, as in proc_pid_mountinfo(5)."""

    path: str
    type: str
    source: str
    major: int
    minor: int
    id: int = 0
    parent: int = 0
    root: str = "/"  # the directory of the file system that is mounted here
    flags: frozenset[str] = frozenset()  # of this mount, not of its file system: ro, nosuid, ...
    peers: frozenset[str] = frozenset()  # groups that its own mounts are propagated in: numbers

    @property
    def connection(self) -> Path:
        """The control directory of a FUSE mount: its name is the minor number of the device."""
        return _CONNECTIONS / str(self.minor)

    @property
    def device(self) -> str:
        """`major:minor`."""
        return f"{self.major}:{self.minor}"


def _unescape(text: str) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(text))
    return os.fsdecode(plain)


def parse_table(text: str) -> list[Mount]:
    """The mounts of a /proc/PID/mountinfo in its order: of several on one path the last one is visible."""
    table = []
    for line in text.split("\n")[:-1]:  # a path may hold every other separator of lines, unescaped
        # 36 35 98:0 /root /path opts [tags...] - type source superopts
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(" "), right.split(" ")
        major, _, minor = fields[2].partition(":")
        table.append(
            Mount(
                path=_unescape(fields[4]),
                type=kind,
                source=_unescape(source),
                major=int(major),
                minor=int(minor),
                id=int(fields[0]),
                parent=int(fields[1]),
                root=_unescape(fields[3]),
                flags=frozenset(fields[5].split(",")),
                peers=frozenset(tag.partition(":")[2] for tag in fields[6:] if tag.startswith(("shared:", "master:"))),
            )
        )
    return table


def mount_table(process: int | str = "self") -> list[Mount]:
    """All mounts of this namespace, or of a process's as far as its root directory reaches. Raises OSError."""
    return parse_table(os.fsdecode((_PROC / str(process) / "mountinfo").read_bytes()))


def find_mount(path: str) -> Mount | None:
    """The visible mount exactly on `path`, if there is one."""
    return next((mount for mount in reversed(mount_table()) if mount.path == path), None)


def canonical(path: str) -> str:
    """Absolute path without symbolic links, as the mount table has it. Does not touch a mount at `path`.

    Nor one that a symbolic link at `path` leads to: links are followed one by one, each as far as the last component.
    """
    whole = os.path.abspath(path)
    for _ in range(_LINKS_MAX):
        directory, name = os.path.split(whole)
        whole = os.path.join(os.path.realpath(directory), name)
        if find_mount(whole):
            return whole
        try:
            target = os.readlink(whole)
        except OSError:  # no link, or nothing there
            return whole
        if ".." in Path(target).parts:  # what it leads out of may be a link itself: only the kernel's order is right
            return os.path.realpath(whole)
        whole = os.path.normpath(os.path.join(os.path.dirname(whole), target))
    return os.path.realpath(whole)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Take the mount at `path` out of the tree; `lazy` does it although it is in use.

    Raises PosixError(EBUSY) when it is in use, S3volError with the reason when it cannot be done. Not being mounted is
    success.
    """
    if os.geteuid() == 0:
        _umount2(path, _MNT_DETACH if lazy else 0)
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


def _umount2(path: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | flags) != 0:
        _refused(path, ctypes.get_errno())


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


def cut_off(mount: Mount) -> None:
    """Break the connection of a FUSE mount, and take it out of the tree although it is in use. Raises as `unmount`.

    As root without sysfs: the control directories are a file system of their own, which a container has not.
    """
    if os.geteuid() == 0:
        _umount2(mount.path, _MNT_FORCE | _MNT_DETACH)
    else:
        abort(mount)
        unmount(mount.path, lazy=True)
