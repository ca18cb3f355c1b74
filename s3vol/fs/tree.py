"""rename(2) of a directory: an intent, copies, then the old names go.

Theory of operation. An object store has no directories, so every object below the old name is moved, with the protocol
of a file's rename: copy under a condition, tombstone If-Match, delete. The intent is written first and removed last,
and each step can be repeated: the nonce of a copy is made of the intent and the source's version, so a second run
knows which copies are there. First all copies are made, then the old names go; files that others create below the old
name meanwhile are moved in further rounds. A file that somebody has put under a new name meanwhile is not overwritten:
ours gets a conflict name beside it.

A rename that fails after its intent was written (EIO) is not undone: it is finished later, here or elsewhere.

The caller claims both trees alone. Whoever moves objects renews the intent, so that nobody else takes it for left
behind.
"""

from __future__ import annotations

import errno
import secrets
import time
from contextlib import suppress
from hashlib import blake2b

import trio

from s3vol import layout
from s3vol.cache.base import Content, State
from s3vol.errors import Conflict, NameTooLong, PosixError, PreconditionFailed, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.fs import attributes
from s3vol.fs.claims import Claim
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE, Copier
from s3vol.fs.intents import BEAT_S, Intent, Intents
from s3vol.fs.links import Links
from s3vol.fs.objects import Objects
from s3vol.fs.removal import Removal
from s3vol.parallel import alongside, for_each
from s3vol.store import rules
from s3vol.store.base import ABSENT, ANY, DIRECTORY_TYPE, Condition, matches
from s3vol.types import ObjectInfo

PARALLEL = 16
ROUNDS = 10  # others may go on creating below the old name: what is there then stays, in a directory of that name
ATTEMPTS = 10


class TreeRename:
    """Moves directories, and finishes moves that were left behind."""

    def __init__(self, mount: Mount, objects: Objects, coherence: Coherence, removal: Removal, links: Links) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence
        self._removal = removal
        self._links = links
        self._copier = Copier(mount, objects)
        self._intents = Intents(mount.store, mount.cache)
        self._running: set[str] = set()
        self._copies: dict[str, set[str]] = {}  # by intent: those made here whose source is still there

    async def rename(self, old: str, new: str) -> None:
        """Move everything below `old`. The caller holds both trees and has seen that `new` is empty or absent.

        NameTooLong, with nothing done, when a key would be: a move that was begun must be possible to finish.
        """
        await self._check_length(old, new)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._mount.now_ns() / 1e9))
        await self._run(Intent(secrets.token_hex(8), self._mount.settings.node, old, new, at))

    async def _check_length(self, old: str, new: str) -> None:
        mount = self._mount
        rules.check_key(new, mount.store.capabilities)
        grows_bytes = len(new.encode()) - len(old.encode())
        if grows_bytes <= 0:
            return
        room_bytes = mount.store.capabilities.max_key_bytes - grows_bytes
        keys = [content.key for content in mount.cache.pending() if content.key.startswith(old)]
        cursor: str | None = None
        while True:
            page = await mount.store.list(old, delimiter=False, cursor=cursor, metadata=False)
            for key in [*keys, *(info.key for info in page.objects)]:
                if len(key.encode(errors="surrogateescape")) > room_bytes:
                    raise NameTooLong(f"{key}: would be more than {room_bytes + grows_bytes} bytes below {new}")
            cursor = page.next_cursor
            if cursor is None:
                return

    async def finish_left_behind(self) -> int:
        """Finish our own unfinished moves, and those of others that nobody works at. Returns how many."""
        left = await self._intents.left_behind(self._mount.now_ns())
        left = [intent for intent in left if intent.id not in self._running]
        for intent in left:
            source, target = Claim(intent.source[:-1], tree=True), Claim(intent.target[:-1], tree=True)
            async with self._mount.claims.hold(source, target):
                await self._run(intent)
        return len(left)

    async def _run(self, intent: Intent) -> None:
        async def beat() -> None:
            while True:
                await trio.sleep(BEAT_S)
                await self._intents.write(intent)

        self._running.add(intent.id)
        try:
            await self._publish_below(intent)
            await self._intents.write(intent)
            hit(Point.RENAME_DIR_AFTER_INTENT)
            await alongside(lambda: self._move(intent), beat)
            hit(Point.RENAME_DIR_AFTER_MOVES)
            await self._intents.remove(intent)
            self._copies.pop(intent.id, None)
        finally:
            self._running.discard(intent.id)
            for prefix in (intent.source, intent.target):
                self._mount.learned.changed_below(prefix)
            self._mount.learned.suspect(intent.source[:-1])

    async def _move(self, intent: Intent) -> None:
        await self._pending(intent)
        await self._top_marker(intent)
        for _ in range(ROUNDS):
            sources = await self._sources(intent.source)
            if not sources:
                break
            await self._round(intent, sources)
        self._names(intent)

    async def _publish_below(self, intent: Intent) -> None:
        """Changes of published files go with the objects. A conflict ends the rename here, before anything moved."""
        cache, inodes = self._mount.cache, self._mount.inodes
        for inode in inodes.below(intent.source):
            for content in self._mount.handles.contents_of(inode):
                if content.state is State.CLEAN:
                    await cache.publish(content)  # waits for a publisher that is just letting go of it
        for content in [c for c in cache.pending() if c.key.startswith(intent.source)]:
            found = inodes.at(content.key)
            if found is not None:
                self._coherence.push(found, content)
            if content.base is not None:
                await cache.publish(content)

    async def _pending(self, intent: Intent) -> None:
        """Files that were never published are moved in the cache."""
        cache, inodes = self._mount.cache, self._mount.inodes
        for content in [c for c in cache.pending() if c.key.startswith(intent.source)]:
            inode = inodes.at(content.key)
            old, new = content.key, self._mount.check_key(intent.target + content.key[len(intent.source) :])
            there = cache.dirty(new)
            if there is not None:  # written since the rename failed: it keeps the name, ours gets one beside it
                with suppress(Conflict):
                    await cache.publish(there)
            elif content.base is None:
                await self._move_pending(content, new)
            if content.key == old:
                await cache.publish(content)  # as an object it is moved with the others
            elif inode is not None:
                self._removal.unname(inodes.at(new), new)
                inodes.move(inode, new)
            self._mount.learned.changed(old)

    async def _move_pending(self, content: Content, new: str) -> None:
        """Rename what was never published; nothing happens when a publish at work has just succeeded."""
        try:
            await self._mount.cache.move(content, new, None)
        except PreconditionFailed:
            return

    async def _top_marker(self, intent: Intent) -> None:
        """The directory exists under its new name before anything is in it, with the attributes it had."""
        marker = await self._objects.head(intent.source)
        if marker is not None and marker.size:
            await self._copy_marker(marker, intent.target)
            return
        if marker is None:
            if await self._objects.head(intent.target) is not None:
                return
            default = attributes.default_directory(self._mount.owner, self._mount.started_ns)
            metadata = layout.encode_attr(default, {})
        else:
            metadata = self._copier.metadata(marker)
        await self._objects.put(intent.target, b"", metadata, content_type=DIRECTORY_TYPE)

    async def _copy_marker(self, marker: ObjectInfo, target: str) -> None:
        """With the bytes that another tool may have put into it; nothing happens when it has gone."""
        for _ in range(ATTEMPTS):
            try:
                await self._copier.copy(marker, target, ANY)
            except GONE:
                now = await self._objects.head(marker.key)
                if now is None:
                    return
                marker = now
            else:
                return
        raise Unavailable(f"{marker.key}: others changed it {ATTEMPTS} times while it was renamed")

    async def _sources(self, prefix: str) -> list[ObjectInfo]:
        """All objects below `prefix`; tombstones that were left there are removed."""
        found: list[ObjectInfo] = []
        cursor: str | None = None
        while True:
            page = await self._mount.store.list(prefix, delimiter=False, cursor=cursor, metadata=True)
            for listed in page.objects:
                info = await self._objects.known(listed)
                if info is not None and layout.is_tombstone(info):
                    await self._objects.reap(info)
                elif info is not None:
                    found.append(info)
            if page.next_cursor is None:
                return found
            cursor = page.next_cursor

    async def _round(self, intent: Intent, sources: list[ObjectInfo]) -> None:
        """Copies first, then the old names, markers last and the deepest first."""
        markers = [info for info in sources if info.key.endswith("/")]
        files = [info for info in sources if not info.key.endswith("/")]
        copies: dict[str, tuple[ObjectInfo, ObjectInfo]] = {}

        async def copy_marker(info: ObjectInfo) -> None:
            if info.key != intent.source:
                await self._copy_marker(info, self._target(intent, info))

        async def copy_file(info: ObjectInfo) -> None:
            pair = await self._copy(intent, info)
            if pair is not None:
                copies[info.key] = pair
            hit(Point.RENAME_DIR_AFTER_COPY)

        async def take_away(pair: tuple[ObjectInfo, ObjectInfo]) -> None:
            await self._take_away(intent, *pair)

        await for_each(markers, copy_marker, limit=PARALLEL)
        await for_each(files, copy_file, limit=PARALLEL)
        hit(Point.RENAME_DIR_AFTER_COPIES)
        await for_each(list(copies.values()), take_away, limit=PARALLEL)
        for marker in sorted(markers, key=lambda info: info.key, reverse=True):
            await self._mount.store.delete(marker.key)

    def _target(self, intent: Intent, info: ObjectInfo) -> str:
        return self._mount.check_key(intent.target + info.key[len(intent.source) :])

    async def _copy(self, intent: Intent, source: ObjectInfo) -> tuple[ObjectInfo, ObjectInfo] | None:
        """The version that was copied and its copy; None when the source has gone."""
        target, condition = self._target(intent, source), ABSENT
        for _ in range(ATTEMPTS):
            nonce = f"{intent.id}.{_digest(source)}"
            try:
                link = await self._renamed_link(intent, source, target)
                if link is not None:
                    body, metadata = layout.stub(link)
                    copied = await self._objects.put(target, body, metadata, condition=condition, nonce=nonce)
                else:
                    copied = await self._copier.copy(source, target, condition, nonce=nonce)
                self._copies.setdefault(intent.id, set()).add(copied.key)
                return source, copied
            except GONE:
                now = await self._objects.head(source.key)
                if now is None or layout.is_tombstone(now):
                    return None
                source = now
                target, condition = await self._way(intent, source, target)
        raise Unavailable(f"{source.key}: other nodes changed it {ATTEMPTS} times while its directory was renamed")

    async def _renamed_link(self, intent: Intent, source: ObjectInfo, target: str) -> layout.Link | None:
        """What the stub at the new name says, when the source is one of a link that has a record.

        The token is made of the intent, so that whoever repeats the move makes the same name.
        """
        link = layout.link_of(source)
        if link is None:
            return None
        made = layout.Link(link.id, blake2b(f"{intent.id} {link.token}".encode(), digest_size=8).hexdigest())
        try:
            known = await self._links.begin(link.id, {made.token: target}, {link.token: source.key})
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            known = False  # its last name is just being removed
        return made if known else None

    async def _way(self, intent: Intent, source: ObjectInfo, target: str) -> tuple[str, Condition]:
        """Where to copy to when something may be at the target: over our own older copy, beside anything else.

        After a crash the copy of another version may be the file itself: it was moved, and `source` is one that was
        made under the old name since. Nothing tells the two apart, so that is not overwritten either.
        """
        found = await self._objects.head(target)
        if found is None:
            return target, ABSENT
        ours = found.version.nonce.startswith(f"{intent.id}.") and target in self._copies.get(intent.id, ())
        if ours or found.version.nonce == f"{intent.id}.{_digest(source)}":
            return target, matches(found.etag)
        if layout.is_tombstone(found):
            try:
                await self._objects.await_absent(target)
                return target, ABSENT
            except PosixError as error:
                if error.errno != errno.EEXIST:
                    raise
        self._mount.health.count("rename_conflicts")
        at_s, room_bytes = self._mount.now_ns() / 1e9, self._mount.store.capabilities.max_key_bytes
        return layout.conflict_key(target, self._mount.settings.node, at_s, room_bytes), ABSENT

    async def _take_away(self, intent: Intent, source: ObjectInfo, copied: ObjectInfo) -> None:
        """Tombstone and delete the old name; copied again first if somebody published there in between."""
        for _ in range(ATTEMPTS):
            buried_s = trio.current_time()
            try:
                tombstone = await self._objects.bury(source)
            except GONE:
                now = await self._objects.head(source.key)
                if now is None or layout.is_tombstone(now):
                    return  # somebody else took it away; the copy stays, it is what was below the directory
                again = await self._copy(intent, now)
                if again is None:
                    return
                source, copied = again
                continue
            self._copies[intent.id].discard(copied.key)
            self._moved(source, copied)  # no await since the tombstone is there
            hit(Point.RENAME_DIR_AFTER_TOMBSTONE)
            await self._objects.remove_buried(tombstone, buried_s)
            link, made = layout.link_of(source), layout.link_of(copied)
            if link is not None and made is not None and made != link:
                await self._links.settle(link.id, (made.token,), (link.token,))
            return
        raise Unavailable(f"{source.key}: other nodes changed it {ATTEMPTS} times while its directory was renamed")

    def _moved(self, source: ObjectInfo, copied: ObjectInfo) -> None:
        """One file has its new name: open handles go with it. No await."""
        mount = self._mount
        mount.learned.changed(source.key)
        mount.learned.changed(copied.key)
        link = layout.link_of(source)
        if link is not None:
            self._coherence.relocate(source.key, link.id)
        inode = mount.inodes.at(source.key)
        if inode is None:
            return
        for content in mount.handles.contents_of(inode):
            if content.state is State.CLEAN and content.base == source.version:
                mount.cache.rekey(content, copied)
        self._removal.unname(mount.inodes.at(copied.key), copied.key)
        mount.inodes.move(inode, copied.key)
        self._coherence.adopt(inode, copied, mount.learned.now_s())

    def _names(self, intent: Intent) -> None:
        """Directories, and numbers of what the kernel does not hold, go to their new names. No await."""
        inodes = self._mount.inodes
        for inode in list(inodes.below(intent.source)):
            assert inode.key is not None, "an inode below a prefix has a key"
            new = intent.target + inode.key[len(intent.source) :]
            self._removal.unname(inodes.at(new), new)
        inodes.move_below(intent.source, intent.target)
        for inode in inodes.all():
            if inode.name.startswith(intent.source):
                inode.name = intent.target + inode.name[len(intent.source) :]
        top = inodes.at(intent.target)
        if top is not None:
            top.ctime_ns = self._mount.now_ns()


def _digest(info: ObjectInfo) -> str:
    version = info.version
    return blake2b(f"{version.etag} {version.nonce}".encode(), digest_size=8).hexdigest()
