"""rename(2) of a file, and the decision what a rename is.

Theory of operation. `plan` decides from what is at both names. A file that was never published moves in the cache. A
published one is copied to its new name under a condition (replacing whatever is there by then), its old name is
replaced, If-Match, by a tombstone, and the tombstone is deleted. When somebody published under the old name in
between, the tombstone fails and the copy is redone from the new version. At each moment at least one of the names
exists, and readers of the new name see the old or the new file whole. Names in memory change when the tombstone is
there, without an await; open handles then read from the new name, and what the replaced file's handles read was kept
before (orphans.py).

So the old name need not be asked for first: what was learned of it a moment ago is copied, and the tombstone's
condition tells. When the file turns out to be gone, the copy is taken back if it was made over nothing and is still
ours: two nodes that rename one file to one name must not take away each other's.

Both paths are claimed alone, so local writers and closers wait until the names have changed.
"""

from __future__ import annotations

import enum
import errno
import random
from contextlib import suppress

import trio

from s3vol import layout
from s3vol.cache.base import Content, State
from s3vol.errors import Conflict, PosixError, PreconditionFailed, S3volError, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.fs.claims import Claim
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE, SMALL_BYTES, Copier
from s3vol.fs.fileio import FileIO
from s3vol.fs.inodes import Inode
from s3vol.fs.linking import bodies
from s3vol.fs.linkrename import TOMBSTONES, LinkRename
from s3vol.fs.lookup import Finder, Found
from s3vol.fs.objects import Objects
from s3vol.fs.orphans import Orphans
from s3vol.fs.removal import Removal
from s3vol.fs.replacing import ATTEMPTS, Linked, replace_at
from s3vol.fs.tree import TreeRename
from s3vol.parallel import both
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Condition
from s3vol.types import Ino, ObjectInfo

RENAME_NOREPLACE = 1  # linux/fs.h
PAUSE_S = 0.01  # about what a copy and a tombstone take; doubles with each attempt


class Kind(enum.Enum):
    """What is to be done."""

    NOTHING = "nothing"
    FILE = "file"
    TREE = "tree"


class _Changed(S3volError):
    """The source of a copy is another version by now."""


def plan(source: Found | None, target: Found | None, old: str, new: str, flags: int) -> Kind:
    """Decide, or refuse: EINVAL, ENOENT, EEXIST, EISDIR, ENOTDIR. A target directory must be empty as well."""
    if flags & ~RENAME_NOREPLACE:
        raise PosixError(errno.EINVAL, "an object store cannot exchange two names")
    if source is None:
        raise PosixError(errno.ENOENT, old)
    if target is not None and flags & RENAME_NOREPLACE:
        raise PosixError(errno.EEXIST, new)
    if old == new or _same_inode(source, target):
        return Kind.NOTHING
    if not source.is_dir:
        if target is not None and target.is_dir:
            raise PosixError(errno.EISDIR, new)
        return Kind.FILE
    if new.startswith(f"{old}/"):
        raise PosixError(errno.EINVAL, f"{new} is inside {old}")
    if target is not None and not target.is_dir:
        raise PosixError(errno.ENOTDIR, new)
    return Kind.TREE


def _same_inode(source: Found, target: Found | None) -> bool:
    return target is not None and source.link is not None and source.key == target.key


class Rename:
    """rename(2)."""

    def __init__(
        self,
        mount: Mount,
        objects: Objects,
        coherence: Coherence,
        finder: Finder,
        files: FileIO,
        orphans: Orphans,
        removal: Removal,
        links: LinkRename,
        tree: TreeRename,
    ) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence
        self._finder = finder
        self._files = files
        self._orphans = orphans
        self._removal = removal
        self._links = links
        self._tree = tree
        self._copier = Copier(mount, objects)

    async def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> None:
        """See `plan` for what is refused; ENOTEMPTY, EROFS; Conflict when unpublished changes lost to another node."""
        mount = self._mount
        mount.writable()
        directory, new_directory = mount.directory(parent), mount.directory(new_parent)
        old, new = mount.child(directory, name), mount.new_child(new_directory, new_name)
        if new.startswith(f"{old}/") or layout.is_reserved(f"{old}/"):
            raise PosixError(errno.EINVAL if new.startswith(f"{old}/") else errno.ENOENT, old)
        # Trees, as what is at the names is known only under the claim; so are the bodies of links.
        names = (Claim(old, tree=True),) + ((Claim(new, tree=True),) if new != old else ())
        claimed: tuple[Claim, ...] = ()
        for _ in range(ATTEMPTS):
            async with mount.claims.hold(*names, *claimed):
                mount.still(directory, name, old)
                mount.still(new_directory, new_name, new)
                source, target = await self._find(directory, new_directory, old, new)
                wanted = bodies(source, target)
                if set(wanted) <= set(claimed):
                    try:
                        if await self._rename(directory, new_directory, old, new, source, target, flags):
                            return
                    except Linked:
                        continue
                claimed = wanted
        raise Unavailable(f"{old}: other nodes changed it {ATTEMPTS} times while it was to be renamed")

    async def _find(
        self, directory: Inode, new_directory: Inode, old: str, new: str
    ) -> tuple[Found | None, Found | None]:
        """What is at both names, asked after this call; the kernel's lookup that found no file at `new` counts.

        Over nothing, a file is moved as it was learned a moment ago: the tombstone fails if it is another by now, and
        if it is none any more the copy is taken back, which could not be done with what it replaces.
        """
        finder = self._finder
        if new != old and finder.seems_free(new):
            source = finder.recent_file(old) or await finder.find(directory, old, now=True)
            if source is None or not source.is_dir:
                return source, None
            return source, await finder.find(new_directory, new, now=True)
        return await both(
            lambda: finder.find(directory, old, now=True), lambda: finder.find(new_directory, new, now=True)
        )

    async def _rename(
        self,
        directory: Inode,
        new_directory: Inode,
        old: str,
        new: str,
        source: Found | None,
        target: Found | None,
        flags: int,
    ) -> bool:
        """Everything is claimed. False: begin anew."""
        kind = plan(source, target, old, new, flags)
        if kind is Kind.NOTHING or source is None:
            return True
        if kind is Kind.FILE:
            await self._removal.ensure_marker(directory)
            if not await self._names(old, new, source, target, replace=not flags & RENAME_NOREPLACE):
                return False
        else:
            if target is not None:
                await self._removal.check_empty(f"{new}/")
            self._mount.check_key(f"{new}/")
            await self._removal.ensure_marker(directory)
            await self._tree.rename(f"{old}/", f"{new}/")
        self._mount.touch(directory)
        self._mount.touch(new_directory)
        return True

    async def _names(self, old: str, new: str, source: Found, target: Found | None, *, replace: bool) -> bool:
        for found in (source, target):
            if found is not None and found.link is not None:
                self._coherence.relocate(found.path, found.link.id)
        if target is None or target.link is None:
            return await self._file(old, new, source, target, replace=replace)
        return await self._links.over(new, target, lambda stub: self._file(old, new, source, stub, replace=replace))

    async def _file(self, old: str, new: str, source: Found, target: Found | None, *, replace: bool) -> bool:
        cache = self._mount.cache
        pending = cache.dirty(old)
        moves = source.link is None and pending is not None and pending.base is None
        replaced = await self._give_way(new, target, moves=moves)
        if source.link is not None:
            done = await self._links.move(old, new, source, replaced, self._clear, replace=replace)
            if done:
                self._removal.unname(self._mount.inodes.at(new), new)
            return done
        inode = self._mount.inodes.at(old)
        content = cache.dirty(old)
        if content is not None:
            if inode is not None:
                self._coherence.push(inode, content)
            if content.base is None and (replaced is None or layout.link_of(replaced) is None):
                await self._move_pending(content, new, replaced)
            if content.key == old:
                await cache.publish(content)
        if content is not None and content.key == new:
            self.renamed(old, new)
        else:
            await self._published(old, new, source.info if content is None else None, replaced, replace=replace)
        return True

    async def _move_pending(self, content: Content, new: str, replaced: ObjectInfo | None) -> None:
        """Rename what was never published; nothing happens when a publish at work has just succeeded."""
        if replaced is None and not self._finder.is_free(new):
            await self._objects.await_absent(new)  # no tombstone may be where it will be published
        try:
            await self._mount.cache.move(content, new, replaced.version if replaced is not None else None)
        except PreconditionFailed:
            return

    async def _give_way(self, new: str, target: Found | None, *, moves: bool) -> ObjectInfo | None:
        """The file at the new name is to be replaced: pending changes go, open handles read on. Returns its object."""
        inode = self._mount.inodes.at(new)
        content = target.content if target is not None else None
        if content is not None:
            # Requests come first: a rename that fails must not take with it what was acknowledged at the new name.
            if moves:
                await self._objects.head(new)
            else:
                await self._save(inode, content)
            self._mount.learned.changed(new)
            if content.state is State.DIRTY:
                await self._mount.cache.discard(content)
        if inode is not None:
            await self._orphans.keep(inode)
        if content is None:
            return target.info if target is not None else None
        found = await self._objects.head(new)
        return None if found is None or layout.is_tombstone(found) else found

    async def _save(self, inode: Inode | None, content: Content) -> None:
        if inode is not None:
            self._coherence.push(inode, content)
        with suppress(Conflict):  # another node's is replaced, ours is kept beside it
            await self._mount.cache.publish(content)

    async def _published(
        self, old: str, new: str, seen: ObjectInfo | None, replaced: ObjectInfo | None, *, replace: bool
    ) -> None:
        """Copy, tombstone, delete; from the start when another node publishes under the old name in between.

        `seen` is what was at the old name a moment ago, None: it has to be asked.
        """
        cache, learned = self._mount.cache, self._mount.learned
        created: ObjectInfo | None = None
        buried = False
        cache.note(TOMBSTONES, old, "1")  # before the copy: it is in the journal by the time the tombstone is sent
        try:
            for attempt in range(ATTEMPTS):
                if attempt:
                    # By chance, else two nodes that rename in opposite directions undo each other's copies for ever.
                    await trio.sleep(random.uniform(0, PAUSE_S * 2**attempt))
                learned_only = seen is not None
                source = seen or await self._objects.head(old)
                seen = None
                if source is None or layout.is_tombstone(source):
                    if created is not None:
                        await self._objects.discard(created)  # our copy of a file that somebody else took away
                    raise PosixError(errno.ENOENT, old)
                if layout.link_of(source) is not None:  # its token is this path's: the record has to be told first
                    if created is not None:
                        await self._objects.discard(created)
                    raise Linked(old)
                content = cache.attach(source, content_type=source.content_type or FILE_TYPE)
                try:
                    await cache.publish(content)  # it is clean: waits for a publisher that is just letting go of it
                    made = await self._copy(content, source, new, replaced, replace=replace)
                    if made is None:
                        continue
                    hit(Point.RENAME_AFTER_COPY)
                    copied, over = made
                    created = copied if over.absent or (created is not None and over.etag == created.etag) else None
                    replaced, replace = copied, True
                    if learned_only and await self._copier.is_changed(source):
                        continue  # other attributes with the same bytes, which the tombstone's condition would not see
                    await cache.settle_notes()
                    buried, buried_s = True, trio.current_time()
                    try:
                        tombstone = await self._objects.bury(source)
                    except GONE:
                        buried = False
                        continue
                    # No await between the tombstone and the change of names in memory.
                    if content.state is State.CLEAN:
                        cache.rekey(content, copied)
                    inode = self.renamed(old, new)
                    if inode is not None:
                        self._coherence.adopt(inode, copied, learned.now_s())
                        inode.told = inode.version
                finally:
                    cache.release(content)
                hit(Point.RENAME_AFTER_TOMBSTONE)
                await self._clear(old, tombstone, buried_s)
                hit(Point.RENAME_AFTER_DELETE)
                return
            raise Unavailable(f"{old}: other nodes changed it {ATTEMPTS} times while it was to be renamed")
        finally:
            if not buried:
                cache.note(TOMBSTONES, old, None)

    async def _copy(
        self, content: Content, source: ObjectInfo, new: str, replaced: ObjectInfo | None, *, replace: bool
    ) -> tuple[ObjectInfo, Condition] | None:
        """Copy over whatever is at the new name, which the condition says. None: the source is another by now."""
        over = ANY
        body: Buffer | None = None
        if source.size <= SMALL_BYTES:
            try:
                body = await self._mount.cache.read(content, 0, source.size)
            except GONE:
                return None

        async def copy(condition: Condition) -> ObjectInfo:
            nonlocal over
            over = condition
            try:
                return await self._copier.copy(source, new, condition, body=body)
            except GONE:
                if await self._copier.is_changed(source):
                    raise _Changed(source.key) from None
                raise

        try:
            return await replace_at(self._mount, self._objects, new, replaced, copy, replace=replace), over
        except _Changed:
            return None

    async def _clear(self, old: str, tombstone: ObjectInfo, buried_s: float) -> None:
        """Delete the tombstone. The rename has happened: one that cannot be deleted now stays noted for later."""
        try:
            await self._objects.remove_buried(tombstone, buried_s)
        except S3volError:
            self._mount.health.count("tombstones_left")
            return
        finally:
            self._mount.learned.changed(old)
        self._mount.cache.note(TOMBSTONES, old, None)

    def renamed(self, old: str, new: str) -> Inode | None:
        """Change the names in memory. No await."""
        mount = self._mount
        mount.learned.changed(old)
        mount.learned.changed(new)
        self._removal.unname(mount.inodes.at(new), new)
        inode = mount.inodes.at(old)
        if inode is not None:
            mount.inodes.move(inode, new)
            inode.ctime_ns = mount.now_ns()
        return inode

    async def clear_tombstones(self) -> None:
        """Remove those that an earlier mount of this node, or a failed DELETE, left behind."""
        for key in list(self._mount.cache.notes(TOMBSTONES)):
            async with self._mount.claims.hold(Claim(key)):
                found = await self._objects.head(key)
                if found is not None and layout.is_tombstone(found):
                    await self._objects.reap(found)
                self._mount.cache.note(TOMBSTONES, key, None)
