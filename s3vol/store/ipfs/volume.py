"""A volume as one node sees it: the merged state of all writers, and this writer's changes on top. Synchronous.

Theory of operation. Changes gather in an overlay over the tree. `seal` puts them into the tree under one dot; this
happens before anything from elsewhere is merged (so that the merge knows what was changed in knowledge of what),
before a listing and before a publication. Every method is synchronous: between looking at an object and changing it no
other change can come, which is what makes conditions exact on this node.

`number` only grows, over restarts too: a dot that may have been seen by others is never used for something else.

Rejected: a dot for each change (the tree is then rewritten for each, and closing a file takes a millisecond).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from s3vol.store.ipfs import state as states
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.cid import Cid
from s3vol.store.ipfs.content import decode_row
from s3vol.store.ipfs.entry import Dot, Entry, Piece, unpack
from s3vol.store.ipfs.nodes import Nodes, reach
from s3vol.store.ipfs.state import State
from s3vol.store.ipfs.view import View

_SEAL_AT = 256
"""The overlay is looked through for children of a name: it stays small enough for that to cost nothing."""

_KEPT_NODES = 1000  # below so many there is nothing worth forgetting


class Volume:
    """The present of a volume. `on_conflicts(names)` is called after a merge that brought some, with their names."""

    def __init__(self, nodes: Nodes, state: State, writer: str, number: int) -> None:
        self.nodes = nodes
        self.state = state
        self.writer = writer
        self.number = number
        self.on_conflicts: Callable[[Sequence[str]], None] = lambda names: None
        self._view = View(nodes, state.tree)
        self._overlay: dict[str, Entry | None] = {}
        self._tidy_at = _KEPT_NODES
        self.adopted: list[Entry] = []  # losers of conflicts that a change of ours settled: ours from now on
        self.adopting = 0  # merges under way that rely on nodes that are here

    @property
    def unsealed(self) -> bool:
        """True when the state does not have all changes."""
        return bool(self._overlay)

    def find(self, name: str) -> Entry | None:
        """What is shown by a name."""
        return self._overlay[name] if name in self._overlay else self._view.find(name)

    def pieces(self, entry: Entry) -> list[Piece]:
        """The row of an entry of the present state, or of one that was put here."""
        if entry.listed:
            return decode_row(Cid(entry.pieces), self.nodes.body)
        return unpack(entry.pieces)

    def put(self, name: str, entry: Entry) -> None:
        """Show this by the name, from now on."""
        self._overlay[name] = entry
        if len(self._overlay) >= _SEAL_AT:
            self.seal()

    def remove(self, name: str) -> None:
        """Show nothing by the name, from now on."""
        self._overlay[name] = None

    def is_directory(self, name: str) -> bool:
        """True when there is anything below `name/`, or its marker."""
        prefix = f"{name}/"
        if any(entry is not None and key.startswith(prefix) for key, entry in self._overlay.items()):
            return True
        removed = {key for key, entry in self._overlay.items() if entry is None}
        for key, _ in self._view.scan(prefix):
            if not key.startswith(prefix):
                return False
            if key not in removed:
                return True
        return False

    def fold(self, prefix: str, *, delimiter: bool, after: str, limit: int) -> list[tuple[str, Entry | None]]:
        """See View.fold."""
        self.seal()
        return self._view.fold(prefix, delimiter=delimiter, after=after, limit=limit)

    def conflicts(self) -> list[str]:
        """Names by which losers of conflicts are shown."""
        self.seal()
        return sorted(self._view.aliases)

    def seal(self) -> State:
        """The state with all changes in it."""
        if self._overlay:
            self.number = max(self.number, self.state.latest) + 1
            dot = Dot(self.number, self.writer)
            edits = self._view.edits(self._overlay, dot)
            self.adopted += [new for name, news in edits.items() for new in news if self._is_adopted(name, new, dot)]
            self.state = states.edit(self.nodes, self.state, dot, edits)
            self._view.show(self.state.tree, edits)
            self._overlay = {}
        return self.state

    def _is_adopted(self, name: str, entry: Entry, dot: Dot) -> bool:
        return entry.dot == dot and name not in self._overlay

    def merge(self, other: State) -> bool:
        """Take another state in, whose nodes are all here. True when it told something. Corrupt: nothing was taken."""
        before = self.seal()
        known = set(self._view.aliases)
        joined = states.join(self.nodes, before, other)
        changed = tree.differing(self.nodes, before.tree, joined.tree)
        self.state = joined
        self._view.show(joined.tree, changed)
        if conflicts := sorted(self._view.aliases.keys() - known):
            self.on_conflicts(conflicts)
        return self.state is not before

    def tidy(self, keep: Iterable[Cid]) -> None:
        """Forget nodes that neither the present state nor one of `keep` needs, once they have become many."""
        if self.adopting or len(self.nodes) < self._tidy_at:
            return
        roots = [self.state.tree, *keep]
        roots += [Cid(entry.pieces) for entry in self._overlay.values() if entry is not None and entry.listed]
        live: set[Cid] = set()
        for root in roots:
            live.update(reach(self.nodes, root, live.__contains__))
        self.nodes.drop_all_but(live)
        self._tidy_at = max(_KEPT_NODES, 2 * len(self.nodes))
