"""Read-around: what else to bring into the page cache when a small read has to wait for the local disk. Pure.

Theory of operation. A random read of a few KiB whose page is not in the page cache costs a trip to a thread and one to
the disk. The kernel would read ahead, but does not know what is a hole of the data file, so its readahead is off
(cache/disk.py). So the cache says what is around: of the aligned block that holds the read, the bytes that are
present, in whole pages. The page cache may not hold a page that reaches into bytes that are not there: those come by a
direct write, which goes past it.

Whether it pays is seen at the next reads. Each one that finds its page earns a credit, each block read around costs
one, and without credit a read brings only itself; as `mmap_miss` does for page faults in Linux (mm/filemap.c). A file
of N blocks that is read all over at random needs 0.31 N credits until half of its blocks are there and hits
outnumber misses, so the credits at the start and at most are good for files of 400 MiB. One that is too large to
profit has 1,024 blocks read in vain, a third of a second in all, and a few more for what it hits by chance.

Rejected: waiting for the second miss in a block (twice the misses where it pays, which is the common case), reading
the block into a buffer instead of advising the kernel (copies and clears 128 KiB, and answers later).
"""

from __future__ import annotations

from s3vol.cache.extents import Range, RangeSet
from s3vol.types import KIB

BLOCK_BYTES = 128 * KIB  # Linux's own for page faults; takes 100 to 300 µs longer than 4 KiB on a virtual disk
SMALL_BYTES = BLOCK_BYTES // 4  # larger reads pay their way to the disk by themselves
CREDITS = 1024  # see above


class ReadAround:
    """What is known of the random reads of one content."""

    __slots__ = ("_credits",)

    def __init__(self) -> None:
        self._credits = CREDITS

    def hit(self, length: int) -> None:
        """A read of `length` bytes found them in the page cache."""
        if self._credits < CREDITS and length <= SMALL_BYTES:
            self._credits += 1

    def missed(self, start: int, end: int, present: RangeSet, page_bytes: int) -> Range:
        """The bytes [start, end), all present, are not in the page cache: what to bring there, themselves included."""
        if end - start > SMALL_BYTES or not self._credits:
            return start, end
        self._credits -= 1
        first, last = start // BLOCK_BYTES * BLOCK_BYTES, -(-end // BLOCK_BYTES) * BLOCK_BYTES
        for low, high in present.overlap(first, last):
            if low <= start and end <= high:
                return min(start, -(-low // page_bytes) * page_bytes), max(end, high // page_bytes * page_bytes)
        return start, end
