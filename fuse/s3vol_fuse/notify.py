"""Telling the kernel that what it holds is no longer true.

Theory of operation. A notification is a write to /dev/fuse that may block: dropping a page waits until a read of that
page is answered, dropping a name waits for the lock of its directory, which a lookup or create in progress holds. Both
are answered by our own event loop, so the loop must go on meanwhile: notifications run in threads, and no request
waits for one without a bound. Names and pages have threads of their own, for names wait longer.

Pages are not only dropped but also stored, beside what a random reader asks for (push.py). The kernel puts what it gets
over whatever it has, and makes the file longer when it reaches beyond its end. So a store is in a table from before
its bytes are old until the thread is back, and whoever is about to answer the kernel something that makes these bytes
or that length wrong waits for it (`stored`). A store waits for reads of its pages and for nothing else; these are
answered by our event loop, from bytes that are here, or after `timeout` at the latest.

pyfuse3 frees its session in `close()`; a thread that is inside a notification then would use freed memory. So threads
are counted where they run, and `settled` says when none is left.

Rejected: `pyfuse3.invalidate_entry_async`, whose one hidden thread can neither be counted nor waited for.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyfuse3
import trio

from s3vol.store.base import Buffer
from s3vol.types import Event, Ino, Invalidation

THREADS = 8  # a notification takes 10 to 20 µs unless it blocks; these are for the ones that block
PAGES_S = 5.0  # longest that an open waits for pages to go; they wait for reads, and reads for the endpoint
_SETTLE_POLL_S = 0.01

log = logging.getLogger("s3vol.fuse")


@dataclass(frozen=True, slots=True, eq=False)
class _Store:
    """Bytes on their way to the kernel, up to the offset `end`."""

    end: int
    over: trio.Event


class Notifier:
    """Kernel notifications of one mount."""

    def __init__(self) -> None:
        self._names = trio.CapacityLimiter(THREADS)
        self._pages = trio.CapacityLimiter(THREADS)
        self._forgetting: Counter[Ino] = Counter()
        self._behind: dict[Ino, float] = {}  # pages that did not go in time: when that was begun, event loop time
        self._storing = trio.CapacityLimiter(THREADS)
        self._stores: dict[Ino, list[_Store]] = {}
        self._lock = threading.Lock()  # guards _inside and _closed, for the threads count themselves
        self._inside = 0
        self._closed = False

    async def run(self, events: trio.MemoryReceiveChannel[Event], on_other: Callable[[Event], None]) -> None:
        """Pass invalidations to the kernel as they come; everything else to `on_other`. Until the channel ends."""
        async with trio.open_nursery() as nursery:
            async for event in events:
                if not isinstance(event, Invalidation):
                    on_other(event)
                elif event.name is None:
                    nursery.start_soon(self._drop_pages, event.ino, event.attr_only)
                else:
                    nursery.start_soon(self._drop_name, event.ino, event.name)

    async def forget_content(self, ino: Ino) -> bool:
        """Drop attributes and pages of an inode; False when that could not be finished in time.

        Then the next open has to try again, whatever it is about (`is_forgetting`).
        """
        began_s = trio.current_time()
        self._forgetting[ino] += 1
        try:
            with trio.move_on_after(PAGES_S):
                await self._drop_pages(ino, False)
                if self._behind.get(ino, began_s) <= began_s:
                    self._behind.pop(ino, None)
                return True
            self._behind[ino] = began_s
        finally:
            self._forgetting[ino] -= 1
            if not self._forgetting[ino]:
                del self._forgetting[ino]
        log.warning("pages of an inode are busy; it is read past the page cache for now", extra={"ino": ino})
        return False

    @property
    def stores(self) -> int:
        """How many inodes have pages on their way to the kernel."""
        return len(self._stores)

    async def store(self, ino: Ino, start: int, data: Buffer) -> None:
        """Put bytes into the kernel's page cache; they count from this call on, with no await before."""
        store = _Store(start + len(data), trio.Event())
        self._stores.setdefault(ino, []).append(store)
        await self._call(self._storing, lambda: pyfuse3.notify_store(ino, start, data))  # type: ignore[arg-type]  # any buffer will do
        # Not in a `finally`: the thread of a task that was cancelled may still be at it.
        self._stores[ino].remove(store)
        if not self._stores[ino]:
            del self._stores[ino]
        store.over.set()

    def store_now(self, ino: Ino, data: Buffer) -> bool:
        """Put all bytes of a file that nobody has open into the kernel's page cache; False: it did not take them.

        Not in a thread, for there is nothing to wait for: a store waits for locks of pages, which nobody holds then.
        """
        try:
            pyfuse3.notify_store(ino, 0, data)  # type: ignore[arg-type]  # any buffer will do
        except OSError as error:
            log.debug("bytes of a file refused: %s", error)
            return False
        return True

    def is_storing(self, ino: Ino, beyond: int = 0) -> bool:
        """True while bytes of an inode beyond this offset are on their way to the kernel."""
        return any(store.end > beyond for store in self._stores.get(ino, ()))

    async def stored(self, ino: Ino, beyond: int = 0) -> None:
        """Return when the bytes of an inode beyond this offset that are on their way now have arrived."""
        for store in list(self._stores.get(ino, ())):
            if store.end > beyond:
                await store.over.wait()

    async def _drop_pages(self, ino: Ino, attr_only: bool) -> None:
        await self.stored(ino)
        await self._call(self._pages, lambda: pyfuse3.invalidate_inode(ino, attr_only=attr_only))

    def is_forgetting(self, ino: Ino) -> bool:
        """True while the kernel may have pages of this inode that were to go."""
        return ino in self._forgetting or ino in self._behind

    async def _drop_name(self, parent: Ino, name: bytes) -> None:
        await self._call(self._names, lambda: pyfuse3.invalidate_entry(parent, name))

    async def _call(self, limiter: trio.CapacityLimiter, notification: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(self._notify, notification, limiter=limiter, abandon_on_cancel=True)

    def _notify(self, notification: Callable[[], None]) -> None:
        """In a thread."""
        with self._lock:
            if self._closed:
                return
            self._inside += 1
        try:
            notification()
        except FileNotFoundError:
            pass  # the kernel does not hold it: nothing to drop
        except OSError as error:  # the mount is going away (ENOTCONN, ENODEV)
            log.debug("notification refused: %s", error)
        finally:
            with self._lock:
                self._inside -= 1

    async def settled(self, deadline_s: float) -> bool:
        """Let no notification begin any more, and wait until none is in progress; False after `deadline_s`."""
        with self._lock:
            self._closed = True
        with trio.move_on_after(deadline_s):
            while self._inside:  # noqa: ASYNC110  # threads count themselves; they may outlive the event loop
                await trio.sleep(_SETTLE_POLL_S)
        return self._inside == 0
