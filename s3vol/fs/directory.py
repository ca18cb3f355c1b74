"""opendir, readdir, releasedir: rows in key order with cursors that stay.

Theory of operation. A handle lists page by page, when the reader gets there, and keeps its rows; a row's cursor is its
place among them, so it stays the same while others create and delete. Cursor 0 rewinds: the rows are dropped and
listed anew. Pending local files are merged in by key. Attributes come with the rows for as long as they may
still be believed; a subdirectory's are not in a listing, so its row carries defaults that expire at once.

A row is given out as memory has it by then: a file that was written here meanwhile shows its new size, one
whose directory was changed here meanwhile is not to be believed by the kernel (its times to live are 0).
"""

from __future__ import annotations

import bisect
import stat
from collections.abc import Sequence
from dataclasses import replace
from math import inf

from s3vol import layout
from s3vol.fs import attributes
from s3vol.fs.base import DirEntry, Entry
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.handles import DirHandle, Row
from s3vol.fs.inodes import Inode
from s3vol.fs.links import Links
from s3vol.fs.listing import Lister
from s3vol.fs.lookup import Finder, Found
from s3vol.fs.walkahead import WalkAhead
from s3vol.types import Fh, Ino, ObjectInfo

REPLY_ROWS = 64  # the kernel asks with one page of memory, which 30 rows with attributes fill
FULL_ROWS = 4 * REPLY_ROWS  # behind the cursor rows keep their attributes so far: 1 KB each, of a million rows 1 GB


class Directories:
    """Open directories of one mount. The kernel calls readdir on one handle one at a time."""

    def __init__(
        self, mount: Mount, coherence: Coherence, finder: Finder, lister: Lister, links: Links, ahead: WalkAhead
    ) -> None:
        self._mount = mount
        self._coherence = coherence
        self._finder = finder
        self._lister = lister
        self._links = links
        self._ahead = ahead

    async def open(self, ino: Ino) -> Fh:
        """ENOTDIR, ESTALE."""
        return self._mount.handles.open_directory(self._mount.directory(ino)).fh

    async def close(self, fh: Fh) -> None:
        """Forget the rows."""
        handle = self._mount.handles.directory(fh)
        self._mount.handles.close_directory(handle)
        self._mount.inodes.let_go(handle.inode)

    async def read(self, fh: Fh, cursor: int) -> Sequence[DirEntry]:
        """See FileSystem.readdir."""
        handle = self._mount.handles.directory(fh)
        if handle.inode.key is None:
            return []  # removed while open: POSIX wants it to look empty
        if cursor == 0:
            self._rewind(handle)
        self._follow_rename(handle)
        while len(handle.rows) <= cursor and not handle.complete:
            await self._next_page(handle)
            if handle.inode.key is None:
                return []  # removed meanwhile
            self._follow_rename(handle)
        # No await from here: what is given out agrees with memory.
        rows = handle.rows[cursor : cursor + REPLY_ROWS]
        entries = [self._entry(handle, row, cursor + index + 1) for index, row in enumerate(rows)]
        handle.offered = {entry.entry.attr.ino: row for entry, row in zip(entries, rows, strict=True)}
        self._slim(handle, cursor - FULL_ROWS)
        return entries

    def _slim(self, handle: DirHandle, end: int) -> None:
        """Rows that were given out long ago keep name and type: a seek back to them is possible, and rare."""
        for index in range(handle.slim, end):
            row = handle.rows[index]
            if row.info is not None:
                handle.rows[index] = Row(row.key, None, -inf, self._coherence.kind(row.info), row.stub)
        handle.slim = max(handle.slim, end)

    def remember(self, ino: Ino) -> None:
        """The frontend has given a row to the kernel, which counts as a lookup. PosixError(ESTALE): not ours."""
        offered = self._mount.handles.offered(ino)
        if offered is None:
            inode = self._mount.inodes.get(ino)
        else:
            handle, row = offered
            inode = self._finder.inode(self._found(row, self._asked_s(handle, row)))
            inode.told = inode.version
        self._mount.inodes.remember(inode)

    def _rewind(self, handle: DirHandle) -> None:
        handle.rows.clear()
        handle.slim = 0
        handle.store_cursor, handle.complete, handle.last = None, False, None
        prefix = handle.prefix = handle.inode.key or ""
        pending = (c.key for c in self._mount.cache.pending() if layout.parent_key(c.key) == prefix)
        handle.local = sorted(key for key in pending if not layout.is_reserved(key))

    def _follow_rename(self, handle: DirHandle) -> None:
        """The directory has another name on this node: its rows go along. The store's cursor is one of the old name."""
        old, new = handle.prefix, handle.inode.key
        if new is None or new == old:
            return
        handle.rows = [replace(row, key=new + row.key[len(old) :], asked_s=-inf) for row in handle.rows]
        handle.local = [new + key[len(old) :] for key in handle.local]
        handle.last = None if handle.last is None else new + handle.last[len(old) :]
        handle.prefix, handle.store_cursor = new, None

    async def _next_page(self, handle: DirHandle) -> None:
        prefix, last = handle.prefix, handle.last
        after = last if handle.store_cursor is None else None
        if handle.store_cursor is None and last is None:
            page = await self._ahead.first_page(handle.inode)
        else:
            page = await self._lister.page(handle.inode, handle.store_cursor, start_after=after)
        cut = len(handle.local) if page.last is None else bisect.bisect_right(handle.local, page.last)
        local = handle.local[:cut]
        # A store that is asked for what comes after `a/` shows `a/` again, for the keys below it.
        rows = {row.key: row for row in await self._follow(page.rows) if last is None or row.key > last}
        for key in local:
            if key in rows:
                continue
            if self._mount.cache.dirty(key) is not None:
                rows[key] = self._pending(key)
            elif row := await self._lister.single(key):  # published since, perhaps behind the back of the page
                rows[key] = row
        if handle.inode.key != prefix:
            return  # renamed or removed meanwhile: the page is asked for again, under the new name
        # Not before all of it is here: after an error the same page is asked for again.
        handle.last, handle.local = page.last, handle.local[cut:]
        handle.store_cursor, handle.complete = page.cursor, page.cursor is None
        for key in sorted(rows):
            if not (key.endswith("/") and self._has(handle, key[:-1])):  # `a` may be on one page and `a/` on the next
                handle.rows.append(rows[key])

    async def _follow(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Names of hard links get what is their body's; where that is gone they stay what they are."""
        links = [layout.link_of(row.info) if row.info is not None else None for row in rows]
        if not any(links):
            return rows
        bodies = await self._links.look_all(link.id for link in links if link is not None)
        return [
            Row(row.key, body.info, min(row.asked_s, body.at_s), stub=row.info, count=body.count)
            if link is not None and (body := bodies.get(link.id)) is not None
            else row
            for row, link in zip(rows, links, strict=True)
        ]

    def _has(self, handle: DirHandle, key: str) -> bool:
        at = bisect.bisect_left(handle.rows, key, key=lambda row: row.key)
        return at < len(handle.rows) and handle.rows[at].key == key

    def _pending(self, key: str) -> Row:
        content = self._mount.cache.dirty(key)
        size, metadata = (content.size, content.metadata) if content is not None else (0, {})
        return Row(key, ObjectInfo(key, size, "", 0, metadata), -inf)

    def _entry(self, handle: DirHandle, row: Row, cursor: int) -> DirEntry:
        return DirEntry(row.name.encode(), self._attributes(handle, row), cursor)

    def _attributes(self, handle: DirHandle, row: Row) -> Entry:
        """As memory has it: pending content, a live inode, or the row. No await."""
        mount, learned = self._mount, self._mount.learned
        asked_s = self._asked_s(handle, row)
        named_ttl_s = learned.left_s(asked_s)
        found = self._found(row, asked_s)
        inode = mount.inodes.at(found.key)
        if inode is not None and self._coherence.settled(inode):
            entry = self._coherence.shown(inode)
            return Entry(entry.attr, entry.attr_ttl_s, named_ttl_s)
        if row.info is None or found.is_dir:
            posix = attributes.default_directory(mount.owner, mount.started_ns)
            if row.kind:
                posix = replace(posix, mode=row.kind)
            size, ttl_s = 0, 0.0
        else:
            content = found.content if row.stub is not None else None
            info = replace(row.info, size=content.size, metadata=content.metadata) if content is not None else row.info
            posix = layout.decode_attr(info, mount.owner, is_dir=False)
            size, ttl_s = info.size, named_ttl_s
        ino = mount.inodes.number(found.key, posix.mode)
        shown = Inode(ino, found.key, stat.S_IFMT(posix.mode), size=size)
        shown.set_posix(posix)
        if found.count is not None:
            self._coherence.adopt_count(shown, found.count)
        return Entry(shown.attr(), ttl_s, named_ttl_s)

    def _asked_s(self, handle: DirHandle, row: Row) -> float:
        """From when the row may be believed; not at all when this node changed the directory since."""
        return -inf if handle.inode.changed_s >= row.asked_s else row.asked_s

    def _found(self, row: Row, asked_s: float) -> Found:
        """What is at this row's name by now."""
        path = row.key.removesuffix("/")
        content = self._mount.cache.dirty(path)
        if content is not None:
            return Found(path, False, asked_s, content=content)
        found = Found(
            path, row.is_dir, asked_s, row.info, None, not row.is_dir, row.kind, stub=row.stub, count=row.count
        )
        link = found.link
        return found if link is None else replace(found, content=self._mount.cache.dirty(link.key))
