"""Files that have lost their name while a program has them open: their bytes stay readable.

Theory of operation. When every byte is on the local disk nothing has to be done: a discarded content is never evicted.
Else the object is copied on the server to `.s3vol/orphans/<node>/<random>` before its name goes, the content reads
from there, and the copy is deleted at the last close. Each copy is noted in the cache's journal first, so that a crash
leaves nothing behind for longer than until the next mount.

Rejected: renaming to a hidden name beside the file, as NFS clients do (other tools would see it, rmdir would fail).
"""

from __future__ import annotations

import secrets

from s3vol import layout
from s3vol.cache.base import Content, State
from s3vol.errors import NotFound, PreconditionFailed, S3volError
from s3vol.fs.context import Mount
from s3vol.fs.inodes import Inode
from s3vol.fs.objects import Objects
from s3vol.store.base import ABSENT
from s3vol.types import MIB, ObjectInfo

NOTES = "orphan"
_STEP_BYTES = 8 * MIB  # the cache's own fetch size


class Orphans:
    """Keeps and clears them. The caller of `keep` holds an exclusive claim on the inode's path."""

    def __init__(self, mount: Mount, objects: Objects) -> None:
        self._mount = mount
        self._objects = objects

    async def keep(self, inode: Inode) -> None:
        """The object at the inode's name is about to go: keep what open handles read, publish nothing more of it."""
        cache = self._mount.cache
        contents = self._mount.handles.contents_of(inode)
        dirty = cache.dirty(inode.key) if inode.key is not None else None
        if dirty is not None and dirty not in contents:
            await cache.discard(dirty)
        for content in contents:
            await cache.unhold(content)
            if content.state is State.CLEAN and not cache.is_local(content):
                await self._copy(inode, content)
            if content.state is not State.DISCARDED:
                await cache.discard(content)
            if not inode.orphans:
                await self._fetch(content)

    async def _copy(self, inode: Inode, content: Content) -> None:
        """Copy the object away and read from there; nothing to do when the bucket has another version by now."""
        if content.base is None:
            return
        cache = self._mount.cache
        key = f"{layout.ORPHANS}{self._mount.settings.node}/{secrets.token_hex(8)}"
        cache.note(NOTES, key, "1")
        await cache.sync_notes()
        await cache.publish(content)  # it is clean: waits for a publisher that is just letting go of it
        source = ObjectInfo(content.key, content.size, content.base.etag, 0, content.metadata)
        try:
            copied = await self._objects.copy(source, key, {}, ABSENT)
        except (PreconditionFailed, NotFound):
            cache.note(NOTES, key, None)
            return
        inode.orphans.append(key)
        cache.rekey(content, copied)

    async def _fetch(self, content: Content) -> None:
        """Changed locally, and not all here: bring the rest, since the object holds only the old bytes of it."""
        cache = self._mount.cache
        for offset in range(0, content.size, _STEP_BYTES):
            if cache.is_local(content):
                return
            try:
                await cache.read(content, offset, _STEP_BYTES)
            except (PreconditionFailed, NotFound):
                return  # replaced by another node: these bytes are nowhere any more, readers get ESTALE

    async def drop(self, inode: Inode) -> None:
        """The last handle is closed. A copy that cannot be deleted now is deleted at the next mount."""
        for key in inode.orphans:
            try:
                await self._delete(key)
            except S3volError:
                self._mount.health.count("orphans_left")
        inode.orphans.clear()

    async def clear(self) -> None:
        """Delete what an earlier mount of this node left behind."""
        for key in list(self._mount.cache.notes(NOTES)):
            await self._delete(key)

    async def _delete(self, key: str) -> None:
        await self._mount.store.delete(key)
        self._mount.cache.note(NOTES, key, None)
