"""Garbage: which segments and commits of this writer nobody needs any more, and their removal while all go on writing.

Theory of operation. Each writer collects its own, in two phases. A segment of which no present file, pending change or
upload needs a block is *condemned*: nothing new relies on it, and the clock of the state that does without it is
noted. It is removed when `retention_s` has passed, and every writer of the volume has published a head that includes
that clock. From then on nobody can show a file with its blocks: who has seen the removal has it no more, and who
copied the file before, or keeps a part of it in an upload, has linked the blocks from a segment of its own and said so
in that head. A head that is read late only makes the removal later. A segment that is needed after all is revived.

So a writer that is gone for good holds everything, until it is retired: its register is removed.

A segment of which less than REPACK is needed is condemned too, after what is needed has been put down for a new one.

Rejected: reading each head from its writer's own peer at the moment of removal (a writer that is cut off may still copy
files that it sees, and finds their blocks gone when it comes back).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from s3vol.errors import Corrupt, S3volError, Unavailable
from s3vol.store.ipfs.entry import Piece
from s3vol.store.ipfs.heads import register_block
from s3vol.store.ipfs.journal import INTENDED, Segment, drop_commit
from s3vol.store.ipfs.opening import OpenVolume
from s3vol.store.ipfs.state import State
from s3vol.store.ipfs.usage import used_digests

REPACK = 0.5
"""Half of a segment's blocks: repacking moves no bytes, it costs one small node and two pins."""

RETENTION_S = 3600.0
EVERY_S = 600.0
"""Between rounds of a mount. A round that removes something ends with Kubo's own collection, which holds up imports."""

_CALL_S = 30.0
_COLLECT_S = 600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round did. `waits_for`: writers whose heads do not yet include what was condemned."""

    condemned: int = 0
    removed: int = 0
    commits: int = 0
    blocks: int = 0
    waits_for: tuple[str, ...] = ()


class Collector:
    """Of one open volume."""

    def __init__(
        self, opened: OpenVolume, *, retention_s: float = RETENTION_S, now_s: Callable[[], float] = time.time
    ) -> None:
        self._opened = opened
        self._parts = opened.parts
        self._retention_s = retention_s
        self._now_s = now_s

    async def collect(self) -> Outcome:
        """One round. Raises Unavailable; what was done before that stays done."""
        parts = self._parts
        await self._opened.heads.scan()
        await parts.refresher.refresh()
        others = await self._states()
        now_s = int(self._now_s())
        condemned = self._judge(now_s)
        await parts.publisher.publish()  # the others can only agree to what they see
        removable, waits_for = self._agreed(now_s, others)
        for segment in removable:
            await parts.segments.remove(segment)
        commits = await self._drop_commits(now_s)
        gone = await self._opened.blocks.collect(timeout_s=_COLLECT_S) if removable or commits else 0
        return Outcome(condemned, len(removable), commits, gone, waits_for)

    async def _states(self) -> dict[str, State | None]:
        """The published states of the other writers; None for one that cannot be read: it may need everything."""
        found: dict[str, State | None] = {}
        for writer, head in list(self._opened.heads.known.items()):  # others scan meanwhile
            if writer != self._parts.volume.writer:
                found[writer] = None
                if head.commit is None or writer in self._parts.refresher.quarantined:
                    continue
                with suppress(Unavailable, Corrupt):  # it is asked again in the next round
                    found[writer] = await self._parts.refresher.state(head.commit)
        return found

    def _judge(self, now_s: int) -> int:
        """Condemn and revive, synchronously; returns how many were condemned."""
        segments, queue = self._parts.segments, self._parts.journal.queue
        needed = used_digests(self._parts.volume, segments, self._parts.uploads.values())
        clock = dict(self._parts.volume.state.clock)
        condemned = 0
        for segment in [segment for segment in segments.all.values() if not segments.is_importing(segment)]:
            used = segment.digests & needed
            if segment.step == INTENDED:  # its import failed, or its removal has begun: it holds nothing
                if segment.dead_at_s is None:
                    queue(*segments.condemn(segment, now_s, clock))
                    condemned += 1
                continue
            if segment.dead_at_s is None:
                if len(used) < REPACK * len(segment.digests):
                    queue(*segments.condemn(segment, now_s, clock))
                    queue(*segments.owe(Piece(digest, 0) for digest in used))
                    condemned += 1
            elif not all(segments.holds(digest) for digest in used):
                queue(*segments.revive(segment))
        return condemned

    def _agreed(self, now_s: int, others: dict[str, State | None]) -> tuple[list[Segment], tuple[str, ...]]:
        """What may go now, and the writers that hold the rest."""
        removable: list[Segment] = []
        holders: set[str] = set()
        for segment in self._parts.segments.all.values():
            if segment.dead_at_s is None:
                continue
            dead = State(self._parts.volume.state.tree, segment.dead_clock)
            late = {writer for writer, state in others.items() if state is None or not state.includes(dead)}
            holders |= late
            owed = self._parts.segments.owes_to(segment)
            if not late and not owed and segment.dead_at_s + self._retention_s <= now_s:
                removable.append(segment)
        return removable, tuple(sorted(holders))

    async def _drop_commits(self, now_s: int) -> int:
        """Unpin commits that were replaced long ago; slow readers of their nodes are done.

        A later one than the published one is on its way, or its register was posted and the reply lost: it stays.
        """
        publisher = self._parts.publisher
        latest = publisher.published.sequence if publisher.published else 0
        old = [
            commit
            for commit in publisher.commits.values()
            if commit.sequence < latest and commit.replaced_at_s + self._retention_s <= now_s
        ]
        for commit in old:
            await self._opened.cluster.unpin(commit.cid, timeout_s=_CALL_S)
            await self._opened.blocks.unpin(commit.cid, timeout_s=_CALL_S)
            del publisher.commits[commit.cid]
            await self._parts.journal.write(drop_commit(commit.cid))
        return len(old)

    async def retire(self, writer: str) -> None:
        """Wait for a writer no longer: it is gone for good. What it published stays merged."""
        cid = register_block(self._parts.name, writer).cid
        await self._opened.cluster.unpin(cid, timeout_s=_CALL_S)

    async def run(self, every_s: float = EVERY_S) -> None:
        """Collect again and again, until cancelled. A round that fails is made up for by the next one."""
        while True:
            await trio.sleep(every_s)
            try:
                outcome = await self.collect()
            except S3volError as error:
                self._opened.health.count("ipfs.collect_failures")
                self._opened.health.last_error = f"collecting {self._parts.name}: {error}"
            else:
                self._opened.health.count("ipfs.segments_removed", outcome.removed)
                self._opened.health.gauges["ipfs.collect_waits_for"] = len(outcome.waits_for)
