"""Surgery on mount tables: a live mount in the place of a dead one, in a namespace that is not ours.

`python -m s3vol_plugin.heal` reads one request as JSON from its standard input, does it and ends; on a failure it
prints one line and ends with 1. It is a process of its own because setns(2) to a mount namespace is refused to a
process with threads, and because one that hangs can be killed.

Theory of operation. A container has its volume as a private mount, so nothing that is mounted on the host afterwards
reaches it. But a mount can be cloned here (open_tree), carried over as a file descriptor (setns), and attached there
(move_mount). Everything that can fail or block is done before the first change: looking up the directory of the volume,
cloning, flags, and finding the dead mount again by its id. Then two calls: the clone goes *beneath* the dead mount, and
the dead one is detached, so that no program ever sees the directory below both, where what it writes would be lost.
Kernels before 6.5 cannot do that (and none can to a mount that a user namespace has locked); there the clone goes on
top, and the dead one stays beneath until the container ends.

What was mounted inside the dead mount (`-v a:/d -v b:/d/e`) hangs on it and cannot be reached by a path any more. It is
mounted again inside the clone before that appears, from the place where our namespace has the same directory of the
same file system. Where it has none (a tmpfs), or the clone goes on top, the healing is refused: a program would write
into the volume what it means for another.

The directory of the volume is looked up without symbolic links and without leaving the mount: a container can put a
link to the host's /etc there. Open files and working directories on the dead mount stay dead.

A mount that is alive is never replaced, whatever it is called: two drivers on one machine (one of them in a container)
may serve volumes of one name.

Needs open_tree and move_mount (Linux 5.2), openat2 (5.6), mount_setattr (5.12), and root.

Rejected: nsenter(1) and mount(8) (one call each for what must be one step, and neither knows "beneath"), and asking for
shared propagation (dockerd refuses it for volumes).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from s3vol import mounts
from s3vol.errors import S3volError
from s3vol.mounts import Mount

# System calls have these numbers on every architecture since 5.1 (asm-generic/unistd.h).
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_FROM_EMPTY, _TO_EMPTY, _BENEATH = 0x04, 0x40, 0x200  # MOVE_MOUNT_*
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
_MS_PRIVATE = 1 << 18
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_ATTRIBUTES = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}  # MOUNT_ATTR_*
_UNABLE = (errno.EINVAL, errno.EPERM, errno.ENOSYS)  # what a kernel says that cannot mount beneath

_libc = ctypes.CDLL(None, use_errno=True)


# Deciding: from mount tables.


@dataclass(frozen=True, slots=True)
class Inner:
    """A mount inside the dead one, and the same directory in ours: `directory` below `origin`.

    `within` is the number of the inner mount that it hangs on (-1: the dead one itself), `place` where it does so.
    """

    origin: Mount
    directory: str
    within: int
    place: str
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """`dead` is what is replaced by the directory `directory` of the mount `live`."""

    live: Mount
    dead: Mount
    directory: str
    inner: Sequence[Inner] = ()


def make_plan(ours: Sequence[Mount], theirs: Sequence[Mount], mountpoint: str, path: str) -> Plan | None:
    """How to heal `path` of another namespace with the mount at `mountpoint` of ours; None: nothing is dead there.

    Raises S3volError when it cannot or must not be done.
    """
    live, dead = _visible(ours, mountpoint), _visible(theirs, path)
    if live is None or live.type != mounts.TYPE:
        raise S3volError(f"no volume is mounted at {mountpoint}")
    if dead is None or (dead.type, dead.source) != (live.type, live.source):
        raise S3volError(f"{live.source} is no longer mounted there")
    if dead.device == live.device:
        return None
    if dead.root.endswith("//deleted"):
        raise S3volError("the directory of the volume that was mounted there had been deleted")
    return Plan(live, dead, dead.root.strip("/"), _plan_inner(ours, theirs, dead))


def _visible(table: Sequence[Mount], path: str) -> Mount | None:
    """The mount at `path` that no other one there lies on. The order of the table does not tell: a clone that went
    beneath a dead mount comes after it, and stays there if the healing was cut short before the detachment."""
    here = [mount for mount in table if mount.path == path]
    covered = {mount.parent for mount in here if mount.parent != mount.id}
    return next((mount for mount in reversed(here) if mount.id not in covered), None)


def _plan_inner(ours: Sequence[Mount], theirs: Sequence[Mount], dead: Mount) -> list[Inner]:
    """What hangs on the dead mount, each after what it hangs on."""
    found, inner = [dead], list[Inner]()
    for above in found:  # grows meanwhile
        for mount in theirs:
            if mount.parent == above.id and mount not in found:
                origin, directory = _origin(ours, mount)
                place = _below(mount.path, above.path) or ""
                inner.append(Inner(origin, directory, found.index(above) - 1, place, mount.flags))
                found.append(mount)
    return inner


def _origin(ours: Sequence[Mount], mount: Mount) -> tuple[Mount, str]:
    """Which of our mounts shows the directory that `mount` shows, and where below itself."""
    for origin in ours:
        directory = _below(mount.root, origin.root)
        if origin.device == mount.device and directory is not None and _visible(ours, origin.path) is origin:
            return origin, directory
    raise S3volError(f"{mount.path}, which is mounted inside of it, cannot be mounted again; restart the container")


def _below(path: str, top: str) -> str | None:
    """`path` relative to `top`, without a slash at its ends; None when it is not below."""
    if path == top:
        return ""
    start = top.rstrip("/") + "/"
    return path.removeprefix(start) if path.startswith(start) else None


# Acting: each function one system call, or a few that belong together.


def _call(what: str, number: int, *words: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _enter(namespace: int, root: int) -> None:
    """Go into a mount namespace, below the root directory that a process has there."""
    if _libc.setns(namespace, _CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")
    os.fchdir(root)
    os.chroot(".")


def _open_mount(mount: Mount, proc: int) -> int:
    """The root of a mount, and of no other that has come over it: compared by id. Nothing is asked of its process."""
    folder = os.open(os.path.dirname(mount.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.path.basename(mount.path) or "."
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    with open(os.open(f"fdinfo/{found}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)) as file:
        if f"mnt_id:\t{mount.id}\n" not in file.read():
            raise S3volError(f"{mount.path}: the mounts there have changed meanwhile")
    return found


def _open_inside(top: int, path: str) -> int:
    """A file or directory below `top` in the same mount, without following a symbolic link."""
    if not path:
        return os.dup(top)
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    return _call("openat2", _OPENAT2, top, os.fsencode(path), ctypes.create_string_buffer(how), len(how))


def _clone(place: int, flags: frozenset[str], *, writable: bool = False) -> int:
    """A private copy of the mount at `place`, attached nowhere, with at least these flags."""
    tree = _call("open_tree", _OPEN_TREE, place, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    wanted = sum(bit for name, bit in _ATTRIBUTES.items() if name in flags)
    attributes = struct.pack("=QQQQ", wanted, _ATTRIBUTES["ro"] if writable else 0, _MS_PRIVATE, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _call("mount_setattr", _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, buffer, len(attributes))
    return tree


def _attach(tree: int, place: int, how: int = 0) -> None:
    _call("move_mount", _MOVE_MOUNT, tree, b"", place, b"", _FROM_EMPTY | _TO_EMPTY | how)


def _check_dead(place: int) -> None:
    """Raise S3volError unless the process behind a mount is gone. statfs(2) always asks it."""
    try:
        os.fstatvfs(place)
    except OSError as error:
        if error.errno in mounts.DEAD:
            return
        raise
    raise S3volError("the mount there is alive: it belongs to another driver on this machine")


def _attached_beneath(tree: int, dead: int) -> bool:
    """Attach beneath the mount whose root is open as `dead`; False where this kernel cannot."""
    try:
        _attach(tree, dead, _BENEATH)
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    return True


def _detach(place: int, proc: int) -> None:
    """Take away the mount whose root is open as `place`, whoever uses it."""
    os.fchdir(proc)
    if _libc.umount2(f"fd/{place}".encode(), _MNT_DETACH) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "umount2")


def heal(pid: int, path: str, mountpoint: str, *, beneath: bool = True) -> None:
    """Replace the dead mount at `path`, as process `pid` sees it. `beneath`: try that first; older kernels refuse it.

    Raises S3volError and OSError; see base.Kernel.
    """
    ours = mounts.mount_table()
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    plan = make_plan(ours, mounts.mount_table(pid), mountpoint, path)
    if plan is None:
        return
    tree = _clone(_open_inside(_open_mount(plan.live, proc), plan.directory), plan.dead.flags)
    trees = [tree]  # of the whole and of each inner mount
    places = []
    for inner in plan.inner:
        trees.append(_clone(_open_inside(_open_mount(inner.origin, proc), inner.directory), inner.flags))
        places.append(_open_inside(trees[inner.within + 1], inner.place))
    _enter(namespace, root)
    dead = _open_mount(plan.dead, proc)
    _check_dead(dead)
    # From here on nothing is looked up by a path, and nothing asks a mount process.
    if not (beneath and _attached_beneath(tree, dead)):
        if plan.inner:
            raise S3volError("this kernel cannot mount again what is mounted inside of it; restart the container")
        _attach(tree, dead)
        return
    for inner_tree, place in zip(trees[1:], places, strict=True):
        _attach(inner_tree, place)
    _detach(dead, proc)


def restore(pid: int, path: str, mountpoint: str) -> None:
    """Mount what process `pid` has at `path` on `mountpoint` of our namespace, where nothing is mounted."""
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    homes = [os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.open("/", os.O_PATH | os.O_DIRECTORY)]
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    place = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    there = _visible(mounts.mount_table(pid), path)
    if there is None or there.type != mounts.TYPE or there.root != "/":
        raise S3volError("no whole volume is mounted there any more")
    _enter(namespace, root)
    tree = _clone(_open_mount(there, proc), frozenset(), writable=True)
    _enter(homes[0], homes[1])
    _attach(tree, place)


_VERBS = {"heal": heal, "restore": restore}


def main() -> int:
    """Do the request of the standard input; returns the exit status."""
    request = json.load(sys.stdin)
    try:
        _VERBS[request.pop("verb")](**request)
    except S3volError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or 'it'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
