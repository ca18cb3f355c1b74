"""Readahead: what to fetch before it is asked for. Pure; one `Readahead` per content, one `Share` per cache.

Theory of operation. A stream is a place where a reader is expected next. A read that begins there, or within
`SLACK_BYTES` of it (the kernel splits its own readahead into requests that arrive out of order), continues the stream:
the window grows fourfold from 1 MiB up to the maximum each time the reader has used half of what was fetched for it. A
read anywhere else starts a new stream without a window, which replaces the one that was used least recently; so
a random reader prefetches nothing, and a few sequential readers of one file do not disturb each other.
A read at offset 0 is taken for the beginning of a sequential one: a large one is followed by a window fourfold its
length, a small one (`head`, `file`) by none until the next read continues it, so that it has the endpoint to itself.

Several readers at once share the memory in which bytes wait for them (cache/bodies.py). What one has before it must not
push out what another has not read yet, so the largest window is a fair part of that memory.

Rejected: one position per file handle (the kernel does not say which handle a page fault of mmap belongs to), and a
constant window (fetches 32 MiB for `head`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from s3vol.cache.readaround import SMALL_BYTES
from s3vol.types import CHUNK_BYTES, MIB

FIRST_WINDOW_BYTES = MIB
GROWTH = 4  # what a reader leaves unread is at most so many times what was read; at 2, a file of 5 MiB takes 5 requests
SLACK_BYTES = MIB  # Linux splits a readahead of at most read_ahead_kb; its pieces arrive in any order within it
MAX_STREAMS = 4


_ACTIVE_S = 1.0  # who began no readahead for so long reads slowly, or no more


class Share:
    """How far ahead each of several readers may be: `window_bytes`, at most `most_bytes` and together `all_bytes`."""

    def __init__(self, most_bytes: int, all_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._all_bytes = all_bytes
        self._begun_s: dict[Hashable, float] = {}
        self.window_bytes = min(most_bytes, all_bytes)

    def begun(self, reader: Hashable, now_s: float) -> None:
        """Readahead for this reader begins."""
        self._begun_s[reader] = now_s
        if len(self._begun_s) > 1:
            self._begun_s = {one: at_s for one, at_s in self._begun_s.items() if now_s - at_s <= _ACTIVE_S}
        fair_bytes = max(self._all_bytes // len(self._begun_s), CHUNK_BYTES)
        self.window_bytes = min(self._most_bytes, fair_bytes)


@dataclass(slots=True)
class Stream:
    """One sequential reader: where it is expected, how far ahead it may be served, and how far it has been."""

    next: int
    window_bytes: int
    fetched_to: int


class Readahead:
    """The streams of one content, the most recently used last. `sequential`: the read noted last continues one."""

    __slots__ = ("_streams", "sequential")

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self.sequential = False

    def note(self, start: int, end: int, limit: int, max_bytes: int) -> tuple[int, int] | None:
        """A read of [start, end) happens: the range to prefetch now, if any. Never beyond `limit`; on chunk borders.

        `max_bytes` is the largest window; 0 turns readahead off.
        """
        stream = self._find(start)
        if stream is None:
            stream = Stream(end, max(FIRST_WINDOW_BYTES, GROWTH * (end - start)) if start == 0 else 0, end)
            self._streams.append(stream)
            del self._streams[:-MAX_STREAMS]
            if end - start <= SMALL_BYTES:
                self.sequential = False
                return None
        else:
            stream.next = max(stream.next, end)
            if not stream.window_bytes:
                stream.window_bytes = FIRST_WINDOW_BYTES
        stream.fetched_to = max(stream.fetched_to, stream.next)
        window = min(stream.window_bytes, max_bytes)
        self.sequential = window > 0
        if not window or stream.fetched_to - stream.next > window // 2 or stream.fetched_to >= limit:
            return None
        first = stream.fetched_to
        last = min(-(-(stream.next + window) // CHUNK_BYTES) * CHUNK_BYTES, limit)
        if last <= first:
            return None
        stream.fetched_to = last
        stream.window_bytes = min(window * GROWTH, max_bytes)
        return first, last

    def _find(self, start: int) -> Stream | None:
        for at in range(len(self._streams) - 1, -1, -1):
            stream = self._streams[at]
            if abs(start - stream.next) <= SLACK_BYTES and stream.next:
                self._streams.append(self._streams.pop(at))
                return stream
        return None
