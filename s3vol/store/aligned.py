"""AlignedBuffers: memory for large bodies, in whole pages, used again and again.

Theory of operation. A body that begins at a page can go to the disk past the page cache without being copied
(cache/direct.py). Who takes a buffer gives it back by forgetting it: the views of a buffer hold a ctypes array over its
block, and when the last view is gone, so is the array, and the block is idle again. So a body may be sliced, served
and written by whoever it concerns, and nobody counts; a thread that still writes it when its task was cancelled keeps
it out of other hands.

A block is touched for the first time once: on a virtual machine that costs more than the copy of what is put there
(docs/rfcs/0005). Huge pages make it 4 faults instead of 2,048.

Rejected: a bytearray per body (not aligned, zeroed first, and a first touch each time); `get_into` in the Store
protocol, with memory of the caller (five decorators and four backends more for one caller).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref

from s3vol.types import MIB

BLOCK_BYTES = 8 * MIB
"""One block: what the cache fetches at a time."""

_IDLE_MAX = 4  # one is taken while others are filled, served and written


class AlignedBuffers:
    """Blocks of one store. Not for threads, but the last view of a buffer may die in any of them."""

    def __init__(self) -> None:
        self._idle: list[mmap.mmap] = []

    @property
    def idle(self) -> int:
        """How many blocks wait to be taken."""
        return len(self._idle)

    def take(self, length: int) -> memoryview:
        """`length` bytes of whatever was there before, at the beginning of a page. ValueError for more than a block."""
        if not 0 < length <= BLOCK_BYTES:
            raise ValueError(f"a buffer of {length} bytes, where blocks have {BLOCK_BYTES}")
        try:
            block = self._idle.pop()
        except IndexError:
            block = _map()
        whole = (ctypes.c_ubyte * BLOCK_BYTES).from_buffer(block)
        weakref.finalize(whole, self._give_back, block).atexit = False
        return memoryview(whole).cast("B")[:length]

    def _give_back(self, block: mmap.mmap) -> None:
        # In the thread that dropped the last view: append and len are atomic, and one block too many does no harm.
        if len(self._idle) < _IDLE_MAX:
            self._idle.append(block)


def _map() -> mmap.mmap:
    block = mmap.mmap(-1, BLOCK_BYTES)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def is_aligned(view: memoryview, to_bytes: int) -> bool:
    """True when the memory begins at a multiple of `to_bytes`. Of memory that cannot be written nothing is known."""
    if view.readonly or not view.nbytes:
        return False
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view)) % to_bytes == 0
