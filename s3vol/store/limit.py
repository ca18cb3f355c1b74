"""Bounds how much is asked of a store at a time: calls that read, calls that change, and bytes under way.

Theory of operation. Reads and changes have separate slots, so that many small uploads cannot keep a lookup waiting, nor
the reverse. Bytes are one budget, because memory is one: admitted first come, first served, and a call larger than the
whole budget alone. A call takes its slot first, then its bytes: whoever holds bytes is travelling already, so nobody
waits in a circle. On cancellation both are given back.

Rejected: a limit inside each backend (then it is not seen by the trace, and each has its own rules).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from s3vol.store.base import Store
from s3vol.store.decorator import READS, Call, Decorator, T


class ByteBudget:
    """At most `total_bytes` in use. First come, first served, so that a large claim is not starved by small ones."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._used_bytes = 0
        self._turn = trio.StrictFIFOLock()  # held by the one claim that is waiting for room
        self._freed = trio.Event()

    @property
    def used_bytes(self) -> int:
        """Claimed at this moment."""
        return self._used_bytes

    @asynccontextmanager
    async def claim(self, claimed_bytes: int) -> AsyncIterator[None]:
        """Hold `claimed_bytes` of the budget; waits for room."""
        async with self._turn:
            while self._used_bytes and self._used_bytes + claimed_bytes > self._total_bytes:
                self._freed = trio.Event()
                await self._freed.wait()
            self._used_bytes += claimed_bytes  # no await between the check and here
        try:
            yield
        finally:
            self._used_bytes -= claimed_bytes
            self._freed.set()


class LimitStore(Decorator):
    """At most `reads` and `writes` calls at a time, and `body_bytes` under way (None: unbounded)."""

    def __init__(self, inner: Store, *, reads: int, writes: int, body_bytes: int | None = None) -> None:
        super().__init__(inner)
        self._reads = trio.Semaphore(reads)
        self._writes = trio.Semaphore(writes)
        self._budget = ByteBudget(body_bytes) if body_bytes is not None else None

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call when there is room for it."""
        if call.operation == "sync":  # it is a wait for what others do, and may take long
            return await perform()
        async with self._reads if call.operation in READS else self._writes:
            if self._budget is None or not call.body_bytes:
                return await perform()
            async with self._budget.claim(call.body_bytes):
                return await perform()
