"""Changes of attributes: setattr and extended attributes.

Theory of operation. Attributes travel with the object, so changing them means publishing it again; the cache does that
conditionally, and without moving bytes where the store can copy. While a writer has unpublished changes of the
file, the change goes along with the publish that its close will bring. A directory's attributes are
those of its marker, which is made when there is none; the root's are in an object of our own.

Memory is changed and the content told in one step without an await, so that two concurrent changes add up.

What changes nothing is not published: `chown -R` at the start of a container would write every object anew, and with
its version void what all nodes have of it in their caches. That nothing changes is seen on what the bucket said after
the call began. The new ctime is in memory only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf

from s3vol import layout
from s3vol.cache.base import Content, State
from s3vol.errors import MetadataTooLarge, NoSpace, PosixError, PreconditionFailed, S3volError, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.fs import attributes
from s3vol.fs.base import Entry
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import HoldInode, Mount
from s3vol.fs.fileio import FileIO, is_lost
from s3vol.fs.inodes import Inode
from s3vol.fs.objects import ATTEMPTS
from s3vol.types import AttrChange, Caller, Fh, Ino

NAMESPACES = (b"user.", b"security.", b"trusted.")


class Changes:
    """setattr and xattrs of one mount."""

    def __init__(self, mount: Mount, coherence: Coherence, files: FileIO) -> None:
        self._mount = mount
        self._coherence = coherence
        self._files = files

    async def getattr(self, ino: Ino) -> Entry:
        """ESTALE when the name is gone."""
        inode = self._mount.inodes.get(ino)
        await self._coherence.refresh(inode)
        return self._coherence.entry(inode)

    def entry(self, ino: Ino, entry: Entry) -> Entry:
        """See FileSystem."""
        inode = self._mount.inodes.find(ino)
        return entry if inode is None else replace(self._coherence.entry(inode), entry_ttl_s=entry.entry_ttl_s)

    async def setattr(self, ino: Ino, change: AttrChange, fh: Fh | None, caller: Caller) -> Entry:
        """E2BIG when the attributes do not fit into the object's metadata."""
        mount = self._mount
        mount.writable()
        inode = mount.inodes.get(ino)
        if inode.is_dir:
            if change.size is not None:
                raise PosixError(errno.EISDIR, inode.path)
            await self._change_directory(inode, lambda: attributes.apply(inode, change, mount.now_ns()))
            return self._coherence.entry(inode)
        content = mount.handles.file(fh).content if fh is not None else None
        async with HoldInode(mount, inode):
            await self._change_file(inode, content, change)
        return self._coherence.entry(inode)

    async def _change_file(self, inode: Inode, content: Content | None, change: AttrChange) -> None:
        """With a content of an open handle, or None. The caller holds a claim on the inode."""
        cache = self._mount.cache
        if content is not None and is_lost(inode, content):
            if change.size is not None:
                raise PosixError(errno.ESTALE, inode.path)
            content = None
        if content is None or content.state in (State.CLEAN, State.CONFLICTED):
            # Not through the handle: its version may be old, and the change is one of the file as it is now.
            if content is not None and change.size is not None:
                cache.refer(content)
            else:
                content = (await self._coherence.acquire(inode)).content
        else:
            cache.refer(content)
        try:
            if change.size is not None:
                await self._files.truncate(inode, content, change.size)
            await self._tell(inode, content, lambda: attributes.apply(inode, change, self._mount.now_ns()))
        finally:
            cache.release(content)

    async def _tell(
        self, inode: Inode, content: Content, apply: Callable[[], None], kept: Mapping[str, str] | None = None
    ) -> None:
        """Change memory and content in one step, then publish unless a writer's close has to do that anyway.

        `kept`: other headers of the object than it has.
        """
        mount = self._mount
        if content.state is State.DISCARDED:
            apply()
            return
        with_close = content.state is State.DIRTY and not inode.committing and mount.handles.writer(inode, content)
        before, headers = inode.posix(), inode.metadata
        apply()
        try:
            metadata = self._coherence.encode(inode, content.metadata if kept is None else kept)
        except MetadataTooLarge:
            inode.set_posix(before)
            inode.metadata = headers
            raise
        if content.state is State.CLEAN and layout.says_the_same(metadata, content.metadata):
            inode.metadata = headers
            return
        self._coherence.changed(inode)
        mount.cache.set_metadata(content, metadata, explicit_times=inode.explicit_times)
        inode.metadata, inode.unpushed = metadata, False
        if not with_close:
            hit(Point.ATTRIBUTES_BEFORE_COMMIT)
            await self._files.commit_held(inode, content, remote=mount.settings.close_remote)
            hit(Point.ATTRIBUTES_AFTER_COMMIT)

    async def _change_directory(self, inode: Inode, apply: Callable[[], None]) -> None:
        """Change memory, then write the marker."""
        async with HoldInode(self._mount, inode, shared=False):  # two markers written at once would lose one change
            for _ in range(ATTEMPTS):
                await self._coherence.refresh(inode)
                if inode.key is None:
                    raise PosixError(errno.ESTALE, inode.was)
                before, headers = inode.posix(), inode.metadata
                apply()
                try:
                    metadata = self._coherence.encode(inode, inode.metadata)
                    await self._coherence.save_directory(inode, metadata, headers)
                    hit(Point.DIRECTORY_ATTRIBUTES_AFTER_PUT)
                    return
                except S3volError as error:
                    inode.set_posix(before)
                    inode.metadata = headers
                    if not isinstance(error, PreconditionFailed):
                        raise
                    inode.asked_s = -inf  # another node was quicker: asked anew, and changed on top of that
            raise Unavailable(f"{inode.path}: others changed it {ATTEMPTS} times")

    # Extended attributes: one header of the object, as s3fs writes it.

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """ENODATA, EOPNOTSUPP."""
        value = (await self._xattrs(ino)).get(_checked(name))
        if value is None:
            raise PosixError(errno.ENODATA, name.decode(errors="replace"))
        return value

    async def listxattr(self, ino: Ino) -> Sequence[bytes]:
        """All names."""
        return sorted(await self._xattrs(ino))

    async def setxattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        """NoSpace when the attributes of the file do not fit into its 2,048 bytes of metadata."""
        name = _checked(name)
        await self._change_xattrs(ino, lambda values: {**values, name: value})

    async def removexattr(self, ino: Ino, name: bytes) -> None:
        """ENODATA, EOPNOTSUPP."""
        name = _checked(name)

        def without(values: dict[bytes, bytes]) -> dict[bytes, bytes]:
            if name not in values:
                raise PosixError(errno.ENODATA, name.decode(errors="replace"))
            return {n: v for n, v in values.items() if n != name}

        await self._change_xattrs(ino, without)

    async def _xattrs(self, ino: Ino) -> dict[bytes, bytes]:
        inode = self._mount.inodes.get(ino)
        await self._coherence.refresh(inode)
        return layout.decode_xattr(inode.metadata)

    async def _change_xattrs(self, ino: Ino, change: Callable[[dict[bytes, bytes]], dict[bytes, bytes]]) -> None:
        mount = self._mount
        mount.writable()
        inode = mount.inodes.get(ino)

        def changed(metadata: Mapping[str, str]) -> dict[str, str]:
            values = change(layout.decode_xattr(metadata))
            kept = {n: v for n, v in metadata.items() if n != "xattr"}
            return {**kept, "xattr": layout.encode_xattr(values)} if values else kept

        try:
            if inode.is_dir:
                await self._change_directory(inode, lambda: self._set_headers(inode, changed(inode.metadata)))
                return
            async with HoldInode(mount, inode):
                content = (await self._coherence.acquire(inode)).content
                try:
                    kept = changed(content.metadata)
                    await self._tell(inode, content, lambda: self._set_headers(inode, kept), kept)
                finally:
                    mount.cache.release(content)
        except MetadataTooLarge as error:
            raise NoSpace(f"{inode.path}: {error}") from error

    def _set_headers(self, inode: Inode, metadata: Mapping[str, str]) -> None:
        inode.metadata = metadata
        inode.ctime_ns = self._mount.now_ns()


def _checked(name: bytes) -> bytes:
    """Names of the namespaces that an object can carry; ACLs and the rest of `system.` are none."""
    if not name.startswith(NAMESPACES):
        raise PosixError(errno.EOPNOTSUPP, name.decode(errors="replace"))
    return name
