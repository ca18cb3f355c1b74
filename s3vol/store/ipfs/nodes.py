"""Nodes of the tree: their form in blocks, and the table that holds those of the present state in memory.

Theory of operation. A node is a sorted row of keys with values: entries in a leaf (level 0), children above it. A
child is known by the last key below it. Rows end where a key says so (`ends_row`): its hash, not its neighbours,
decides. So a set of keys has one tree, whatever the order in which it came about, and that is what makes equal states
equal CIDs.

One key in 32 ends a row, so rows are short; but nothing limits how long one may be. A row whose encoding is over
NODE_MAX_BYTES is cut into several blocks below a node that only lists them: one row still, in bounded blocks.

All nodes of a state are in memory, encoded: about 0.3 KiB a file. So deciding is synchronous, and a merge waits
for nothing half-way.

Rejected: a node for each directory (one directory of a million files is then one node, or needs a second structure
inside), and cutting long rows by size alone (one insertion moves all later borders, and the history shows).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from cbrrr import CID

from s3vol.errors import Corrupt
from s3vol.store.ipfs.cid import Cid, known, node_cid
from s3vol.store.ipfs.content import row_links
from s3vol.store.ipfs.entry import Entries, decode, encode, from_plain, to_plain

NODE_MAX_BYTES = 256 * 1024
"""A quarter of what every Kubo takes as one block: a changed file rewrites one leaf, so it should not be large."""

_DECODED = 1024  # rows kept decoded: 32,000 files around what is in use
_ROW_MASK = 31

Value: TypeAlias = Entries | Cid
Item: TypeAlias = tuple[str, Value]


@dataclass(frozen=True, slots=True)
class Node:
    """One row. `values` are Entries at level 0, else CIDs of children."""

    level: int
    keys: Sequence[str]
    values: Sequence[Value]

    def child(self, index: int) -> Cid:
        """The child at a place. Raises Corrupt in a leaf."""
        value = self.values[index]
        if isinstance(value, tuple):
            raise Corrupt("a leaf of the tree is where a node with children should be")
        return value

    def entries(self, index: int) -> Entries:
        """The entries at a place. Raises Corrupt above the leaves."""
        value = self.values[index]
        if not isinstance(value, tuple):
            raise Corrupt("a node with children is where a leaf of the tree should be")
        return value


@lru_cache(maxsize=1 << 16)
def ends_row(level: int, key: str) -> bool:
    """True when a row of this level ends after this key."""
    return not hashlib.sha256(f"{level}:{key}".encode()).digest()[0] & _ROW_MASK


def _plain(item: Item) -> list[Any]:
    key, value = item
    return [key, [to_plain(entry) for entry in value] if isinstance(value, tuple) else CID(value)]


def _cut(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Slices of a row whose encodings stay below the limit, from left to right."""
    begin, total = 0, 0
    end = 0
    for end, size in enumerate(sizes):
        if total and total + size > NODE_MAX_BYTES:
            yield begin, end
            begin, total = end, 0
        total += size
    yield begin, end + 1


class Nodes:
    """Blocks of nodes by CID. Not thread-safe: one event loop."""

    def __init__(self) -> None:
        self._bodies: dict[Cid, bytes] = {}
        self._node = lru_cache(maxsize=_DECODED)(self._read)
        self.empty = self.put(0, [])

    def __len__(self) -> int:
        return len(self._bodies)

    def __contains__(self, cid: Cid) -> bool:
        return cid in self._bodies

    def keep(self, body: bytes) -> Cid:
        """Hold a block; returns its name."""
        cid = node_cid(body)
        self._bodies[cid] = body
        return cid

    def body(self, cid: Cid) -> bytes:
        """The block. Raises KeyError: the caller made sure that it is here."""
        return self._bodies[cid]

    def put(self, level: int, items: Sequence[Item]) -> Cid:
        """Hold a row; returns its name."""
        plain = [_plain(item) for item in items]
        body = encode([level, plain])
        if len(body) <= NODE_MAX_BYTES:
            return self.keep(body)
        slices = _cut(len(encode(one)) for one in plain)
        return self.keep(encode([level, None, [CID(self.keep(encode([level, plain[a:b]]))) for a, b in slices]]))

    def get(self, cid: Cid) -> Node:
        """The row. Raises Corrupt."""
        return self._node(cid)

    def _read(self, cid: Cid) -> Node:
        level, items, blocks = parse(self._bodies[cid])
        for block in blocks:
            items += parse(self._bodies[block])[1]
        return Node(level, [key for key, _ in items], [value for _, value in items])

    def parts(self, cid: Cid) -> list[Cid]:
        """The further blocks of a row that is too long for one."""
        return parse(self._bodies[cid])[2]

    def below(self, cid: Cid) -> list[Cid]:
        """What a block links: the other blocks of its row, children, rows of pieces."""
        return below(self._bodies[cid])

    def drop(self, cids: Iterable[Cid]) -> None:
        """Forget these."""
        for cid in cids:
            self._bodies.pop(cid, None)
        self._node.cache_clear()

    def drop_all_but(self, live: set[Cid]) -> None:
        """Forget the others."""
        self._bodies = {cid: body for cid, body in self._bodies.items() if cid in live or cid == self.empty}
        self._node.cache_clear()


def below(body: bytes) -> list[Cid]:
    """What a block of a tree, or of a row of pieces, links. Raises Corrupt."""
    if isinstance(decode(body), dict):
        return row_links(body)
    _, items, blocks = parse(body)
    return [*blocks, *_links(items)]


def parse(body: bytes) -> tuple[int, list[Item], list[Cid]]:
    """Level, items and further blocks of a row's block. Raises Corrupt."""
    plain = decode(body)
    try:
        level, pairs, *rest = plain
        blocks = [known(link.cid_bytes) for link in rest[0]] if rest else []
        items = [(str(key), _value(value)) for key, value in pairs or ()]
    except (TypeError, ValueError, AttributeError):
        raise Corrupt(f"a block of {len(body)} bytes is no node of a tree") from None
    if not isinstance(level, int):
        raise Corrupt(f"a block of {len(body)} bytes is no node of a tree")
    return level, items, blocks


def _value(value: Any) -> Value:
    if isinstance(value, CID):
        return known(value.cid_bytes)
    if not value:
        raise Corrupt("a key of the tree has nothing at it")
    return tuple(from_plain(plain) for plain in value)


def _links(items: Iterable[Item]) -> Iterator[Cid]:
    for _, value in items:
        if isinstance(value, tuple):
            yield from (Cid(entry.pieces) for entry in value if entry.listed)
        else:
            yield value


def reach(nodes: Nodes, root: Cid, known_blocks: Callable[[Cid], bool] = lambda cid: False) -> list[Cid]:
    """Every node block below `root`, it included, except what is below blocks that are known. Rows of pieces as
    well."""
    found: dict[Cid, None] = {}
    waiting = [root]
    while waiting:
        cid = waiting.pop()
        if cid in found or known_blocks(cid):
            continue
        found[cid] = None
        waiting += nodes.below(cid)
    return list(found)
