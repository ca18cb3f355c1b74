"""The publisher of one writer: from changes that are certain on this node to a head that all nodes see.

Theory of operation. Everybody who waits for a publication shares the next one. Its order is what makes it safe to
crash anywhere: (1) segments into Kubo, pinned; (2) their pins in the cluster; (3) the nodes of the state and the
commit into Kubo, pinned; (4) the commit's pin in the cluster; (5) the intent in the journal; (6) the register; (7) the
journal forgets what is published. A reader that sees the register finds everything that it leads to. Each step may be
repeated. After a failure the next attempt begins anew, under the next sequence number.

The commit's pin names the former commit (`update`), so peers walk what differs and not the whole tree.

`_lock` is held for a whole publication: one at a time. Changes go on meanwhile, and belong to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import trio

from s3vol.errors import Corrupt, NotFound, Unavailable
from s3vol.store.base import Unpublished
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.base import Block, Blocks, Cluster, PinOptions
from s3vol.store.ipfs.cid import Cid, is_node, node_cid
from s3vol.store.ipfs.entry import Entry
from s3vol.store.ipfs.heads import Heads
from s3vol.store.ipfs.journal import (
    Journal,
    Loaded,
    OldCommit,
    Published,
    Statement,
    drop_block,
    drop_changes,
    put_change,
    put_commit,
    put_fact,
    put_merge,
)
from s3vol.store.ipfs.segments import Keeping, Segments
from s3vol.store.ipfs.state import Commit, State, encode_commit, encode_root
from s3vol.store.ipfs.usage import used_digests
from s3vol.store.ipfs.volume import Volume

_POLL_S = 0.2  # between questions how far replicas are


class Publisher:
    """Of one writer. `published` is what the register says."""

    def __init__(
        self,
        blocks: Blocks,
        cluster: Cluster,
        journal: Journal,
        volume: Volume,
        segments: Segments,
        heads: Heads,
        keeping: Keeping,
        loaded: Loaded,
        *,
        replicas: int = 1,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._blocks = blocks
        self._cluster = cluster
        self._journal = journal
        self._volume = volume
        self._segments = segments
        self._heads = heads
        self._keeping = keeping
        self._replicas = replicas
        self._now_s = now_s
        self.published = loaded.published
        self.commits = {commit.cid: commit for commit in loaded.commits}  # every one of ours that may be pinned
        self._uploads = loaded.uploads  # those that are open: the store adds to it
        self.last_change = loaded.base.upto if loaded.base else 0
        known = [one.sequence for one in (loaded.published, loaded.intent) if one]
        self._sequence = max(known, default=0)
        self._changed: dict[str, tuple[int, int]] = {}  # names that are not published: last change, bytes
        self._rows: dict[Cid, int] = {}  # nodes of long rows in the journal, by the change that needs them
        self._lost = loaded.register_lost
        self._known_at_s = 0.0  # from then on all nodes know our register
        self._lock = trio.Lock()
        self.wanted = trio.Event()  # something was changed

    @property
    def behind(self) -> bool:
        """True when this writer has changes that its register does not lead to."""
        return self.last_change > (self.published.upto if self.published else 0)

    @property
    def unpublished(self) -> Unpublished:
        """Names that this writer changed and its register does not lead to."""
        return Unpublished(len(self._changed), sum(size_bytes for _, size_bytes in self._changed.values()))

    @property
    def lags(self) -> bool:
        """True when the register's state is not the present one, be it through changes or through merges."""
        return self.behind or dict(self._volume.state.clock) != dict(self.published.clock if self.published else {})

    def change(self, name: str, entry: Entry | None, statements: Sequence[Statement], rows: Sequence[Cid] = ()) -> int:
        """Change a name; returns the journal's ticket. Synchronous: the condition that was looked at still holds."""
        if entry is None:
            self._volume.remove(name)
        else:
            self._volume.put(name, entry)
        self.last_change += 1
        self._note_change(name, entry)
        self._rows.update(dict.fromkeys(rows, self.last_change))
        self.wanted.set()
        return self._journal.queue(*statements, put_change(self.last_change, name, entry))

    def _note_change(self, name: str, entry: Entry | None) -> None:
        self._changed[name] = (self.last_change, entry.size if entry else 0)

    def note_merge(self, commit: Cid) -> None:
        """Another writer's commit was merged: what is changed from now on is changed in knowledge of it."""
        self.last_change += 1
        self._journal.queue(put_merge(self.last_change, commit))

    async def register(self) -> None:
        """Put a new writer's register down, before there is anything to publish."""
        if self.published is None:
            await self._heads.post(self._keeping.writer, 0, None)
            self._known_at_s = trio.current_time() + self._heads.seen_s

    async def look(self) -> None:
        """Let the next publication post anew what the register does not say any more. Raises Unavailable.

        A post that was given up may be done later, after the next one; and anybody may remove a record.
        """
        async with self._lock:  # else a post may come between the question and what it is compared with
            register = await self._heads.own(self._keeping.writer)
            if self.published and (register is None or register.sequence < self.published.sequence):
                self._lost = True

    async def replay(self, loaded: Loaded, merge: Callable[[Cid], Awaitable[None]]) -> None:
        """Make the changes of the journal again, on top of the base. In between, the merges that were made in between.

        A merge whose commit is no longer to be had, or to be read, is left out: what it told then looks like made by
        somebody who did not know of our changes, which may show as a conflict, and loses nothing.
        """
        for block in loaded.blocks:
            if is_node(block.cid):
                self._volume.nodes.keep(block.body)
                self._rows[block.cid] = max((id for id, _, _ in loaded.changes), default=0)
        for id, name, change in loaded.changes:
            if id <= self.last_change:
                continue
            if isinstance(change, bytes):
                with suppress(Unavailable, Corrupt):
                    await merge(change)
            elif change is None:
                self._volume.remove(name)
            else:
                self._volume.put(name, change)
                self._journal.queue(*self._segments.owe(self._volume.pieces(change)))
            self.last_change = id
            if not isinstance(change, bytes):
                self._note_change(name, change)
            self.wanted.set()
        self._volume.seal()

    async def publish(self) -> None:
        """Return when the register leads to all that was changed before this call. Raises Unavailable."""
        wanted = self.last_change
        async with self._lock:
            current = self.published
            if current and current.upto >= wanted and not (self.lags or self._lost or self._segments.waiting):
                return
            try:
                await self._publish()
            finally:
                self._volume.tidy([self.published.tree] if self.published else [])

    async def _publish(self) -> None:
        await trio.sleep_until(self._known_at_s)
        state, upto = self._seal()
        try:
            await self._segments.gather()
        except Unavailable:
            # A block that nobody has any more must not hold up the rest for ever: once its files are removed, nor is
            # it owed. No await between this and the seal: what is published then does without it.
            if not self._segments.disown(used_digests(self._volume, self._segments, self._uploads.values())):
                raise
            state, upto = self._seal()
            await self._segments.gather()
        await self._segments.pin()
        self._sequence += 1
        intent = await self._commit(state, upto)
        await self._journal.write(
            put_fact("intent", intent), put_fact("number", b"%d" % max(self._volume.number, state.latest))
        )
        await self._heads.post(self._keeping.writer, intent.sequence, intent.commit)
        await self._forget(intent)

    def _seal(self) -> tuple[State, int]:
        """The state to publish, and the last change that is in it; what it adopted from others is owed."""
        state = self._volume.seal()
        adopted, self._volume.adopted = self._volume.adopted, []
        for entry in adopted:
            self._journal.queue(*self._segments.owe(self._volume.pieces(entry)))
        return state, self.last_change

    async def _commit(self, state: State, upto: int) -> Published:
        """Import and pin the state under a commit of its own."""
        keeping, nodes = self._keeping, self._volume.nodes
        root = encode_root(keeping.volume, state)
        commit = encode_commit(Commit(keeping.volume, keeping.writer, self._sequence, node_cid(root)))
        cid = node_cid(commit)
        before = self.published.tree if self.published else None
        if before is None:
            new = list(dict.fromkeys([*tree.fresh(nodes, nodes.empty, state.tree), state.tree]))
        else:
            new = tree.fresh(nodes, before, state.tree)
        bodies = [Block(one, nodes.body(one)) for one in new]
        bodies += [Block(node_cid(root), root), Block(cid, commit)]
        self._note_old(cid, self._sequence)
        former = self.published.commit if self.published else None
        await self._blocks.load(bodies, cid, timeout_s=keeping.timeout_s, update=former)
        options = PinOptions(f"s3vol/{keeping.volume}/commit/{keeping.writer}/{self._sequence}", update=former)
        try:
            await self._cluster.pin(cid, options, timeout_s=keeping.timeout_s)
        except NotFound:  # the former commit's pin was lost or removed: peers walk the whole tree once
            await self._cluster.pin(cid, replace(options, update=None), timeout_s=keeping.timeout_s)
        return Published(self._sequence, cid, state.tree, dict(state.clock), upto)

    async def _forget(self, intent: Published) -> None:
        done = [row for row, change in self._rows.items() if change <= intent.upto]
        if self.published is not None:
            self._note_old(self.published.commit, self.published.sequence)
        self.published = intent
        self._changed = {name: (id, size) for name, (id, size) in self._changed.items() if id > intent.upto}
        self._lost = False
        for row in done:
            del self._rows[row]
        await self._journal.write(
            put_fact("published", intent), drop_changes(intent.upto), *(drop_block(row) for row in done)
        )

    def _note_old(self, cid: Cid, sequence: int) -> None:
        """A commit whose pin is to be removed, unless it is the published one, some time after now."""
        self.commits[cid] = OldCommit(cid, sequence, int(self._now_s()))
        self._journal.queue(put_commit(self.commits[cid]))

    async def sync(self) -> None:
        """Publish, and wait until the replicas that were asked for have it. Raises Unavailable."""
        await self.publish()
        if self._replicas > 1 and self.published is not None:
            recent = self._segments.unproven
            await self._replicated([*recent, self.published.commit])
            self._segments.proven(recent)

    async def _replicated(self, cids: Sequence[Cid]) -> None:
        with trio.move_on_after(self._keeping.timeout_s):
            for cid in cids:
                while await self._copies(cid) < self._replicas:  # noqa: ASYNC110 - only asking tells
                    await trio.sleep(_POLL_S)
            return
        raise Unavailable(
            f"{self._keeping.volume}: published here, but not on {self._replicas} peers within "
            f"{self._keeping.timeout_s:g} s (`s3vol doctor` shows which peers answer)"
        )

    async def _copies(self, cid: Cid) -> int:
        told = await self._cluster.status(cid, timeout_s=self._keeping.timeout_s)
        return sum(peer.status == "pinned" for peer in told)
