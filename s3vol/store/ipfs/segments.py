"""The blocks of a writer's files on their way into Kubo and the cluster, gathered in segments.

Theory of operation. A segment is a node that links up to SEGMENT_LINKS blocks and is pinned recursively. It is written
once and never changed, so it is pinned, copied and walked once; pinning a volume's root instead would read every file
at every commit. Blocks and pin arrive in one import, so garbage collection cannot come between.

Small blocks wait in the journal until a commit gathers them or SEGMENT_BYTES have come together. A large body is
imported at once, in its own segment. What a writer's files consist of is always linked from that writer's own
segments, even where another writer's hold the same bytes (`owe`): who deletes a segment then need only ask whether
anybody still shows a file with its blocks, not who else relies on it.

Between the import of a body and the change that shows it, no file needs its blocks. Whoever stores one holds a
reservation meanwhile (`reserve`), and a segment is not judged while it is imported.

A segment is noted in the journal before it is imported. After a crash one that was only noted is unpinned and
forgotten; what was to be in it is still in the journal, or was never acknowledged.

`_lock` guards the import: one at a time, so that no block goes into two segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from cbrrr import CID

from s3vol.store.ipfs.base import EVERYWHERE, Block, Blocks, Cluster, PinOptions
from s3vol.store.ipfs.cid import Cid, digest_of, is_node, node_cid, raw_of_digest
from s3vol.store.ipfs.entry import Piece, encode
from s3vol.store.ipfs.journal import (
    INTENDED,
    LOADED,
    PINNED,
    Journal,
    Loaded,
    Segment,
    Statement,
    drop_block,
    drop_owed,
    drop_segment,
    mark_segment,
    put_block,
    put_fact,
    put_owed,
    put_segment,
)
from s3vol.store.ipfs.state import FORMAT
from s3vol.types import MIB

SEGMENT_BYTES = 64 * MIB
"""One import of 64 MiB takes 0.3 s on a loopback; larger ones gain nothing and hold the pin lock longer."""

SEGMENT_LINKS = 1000
DIRECT_BYTES = 4 * MIB
"""A body of so many bytes goes straight to Kubo: writing it to the journal first would cost more than the import."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a volume is kept: in whose name, and on how many peers."""

    volume: str
    writer: str
    peer_id: str  # of the local Cluster peer: it has to be among the replicas
    replication_min: int = EVERYWHERE
    replication_max: int = EVERYWHERE
    timeout_s: float = 60.0

    def options(self, name: str) -> PinOptions:
        """How a segment is to be pinned."""
        near = () if self.replication_min == EVERYWHERE else (self.peer_id,)
        return PinOptions(
            f"s3vol/{self.volume}/{name}",
            replication_min=self.replication_min,
            replication_max=self.replication_max,
            allocations=near,
        )


class Segments:
    """Of one writer."""

    def __init__(self, blocks: Blocks, cluster: Cluster, journal: Journal, loaded: Loaded, keeping: Keeping) -> None:
        self._blocks = blocks
        self._cluster = cluster
        self._journal = journal
        self._keeping = keeping
        self._made = loaded.segments_made
        self._staged: dict[Cid, bytes] = {block.cid: block.body for block in loaded.blocks if not is_node(block.cid)}
        self.staged_bytes = sum(map(len, self._staged.values()))
        self._owed = set(loaded.owed)
        self._all = {segment.cid: segment for segment in loaded.segments}
        self._held: dict[bytes, Cid] = {
            digest: segment.cid
            for segment in loaded.segments
            if segment.dead_at_s is None and segment.step != INTENDED
            for digest in segment.digests
        }
        self._unproven = [
            segment.cid
            for segment in sorted(loaded.segments, key=lambda segment: segment.number)
            if segment.number > loaded.segments_proven and segment.dead_at_s is None and segment.step != INTENDED
        ]
        self._reserved: dict[int, set[bytes]] = {}
        self._importing: Cid | None = None
        self._going: set[Cid] = set()  # being removed: no more to be pinned
        self._lock = trio.Lock()

    @property
    def unproven(self) -> Sequence[Cid]:
        """Segments of which nobody has asked yet how many replicas they have."""
        return tuple(self._unproven)

    def proven(self, cids: Iterable[Cid]) -> None:
        """These have the replicas that were asked for."""
        done = set(cids)
        self._unproven = [cid for cid in self._unproven if cid not in done]
        # One number is enough to remember: segments are imported one after the other.
        left = [self._all[cid].number - 1 for cid in self._unproven]
        told = left or [self._all[cid].number for cid in done if cid in self._all]
        if told:
            upto = min(told) if left else max(told)
            self._journal.queue(put_fact("proven", b"%d" % upto))

    @property
    def all(self) -> Mapping[Cid, Segment]:
        """Every segment of this writer."""
        return self._all

    def is_importing(self, segment: Segment) -> bool:
        """True while its blocks are on their way into Kubo: what needs them may not be known yet."""
        return segment.cid == self._importing

    @contextmanager
    def reserve(self) -> Iterator[set[bytes]]:
        """Within the block, collection takes the digests that are put into this set for needed."""
        digests: set[bytes] = set()
        self._reserved[id(digests)] = digests
        try:
            yield digests
        finally:
            del self._reserved[id(digests)]

    @property
    def reserved(self) -> set[bytes]:
        """Digests of blocks that are stored, or on their way, for files that are not shown yet."""
        return {digest for digests in self._reserved.values() for digest in digests}

    def staged(self, cid: Cid) -> bytes | None:
        """A block that is not imported yet."""
        return self._staged.get(cid)

    def lacks(self, block: Block) -> bool:
        """True for a block that is neither staged nor in a segment."""
        return digest_of(block.cid) not in self._held and block.cid not in self._staged

    @property
    def waiting(self) -> bool:
        """True when `gather` has something to do."""
        return bool(self._staged or self._owed)

    def owes_to(self, segment: Segment) -> bool:
        """True when a block of this segment is still to be linked from a new one."""
        return not self._owed.isdisjoint(segment.digests)

    def holds(self, digest: bytes) -> bool:
        """True when a segment of ours that is not condemned links the block, or one will at the next publication."""
        return digest in self._held or digest in self._owed or raw_of_digest(digest) in self._staged

    def stage(self, blocks: Iterable[Block]) -> list[Statement]:
        """Take blocks over; the caller writes the statements together with the change that needs them."""
        new = [block for block in {block.cid: block for block in blocks}.values() if self.lacks(block)]
        for block in new:
            self._staged[block.cid] = block.body
            self.staged_bytes += len(block.body)
        return [put_block(block) for block in new]

    def owe(self, pieces: Iterable[Piece]) -> list[Statement]:
        """Blocks that exist, and are used anew: link them from a segment of ours, too."""
        new = {piece.digest for piece in pieces if not self.holds(piece.digest)}
        self._owed |= new
        return [put_owed(digest) for digest in new]

    def disown(self, used: Set[bytes]) -> bool:
        """Owe no more what nothing uses any more. True when there was such a block."""
        gone = self._owed - used
        self._owed -= gone
        self._journal.queue(*(drop_owed(digest) for digest in gone))
        return bool(gone)

    async def recover(self) -> None:
        """After a crash: undo segments that were only noted."""
        for segment in [segment for segment in self._all.values() if segment.step == INTENDED]:
            if segment.dead_at_s is not None:  # its removal may have begun
                await self._cluster.unpin(segment.cid, timeout_s=self._keeping.timeout_s)
            await self._blocks.unpin(segment.cid, timeout_s=self._keeping.timeout_s)
            self._forget(segment)
            await self._journal.write(drop_segment(segment.cid))

    async def load(self, blocks: Sequence[Block]) -> None:
        """Import blocks now, those that are not held yet."""
        async with self._lock:
            new = [block for block in {block.cid: block for block in blocks}.values() if self.lacks(block)]
            for batch in _batches(new):
                await self._import(batch, [])

    async def gather(self) -> None:
        """Import what is staged or owed."""
        async with self._lock:
            owed = sorted(self._owed)
            staged = [Block(cid, body) for cid, body in self._staged.items()]
            for batch in _batches(staged):
                room = SEGMENT_LINKS - len(batch)
                await self._import(batch, owed[:room])
                owed = owed[room:]
            for at in range(0, len(owed), SEGMENT_LINKS):
                await self._import([], owed[at : at + SEGMENT_LINKS])

    async def _import(self, batch: Sequence[Block], owed: Sequence[bytes]) -> None:
        digests = frozenset([*(digest_of(block.cid) for block in batch), *owed])
        segment, body = self._node(digests)
        self._all[segment.cid] = segment
        self._importing = segment.cid
        try:
            await self._journal.write(put_fact("segments", b"%d" % self._made), put_segment(segment))
            await self._blocks.load([*batch, Block(segment.cid, body)], segment.cid, timeout_s=self._keeping.timeout_s)
        finally:
            self._importing = None
        segment.step = LOADED
        # From here no await before memory agrees with what is queued for the journal.
        statements = [mark_segment(segment), *(drop_owed(digest) for digest in owed)]
        for block in batch:
            if (staged := self._staged.pop(block.cid, None)) is not None:
                self.staged_bytes -= len(staged)
                statements.append(drop_block(block.cid))
        self._owed -= set(owed)
        self._unproven.append(segment.cid)
        self._held.update(dict.fromkeys(digests, segment.cid))
        await self._journal.write(*statements)

    def _node(self, digests: frozenset[bytes]) -> tuple[Segment, bytes]:
        self._made += 1
        keeping = self._keeping
        body = encode(
            {
                "s3vol": FORMAT,
                "volume": keeping.volume,
                "writer": keeping.writer,
                "segment": self._made,
                "blocks": [CID(raw_of_digest(digest)) for digest in sorted(digests)],
            }
        )
        return Segment(node_cid(body), self._made, digests), body

    async def pin(self) -> None:
        """Give the cluster what it does not have yet. Imported segments stay pinned on this Kubo in any case."""
        for segment in [segment for segment in self._all.values() if segment.step == LOADED]:
            if segment.cid in self._going or segment.cid not in self._all or segment.step != LOADED:
                continue  # collection was quicker; a pin that came after its removal would be nobody's
            options = self._keeping.options(f"seg/{self._keeping.writer}/{segment.number}")
            await self._cluster.pin(segment.cid, options, timeout_s=self._keeping.timeout_s)
            if segment.cid in self._going or segment.step != LOADED:
                continue
            segment.step = PINNED
            await self._journal.write(mark_segment(segment))

    def condemn(self, segment: Segment, at_s: int, clock: Mapping[str, int]) -> list[Statement]:
        """Use a segment for nothing new, from now on."""
        segment.dead_at_s = at_s
        segment.dead_clock = clock
        self._unlink(segment)
        return [mark_segment(segment)]

    def revive(self, segment: Segment) -> list[Statement]:
        """A condemned segment is used again, by somebody who had not told."""
        segment.dead_at_s = None
        segment.dead_clock = {}
        self._held.update(dict.fromkeys(segment.digests, segment.cid))
        return [mark_segment(segment)]

    async def remove(self, segment: Segment) -> None:
        """Unpin a segment everywhere, and forget it. A pin of it that is on its way is sent before."""
        self._going.add(segment.cid)
        try:
            segment.step = INTENDED  # whatever fails from here on: nothing relies on it again
            await self._journal.write(mark_segment(segment))
            await self._cluster.unpin(segment.cid, timeout_s=self._keeping.timeout_s)
            await self._blocks.unpin(segment.cid, timeout_s=self._keeping.timeout_s)
            self._forget(segment)
            await self._journal.write(drop_segment(segment.cid))
        finally:
            self._going.discard(segment.cid)

    def _forget(self, segment: Segment) -> None:
        self._all.pop(segment.cid, None)
        self._unproven = [cid for cid in self._unproven if cid != segment.cid]  # it will never have replicas
        self._unlink(segment)

    def _unlink(self, segment: Segment) -> None:
        for digest in segment.digests:
            if self._held.get(digest) == segment.cid:
                del self._held[digest]


def _batches(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks in the portions of segments."""
    batches: list[list[Block]] = []
    total = 0
    for block in blocks:
        if not batches or len(batches[-1]) >= SEGMENT_LINKS or total + len(block.body) > SEGMENT_BYTES:
            batches.append([])
            total = 0
        batches[-1].append(block)
        total += len(block.body)
    return batches
