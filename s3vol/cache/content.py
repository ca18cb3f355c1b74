"""Content: one file's bytes as this node sees them, as sets of byte ranges. Pure bookkeeping: no I/O, no await.

Theory of operation. Four sets describe the data file:

* `present`: these bytes of the data file are right. What is not present and below `base_limit` is read from the base
  object; from `base_limit` on everything is present (a hole in the data file reads as the zeros it stands for).
* `dirty`: written and not in the base; always present.
* `inflight`: taken from `dirty` by the publisher that is at work. A write during the publish makes its range dirty
  again.
* `journaled`: dirty bytes that a crash leaves, as of the last sync. `unjournaled`: written since then (so a range may
  be in both), and `saving`: on their way into the journal.

A *generation* counts changes (bytes, size, metadata). The content is DIRTY while `generation` differs from
`published_generation`, and has to be synced while it differs from `saved_generation`.

`recorded` are chunks that the journal calls clean. They are taken out of the journal *before* the data file is
changed, else bytes written shortly before a crash would be taken for the base's.

Bytes that are present stay present while a fetch of the same chunk is on its way (`fetching` forbids eviction), so
what a fetch brings may be filled into the gaps that are there when it arrives, and into nothing else. While a thread
puts fetched bytes on the disk, the chunks are also in `landing`: whoever wants to change them waits until it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from s3vol.cache.base import State
from s3vol.cache.bodies import ContentBodies
from s3vol.cache.extents import Range, RangeSet
from s3vol.cache.readahead import Readahead
from s3vol.cache.readaround import ReadAround
from s3vol.cache.records import Row
from s3vol.cache.stream import Stream
from s3vol.types import CHUNK_BYTES, ObjectInfo, Version


class Abandoned(Exception):
    """To publish is pointless now: the content was cut or discarded meanwhile. Never leaves the cache."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one publish sends: taken in one step, before the first request."""

    generation: int
    size: int
    metadata: Mapping[str, str]
    content_type: str


@dataclass(slots=True)
class Attempt:
    """A nonce that was sent: the object that carries it may be ours.

    `sent` maps the ETag that the object then has ("" where it cannot be known) to the generation that was sent.
    """

    sent: dict[str, int] = field(default_factory=dict)
    broken: bool = False  # the store said that what it keeps is not what we sent

    def note(self, etag: str, generation: int) -> None:
        """A request with this nonce begins. Two generations under an unknown ETag cannot be told apart (-1)."""
        known = self.sent.get(etag, generation)
        self.sent[etag] = generation if known == generation or etag else -1


@dataclass(slots=True, eq=False)
class CachedContent:
    """The `Content` of this cache; see the module's docstring for the sets. Changed on the event loop only."""

    id: int
    key: str
    base: Version | None
    size: int
    metadata: Mapping[str, str]
    content_type: str = ""
    state: State = State.CLEAN
    derived: bool = True  # began as a version of the object; not so for a new file that replaces something
    base_limit: int = 0
    refs: int = 0
    present: RangeSet = field(default_factory=RangeSet)
    dirty: RangeSet = field(default_factory=RangeSet)
    inflight: RangeSet = field(default_factory=RangeSet)
    journaled: RangeSet = field(default_factory=RangeSet)
    unjournaled: RangeSet = field(default_factory=RangeSet)
    saving: RangeSet = field(default_factory=RangeSet)
    carries: bool = False  # the journal may have bytes of it, see Saver
    carried_bytes: int = 0  # about how many
    cut_unflushed: bool = False  # a power failure could bring back what the data file had before it was cut
    recorded: set[int] = field(default_factory=set)
    recordings: int = 0  # grows when chunks are recorded: who takes some out has to look again
    unrecorded: set[int] = field(default_factory=set)  # chunks that may have become clean since they were looked at
    generation: int = 0
    published_generation: int = 0
    saved_generation: int = 0
    saved_size: int = 0  # up to here the journal vouches for bytes and holes that are not in the base
    attempt: int = 0
    attempts: dict[int, Attempt] = field(default_factory=dict)
    unresolved: bool = False  # from the journal: the bucket may hold a later publish than the journal knows
    explicit_times: bool = False
    journal_state: State | None = None  # what the journal's row says; None: it has none
    saved_row: Row | None = None  # the journal's row, where it is known to be on the disk
    flush_failed: bool = False
    extent_rows: int = 0  # rows of dirty extents in the journal
    evictions: int = 0  # grows when bytes leave the data file: a threaded read must be repeated
    failures: int = 0  # publishes in the background since the last success
    low_water: int = 0  # the smallest size since the last snapshot
    loaded_attempt: int = 0  # attempts up to here began before the journal's row was made
    loaded_generation: int = 0  # what the journal brought back
    dropped: bool = False  # forgotten by the cache: nothing may be written to its data file any more
    indexed: bool = False  # found by `attach`
    conflict_key: str = ""
    keeping: bool = False  # CONFLICTED, and the copy is not made: to be saved and counted like a DIRTY one
    unkept: bool = False  # discarded while the copy was made, which failed
    cutting: trio.Event | None = None  # a truncate waits for the journal: writes and truncates wait for it
    stream: Stream | None = None
    unstreamable: bool = False  # streaming failed: the publish sends everything
    fetching: dict[int, trio.Event] = field(default_factory=dict)
    landing: dict[int, trio.Event] = field(default_factory=dict)
    loading: dict[Range, trio.Event] = field(default_factory=dict)  # what a thread reads for a sequential reader
    cold: bool = False  # the last large read that looked did not find its bytes in the page cache
    bodies: ContentBodies = field(default_factory=ContentBodies)  # of what is not dirty
    watchers: set[trio.CancelScope] = field(
        default_factory=set
    )  # of those who wait for a publish; progress extends them
    readahead: Readahead = field(default_factory=Readahead)
    around: ReadAround = field(default_factory=ReadAround)
    publish_lock: trio.Lock = field(default_factory=trio.Lock)  # one publisher, or mover, at a time
    sync_lock: trio.Lock = field(default_factory=trio.Lock)  # rows of one content are committed in order

    @property
    def blocks_bytes(self) -> int:
        """The size without holes that are known."""
        if self.base_limit >= self.size:
            return self.size
        written = self.dirty.count(self.base_limit, self.size)
        if self.inflight.total:
            both = self.dirty.copy()
            both.update(self.inflight)
            written = both.count(self.base_limit, self.size)
        return self.base_limit + written

    @property
    def is_unpublished(self) -> bool:
        """True while only this node has something of it."""
        return self.state is State.DIRTY or (self.state is State.CONFLICTED and self.keeping)

    @property
    def unpublished_bytes(self) -> int:
        """Bytes that only this node has."""
        return self.dirty.total + self.inflight.total

    @property
    def unsent_bytes(self) -> int:
        """The same without those that the store has already acknowledged as parts of an upload."""
        sent = self.stream.done_bytes if self.stream is not None else 0
        return max(0, self.unpublished_bytes - sent)

    def absent(self, start: int, end: int) -> list[Range]:
        """What of the range has to be fetched."""
        return self.present.gaps(start, min(end, self.base_limit))

    def is_changed(self, start: int, end: int) -> bool:
        """True when a byte of the range is not in the base."""
        return self.dirty.touches(start, end) or self.inflight.touches(start, end)

    def clean_chunk(self, index: int) -> Range | None:
        """The range of this chunk if all of it is as in the base and on the disk, else None."""
        start = index * CHUNK_BYTES
        end = min(start + CHUNK_BYTES, self.base_limit)
        if start >= end or not self.present.covers(start, end) or self.is_changed(start, start + CHUNK_BYTES):
            return None
        return start, end

    def recorded_in(self, start: int, end: int) -> list[int]:
        """The recorded chunks that the range touches."""
        if not self.recorded or start >= end:
            return []
        first, last = start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        if last - first > len(self.recorded):
            return [index for index in self.recorded if first <= index <= last]
        return [index for index in range(first, last + 1) if index in self.recorded]

    def evictable(self, index: int) -> list[Range]:
        """What of this chunk may leave the disk: bytes that the bucket has, of a chunk that nobody is at work on."""
        if index in self.fetching or self.dropped or self.state in (State.DISCARDED, State.CONFLICTED):
            return []
        start, end = index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES
        if self.is_changed(start, end):
            return []
        return self.present.overlap(start, min(end, self.base_limit))

    def landing_in(self, start: int, end: int) -> trio.Event | None:
        """Set when a thread has written a chunk of the range, which may then be changed; None: there is no such."""
        for index, over in self.landing.items():
            if index * CHUNK_BYTES < end and start < (index + 1) * CHUNK_BYTES:
                return over
        return None

    def loading_in(self, start: int, end: int) -> trio.Event | None:
        """Set when a thread has read bytes of the range, or given up; None: there is no such."""
        for (low, high), over in self.loading.items():
            if low < end and start < high:
                return over
        return None

    def evicted(self, start: int, end: int) -> None:
        """The range has become a hole of the data file."""
        self.present.remove(start, end)
        self.evictions += 1

    def filled(self, start: int, end: int) -> None:
        """Fetched bytes are in the data file."""
        self.present.add(start, end)
        self.unrecorded.update(range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1))

    def written(self, start: int, end: int) -> None:
        """The bytes of a write are in the data file."""
        self.bodies.drop(start, end)
        if start > self.size:
            self.present.add(self.size, start)
        self.present.add(start, end)
        self.dirty.add(start, end)
        self.unjournaled.add(start, end)
        self.size = max(self.size, end)
        self._changed(start, end)

    def resized(self, size: int) -> None:
        """Truncate: what is cut is forgotten, what is added is a hole."""
        if size < self.size:
            self.bodies.drop(size)
            for ranges in (self.present, self.dirty, self.inflight, self.journaled, self.unjournaled, self.saving):
                ranges.remove(size, self.size)
            self.cut_unflushed = True
            self.base_limit = min(self.base_limit, size)
            self.low_water = min(self.low_water, size)
            self.saved_size = min(self.saved_size, size)
        else:
            self.present.add(self.size, size)
        old, self.size = self.size, size
        self._changed(min(old, size), max(old, size))

    def describe(self, metadata: Mapping[str, str], explicit_times: bool) -> bool:
        """Replace the metadata; False when nothing differs."""
        self.explicit_times |= explicit_times
        if metadata == self.metadata:
            return False
        self.metadata = dict(metadata)
        self._changed(0, 0)
        return True

    def _changed(self, start: int, end: int) -> None:
        self.generation += 1
        if self.state is State.CLEAN:
            self.state = State.DIRTY
        if self.stream is not None:
            self.stream.outdate(start, end)

    # Publishing

    def take(self) -> Snapshot:
        """Begin a publish: what is dirty now is in flight. Nothing else may be in flight."""
        self.inflight, self.dirty = self.dirty, RangeSet()
        self.low_water = self.size
        return Snapshot(self.generation, self.size, self.metadata, self.content_type)

    def give_back(self) -> None:
        """The publish did not succeed: what was in flight is dirty."""
        if self.dirty:
            self.dirty.update(self.inflight)
        else:
            self.dirty = self.inflight
        self.inflight = RangeSet()

    def settle(
        self, snapshot: Snapshot, version: Version, sent: Mapping[str, str], *, metadata_too: bool = True
    ) -> None:
        """The object at `version` holds the snapshot's bytes, and `sent` as metadata.

        Without `metadata_too` the snapshot's metadata has still to be published.
        """
        for start, end in self.inflight:
            self.unrecorded.update(range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1))
        self.inflight.clear()
        self.rebase(version)
        self.base_limit = self.low_water
        self.attempts.clear()
        self.flush_failed = self.unstreamable = False
        self.unjournaled = _common(self.dirty, self.unjournaled)
        self.journaled = _common(self.dirty, self.journaled)
        for newer in (self.unjournaled, self.saving):  # what the journal has of these is older than what was published
            for start, end in newer:
                self.journaled.remove(start, end)
        if metadata_too:
            self.published_generation = snapshot.generation
        if metadata_too and self.metadata == snapshot.metadata:
            self.metadata = sent
            self.explicit_times = False
        if self.generation == self.published_generation and self.state is State.DIRTY:
            self.state = State.CLEAN
            self.saved_generation = self.generation

    def rebase(self, version: Version) -> None:
        """The bytes that are absent here are those of the object at `version`."""
        self.bodies.drop_passing()  # what is held is right: it was never changed here
        self.base = version
        self.derived = True
        self.unresolved = False

    def reset(self, info: ObjectInfo, metadata: Mapping[str, str]) -> None:
        """Forget the local bytes: the object holds all of them, and later ones."""
        for ranges in (self.present, self.dirty, self.inflight, self.journaled, self.unjournaled, self.saving):
            ranges.clear()
        self.cut_unflushed = True
        self.bodies.drop(0)
        self.rebase(info.version)
        self.evictions += 1
        self.size = self.base_limit = self.low_water = self.saved_size = info.size
        self.metadata = metadata
        self.generation += 1
        self.published_generation = self.saved_generation = self.generation
        self.state = State.CLEAN
        self.attempts.clear()
        self.stream = None

    # Journal

    def row(self) -> Row:
        """This content as of now, for the journal."""
        return Row(
            id=self.id,
            key=self.key,
            base=self.base,
            derived=self.derived,
            base_limit=self.base_limit,
            size=self.size,
            metadata=self.metadata,
            content_type=self.content_type,
            state=State.DIRTY.value if self.is_unpublished else self.state.value,
            attempt=self.loaded_attempt if self.unresolved else self.attempt,  # later ones may hold more than we know
            attempts={number: next(reversed(attempt.sent), "") for number, attempt in self.attempts.items()},
            explicit_times=self.explicit_times,
        )


def _common(one: RangeSet, other: RangeSet) -> RangeSet:
    if not one or not other:
        return RangeSet()
    return RangeSet(part for start, end in one for part in other.overlap(start, end))
