"""RangeSet: a set of byte offsets, kept as sorted, disjoint, non-touching half-open ranges.

Theory of operation. Two parallel lists, starts and ends; every operation finds its place by bisection and replaces
one slice, so a file with 30,000 ranges costs a bisection and a memmove per write. `total` is maintained, never summed.
Empty ranges (start >= end) are accepted everywhere and mean nothing.

Rejected: a list of tuples (bisect then needs a key function per probe), a bitmap per block (wrong unit: dirty data is
counted in bytes, and a bitmap of 5 TiB is not small), a tree (slower than memmove at these sizes in Python).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""Half-open: the bytes from the first offset up to, not including, the second."""


class RangeSet:
    """A set of byte offsets. `total` is how many are in it."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable, and mypy wants a method here

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    def copy(self) -> RangeSet:
        """An independent set of the same bytes."""
        twin = RangeSet()
        twin._starts, twin._ends, twin.total = self._starts.copy(), self._ends.copy(), self.total
        return twin

    def add(self, start: int, end: int) -> int:
        """Put the range in; returns how many bytes were not there before."""
        if start >= end:
            return 0
        starts, ends = self._starts, self._ends
        low = bisect_left(ends, start)
        high = bisect_right(starts, end, low)
        known = 0
        if low < high:
            for at in range(low, high):
                known += ends[at] - starts[at]
            start, end = min(start, starts[low]), max(end, ends[high - 1])
        starts[low:high] = [start]
        ends[low:high] = [end]
        grown = end - start - known
        self.total += grown
        return grown

    def remove(self, start: int, end: int) -> int:
        """Take the range out; returns how many bytes were there before."""
        if start >= end:
            return 0
        starts, ends = self._starts, self._ends
        low = bisect_right(ends, start)
        high = bisect_left(starts, end, low)
        if low >= high:
            return 0
        new_starts: list[int] = []
        new_ends: list[int] = []
        known = sum(ends[at] - starts[at] for at in range(low, high))
        if starts[low] < start:
            new_starts.append(starts[low])
            new_ends.append(start)
            known -= start - starts[low]
        if ends[high - 1] > end:
            new_starts.append(end)
            new_ends.append(ends[high - 1])
            known -= ends[high - 1] - end
        starts[low:high] = new_starts
        ends[low:high] = new_ends
        self.total -= known
        return known

    def update(self, ranges: Iterable[Range]) -> None:
        """Put all of `ranges` in."""
        for start, end in ranges:
            self.add(start, end)

    def clear(self) -> None:
        """Take everything out."""
        self._starts.clear()
        self._ends.clear()
        self.total = 0

    def covers(self, start: int, end: int) -> bool:
        """True when every byte of the range is in the set."""
        if start >= end:
            return True
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._ends[at] >= end

    def touches(self, start: int, end: int) -> bool:
        """True when at least one byte of the range is in the set."""
        if start >= end:
            return False
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end

    def overlap(self, start: int, end: int) -> list[Range]:
        """The parts of the range that are in the set."""
        if start >= end:
            return []
        starts, ends = self._starts, self._ends
        low = bisect_right(ends, start)
        high = bisect_left(starts, end, low)
        return [(max(starts[at], start), min(ends[at], end)) for at in range(low, high)]

    def gaps(self, start: int, end: int) -> list[Range]:
        """The parts of the range that are not in the set."""
        found: list[Range] = []
        at = start
        for low, high in self.overlap(start, end):
            if at < low:
                found.append((at, low))
            at = high
        if at < end:
            found.append((at, end))
        return found

    def count(self, start: int, end: int) -> int:
        """How many bytes of the range are in the set."""
        return sum(high - low for low, high in self.overlap(start, end))
