"""Merging: whatever is merged with what, in whatever order and how often, ends in one tree, and no edit is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from s3vol.store.ipfs import state as states
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.entry import Dot
from s3vol.store.ipfs.nodes import Nodes
from s3vol.store.ipfs.state import State
from s3vol.store.ipfs.view import View
from tests.store.ipfs.make import entry

WRITERS = 3
NAMES = ["a", "b", "d/", "d/x", "d/y", "e", "e/x"]


@dataclass
class Replica:
    """A node as the merge sees it: a state, and edits made in knowledge of it."""

    nodes: Nodes
    name: str
    state: State
    replaced: set[str] = field(default_factory=set)  # contents that somebody replaced or removed, and knew

    def view(self) -> View:
        return View(self.nodes, self.state.tree)

    def change(self, name: str, content: str | None) -> None:
        """Put or remove what is shown by a name."""
        view = self.view()
        shown = view.find(name)
        if shown is None and content is None:
            return
        if content is not None and (view.has_below(f"{name}/") or any(map(view.find, _above(name)))):
            return  # the store refuses a file where there is a directory, and the reverse
        if shown:
            self.replaced.add(shown.etag)
        made = None if content is None else entry("" if name.endswith("/") else content)
        dot = Dot(self.state.latest + 1, self.name)
        self.state = states.edit(self.nodes, self.state, dot, view.edits({name: made}, dot))

    def merge(self, other: Replica) -> None:
        self.state = states.join(self.nodes, self.state, other.state)
        self.replaced |= other.replaced

    def shown(self) -> dict[str, str]:
        return {name: found.etag for name, found in self.view().scan("")}


def _above(name: str) -> list[str]:
    parts = name.removesuffix("/").split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts) + (name.endswith("/")))]


def replicas() -> list[Replica]:
    nodes = Nodes()
    return [Replica(nodes, f"w{number}", states.nothing(nodes)) for number in range(WRITERS)]


PUT = st.tuples(st.just("put"), st.integers(0, WRITERS - 1), st.sampled_from(NAMES))
REMOVE = st.tuples(st.just("remove"), st.integers(0, WRITERS - 1), st.integers(0, 20))
MERGE = st.tuples(st.just("merge"), st.integers(0, WRITERS - 1), st.integers(0, WRITERS - 1))
OVERWRITE = st.tuples(st.just("overwrite"), st.integers(0, WRITERS - 1), st.integers(0, 20))
HISTORY = st.lists(st.one_of(PUT, PUT, REMOVE, OVERWRITE, MERGE), max_size=30)


def play(history: list[tuple[str, int, object]], nodes: list[Replica]) -> set[str]:
    """Let it happen; returns the contents that were made."""
    made: set[str] = set()
    for number, (what, who, argument) in enumerate(history):
        replica = nodes[who]
        shown = sorted(replica.shown())
        if what == "merge":
            assert isinstance(argument, int)
            replica.merge(nodes[argument])
            continue
        if what == "put":
            name: object = argument
        elif shown:
            assert isinstance(argument, int)
            name = shown[argument % len(shown)]
        else:
            continue
        assert isinstance(name, str)
        replica.change(name, None if what == "remove" else f"content {number}")
        if (found := replica.view().find(name)) and what != "remove":
            made.add(found.etag)
    return made


@given(HISTORY, st.randoms(use_true_random=False))
def test_all_nodes_end_in_one_tree_whatever_merged_first(
    history: list[tuple[str, int, object]], rng: random.Random
) -> None:
    nodes = replicas()
    play(history, nodes)
    ends: set[tuple[bytes, tuple[tuple[str, int], ...]]] = set()
    for _ in range(4):
        order = [replica.state for replica in nodes] * 2
        rng.shuffle(order)
        joined = order[0]
        for other in order[1:]:
            joined = states.join(nodes[0].nodes, joined, other)
        ends.add((joined.tree, tuple(sorted(joined.clock.items()))))
    pair = states.join(nodes[0].nodes, nodes[1].state, nodes[2].state)
    grouped = states.join(nodes[0].nodes, nodes[0].state, pair)
    ends.add((grouped.tree, tuple(sorted(grouped.clock.items()))))
    assert len(ends) == 1


@given(HISTORY)
def test_every_content_is_shown_somewhere_unless_somebody_who_saw_it_replaced_it(
    history: list[tuple[str, int, object]],
) -> None:
    nodes = replicas()
    made = play(history, nodes)
    for replica in nodes[1:]:
        nodes[0].merge(replica)
    shown = set(nodes[0].shown().values())
    assert made - nodes[0].replaced <= shown


@given(HISTORY)
def test_a_view_that_was_moved_shows_what_a_new_one_shows(history: list[tuple[str, int, object]]) -> None:
    nodes = replicas()
    play(history, nodes)
    view = nodes[0].view()
    for replica in nodes[1:]:
        before = nodes[0].state
        nodes[0].merge(replica)
        changed = tree.differing(nodes[0].nodes, before.tree, nodes[0].state.tree)
        view.show(nodes[0].state.tree, changed)
        assert list(view.scan("")) == list(nodes[0].view().scan(""))
        assert all(view.find(name) == found for name, found in view.scan(""))


@given(HISTORY)
def test_no_path_is_shown_as_a_file_and_as_a_directory(history: list[tuple[str, int, object]]) -> None:
    nodes = replicas()
    play(history, nodes)
    for replica in nodes[1:]:
        nodes[0].merge(replica)
    names = set(nodes[0].shown())
    assert not [name for name in names for above in _above(name) if above in names]


def pair() -> tuple[Replica, Replica]:
    one, two, _ = replicas()
    return one, two


def test_of_two_edits_one_is_shown_and_the_other_is_beside_it() -> None:
    one, two = pair()
    one.change("d/f", "of one")
    two.change("d/f", "of two")
    one.merge(two)
    two.merge(one)
    assert one.state == two.state
    assert sorted(one.shown()) == ["d/f", "d/f.s3vol-conflict-w0-1"]
    assert one.shown()["d/f"] == entry("of two").etag


def test_an_edit_beats_a_removal_that_did_not_know_of_it() -> None:
    one, two = pair()
    one.change("f", "first")
    two.merge(one)
    one.change("f", None)
    two.change("f", "second")
    one.merge(two)
    assert one.shown() == {"f": entry("second").etag}


def test_a_removal_that_knew_of_the_edit_beats_it() -> None:
    one, two = pair()
    one.change("f", "first")
    two.merge(one)
    two.change("f", None)
    one.merge(two)
    assert one.shown() == {}


def test_the_same_content_made_twice_is_no_conflict() -> None:
    one, two = pair()
    for replica in (one, two):
        replica.change("f", "same")
        replica.change("d/", "")
    one.merge(two)
    assert sorted(one.shown()) == ["d/", "f"]


def test_a_file_where_another_node_made_a_directory_is_beside_it() -> None:
    one, two = pair()
    one.change("x", "file")
    two.change("x/", "")
    two.change("x/y", "child")
    one.merge(two)
    assert sorted(one.shown()) == ["x.s3vol-conflict-w0-1", "x/", "x/y"]


def test_to_replace_a_contested_file_leaves_the_loser_where_it_was_shown() -> None:
    one, two = pair()
    one.change("f", "of one")
    two.change("f", "of two")
    one.merge(two)
    one.change("f", "agreed")
    loser = "f.s3vol-conflict-w0-1"
    assert one.shown() == {"f": entry("agreed").etag, loser: entry("of one").etag}
    one.change("f", None)
    assert list(one.shown()) == [loser]
    one.change(loser, None)
    two.merge(one)
    assert two.shown() == {}


def test_two_nodes_that_settle_the_same_conflict_agree() -> None:
    one, two = pair()
    one.change("f", "of one")
    two.change("f", "of two")
    one.merge(two)
    two.merge(one)
    one.change("f", "agreed by one")
    two.change("f.s3vol-conflict-w0-1", None)
    one.merge(two)
    two.merge(one)
    assert one.state == two.state
    assert one.shown()["f"] == entry("agreed by one").etag
    assert set(one.shown().values()) <= {entry(text).etag for text in ("agreed by one", "of one", "of two")}


def test_conflict_names_fit_into_a_directory() -> None:
    one, two = pair()
    name = "é" * 127
    one.change(name, "of one")
    two.change(name, "of two")
    one.merge(two)
    assert all(len(shown.encode()) <= 255 for shown in one.shown())
    assert len(one.shown()) == 2
