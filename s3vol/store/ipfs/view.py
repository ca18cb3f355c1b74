"""What users see of a state: one object a key, and beside it what lost a conflict, under a name that says so.

Theory of operation. The tree may hold several entries at a key, and a file `a` beside `a/b`, since nodes that did not
know of each other made them. The view is a function of the tree alone, so all nodes show the same:

* of several entries at a key the greatest dot is shown; others of other content become
  `NAME.s3vol-conflict-WRITER-NUMBER`;
* a file that has keys below it is shown under such a name, since a path is a file or a directory;
* a directory marker is never in conflict: directories are united.

Whoever changes a contested key, or one of these names, settles the conflict with the same change (`settle`): each entry
becomes an object of its own under the name that it is shown by. Until then merges see the entries as they were made.

The contested keys are kept up with each change of the tree; all else is read from the tree when asked.

Rejected: settling at the merge. Two nodes that merge would both do it, and a third that knows one side only would take
the move for a removal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from s3vol.layout import NAME_MAX_BYTES
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.cid import Cid
from s3vol.store.ipfs.entry import Dot, Entries, Entry
from s3vol.store.ipfs.nodes import Nodes

_MARK = ".s3vol-conflict-"
_SPARE_BYTES = 4  # for a name that is taken


@dataclass(frozen=True, slots=True)
class Alias:
    """An entry that is shown under another name than its key."""

    key: str
    entry: Entry


def parents(key: str) -> Iterator[str]:
    """Every key that would be a file where this key needs a directory."""
    at = key.find("/")
    while at >= 0:
        yield key[:at]
        at = key.find("/", at + 1)


def losers(entries: Entries) -> Entries:
    """Entries whose content is not shown at the key, without repetition."""
    found: list[Entry] = []
    for entry in entries[1:]:
        if not any(entry.same_content(other) for other in (entries[0], *found)):
            found.append(entry)
    return tuple(found)


def conflict_name(key: str, dot: Dot) -> str:
    """The name that an entry is shown by, cut to what a name may have."""
    head, slash, name = key.rpartition("/")
    tail = f"{_MARK}{dot.writer}-{dot.number}"
    stem = name.encode()[: NAME_MAX_BYTES - len(tail.encode()) - _SPARE_BYTES].decode("utf-8", "ignore")
    made = f"{head}{slash}{stem}{tail}"
    return made


class View:
    """The view of one state at a time; `show` moves it to another one."""

    def __init__(self, nodes: Nodes, root: Cid) -> None:
        self._nodes = nodes
        self._root = root
        self._aliases: dict[str, Alias] = {}
        self._names: list[str] = []
        present: set[str] = set()
        self._contested: set[str] = set()
        for key, entries in tree.scan(nodes, root):
            present.add(key)
            if losers(entries):
                self._contested.add(key)
        self._clashing = {above for key in present for above in parents(key) if above in present}
        self._contested |= self._clashing
        self._rename()

    @property
    def root(self) -> Cid:
        """The tree that is shown."""
        return self._root

    @property
    def aliases(self) -> Mapping[str, Alias]:
        """What is shown under another name than its key, by that name."""
        return self._aliases

    def show(self, root: Cid, changed: Iterable[str]) -> None:
        """Move to another tree, which differs from the present one at these keys only."""
        self._root = root
        for key in {*changed, *(above for one in changed for above in parents(one))}:
            entries = tree.find(self._nodes, root, key)
            self._clashing.discard(key)
            self._contested.discard(key)
            if entries and self._has_children(key):
                self._clashing.add(key)
            if key in self._clashing or losers(entries):
                self._contested.add(key)
        self._rename()

    def _has_children(self, key: str) -> bool:
        if key.endswith("/"):
            return False
        below = next(tree.scan(self._nodes, self._root, f"{key}/"), None)
        return below is not None and below[0].startswith(f"{key}/")

    def _rename(self) -> None:
        self._aliases = {}
        for key in sorted(self._contested):
            entries = tree.find(self._nodes, self._root, key)
            hidden = entries if key in self._clashing else losers(entries)
            for entry in hidden:
                name = conflict_name(key, entry.dot)
                while name in self._aliases or tree.find(self._nodes, self._root, name):
                    name += "+"  # somebody made a file of this very name
                self._aliases[name] = Alias(key, entry)
        self._names = sorted(self._aliases)

    def find(self, name: str) -> Entry | None:
        """The entry that is shown by a name."""
        if alias := self._aliases.get(name):
            return alias.entry
        if name in self._clashing:
            return None
        entries = tree.find(self._nodes, self._root, name)
        return entries[0] if entries else None

    def has_below(self, name: str) -> bool:
        """True when anything is shown whose name begins so."""
        return next(self.scan(name), ("",))[0].startswith(name)

    def scan(self, start: str) -> Iterator[tuple[str, Entry]]:
        """Names from `start` on, in order."""
        at = bisect_left(self._names, start)
        for key, entries in tree.scan(self._nodes, self._root, start):
            while at < len(self._names) and self._names[at] < key:
                yield self._names[at], self._aliases[self._names[at]].entry
                at += 1
            if key not in self._clashing:
                yield key, entries[0]
        for name in self._names[at:]:
            yield name, self._aliases[name].entry

    def settle(self, name: str, dot: Dot) -> dict[str, Entries]:
        """Edits that end the conflict in which a name is; none when it is in none. `dot` is the settling change's."""
        key = self._aliases[name].key if name in self._aliases else name
        if key not in self._contested:
            return {}
        entries = tree.find(self._nodes, self._root, key)
        edits: dict[str, Entries] = {key: () if key in self._clashing else (entries[0],)}
        edits.update(
            {shown: (replace(alias.entry, dot=dot),) for shown, alias in self._aliases.items() if alias.key == key}
        )
        return edits

    def edits(self, changes: Mapping[str, Entry | None], dot: Dot) -> dict[str, Entries]:
        """What changes of names (None: removed), all under one dot, do to the tree."""
        edits: dict[str, Entries] = {}
        for name in changes:
            edits.update(self.settle(name, dot))
        edits.update({name: (replace(entry, dot=dot),) if entry else () for name, entry in changes.items()})
        return edits

    def fold(self, prefix: str, *, delimiter: bool, after: str, limit: int) -> list[tuple[str, Entry | None]]:
        """Up to `limit` entries of a listing behind `after`: names, or (None) folded prefixes."""
        found: list[tuple[str, Entry | None]] = []
        start = max(prefix, after)
        while len(found) < limit:
            step = self._next(prefix, start, after, delimiter, found, limit)
            if step is None:
                break
            start = step
        return found

    def _next(
        self,
        prefix: str,
        start: str,
        after: str,
        delimiter: bool,
        found: list[tuple[str, Entry | None]],
        limit: int,
    ) -> str | None:
        """Take names from `start` until a prefix is folded; returns where to go on, None at the end."""
        for name, entry in self.scan(start):
            if not name.startswith(prefix) or len(found) >= limit:
                return None
            slash = name.find("/", len(prefix)) if delimiter else -1
            if slash >= 0:
                folded = name[: slash + 1]
                if folded > after:
                    found.append((folded, None))
                return name[:slash] + "0"  # "0" follows "/": behind everything that is folded
            if name > after:
                found.append((name, entry))
        return None
