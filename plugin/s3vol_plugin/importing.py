"""Copying a directory of this machine (a local volume, an NFS export) into a volume: once, again, and verified.

Theory of operation. The copy goes straight to the store, in the format of the bucket (`s3vol.layout`), not through a
mount. A mount would write the same objects with the same headers, so nothing is lost by it, and much is saved: no
second copy of everything in the local cache, no FUSE, one request a small file, and every file's MD5 is known when its
ETag comes back. Changes are conditional like a mount's own, so an import beside running containers overwrites nothing
that it has not seen.

A file is read between two looks at its size and times; one that changed meanwhile is read again, and given up after
_TRIES. What was copied is verified at the end: listed again, and each ETag compared with the MD5 of what was read here.
Where a store's ETag is no MD5, and with `reread`, the objects are read back and compared with the files.

Errors of one entry (it cannot be read, its name cannot be a key, its attributes are too large) are collected. An error
of the store ends the import: it is of all entries. What is done stays done, and the next run goes on from there.

Rejected: `s3vol mount` and cp (writes everything to the local disk first, and verifies nothing), and hard links as
links (other names of an inode may lie outside of the source; each name becomes a file of its own, and that is said).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from s3vol import layout
from s3vol.errors import NotFound, PreconditionFailed, Rejected, S3volError
from s3vol.store import rules
from s3vol.store.base import ABSENT, ANY, DIRECTORY_TYPE, FILE_TYPE, Condition, Part, Store, matches
from s3vol.store.edge import first_error
from s3vol.store.limit import ByteBudget
from s3vol.types import MIB, NONCE, ObjectInfo
from s3vol_plugin.import_plan import MARK, Action, Item, Scanned, again, clashes, decide, scan

SINGLE_MAX_BYTES = 8 * MIB
"""Files up to this are one PUT, larger ones are uploaded in parts of at least this."""

_AT_A_TIME = 16  # entries under way; for small files the round trip is what counts
_MEMORY_BYTES = 128 * MIB  # bodies under way, as a mount has by default
_PARTS = 9000  # a file that grows a little while it is read still fits into S3's 10,000
_TRIES = 3
_PAGE_KEYS = 1000


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

    @property
    def complete(self) -> bool:
        """True when the volume holds what the directory holds."""
        return not self.kept and not self.problems


class _Entry(Exception):
    """An error of one entry; the import goes on."""


class _Changed(Exception):
    """The file changed while it was read."""


class Import:
    """One run: a directory into the store of a volume. Used once."""

    def __init__(
        self,
        store: Store,
        root: str,
        *,
        overwrite: bool = False,
        reread: bool = False,
        on_progress: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._root = os.fsencode(root)
        self._overwrite = overwrite
        self._reread = reread or not store.capabilities.etag_is_md5
        self._on_progress = on_progress
        self._remote: dict[str, ObjectInfo] = {}
        self._taken: dict[str, tuple[Item, str]] = {}  # what the volume holds after this run: the item and its ETag
        self._memory = ByteBudget(_MEMORY_BYTES)

    async def run(self) -> Report:
        """Scan, copy, verify. Raises OSError for a directory that cannot be read, and what the store raises."""
        scanned = await trio.to_thread.run_sync(scan, self._root)
        report = Report(scanned, problems=list(scanned.problems))
        self._remote = await self._list(metadata=True)
        for item, key in clashes(scanned.items, self._remote):
            report.problems.append(f"{item.key}: the volume has {key} there; remove or rename one of them")
        clashing = {item.key for item, _ in clashes(scanned.items, self._remote)}
        todo = [item for item in scanned.items if item.key not in clashing]
        await self._each(todo, lambda item: self._take(report, item))
        await self._verify(report)
        return report

    async def _list(self, *, metadata: bool) -> dict[str, ObjectInfo]:
        """All objects of the volume, s3vol's own but the root's attributes aside."""
        found: dict[str, ObjectInfo] = {}
        cursor: str | None = None
        while True:
            page = await self._store.list("", delimiter=False, cursor=cursor, limit=_PAGE_KEYS, metadata=metadata)
            for info in page.objects:
                if not layout.is_reserved(info.key) or info.key == layout.ROOT_ATTRIBUTES:
                    found[info.key] = info
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def _each(self, items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
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

    # -- copying

    async def _take(self, report: Report, item: Item) -> None:
        """Decide on one item and do it; an error of the entry becomes a line of the report."""
        try:
            await self._settle(report, item)
        except (_Entry, Rejected) as error:  # Rejected: the store refuses this key, size or metadata
            report.problems.append(f"{item.key}: {error}")
        report.entries_done += 1
        self._on_progress(report)

    async def _settle(self, report: Report, item: Item) -> None:
        info = self._remote.get(item.key)
        if info is not None and info.metadata is None:
            info = await self._head(item.key)
        for _ in range(_TRIES):
            action = decide(item, info, overwrite=self._overwrite)
            if action is Action.SAME:
                assert info is not None, "what is not there is not the same"
                self._taken[item.key] = item, info.etag
                report.same += 1
                report.bytes_done += item.size_bytes
                return
            if action is Action.KEEP and item.key == layout.ROOT_ATTRIBUTES:
                report.same += 1  # whose volume it is has been decided there
                return
            if action is Action.KEEP:
                report.kept.append(item.key)
                report.bytes_done += item.size_bytes
                return
            if action is Action.CREATE or action is Action.REPLACE:
                try:
                    item, etag = await self._copy(report, item, info)
                except (PreconditionFailed, NotFound):
                    info = await self._head(item.key)
                    continue
                self._taken[item.key] = item, etag
                (report.copied if action is Action.CREATE else report.replaced).append(item.key)
                report.bytes_copied += item.size_bytes
                return
            info = await self._head(item.key)
        raise _Entry("is being changed in the volume again and again; run the import again")

    async def _head(self, key: str) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    async def _copy(self, report: Report, item: Item, info: ObjectInfo | None) -> tuple[Item, str]:
        """Write the object, on the condition that it still is `info`; returns the item as it was read, and the ETag."""
        condition = ABSENT if info is None else matches(info.etag)
        if item.is_file:
            for _ in range(_TRIES):
                try:
                    return item, await self._copy_file(report, item, _marked(item), condition)
                except _Changed:
                    item = await self._again(item)
            raise _Entry("changes while it is being read; run the import again when it is at rest")
        content_type = DIRECTORY_TYPE if stat.S_ISDIR(item.stat.st_mode) else FILE_TYPE
        etag = await self._put(item.key, item.target, _marked(item), content_type, condition)
        report.bytes_done += item.size_bytes
        return item, etag

    async def _again(self, item: Item) -> Item:
        """The item as it is now. Raises _Entry when it is no file any more."""
        try:
            return await trio.to_thread.run_sync(again, self._root, item)
        except (OSError, S3volError) as error:
            raise _Entry(getattr(error, "strerror", None) or str(error)) from None

    async def _put(self, key: str, body: bytes, meta: dict[str, str], content_type: str, condition: Condition) -> str:
        try:
            return await self._store.put(key, body, metadata=meta, content_type=content_type, condition=condition)
        except PreconditionFailed:
            return await self._own(key, meta)

    async def _own(self, key: str, meta: dict[str, str]) -> str:
        """The ETag of our write whose reply was lost. Raises PreconditionFailed when it was another's."""
        info = await self._head(key)
        if info is None or info.version.nonce != meta[NONCE]:
            raise PreconditionFailed(f"{key}: was written by somebody else")
        return info.etag

    async def _copy_file(self, report: Report, item: Item, meta: dict[str, str], condition: Condition) -> str:
        file = await trio.to_thread.run_sync(_open, self._path(item), item)
        try:
            if item.size_bytes <= SINGLE_MAX_BYTES:
                async with self._memory.claim(item.size_bytes):
                    body = await trio.to_thread.run_sync(_read, file, 0, item.size_bytes)
                    await trio.to_thread.run_sync(_check_unchanged, file, item)
                    etag = await self._put(item.key, body, meta, FILE_TYPE, condition)
                    self._check(item, etag, rules.md5_etag(body))
                report.bytes_done += item.size_bytes
                return etag
            return await self._upload(report, item, file, meta, condition)
        finally:
            os.close(file)

    async def _upload(self, report: Report, item: Item, file: int, meta: dict[str, str], condition: Condition) -> str:
        """A large file, part by part; nothing is visible, and nothing is left behind, unless all went well."""
        key, store = item.key, self._store
        part_bytes = part_size(item.size_bytes, store.capabilities.min_part_bytes)
        upload_id = await store.create_upload(key, metadata=meta)
        done_bytes = 0
        try:
            parts: list[Part] = []
            for number, start in enumerate(range(0, item.size_bytes, part_bytes), start=1):
                wanted = min(part_bytes, item.size_bytes - start)
                async with self._memory.claim(wanted):
                    body = await trio.to_thread.run_sync(_read, file, start, wanted)
                    part = await store.upload_part(key, upload_id, number, body)
                    self._check(item, part.etag, rules.md5_etag(body))
                parts.append(part)
                done_bytes += wanted
                report.bytes_done += wanted
                self._on_progress(report)
            await trio.to_thread.run_sync(_check_unchanged, file, item)
            return await self._complete(key, upload_id, parts, meta, condition)
        except BaseException:
            report.bytes_done -= done_bytes
            with trio.CancelScope(shield=True), trio.move_on_after(10.0):
                await store.abort_upload(key, upload_id)
            raise

    async def _complete(
        self, key: str, upload_id: str, parts: Sequence[Part], meta: dict[str, str], condition: Condition
    ) -> str:
        if not self._store.capabilities.conditional_complete:
            await self._check_condition(key, condition)
            condition = ANY
        try:
            etag = await self._store.complete_upload(key, upload_id, parts, condition=condition)
        except (PreconditionFailed, NotFound):
            return await self._own(key, meta)
        if self._store.capabilities.etag_is_md5:
            expected = rules.multipart_etag(part.etag for part in parts)
            if etag != expected:
                raise _Entry(f"the store made ETag {etag} of it, and not {expected}; run the import again")
        return etag

    async def _check_condition(self, key: str, condition: Condition) -> None:
        """The best that can be done where a completion takes no condition: a look right before it."""
        info = await self._head(key)
        rules.decide(key, condition, None if info is None else info.etag)

    def _check(self, item: Item, etag: str, expected: str) -> None:
        if self._store.capabilities.etag_is_md5 and etag != expected:
            raise _Entry(f"the store says ETag {etag} for what has {expected}; run the import again")

    def _path(self, item: Item) -> bytes:
        return os.path.join(self._root, item.path)

    # -- verifying

    async def _verify(self, report: Report) -> None:
        """What is in the volume now is what was read here."""
        found = await self._list(metadata=False)

        async def check(item: Item) -> None:
            expected = self._taken[item.key][1]
            info = found.get(item.key)
            if info is None or info.etag != expected or info.size != item.size_bytes:
                report.problems.append(f"{item.key}: was changed in the volume while the import ran")
                return
            try:
                if self._reread and item.is_file:
                    await self._compare(item, info)
            except (PreconditionFailed, NotFound):
                report.problems.append(f"{item.key}: was changed in the volume while the import ran")
            except (_Entry, _Changed) as error:
                report.problems.append(f"{item.key}: {error}")
            else:
                report.verified += 1

        await self._each([item for item, _ in self._taken.values()], check)

    async def _compare(self, item: Item, info: ObjectInfo) -> None:
        """Read an object back and compare it with its file. Raises _Entry when they differ."""
        file = await trio.to_thread.run_sync(_open, self._path(item), item)
        try:
            for start in range(0, item.size_bytes, SINGLE_MAX_BYTES):
                wanted = min(SINGLE_MAX_BYTES, item.size_bytes - start)
                async with self._memory.claim(2 * wanted):
                    theirs = await self._store.get(item.key, start, wanted, if_match=info.etag)
                    ours = await trio.to_thread.run_sync(_read, file, start, wanted)
                    if hashlib.sha256(ours).digest() != hashlib.sha256(theirs).digest():
                        raise _Entry(f"differs from the file, between byte {start} and {start + wanted}")
        finally:
            os.close(file)


def _marked(item: Item) -> dict[str, str]:
    return {**item.metadata, NONCE: f"{MARK}{secrets.token_hex(8)}"}


def part_size(size_bytes: int, min_bytes: int) -> int:
    """Bytes of a part: whole MiB, so that all parts of a file of this size fit into an upload."""
    needed = -(-size_bytes // _PARTS)
    return max(SINGLE_MAX_BYTES, min_bytes, -(-needed // MIB) * MIB)


def _open(path: bytes, item: Item) -> int:
    """Open a file of the source for reading. Raises _Entry; _Changed when it is not the one that was scanned."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags)
    except OSError as error:
        raise _Entry(error.strerror) from None
    try:
        _check_unchanged(file, item)
    except BaseException:
        os.close(file)
        raise
    return file


def _read(file: int, start: int, wanted: int) -> bytes:
    """Exactly so many bytes. Raises _Changed when there are fewer."""
    pieces = []
    while wanted:
        try:
            piece = os.pread(file, wanted, start)
        except OSError as error:
            raise _Entry(f"cannot be read: {error.strerror}") from None
        if not piece:
            raise _Changed("was cut while it was being read")
        pieces.append(piece)
        start += len(piece)
        wanted -= len(piece)
    return b"".join(pieces)


def _check_unchanged(file: int, item: Item) -> None:
    now = os.fstat(file)
    then = item.stat
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (then.st_ino, then.st_size, then.st_mtime_ns):
        raise _Changed("changed since the directory was read")
