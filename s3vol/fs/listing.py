"""One page of a directory: from a LIST to rows, with everything learned on the way.

Theory of operation. One LIST brings the attributes of up to a thousand files; each goes into what was learned and
into live inodes. Subdirectories come as bare prefixes. Where the store cannot list metadata, files are asked for
with HEADs side by side, but for those whose ETag and time are as they were a moment ago.

A prefix that nothing is below is no directory. MinIO shows such ones: a PUT over an object can leave a folder on the
server's disk when its client breaks off (docs/minio.md). To look below each prefix would cost a request for each
directory, so it is done for those that were found to be nothing before.

Left out: tombstones, `.s3vol` in the root, keys that are no path (counted, once each), and an object `a` beside keys
`a/...` (counted: the directory is shown, as it is what hides nothing).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace

from s3vol import layout
from s3vol.errors import PosixError
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.handles import Row
from s3vol.fs.inodes import Inode
from s3vol.fs.learned import Ask
from s3vol.fs.objects import Objects
from s3vol.parallel import for_each
from s3vol.types import ObjectInfo

PAGE_ROWS = 1000  # what S3 returns at most
WINDOW_ROWS = 300  # about as many files as are opened while what was learned may be believed
HEADS = 32  # side by side: 1,000 HEADs take 0.27 s on a local MinIO
FOREIGN_MAX = 10_000  # foreign keys remembered, so that each is counted once


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows in key order. `last` is the greatest key that this page covers (None: it covers the rest)."""

    rows: tuple[Row, ...]
    marker: ObjectInfo | None
    ask: Ask
    last: str | None
    cursor: str | None
    buried: frozenset[str] = frozenset()  # keys with a tombstone: no file, and not free either

    def covers(self, path: str) -> bool:
        """True when a page that began at or before `path` says whether `path` (no trailing `/`) is there."""
        return self.last is None or f"{path}/" <= self.last


class Lister:
    """Fetches pages. Concurrent calls are independent."""

    def __init__(self, mount: Mount, objects: Objects, coherence: Coherence) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence

    async def page(self, directory: Inode, cursor: str | None, *, start_after: str | None = None) -> Listing:
        """The page at `cursor` (None: the first, or the first behind a key)."""
        listing = await self._list(_key(directory), cursor=cursor, start_after=start_after, limit=PAGE_ROWS)
        if cursor is None and start_after is None:
            self.note(directory, listing)
        return listing

    async def ahead(self, key: str) -> Listing:
        """The first page of a directory that nobody has asked for yet; `note` is due when somebody does."""
        return await self._list(key, limit=PAGE_ROWS)

    def note(self, directory: Inode, listing: Listing) -> None:
        """Keep in the directory's inode what its first page says of it. No await."""
        directory.listed_s, directory.singles, directory.misses = listing.ask.at_s, 0, 0
        directory.huge, directory.names = listing.cursor is not None, len(listing.rows)
        marker = listing.marker
        if marker is not None and directory is not self._mount.inodes.root and not listing.ask.stale(marker.key):
            self._coherence.adopt_directory(directory, marker, listing.ask.at_s)

    async def window(self, directory: Inode, path: str, *, rows: int = WINDOW_ROWS) -> Listing:
        """The names from `path` on: a page that says whether `path` (no trailing `/`) is there, if it covers it."""
        # S3 lists what comes after a key. One character less is before `path`, and nearly always close to it.
        listing = await self._list(_key(directory), start_after=path[:-1], limit=rows)
        directory.ascending = 0
        return listing

    async def _list(
        self, prefix: str, *, cursor: str | None = None, start_after: str | None = None, limit: int
    ) -> Listing:
        mount = self._mount
        with mount.learned.asking() as ask:
            # What is pending now may be published in the background before the reply is here: memory knows better.
            ask.keys.update(content.key for content in mount.cache.pending())
            page = await mount.store.list(
                prefix, delimiter=True, cursor=cursor, start_after=start_after, limit=limit, metadata=True
            )
            objects, buried = await self._complete(page.objects, prefix)
            empty = await self._nothing_below(page.prefixes)
        folders = set(page.prefixes) - empty
        rows = [self._folder(key, ask) for key in page.prefixes if key not in empty and self._is_shown(key)]
        rows += [
            Row(info.key, info, ask.at_s)
            for info in objects
            if info.key != prefix and self._is_shown(info.key) and not self._is_shadowed(info.key, folders)
        ]
        rows.sort(key=lambda row: row.key)
        marker = next((info for info in objects if info.key == prefix), None)
        self._learn(rows, ask)
        last = max((*(info.key for info in page.objects), *page.prefixes), default=prefix)
        end = None if page.next_cursor is None else last
        return Listing(tuple(rows), marker, ask, end, page.next_cursor, buried)

    async def single(self, key: str) -> Row | None:
        """One name as it is now; None when nothing is there."""
        asked_s = self._mount.learned.now_s()
        info = await self._objects.head(key)
        return None if info is None or layout.is_tombstone(info) else Row(key, info, asked_s)

    async def _nothing_below(self, prefixes: Iterable[str]) -> set[str]:
        """Which of these, among those that were nothing when last seen, are no directories."""
        learned = self._mount.learned
        empty: set[str] = set()

        async def look(key: str) -> None:
            if await self._objects.first_below(key) is None:
                empty.add(key)
            else:
                learned.trust(key[:-1])

        await for_each([key for key in prefixes if learned.seemed_absent(key[:-1])], look, limit=HEADS)
        return empty

    async def _complete(self, objects: tuple[ObjectInfo, ...], prefix: str) -> tuple[list[ObjectInfo], frozenset[str]]:
        """The objects with their metadata, without those that have gone; and the keys of tombstones, left out."""
        found: dict[str, ObjectInfo] = {info.key: info for info in objects if info.metadata is not None}
        bare = [info for info in objects if info.metadata is None and self._is_asked(info.key, prefix)]
        unknown: list[ObjectInfo] = []
        for info in bare:
            fact = self._mount.learned.get(info.key)
            if fact is not None and fact.info is not None and _same(fact.info, info):
                found[info.key] = replace(info, metadata=fact.info.metadata, content_type=fact.info.content_type)
            else:
                unknown.append(info)

        async def ask(info: ObjectInfo) -> None:
            answer = await self._objects.head(info.key)
            if answer is not None:
                found[info.key] = answer

        await for_each(unknown, ask, limit=HEADS)
        buried = frozenset(key for key, info in found.items() if layout.is_tombstone(info))
        return [info for key, info in found.items() if key not in buried], buried

    def _learn(self, rows: list[Row], ask: Ask) -> None:
        """Keep what the page says. No await."""
        mount = self._mount
        for row in rows:
            mount.learned.put(row.key, row.info, ask)
            inode = mount.inodes.at(row.key)
            if row.info is not None and layout.link_of(row.info) is not None:
                continue  # its attributes are its body's
            if inode is not None and row.info is not None and not ask.stale(row.key):
                if self._coherence.kind(row.info) == stat.S_IFMT(inode.mode):
                    self._coherence.adopt(inode, row.info, ask.at_s)
                else:
                    self._coherence.vanish(inode)

    def _folder(self, key: str, ask: Ask) -> Row:
        return Row(key, None, ask.at_s)

    def _is_asked(self, key: str, prefix: str) -> bool:
        return key == prefix or self._is_shown(key)

    def _is_shown(self, key: str) -> bool:
        """False for our own objects and for keys that are no path."""
        if layout.is_reserved(key):
            return False
        if layout.is_path(key):
            return True
        self._count_foreign(key)
        return False

    def _is_shadowed(self, key: str, folders: set[str]) -> bool:
        if f"{key}/" not in folders:
            return False
        self._count_foreign(key)
        return True

    def _count_foreign(self, key: str) -> None:
        foreign = self._mount.foreign
        if key not in foreign and len(foreign) < FOREIGN_MAX:
            foreign.add(key)
            self._mount.health.count("foreign_keys")


def _key(directory: Inode) -> str:
    """PosixError(ESTALE) when it has no name any more."""
    if directory.key is None:
        raise PosixError(errno.ESTALE, directory.was)
    return directory.key


def _same(known: ObjectInfo, listed: ObjectInfo) -> bool:
    """True when a listing without metadata shows the object that a HEAD has shown a moment ago."""
    return (known.etag, known.modified_ns, known.size) == (listed.etag, listed.modified_ns, listed.size)
