"""Names that come to be: lookup, create, mkdir, mknod, symlink, readlink.

Theory of operation. What must be exclusive among nodes (O_EXCL, mkdir, mknod, symlink) is claimed in the bucket at
once by a conditional PUT; a plain create makes pending content that is published, if the name is still free, when the
file is closed. The kernel looks a name up immediately before it creates it, so the absence found by that lookup is used
once; without such a lookup the bucket is asked. A name is never made while a tombstone is at it (see objects.py), and
never an object beside a directory of the same name.

Each operation holds an exclusive claim on the path it makes, so that two local processes do not interleave on it.
"""

from __future__ import annotations

import errno
import os
import stat

from s3vol import layout
from s3vol.errors import PosixError
from s3vol.fs import attributes
from s3vol.fs.base import Entry, Opened
from s3vol.fs.claims import Claim
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.fileio import FileIO
from s3vol.fs.inodes import Inode
from s3vol.fs.lookup import Finder, Found
from s3vol.fs.objects import Objects
from s3vol.store.base import DIRECTORY_TYPE, FILE_TYPE
from s3vol.types import Caller, Ino, ObjectInfo

TARGET_MAX_BYTES = 4095  # PATH_MAX without its zero: a longer reply to readlink is EIO for the kernel


class Namespace:
    """Lookup and the making of names."""

    def __init__(self, mount: Mount, objects: Objects, coherence: Coherence, finder: Finder, files: FileIO) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence
        self._finder = finder
        self._files = files

    async def lookup(self, parent: Ino, name: bytes) -> Entry:
        """PosixError(ENOENT), ENOTDIR, ESTALE."""
        mount = self._mount
        directory = mount.directory(parent)
        if name in (b".", b".."):  # asked for by NFS servers on top of the mount only
            return await self._dots(directory, name)
        found = await self._finder.need(directory, mount.child(directory, name))
        # No await between finding the inode and counting it: a forget of the kernel must not come in between.
        inode = self._finder.inode(found)
        mount.inodes.remember(inode)
        if inode.is_dir:
            await self._complete(inode)  # a listing has told its name only
        return self._coherence.entry(inode, found.asked_s)

    async def _complete(self, inode: Inode) -> None:
        try:
            await self._coherence.refresh(inode)
        except BaseException as error:
            self._mount.inodes.forget([(inode.ino, 1)])
            if isinstance(error, PosixError) and error.errno == errno.ESTALE:
                raise PosixError(errno.ENOENT, inode.was) from None  # it went since the listing
            raise

    async def _dots(self, directory: Inode, name: bytes) -> Entry:
        inode: Inode | None = directory
        if name == b".." and directory is not self._mount.inodes.root:
            inode = self._mount.parent_of(directory.key or "")
        if inode is None:
            raise PosixError(errno.ESTALE, directory.key or "")
        await self._coherence.refresh(inode)
        self._mount.inodes.remember(inode)
        return self._coherence.entry(inode)

    async def create(self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Opened, Entry]:
        """open(O_CREAT): makes the file if it is not there (O_EXCL: or EEXIST), and opens it."""
        mount = self._mount
        directory = mount.directory(parent)
        path = mount.new_child(directory, name)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        async with mount.claims.hold(Claim(path)):
            mount.still(directory, name, path)
            free = self._finder.is_free(path)
            found = None if free else await self._look(directory, path)
            if found is None:
                return await self._create_new(directory, path, mode, flags, caller, free=free)
        if flags & os.O_EXCL:
            raise PosixError(errno.EEXIST, path)
        inode = self._finder.inode(found)
        if not inode.is_regular:
            raise PosixError(errno.EISDIR if inode.is_dir else errno.EEXIST, path)
        mount.inodes.remember(inode)
        try:
            opened = await self._files.open(inode, flags)
        except BaseException:
            mount.inodes.forget([(inode.ino, 1)])
            raise
        return opened, self._coherence.entry(inode)

    async def _create_new(
        self, directory: Inode, path: str, mode: int, flags: int, caller: Caller, *, free: bool
    ) -> tuple[Opened, Entry]:
        mount, cache = self._mount, self._mount.cache
        metadata = self._metadata(directory, mode, 0, caller)
        if flags & os.O_EXCL:
            info = await self._claim(path, b"", metadata)
            content = cache.attach(info, content_type=FILE_TYPE)
        else:
            if not free:
                await self._objects.await_absent(path)
            if cache.dirty(path) is not None:
                # Written meanwhile through a handle of a file that another node has removed: the kernel looks again.
                raise PosixError(errno.ESTALE, path)
            self._mount.learned.changed(path)
            content = cache.create(path, metadata, content_type=FILE_TYPE)
            info = ObjectInfo(path, 0, "", mount.now_ns(), metadata)
        # No await from here to the reply: nobody sees the name without its content.
        inode = self._made(info, published=bool(flags & os.O_EXCL))
        mount.touch(directory)
        return self._files.opened(inode, content, flags), self._coherence.entry(inode)

    async def mknod(self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """A regular file, fifo, socket or device: an empty object."""
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        return await self._make(parent, name, b"", mode, rdev, caller)

    async def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Entry:
        """An object whose body is the target."""
        return await self._make(parent, name, target, stat.S_IFLNK | 0o777, 0, caller)

    async def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Entry:
        """A marker object."""
        mount = self._mount
        directory = mount.directory(parent)
        path = mount.new_child(directory, name)
        mount.check_key(f"{path}/")
        async with mount.claims.hold(Claim(path, tree=True)):
            mount.still(directory, name, path)
            await self._refuse_existing(directory, path)
            metadata = self._metadata(directory, stat.S_IFDIR | stat.S_IMODE(mode), 0, caller)
            mount.learned.changed(f"{path}/")
            info = await self._objects.create_marker(f"{path}/", metadata)
            mount.learned.changed(f"{path}/")
            inode, _ = mount.inodes.ensure(f"{path}/", stat.S_IFDIR)
            self._coherence.adopt_directory(inode, info, mount.learned.now_s())
            inode.touched_ns = 0
            # Nothing is below it but what this node makes, until somebody else is told of it: no need to list it.
            inode.listed_s = mount.learned.now_s()
            mount.touch(directory)
            mount.inodes.remember(inode)
            return self._coherence.entry(inode)

    async def readlink(self, ino: Ino) -> bytes:
        """The target; EINVAL for what is no symlink, ENAMETOOLONG for what another tool made longer than a path."""
        inode = self._mount.inodes.get(ino)
        if not stat.S_ISLNK(inode.mode):
            raise PosixError(errno.EINVAL, inode.path)
        await self._coherence.refresh(inode)
        target = inode.target
        if target is None:
            content = (await self._coherence.acquire(inode)).content
            try:
                if content.size > TARGET_MAX_BYTES:
                    raise PosixError(errno.ENAMETOOLONG, inode.path)
                target = bytes(await self._mount.cache.read(content, 0, content.size))
                if content.base is not None and content.base == inode.version:  # it may have been replaced meanwhile
                    inode.target = target
            finally:
                self._mount.cache.release(content)
        if not target:
            raise PosixError(errno.ENOENT, inode.path)  # the kernel would take it for the directory that it is in
        return target

    async def _make(self, parent: Ino, name: bytes, body: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        mount = self._mount
        directory = mount.directory(parent)
        path = mount.new_child(directory, name)
        async with mount.claims.hold(Claim(path)):
            mount.still(directory, name, path)
            await self._refuse_existing(directory, path)
            info = await self._claim(path, body, self._metadata(directory, mode, rdev, caller))
            inode = self._made(info, published=True)
            if stat.S_ISLNK(mode):
                inode.target = body
            mount.touch(directory)
            return self._coherence.entry(inode)

    async def _claim(self, path: str, body: bytes, metadata: dict[str, str]) -> ObjectInfo:
        """PUT if absent; PosixError(EEXIST). Requests in flight on either side of it do not know of it."""
        learned = self._mount.learned
        learned.changed(path)
        info = await self._objects.create(path, body, metadata)
        learned.changed(path)
        return info

    async def _existing(self, directory: Inode, path: str) -> Found | None:
        """What is at `path`; the lookup that the kernel has just sent counts."""
        return None if self._finder.is_free(path) else await self._look(directory, path)

    async def _look(self, directory: Inode, path: str) -> Found | None:
        """What is at `path`. A directory that only a listing of its parent has shown may be nothing (docs/minio.md)."""
        found = await self._finder.find(directory, path)
        if found is not None and found.is_dir and not found.looked:
            return await self._finder.find(directory, path, now=True)
        return found

    async def _refuse_existing(self, directory: Inode, path: str) -> None:
        if await self._existing(directory, path) is not None:
            raise PosixError(errno.EEXIST, path)

    def _metadata(self, directory: Inode, mode: int, rdev: int, caller: Caller) -> dict[str, str]:
        posix = attributes.new_posix(directory, mode, rdev, caller, self._mount.now_ns())
        return layout.encode_attr(posix, {})

    def _made(self, info: ObjectInfo, *, published: bool) -> Inode:
        """The inode of an object that was just made, counted once for the reply. No await."""
        mount = self._mount
        posix = layout.decode_attr(info, mount.owner, is_dir=info.content_type == DIRECTORY_TYPE)
        inode, _ = mount.inodes.ensure(info.key, posix.mode)
        inode.set_posix(posix)
        inode.size, inode.metadata, inode.target = info.size, layout.without_nonce(info.metadata or {}), None
        inode.unpushed = inode.explicit_times = inode.atime_set = False
        if published:
            inode.version, inode.asked_s = info.version, mount.learned.now_s()
        else:
            inode.version, inode.asked_s = None, float("-inf")
        mount.inodes.remember(inode)
        return inode
