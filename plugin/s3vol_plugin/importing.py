"""Copying a directory of this machine (a local volume, an NFS export) into a volume: once, again, and verified.

Theory of operation. The copy goes straight to the store, in the format of the bucket (`s3vol.layout`), not through a
mount. A mount would write the same objects with the same headers, so nothing is lost by it, and much is saved: no
second copy of everything in the local cache, no FUSE, one request a small file, and every file's MD5 is known when its
ETag comes back. Changes are conditional like a mount's own, so an import beside running containers overwrites nothing
that it has not seen.

A file is read between two looks at its size and times; one that changed meanwhile is read again, and given up after
_TRIES. What was copied is verified at the end: listed again, and each ETag compared with the MD5 of what was read here.
Where a store's ETag is no MD5, and with `reread`, the objects are read back and compared with the files.

Hard links are the exception. Of the names of a file the first one is copied as a file of its own, and when all is
copied, the volume is mounted for a moment (s3vol_plugin.import_mount) and link(2) makes the others: a link is a small
transaction, and the file system is who knows how to leave it half done. Only names that the volume does not have are
made so; nothing that is there is ever replaced through the mount, which knows no condition. Where no mount can be made
each name becomes a file, and why is said. Names that are links already are found in the bucket, and need no mount.

Errors of one entry (it cannot be read, its name cannot be a key, its attributes are too large) are collected. An error
of the store ends the import: it is of all entries. What is done stays done, and the next run goes on from there.

Rejected: `s3vol mount` and cp (writes everything to the local disk first, and verifies nothing), and making links of
names that earlier runs have copied as files (between a look at such a file and its replacement a container may write
it).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from s3vol import layout
from s3vol.errors import NotFound, PosixError, PreconditionFailed, Rejected, S3volError
from s3vol.store import rules
from s3vol.store.base import ABSENT, ANY, DIRECTORY_TYPE, FILE_TYPE, Condition, Part, Store, matches
from s3vol.store.limit import ByteBudget
from s3vol.types import MIB, NONCE, ObjectInfo
from s3vol_plugin.import_check import Report, Taken, Verification, each, list_objects, look
from s3vol_plugin.import_plan import MARK, Action, Item, again, clashes, decide, scan, together
from s3vol_plugin.import_source import Changed, EntryError, check_unchanged, open_file, read

SINGLE_MAX_BYTES = 8 * MIB
"""Files up to this are one PUT, larger ones are uploaded in parts of at least this."""

_MEMORY_BYTES = 128 * MIB  # bodies under way, as a mount has by default
_PARTS = 9000  # a file that grows a little while it is read still fits into S3's 10,000
_TRIES = 3


class Tree(Protocol):
    """The volume, mounted."""

    async def link(self, first: bytes, name: bytes) -> None:
        """Give a file another name. Raises PosixError for what is wrong with these two."""
        ...


Linker = Callable[[], AbstractAsyncContextManager[Tree]]
"""Mounts the volume. Raises S3volError with one line when that is impossible here, and when it does not end well."""


@dataclass(frozen=True, slots=True)
class _Names:
    """Names that wait for a link to the first one."""

    first: Item
    others: list[Item]


class Import:
    """One run: a directory into the store of a volume. Used once."""

    def __init__(
        self,
        store: Store,
        root: str,
        *,
        overwrite: bool = False,
        reread: bool = False,
        linker: Linker | None = None,
        on_progress: Callable[[Report], None] = lambda _: None,
    ) -> None:
        """Without a `linker` each name of a file becomes a file of its own."""
        self._store = store
        self._root = os.fsencode(root)
        self._overwrite = overwrite
        self._reread = reread or not store.capabilities.etag_is_md5
        self._linker = linker
        self._on_progress = on_progress
        self._remote: dict[str, ObjectInfo] = {}
        self._taken: dict[str, Taken] = {}  # by the item's key
        self._owners: dict[str, tuple[int, int]] = {}  # by the id of a link: the inode that it is the file of
        self._waiting: list[_Names] = []
        self._linked: dict[str, list[Item]] = {}  # by the key of the first name, the others that were made in this run
        self._memory = ByteBudget(_MEMORY_BYTES)

    async def run(self) -> Report:
        """Scan, copy, verify. Raises OSError for a directory that cannot be read, and what the store raises."""
        scanned = await trio.to_thread.run_sync(scan, self._root)
        report = Report(scanned, problems=list(scanned.problems))
        self._remote = await list_objects(self._store, metadata=True)
        for item, key in clashes(scanned.items, self._remote):
            report.problems.append(f"{item.key}: the volume has {key} there; remove or rename one of them")
        clashing = {item.key for item, _ in clashes(scanned.items, self._remote)}
        todo = [item for item in scanned.items if item.key not in clashing]
        await each(together(todo, self._remote), lambda names: self._take_names(report, names))
        await self._link(report)
        check = Verification(self._store, self._root, self._memory, report, reread=self._reread)
        await check.run(self._taken, self._linked)
        report.apart = self._count_apart()
        return report

    # -- copying

    async def _take_names(self, report: Report, names: Sequence[Item]) -> None:
        """A file by its first name; others that the volume does not have are left for `_link`."""
        first: Item | None = None
        waiting: list[Item] = []
        for item in names:
            if first is not None and self._linker is not None and item.key not in self._remote:
                waiting.append(item)
                continue
            await self._take(report, item)
            if first is None and item.key in self._taken:
                first = item
        if first is not None and waiting:
            self._waiting.append(_Names(first, waiting))

    async def _take(self, report: Report, item: Item) -> None:
        """Decide on one item and do it; an error of the entry becomes a line of the report."""
        try:
            await self._settle(report, item)
        except (EntryError, Rejected) as error:  # Rejected: the store refuses this key, size or metadata
            report.problems.append(f"{item.key}: {error}")
        report.entries_done += 1
        self._on_progress(report)

    async def _settle(self, report: Report, item: Item) -> None:
        info = self._remote.get(item.key)
        if info is not None and info.metadata is None:
            info = await look(self._store, item.key)
        for _ in range(_TRIES):
            info = await self._behind(item, info)
            action = decide(item, info, overwrite=self._overwrite)
            if action is Action.SAME:
                assert info is not None, "what is not there is not the same"
                self._taken[item.key] = Taken(item, info.key, info.etag)
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
                    now, etag = await self._copy(report, item, info)
                except (PreconditionFailed, NotFound):
                    info = await look(self._store, item.key)
                    continue
                self._taken[item.key] = Taken(now, item.key if info is None else info.key, etag)
                (report.copied if action is Action.CREATE else report.replaced).append(item.key)
                report.bytes_copied += now.size_bytes
                return
            info = await look(self._store, item.key)
        raise EntryError("is being changed in the volume again and again; run the import again")

    async def _behind(self, item: Item, info: ObjectInfo | None) -> ObjectInfo | None:
        """The object with the content: the body of a link where the name is one, and is this file's link.

        In a source where two names have become two files meanwhile, the link is the first one's, and the other one is
        decided, and replaced, by its stub.
        """
        link = None if info is None else layout.link_of(info)
        if link is None or self._owners.setdefault(link.id, item.inode) != item.inode:
            return info
        return await look(self._store, link.key) or info

    async def _copy(self, report: Report, item: Item, info: ObjectInfo | None) -> tuple[Item, str]:
        """Write the object, on the condition that it still is `info`; returns the item as it was read, and the ETag."""
        condition = ABSENT if info is None else matches(info.etag)
        key = item.key if info is None else info.key
        if item.is_file:
            for _ in range(_TRIES):
                try:
                    return item, await self._copy_file(report, item, key, condition)
                except Changed:
                    item = await self._again(item)
            raise EntryError("changes while it is being read; run the import again when it is at rest")
        content_type = DIRECTORY_TYPE if stat.S_ISDIR(item.stat.st_mode) else FILE_TYPE
        etag = await self._put(key, item.target, _marked(item, key), content_type, condition)
        report.bytes_done += item.size_bytes
        return item, etag

    async def _again(self, item: Item) -> Item:
        """The item as it is now. Raises EntryError when it is no file any more."""
        try:
            return await trio.to_thread.run_sync(again, self._root, item)
        except (OSError, S3volError) as error:
            raise EntryError(getattr(error, "strerror", None) or str(error)) from None

    async def _put(self, key: str, body: bytes, meta: dict[str, str], content_type: str, condition: Condition) -> str:
        try:
            return await self._store.put(key, body, metadata=meta, content_type=content_type, condition=condition)
        except PreconditionFailed:
            return await self._own(key, meta)

    async def _own(self, key: str, meta: dict[str, str]) -> str:
        """The ETag of our write whose reply was lost. Raises PreconditionFailed when it was another's."""
        info = await look(self._store, key)
        if info is None or info.version.nonce != meta[NONCE]:
            raise PreconditionFailed(f"{key}: was written by somebody else")
        return info.etag

    async def _copy_file(self, report: Report, item: Item, key: str, condition: Condition) -> str:
        meta = _marked(item, key)
        file = await trio.to_thread.run_sync(open_file, self._path(item), item)
        try:
            if item.size_bytes <= SINGLE_MAX_BYTES:
                async with self._memory.claim(item.size_bytes):
                    body = await trio.to_thread.run_sync(read, file, 0, item.size_bytes)
                    await trio.to_thread.run_sync(check_unchanged, file, item)
                    etag = await self._put(key, body, meta, FILE_TYPE, condition)
                    self._check(item, etag, rules.md5_etag(body))
                report.bytes_done += item.size_bytes
                return etag
            return await self._upload(report, item, key, file, meta, condition)
        finally:
            os.close(file)

    async def _upload(
        self, report: Report, item: Item, key: str, file: int, meta: dict[str, str], condition: Condition
    ) -> str:
        """A large file, part by part; nothing is visible, and nothing is left behind, unless all went well."""
        store = self._store
        part_bytes = part_size(item.size_bytes, store.capabilities.min_part_bytes)
        upload_id = await store.create_upload(key, metadata=meta)
        done_bytes = 0
        try:
            parts: list[Part] = []
            for number, start in enumerate(range(0, item.size_bytes, part_bytes), start=1):
                wanted = min(part_bytes, item.size_bytes - start)
                async with self._memory.claim(wanted):
                    body = await trio.to_thread.run_sync(read, file, start, wanted)
                    part = await store.upload_part(key, upload_id, number, body)
                    self._check(item, part.etag, rules.md5_etag(body))
                parts.append(part)
                done_bytes += wanted
                report.bytes_done += wanted
                self._on_progress(report)
            await trio.to_thread.run_sync(check_unchanged, file, item)
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
                raise EntryError(f"the store made ETag {etag} of it, and not {expected}; run the import again")
        return etag

    async def _check_condition(self, key: str, condition: Condition) -> None:
        """The best that can be done where a completion takes no condition: a look right before it."""
        info = await look(self._store, key)
        rules.decide(key, condition, None if info is None else info.etag)

    def _check(self, item: Item, etag: str, expected: str) -> None:
        if self._store.capabilities.etag_is_md5 and etag != expected:
            raise EntryError(f"the store says ETag {etag} for what has {expected}; run the import again")

    def _path(self, item: Item) -> bytes:
        return os.path.join(self._root, item.path)

    # -- linking

    async def _link(self, report: Report) -> None:
        """Make the names that wait; as files of their own where the volume cannot be mounted."""
        if not self._waiting or self._linker is None:
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                tree = await stack.enter_async_context(self._linker())
            except S3volError as error:
                report.no_links = str(error)
                others = [item for names in self._waiting for item in names.others]
                await each(others, lambda item: self._take(report, item))
                return
            await each(self._waiting, lambda names: self._link_names(report, tree, names))

    async def _link_names(self, report: Report, tree: Tree, names: _Names) -> None:
        for item in names.others:
            try:
                await tree.link(names.first.path, item.path)
            except PosixError as error:
                if error.errno in (errno.EEXIST, errno.EMLINK):  # made by somebody else; names outside fill the link
                    self._linked.setdefault(names.first.key, [])  # who may have made a link of that one as well
                    await self._take(report, item)
                    continue
                report.problems.append(f"{item.key}: cannot be linked to {names.first.key}: {error}")
            else:
                self._linked.setdefault(names.first.key, []).append(item)
                report.linked.append(item.key)
                report.bytes_done += item.size_bytes
            report.entries_done += 1
            self._on_progress(report)

    def _count_apart(self) -> int:
        """Names of files with several that are no links here."""
        return sum(
            taken.item.has_names and layout.body_id(taken.key) is None and key not in self._linked
            for key, taken in self._taken.items()
        )


def _marked(item: Item, key: str) -> dict[str, str]:
    """Metadata of the object at `key`: the item's own, or the body of its link."""
    meta = {**item.metadata, NONCE: f"{MARK}{secrets.token_hex(8)}"}
    return meta if key == item.key else layout.with_path(meta, item.key)


def part_size(size_bytes: int, min_bytes: int) -> int:
    """Bytes of a part: whole MiB, so that all parts of a file of this size fit into an upload."""
    needed = -(-size_bytes // _PARTS)
    return max(SINGLE_MAX_BYTES, min_bytes, -(-needed // MIB) * MIB)
