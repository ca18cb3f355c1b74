"""ChunkCache: the chunk cache of one volume; implements `ContentCache` (cache/base.py) by putting the parts together.

Theory of operation. Everything runs on the event loop, and a change of a content is one step without `await`: look,
pwrite, mark. Whatever must be waited for first (room, the dirty cap, the journal, a truncate that is at work) is
waited for in a loop that then looks at *everything* again; so there is no lock around writes, and nothing can change
between the last look and the write.

The hot paths are short: a read of present bytes is one `preadv(RWF_NOWAIT)`, a write one `pwrite` into the page
cache; both may return without a checkpoint.

`ChunkCache.open` locks the directory, replays the journal and hands out the cache; `serve` runs the background
(publishing, ageing, prefetch, streaming). Without `serve` everything works that somebody waits for. On leaving `open`
all that is dirty is synced to the journal; to publish it before is the caller's business (drain).
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from s3vol.cache import records
from s3vol.cache.assembly import Parts, assemble
from s3vol.cache.base import CacheSettings, CacheStatus, Content, State
from s3vol.cache.cachedir import CacheDirectory, boot_id
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.journal import Journal
from s3vol.cache.replay import replay
from s3vol.errors import Conflict, NoSpace, PosixError, PreconditionFailed, S3volError, UsageError
from s3vol.failpoints import Point, hit
from s3vol.parallel import for_each
from s3vol.store.base import Buffer, Store
from s3vol.types import CHUNK_BYTES, NONCE, Event, Health, ObjectInfo, Version

_SYNCS_AT_ONCE = 8


class ChunkCache:
    """See the module's docstring, and `ContentCache` for each method."""

    def __init__(self, parts: Parts, settings: CacheSettings, health: Health, notes: dict[str, dict[str, str]]) -> None:
        self.parts = parts
        self._settings = settings
        self._health = health
        self._notes = notes
        self._quarantined = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        store: Store,
        settings: CacheSettings,
        *,
        volume: str,
        events: trio.MemorySendChannel[Event] | None = None,
        health: Health | None = None,
    ) -> AsyncIterator[ChunkCache]:
        """The cache in `settings.directory`, which is this volume's alone. `volume` is its URL, without credentials.

        Raises UsageError: the directory is another's, in use, of another volume, or its journal cannot be read.
        """
        health = health or Health()
        directory = await trio.to_thread.run_sync(CacheDirectory, settings.directory)
        try:
            path = settings.directory / "journal.db"
            cache_id = secrets.token_hex(4)
            journal, loaded = await trio.to_thread.run_sync(Journal.open, path, volume, cache_id, boot_id())
            try:
                replayed = await trio.to_thread.run_sync(replay, directory, loaded, journal.carried)
            except OSError as error:
                await trio.to_thread.run_sync(partial(journal.close, clean=False))
                raise UsageError(f"cache directory {settings.directory}: {error}; use another --cache-dir") from None
            files = DataFiles(directory, replayed.files)
            parts = assemble(
                store, settings, directory, files, journal, loaded.cache_id, loaded.first_content_id, events, health
            )
            cache = cls(parts, settings, health, loaded.notes)
            cache._revive(replayed.contents, replayed.quarantined, loaded.uploads)
            journal.enqueue(replayed.statements)
            hit(Point.REPLAY_AFTER_LOAD)
            try:
                yield cache
            finally:
                with trio.CancelScope(shield=True):
                    await cache._close()
        finally:
            directory.close()

    def _revive(self, contents: list[CachedContent], quarantined: int, uploads: list[tuple[str, str]]) -> None:
        parts = self.parts
        self._quarantined = quarantined
        parts.sender.leave_behind(dict(uploads))
        for content in contents:
            parts.registry.adopt(content)
            parts.ledger.update(content)
            for index in content.recorded:
                parts.space.lru.use(content, index)
            for start, end in content.dirty:
                for index in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
                    parts.space.lru.use(content, index)
            if content.state is State.DIRTY:
                parts.writeback.schedule(content)

    async def _close(self) -> None:
        """Sync what is dirty, record what is clean, and say so in the journal if all of it worked."""
        parts = self.parts
        clean = True
        try:
            await self.sync_all()
        except S3volError as error:
            clean = False
            self._health.last_error = str(error)
        parts.writeback.record_filled()
        parts.files.close()
        try:
            if clean:
                await trio.to_thread.run_sync(parts.directory.sync_file_system)
        finally:
            await trio.to_thread.run_sync(partial(parts.journal.close, clean=clean))

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The background; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            self.parts.tasks.nursery = nursery
            try:
                nursery.start_soon(self.parts.writeback.run)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.parts.tasks.nursery = None

    # Contents

    def dirty(self, key: str) -> CachedContent | None:
        """See `ContentCache.dirty`."""
        return self.parts.registry.dirty_at(key)

    def pending(self) -> Iterable[CachedContent]:
        """See `ContentCache.pending`."""
        return list(self.parts.ledger.dirty)

    def attach(self, info: ObjectInfo, *, content_type: str = "") -> CachedContent:
        """See `ContentCache.attach`."""
        if info.metadata is None:
            raise ValueError(f"{info.key}: metadata is not known, so neither is the version")
        content = self.parts.registry.attach(info, content_type)
        content.refs += 1
        return content

    def holds(self, key: str, version: Version | None, length: int) -> bool:
        """See `ContentCache.holds`."""
        content = self.parts.registry.known(key, version) if version is not None else None
        if content is None:
            return False
        first = min(length, content.base_limit)
        return not content.absent(0, first) or self.parts.fetcher.held.has(content, first)

    async def fill(self, content: Content, body: Buffer) -> None:
        """See `ContentCache.fill`."""
        await self.parts.fetcher.fill(_own(content), body)

    async def hold(self, content: Content, body: Buffer) -> None:
        """See `ContentCache.hold`."""
        await self.parts.fetcher.hold(_own(content), body)

    async def unhold(self, content: Content) -> None:
        """See `ContentCache.unhold`."""
        await self.parts.fetcher.unhold(_own(content))

    def create(
        self, key: str, metadata: Mapping[str, str], *, base: Version | None = None, content_type: str = ""
    ) -> CachedContent:
        """See `ContentCache.create`."""
        content = CachedContent(
            id=self.parts.registry.new_id(),
            key=key,
            base=base,
            size=0,
            metadata=dict(metadata),
            content_type=content_type,
            state=State.DIRTY,
            derived=False,
            generation=1,
            refs=1,
        )
        self.parts.ledger.update(content)
        self.parts.registry.refresh(content)
        return content

    def refer(self, content: Content) -> None:
        """See `ContentCache.refer`."""
        own = _own(content)
        own.refs += 1
        self.parts.registry.busy(own)

    def release(self, content: Content) -> None:
        """See `ContentCache.release`."""
        own = _own(content)
        if own.refs <= 0:
            raise ValueError(f"{own.key}: released more often than referred to")
        own.refs -= 1
        if own.refs == 0:
            self.parts.fetcher.held.let_go(own)
            self.parts.registry.idle(own)

    # Reading and writing

    async def read(self, content: Content, offset: int, length: int) -> Buffer:
        """See `ContentCache.read`. May return without a checkpoint. Raises Unavailable after `timeout_s`."""
        return await self.parts.reader.read(_own(content), offset, length)

    def peek(self, content: Content, start: int, end: int) -> Buffer | None:
        """See `ContentCache.peek`."""
        own = _own(content)
        return self.parts.files.read_now(own.id, start, end - start) if own.present.covers(start, end) else None

    async def write(self, content: Content, offset: int, data: Buffer) -> None:
        """See `ContentCache.write`. May return without a checkpoint."""
        await self.parts.writer.write(_own(content), offset, data)

    async def truncate(self, content: Content, size: int) -> None:
        """See `ContentCache.truncate`."""
        await self.parts.writer.truncate(_own(content), size)

    def set_metadata(self, content: Content, metadata: Mapping[str, str], *, explicit_times: bool = False) -> None:
        """See `ContentCache.set_metadata`."""
        self.parts.writer.describe(_own(content), metadata, explicit_times)

    # Local durability

    async def sync(self, content: Content) -> None:
        """See `ContentCache.sync`. Raises Conflict when the content is CONFLICTED."""
        own = _own(content)
        if own.state is State.CONFLICTED and not own.keeping:
            raise Conflict(own.key, own.conflict_key)
        await self.parts.saver.sync(own)

    async def sync_all(self) -> None:
        """See `ContentCache.sync_all`."""
        await for_each(self.parts.ledger.unsynced, self.parts.saver.sync, limit=_SYNCS_AT_ONCE)

    # Publishing

    def schedule(self, content: Content) -> None:
        """See `ContentCache.schedule`."""
        own = _own(content)
        if own.state is State.DIRTY:
            self.parts.writeback.settle(own)

    async def publish(self, content: Content) -> Version:
        """See `ContentCache.publish`."""
        own = _own(content)
        try:
            return await self.parts.publisher.publish(own)
        except Conflict:
            raise
        except S3volError:
            if own.state is State.DIRTY:
                self.parts.writeback.schedule(own)
            raise

    async def move(self, content: Content, key: str, base: Version | None) -> None:
        """See `ContentCache.move`."""
        own = _own(content)
        parts = self.parts
        async with own.publish_lock:
            await parts.publisher.settle_doubts(own)
            if own.state is not State.DIRTY or own.derived:
                raise PreconditionFailed(f"{own.key}: was published meanwhile")
            await parts.sender.drop_stream(own)
            before = own.key, own.base
            own.key, own.base = key, base
            try:
                async with own.sync_lock:
                    if own.journal_state is not None:
                        await self._commit(parts.saver.record_change(own))
            except BaseException:
                own.key, own.base = before
                raise
            finally:
                parts.registry.refresh(own)

    async def _commit(self, statements: list[records.Statement], *, durable: bool = True) -> None:
        """Not to be cancelled: memory and journal must go on to say the same."""
        with trio.CancelScope(shield=True):
            await self.parts.journal.commit(statements, durable=durable)
        if not durable:
            self.parts.saver.note_lazy()

    def rekey(self, content: Content, info: ObjectInfo) -> None:
        """See `ContentCache.rekey`."""
        own = _own(content)
        if own.publish_lock.locked():
            raise PosixError(errno.EBUSY, f"{own.key}: is being published")
        if own.state is State.CLEAN:
            own.metadata = {name: value for name, value in (info.metadata or {}).items() if name != NONCE}
        own.key = info.key
        own.rebase(info.version)
        self.parts.registry.refresh(own)
        self.parts.saver.record_publish(own)

    async def discard(self, content: Content, *, durable: bool = True) -> None:
        """See `ContentCache.discard`."""
        own = _own(content)
        parts = self.parts
        before, own.state = own.state, State.DISCARDED  # a publisher looks at it between two requests
        try:
            if own.stream is not None and own.stream.scope is not None:
                own.stream.scope.cancel()
            async with own.publish_lock, own.sync_lock:
                await parts.sender.drop_stream(own)
                if own.journal_state is State.DIRTY:
                    known = own.base is not None or bool(own.attempts) or own.unresolved
                    await self._commit(records.drop_content(own.id), durable=durable or known)
        except BaseException:
            own.state = before
            if before is State.DIRTY and own.generation == own.published_generation:
                own.state = State.CLEAN  # the publish that was waited for
            if own.unkept:
                own.state, own.unkept = State.DIRTY, False  # the conflict copy that was waited for was not made
            if own.is_unpublished or own.state is State.CLEAN:
                parts.saver.record_publish(own)
            parts.registry.refresh(own)
            parts.ledger.update(own)
            raise
        parts.journal.enqueue(parts.saver.record_gone(own))
        parts.registry.refresh(own)
        parts.ledger.update(own)
        if own.refs == 0:
            parts.registry.idle(own)

    def is_local(self, content: Content) -> bool:
        """See `ContentCache.is_local`."""
        own = _own(content)
        return not own.absent(0, own.size)

    def status(self) -> CacheStatus:
        """See `ContentCache.status`."""
        parts = self.parts
        self._health.gauges["journal_failures"] = parts.journal.failures
        return CacheStatus(
            directory=str(self._settings.directory),
            used_bytes=parts.files.used_bytes,
            size_bytes=self._settings.size_bytes,
            dirty_bytes=parts.ledger.dirty_bytes,
            dirty_files=len(parts.ledger.dirty),
            oldest_dirty_s=parts.ledger.oldest_age_s(),
            in_flight_bytes=parts.budget.used_bytes,
            conflicts=self._health.counts.get("conflicts", 0),
            quarantined=self._quarantined,
        )

    # Notes

    def notes(self, kind: str) -> Mapping[str, str]:
        """See `ContentCache.notes`."""
        return dict(self._notes.get(kind, {}))

    def note(self, kind: str, name: str, value: str | None) -> None:
        """See `ContentCache.note`."""
        table = self._notes.setdefault(kind, {})
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value
        self.parts.journal.enqueue(records.set_note(kind, name, value))

    async def settle_notes(self) -> None:
        """See `ContentCache.settle_notes`."""
        with suppress(NoSpace):  # kept, and first in the next commit: no rename fails for want of a note
            await self.parts.journal.settle()

    async def sync_notes(self) -> None:
        """See `ContentCache.sync_notes`."""
        await self.parts.saver.flush_records()


def _own(content: Content) -> CachedContent:
    if not isinstance(content, CachedContent):
        raise TypeError(f"{content!r} is not a content of this cache")
    return content
