"""Which chunks to give up, and whether a write may be admitted. Pure.

Theory of operation. `Lru` orders the chunks on disk by last use, over all contents: one ordered dict, a move to the end
per use. Eviction walks it from the old end and asks whether a chunk may go (clean, not being fetched, bytes that the
bucket still has); what may not go is passed over, not removed, and the walk is bounded, so that a disk full of
dirty data cannot make every write scan it all. More is evicted than asked for (`EVICT_STEP_BYTES`), because each
round costs a journal commit.

Dirty data has a cap and an age. A write waits while either is exceeded, except that a write is always admitted when
nothing is dirty: a cap smaller than one write must not block for ever.

Rejected: whole files as the unit (one open 100 GiB image would never shrink), and clock/second chance (the dict is
as cheap and says exactly what was used last).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from s3vol.types import MIB

Owner = TypeVar("Owner")

EVICT_STEP_BYTES = 32 * MIB
SCAN_LIMIT = 4096  # chunks passed over in one round; about 1 ms


class Lru(Generic[Owner]):
    """Chunks by last use, the least recent first. A chunk is (owner, index)."""

    __slots__ = ("_chunks", "_order")

    def __init__(self) -> None:
        self._order: OrderedDict[tuple[Owner, int], None] = OrderedDict()
        self._chunks: dict[Owner, set[int]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def use(self, owner: Owner, index: int) -> None:
        """This chunk is on disk and was used now."""
        key = (owner, index)
        if key not in self._order:
            self._chunks.setdefault(owner, set()).add(index)
        self._order[key] = None
        self._order.move_to_end(key)

    def forget(self, owner: Owner, index: int) -> None:
        """This chunk is not on disk any more."""
        self._order.pop((owner, index), None)
        chunks = self._chunks.get(owner)
        if chunks is not None:
            chunks.discard(index)
            if not chunks:
                del self._chunks[owner]

    def forget_all(self, owner: Owner) -> None:
        """None of its chunks is on disk any more."""
        for index in self._chunks.pop(owner, ()):
            del self._order[owner, index]

    def plan(
        self, need_bytes: int, bytes_of: Callable[[Owner, int], int | None], *, scan_limit: int = SCAN_LIMIT
    ) -> list[tuple[Owner, int]]:
        """The least recently used chunks that together free `need_bytes`, or fewer if there are no more.

        `bytes_of` says what a chunk frees; 0: it must stay (dirty, in use). Those are moved to the recent end, so
        that the next round does not meet them first. None: it is not on the disk any more and is forgotten.
        """
        chosen: list[tuple[Owner, int]] = []
        kept: list[tuple[Owner, int]] = []
        gone: list[tuple[Owner, int]] = []
        freed = 0
        for key in self._order:
            if freed >= need_bytes or len(kept) >= scan_limit:
                break
            size = bytes_of(*key)
            if size is None:
                gone.append(key)
            elif size > 0:
                chosen.append(key)
                freed += size
            else:
                kept.append(key)
        for key in gone:
            self.forget(*key)
        for key in kept:
            self._order.move_to_end(key)
        return chosen


def eviction_goal(used_bytes: int, cap_bytes: int, free_bytes: int, floor_bytes: int, need_bytes: int) -> int:
    """How many bytes have to go before `need_bytes` may be added; 0 when there is room."""
    missing = max(used_bytes + need_bytes - cap_bytes, floor_bytes + need_bytes - free_bytes)
    return max(missing, min(EVICT_STEP_BYTES, cap_bytes // 8)) if missing > 0 else 0


def admits(dirty_bytes: int, more_bytes: int, cap_bytes: int, oldest_age_s: float, max_age_s: float) -> bool:
    """True when a write that adds `more_bytes` of dirty data may go on."""
    if dirty_bytes == 0:
        return True
    return dirty_bytes + more_bytes <= cap_bytes and oldest_age_s <= max_age_s
