"""rename(2) where one of the names, or both, are names of hard links.

Theory of operation. Two names of one inode: nothing happens (POSIX). A name that moves is a new stub with a new token
at the new name, then a tombstone at the old one, as with any file; the record lists both tokens from before the first
step until after the last. A name that is replaced is marked in its record first, and its token taken out when the
other file is there. The body is not touched, and no name is gone before the new one is there.

Somebody else may put another file at the old name meanwhile: the tombstone fails, and the rename begins anew with what
is there by then.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import trio

from s3vol import layout
from s3vol.errors import PosixError, S3volError
from s3vol.failpoints import Point, hit
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE
from s3vol.fs.linking import Linking, new_id
from s3vol.fs.links import Links
from s3vol.fs.lookup import Found
from s3vol.fs.objects import Objects
from s3vol.fs.replacing import Linked, replace_at
from s3vol.layout import Link
from s3vol.store.base import Condition
from s3vol.types import ObjectInfo

TOMBSTONES = "tombstone"  # notes: tombstones of ours that may be left
Clear = Callable[[str, ObjectInfo, float], Awaitable[None]]


class LinkRename:
    """The caller claims both names alone, and the bodies."""

    def __init__(self, mount: Mount, objects: Objects, links: Links, linking: Linking) -> None:
        self._mount = mount
        self._objects = objects
        self._links = links
        self._linking = linking

    async def over(self, new: str, target: Found, rename: Callable[[Found], Awaitable[bool]]) -> bool:
        """Something else replaces one name of a link; `rename` does it, and may ask (False) to begin anew."""
        link, stub = target.link, target.stub
        assert link is not None, "the target is a name of a link"
        with self._links.working(link.id):
            await self._linking.leave(new, link)
            try:
                done = await rename(Found(new, False, target.asked_s, stub))
            except S3volError as error:
                await self._linking.give_up(link.id, error)
                raise
            if done:
                await self._linking.left(link)
            else:
                await self._linking.give_up(link.id)
        return done

    async def move(
        self, old: str, new: str, source: Found, replaced: ObjectInfo | None, clear: Clear, *, replace: bool
    ) -> bool:
        """A name of a link gets another path, where `replaced` is by now. False: begin anew."""
        link, stub = source.link, source.stub
        assert link is not None, "the source is a name of a link"
        assert stub is not None, "a link is what a stub says"
        made = Link(link.id, new_id())
        with self._links.working(link.id):
            if not await self._links.begin(link.id, {made.token: new}, {link.token: old}):
                raise PosixError(errno.EIO, f"{old}: {layout.record_key(link.id)}, the list of its names, is gone")
            hit(Point.LINK_RENAME_AFTER_RECORD)
            try:
                return await self._move(old, new, stub, link, made, replaced, clear, replace=replace)
            except S3volError as error:
                await self._linking.give_up(link.id, error)
                raise

    async def _move(
        self,
        old: str,
        new: str,
        stub: ObjectInfo,
        link: Link,
        made: Link,
        replaced: ObjectInfo | None,
        clear: Clear,
        *,
        replace: bool,
    ) -> bool:
        cache = self._mount.cache
        placed = await self._place(new, made, replaced, replace=replace)
        if placed is None:
            await self._links.resolve_own(link.id)
            return False
        hit(Point.LINK_RENAME_AFTER_STUB)
        cache.note(TOMBSTONES, old, "1")
        await cache.settle_notes()
        buried_s = trio.current_time()
        try:
            tombstone = await self._objects.bury(stub)
        except GONE:
            cache.note(TOMBSTONES, old, None)
            if replaced is None:
                await self._objects.discard(placed)  # of a file that somebody else has renamed or removed
            await self._links.resolve_own(link.id)
            self._forget(old, new)
            return False
        self._forget(old, new)
        inode = self._mount.inodes.at(link.key)
        if inode is not None and inode.name == old:
            inode.name = new
        hit(Point.LINK_RENAME_AFTER_TOMBSTONE)
        await clear(old, tombstone, buried_s)
        await self._links.settle(link.id, (made.token,), (link.token,))
        return True

    async def _place(self, new: str, made: Link, replaced: ObjectInfo | None, *, replace: bool) -> ObjectInfo | None:
        """The stub at the new name, over whatever is there by then; None: that is a name of a link."""
        body, metadata = layout.stub(made)

        async def put(condition: Condition) -> ObjectInfo:
            return await self._objects.put(new, body, metadata, condition=condition)

        try:
            return await replace_at(self._mount, self._objects, new, replaced, put, replace=replace)
        except Linked:
            return None  # to be marked first

    def _forget(self, old: str, new: str) -> None:
        self._mount.learned.changed(old)
        self._mount.learned.changed(new)
