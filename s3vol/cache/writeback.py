"""WriteBack: the background of the cache. Publishes what is due, syncs what nobody synced, aborts what was left behind.

Theory of operation. A content is published here because it was closed and then left alone for a while (`settle`),
because it is dirty for half of the age limit (at the whole limit writers wait), because the dirty cap is near (`press`:
the oldest first, files that are still open included), or because an earlier try failed. A failed publish is repeated
for ever, with a pause that doubles up to a minute; the data stays in the journal. The first failure of a series is told
as an event, the others are counted.

A closed file waits because most of what programs do to a file they do in its first second: attributes are set, a
temporary name becomes the final one, or the file goes again. All that is local while it is not published, and becomes
one publish or none. While files go on being closed at most two are published at a time, so that the background takes
no processor time from those who make them; when half of the dirty cap, or a quarter of the age limit, is used up,
neither holds.

One loop owns the clock: it sleeps until the next dirty content comes of age and is woken when there is a new one. It
does not poll.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

import trio

from s3vol import layout
from s3vol.cache.base import CacheSettings, State
from s3vol.cache.content import CachedContent
from s3vol.cache.ledger import Ledger
from s3vol.cache.publish import Publisher
from s3vol.cache.saver import Saver
from s3vol.cache.sender import Sender
from s3vol.errors import Conflict, S3volError, request_of
from s3vol.parallel import for_each
from s3vol.types import Health, WriteError

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_RECORD_S = 2.0  # chunks that became clean are handed to the journal this often
_SYNCS_AT_ONCE = 8
_LONGEST_DELAYS = 10  # what is changed and closed again and again is published once in so many delays
_ACTIVE_S = 0.25  # so long after a close others may follow it
_ACTIVE_UPLOADS = 2  # files published at a time meanwhile: with one, a slow request would stop all


class WriteBack:
    """Of one cache; idle until `run`."""

    def __init__(
        self,
        publisher: Publisher,
        saver: Saver,
        sender: Sender,
        ledger: Ledger,
        settings: CacheSettings,
        health: Health,
        tell: Callable[[WriteError], None],
    ) -> None:
        self._publisher = publisher
        self._saver = saver
        self._sender = sender
        self._ledger = ledger
        self._settings = settings
        self._health = health
        self._tell = tell
        self._queue: OrderedDict[CachedContent, None] = OrderedDict()
        self._settling: OrderedDict[CachedContent, float] = OrderedDict()  # when each is due, the first one first
        self._settling_some = trio.Event()
        self._closed_s = -math.inf  # when the last file was closed
        self._busy: set[CachedContent] = set()
        self._again: set[CachedContent] = set()
        self._pausing: set[CachedContent] = set()
        self._idle = trio.lowlevel.ParkingLot()  # workers without work
        self._filled: dict[CachedContent, None] = {}
        self._filled_some = trio.Event()

    def schedule(self, content: CachedContent) -> None:
        """Publish soon. No await."""
        if content in self._busy:
            self._again.add(content)
        else:
            self._queue[content] = None
            self._idle.unpark()

    def settle(self, content: CachedContent) -> None:
        """Publish when it has been left alone for `publish_delay_s`. No await."""
        now_s, delay_s = trio.current_time(), self._settings.publish_delay_s
        self._closed_s = now_s
        if delay_s <= 0 or self._is_pressed():
            self._settling.pop(content, None)
            self.schedule(content)
        elif content not in self._queue:
            dirty_s = now_s - self._ledger.dirty.get(content, now_s)
            if content in self._settling and dirty_s > _LONGEST_DELAYS * delay_s:
                return
            self._settling.pop(content, None)
            self._settling[content] = now_s + delay_s
            self._settling_some.set()

    def _is_pressed(self) -> bool:
        """True when what is unpublished comes near to one of its limits."""
        settings, ledger = self._settings, self._ledger
        much = 2 * ledger.unsent_bytes > settings.dirty_max_bytes
        return much or 4 * ledger.oldest_age_s() > settings.dirty_age_s

    def press(self, goal_bytes: int) -> None:
        """Publish the oldest dirty contents, together at least `goal_bytes` (at least one). No await."""
        found = 0
        for content in self._ledger.dirty:
            if content not in self._pausing:
                self.schedule(content)
            found += content.unpublished_bytes
            if found >= goal_bytes:
                return

    def filled(self, content: CachedContent) -> None:
        """Chunks of this content have become clean: record them when there is time. No await."""
        self._filled[content] = None
        self._filled_some.set()

    def record_filled(self) -> None:
        """Hand all that became clean to the journal. No await."""
        contents = [content for content in self._filled if not content.dropped]
        self._filled.clear()
        self._saver.record_clean(contents)

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(max(2, self._settings.uploads)):
                nursery.start_soon(self._worker, nursery)
            nursery.start_soon(self._watch_settling)
            nursery.start_soon(self._watch_ages)
            nursery.start_soon(self._recorder)
            nursery.start_soon(self._abort_left_behind)

    # Publishing

    async def _worker(self, nursery: trio.Nursery) -> None:
        while True:
            while not self._queue:
                await self._idle.park()
            if len(self._busy) >= _ACTIVE_UPLOADS and self._yields():
                await trio.sleep(_ACTIVE_S)
                continue
            content, _ = self._queue.popitem(last=False)
            if content.state is not State.DIRTY:
                continue
            self._busy.add(content)
            try:
                await self._publish(content, nursery)
            finally:
                self._busy.discard(content)
                if content in self._again:
                    self._again.discard(content)
                    self.schedule(content)

    def _yields(self) -> bool:
        """True while files are being made and there is time and room."""
        return trio.current_time() - self._closed_s < _ACTIVE_S and not self._is_pressed()

    async def _publish(self, content: CachedContent, nursery: trio.Nursery) -> None:
        try:
            await self._publisher.publish(content)
            content.failures = 0
        except Conflict:
            return  # told by the keeper; every later call of a holder raises it
        except S3volError as error:
            content.failures += 1
            self._health.count("publish_retries")
            self._health.last_error, self._health.last_error_at_s = str(error), time.time()
            if content.failures == 1:
                path = layout.visible_key(content.key, content.metadata)
                self._tell(WriteError(path, str(error), request_id=request_of(error)))
            nursery.start_soon(self._retry_later, content)

    async def _retry_later(self, content: CachedContent) -> None:
        self._pausing.add(content)
        await trio.sleep(min(_FIRST_PAUSE_S * 2 ** min(content.failures - 1, 10), _LONGEST_PAUSE_S))
        self._pausing.discard(content)
        self.schedule(content)

    # Ages

    async def _watch_settling(self) -> None:
        while True:
            while not self._settling:
                self._settling_some = trio.Event()
                await self._settling_some.wait()
            content, due_s = next(iter(self._settling.items()))
            if due_s > trio.current_time():
                await trio.sleep_until(due_s)
                continue
            del self._settling[content]
            if content.state is not State.DIRTY or content in self._pausing:
                continue
            if content.publish_lock.locked():
                # Whoever publishes it may give up, at the end of a drain: a request of ours would keep the process.
                self._settling[content] = trio.current_time() + self._settings.publish_delay_s
            else:
                self.schedule(content)

    async def _watch_ages(self) -> None:
        while True:
            pause_s = min(self._publish_due(), await self._sync_due())
            with trio.move_on_after(pause_s):
                await self._ledger.wait_more()

    def _publish_due(self) -> float:
        """Schedule what is dirty for half of the limit; seconds until the next one is."""
        limit_s = self._settings.dirty_age_s / 2
        now_s = trio.current_time()
        for content, since_s in self._ledger.dirty.items():
            if now_s - since_s < limit_s:
                return since_s + limit_s - now_s
            if content not in self._pausing and content not in self._busy:
                self.schedule(content)
        return limit_s if self._ledger.dirty else math.inf

    async def _sync_due(self) -> float:
        """Sync what nobody synced for `journal_age_s`; seconds until the next one is due."""
        limit_s = self._settings.journal_age_s
        now_s = trio.current_time()
        due: list[CachedContent] = []
        next_s = math.inf
        for content, since_s in self._ledger.unsynced.items():
            if now_s - since_s < limit_s:
                next_s = since_s + limit_s - now_s
                break
            due.append(content)
        if due:
            await for_each(due, self._sync, limit=_SYNCS_AT_ONCE)
            next_s = min(next_s, limit_s)
        if self._saver.lazy_since_s is not None:
            wait_s = self._saver.lazy_since_s + limit_s - trio.current_time()
            if wait_s > 0:
                return min(next_s, wait_s)
            await self._flush_records()
        return next_s

    async def _sync(self, content: CachedContent) -> None:
        try:
            await self._saver.sync(content)
        except S3volError as error:
            self._note_failure("background_sync_failed", error)

    async def _flush_records(self) -> None:
        try:
            await self._saver.flush_records()
        except S3volError as error:
            self._note_failure("background_sync_failed", error)

    def _note_failure(self, name: str, error: S3volError) -> None:
        """Nobody waits for this work: it is counted, shown by status, and tried again when due."""
        self._health.count(name)
        self._health.last_error, self._health.last_error_at_s = str(error), time.time()

    # Housekeeping

    async def _recorder(self) -> None:
        while True:
            await self._filled_some.wait()
            await trio.sleep(_RECORD_S)
            self._filled_some = trio.Event()
            self.record_filled()

    async def _abort_left_behind(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            if await self._sender.abort_left_behind():
                pause_s = _FIRST_PAUSE_S
                continue
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
