"""Sender: the requests of a multipart upload, with bodies taken from the disk and counted in the byte budget.

Theory of operation. An upload id is in the journal (FULL commit) before the first part is sent, because servers
forget what they do not list (docs/minio.md). It leaves the journal when the upload is completed or aborted; what a
process could not abort, the next one does. A body is read when its turn comes: semaphore first, then budget, then the
read; nobody who holds budget waits for a semaphore.

An abort that the store did not answer is `left_behind`, and the background tries it again (cache/writeback.py).

`stream` sends the grid parts of a file while it is being written (cache/stream.py). It ends when a publisher takes
over (`closing`), when the content is discarded (its scope is cancelled), or when a request fails; then the upload is
aborted and the publish sends everything itself. Where memory is dear (cache/pagecost.py) the page cache need not keep
what was sent: its pages are the next ones that are written to, instead of new ones for each byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import trio

from s3vol.cache import records
from s3vol.cache.base import CacheSettings
from s3vol.cache.budget import ByteBudget
from s3vol.cache.content import Abandoned, Attempt, CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.fetch import Fetcher
from s3vol.cache.journal import Journal
from s3vol.cache.ledger import Ledger
from s3vol.cache.nonce import format_nonce
from s3vol.cache.plan import part_range
from s3vol.cache.stream import Stream, without_times
from s3vol.errors import NoSpace, S3volError
from s3vol.failpoints import Point, hit
from s3vol.store.base import FILE_TYPE, Part, Store
from s3vol.types import MIB, NONCE, Health

_ABORT_S = 10.0
_PROMPT_BYTES = 64 * MIB  # bodies up to here have to be acknowledged within the time-out
_SLOWEST_BYTES_S = 4 * MIB  # what is larger may be sent as slowly as this
_LINGER_PARTS = 4  # whose pages may still have been dirty when they were sent
_STREAM_PARTS = 4  # of one file at a time, so that one fast writer does not take all uploads


class Sender:
    """Of one cache. Raises what the store and the fetcher raise, and Abandoned."""

    def __init__(
        self,
        store: Store,
        files: DataFiles,
        fetcher: Fetcher,
        journal: Journal,
        ledger: Ledger,
        budget: ByteBudget,
        settings: CacheSettings,
        health: Health,
        cache_id: str,
    ) -> None:
        self._store = store
        self._files = files
        self._fetcher = fetcher
        self._journal = journal
        self._ledger = ledger
        self._budget = budget
        self._health = health
        self._cache_id = cache_id
        self._timeout_s = settings.timeout_s
        self.uploads = trio.Semaphore(settings.uploads)
        self.left_behind: dict[str, str] = {}  # uploads that are still to be aborted: id to key
        self._left_some = trio.Event()

    def number_attempt(self, content: CachedContent) -> tuple[int, str]:
        """A new attempt number and its nonce. No await."""
        content.attempt += 1
        content.attempts[content.attempt] = Attempt()
        return content.attempt, format_nonce(self._cache_id, content.id, content.attempt)

    def progress(self, content: CachedContent, sent_bytes: int) -> None:
        """A request succeeded: whoever waits for this publish has its time-out again."""
        self._health.count("published_bytes", sent_bytes)
        for scope in content.watchers:
            scope.deadline = trio.current_time() + self._timeout_s

    def expect(self, content: CachedContent, size_bytes: int) -> None:
        """A request with a body begins. Parts of huge files are huge, and need longer than the time-out by nature."""
        more_s = max(0, size_bytes - _PROMPT_BYTES) / _SLOWEST_BYTES_S
        if more_s:
            for scope in content.watchers:
                scope.deadline = max(scope.deadline, trio.current_time() + self._timeout_s + more_s)

    async def fetch(self, content: CachedContent, start: int, end: int) -> bytearray | None:
        """Bring the range to the disk; where that has no room, the bytes themselves are returned."""
        try:
            await self._fetcher.ensure(content, start, end, publishing=True)
        except NoSpace:
            return bytearray(await self._fetcher.read_through(content, start, end - start, publishing=True))
        return None

    async def read(self, content: CachedContent, start: int, end: int) -> bytearray | None:
        """The range from the disk as it is now; None when some of it was evicted. Torn if written meanwhile."""
        before = content.evictions
        if content.absent(start, end):
            return None
        data = await self._files.read(content.id, start, end - start)
        return data if content.evictions == before else None

    async def read_now(self, content: CachedContent, start: int, end: int) -> bytearray | None:
        """The same without an `await`, so never torn; None also when it would block."""
        return None if content.absent(start, end) else self._files.read_now(content.id, start, end - start)

    async def begin(self, key: str, metadata: Mapping[str, str], content_type: str, nonce: str) -> str:
        """Begin an upload; returns its id, which is in the journal by then."""
        headers = {**metadata, NONCE: nonce}
        upload_id = await self._store.create_upload(key, metadata=headers, content_type=content_type or FILE_TYPE)
        try:
            await self._journal.commit(records.add_upload(upload_id, key), durable=True)
        except BaseException:
            await self.abort(key, upload_id)
            raise
        hit(Point.UPLOAD_AFTER_CREATE)
        return upload_id

    def ended(self, upload_id: str) -> None:
        """The upload is completed: forget its id. No await."""
        self._journal.enqueue(records.drop_upload(upload_id))

    async def abort(self, key: str, upload_id: str) -> None:
        """Drop an upload, even when cancelled. If the store does not answer, it is left behind."""
        with trio.CancelScope(shield=True), trio.move_on_after(_ABORT_S), contextlib.suppress(S3volError):
            await self._store.abort_upload(key, upload_id)
            self.ended(upload_id)
            return
        self._health.count("uploads_left_behind")
        self.leave_behind({upload_id: key})

    def leave_behind(self, uploads: Mapping[str, str]) -> None:
        """These uploads (id to key) are to be aborted when the store answers. No await."""
        self.left_behind.update(uploads)
        if self.left_behind:
            self._left_some.set()

    async def abort_left_behind(self) -> bool:
        """Wait until there are some, and try each once. True when none is left."""
        await self._left_some.wait()
        self._left_some = trio.Event()
        uploads, self.left_behind = self.left_behind, {}
        for upload_id, key in uploads.items():
            await self.abort(key, upload_id)
        return not self.left_behind

    async def send_part(
        self, content: CachedContent, key: str, upload_id: str, number: int, start: int, end: int
    ) -> Part:
        """Send bytes of the content as a part, absent ones fetched first."""
        while True:
            spare = await self.fetch(content, start, end)  # before budget is held: a holder must not wait for more
            async with self.uploads, self._budget.hold(end - start):
                body = await self.read(content, start, end) if spare is None else spare
                if body is None:
                    if content.dropped:
                        raise Abandoned
                    continue
                return await self._send(content, key, upload_id, number, body)

    async def send_what_is_left(
        self, content: CachedContent, key: str, upload_id: str, number: int, start: int, end: int
    ) -> Part:
        """The same for content whose base is gone: what is absent is sent as zeros."""
        async with self.uploads, self._budget.hold(end - start):
            return await self._send(content, key, upload_id, number, await self.read_what_is_left(content, start, end))

    async def read_what_is_left(self, content: CachedContent, start: int, end: int) -> bytearray:
        """The range from the disk, zeros where it is absent: the data file may hold anything there."""
        body = await self._files.read(content.id, start, end - start)
        for low, high in content.absent(start, end):
            body[low - start : high - start] = bytes(high - low)
        return body

    async def _send(self, content: CachedContent, key: str, upload_id: str, number: int, body: bytearray) -> Part:
        self.expect(content, len(body))
        part = await self._store.upload_part(key, upload_id, number, body)
        self.progress(content, len(body))
        hit(Point.UPLOAD_AFTER_PART)
        return part

    async def copy_part(
        self, content: CachedContent, key: str, upload_id: str, number: int, start: int, end: int, etag: str
    ) -> Part:
        """Let the server copy a range of the base as a part."""
        async with self.uploads:
            part = await self._store.copy_part(
                key, upload_id, number, source=key, start=start, length=end - start, if_match=etag
            )
        self.progress(content, 0)
        return part

    # Streaming

    async def stream(self, content: CachedContent, stream: Stream) -> None:
        """Send parts while the file grows, until somebody closes the stream."""
        if content.stream is not stream:
            stream.idle.set()
            return  # dropped before this task had its first turn
        try:
            with trio.CancelScope() as stream.scope:
                try:
                    await self._stream(content, stream)
                    return
                except Abandoned:
                    pass  # dropped while it was streamed
                except S3volError:
                    self._health.count("streams_given_up")
                    content.unstreamable = True
            if content.stream is stream:
                content.stream = None
                self._ledger.update(content)
            if stream.upload_id:
                await self.abort(content.key, stream.upload_id)
        finally:
            if content.stream is stream and not stream.upload_id:
                content.stream = None
            stream.scope = None
            stream.idle.set()

    async def _stream(self, content: CachedContent, stream: Stream) -> None:
        stream.attempt, nonce = self.number_attempt(content)
        stream.metadata = without_times(content.metadata)
        stream.upload_id = await self.begin(content.key, stream.metadata, content.content_type, nonce)
        turns = trio.Semaphore(_STREAM_PARTS)
        failures: list[S3volError | Abandoned] = []
        async with trio.open_nursery() as nursery:

            async def send(number: int) -> None:
                try:
                    await self.send_grid_part(content, stream, number)
                    self._ledger.update(content)
                except (S3volError, Abandoned) as failure:
                    failures.append(failure)
                finally:
                    turns.release()
                    stream.ready.set()

            while not stream.closing and not failures:
                await turns.acquire()
                number = stream.next_part(content.dirty)
                if number is None or failures:
                    turns.release()
                    if not stream.closing and not failures:
                        stream.ready = trio.Event()
                        await stream.ready.wait()
                    continue
                stream.take(number)
                nursery.start_soon(send, number)
        if failures:
            raise failures[0]

    async def send_grid_part(self, content: CachedContent, stream: Stream, number: int) -> Part:
        """Send a grid part; it counts as done unless it was written meanwhile. `stream.take` was called."""
        try:
            start, end = part_range(number)
            part = await self.send_part(content, content.key, stream.upload_id, number, start, end)
        except BaseException:
            stream.left(number)
            raise
        stream.sent(number, part)
        await self._files.let_go(content.id, part_range(max(1, number - _LINGER_PARTS))[0], end)
        return part

    async def drop_stream(self, content: CachedContent) -> None:
        """Stop streaming and abort the upload."""
        stream, content.stream = content.stream, None
        if stream is None:
            return
        if stream.scope is not None:
            stream.scope.cancel()
            await stream.idle.wait()
        elif stream.upload_id:
            await self.abort(content.key, stream.upload_id)
