"""The state of a volume, and the merge of two states: a join, so that order and repetition do not matter.

Theory of operation. A state is a tree and a clock: for each writer the number of its latest change that the tree takes
into account. What a state lacks although its clock covers it was removed or replaced there, knowingly; what it lacks
and does not cover it never saw. So for each key the join keeps an entry when both states have it, or when one has it
and the other never saw it. Two edits that did not know of each other both stay (docs/ipfs.md: the greater dot is shown
at the key, the other one beside it), an edit stays beside a removal that did not know of it, and an edit made in
knowledge of others replaces them.

The join is commutative, associative and idempotent: any nodes that have seen the same changes have the same tree, with
the same CID, in whatever order they merged. States are therefore named by content only: no writer, time or history is
in them, and none is needed to merge. Who publishes one is in the commit, which is a node of its own.

Rejected: a three-way merge against the last common ancestor. Criss-cross merges have several, a long partition may
have none left, and both give results that depend on the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cbrrr import CID

from s3vol.errors import Corrupt
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.cid import Cid, known
from s3vol.store.ipfs.entry import NUMBER_MAX, Dot, Entries, Entry, decode, encode
from s3vol.store.ipfs.nodes import Nodes

FORMAT = 1
"""Version of everything that is stored: a program refuses a higher one."""


@dataclass(frozen=True, slots=True)
class State:
    """What a volume holds, as far as somebody has seen it."""

    tree: Cid
    clock: Mapping[str, int]

    def covers(self, dot: Dot) -> bool:
        """True when this state took the change into account."""
        return self.clock.get(dot.writer, 0) >= dot.number

    def includes(self, other: State) -> bool:
        """True when the other state has nothing to tell."""
        return all(self.clock.get(writer, 0) >= number for writer, number in other.clock.items())

    @property
    def latest(self) -> int:
        """The greatest number that was seen."""
        return max(self.clock.values(), default=0)


@dataclass(frozen=True, slots=True)
class Commit:
    """A state, as one writer published it. `sequence` counts the writer's commits and never goes back."""

    volume: str
    writer: str
    sequence: int
    root: Cid


def nothing(nodes: Nodes) -> State:
    """A new volume."""
    return State(nodes.empty, MappingProxyType({}))


def edit(nodes: Nodes, state: State, dot: Dot, edits: Mapping[str, Entries]) -> State:
    """The state after changes under one dot, whose number is greater than `state.latest`."""
    clock = MappingProxyType({**state.clock, dot.writer: dot.number})
    return State(tree.apply(nodes, state.tree, edits), clock)


def join(nodes: Nodes, one: State, two: State) -> State:
    """The state that includes both."""
    if one.includes(two):
        return one
    if two.includes(one):
        return two
    clock = {writer: max(one.clock.get(writer, 0), two.clock.get(writer, 0)) for writer in {*one.clock, *two.clock}}
    edits: dict[str, Entries] = {}
    for key, (ours, theirs) in tree.differing(nodes, one.tree, two.tree).items():
        joined = join_entries(ours, theirs, one, two)
        if joined != ours:
            edits[key] = joined
    return State(tree.apply(nodes, one.tree, edits), MappingProxyType(clock))


def join_entries(ours: Entries, theirs: Entries, one: State, two: State) -> Entries:
    """What is at a key of which two states know different things."""
    their_dots = {entry.dot for entry in theirs}
    our_dots = {entry.dot for entry in ours}
    kept = [entry for entry in ours if entry.dot in their_dots or not two.covers(entry.dot)]
    kept += [entry for entry in theirs if entry.dot not in our_dots and not one.covers(entry.dot)]
    return ordered(kept)


def ordered(entries: Iterable[Entry]) -> Entries:
    """Entries of one key as they are stored: the greatest dot first."""
    return tuple(sorted(entries, key=lambda entry: entry.dot, reverse=True))


def encode_root(volume: str, state: State) -> bytes:
    """The node that names a state. The volume is in it, so that two volumes never share a pin."""
    return encode({"s3vol": FORMAT, "volume": volume, "clock": dict(state.clock), "tree": CID(state.tree)})


def decode_root(body: bytes, volume: str) -> State:
    """The state of a root. Raises Corrupt."""
    plain = _fields(body, "root", volume)
    clock = plain.get("clock")
    if not isinstance(clock, dict) or not all(_is_number(number) for number in clock.values()):
        raise Corrupt(f"volume {volume}: a root without a clock")
    return State(_link(plain.get("tree"), volume), MappingProxyType(dict(clock)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= NUMBER_MAX


def encode_commit(commit: Commit) -> bytes:
    """The node that a writer publishes."""
    return encode(
        {
            "s3vol": FORMAT,
            "volume": commit.volume,
            "writer": commit.writer,
            "sequence": commit.sequence,
            "root": CID(commit.root),
        }
    )


def decode_commit(body: bytes, volume: str) -> Commit:
    """The commit of a block. Raises Corrupt."""
    plain = _fields(body, "commit", volume)
    writer, sequence = plain.get("writer"), plain.get("sequence")
    if not isinstance(writer, str) or not isinstance(sequence, int):
        raise Corrupt(f"volume {volume}: a commit without writer or sequence")
    return Commit(volume, writer, sequence, _link(plain.get("root"), volume))


def _fields(body: bytes, what: str, volume: str) -> dict[str, Any]:
    plain = decode(body)
    if not isinstance(plain, dict) or not isinstance(plain.get("s3vol"), int):
        raise Corrupt(f"volume {volume}: a block of {len(body)} bytes is no {what}")
    if plain["s3vol"] > FORMAT:
        raise Corrupt(f"volume {volume}: was written by a newer s3vol (format {plain['s3vol']}); upgrade this one")
    if plain.get("volume") != volume:
        raise Corrupt(f"volume {volume}: a {what} of volume {plain.get('volume')!r} came in its place")
    return plain


def _link(value: Any, volume: str) -> Cid:
    if not isinstance(value, CID):
        raise Corrupt(f"volume {volume}: a node does not link what it should")
    return known(value.cid_bytes)
