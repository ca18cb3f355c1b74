"""Telling the kernel that what it holds is no longer true.

Theory of operation. A notification is a write to /dev/fuse that may block: dropping a page waits until a read of that
page is answered, dropping a name waits for the lock of its directory, which a lookup or create in progress holds. Both
are answered by our own event loop, so the loop must go on meanwhile: notifications run in threads, and no request
waits for one without a bound. Names and pages have threads of their own, for names wait longer.

pyfuse3 frees its session in `close()`; a thread that is inside a notification then would use freed memory. So threads
are counted where they run, and `settled` says when none is left.

Rejected: `pyfuse3.invalidate_entry_async`, whose one hidden thread can neither be counted nor waited for.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

import pyfuse3
import trio

from s3vol.types import Event, Ino, Invalidation

THREADS = 8  # a notification takes 10 to 20 µs unless it blocks; these are for the ones that block
PAGES_S = 5.0  # longest that an open waits for pages to go; they wait for reads, and reads for the endpoint
_SETTLE_POLL_S = 0.01

log = logging.getLogger("s3vol.fuse")


class Notifier:
    """Kernel notifications of one mount."""

    def __init__(self) -> None:
        self._names = trio.CapacityLimiter(THREADS)
        self._pages = trio.CapacityLimiter(THREADS)
        self._forgetting: Counter[Ino] = Counter()
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
        """Drop attributes and pages of an inode; False when that could not be finished in time."""
        self._forgetting[ino] += 1
        try:
            with trio.move_on_after(PAGES_S):
                await self._drop_pages(ino, False)
                return True
        finally:
            self._forgetting[ino] -= 1
            if not self._forgetting[ino]:
                del self._forgetting[ino]
        log.warning("pages of an inode are busy; it is read past the page cache for now", extra={"ino": ino})
        return False

    async def _drop_pages(self, ino: Ino, attr_only: bool) -> None:
        await self._call(self._pages, lambda: pyfuse3.invalidate_inode(ino, attr_only=attr_only))

    def is_forgetting(self, ino: Ino) -> bool:
        """True while `forget_content` of this inode is not done."""
        return ino in self._forgetting

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
