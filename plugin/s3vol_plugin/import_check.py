"""The end of an import: what it did, and whether the volume holds what was read from the directory.

Theory of operation. The volume is listed again, and the ETag of each object compared with the one that it got when its
checksum was compared with the file's. A file that became a link since then is looked at by itself: its body is a copy
that the store has made, and says of which ETag; each further name has to lead to the same body. Where nothing says so,
where an ETag is no checksum, and with `reread`, the content is read back and compared with the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from s3vol import layout
from s3vol.errors import NotFound, PreconditionFailed
from s3vol.store.base import Store
from s3vol.store.edge import first_error
from s3vol.store.limit import ByteBudget
from s3vol.types import MIB, ObjectInfo
from s3vol_plugin.import_plan import Item, Scanned, is_body
from s3vol_plugin.import_source import Changed, EntryError, open_file, read

_AT_A_TIME = 16  # entries under way; for small files the round trip is what counts
_READ_BYTES = 8 * MIB
_PAGE_KEYS = 1000
_MEANWHILE = "was changed in the volume while the import ran"

Work = TypeVar("Work")


@dataclass(slots=True)
class Report:
    """What an import did. Keys and problems are lines for people; sizes in bytes."""

    scanned: Scanned
    copied: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    same: int = 0
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verified: int = 0
    entries_done: int = 0
    bytes_done: int = 0
    bytes_copied: int = 0
    linked: list[str] = field(default_factory=list)
    apart: int = 0  # names of files with several that became, or are, files of their own
    no_links: str = ""  # why, when no link could be made

    @property
    def complete(self) -> bool:
        """True when the volume holds what the directory holds."""
        return not self.kept and not self.problems


@dataclass(frozen=True, slots=True)
class Taken:
    """What the volume holds of an item: the object with its content, and that one's ETag."""

    item: Item
    key: str
    etag: str


class Verification:
    """The last look at the volume. What is wrong becomes a problem of the report."""

    def __init__(self, store: Store, root: bytes, memory: ByteBudget, report: Report, *, reread: bool) -> None:
        self._store = store
        self._root = root
        self._memory = memory
        self._report = report
        self._reread = reread

    async def run(self, taken: Mapping[str, Taken], linked: Mapping[str, Sequence[Item]]) -> None:
        """`taken` by the item's key; `linked`: by the key of a first name, those that were linked to it just now."""
        found = await list_objects(self._store, metadata=False)

        async def check(one: Taken) -> None:
            info = found.get(one.key)
            intact = info is not None and info.etag == one.etag
            await self._check(one, info if intact else None, content=self._reread)

        await each([one for key, one in taken.items() if key not in linked], check)
        await each(linked, lambda first: self._check_link(taken[first], linked[first]))

    async def _check_link(self, taken: Taken, others: Sequence[Item]) -> None:
        """The first name became a link after it was copied: its body is a copy, made by the store."""
        info = await look(self._store, taken.item.key)
        link = None if info is None else layout.link_of(info)
        body = info if link is None else await look(self._store, link.key)
        sure = None if body is None else is_body(taken.etag, body)
        await self._check(taken, None if sure is False else body, content=self._reread or not sure)
        for item in others:
            found = await self._link_at(item.key)
            if link is None or found is None or found.id != link.id:
                self._report.problems.append(f"{item.key}: {_MEANWHILE}")
            else:
                self._report.verified += 1

    async def _link_at(self, key: str) -> layout.Link | None:
        info = await look(self._store, key)
        return None if info is None else layout.link_of(info)

    async def _check(self, taken: Taken, info: ObjectInfo | None, *, content: bool) -> None:
        """`info`: the object with the content, None when it is another by now; `content`: read it."""
        item, problems = taken.item, self._report.problems
        if info is None or info.size != item.size_bytes:
            problems.append(f"{item.key}: {_MEANWHILE}")
            return
        try:
            if content and item.is_file:
                await self._compare(item, info)
        except (PreconditionFailed, NotFound):
            problems.append(f"{item.key}: {_MEANWHILE}")
        except (EntryError, Changed) as error:
            problems.append(f"{item.key}: {error}")
        else:
            self._report.verified += 1

    async def _compare(self, item: Item, info: ObjectInfo) -> None:
        """Read an object back and compare it with its file. Raises EntryError when they differ."""
        file = await trio.to_thread.run_sync(open_file, os.path.join(self._root, item.path), item)
        try:
            for start in range(0, item.size_bytes, _READ_BYTES):
                wanted = min(_READ_BYTES, item.size_bytes - start)
                async with self._memory.claim(2 * wanted):
                    theirs = await self._store.get(info.key, start, wanted, if_match=info.etag)
                    ours = await trio.to_thread.run_sync(read, file, start, wanted)
                    if hashlib.sha256(ours).digest() != hashlib.sha256(theirs).digest():
                        raise EntryError(f"differs from the file, between byte {start} and {start + wanted}")
        finally:
            os.close(file)


async def list_objects(store: Store, *, metadata: bool) -> dict[str, ObjectInfo]:
    """All objects of a volume; of s3vol's own only the root's attributes and the bodies of links."""
    found: dict[str, ObjectInfo] = {}
    cursor: str | None = None
    while True:
        page = await store.list("", delimiter=False, cursor=cursor, limit=_PAGE_KEYS, metadata=metadata)
        for info in page.objects:
            ours = layout.is_reserved(info.key) and layout.body_id(info.key) is None
            if not ours or info.key == layout.ROOT_ATTRIBUTES:
                found[info.key] = info
        cursor = page.next_cursor
        if cursor is None:
            return found


async def look(store: Store, key: str) -> ObjectInfo | None:
    """The object as it is now; None when there is none."""
    try:
        return await store.head(key)
    except NotFound:
        return None


async def each(items: Iterable[Work], work: Callable[[Work], Awaitable[None]]) -> None:
    """Run `work` on each item, some at a time. Raises the first error of the store."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_A_TIME):
                nursery.start_soon(worker)
    except ExceptionGroup as group:
        raise first_error(group) from None
