"""Attribute rules of POSIX that the kernel leaves to us, as pure functions on inodes.

Theory of operation. With `default_permissions` the kernel checks who may do what; it also strips S_ISGID from a chmod
by somebody outside the group. Left to us: the owner and group of a new node, the clearing of set-id bits when the
content or the owner of a file changes (we cannot see who writes, so root's writes clear them too), and ctime.
"""

from __future__ import annotations

import stat

from s3vol.fs.inodes import Inode
from s3vol.layout import Owner, Posix
from s3vol.types import AttrChange, Caller


def new_posix(parent: Inode, mode: int, rdev: int, caller: Caller, now_ns: int) -> Posix:
    """Attributes of a node that `caller` creates in `parent`; `mode` has the type and the permissions after umask."""
    gid = caller.gid
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        elif mode & stat.S_ISGID and mode & stat.S_IXGRP and caller.uid != 0 and caller.gid != gid:
            mode &= ~stat.S_ISGID  # inode_init_owner(): no set-group-id program for a group one is not in
    return Posix(mode, caller.uid, gid, now_ns, now_ns, now_ns, rdev)


def without_set_id(mode: int) -> int:
    """`mode` after a change of content or owner (chown(2)): a set-group-id bit without group execution is kept."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def wrote(inode: Inode, now_ns: int) -> None:
    """The content of `inode` changed."""
    inode.mtime_ns = inode.ctime_ns = now_ns
    inode.explicit_times = False
    if inode.mode & (stat.S_ISUID | stat.S_ISGID):
        inode.mode = without_set_id(inode.mode)


def apply(inode: Inode, change: AttrChange, now_ns: int) -> None:
    """All of a setattr but the size, which is the content's."""
    if change.mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
    elif (change.uid is not None or change.gid is not None) and not inode.is_dir:
        inode.mode = without_set_id(inode.mode)
    if change.uid is not None:
        inode.uid = change.uid
    if change.gid is not None:
        inode.gid = change.gid
    if change.atime_ns is not None:
        inode.atime_ns, inode.atime_set = change.atime_ns, True
    if change.mtime_ns is not None:
        inode.mtime_ns, inode.explicit_times = change.mtime_ns, True
        inode.touched_ns = 0
    inode.ctime_ns = change.ctime_ns if change.ctime_ns is not None else now_ns


def default_directory(owner: Owner, at_ns: int) -> Posix:
    """Attributes of a directory without a marker, or whose marker we have not seen."""
    mode = stat.S_IFDIR | (0o777 & ~owner.umask)
    return Posix(mode, owner.uid, owner.gid, at_ns, at_ns, at_ns)
