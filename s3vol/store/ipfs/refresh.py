"""Taking in what other writers have published.

Theory of operation. A caller of `refresh` gets the heads as of requests that begin after its call. Callers that come
while a round runs share the next one, so a thousand opens cost two rounds. A head whose commit was merged is not
looked at again. Blocks of a new one are all fetched and checked before the merge, which is one synchronous step: a
head that cannot be read changes nothing.

The blocks of a head may be on a node that has just died. The present state is the newest that can be had: it is
consistent, only older, and goes on to be shown. That head is asked for again after LATER_S, and counted in `behind`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from s3vol.errors import Unavailable
from s3vol.store.ipfs.cid import Cid
from s3vol.store.ipfs.fetch import Fetcher
from s3vol.store.ipfs.heads import Heads
from s3vol.store.ipfs.state import State, decode_commit, decode_root
from s3vol.store.ipfs.volume import Volume

LATER_S = 10.0


class Refresher:
    """Of one volume. `name` is the volume's; `note(commit)` is called in the step that merges it."""

    def __init__(self, name: str, volume: Volume, heads: Heads, fetcher: Fetcher, note: Callable[[Cid], None]) -> None:
        self._name = name
        self._volume = volume
        self._heads = heads
        self._fetcher = fetcher
        self._note = note
        self._merged: dict[str, Cid] = {}
        self._later: dict[str, float] = {}
        self._begun = 0
        self._lock = trio.Lock()  # held for a round

    @property
    def behind(self) -> tuple[str, ...]:
        """Writers whose head is known, and cannot be read now."""
        return tuple(self._later)

    async def refresh(self) -> None:
        """Return when all that can be seen elsewhere is merged. Raises Unavailable, Corrupt."""
        seen = self._begun
        async with self._lock:
            if self._begun > seen:  # a round began after this call, and has ended
                return
            self._begun += 1
            for head in await self._heads.read(self._volume.writer):
                if head.commit is not None and self._merged.get(head.writer) != head.commit:
                    await self._try(head.writer, head.commit)

    async def _try(self, writer: str, commit: Cid) -> None:
        if trio.current_time() < self._later.get(writer, 0.0):
            return
        try:
            await self.merge(commit)
        except Unavailable:
            self._later[writer] = trio.current_time() + LATER_S
            return
        self._later.pop(writer, None)
        self._merged[writer] = commit

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
            bodies = await self._fetcher.tree(state.tree, self._volume.nodes)
            for body in bodies.values():
                self._volume.nodes.keep(body)
            self._volume.merge(state)
            if not again:
                self._note(commit)
        finally:
            self._volume.adopting -= 1
