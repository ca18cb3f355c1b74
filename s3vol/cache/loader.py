"""Loader: brings bytes that are on the own disk into memory, for the sequential reader that comes right behind.

Theory of operation. A data file has no readahead by the kernel, which does not know its holes. So a sequential reader
whose bytes are not in the page cache would wait for the disk at each request, and every byte would be touched in two
new places: a page of the data file and a buffer. What readahead wants and the disk has is therefore read in long runs,
past the page cache, and served from memory like what was fetched (cache/bodies.py).

Nobody is kept from changing the file meanwhile. If it was changed, or parts of it evicted, what was read is thrown away
and the reader takes the ordinary way; so what is put on the shelf is right at that moment, and dropped with the first
change after it.
"""

from __future__ import annotations

import trio

from s3vol.cache.bodies import Shelf
from s3vol.cache.budget import ByteBudget
from s3vol.cache.content import CachedContent
from s3vol.cache.direct import PAGE_BYTES
from s3vol.cache.disk import DataFiles
from s3vol.store.aligned import BLOCK_BYTES


class Loader:
    """Of one cache."""

    def __init__(self, files: DataFiles, budget: ByteBudget, shelf: Shelf) -> None:
        self._files = files
        self._budget = budget
        self._shelf = shelf

    async def load(self, content: CachedContent, start: int, end: int) -> None:
        """Put the range, of at most 8 MiB, on the shelf if all of it is on the disk, as in the base, and stays so."""
        start = start // PAGE_BYTES * PAGE_BYTES
        end = min(end, start + BLOCK_BYTES)
        if not content.present.covers(start, end) or content.is_changed(start, end):
            return
        if content.loading_in(start, end) is not None or content.bodies.covers(start, end):
            return  # for another reader, who is at the same place
        over = content.loading[start, end] = trio.Event()
        before = content.generation, content.evictions
        try:
            async with self._budget.hold(end - start):
                body = await self._files.read_direct(content.id, start, end - start)
            # No await between the look at what has changed and the shelf.
            if body is not None and not content.dropped and before == (content.generation, content.evictions):
                self._shelf.put(content.bodies, start, body)
        finally:
            del content.loading[start, end]
            over.set()
