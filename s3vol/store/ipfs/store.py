"""A volume in IPFS as an object store: the Store protocol over a Volume, its publisher and its readers.

Theory of operation. A change is decided and made in the volume in one step, and returns when it is certain on this
node: its blocks in Kubo or in the journal, the change in the journal. Other nodes see it with the next publication:
within `commit_interval_s`, at once where somebody asks (`sync`), and before the call returns when the interval is 0.
`head` and `list` look for what others have published before they answer; `get` does not, since the version that it
reads is named.

What is weaker than elsewhere is in the capabilities: conditions hold among the users of one mount. Two nodes that do
not know of each other's change both succeed; the merge shows one and keeps the other beside it (view.py).

Not possible: `a` beside `a/b`. A path is a file or a directory, as in the file store.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from s3vol.errors import NotFound, Rejected, S3volError
from s3vol.store import rules
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Capabilities, Change, Condition, Page, Part, Unpublished, Upload
from s3vol.store.fetching import fetch_in_two
from s3vol.store.ipfs import journal as notes
from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import Cid, digest_of, node_cid, raw_of_digest
from s3vol.store.ipfs.content import PIECE_MAX_BYTES, ROW_PIECES, Row, cut, encode_row, etag_of
from s3vol.store.ipfs.entry import Dot, Entry, Piece, pack
from s3vol.store.ipfs.fetch import Fetcher
from s3vol.store.ipfs.journal import Journal, Statement
from s3vol.store.ipfs.publish import Publisher
from s3vol.store.ipfs.refresh import Refresher
from s3vol.store.ipfs.segments import DIRECT_BYTES, SEGMENT_BYTES, Segments
from s3vol.store.ipfs.view import parents
from s3vol.store.ipfs.volume import Volume
from s3vol.types import GIB, MIB, ObjectInfo

_S_NS = 1_000_000_000
_UNDATED = Dot(0, "")  # the seal gives an entry its dot

IPFS_CAPABILITIES = Capabilities(
    etag_is_md5=False,
    conditions_span_nodes=False,
    publishes_later=True,
    min_part_bytes=PIECE_MAX_BYTES,  # a smaller one would leave short blocks in the row for ever
    max_part_bytes=GIB,
    max_put_bytes=GIB,
)


@dataclass(slots=True)
class Parts:
    """What a store is made of, shared by all views of it."""

    name: str
    volume: Volume
    journal: Journal
    segments: Segments
    publisher: Publisher
    refresher: Refresher
    fetcher: Fetcher
    uploads: dict[str, notes.Upload]
    commit_interval_s: float


class IpfsStore:
    """One view of a volume; implements `s3vol.store.base.Store`, contract included. Made by opening.open_volume."""

    def __init__(
        self,
        parts: Parts,
        prefix: str = "",
        *,
        capabilities: Capabilities = IPFS_CAPABILITIES,
        close: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._parts = parts
        self._prefix = prefix
        self._caps = capabilities
        self._close = close

    @property
    def capabilities(self) -> Capabilities:
        """Everything but conditions between nodes, versions and watch."""
        return self._caps

    @property
    def url(self) -> str:
        """`ipfs://`, the volume and the prefix."""
        return f"ipfs://{self._parts.name}/{self._prefix}".rstrip("/")

    def _full(self, key: str) -> str:
        full = self._prefix + key
        rules.check_key(full, self._caps)
        return full

    def _find(self, full: str) -> Entry:
        entry = self._parts.volume.find(full)
        if entry is None:
            raise NotFound(f"{full}: no such object")
        return entry

    def _show(self, full: str, entry: Entry, *, metadata: bool = True) -> ObjectInfo:
        shown = dict(entry.metadata) if metadata else None
        content_type = entry.content_type if metadata else ""
        key = full[len(self._prefix) :]
        return ObjectInfo(key, entry.size, entry.etag, entry.modified_s * _S_NS, shown, content_type)

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head. Asks for the heads of other writers first."""
        full = self._full(key)
        await self._parts.refresher.refresh()
        return self._show(full, self._find(full))

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """See Store.get. Every block is checked against its name."""
        full = self._full(key)
        rules.check_range(start, length)
        await trio.lowlevel.checkpoint()
        entry = self._find(full)
        rules.decide_read(key, if_match, entry.etag)
        return await self._read(Row(self._parts.volume.pieces(entry)), start, length)

    async def _read(self, row: Row, start: int, length: int) -> bytes:
        spans = list(row.spans(start, length))
        bodies = await self._parts.fetcher.many({raw_of_digest(span.piece.digest) for span in spans})
        views = (
            memoryview(bodies[raw_of_digest(span.piece.digest)])[span.start : span.start + span.length]
            for span in spans
        )
        return b"".join(views)

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
        """See Store.put. Raises Rejected for `a` beside `a/b`."""
        full = self._full(key)
        rules.check_body(memoryview(body).nbytes, self._caps.max_put_bytes)
        rules.check_condition(condition, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        await trio.lowlevel.checkpoint()
        self._check(full, condition)
        with self._parts.segments.reserve() as reserved:
            pieces, statements = await self._take(body, reserved)
            return await self._make(full, pieces, etag_of(pieces), stored, content_type, condition, statements)

    def _check(self, full: str, condition: Condition) -> None:
        """Raise unless the key may be written now. Only meaningful without an await before the change."""
        volume = self._parts.volume
        current = volume.find(full)
        rules.decide(full, condition, current.etag if current else None)
        if current is not None:
            return
        if any(volume.find(above) for above in parents(full)):
            raise Rejected(f"{full}: a part of this path is a file; a path is a file or a directory in this store")
        if not full.endswith("/") and volume.is_directory(full):
            raise Rejected(f"{full}: is a directory; a path is a file or a directory in this store")

    async def _take(self, body: Buffer, reserved: set[bytes]) -> tuple[list[Piece], list[Statement]]:
        """Make a body safe: in Kubo, or (the statements) in the journal together with the change.

        Its blocks are added to `reserved`, which is to be held until something shows them.
        """
        size_bytes = memoryview(body).nbytes
        blocks = cut(body) if size_bytes < MIB else await trio.to_thread.run_sync(cut, body)
        pieces = [Piece(digest_of(block.cid), len(block.body)) for block in blocks]
        reserved.update(piece.digest for piece in pieces)
        segments = self._parts.segments
        if size_bytes >= DIRECT_BYTES:
            await segments.load(blocks)
            return pieces, []
        if segments.staged_bytes + size_bytes > SEGMENT_BYTES:
            await segments.gather()
        return pieces, segments.stage(blocks)

    async def _make(
        self,
        full: str,
        pieces: Sequence[Piece],
        etag: str,
        metadata: Mapping[str, str],
        content_type: str,
        condition: Condition,
        statements: Sequence[Statement],
    ) -> str:
        """Decide and change in one step, then wait until that is certain."""
        parts = self._parts
        try:
            self._check(full, condition)
        except S3volError:
            parts.journal.queue(*statements)  # the blocks are staged: the next segment takes them
            raise
        size, modified_s = sum(piece.length for piece in pieces), time.time_ns() // _S_NS
        held, rows = self._pack(pieces)
        listed = bool(rows)
        entry = Entry(_UNDATED, size, etag, modified_s, content_type, metadata, held, listed)
        kept = [notes.put_block(row) for row in rows]
        # No await since the check.
        ticket = parts.publisher.change(full, entry, [*statements, *kept], [row.cid for row in rows])
        await self._settle(ticket)
        return etag

    def _pack(self, pieces: Sequence[Piece]) -> tuple[bytes | Cid, list[Block]]:
        if len(pieces) <= ROW_PIECES:
            return pack(pieces), []
        cid, bodies = encode_row(pieces)
        for body in bodies:
            self._parts.volume.nodes.keep(body)
        return cid, [Block(node_cid(body), body) for body in bodies]

    async def _settle(self, ticket: int) -> None:
        await self._parts.journal.written(ticket)
        if self._parts.commit_interval_s <= 0:
            await self._parts.publisher.publish()

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
        """See Store.copy. No bytes travel: the copy has the same blocks."""
        full, full_target = self._full(source), self._full(target)
        rules.check_condition(condition, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        await trio.lowlevel.checkpoint()
        entry = self._find(full)
        rules.decide_read(source, if_match, entry.etag)
        pieces = self._parts.volume.pieces(entry)
        owed = self._parts.segments.owe(pieces)
        return await self._make(full_target, pieces, etag_of(pieces), stored, content_type, condition, owed)

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        full = self._full(key)
        await trio.lowlevel.checkpoint()
        if self._parts.volume.find(full) is not None:
            await self._settle(self._parts.publisher.change(full, None, []))

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
        await self._parts.refresher.refresh()
        after = cursor or start_after
        cut_at = len(self._prefix)
        found = self._parts.volume.fold(
            self._prefix + prefix,
            delimiter=delimiter,
            after=self._prefix + after if after else self._prefix,
            limit=limit + 1,
        )
        page = found[:limit]
        shown = metadata and self._caps.list_metadata
        return Page(
            objects=tuple(self._show(name, entry, metadata=shown) for name, entry in page if entry is not None),
            prefixes=tuple(name[cut_at:] for name, entry in page if entry is None),
            next_cursor=page[-1][0][cut_at:] if len(found) > limit else None,
        )

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """See Store.create_upload. An upload survives restarts of this node, and is not seen by others."""
        full = self._full(key)
        rules.check_upload_key(full, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        upload_id = uuid.uuid4().hex
        upload = notes.Upload(full, content_type, stored, time.time_ns())
        self._parts.uploads[upload_id] = upload
        await self._parts.journal.write(notes.put_upload(upload_id, upload))
        return upload_id

    def _upload(self, full: str, upload_id: str) -> notes.Upload:
        upload = self._parts.uploads.get(upload_id)
        if upload is None or upload.key != full:
            raise NotFound(f"{full}: no upload {upload_id}")
        return upload

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        full = self._full(key)
        rules.check_part(number, memoryview(body).nbytes, self._caps)
        await trio.lowlevel.checkpoint()
        self._upload(full, upload_id)
        with self._parts.segments.reserve() as reserved:
            pieces, statements = await self._take(body, reserved)
            return await self._keep_part(full, upload_id, number, pieces, statements)

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """See Store.copy_part. Whole blocks of the source are used again; at the ends of the range bytes are copied."""
        full, full_source = self._full(key), self._full(source)
        rules.check_range(start, length)
        rules.check_part(number, length, self._caps)
        await trio.lowlevel.checkpoint()
        entry = self._find(full_source)
        rules.decide_read(source, if_match, entry.etag)
        if start + length > entry.size:
            raise Rejected(f"{source}: has no {length} bytes from {start}")
        self._upload(full, upload_id)
        pieces: list[Piece] = []
        at = start
        row = Row(self._parts.volume.pieces(entry))
        spans = list(row.spans(start, length))
        whole = [span.piece for span in spans if span.whole]
        queue = self._parts.journal.queue
        with self._parts.segments.reserve() as reserved:
            reserved.update(piece.digest for piece in whole)
            queue(*self._parts.segments.owe(whole))  # no await since the look: later they may be collected elsewhere
            for span in spans:
                if span.whole:
                    pieces.append(span.piece)
                else:
                    ends, noted = await self._take(await self._read(row, at, span.length), reserved)
                    queue(*noted)  # at once: others take what is staged for written
                    pieces += ends
                at += span.length
            return await self._keep_part(full, upload_id, number, pieces, [])

    async def _keep_part(
        self, full: str, upload_id: str, number: int, pieces: Sequence[Piece], statements: Sequence[Statement]
    ) -> Part:
        try:
            upload = self._upload(full, upload_id)
        except S3volError:
            self._parts.journal.queue(*statements)
            raise
        etag = etag_of(pieces)
        upload.parts[number] = (etag, tuple(pieces))
        await self._parts.journal.write(*statements, notes.put_part(upload_id, number, etag, pieces))
        return Part(number, etag)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """See Store.complete_upload."""
        full = self._full(key)
        rules.check_condition(condition, self._caps, completing=True)
        await trio.lowlevel.checkpoint()
        upload = self._upload(full, upload_id)
        sizes = {(n, etag): sum(p.length for p in pieces) for n, (etag, pieces) in upload.parts.items()}
        rules.check_parts(parts, sizes, self._caps)
        pieces = [piece for part in parts for piece in upload.parts[part.number][1]]
        self._check(full, condition)
        del self._parts.uploads[upload_id]
        etag = etag_of(pieces, parts=len(parts))
        drop = notes.drop_upload(upload_id)
        return await self._make(full, pieces, etag, upload.metadata, upload.content_type, condition, drop)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See Store.abort_upload."""
        full = self._full(key)
        await trio.lowlevel.checkpoint()
        upload = self._parts.uploads.get(upload_id)
        if upload is not None and upload.key == full:
            del self._parts.uploads[upload_id]
            await self._parts.journal.write(*notes.drop_upload(upload_id))

    async def uploads(self) -> Sequence[Upload]:
        """See Store.uploads. Those of this node."""
        await trio.lowlevel.checkpoint()
        skip = len(self._prefix)
        return [
            Upload(found.key[skip:], upload_id, found.begun_ns)
            for upload_id, found in self._parts.uploads.items()
            if found.key.startswith(self._prefix)
        ]

    @property
    def unpublished(self) -> Unpublished:
        """See Store.unpublished. Of the whole volume."""
        return self._parts.publisher.unpublished

    async def sync(self) -> None:
        """Return when all that was acknowledged is published, on as many peers as the volume asks for."""
        await self._parts.publisher.sync()

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Always raises Rejected: a register has to be asked."""
        raise Rejected("this store cannot watch")

    async def aclose(self) -> None:
        """Close the volume, where this view is the one that is to do it."""
        await self._close()
