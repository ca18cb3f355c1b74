"""The handlers of pyfuse3: decode, call the file system, encode. What an operation means is in `s3vol.fs`.

Four things are decided here because they are about the kernel and not about files:

* A name that does not exist is answered with ENOENT and not cached: another node may create it the next moment.
* When an open finds another version than the kernel knows, its attributes and pages are dropped before the answer. The
  kernel would drop pages by itself, but after the answer: another open could be told meanwhile to keep them. No
  lock that a drop needs is held by an open, except with O_TRUNC, where the kernel drops them by itself.
* What changes the kernel's pages, or the length it knows, is answered when pages that are on their way to it have
  arrived (push.py).
* `security.capability` is asked for before every write(2). File capabilities do not count on a nosuid mount, so there
  the answer is "none" without asking the file system, and setting one is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace

import pyfuse3

from s3vol.fs.base import Entry, FileSystem, Opened
from s3vol.types import AttrChange, Fh, Ino
from s3vol_fuse import reply
from s3vol_fuse.notify import Notifier
from s3vol_fuse.push import Pusher
from s3vol_fuse.reply import answers

_CAPABILITY = b"security.capability"
_UNKNOWN_INO = 0xFFFFFFFF  # d_ino of `.` and `..`, as libfuse does; the kernel neither counts nor resolves those rows
_DOTS = (b".", b"..")


class Operations(pyfuse3.Operations):
    """One mounted volume."""

    supports_dot_lookup = False
    enable_writeback_cache = False  # it ignores size changes made elsewhere while a file is open
    enable_acl = False

    def __init__(self, fs: FileSystem, notifier: Notifier, pusher: Pusher, *, suid: bool) -> None:
        super().__init__()
        self._fs = fs
        self._notifier = notifier
        self._pusher = pusher
        self._capabilities = suid

    @property
    def file_system(self) -> FileSystem:
        """What answers the requests; `answers` asks it for the path of one that failed."""
        return self._fs

    @answers
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self._shown(await self._fs.lookup(Ino(parent_inode), name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._fs.forget([(Ino(ino), count) for ino, count in inode_list])

    @answers
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self._shown(await self._fs.getattr(Ino(inode)))

    @answers
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        change: AttrChange = reply.attr_change(attr, fields)
        handle = None if fh is None else Fh(fh)
        entry = await self._fs.setattr(Ino(inode), change, handle, reply.caller(ctx))
        if change.size is not None:
            await self._pusher.resized(Ino(inode))
        return await self._shown(entry)

    @answers
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._fs.readlink(Ino(inode))

    @answers
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._shown(await self._fs.mknod(Ino(parent_inode), name, mode, rdev, reply.caller(ctx)))

    @answers
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return reply.entry_attributes(await self._fs.mkdir(Ino(parent_inode), name, mode, reply.caller(ctx)))

    @answers
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return reply.entry_attributes(await self._fs.symlink(Ino(parent_inode), name, target, reply.caller(ctx)))

    @answers
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        entry = await self._fs.link(Ino(inode), Ino(new_parent_inode), new_name, reply.caller(ctx))
        return await self._shown(entry)

    @answers
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.unlink(Ino(parent_inode), name)

    @answers
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.rmdir(Ino(parent_inode), name)

    @answers
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._fs.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags)

    @answers
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        opened, entry = await self._fs.create(Ino(parent_inode), name, mode, flags, reply.caller(ctx))
        info = await self._opened(entry.attr.ino, opened, flags)
        return info, await self._shown(entry)

    @answers
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return await self._opened(Ino(inode), await self._fs.open(Ino(inode), flags), flags)

    async def _opened(self, ino: Ino, opened: Opened, flags: int) -> pyfuse3.FileInfo:
        opened = await self._pusher.opened(ino, opened)
        direct = opened.direct
        if (opened.changed or self._notifier.is_forgetting(ino)) and not flags & os.O_TRUNC:
            direct = not await self._notifier.forget_content(ino) or direct
        elif opened.whole:
            opened = replace(opened, keep_cache=self._notifier.store_now(ino, opened.whole))
        return reply.file_info(opened, direct=direct)

    async def _shown(self, entry: Entry) -> pyfuse3.EntryAttributes:
        return reply.entry_attributes(await self._pusher.shown(entry))

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = await self._fs.read(Fh(fh), off, size)
        self._pusher.answered(Fh(fh), off, size)
        return data  # type: ignore[return-value]  # any buffer will do: handlers.pxi

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.write(Fh(fh), off, buf)

    @answers
    async def flush(self, fh: int) -> None:
        await self._fs.flush(Fh(fh))

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(Fh(fh))

    @answers
    async def release(self, fh: int) -> None:
        await self._fs.release(Fh(fh))

    @answers
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return await self._fs.opendir(Ino(inode))

    @answers
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # Cursors of the kernel: 0 and 1 stand before `.` and `..`, and those of the file system follow, moved by two.
        dot = pyfuse3.EntryAttributes()
        dot.st_ino, dot.st_mode = _UNKNOWN_INO, 0o040755
        for cursor, name in list(enumerate(_DOTS, 1))[start_id:]:
            if not pyfuse3.readdir_reply(token, name, dot, cursor):
                return
        rows = await self._fs.readdir(Fh(fh), max(start_id - len(_DOTS), 0))
        while not await self._pusher.listed(rows):
            rows = await self._fs.readdir(Fh(fh), max(start_id - len(_DOTS), 0))
        for row in rows:
            attributes = reply.entry_attributes(row.entry)
            if not pyfuse3.readdir_reply(token, row.name, attributes, row.cursor + len(_DOTS)):
                return
            self._fs.remember(row.entry.attr.ino)  # the kernel counts a row that it got like a lookup

    @answers
    async def releasedir(self, fh: int) -> None:
        await self._fs.releasedir(Fh(fh))

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(Fh(fh))

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        try:
            return reply.statvfs_data(await self._fs.statfs())
        except Exception as error:
            raise reply.failure(error, "statfs", "") from None

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if name == _CAPABILITY and not self._capabilities:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return await self._fs.getxattr(Ino(inode), name)

    @answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        if name == _CAPABILITY and not self._capabilities:
            raise pyfuse3.FUSEError(errno.ENOTSUP)
        await self._fs.setxattr(Ino(inode), name, value)

    @answers
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._fs.listxattr(Ino(inode))

    @answers
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.removexattr(Ino(inode), name)
