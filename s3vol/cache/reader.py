"""Reader: serves bytes of a content, from the disk if they are there.

Theory of operation. The hot path is one `preadv(RWF_NOWAIT)` on the event loop, or, right behind the readahead, a look
at bytes that are still in memory. Everything else (absent bytes, a cold page cache) is the slow path: fetch, read in a
thread, and look again, because bytes may be evicted while a thread reads them. A small read that has to wait for the
disk brings what is around it (cache/readaround.py). A disk without room does not stop readers: they get the bytes from
memory.

Readahead is decided per read (cache/readahead.py) and done by tasks that nobody waits for; too many of them are not
begun. It fetches what is absent and, while large reads do not find their bytes in the page cache (`cold`), loads what
the disk has (cache/loader.py). Small reads that seem to be in order may as well be at random, within the slack of a
stream: what they ask for goes through the page cache, where the next ones find it.
"""

from __future__ import annotations

import trio

from s3vol.cache.background import Background
from s3vol.cache.base import CacheSettings
from s3vol.cache.content import CachedContent
from s3vol.cache.direct import PAGE_BYTES
from s3vol.cache.disk import DataFiles
from s3vol.cache.fetch import RUN_BYTES, Fetcher
from s3vol.cache.loader import Loader
from s3vol.cache.publish import Publisher
from s3vol.cache.readahead import Share
from s3vol.cache.readaround import SMALL_BYTES
from s3vol.cache.space import Space
from s3vol.errors import NoSpace, PreconditionFailed, S3volError, Unavailable
from s3vol.store.base import Buffer
from s3vol.types import CHUNK_BYTES, MIB, Health

LONG_BYTES = 3 * MIB  # what is fetched ahead and as long goes past the page cache, however small the reads are
_PREFETCHES_MAX = 32  # queued prefetch tasks; more are not begun, the reader then fetches by itself


class Reader:
    """Of one cache."""

    def __init__(
        self,
        files: DataFiles,
        space: Space,
        fetcher: Fetcher,
        loader: Loader,
        publisher: Publisher,
        tasks: Background,
        settings: CacheSettings,
        health: Health,
    ) -> None:
        self._files = files
        self._space = space
        self._fetcher = fetcher
        self._loader = loader
        self._publisher = publisher
        self._tasks = tasks
        self._settings = settings
        self._health = health
        self._share = Share(settings.readahead_max_bytes, settings.memory_bytes // 4)  # a good half of the shelf
        self._prefetches = 0

    async def read(self, content: CachedContent, offset: int, length: int) -> Buffer:
        """See `ContentCache.read`. May return without a checkpoint. Raises Unavailable after `timeout_s`."""
        end = min(offset + length, content.size)
        if end <= offset:
            return b""
        large = end - offset > SMALL_BYTES
        landing = False
        if content.base_limit and ((content.cold and large) or not content.present.covers(offset, content.base_limit)):
            landing = self._read_ahead(content, offset, end, large) and large
        lru = self._space.lru
        for index in range(offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
            lru.use(content, index)
        if content.bodies and (held := content.bodies.serve(offset, end)) is not None:
            return held
        if content.present.covers(offset, end) and not content.loading:
            data = self._files.read_now(content.id, offset, end - offset)
            if data is not None:
                content.around.hit(end - offset)
                content.cold = False
                return data
            if large and not content.cold:
                content.cold = True
                self._read_ahead(content, offset, end, large)
        return await self._read_slowly(content, offset, length, landing)

    async def _read_slowly(self, content: CachedContent, offset: int, length: int, landing: bool) -> Buffer:
        with trio.move_on_after(self._settings.timeout_s):
            while True:
                end = min(offset + length, content.size)
                if end <= offset:
                    return b""
                base = content.base
                try:
                    try:
                        await self._fetcher.ensure(content, offset, end, reading=True, landing=landing)
                    except NoSpace:
                        return await self._fetcher.read_through(content, offset, end - offset)
                except PreconditionFailed:
                    async with content.publish_lock:
                        await self._publisher.settle_doubts(content)  # it may be our own publish, its reply lost
                    if content.base is base:
                        raise
                    continue
                if (held := content.bodies.serve(offset, end)) is not None:
                    return held
                if end > content.size:
                    continue  # cut meanwhile: what is beyond was never zeros
                if content.absent(offset, end):
                    if content.dropped:
                        raise ValueError(f"{content.key}: read without a reference")
                    continue
                if (loading := content.loading_in(offset, end)) is not None:
                    await loading.wait()
                    continue
                before = content.evictions
                data = self._files.read_now(content.id, offset, end - offset)  # what was just fetched is there
                if data is None:
                    around = content.around.missed(offset, end, content.present, PAGE_BYTES)
                    data = await self._files.read(content.id, offset, end - offset, around)
                if content.evictions == before and end <= content.size:
                    return data
        raise Unavailable(f"{content.key}: no answer within {self._settings.timeout_s:g} s")

    def _read_ahead(self, content: CachedContent, start: int, end: int, large: bool) -> bool:
        """Begin to fetch what a sequential reader needs next; True when this is one. No await."""
        limit = min(content.base_limit, content.size)
        found = content.readahead.note(start, end, limit, self._share.window_bytes)
        nursery = self._tasks.nursery
        if found is None or nursery is None:
            return content.readahead.sequential
        self._share.begun(content.id, trio.current_time())
        low, high = found
        for at in range(low, high, RUN_BYTES):
            wanted = (large and content.cold) or content.absent(at, min(at + RUN_BYTES, high))
            if wanted and self._prefetches < _PREFETCHES_MAX:
                self._prefetches += 1
                nursery.start_soon(self._prefetch, content, at, min(at + RUN_BYTES, high), large)
        return True

    async def _prefetch(self, content: CachedContent, start: int, end: int, large: bool) -> None:
        try:
            if content.dropped:
                return
            if content.absent(start, end):
                await self._fetcher.ensure(content, start, end, landing=large or end - start >= LONG_BYTES)
            elif large:
                await self._loader.load(content, start, end)
        except S3volError:
            self._health.count("prefetch_failed")  # nobody waits for it; a reader that needs it gets its own error
        finally:
            self._prefetches -= 1
