"""Taking in what other writers have published.

Theory of operation. A caller of `refresh` gets the heads as of requests that begin after its call. Callers that come
while a round runs share the next one, so a thousand opens cost two rounds. A head whose commit was merged is not
looked at again. Blocks of a new one are all fetched and checked before the merge, which is one synchronous step: a
head that cannot be read changes nothing.

The blocks of a head may be on a node that has just died. The present state is the newest that can be had: it is
consistent, only older, and goes on to be shown. That head is asked for again after LATER_S, and named in `behind` and
`warnings` meanwhile: a mount that has just begun may show nothing of that writer.

A head may also be provably wrong: a block that is not its name, a commit of another volume, a tree out of order. One
bad register must not take the volume from everybody, so that head is quarantined: named in the log and in `warnings`,
once, and asked for again like one that is away, since a bad copy of a block can be replaced. This is safe because a
merge only adds: what the writer's last good head said stays, and its clock too, so nothing that the bad head may
hold passes for removed. What it may need is not collected meanwhile (collect.py takes it for unread).

Rejected: raising (every open on every node then fails, and no program can do anything about it), and taking the writer
for gone (collection would remove what its next good head shows).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import trio

from s3vol.errors import Corrupt, Unavailable
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.cid import Cid, text
from s3vol.store.ipfs.fetch import Fetcher
from s3vol.store.ipfs.heads import Heads
from s3vol.store.ipfs.state import State, decode_commit, decode_root
from s3vol.store.ipfs.volume import Volume

log = logging.getLogger(__name__)

LATER_S = 10.0


class Refresher:
    """Of one volume. `name` is the volume's; `note(commit)` is called in the step that merges it.

    `warnings` gets a line for each writer whose head is away or quarantined, for as long as it is.
    """

    def __init__(
        self,
        name: str,
        volume: Volume,
        heads: Heads,
        fetcher: Fetcher,
        note: Callable[[Cid], None],
        warnings: dict[str, str],
    ) -> None:
        self._name = name
        self._volume = volume
        self._heads = heads
        self._fetcher = fetcher
        self._note = note
        self._merged: dict[str, Cid] = {}
        self._later: dict[str, float] = {}
        self._bad: dict[str, Cid] = {}
        self._warnings = warnings
        self._begun = 0
        self._ended = 0  # the last round that looked at everything: not one that failed or was cancelled
        self._lock = trio.Lock()  # held for a round

    @property
    def behind(self) -> tuple[str, ...]:
        """Writers whose head is known, and cannot be read now."""
        return tuple(self._later)

    @property
    def quarantined(self) -> Collection[str]:
        """Writers whose head is wrong. What they published before is in view."""
        return self._bad.keys()

    async def refresh(self) -> None:
        """Return when all that can be seen elsewhere is merged. Raises Unavailable."""
        seen = self._begun
        async with self._lock:
            if self._ended > seen:  # a round began after this call, and has ended
                return
            self._begun += 1
            this = self._begun
            heads = await self._heads.read(self._volume.writer)
            for gone in self._later.keys() - {head.writer for head in heads}:
                self._release(gone)
            for head in heads:
                if head.commit is not None and self._merged.get(head.writer) != head.commit:
                    await self._try(head.writer, head.commit)
            self._ended = this

    async def _try(self, writer: str, commit: Cid) -> None:
        if self._bad.get(writer, commit) != commit:  # a new head: the old one's trouble is not its own
            self._later.pop(writer, None)
        if trio.current_time() < self._later.get(writer, 0.0):
            return
        try:
            await self.merge(commit)
        except Unavailable:
            self._later[writer] = trio.current_time() + LATER_S
            line = f"what {writer} published last cannot be fetched now (is its machine away?); older files are shown"
            self._warnings.setdefault(_subject(writer), line)
            return
        except Corrupt as error:
            self._later[writer] = trio.current_time() + LATER_S
            self._quarantine(writer, commit, error)
            return
        if writer in self._bad:
            log.info("ipfs://%s: the head of %s can be read again", self._name, writer)
        self._merged[writer] = commit
        self._release(writer)

    def _release(self, writer: str) -> None:
        """There is no trouble with this writer, or no such writer any more."""
        self._later.pop(writer, None)
        self._bad.pop(writer, None)
        self._heads.trust(writer)
        self._warnings.pop(_subject(writer), None)

    def _quarantine(self, writer: str, commit: Cid, error: Corrupt) -> None:
        """Say it once for each head."""
        if self._bad.get(writer) == commit:
            return
        self._bad[writer] = commit
        self._heads.distrust(writer, commit)
        line = (
            f"the head of {writer} (commit {text(commit)}) cannot be read, what it published before is shown: {error}; "
            f"`s3vol fsck ipfs://{self._name}` looks at all of it"
        )
        self._warnings[_subject(writer)] = line
        log.error("ipfs://%s: %s", self._name, line)

    async def state(self, commit: Cid) -> State:
        """The state of a commit, without its tree. Raises Unavailable, Corrupt."""
        root = decode_commit(await self._fetcher.get(commit), self._name).root
        return decode_root(await self._fetcher.get(root), self._name)

    async def merge(self, commit: Cid, *, again: bool = False) -> None:
        """Take a commit in, and note that, unless it was noted before (`again`). Raises Unavailable, Corrupt."""
        state = await self.state(commit)
        if self._volume.seal().includes(state):
            return
        self._volume.adopting += 1
        try:
            nodes = self._volume.nodes
            bodies = await self._fetcher.tree(state.tree, nodes)
            fresh = {cid for cid in bodies if cid not in nodes}  # a change of ours may have made some meanwhile
            for cid in fresh:
                nodes.keep(bodies[cid])
            try:
                tree.check(nodes, state.tree, fresh)
            except Corrupt:
                nodes.drop(fresh)  # what is held was checked: only so the next merge need not look at it again
                raise
            self._volume.merge(state)
            if not again:
                self._note(commit)
        finally:
            self._volume.adopting -= 1


def _subject(writer: str) -> str:
    return f"head of {writer}"
