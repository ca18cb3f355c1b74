"""Uploader: publishes large content as a multipart upload, conditionally.

Theory of operation. Content that has nothing in common with the base goes as grid parts, those that were sent while
it was written included (cache/stream.py), and a tail; after a failure the parts are still there and the next round
uses them. Else changed ranges are sent and the others copied on the server from the base, If-Match.

A snapshot is taken first. What is written while parts are sent is dirty again and will be published again; a part may
hold some of it already, which is as harmless as for any program that reads a file while it is written. But content
that is *cut* meanwhile is abandoned, and so is what is discarded: the check is right before the Complete, without an
`await`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from s3vol.cache.base import State
from s3vol.cache.content import Abandoned, CachedContent, Snapshot
from s3vol.cache.guard import Guard
from s3vol.cache.nonce import format_nonce, parts_etag
from s3vol.cache.plan import Copy, Multipart, Upload, part_at, plan_publish
from s3vol.cache.sender import Sender
from s3vol.cache.stream import Stream
from s3vol.errors import Corrupt, NotFound
from s3vol.failpoints import Point, hit
from s3vol.parallel import run_all
from s3vol.store.base import Part, Store
from s3vol.types import Version


@dataclass(frozen=True, slots=True)
class Sent:
    """What is in the bucket now."""

    snapshot: Snapshot
    version: Version
    metadata: Mapping[str, str]


class Uploader:
    """Of one cache. Raises what the store raises, and Abandoned."""

    def __init__(self, store: Store, sender: Sender, guard: Guard, cache_id: str) -> None:
        self._store = store
        self._sender = sender
        self._guard = guard
        self._cache_id = cache_id

    async def upload(self, content: CachedContent) -> Sent:
        """Publish the content as of now. After it returns the caller settles without an `await`."""
        if content.base_limit == 0:
            await self._close_stream(content)
            return await self._upload_grid(content)
        await self._sender.drop_stream(content)
        return await self._upload_changes(content)

    async def _close_stream(self, content: CachedContent) -> None:
        stream = content.stream
        if stream is not None:
            stream.closing = True
            stream.ready.set()
            await stream.idle.wait()

    async def _upload_grid(self, content: CachedContent) -> Sent:
        """Grid parts, then the tail. No await between the copy of `done` and the snapshot: they belong together."""
        stream = content.stream
        if stream is not None and stream.attempt not in content.attempts:
            await self._sender.drop_stream(content)  # a later attempt was applied: its nonce would look outdated
            stream = None
        if stream is None:
            stream = Stream(content.metadata, closing=True)
            stream.idle.set()
            stream.attempt, nonce = self._sender.number_attempt(content)
            stream.upload_id = await self._sender.begin(content.key, stream.metadata, content.content_type, nonce)
            content.stream = stream
        snapshot = content.take()
        parts = dict(stream.done)
        count = part_at(snapshot.size) - 1
        tail = plan_publish(snapshot.size, (), 0, self._store.capabilities, streamed=count)
        assert isinstance(tail, Multipart)  # grid parts are before it
        for at in range(len(tail.parts)):
            stream.spoil(count + 1 + at)

        async def send_grid(number: int) -> None:
            self._check(content, snapshot)
            parts[number] = await self._sender.send_grid_part(content, stream, number)

        async def send_tail(number: int, start: int, end: int) -> None:
            self._check(content, snapshot)
            parts[number] = await self._sender.send_part(content, content.key, stream.upload_id, number, start, end)

        missing = [number for number in range(1, count + 1) if number not in parts]
        for number in missing:
            stream.take(number)
        jobs = [partial(send_grid, number) for number in missing]
        jobs += [partial(send_tail, count + 1 + at, part.start, part.end) for at, part in enumerate(tail.parts)]
        if jobs:
            try:
                await run_all(jobs)
            except NotFound:
                await self._sender.drop_stream(content)
                raise
        numbers = range(1, count + len(tail.parts) + 1)
        try:
            version = await self._complete(
                content, snapshot, stream.upload_id, stream.attempt, [parts[number] for number in numbers]
            )
        except NotFound:  # the id is unknown (completed, or dropped by the store), or the base is gone
            await self._sender.drop_stream(content)
            raise
        content.stream = None
        return Sent(snapshot, version, stream.metadata)

    async def _complete(
        self, content: CachedContent, snapshot: Snapshot, upload_id: str, number: int, parts: list[Part]
    ) -> Version:
        """Complete, and check the ETag. After the last check there is no await before the request."""
        can = self._store.capabilities
        expected = parts_etag([part.etag for part in parts]) if can.etag_is_md5 else None
        condition = await self._guard.condition(content)
        self._check(content, snapshot)
        attempt = content.attempts[number]
        attempt.note(expected or "", snapshot.generation)
        hit(Point.UPLOAD_BEFORE_COMPLETE)
        etag = await self._store.complete_upload(content.key, upload_id, parts, condition=condition)
        hit(Point.UPLOAD_AFTER_COMPLETE)
        self._sender.ended(upload_id)
        self._sender.progress(content, 0)
        if expected is not None and etag != expected:
            attempt.broken = True
            raise Corrupt(f"{content.key}: the store has ETag {etag} for parts that make {expected}")
        return Version(etag, format_nonce(self._cache_id, content.id, number))

    async def _upload_changes(self, content: CachedContent) -> Sent:
        base, key = content.base, content.key
        assert base is not None  # base_limit > 0
        snapshot = content.take()
        plan = plan_publish(snapshot.size, content.inflight, content.base_limit, self._store.capabilities)
        assert isinstance(plan, Multipart)  # larger than SMALL_BYTES
        number, nonce = self._sender.number_attempt(content)
        upload_id = await self._sender.begin(key, snapshot.metadata, snapshot.content_type, nonce)
        parts: dict[int, Part] = {}

        async def send(at: int, piece: Upload | Copy) -> None:
            self._check(content, snapshot)
            if isinstance(piece, Copy):
                parts[at] = await self._sender.copy_part(content, key, upload_id, at, piece.start, piece.end, base.etag)
            else:
                parts[at] = await self._sender.send_part(content, key, upload_id, at, piece.start, piece.end)

        try:
            await run_all([partial(send, at, piece) for at, piece in enumerate(plan.parts, start=plan.first)])
            ordered = [parts[at] for at in sorted(parts)]
            version = await self._complete(content, snapshot, upload_id, number, ordered)
        except BaseException:
            await self._sender.abort(key, upload_id)
            raise
        return Sent(snapshot, version, snapshot.metadata)

    def _check(self, content: CachedContent, snapshot: Snapshot) -> None:
        if content.low_water < snapshot.size or content.state is not State.DIRTY:
            raise Abandoned
