"""Bodies: fetched bytes that are still in memory, for the reader that comes right behind the readahead. Pure.

Theory of operation. What readahead brings is written to the disk past the page cache (cache/direct.py), so a reader who
is served from memory costs one copy instead of three, and need not wait for the disk. A body goes when as many bytes
were served as it has, when newer ones need its place, or when the content changes below it: every method of
`CachedContent` that changes bytes drops the bodies of the range, so a body is right as long as it is there.

Rejected: the page cache as the place where readers find what was fetched. It doubles what the kernel holds (the mount
has pages of its own), and a first touch of a page is the most expensive part of a cold read on a virtual machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from s3vol.cache.extents import Range


@dataclass(slots=True, eq=False)
class Body:
    """The bytes of the content from `start` on; empty when given up. `served_bytes` counts what readers got.

    `stays`: to be served more than once (cache/held.py).
    """

    start: int
    bytes: memoryview
    served_bytes: int = 0
    stays: bool = False

    @property
    def end(self) -> int:
        """Where it ends in the content."""
        return self.start + len(self.bytes)

    def give_up(self) -> None:
        """Let the memory go."""
        self.bytes = memoryview(b"")


class ContentBodies:
    """Those of one content, in no order; a handful."""

    __slots__ = ("_bodies",)

    def __init__(self) -> None:
        self._bodies: list[Body] = []

    def __bool__(self) -> bool:
        return bool(self._bodies)

    def add(self, body: Body) -> None:
        """Bytes that are now those of the content."""
        self._bodies = [known for known in self._bodies if known.bytes]
        self._bodies.append(body)

    def drop(self, start: int, end: int | None = None) -> None:
        """Give up what touches the range; without `end`, everything from `start` on."""
        for body in self._bodies:
            if body.end > start and (end is None or body.start < end):
                body.give_up()
        self._bodies = [body for body in self._bodies if body.bytes]

    def drop_passing(self) -> None:
        """Give up all but those that stay."""
        for body in self._bodies:
            if not body.stays:
                body.give_up()
        self._bodies = [body for body in self._bodies if body.bytes]

    def covers(self, start: int, end: int) -> bool:
        """True when `serve` would answer."""
        return self._pieces(start, end) is not None

    def serve(self, start: int, end: int) -> memoryview | bytes | None:
        """The bytes of the range for a reader, or None when some are not here."""
        pieces = self._pieces(start, end)
        if pieces is None:
            return None
        views = []
        for body, (low, high) in pieces:
            views.append(body.bytes[low - body.start : high - body.start])
            body.served_bytes += high - low
            if body.served_bytes >= len(body.bytes) and not body.stays:
                self._bodies.remove(body)
                body.give_up()
        return views[0] if len(views) == 1 else b"".join(views)

    def _pieces(self, start: int, end: int) -> list[tuple[Body, Range]] | None:
        """Which bodies the range is to be taken from, in order."""
        pieces: list[tuple[Body, Range]] = []
        while start < end:
            # The newest first: what is fetched behind bytes that stay has them, too, and goes when all is served.
            body = next((one for one in reversed(self._bodies) if one.start <= start < one.end), None)
            if body is None:
                return None
            stop = min(end, body.end)
            pieces.append((body, (start, stop)))
            start = stop
        return pieces


class Shelf:
    """All bodies of one cache, oldest first: at most `capacity_bytes` together."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._bodies: deque[Body] = deque()

    @property
    def used_bytes(self) -> int:
        """What is held now."""
        return sum(len(body.bytes) for body in self._bodies)

    def put(self, bodies: ContentBodies, start: int, data: memoryview) -> None:
        """Keep `data` for the readers of a content; older bodies make room, of whatever content they are."""
        if len(data) > self._capacity_bytes:
            return
        self._bodies = deque(body for body in self._bodies if body.bytes)
        while self.used_bytes + len(data) > self._capacity_bytes:
            self._bodies.popleft().give_up()
        body = Body(start, data)
        self._bodies.append(body)
        bodies.add(body)
