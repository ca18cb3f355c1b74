"""Open, read, write, truncate, flush, fsync, release.

Theory of operation. A handle holds a reference on one content from open to release. Writers of the same version on this
node share that content, so the second one sees what the first one wrote. When a close (or fsync) has to be seen
everywhere, the content is published before the reply; else it is journaled, and published in the background.

Everything that changes a file or makes its changes public holds a shared claim on its path: a rename or unlink, which
claims it alone, then finds nothing half done, and the content is where its name is. Reads hold no claim; one that
fails because its object was renamed away on this node is tried again at the new place.

What decides whether a content is published is its own state, not its name: a file that was removed by
another node while open here ends as a conflict, and its writer is told.
"""

from __future__ import annotations

import errno
import os
from math import inf

from s3vol.cache.base import FIRST_BYTES, Content, State
from s3vol.errors import Conflict, NotFound, PosixError, PreconditionFailed
from s3vol.fs import attributes, firstbytes, pagecache
from s3vol.fs.base import Opened, Pages, Range
from s3vol.fs.beside import whole_pages
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import HoldInode, Mount
from s3vol.fs.handles import FileHandle
from s3vol.fs.inodes import Inode
from s3vol.fs.orphans import Orphans
from s3vol.store.base import Buffer
from s3vol.types import Fh

_FMODE_EXEC = 0x20  # include/linux/fs.h: the open is execve's; it has no name among the flags of open(2)


class FileIO:
    """Open files of one mount."""

    def __init__(self, mount: Mount, coherence: Coherence, orphans: Orphans) -> None:
        self._mount = mount
        self._coherence = coherence
        self._orphans = orphans
        self._habit = firstbytes.Habit()

    async def open(self, inode: Inode, flags: int) -> Opened:
        """See FileSystem.open. ESTALE: the file is gone, or has to be looked up before an append. EISDIR, EROFS,
        ETXTBSY."""
        mount = self._mount
        if inode.is_dir:
            raise PosixError(errno.EISDIR, inode.key or "")
        if _writes(flags):
            mount.writable()
        async with HoldInode(mount, inode):
            worth_bytes = firstbytes.worth_bytes(mount.cache, inode, flags, self._habit)
            acquired = await self._coherence.acquire(inode, fetch_bytes=worth_bytes)
            content, body = acquired.content, acquired.body
            whole: Buffer = b""
            try:
                if acquired.changed and _appends(flags):
                    # The kernel appends at the length that it was told last, and only a lookup tells it another one:
                    # it would write into the middle of what another node made. ESTALE makes it look again.
                    raise PosixError(errno.ESTALE, content.key)
                if flags & os.O_TRUNC:
                    if not _opens_for_writing(flags) and mount.handles.executed(inode):
                        # The kernel asks this of an open for writing before it sends it, and of this one only
                        # after: it would fail, and the program that runs would have lost its file all the same.
                        raise PosixError(errno.ETXTBSY, content.key)
                    await self.truncate(inode, content, 0)
                if body:
                    base = content.base
                    again = _writes(flags) or pagecache.keeps(inode, content)
                    await (mount.cache.fill if again else mount.cache.hold)(content, body)
                    same = content.base is base and not acquired.changed  # and not changed and published meanwhile
                    if same and firstbytes.for_kernel(mount.handles, inode, content, flags, body):
                        whole = body
            except BaseException:
                mount.cache.release(content)
                raise
            # No await since it was decided what the kernel may be given.
            return self.opened(inode, content, flags, changed=acquired.changed, whole=whole)

    def opened(
        self, inode: Inode, content: Content, flags: int, *, changed: bool = False, whole: Buffer = b""
    ) -> Opened:
        """Register a handle, which takes over the reference on `content`. No await."""
        direct = pagecache.mixed(self._mount.handles, inode, content)
        keep = not direct and pagecache.keeps(inode, content)
        others = not direct and not keep and inode.pages is not None
        handle = self._mount.handles.open_file(
            inode,
            content,
            writable=_writes(flags),
            executed=bool(flags & _FMODE_EXEC),
            paged=not direct and not flags & os.O_DIRECT,
        )
        if not direct:
            inode.pages = content
        if whole:
            self._mount.health.count("pushed_bytes", len(whole))
        return Opened(handle.fh, keep_cache=keep, direct=direct, changed=changed or others, whole=whole)

    async def read(self, fh: Fh, offset: int, length: int) -> Buffer:
        """See ContentCache.read; ESTALE when the version is gone from the bucket and not all here."""
        handle = self._mount.handles.file(fh)
        if not handle.was_read:
            handle.was_read = True
            if handle.content.size > FIRST_BYTES:
                self._habit.note(offset, length)
        while True:
            key = handle.content.key
            try:
                return await self._mount.cache.read(handle.content, offset, length)
            except (PreconditionFailed, NotFound) as error:
                async with HoldInode(self._mount, handle.inode):  # a rename on this node is over now
                    if handle.content.key == key and not await self._coherence.follow(handle.content):
                        raise PosixError(errno.ESTALE, key) from error

    def beside(self, fh: Fh, offset: int, length: int) -> Range | None:
        """See FileSystem."""
        handle = self._mount.handles.find(fh)
        return handle.misses.note(offset, length) if handle is not None and handle.paged else None

    def pages(self, fh: Fh, start: int, end: int) -> Pages | None:
        """See FileSystem."""
        handle = self._mount.handles.find(fh)
        if handle is None or not pagecache.may_push(self._mount.handles, handle):
            return None
        pages = whole_pages(start, end, handle.content.size)
        data = self._mount.cache.peek(handle.content, *pages) if pages is not None else None
        if pages is None or data is None:
            return None
        self._mount.health.count("pushed_bytes", len(data))
        return Pages(handle.inode.ino, pages[0], data)

    async def write(self, fh: Fh, offset: int, data: Buffer) -> int:
        """Accepts all of `data` or raises."""
        handle = self._mount.handles.file(fh)
        if not handle.writable:
            raise PosixError(errno.EBADF, handle.inode.path)
        async with HoldInode(self._mount, handle.inode):
            self._refuse_lost(handle.inode, handle.content)
            self._coherence.changed(handle.inode)
            await self._mount.cache.write(handle.content, offset, data)
            self._wrote(handle.inode, handle.content)
        return len(data)

    async def truncate(self, inode: Inode, content: Content, size: int) -> None:
        """Set the length. The caller holds a claim on the inode. EFBIG: no object can be so long."""
        can = self._mount.store.capabilities
        if size > max(can.max_put_bytes, can.max_parts * can.max_part_bytes):
            raise PosixError(errno.EFBIG, content.key)
        self._coherence.changed(inode)
        await self._mount.cache.truncate(content, size)
        self._wrote(inode, content)

    def _wrote(self, inode: Inode, content: Content) -> None:
        """Attributes after a change of content. No await since the cache accepted it."""
        first = not inode.unpushed
        attributes.wrote(inode, self._mount.now_ns())
        inode.size = content.size
        inode.asked_s = -inf
        inode.unpushed = True
        if first:
            # The journal gets the new times with the bytes; later writes only until the next flush.
            self._coherence.push(inode, content)
            inode.unpushed = content.state is State.DIRTY

    async def flush(self, fh: Fh) -> None:
        """close() of one descriptor: published or journaled, as the volume has it. Conflict is ESTALE."""
        handle = self._mount.handles.file(fh)
        if handle.writable:
            await self.commit(handle.inode, handle.content, remote=self._mount.settings.close_remote)
            if self._mount.settings.close_remote:
                await self._mount.published()

    async def fsync(self, fh: Fh) -> None:
        """Shipped or journaled, as the volume has it."""
        handle = self._mount.handles.file(fh)
        await self.commit(handle.inode, handle.content, remote=self._mount.settings.fsync_remote, schedule=False)
        if self._mount.settings.fsync_remote:
            await self._mount.published()

    async def commit(self, inode: Inode, content: Content, *, remote: bool, schedule: bool = True) -> None:
        """Make changes durable. Raises Conflict, Unavailable, NoSpace and what the store refuses."""
        async with HoldInode(self._mount, inode):
            await self.commit_held(inode, content, remote=remote, schedule=schedule)

    async def commit_held(self, inode: Inode, content: Content, *, remote: bool, schedule: bool = True) -> None:
        """`commit` for callers that hold a claim on the inode."""
        cache = self._mount.cache
        if content.state is State.CONFLICTED:
            raise PosixError(errno.ESTALE, content.key)
        if content.state is State.DISCARDED:
            self._refuse_lost(inode, content)
            return
        self._coherence.push(inode, content)
        if content.state is not State.DIRTY:
            return
        if not remote:
            await cache.sync(content)
            if schedule:
                cache.schedule(content)
            return
        asked_s = self._mount.learned.now_s()
        inode.committing += 1
        try:
            await cache.publish(content)
        except Conflict:
            self._coherence.forget(inode)
            raise
        finally:
            inode.committing -= 1
            self._mount.learned.changed(content.key)
        self._coherence.adopt_published(inode, content, asked_s)

    def _refuse_lost(self, inode: Inode, content: Content) -> None:
        """ESTALE for a content that `is_lost`. The caller holds a claim on the inode."""
        if is_lost(inode, content):
            raise PosixError(errno.ESTALE, content.key)

    async def release(self, fh: Fh) -> None:
        """The last close of one open(). What was written after the last flush (mmap) is published in the background."""
        mount = self._mount
        handle = mount.handles.file(fh)
        async with HoldInode(mount, handle.inode):
            try:
                self._leave(handle)
            finally:
                mount.handles.close_file(handle)
                mount.cache.release(handle.content)
        if handle.inode.pins == 0:
            await self._orphans.drop(handle.inode)
            mount.inodes.let_go(handle.inode)

    def _leave(self, handle: FileHandle) -> None:
        if handle.writable and handle.content.state is State.DIRTY:
            self._coherence.push(handle.inode, handle.content)
            self._mount.cache.schedule(handle.content)
        elif not any(other.writable for other in self._mount.handles.of(handle.inode)):
            handle.inode.unpushed = False


def _opens_for_writing(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY


def _writes(flags: int) -> bool:
    return _opens_for_writing(flags) or bool(flags & os.O_TRUNC)


def _appends(flags: int) -> bool:
    return flags & os.O_APPEND != 0 and flags & os.O_TRUNC == 0 and _writes(flags)


def is_lost(inode: Inode, content: Content) -> bool:
    """True when the file was to be removed or replaced, that failed, and so it is there without this content."""
    return content.state is State.DISCARDED and inode.key is not None
