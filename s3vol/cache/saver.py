"""Saver: brings a content's bytes and its record to the local disk: bytes first, then a FULL commit of the record.

Theory of operation. What is to be saved is captured in one step: the ranges written since the last sync, size and
generation. Small writes are *carried*: their bytes go into the journal with the record, so one flush of the disk makes
both durable (fdatasync of a new file is one more, and fsync of its directory a third). Else the data file is flushed,
and only then the record is committed: the journal never points at bytes that are not on the disk. The data file has
the carried bytes as well, and is what everybody reads; only a start after a crash writes them to it (replay.py). A
flush of the file makes all that was carried before superfluous, and the record that follows says so: older bytes must
not be written over newer ones. A file that was cut since its last flush is flushed, not carried: after a power failure
it could still have what was cut off, where the record means a hole.

`sync_lock` of the content keeps its records in order; callers that waited for it find that the one before them saved
their bytes as well, so concurrent fsyncs share the work, and the journal's group commit shares the rest.

A publish may finish between capture and commit. It hands its own record to the journal; what was captured is then cut
down to what is still dirty, and if nothing is left to save, nothing is written.

After a failed fdatasync the kernel calls the pages clean although they are not on the disk: a second fdatasync would
lie. So the failure sticks until the bytes are published.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterable

import trio

from s3vol.cache import records
from s3vol.cache.base import State
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.extents import Range, RangeSet
from s3vol.cache.journal import Journal
from s3vol.cache.ledger import Ledger
from s3vol.errors import NoSpace, PosixError, S3volError
from s3vol.failpoints import Point, hit

CARRY_BYTES = 64 << 10  # of one sync: what goes through the journal is written twice, and three times with a checkpoint
_CARRY_CONTENT_BYTES = 1 << 20  # of one content, until its file is flushed
_CARRY_ALL_BYTES = 64 << 20  # of all: the journal is no second cache
_COMPACT_ROWS = 256  # beyond it, and four rows per range, the extents of a content are written anew


class Saver:
    """Of one cache."""

    def __init__(self, files: DataFiles, journal: Journal, ledger: Ledger) -> None:
        self._files = files
        self._journal = journal
        self._ledger = ledger
        self._carried_bytes = 0
        self.lazy_since_s: float | None = None  # since when a record waits for the next FULL commit

    async def sync(self, content: CachedContent) -> None:
        """Return when all that was written before the call survives a power failure. Raises NoSpace, PosixError."""
        wanted = content.generation
        async with content.sync_lock:
            if content.is_unpublished and content.saved_generation < wanted > content.published_generation:
                await self._save(content)
        self._ledger.update(content)

    async def _save(self, content: CachedContent) -> None:
        if content.flush_failed:
            raise PosixError(errno.EIO, f"{content.key}: an earlier fdatasync of the cache failed")
        generation, size = content.generation, content.size
        captured = content.saving = content.unjournaled
        content.unjournaled = RangeSet()
        new: list[Range] = []
        saved_size = content.saved_size
        try:
            pieces = self._pieces(content)
            if pieces is None:
                await self._flush(content)
            if content.published_generation >= generation or not content.is_unpublished:
                return
            # No await from here to the journal's queue, where a publish that settles later finds what is saved.
            content.saving = RangeSet()
            new = [gap for low, high in _still_dirty(content, captured) for gap in content.journaled.gaps(low, high)]
            content.journaled.update(new)
            row = content.row()
            if row.size > max(size, row.base_limit):  # grown since: those bytes were not flushed
                row = dataclasses.replace(row, size=max(size, row.base_limit))
            content.saved_size = row.size
            moved = self._move_bytes(content, pieces)
            if new or moved or row != content.saved_row:  # else the same bytes again: they are flushed, and that is all
                statements = records.save_content(row) + self._extents(content, new) + moved
                content.journal_state = State.DIRTY
                await self._journal.commit(statements, durable=True)
                self.lazy_since_s = None
        except BaseException:
            content.saved_row = None
            content.saved_size = min(content.saved_size, saved_size)
            for start, end in new:
                content.journaled.remove(start, end)
            content.unjournaled.update(_still_dirty(content, captured))
            raise
        finally:
            content.saving = RangeSet()
        content.saved_generation = max(content.saved_generation, generation)
        content.saved_row = row
        hit(Point.SYNC_AFTER_COMMIT)

    def _pieces(self, content: CachedContent) -> list[tuple[int, bytearray]] | None:
        """The bytes that are to be saved, to be carried; None: the data file has to be flushed. No await."""
        total = content.saving.total
        if content.cut_unflushed or total > CARRY_BYTES or content.carried_bytes + total > _CARRY_CONTENT_BYTES:
            return None
        if self._carried_bytes + total > _CARRY_ALL_BYTES:
            return None
        pieces: list[tuple[int, bytearray]] = []
        for start, end in content.saving:
            data = self._files.read_now(content.id, start, end - start)
            if data is None:
                return None
            pieces.append((start, data))
        return pieces

    def _move_bytes(
        self, content: CachedContent, pieces: list[tuple[int, bytearray]] | None
    ) -> list[records.Statement]:
        """Statements that carry `pieces`, or (None: the file was flushed) drop what was carried."""
        if pieces is None:
            return self._drop_carried(content)
        content.carries |= bool(pieces)
        self._count_carried(content, sum(len(data) for _, data in pieces))
        return records.carry(content.id, pieces)

    def _drop_carried(self, content: CachedContent) -> list[records.Statement]:
        if not content.carries:
            return []
        self._count_carried(content, -content.carried_bytes)
        return records.drop_carried(content.id)

    def _count_carried(self, content: CachedContent, more_bytes: int) -> None:
        content.carried_bytes += more_bytes
        self._carried_bytes += more_bytes

    async def _flush(self, content: CachedContent) -> None:
        cut, content.cut_unflushed = content.cut_unflushed, False
        if not self._files.exists(content.id):
            return
        try:
            await self._files.flush(content.id)
        except BaseException as failure:
            content.cut_unflushed |= cut
            content.flush_failed |= isinstance(failure, S3volError) and not isinstance(failure, NoSpace)
            raise
        hit(Point.SYNC_AFTER_DATA)

    def _extents(self, content: CachedContent, new: list[Range]) -> list[records.Statement]:
        if content.extent_rows + len(new) > _COMPACT_ROWS + 4 * len(content.journaled):
            content.extent_rows = len(content.journaled)
            return records.replace_extents(content.id, content.journaled)
        content.extent_rows += len(new)
        return records.add_extents(content.id, new)

    def record_change(self, content: CachedContent) -> list[records.Statement]:
        """Statements that make the journal's record say what is known now, without new dirty bytes."""
        content.journal_state = State.DIRTY if content.is_unpublished else content.state
        content.saved_row = None
        content.extent_rows = len(content.journaled)
        dropped = [] if content.journaled else self._drop_carried(content)
        row = content.row()
        if content.is_unpublished:  # grown since it was saved: a power failure would leave zeros there
            row = dataclasses.replace(row, size=max(row.base_limit, min(row.size, content.saved_size)))
        return records.save_content(row) + records.replace_extents(content.id, content.journaled) + dropped

    def record_publish(self, content: CachedContent) -> None:
        """Hand the record of a publish to the journal. Lazy: replay recognises the object by its nonce. No await."""
        if content.state is State.DISCARDED:
            return  # whoever discards it has the last word: the record goes, durably, or is made anew
        if content.journal_state is not None:
            self._journal.enqueue(self.record_change(content))
            self.note_lazy()

    def note_lazy(self) -> None:
        """The journal was told something that only its next durable commit brings to the disk. No await."""
        if self.lazy_since_s is None:
            self.lazy_since_s = trio.current_time()
            self._ledger.wake()

    def record_gone(self, content: CachedContent) -> list[records.Statement]:
        """Statements that forget a content."""
        known = content.journal_state is not None
        content.journal_state = None
        content.saved_row = None
        content.recorded.clear()
        content.journaled.clear()
        self._count_carried(content, -content.carried_bytes)
        return records.drop_content(content.id) if known else []

    def record_clean(self, contents: Iterable[CachedContent]) -> None:
        """Hand chunks that have become clean to the journal, so that they survive a restart. No await."""
        for content in contents:
            if content.state not in (State.CLEAN, State.DIRTY):
                continue
            chunks = [at for at in content.unrecorded - content.recorded if content.clean_chunk(at)]
            content.unrecorded.clear()
            if not chunks or (content.state is State.DIRTY and content.journal_state is None):
                continue
            statements: list[records.Statement] = []
            if content.journal_state is None:
                statements += records.save_content(content.row())
                content.journal_state = content.state
            content.recorded.update(chunks)
            content.recordings += 1
            self._journal.enqueue(statements + records.add_clean(content.id, chunks))

    async def flush_records(self) -> None:
        """Return when every statement handed over so far survives a power failure."""
        self.lazy_since_s = None
        await self._journal.commit([], durable=True)


def _still_dirty(content: CachedContent, ranges: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    for start, end in ranges:
        found += content.dirty.overlap(start, end)
        found += content.inflight.overlap(start, end)
    return found
