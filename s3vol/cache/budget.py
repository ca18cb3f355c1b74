"""ByteBudget: the one limit of bodies held in memory (fetches, prefetch, uploads).

Theory of operation. A holder takes the bytes of one body, does one request, and gives them back; it never waits for
more while it holds some, so there is no cycle to deadlock on. Waiters are served in order of arrival, so that a large
body is not starved by small ones. A body larger than the whole budget is admitted when nothing else is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class ByteBudget:
    """A counting semaphore of bytes, first come first served. `used_bytes` is what is held now."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._waiting: deque[tuple[int, trio.Event]] = deque()
        self.used_bytes = 0

    @asynccontextmanager
    async def hold(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold `size_bytes` inside the block."""
        await self._take(size_bytes)
        try:
            yield
        finally:
            self.used_bytes -= size_bytes
            self._wake()

    def has_room(self, size_bytes: int) -> bool:
        """True when `hold` would not wait now."""
        return not self._waiting and self._fits(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return self.used_bytes == 0 or self.used_bytes + size_bytes <= self._capacity

    async def _take(self, size_bytes: int) -> None:
        if self.has_room(size_bytes):
            self.used_bytes += size_bytes
            return
        turn = (size_bytes, trio.Event())
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # given to us, but we were cancelled in the same tick
                self.used_bytes -= size_bytes
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            self.used_bytes += size_bytes
            turn.set()
