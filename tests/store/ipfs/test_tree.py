"""The tree: a sorted map that has one shape for one content, whatever happened before."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3vol.errors import Corrupt
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.base import BLOCK_MAX_BYTES
from s3vol.store.ipfs.cid import Cid, check, node_cid
from s3vol.store.ipfs.entry import Dot, Entries, Entry, encode
from s3vol.store.ipfs.nodes import NODE_MAX_BYTES, Nodes, ends_row, reach
from tests.store.ipfs.make import entry

KEYS = st.integers(0, 400).map(lambda number: f"d{number % 7}/f{number}")
CHANGES = st.dictionaries(KEYS, st.integers(0, 3), max_size=60)  # 0 removes


def edits_of(changes: Mapping[str, int]) -> dict[str, Entries]:
    return {key: (entry(f"{value}"),) if value else () for key, value in changes.items()}


def contents(nodes: Nodes, root: Cid) -> dict[str, Entries]:
    return dict(tree.scan(nodes, root))


@given(st.lists(CHANGES, max_size=6))
def test_the_tree_is_a_map_and_its_root_tells_nothing_but_its_content(steps: list[dict[str, int]]) -> None:
    nodes = Nodes()
    root, model = nodes.empty, dict[str, Entries]()
    for step in steps:
        edits = edits_of(step)
        root = tree.apply(nodes, root, edits)
        model = {key: entries for key, entries in (model | edits).items() if entries}
    assert contents(nodes, root) == model
    assert list(contents(nodes, root)) == sorted(model)
    assert all(tree.find(nodes, root, key) == model.get(key, ()) for step in steps for key in step)
    assert root == tree.apply(nodes, nodes.empty, model)
    tree.check(nodes, root, fresh=set(reach(nodes, root)))


@given(CHANGES, CHANGES)
def test_differing_is_what_two_maps_differ_in(one: dict[str, int], two: dict[str, int]) -> None:
    nodes = Nodes()
    first = tree.apply(nodes, nodes.empty, edits_of(one))
    second = tree.apply(nodes, first, edits_of(two))
    ours, theirs = contents(nodes, first), contents(nodes, second)
    expected = {
        key: (ours.get(key, ()), theirs.get(key, ()))
        for key in ours | theirs
        if ours.get(key, ()) != theirs.get(key, ())
    }
    assert tree.differing(nodes, first, second) == expected


@given(CHANGES, CHANGES)
def test_what_is_fresh_and_the_old_tree_are_the_new_tree(one: dict[str, int], two: dict[str, int]) -> None:
    nodes = Nodes()
    old = tree.apply(nodes, nodes.empty, edits_of(one))
    new = tree.apply(nodes, old, edits_of(two))
    fresh = set(tree.fresh(nodes, old, new))
    assert set(reach(nodes, new)) == fresh | (set(reach(nodes, old)) & set(reach(nodes, new)))
    assert not fresh & set(reach(nodes, old))


@given(CHANGES, st.integers(0, 400))
def test_a_scan_begins_where_it_is_told(changes: dict[str, int], start: int) -> None:
    nodes = Nodes()
    root = tree.apply(nodes, nodes.empty, edits_of(changes))
    begin = f"d{start % 7}/f{start}"
    assert [key for key, _ in tree.scan(nodes, root, begin)] == [key for key in contents(nodes, root) if key >= begin]


def test_a_large_tree_has_levels_and_a_small_change_makes_few_blocks() -> None:
    nodes = Nodes()
    root = tree.apply(nodes, nodes.empty, {f"f{number:06}": (entry("x"),) for number in range(20_000)})
    assert nodes.get(root).level >= 2
    before = set(reach(nodes, root))
    after = tree.apply(nodes, root, {"f010000": (entry("y"),)})
    assert len(reach(nodes, after, before.__contains__)) == nodes.get(root).level + 1
    assert tree.apply(nodes, after, {"f010000": (entry("x"),)}) == root


def test_no_block_is_larger_than_a_node_may_be_even_where_no_key_ends_a_row() -> None:
    nodes = Nodes()
    names = (f"f{number}" for number in range(10_000))
    keys = [name for name in names if not ends_row(0, name)][:600]
    fat = {key: (entry("x", {"v": "y" * 1900}),) for key in keys}
    root = tree.apply(nodes, nodes.empty, fat)
    assert contents(nodes, root) == fat
    assert max(len(nodes.body(cid)) for cid in reach(nodes, root)) <= NODE_MAX_BYTES + 4096 < BLOCK_MAX_BYTES
    less = tree.apply(nodes, root, {keys[0]: ()})
    del fat[keys[0]]
    assert less == tree.apply(nodes, nodes.empty, fat)


def test_nodes_that_are_not_reached_are_forgotten() -> None:
    nodes = Nodes()
    old = tree.apply(nodes, nodes.empty, {f"f{number}": (entry("x"),) for number in range(500)})
    new = tree.apply(nodes, old, {f"f{number}": () for number in range(400)})
    live = set(reach(nodes, new))
    nodes.drop_all_but(live)
    assert len(contents(nodes, new)) == 100
    assert len(nodes) <= len(live) + 1
    assert old not in nodes


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", encode([]), encode([0, [["k", [[1]]]]]), encode([0, [["k", 5]]]), encode(["x", []]), encode(7)],
)
def test_a_damaged_node_is_corrupt(body: bytes) -> None:
    nodes = Nodes()
    with pytest.raises(Corrupt):
        contents(nodes, nodes.keep(body))


def test_bytes_that_are_not_what_a_cid_names_are_corrupt() -> None:
    body = encode({"a": 1})
    check(node_cid(body), body)
    with pytest.raises(Corrupt):
        check(node_cid(body), body + b"x")


def test_an_entry_is_read_as_it_was_written() -> None:
    nodes = Nodes()
    long = Entry(Dot(7, "w"), 1, "e", -5, "t", {"ä": "ü"}, node_cid(b"row"), listed=True)
    root = tree.apply(nodes, nodes.empty, {"k": (entry("x"), long)})
    fresh = Nodes()
    for cid in reach(nodes, root, lambda cid: cid == long.pieces):
        fresh.keep(nodes.body(cid))
    assert tree.find(fresh, root, "k") == (entry("x"), long)
