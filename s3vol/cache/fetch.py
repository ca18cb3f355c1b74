"""Fetcher: brings absent bytes from the bucket to the disk; one request per chunk, whoever asks.

Theory of operation. `ensure` looks which chunks of a range are absent, claims those that nobody fetches yet (no
`await` between look and claim), gets them in runs of up to 8 MiB in parallel, and waits for those that others fetch.
Whoever waited looks again: if the other one failed or was cancelled, it fetches them itself. So nothing has to be
handed over on cancellation, and an error is raised to each caller from a request of its own.

Every GET carries If-Match. If the content has another base when the answer arrives (a publish finished, the object
was renamed), the answer is thrown away and the look repeated. What arrives is written only into gaps that are there
now, with no `await` between look and pwrite: a write that came first stays.

What a sequential reader needs *lands*: readers are served from memory at once (cache/bodies.py), and a thread writes it
past the page cache. Its chunks stay claimed (`fetching`) for those who need them on the disk, and
nobody changes them (`landing`) until the thread is done.

While a publish is at work the object may already be the new one although we have not seen the reply: a failed
If-Match then waits for the publish before it means anything; not while it holds chunks or budget that the publisher
may need.

When the disk has no room even after eviction, `read_through` serves the bytes from memory. So it does for a range that
does not stay on the disk: where the range, or all that is fetched at a time, is larger than the room there is, its
own fetches evict one another, and would for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from s3vol.cache.background import Background
from s3vol.cache.base import CacheSettings, State
from s3vol.cache.bodies import Body, Shelf
from s3vol.cache.budget import ByteBudget
from s3vol.cache.content import CachedContent
from s3vol.cache.direct import PAGE_BYTES
from s3vol.cache.disk import PIECE_BYTES, DataFiles
from s3vol.cache.extents import Range, RangeSet
from s3vol.cache.held import Held
from s3vol.cache.space import Space
from s3vol.errors import Corrupt, NoSpace, NotFound, PreconditionFailed, S3volError
from s3vol.parallel import run_all
from s3vol.store.base import Buffer, Store
from s3vol.types import CHUNK_BYTES, KIB, MIB, Health, Version

RUN_BYTES = 8 * MIB
_RUN_CHUNKS = RUN_BYTES // CHUNK_BYTES
_TRIES = 2  # fetches of one range by one caller before the room is said to be too small for it
_LANDING_BYTES = 256 * KIB  # less is copied into the page cache in the time that it takes to ask a thread


@dataclass(slots=True)
class _Run:
    """Chunks first to last, claimed by one fetch. `over` is set when those who wait for them should look again."""

    first: int
    last: int
    over: trio.Event
    error: S3volError | None = None  # why nothing came, for the reader on whose behalf it was asked for
    overtaken: bool = False  # a publish at work may have replaced the object


class _BeingPublished(Exception):
    """If-Match failed while a publish is at work: it may have replaced the object, and its reply be on the way."""


class Fetcher:
    """Of one cache. Raises what the store raises; PreconditionFailed when the version is gone; NoSpace.

    `on_filled(content)` is called when fetched bytes of it are on the disk, for the journal to know.
    """

    def __init__(
        self,
        store: Store,
        files: DataFiles,
        space: Space,
        budget: ByteBudget,
        shelf: Shelf,
        held: Held,
        settings: CacheSettings,
        health: Health,
        tasks: Background,
        on_filled: Callable[[CachedContent], None],
    ) -> None:
        self._store = store
        self._files = files
        self._space = space
        self._budget = budget
        self._shelf = shelf
        self.held = held
        self._tasks = tasks
        self._on_filled = on_filled
        self._health = health
        self._downloads = trio.Semaphore(settings.downloads)

    async def ensure(
        self,
        content: CachedContent,
        start: int,
        end: int,
        *,
        publishing: bool = False,
        reading: bool = False,
        landing: bool = False,
    ) -> None:
        """Return when the range was present at a moment after the call, or the content is dropped.

        `publishing`: the caller is the publisher. `reading`: bytes in memory will do (`content.bodies`). `landing`: for
        a sequential reader, so the page cache need not have them. Raises NoSpace when there is no room for the range,
        or not for long enough.
        """
        tries = 0
        while not content.dropped and (missing := content.absent(start, end)):
            if reading and content.bodies.covers(start, end):
                return
            if not reading and self.held.has(content, missing[0][0] + 1):
                await self.unhold(content)
                continue
            runs, busy = self._claim(content, missing)
            if not runs and busy is not None:
                await busy.wait()
                continue
            if tries == _TRIES:
                for run in runs:
                    _release(content, run)
                raise NoSpace(
                    f"{content.key}: {end - start} bytes do not stay in a cache of this size until all are there"
                )
            tries += 1
            if reading and landing and self._tasks.nursery is not None:
                error = await self._fetch_bodies(content, runs, self._tasks.nursery)
                if error is not None and not content.bodies.covers(start, end):
                    raise error
            else:
                try:
                    await run_all([partial(self._fetch, content, run, publishing, landing) for run in runs])
                finally:
                    for run in runs:
                        _release(content, run)
            if any(run.overtaken for run in runs):
                async with content.publish_lock:
                    pass  # now that the publisher can have the chunks, semaphore and budget that we had

    async def _fetch_bodies(self, content: CachedContent, runs: list[_Run], nursery: trio.Nursery) -> S3volError | None:
        """Return when the bytes are in memory, while others bring them to the disk; or why some of them are not."""
        comes = [run.over for run in runs]
        for run in runs:
            nursery.start_soon(self._fetch_for, content, run)
        for over in comes:
            await over.wait()
        return next((run.error for run in runs if run.error is not None), None)

    async def _fetch_for(self, content: CachedContent, run: _Run) -> None:
        try:
            await self._fetch(content, run, publishing=False, landing=True)
        except S3volError as error:
            run.error = error

    def _claim(self, content: CachedContent, missing: list[Range]) -> tuple[list[_Run], trio.Event | None]:
        """Claim the chunks that nobody fetches; the event is that of one that somebody does. No await."""
        runs: list[_Run] = []
        busy: trio.Event | None = None
        wanted: list[int] = []
        for start, end in missing:
            for index in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
                if index in content.fetching:
                    busy = content.fetching[index]
                elif not wanted or wanted[-1] != index:
                    wanted.append(index)
        at = 0
        while at < len(wanted):
            stop = at + 1
            while stop < len(wanted) and wanted[stop] == wanted[stop - 1] + 1 and stop - at < _RUN_CHUNKS:
                stop += 1
            run = _Run(wanted[at], wanted[stop - 1], trio.Event())
            for index in wanted[at:stop]:
                content.fetching[index] = run.over
            runs.append(run)
            at = stop
        return runs, busy

    async def _fetch(self, content: CachedContent, run: _Run, publishing: bool, landing: bool) -> None:
        start = run.first * CHUNK_BYTES
        end = min((run.last + 1) * CHUNK_BYTES, content.base_limit)
        try:
            if start < end:
                await self._space.make_room(end - start)
                async with self._downloads, self._budget.hold(end - start):
                    body = await self._get(content, start, end, publishing=publishing)
                    if body is None:
                        pass
                    elif not landing or end - start < _LANDING_BYTES:
                        await self._fill(content, start, body)
                    else:
                        await self._land(content, run, start, memoryview(body))
            self._on_filled(content)
        except _BeingPublished:
            run.overtaken = True
        finally:
            _release(content, run)

    async def _get(self, content: CachedContent, start: int, end: int, *, publishing: bool) -> Buffer | None:
        """These bytes of the base, or None when the base changed meanwhile. Takes no budget."""
        key, base = content.key, content.base
        if base is None or end > content.base_limit:
            return None  # cut while we waited for our turn: the object may end before
        try:
            body = await self._store.get(key, start, end - start, if_match=base.etag)
        except (PreconditionFailed, NotFound) as error:
            if content.key != key or content.base is not base:
                return None
            if not publishing and content.publish_lock.locked():
                raise _BeingPublished from None
            raise PreconditionFailed(f"{key}: the version that is being read is gone from the bucket") from error
        if content.key != key or content.base is not base:
            return None
        if len(body) != end - start:
            raise Corrupt(f"{key}: {len(body)} bytes from offset {start} instead of {end - start} under the same ETag")
        self._health.count("fetched_bytes", len(body))
        return body

    async def fill(self, content: CachedContent, body: Buffer) -> None:
        """Keep what was fetched with the proof that this is the current version; a full disk does not matter.

        The journal is not told: after a restart the next proof brings these bytes again, for less than a record costs.
        """
        self._health.count("fetched_bytes", len(body))
        await self._keep(content, body)

    async def hold(self, content: CachedContent, body: Buffer) -> None:
        """`fill`, but in memory for as long as somebody has the content open; only what is too much is kept."""
        if content.state is not State.CLEAN:  # its readers see what was written
            await self.fill(content, body)
            return
        self._health.count("fetched_bytes", len(body))
        self.held.put(content, memoryview(body))
        while (old := self.held.take_excess()) is not None:
            await self._put_down(*old)

    async def unhold(self, content: CachedContent) -> None:
        """Bring what is held of a content to the disk, if there is room."""
        body = self.held.take(content)
        if body is not None:
            await self._put_down(content, body)

    async def _put_down(self, content: CachedContent, body: Body) -> None:
        try:
            await self._keep(content, body.bytes)
        finally:
            body.give_up()

    async def _keep(self, content: CachedContent, body: Buffer) -> None:
        base = content.base
        try:
            await self._space.make_room(len(body))
            if content.base is base and not content.dropped:
                await self._fill(content, 0, body)
        except NoSpace:
            return  # the reader fetches what he needs, and has his own way around a full disk

    async def _fill(self, content: CachedContent, start: int, body: Buffer) -> None:
        view = memoryview(body)
        base = content.base
        for at in range(0, len(view), PIECE_BYTES):
            if at:
                await trio.lowlevel.checkpoint()
            piece_end = start + min(at + PIECE_BYTES, len(view))
            await self._space.make_room(piece_end - start - at)  # others may have used what was made before
            if content.base is not base or content.dropped:
                return
            for low, high in content.absent(start + at, piece_end):
                self._files.write(content.id, low, view[low - start : high - start])
                self._filled(content, low, high)

    async def _land(self, content: CachedContent, run: _Run, start: int, body: memoryview) -> None:
        """Serve readers from `body`, and bring it to the disk past the page cache."""
        base = content.base
        if not content.is_changed(start, start + len(body)):  # what is here of it is the same
            self._shelf.put(content.bodies, start, body)  # whole: a slice would hold all of it and count as a part
        run.over.set()
        run.over = over = trio.Event()
        chunks = range(run.first, run.last + 1)
        content.fetching.update(dict.fromkeys(chunks, over))
        await self._space.make_room(len(body))  # others may have used what was made before
        if content.base is not base or content.dropped:
            return
        # No await from here to the thread: nobody else writes into what is a gap now.
        gaps = content.absent(start, start + len(body))
        cores = [core for gap in gaps if (core := _whole_pages(gap))]
        content.landing.update(dict.fromkeys(chunks, over))
        landed = False
        try:
            for low, high in cores:
                self._files.reserve(content.id, low, high - low)
            for low, high in _differences(gaps, cores):
                self._files.write(content.id, low, body[low - start : high - start])
            await self._files.write_direct(content.id, [(low, body[low - start : high - start]) for low, high in cores])
            landed = content.base is base and not content.dropped
        finally:
            for index in chunks:
                del content.landing[index]
            for low, high in gaps:
                if landed:
                    self._filled(content, low, high)
                elif not content.dropped:
                    for start, end in content.absent(low, high):  # others may have filled a part
                        self._files.punch(content.id, start, end)

    def _filled(self, content: CachedContent, start: int, end: int) -> None:
        content.filled(start, end)
        for index in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
            self._space.lru.use(content, index)

    async def read_through(
        self, content: CachedContent, start: int, length: int, *, publishing: bool = False
    ) -> bytearray:
        """The bytes without keeping them: for a disk that has no room."""
        while True:
            base = content.base
            end = min(start + length, content.size)
            fetched: list[tuple[int, Buffer]] = []
            try:
                for low, high in content.absent(start, end):
                    async with self._downloads, self._budget.hold(high - low):
                        body = await self._get(content, low, high, publishing=publishing)
                    if body is None:
                        break
                    fetched.append((low, body))
            except _BeingPublished:
                async with content.publish_lock:
                    continue
            if (result := await self._mixed(content, base, start, length, fetched)) is not None:
                return result

    async def _mixed(
        self, content: CachedContent, base: Version | None, start: int, length: int, fetched: list[tuple[int, Buffer]]
    ) -> bytearray | None:
        """What is on the disk and, where nothing is, what was fetched; None when more has to be fetched by now.

        Nothing may come between the read of the disk and the look at what is absent there: a hole that is filled in
        between would be taken for bytes.
        """
        for _ in range(2):
            end = min(start + length, content.size)
            result = self._files.read_now(content.id, start, max(0, end - start))
            if result is not None:
                gaps = content.absent(start, end)
                return result if content.base is base and _overlay(result, start, gaps, fetched) else None
            await self._files.read(content.id, start, end - start)  # brings it into the page cache
        return None


def _overlay(result: bytearray, start: int, gaps: list[Range], fetched: list[tuple[int, Buffer]]) -> bool:
    """Put fetched bytes over what is absent on the disk; False when something is missing."""
    for low, high in gaps:
        for at, body in fetched:
            if at <= low and high <= at + len(body):
                result[low - start : high - start] = memoryview(body)[low - at : high - at]
                break
        else:
            return False
    return True


def _whole_pages(gap: Range) -> Range | None:
    """The pages that lie in the gap with all their bytes."""
    low, high = -(-gap[0] // PAGE_BYTES) * PAGE_BYTES, gap[1] // PAGE_BYTES * PAGE_BYTES
    return (low, high) if low < high else None


def _differences(gaps: list[Range], cores: list[Range]) -> RangeSet:
    """The bytes of the gaps that no core has."""
    rest = RangeSet(gaps)
    for low, high in cores:
        rest.remove(low, high)
    return rest


def _release(content: CachedContent, run: _Run) -> None:
    for index in range(run.first, run.last + 1):
        if content.fetching.get(index) is run.over:
            del content.fetching[index]
    run.over.set()
