"""Names that go: unlink and rmdir.

Theory of operation. Pending content is discarded (uploads aborted, publishes in flight waited for), then the object is
deleted; what open handles still read is kept first (orphans.py). S3's DELETE knows no condition: of a publish by
another node in the same moment either one is last, as with any unlink. What is there is looked at first (looks.py).

A directory that exists only because keys begin with its name would vanish with its last file: it gets a marker first.
rmdir asks the bucket, tombstones do not count, and it removes those that were left behind, since a key below a prefix
makes a directory for everybody else.
"""

from __future__ import annotations

import errno

from s3vol import layout
from s3vol.errors import PosixError
from s3vol.failpoints import Point, hit
from s3vol.fs.claims import Claim
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.inodes import Inode
from s3vol.fs.linking import Linking, bodies
from s3vol.fs.looks import Looks
from s3vol.fs.lookup import Finder, Found
from s3vol.fs.objects import Objects
from s3vol.fs.orphans import Orphans
from s3vol.types import Ino


class Removal:
    """unlink, rmdir, and what rename needs of them."""

    def __init__(
        self,
        mount: Mount,
        objects: Objects,
        coherence: Coherence,
        finder: Finder,
        orphans: Orphans,
        linking: Linking,
        looks: Looks,
    ) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence
        self._finder = finder
        self._orphans = orphans
        self._linking = linking
        self._looks = looks

    async def unlink(self, parent: Ino, name: bytes) -> None:
        """ENOENT, EISDIR, EROFS."""
        mount = self._mount
        mount.writable()
        directory = mount.directory(parent)
        path = mount.child(directory, name)
        claimed: tuple[Claim, ...] = ()
        while True:
            async with mount.claims.hold(Claim(path), *claimed):
                mount.still(directory, name, path)
                found = await self._finder.need(directory, path)
                if found.is_dir:
                    raise PosixError(errno.EISDIR, path)
                wanted = bodies(found)
                if set(wanted) <= set(claimed):
                    await self._unlink(directory, path, found)
                    mount.touch(directory)
                    return
                claimed = wanted

    async def _unlink(self, directory: Inode, path: str, found: Found) -> None:
        mount, link = self._mount, found.link
        if link is not None:
            self._coherence.relocate(path, link.id)
            await self.ensure_marker(directory)
            await self._linking.unlink(path, link)
            return
        published = found.content is None or found.content.base is not None
        if found.content is not None and published:
            # Requests come first: when the endpoint is silent the name stays, with what was acknowledged under it.
            await self.ensure_marker(directory)
            await self._objects.head(path)
        inode = mount.inodes.at(path)
        mount.learned.changed(path)
        if found.content is not None:
            await mount.cache.discard(found.content, durable=False)
            published = published or found.content.base is not None  # a publish in flight has succeeded
        if published:
            await self.ensure_marker(directory)
            if inode is not None:
                await self._orphans.keep(inode)
            hit(Point.UNLINK_BEFORE_DELETE)
            # Not the tombstone of another node's rename: its DELETE is still to come, and would hit who creates now.
            # Nor what is gone by now: ours would hit who creates next.
            if await self._looks.is_ours(directory, found):
                await mount.store.delete(path)
            hit(Point.UNLINK_AFTER_DELETE)
        elif inode is not None:
            await self._orphans.keep(inode)
        mount.learned.changed(path)
        self.unname(inode, path)

    async def rmdir(self, parent: Ino, name: bytes) -> None:
        """ENOENT, ENOTDIR, ENOTEMPTY, EROFS."""
        mount = self._mount
        mount.writable()
        directory = mount.directory(parent)
        path = mount.child(directory, name)
        key = f"{path}/"
        async with mount.claims.hold(Claim(path, tree=True)):
            mount.still(directory, name, path)
            found = await self._finder.need(directory, path)
            if not found.is_dir:
                raise PosixError(errno.ENOTDIR, path)
            await self.check_empty(key)
            await self.ensure_marker(directory)
            mount.learned.changed(key)
            await mount.store.delete(key)
            mount.learned.changed(key)
            mount.learned.suspect(path)
            self.unname(mount.inodes.at(key), key)
            mount.touch(directory)

    async def check_empty(self, key: str) -> None:
        """PosixError(ENOTEMPTY) when anything is in the directory, here or in the bucket. Tombstones go."""
        if any(content.key.startswith(key) for content in self._mount.cache.pending()):
            raise PosixError(errno.ENOTEMPTY, key)
        cursor: str | None = None
        while True:
            page = await self._mount.store.list(key, delimiter=False, cursor=cursor, limit=100, metadata=True)
            for info in page.objects:
                known = None if info.key == key else await self._objects.known(info)
                if known is not None and not (layout.is_tombstone(known) and await self._is_freed(known.key)):
                    raise PosixError(errno.ENOTEMPTY, key)
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    async def _is_freed(self, key: str) -> bool:
        """Wait until a tombstone is gone; False when a file took its place."""
        try:
            await self._objects.await_absent(key)
        except PosixError:
            return False
        return True

    async def ensure_marker(self, directory: Inode) -> None:
        """Before a name in it goes: the directory must not go with it."""
        if directory.marker or directory.key is None or directory is self._mount.inodes.root:
            return
        await self._coherence.refresh(directory)
        if not directory.marker:
            metadata = layout.encode_attr(directory.posix(), {})
            await self._objects.ensure_marker(directory.key, metadata)
            directory.marker = True

    def unname(self, inode: Inode | None, key: str) -> None:
        """The name is gone. No await."""
        if inode is not None and inode.key == key:
            inode.unpushed = False
            inode.ctime_ns = self._mount.now_ns()
            self._mount.inodes.unname(inode)
