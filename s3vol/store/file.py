"""A directory as an object store, `file:///DIR`: the embedded default, with the semantics of the others.

Theory of operation. Object `a/b` is the plain file `DIR/a/b`, so that every tool reads the bucket, and what is put
there by any tool is an object. Any number of threads, processes and mounts of this machine may use the directory
at a time; the kernel's locks and renames keep conditions exact (file_tree.py), and a call that returned is on the disk.

This module turns the calls of a Store into work for threads and OSErrors into our kinds. A thread is never left behind:
a cancelled call ends at the thread's next block or lock, or is carried through. So no body is read after its call
ended, and no temporary file stays.

Not for network file systems: flock there depends on the server, and NFS loses sub-second mtimes.

Rejected: keeping a database of objects beside the files (then only we could put something there).
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from s3vol.errors import Denied, NameTooLong, NoSpace, QuotaExceeded, Rejected, S3volError, Unavailable, UsageError
from s3vol.store import rules
from s3vol.store.base import (
    ANY,
    FILE_TYPE,
    Buffer,
    Capabilities,
    Change,
    Condition,
    Page,
    Part,
    Unpublished,
    Upload,
    matches,
)
from s3vol.store.fetching import fetch_in_two
from s3vol.store.file_control import FOLDER_FLAGS, Control
from s3vol.store.file_io import copy_hashed, write_hashed
from s3vol.store.file_list import Listing, Query
from s3vol.store.file_record import Records
from s3vol.store.file_tree import Tree, check_unchanged
from s3vol.store.file_upload import Uploads
from s3vol.types import ObjectInfo

T = TypeVar("T")

FILE_CAPABILITIES = Capabilities()
_THREADS = 16  # as many calls wait for the disk at a time; more only queue there

_KINDS: dict[int, type[S3volError]] = {
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: QuotaExceeded,
    errno.EFBIG: Rejected,
    errno.EILSEQ: Rejected,
    errno.EINVAL: Rejected,
    errno.EXDEV: Rejected,  # another file system is mounted below DIR
    errno.ENAMETOOLONG: NameTooLong,
}


class FileStore:
    """The objects in one directory; implements `s3vol.store.base.Store`, contract included. Made by `open`."""

    def __init__(self, directory: Path, prefix: str, tree: Tree, uploads: Uploads, capabilities: Capabilities) -> None:
        self._directory = directory
        self._prefix = prefix
        self._tree = tree
        self._uploads = uploads
        self._listing = Listing(tree)
        self._caps = capabilities
        self._threads = trio.CapacityLimiter(_THREADS)
        self._closed = False

    @classmethod
    async def open(
        cls,
        directory: Path,
        prefix: str = "",
        *,
        capabilities: Capabilities = FILE_CAPABILITIES,
        use_xattrs: bool = True,
    ) -> FileStore:
        """Open an existing directory, and remove what crashed users of it left. Raises UsageError, Denied.

        Without `use_xattrs` all records are kept in the control area, as on a file system without user attributes.
        """

        def make() -> FileStore:
            root_fd = _open_root(directory)
            try:
                control = Control(root_fd)
            except BaseException:
                os.close(root_fd)
                raise
            tree = Tree(root_fd, control, Records(control, use_xattrs=use_xattrs))
            return cls(directory, prefix, tree, Uploads(tree, control, capabilities), capabilities)

        with _translated("open", str(directory)):
            return await trio.to_thread.run_sync(make)

    @property
    def capabilities(self) -> Capabilities:
        """All but versions and watch."""
        return self._caps

    @property
    def url(self) -> str:
        """`file://`, the directory and the prefix."""
        return f"file://{self._directory}/{self._prefix}".rstrip("/")

    def _full(self, key: str) -> str:
        full = self._prefix + key
        rules.check_key(full, self._caps)
        return full

    async def _run(self, operation: str, key: str, work: Callable[[], T]) -> T:
        with _translated(operation, key):
            return await trio.to_thread.run_sync(work, limiter=self._threads)

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        full = self._full(key)

        def work() -> ObjectInfo:
            with self._tree.opened(full) as found:
                return found.info(len(self._prefix))

        return await self._run("head", key, work)

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """See Store.get. Raises PreconditionFailed (Unavailable without `if_match`) when changed by hand meanwhile."""
        full = self._full(key)
        rules.check_range(start, length)
        return await self._run("get", key, lambda: self._tree.read(full, start, length, if_match))

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo, Buffer]:
        """See Store.fetch."""
        return await fetch_in_two(self, key, length)

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """See Store.put. Raises Rejected for `a` beside `a/b`, and for a directory marker with a body."""
        full = self._full(key)
        size_bytes = memoryview(body).nbytes
        rules.check_body(size_bytes, self._caps.max_put_bytes)
        rules.check_condition(condition, self._caps)
        stored = rules.check_metadata(metadata, self._caps)

        def work() -> str:
            self._tree.check(full, condition)
            with self._tree.control.temp() as temp:
                etag = write_hashed(temp.fd, body)
                return self._tree.publish(full, temp, etag, content_type, stored, condition)

        if full.endswith("/"):
            return await self._mark(full, size_bytes, content_type, stored, condition)
        return await self._run("put", key, work)

    async def _mark(
        self, full: str, size_bytes: int, content_type: str, stored: dict[str, str], condition: Condition
    ) -> str:
        if size_bytes:
            raise Rejected(f"{full}: a directory marker has no content in this store")
        return await self._run("put", full, lambda: self._tree.mark(full, content_type, stored, condition))

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """See Store.copy. A copy onto the key itself also demands that it still is the source when it is replaced."""
        full, full_target = self._full(source), self._full(target)
        rules.check_condition(condition, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        if source == target and condition == ANY:
            condition = matches(if_match)

        def work() -> str:
            with self._tree.opened(full) as found:
                rules.decide_read(source, if_match, found.record.etag)
                self._tree.check(full_target, condition)
                with self._tree.control.temp() as temp:
                    etag = copy_hashed(found.fd, 0, found.size, temp.fd)
                    check_unchanged(found, if_match)
                    return self._tree.publish(full_target, temp, etag, content_type, stored, condition)

        if full_target.endswith("/"):
            size_bytes = await self._guarded_size(source, full, if_match)
            return await self._mark(full_target, size_bytes, content_type, stored, condition)
        return await self._run("copy", source, work)

    async def _guarded_size(self, source: str, full: str, if_match: str) -> int:
        def work() -> int:
            with self._tree.opened(full) as found:
                rules.decide_read(source, if_match, found.record.etag)
                return found.size

        return await self._run("copy", source, work)

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        full = self._full(key)
        await self._run("delete", key, lambda: self._tree.remove(full))

    async def list(
        self,
        prefix: str,
        *,
        delimiter: bool = True,
        cursor: str | None = None,
        start_after: str | None = None,
        limit: int = 1000,
        metadata: bool = True,
    ) -> Page:
        """See Store.list. The cursor is the last entry of the page before."""
        limit = rules.check_limit(limit)
        rules.check_text(prefix)
        after = cursor or start_after
        query = Query(
            prefix=self._prefix + prefix,
            after=self._prefix + after if after else self._prefix,
            delimiter=delimiter,
            metadata=metadata and self._caps.list_metadata,
            cut=len(self._prefix),
        )
        return await self._run("list", prefix, lambda: self._listing.page(query, limit))

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """See Store.create_upload. An upload survives restarts, until it is completed or aborted."""
        full = self._full(key)
        rules.check_upload_key(full, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        return await self._run("create_upload", key, lambda: self._uploads.create(full, content_type, stored))

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        full = self._full(key)
        rules.check_part(number, memoryview(body).nbytes, self._caps)
        return await self._run("upload_part", key, lambda: self._uploads.put_part(full, upload_id, number, body))

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """See Store.copy_part. Raises Rejected for a range that the source does not have."""
        full, full_source = self._full(key), self._full(source)
        rules.check_range(start, length)
        rules.check_part(number, length, self._caps)

        def work() -> Part:
            return self._uploads.copy_part(full, upload_id, number, full_source, start, length, if_match)

        return await self._run("copy_part", key, work)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """See Store.complete_upload."""
        full = self._full(key)
        rules.check_condition(condition, self._caps, completing=True)
        return await self._run(
            "complete_upload", key, lambda: self._uploads.complete(full, upload_id, parts, condition)
        )

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See Store.abort_upload."""
        full = self._full(key)
        await self._run("abort_upload", key, lambda: self._uploads.abort(full, upload_id))

    @property
    def unpublished(self) -> Unpublished:
        """See Store.unpublished. Nothing: a change that returned is there."""
        return Unpublished()

    async def sync(self) -> None:
        """See Store.sync. A change that returned is there."""
        await trio.lowlevel.checkpoint()

    async def uploads(self) -> Sequence[Upload]:
        """See Store.uploads."""
        found = await self._run("uploads", "", self._uploads.all)
        return [replace(it, key=it.key[len(self._prefix) :]) for it in found if it.key.startswith(self._prefix)]

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Always raises Rejected: inotify sees no other machine, and drops events under load."""
        raise Rejected("this store cannot watch")

    async def aclose(self) -> None:
        """Close the directory and remove this session's temporary files. Closing again is harmless."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):  # short, and the only chance to do it
            await self._run("close", "", self._tree.close)


def _open_root(directory: Path) -> int:
    try:
        return os.open(directory, FOLDER_FLAGS & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        raise UsageError(f"file://{directory}: no such directory; make it first") from None
    except NotADirectoryError:
        raise UsageError(f"file://{directory}: is not a directory") from None


@contextmanager
def _translated(operation: str, key: str) -> Iterator[None]:
    """What the kernel refused, in our kinds. A missing object never comes as an OSError: that is decided before."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, Unavailable)
        raise kind(f"{operation} {key!r}: {error.strerror or error}") from error
