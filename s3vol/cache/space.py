"""Space: room on the cache's disk. Counts allocated blocks, evicts clean chunks, keeps a floor of free space.

Theory of operation. `make_room` returns when some bytes may be added; the caller then writes without another `await`,
or asks again. Eviction takes a chunk out of the journal's clean list *before* it is punched (a lazy commit: within one
boot the page cache keeps it, after a power failure the list is not believed), then looks again whether the chunk may
go, because it may have been written or read in the meantime. It may also have been recorded as clean anew, behind our
statement (`recordings` tells): then it stays, since the journal vouches for it. One eviction runs at a time (`_lock`):
two would choose the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from s3vol.cache import records
from s3vol.cache.base import CacheSettings, State
from s3vol.cache.cachedir import CacheDirectory
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.journal import Journal
from s3vol.cache.policy import Lru, eviction_goal
from s3vol.errors import NoSpace
from s3vol.failpoints import Point, hit
from s3vol.types import CHUNK_BYTES, Health

_PUNCHES_PER_TURN = 16  # 0.1 ms each


class Space:
    """Of one cache directory."""

    def __init__(
        self,
        directory: CacheDirectory,
        files: DataFiles,
        journal: Journal,
        settings: CacheSettings,
        health: Health,
        drop: Callable[[CachedContent], None],
    ) -> None:
        """`drop` forgets a content that nobody refers to and of which nothing is left on the disk."""
        self.lru: Lru[CachedContent] = Lru()
        self._directory = directory
        self._files = files
        self._journal = journal
        self._settings = settings
        self._health = health
        self._drop = drop
        self._lock = trio.Lock()

    def missing_bytes(self, need_bytes: int) -> int:
        """How much has to go before `need_bytes` may be added. No await; about 2 µs."""
        return eviction_goal(
            self._files.used_bytes,
            self._settings.size_bytes,
            self._directory.free_bytes(),
            self._settings.free_floor_bytes,
            need_bytes,
        )

    async def make_room(self, need_bytes: int) -> None:
        """Evict until `need_bytes` fit. Raises NoSpace when only what must stay is left."""
        while self.missing_bytes(need_bytes) > 0:
            async with self._lock:
                goal = self.missing_bytes(need_bytes)
                if goal > 0 and not await self.evict(goal) and self.missing_bytes(need_bytes) > 0:
                    raise NoSpace(
                        f"cache {self._directory.path}: {self._files.used_bytes} bytes of "
                        f"{self._settings.size_bytes} in use, "
                        f"{self._directory.free_bytes()} free on the disk, and nothing can be evicted"
                    )

    async def unrecord(self, content: CachedContent, start: int, end: int) -> None:
        """Take the chunks that the range touches out of the journal's clean list; they are about to change."""
        chunks = content.recorded_in(start, end)
        if chunks:
            before = content.recordings
            await self._journal.commit(records.drop_clean(content.id, chunks), durable=False)
            if content.recordings != before:
                return  # perhaps one of these, after our statement: the caller asks again
            content.recorded.difference_update(chunks)
            content.unrecorded.update(chunks)

    async def evict(self, goal_bytes: int) -> int:
        """Give up clean chunks of about `goal_bytes` together; returns how much it was, 0 when there are no more."""
        victims = self.lru.plan(goal_bytes, _length)
        if not victims:
            return 0
        statements: list[records.Statement] = []
        recordings = [content.recordings for content, _ in victims]
        for content, index in victims:
            if index in content.recorded:
                statements += records.drop_clean(content.id, (index,))
        if statements:
            await self._journal.commit(statements, durable=False)
        hit(Point.EVICT_AFTER_RECORD)
        before = self._files.used_bytes
        freed = 0
        for at, (content, index) in enumerate(victims):
            if content.recordings == recordings[at]:
                content.recorded.discard(index)
            if index not in content.recorded:  # else the journal may have been told anew, after our statement
                freed += self._punch(content, index)
            if at % _PUNCHES_PER_TURN == _PUNCHES_PER_TURN - 1:
                await trio.lowlevel.checkpoint()
        self._health.count("evicted_bytes", max(0, before - self._files.used_bytes))
        return max(freed, 1)  # those that may not go by now are passed over; there may be others

    def _punch(self, content: CachedContent, index: int) -> int:
        """Give up what may go of this chunk; returns the bytes. No await between the look and the punch."""
        freed = 0
        for start, end in content.evictable(index):
            content.evicted(start, end)
            self._files.punch(content.id, start, end)
            freed += end - start
        if freed:
            self.lru.forget(content, index)
            if not content.present and not content.refs and content.state is State.CLEAN and not content.fetching:
                self._drop(content)
        return freed


def _length(content: CachedContent, index: int) -> int | None:
    if content.dropped or not content.present.touches(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES):
        return None
    return sum(end - start for start, end in content.evictable(index))
