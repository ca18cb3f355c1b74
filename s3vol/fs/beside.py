"""Read-around: which pages beside a random read the frontend's page cache should get, unasked. Pure.

Theory of operation. A small read costs a program some 60 µs when it comes here, and 1 µs where the kernel has the page.
Reads in order need no help: the kernel reads ahead and asks for much at once. A random reader asks for a few KiB at a
time. So reads are counted by aligned block: when a few of one block have come here, all its pages are worth a push,
which costs about as much as two reads. A block that comes again although it was pushed was pushed in vain (the kernel
had no room for it): it has to be asked for as often as it has pages before it is pushed again.

That bounds what the reader of a file far too large loses: only blocks that were read `FIRST` times of late are pushed,
among the last `BLOCKS` that were touched (512 MiB). All over a larger file hardly any is.

What may be pushed is decided in one step with the read of the bytes (`pagecache.may_push`): the page cache belongs to
the inode, not to a handle, and a push overwrites what is there.

Rejected: pushing at the first read of a block (sparse reads of a large file got slower by half), asking the kernel to
read ahead (a random reader is exactly the one for whom it does not).
"""

from __future__ import annotations

import mmap

from s3vol.types import KIB

BLOCK_BYTES = 128 * KIB  # what Linux reads around a page fault by default
SMALL_BYTES = BLOCK_BYTES // 4  # a larger request is the kernel's readahead, or pays its way by itself
FIRST = 3  # reads of a block before it is pushed
AGAIN = BLOCK_BYTES // (4 * KIB)  # more of them before it is pushed again
BLOCKS = 4096  # blocks of which the reads are counted


class Misses:
    """Small reads of one handle that the kernel could not answer by itself."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def note(self, start: int, length: int) -> tuple[int, int] | None:
        """A read of `length` bytes at `start` came: the range whose pages to push now, or None. Offsets in bytes."""
        block = start // BLOCK_BYTES
        if length > SMALL_BYTES:
            return None
        counts = self._counts
        count = counts.get(block, 0) + 1
        if count >= FIRST:
            counts[block] = -AGAIN
            return block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        counts[block] = count
        if len(counts) > BLOCKS:
            del counts[next(iter(counts))]
        return None


def whole_pages(start: int, end: int, size: int) -> tuple[int, int] | None:
    """The pages of the range that lie below `size` with all their bytes: more would make the file longer."""
    low, high = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, min(end, size) // mmap.PAGESIZE * mmap.PAGESIZE
    return (low, high) if low < high else None
