"""The tree of a volume: keys to entries, in an order, with one shape for one set of keys. Pure functions over `Nodes`.

Theory of operation. `apply` rewrites level by level. A level is a map from keys to values that is cut into rows; edits
of it become edits of the level above, which maps the last key of each row to the row. Only rows that an edit
touches are read, and the next one where an edit took away the key that ended the row. The top is the lowest level
that has one row.

`differing` goes down two trees at a time and leaves out what both have: equal rows have equal names. Its cost is that
of the difference.

Rejected: a hash map over the keys, which is simpler (a listing needs order).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from s3vol.errors import Corrupt
from s3vol.store.ipfs.cid import Cid
from s3vol.store.ipfs.content import packed_lists
from s3vol.store.ipfs.entry import Entries
from s3vol.store.ipfs.nodes import Item, Node, Nodes, Value, ends_row, reach

_LEVELS_MAX = 64  # 32 ** 64 keys: only a damaged tree is higher


@dataclass(frozen=True, slots=True)
class _Row:
    last: str
    cid: Cid


def find(nodes: Nodes, root: Cid, key: str) -> Entries:
    """What is at a key; () for nothing."""
    node = nodes.get(root)
    while True:
        at = bisect_left(node.keys, key)
        if at == len(node.keys):
            return ()
        if node.level == 0:
            return node.entries(at) if node.keys[at] == key else ()
        node = _below(nodes, node, at)


def scan(nodes: Nodes, root: Cid, start: str = "") -> Iterator[tuple[str, Entries]]:
    """Keys from `start` on, in order."""
    node = nodes.get(root)
    at = bisect_left(node.keys, start)
    for index in range(at, len(node.keys)):
        if node.level == 0:
            yield node.keys[index], node.entries(index)
        else:
            yield from scan(nodes, node.child(index), start if index == at else "")


def apply(nodes: Nodes, root: Cid, edits: Mapping[str, Entries]) -> Cid:
    """The tree after `edits`; () removes a key."""
    top = nodes.get(root)
    changes: dict[str, Value | None] = {key: entries or None for key, entries in edits.items()}
    for level in range(top.level + 1):
        changes = _rewrite(nodes, root, level, changes)
        if not changes:
            return root
    rows: dict[str, Value | None] = {top.keys[-1]: root} if top.keys else {}
    rows.update(changes)
    return _crown(nodes, top.level, _sorted(rows))


def _rewrite(nodes: Nodes, root: Cid, level: int, changes: Mapping[str, Value | None]) -> dict[str, Value | None]:
    """Change one level; returns the changes of the one above."""
    before: dict[str, Value | None] = {}
    after: dict[str, Value | None] = {}
    waiting = sorted(changes, reverse=True)
    while waiting:
        row = _row_of(nodes, root, level, waiting[-1])
        items: list[Item] = []
        while True:
            following = _row_after(nodes, root, level, row.last) if row else None
            mine: dict[str, Value | None] = {}
            if row:
                before[row.last] = row.cid
                node = nodes.get(row.cid)
                mine.update(zip(node.keys, node.values, strict=True))
            while waiting and (row is None or following is None or waiting[-1] <= row.last):
                key = waiting.pop()
                mine[key] = changes[key]
            items += _sorted(mine)
            if following is None or not items or ends_row(level, items[-1][0]):
                break
            row = following
        after.update(_rows(nodes, level, items))
    gone: dict[str, Value | None] = {last: None for last in before if last not in after}
    return gone | {last: cid for last, cid in after.items() if before.get(last) != cid}


def _sorted(items: Mapping[str, Value | None]) -> list[Item]:
    return [(key, value) for key, value in sorted(items.items()) if value is not None]


def _rows(nodes: Nodes, level: int, items: Sequence[Item]) -> Iterator[tuple[str, Cid]]:
    """Cut items into rows, and hold them."""
    row: list[Item] = []
    for item in items:
        row.append(item)
        if ends_row(level, item[0]):
            yield item[0], nodes.put(level, row)
            row = []
    if row:
        yield row[-1][0], nodes.put(level, row)


def _crown(nodes: Nodes, level: int, rows: Sequence[Item]) -> Cid:
    """The root over rows of `level`: the lowest level that has one row."""
    while len(rows) > 1:
        level += 1
        rows = list(_rows(nodes, level, rows))
    if not rows:
        return nodes.empty
    root = rows[0][1]
    while True:
        assert not isinstance(root, tuple)  # rows map to rows
        node = nodes.get(root)
        if node.level == 0 or len(node.keys) > 1:
            return root
        root = node.child(0)


def _below(nodes: Nodes, node: Node, at: int) -> Node:
    child = nodes.get(node.child(at))
    if child.level != node.level - 1 or not child.keys:
        raise Corrupt(f"the tree is damaged: a row of level {child.level} is below one of level {node.level}")
    return child


def _row_of(nodes: Nodes, root: Cid, level: int, key: str) -> _Row | None:
    """The row that has the key, or would: the first one that ends at or behind it, else the last one."""
    cid, node = root, nodes.get(root)
    while node.level > level:
        at = min(bisect_left(node.keys, key), len(node.keys) - 1)
        cid, node = node.child(at), _below(nodes, node, at)
    return _Row(node.keys[-1], cid) if node.keys else None


def _row_after(nodes: Nodes, root: Cid, level: int, last: str) -> _Row | None:
    cid, node = root, nodes.get(root)
    while node.level > level:
        at = bisect_right(node.keys, last)
        if at == len(node.keys):
            return None
        cid, node = node.child(at), _below(nodes, node, at)
    return _Row(node.keys[-1], cid) if node.keys[-1] > last else None


def differing(nodes: Nodes, one: Cid, two: Cid) -> dict[str, tuple[Entries, Entries]]:
    """The keys that are not the same in both trees, with what each has there."""
    left, right = {one}, {two}
    for level in range(_levels(nodes, one, two), -1, -1):
        left, right = left - right, right - left
        if level:
            left, right = _children(nodes, left, level), _children(nodes, right, level)
    found: dict[str, tuple[Entries, Entries]] = {}
    theirs = _entries(nodes, right)
    for key, entries in _entries(nodes, left).items():
        others = theirs.pop(key, ())
        if entries != others:
            found[key] = (entries, others)
    return found | {key: ((), entries) for key, entries in theirs.items()}


def fresh(nodes: Nodes, old: Cid, new: Cid) -> list[Cid]:
    """The blocks that the new tree has and the old one has not, rows of pieces included."""
    found: list[Cid] = []
    left, right = {new}, {old}
    for level in range(_levels(nodes, old, new), -1, -1):
        left, right = left - right, right - left
        found += (cid for cid in left if nodes.get(cid).level == level)
        if level:
            left, right = _children(nodes, left, level), _children(nodes, right, level)
    rows = _long_rows(nodes, left) - _long_rows(nodes, right)
    parts = (part for cid in found for part in nodes.parts(cid))
    return list(dict.fromkeys([*found, *parts, *(cid for row in rows for cid in reach(nodes, row))]))


def _long_rows(nodes: Nodes, leaves: set[Cid]) -> set[Cid]:
    return {Cid(entry.pieces) for entries in _entries(nodes, leaves).values() for entry in entries if entry.listed}


def _levels(nodes: Nodes, one: Cid, two: Cid) -> int:
    level = max(nodes.get(one).level, nodes.get(two).level)
    if level > _LEVELS_MAX:
        raise Corrupt(f"the tree is damaged: it has {level} levels")
    return level


def _children(nodes: Nodes, rows: set[Cid], level: int) -> set[Cid]:
    """One level down; a row that is lower already stays."""
    found: set[Cid] = set()
    for cid in rows:
        node = nodes.get(cid)
        found.update((node.child(at) for at in range(len(node.keys))) if node.level == level else (cid,))
    return found


def _entries(nodes: Nodes, leaves: set[Cid]) -> dict[str, Entries]:
    found: dict[str, Entries] = {}
    for cid in leaves:
        node = nodes.get(cid)
        found.update((key, node.entries(at)) for at, key in enumerate(node.keys))
    return found


def check(nodes: Nodes, root: Cid, fresh: Container[Cid]) -> None:
    """Raise Corrupt unless a tree that came from elsewhere has the form of one; `fresh` has the blocks that came.

    Of what was here already, and is in order, only the edge is looked at that adjoins a fresh row: so the cost is that
    of the difference.
    """
    waiting: list[tuple[Cid, int, str | None, str | None]] = [(root, _levels(nodes, root, root), None, None)]
    while waiting:
        cid, level, after, last = waiting.pop()
        node = nodes.get(cid)
        if node.level != level or (not node.keys and (level or last is not None)):
            raise Corrupt(f"the tree is damaged: a row of level {node.level} is where one of level {level} should be")
        if last is not None and node.keys[-1] != last:
            raise Corrupt("the tree is damaged: a row ends at another key than the row above says")
        if any(a >= b for a, b in pairwise(node.keys)) or (after is not None and node.keys and node.keys[0] <= after):
            raise Corrupt("the tree is damaged: its keys are not in order")
        looked_at = len(node.keys) if cid in fresh else min(len(node.keys), 1)
        for at in range(looked_at):
            if level:
                waiting.append((node.child(at), level - 1, node.keys[at - 1] if at else after, node.keys[at]))
            elif cid in fresh:
                for entry in node.entries(at):
                    if entry.listed:
                        packed_lists(Cid(entry.pieces), nodes.body)
