"""Writer: writes, truncates and metadata changes of a content, admitted one by one.

Theory of operation. A change is one step without `await`: look, pwrite, mark. Whatever must be waited for first
(room, the dirty cap, the journal, a truncate that is at work) is waited for in a loop that then looks at *everything*
again; so there is no lock around writes, and nothing can change between the last look and the write.

A write is accepted whole or not at all. Room is made before; where old bytes are overwritten, blocks are allocated
before (fallocate, 6 µs), so that a full disk cannot stop us in the middle of them; where only new bytes are written,
what a failed pwrite left is punched again. (Overwriting allocated blocks cannot run out of space, but on
copy-on-write file systems.)

A large new file begins its upload while it is written (cache/stream.py).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import trio

from s3vol.cache.background import Background
from s3vol.cache.base import CacheSettings, State
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.fetch import Fetcher
from s3vol.cache.journal import Journal
from s3vol.cache.ledger import Ledger
from s3vol.cache.policy import admits
from s3vol.cache.publish import Publisher
from s3vol.cache.registry import Registry
from s3vol.cache.saver import Saver
from s3vol.cache.sender import Sender
from s3vol.cache.space import Space
from s3vol.cache.stream import Stream, may_begin
from s3vol.cache.writeback import WriteBack
from s3vol.errors import NoSpace, PosixError, S3volError, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.store.base import Buffer
from s3vol.types import CHUNK_BYTES, Health


class Writer:
    """Of one cache."""

    def __init__(
        self,
        files: DataFiles,
        journal: Journal,
        registry: Registry,
        ledger: Ledger,
        space: Space,
        saver: Saver,
        sender: Sender,
        publisher: Publisher,
        fetcher: Fetcher,
        writeback: WriteBack,
        tasks: Background,
        settings: CacheSettings,
        health: Health,
    ) -> None:
        self._files = files
        self._journal = journal
        self._registry = registry
        self._ledger = ledger
        self._space = space
        self._saver = saver
        self._sender = sender
        self._publisher = publisher
        self._fetcher = fetcher
        self._writeback = writeback
        self._tasks = tasks
        self._settings = settings
        self._health = health

    async def write(self, content: CachedContent, offset: int, data: Buffer) -> None:
        """See `ContentCache.write`. May return without a checkpoint."""
        end = offset + len(data)
        if end > offset:
            deadline_s = trio.current_time() + self._settings.timeout_s
            while not await self._is_ready(content, offset, end, deadline_s):
                pass
            self._put(content, offset, data)

    async def _is_ready(self, content: CachedContent, start: int, end: int, deadline_s: float) -> bool:
        """True, without having awaited anything, when the range may be written now. False: waited; ask again."""
        settings = self._settings
        if await self._has_waited(content, deadline_s):
            return False
        if content.state is not State.DISCARDED:
            more = end - start - content.dirty.count(start, end)
            age_s = self._ledger.oldest_age_s()
            if not admits(self._ledger.unsent_bytes, more, settings.dirty_max_bytes, age_s, settings.dirty_age_s):
                await self._wait_for_less(
                    deadline_s, Unavailable("too much unpublished data; the endpoint is too slow")
                )
                return False
        if (landing := content.landing_in(start, end)) is not None:
            await landing.wait()
            return False
        if self._fetcher.held.has(content):
            await self._fetcher.unhold(content)
            return False
        new = 0 if content.dirty.covers(start, end) else end - start - content.present.count(start, end)
        if new and self._space.missing_bytes(new) > 0:
            try:
                await self._space.make_room(new)
            except NoSpace as error:
                await self._wait_for_less(deadline_s, error)
            return False
        if content.recorded_in(start, end):
            await self._space.unrecord(content, start, end)
            return False
        return True

    async def _has_waited(self, content: CachedContent, deadline_s: float) -> bool:
        """Wait for what forbids any change of the content; True when something was waited for. Raises ESTALE."""
        if content.state is State.CONFLICTED:
            raise PosixError(errno.ESTALE, f"{content.key}: kept as {content.conflict_key} after a conflict")
        if content.cutting is not None:
            await content.cutting.wait()
            return True
        if content.unresolved and content.state is State.DIRTY:
            with trio.move_on_at(deadline_s):
                await self._publisher.resolve(content)
                return True
            raise Unavailable(f"{content.key}: no answer about what was published before the restart")
        return False

    async def _wait_for_less(self, deadline_s: float, error: S3volError) -> None:
        """Publish the oldest and wait until something is published; raise `error` when there is nothing to wait for."""
        ledger = self._ledger
        if not ledger.dirty or self._tasks.nursery is None:
            raise error
        self._writeback.press(self._settings.dirty_max_bytes // 4)
        self._health.count("writes_delayed")
        with trio.move_on_at(deadline_s):
            await ledger.wait_less()
            return
        raise error

    def _put(self, content: CachedContent, start: int, data: Buffer) -> None:
        """The write itself, in one step."""
        files = self._files
        end = start + len(data)
        overwrites = content.present.touches(start, end)
        if overwrites and not content.dirty.covers(start, end):
            files.reserve(content.id, start, end - start)  # else a full disk could stop us in the middle of old bytes
        try:
            files.write(content.id, start, data)
        except S3volError:
            if not overwrites:  # what was written of it is in nobody's range, but must not show up when the file grows
                files.punch(content.id, start, end)
                files.cut(content.id, max(content.size, start))
                content.cut_unflushed = True
            raise
        content.written(start, end)
        self._changed(content)
        lru = self._space.lru
        for index in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
            lru.use(content, index)
        self._stream(content)
        hit(Point.WRITE_AFTER_DATA)

    def _stream(self, content: CachedContent) -> None:
        """Begin or go on to upload a large new file while it is written. No await."""
        stream = content.stream
        if stream is not None:
            if not stream.ready.is_set() and stream.next_part(content.dirty) is not None:
                stream.ready.set()
        elif (
            self._tasks.nursery is not None
            and content.state is State.DIRTY
            and may_begin(content.dirty, content.base_limit)
            and not content.publish_lock.locked()
            and not content.unstreamable
        ):
            content.stream = Stream(content.metadata)
            self._tasks.nursery.start_soon(self._sender.stream, content, content.stream)

    async def truncate(self, content: CachedContent, size: int) -> None:
        """See `ContentCache.truncate`."""
        deadline_s = trio.current_time() + self._settings.timeout_s
        while size != content.size:
            low, high = min(size, content.size), max(size, content.size)
            if await self._has_waited(content, deadline_s):
                continue
            if 0 < size < content.size and self._fetcher.held.has(content):
                await self._fetcher.unhold(content)
                continue
            if content.recorded_in(low, high):
                await self._space.unrecord(content, low, high)
                continue
            if (landing := content.landing_in(low, high)) is not None:
                await landing.wait()
                continue
            if size < content.size and content.journal_state is State.DIRTY:
                await self._cut_durably(content, size)
                continue
            content.resized(size)
            self._files.cut(content.id, size)
            self._changed(content)
        await trio.lowlevel.checkpoint()

    async def _cut_durably(self, content: CachedContent, size: int) -> None:
        """Cut content that the journal vouches for: the record first, else a crash would show zeros under the old size.

        `sync_lock`: no older record may be committed behind ours. `cutting` keeps writes away from what is to be cut.
        Returns without effect when the content changed while waiting for the lock.
        """
        async with content.sync_lock:
            if size >= content.size or content.cutting is not None or content.recorded_in(size, content.size):
                return
            if content.state is State.CONFLICTED or content.landing_in(size, content.size) is not None:
                return
            cutting, before = trio.Event(), content.size
            content.cutting = cutting
            content.resized(size)
            self._changed(content)
            try:
                with trio.CancelScope(shield=True):
                    await self._journal.commit(self._saver.record_change(content), durable=True)
            except BaseException:
                if self._files.exists(content.id):  # not cut: what is shorter than its record would not be believed
                    self._files.punch(content.id, size, before)
                raise
            else:
                self._files.cut(content.id, size)
            finally:
                content.cutting = None
                cutting.set()

    def describe(self, content: CachedContent, metadata: Mapping[str, str], explicit_times: bool) -> None:
        """See `ContentCache.set_metadata`."""
        if content.state is State.CONFLICTED:
            raise PosixError(errno.ESTALE, f"{content.key}: kept as {content.conflict_key} after a conflict")
        if content.describe(metadata, explicit_times):
            self._changed(content)

    def _changed(self, content: CachedContent) -> None:
        self._ledger.update(content)
        self._registry.changed(content)
