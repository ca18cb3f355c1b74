"""Stream: a multipart upload that runs while the file is still being written. Pure bookkeeping.

Theory of operation. Parts lie on the grid of `plan.part_range`. A part may be sent when it is complete and behind the
write position. A write into a part that was sent, or is being sent, makes it outdated: it is sent again, under the
same number, before the upload is completed. `done` holds the parts that are as the file is now.

The metadata of a multipart object is fixed when the upload begins. `metadata` is what was sent then: without mtime and
ctime, which are not final while a file is written; readers then take Last-Modified, which is later than all writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from s3vol.cache.extents import RangeSet
from s3vol.cache.plan import part_at, part_range
from s3vol.store.base import Part
from s3vol.types import MIB

START_BYTES = 64 * MIB
"""Smaller files are published in one go: most are closed before an upload would have begun."""

_TIMES = ("mtime", "ctime")


def without_times(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata as a streaming upload can send it."""
    return {name: value for name, value in metadata.items() if name not in _TIMES}


@dataclass(slots=True, eq=False)
class Stream:
    """One upload. `attempt` is the number in its nonce."""

    metadata: Mapping[str, str]
    upload_id: str = ""
    attempt: int = 0
    done: dict[int, Part] = field(default_factory=dict)
    done_bytes: int = 0
    sending: set[int] = field(default_factory=set)
    outdated: set[int] = field(default_factory=set)
    begun: int = 0  # highest number that was ever sent
    closing: bool = False  # a publisher took over: no new parts
    idle: trio.Event = field(default_factory=trio.Event)  # set when nothing is being sent by the streaming task
    scope: trio.CancelScope | None = None  # of the streaming task
    ready: trio.Event = field(default_factory=trio.Event)  # wakes the streaming task

    def outdate(self, start: int, end: int) -> None:
        """The file changed in this range."""
        if start >= end or start >= part_range(max(self.begun, 1))[1]:
            return
        for number in range(part_at(start), min(part_at(end - 1), self.begun) + 1):
            self.spoil(number)
            if number in self.sending:
                self.outdated.add(number)

    def next_part(self, dirty: RangeSet) -> int | None:
        """The next part to send while writing: the first new one that is wholly written. Outdated ones wait."""
        if self.closing:
            return None
        number = self.begun + 1
        return number if dirty.covers(*part_range(number)) else None

    def spoil(self, number: int) -> None:
        """Part `number` is going to be replaced by something that is not on the grid."""
        if self.done.pop(number, None) is not None:
            self.done_bytes -= _length(number)

    def take(self, number: int) -> None:
        """Part `number` is going to be read and sent."""
        self.begun = max(self.begun, number)
        self.sending.add(number)
        self.outdated.discard(number)

    def sent(self, number: int, part: Part) -> None:
        """Part `number` was acknowledged; it counts unless the range was written meanwhile."""
        if number not in self.outdated and number not in self.done:
            self.done[number] = part
            self.done_bytes += _length(number)
        self.left(number)

    def left(self, number: int) -> None:
        """Part `number` is not being sent any more."""
        self.outdated.discard(number)
        self.sending.discard(number)


def _length(number: int) -> int:
    start, end = part_range(number)
    return end - start


def may_begin(dirty: RangeSet, base_limit: int) -> bool:
    """True for a new or wholly rewritten file whose beginning is written without a gap."""
    return base_limit == 0 and dirty.total >= START_BYTES and dirty.covers(0, START_BYTES)
