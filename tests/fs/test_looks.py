"""Names removed one after the other: what is looked at before each DELETE, and at what price."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from s3vol import layout
from s3vol.errors import PosixError
from s3vol.fs.looks import PATIENCE, ROWS, SINGLES, WORTH, Run
from s3vol.store.base import ANY, FILE_TYPE
from s3vol.store.memory import MemoryBucket
from tests.fs.conftest import Nodes
from tests.fs.rig import Foreign, Node

NAMES = [f"n{number:04}" for number in range(400)]


async def _listed(node: Node, bucket: MemoryBucket) -> None:
    """A directory that the node has listed a moment ago, but too long for a DELETE."""
    await node.mkdir("d")
    for name in NAMES:
        bucket.commit(f"d/{name}", b"x", "etag", {}, FILE_TYPE, ANY)
    await node.names("d")
    await trio.sleep(0.5)


async def test_looks_cost_little_when_a_directory_is_emptied_in_its_order(
    a: Node, bucket: MemoryBucket, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _listed(a, bucket)
    parent = (await a.stat("d")).ino
    before = a.controls.calls.copy()
    for name in NAMES:
        await a.fs.unlink(parent, name.encode())
        await trio.sleep(0.001)
    asked = a.controls.calls - before
    assert asked.pop("delete") == len(NAMES)
    assert asked.total() < len(NAMES) / 8
    assert foreign.objects() == ["d/"]


async def test_names_that_go_in_no_order_are_not_listed_again_and_again(
    nodes: Nodes, bucket: MemoryBucket, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    a: Node = await nodes("a", attr_ttl_s=60.0)
    await _listed(a, bucket)
    parent = (await a.stat("d")).ino
    before = a.controls.calls.copy()
    for name in random.Random(3).sample(NAMES, len(NAMES)):
        await a.fs.unlink(parent, name.encode())
        await trio.sleep(0.02)
    asked = a.controls.calls - before
    assert asked["list"] <= 2 * len(NAMES) / PATIENCE
    assert foreign.objects() == ["d/"]


async def test_what_others_did_while_a_directory_is_emptied_is_neither_missed_nor_undone(
    a: Node, b: Node, bucket: MemoryBucket, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _listed(a, bucket)
    parent = (await a.stat("d")).ino
    for at, name in enumerate(NAMES[:200]):
        if at == 50:
            await foreign.store.delete(f"d/{NAMES[150]}")
            await foreign.put(f"d/{NAMES[160]}", b"renamed away", **{layout.TOMBSTONE: "1"})
            await b.rename(f"d/{NAMES[170]}", "kept")
        before = a.controls.calls["delete"]
        try:
            await a.fs.unlink(parent, name.encode())
        except PosixError:
            assert at in (150, 160, 170)
        if at in (150, 160, 170):
            assert a.controls.calls["delete"] == before
        await trio.sleep(0.001)
    assert f"d/{NAMES[160]}" in foreign.objects()
    assert await foreign.body("kept") == b"x"


async def test_a_name_that_was_just_looked_up_is_removed_by_one_request(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"x")
    parent, name = await a.parent("f")
    await a.fs.lookup(parent, name)
    before = a.controls.calls.copy()
    await a.fs.unlink(parent, name)
    assert a.controls.calls - before == {"delete": 1}
    assert foreign.objects() == []


@pytest.mark.parametrize("used", [WORTH, ROWS])
def test_pieces_go_on_as_long_as_they_are_used(used: int) -> None:
    run = Run()
    assert [run.asks_for_piece() for _ in range(SINGLES + 1)] == [False] * SINGLES + [True]
    for _ in range(3):
        assert not any(run.asks_for_piece() for _ in range(8))  # by other threads, while it is on its way
        run.asking = False
        for _ in range(used):
            run.answered()
        assert run.asks_for_piece()


def test_a_piece_that_was_not_used_is_followed_by_single_questions_and_then_by_another_try() -> None:
    run = Run()
    while not run.asks_for_piece():
        pass
    run.asking = False
    run.answered()
    asked = [run.asks_for_piece() for _ in range(PATIENCE + 2)]
    assert asked.count(True) == 1
    assert asked[-1]
