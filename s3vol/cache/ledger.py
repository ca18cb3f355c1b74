"""Ledger: which contents are dirty, since when, and how many bytes that is; what back-pressure waits on.

Theory of operation. Both tables are in order of the time at which a content became dirty (unsynced), so the oldest is
the first entry. A content that is still dirty after a publish goes to the end with the time of that publish's
snapshot; the order may therefore be wrong by the length of one publish, which does not matter to limits of minutes.

The cap counts bytes that have still to be sent. A large file whose parts are acknowledged while it is written would
else be published again and again while it grows, and each time the server would copy all that was there before.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from s3vol.cache.content import CachedContent


class Ledger:
    """Times are trio's clock, in seconds."""

    def __init__(self) -> None:
        # What is taken from the front of a plain dict leaves a gap that every later look at the front walks over.
        self.dirty: OrderedDict[CachedContent, float] = OrderedDict()
        self.unsynced: OrderedDict[CachedContent, float] = OrderedDict()
        self.dirty_bytes = 0
        self.unsent_bytes = 0  # dirty, and not in acknowledged parts of an upload: what the cap is about
        self._counted: dict[CachedContent, tuple[int, int]] = {}
        self._less = trio.Event()
        self._more = trio.Event()

    def update(self, content: CachedContent, *, since_s: float | None = None) -> None:
        """To be called after each change of a content. `since_s`: what is dirty now was written after this time."""
        if content.is_unpublished:
            now = trio.current_time()
            if since_s is not None:
                self.dirty.pop(content, None)
            if content not in self.dirty:
                self.dirty[content] = now if since_s is None else since_s
                self._more.set()
            if content.generation > content.saved_generation:
                if content not in self.unsynced:
                    self.unsynced[content] = now
                    self._more.set()
            else:
                self.unsynced.pop(content, None)
        else:
            self.dirty.pop(content, None)
            self.unsynced.pop(content, None)
        self._count(content)

    def _count(self, content: CachedContent) -> None:
        alive = content in self.dirty
        now = (content.unpublished_bytes, content.unsent_bytes) if alive else (0, 0)
        before = self._counted.get(content, (0, 0))
        if alive:
            self._counted[content] = now
        else:
            self._counted.pop(content, None)
        self.dirty_bytes += now[0] - before[0]
        self.unsent_bytes += now[1] - before[1]
        if now[1] < before[1] or not alive:
            self._less.set()
            self._less = trio.Event()

    def oldest_age_s(self) -> float:
        """Age of the oldest unpublished change; 0 when all is published."""
        for since_s in self.dirty.values():
            return max(0.0, trio.current_time() - since_s)
        return 0.0

    def oldest_unsynced_age_s(self) -> float:
        """Age of the oldest change that is not in the journal."""
        for since_s in self.unsynced.values():
            return max(0.0, trio.current_time() - since_s)
        return 0.0

    async def wait_less(self) -> None:
        """Return when something was published or dropped."""
        await self._less.wait()

    def wake(self) -> None:
        """There is something for the journal to flush."""
        self._more.set()

    async def wait_more(self) -> None:
        """Return when a content becomes dirty or unsynced (or `wake`), at once if one did since the last call."""
        await self._more.wait()
        self._more = trio.Event()
