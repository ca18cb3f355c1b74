"""rename(2) of a file while other nodes are at its names."""

from __future__ import annotations

import errno

import pytest
import trio

from s3vol import layout
from s3vol.fs.rename import RENAME_NOREPLACE
from tests.fs.rig import Foreign, Node, fails


async def test_a_file_that_another_node_wrote_a_moment_ago_moves_with_what_was_written(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await b.write("f", b"old")
    assert (await a.stat("f")).size == 3
    await fails(errno.ENOENT, a.stat("g"))
    await b.write("f", b"written since")
    await a.rename("f", "g")
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"written since"
    assert await a.read("g") == b"written since"
    assert a.cache.notes("tombstone") == {}


async def test_a_file_that_another_node_removed_a_moment_ago_leaves_nothing_at_the_new_name(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await b.write("f", b"content")
    await a.read("f")
    await fails(errno.ENOENT, a.stat("g"))
    await b.unlink("f")
    await fails(errno.ENOENT, a.rename("f", "g"))
    assert foreign.objects() == []
    assert a.cache.notes("tombstone") == {}


async def test_a_file_that_another_node_removed_a_moment_ago_replaces_nothing(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await b.write("f", b"content")
    await b.write("g", b"to be kept")
    await a.read("f")
    await a.stat("g")
    await b.unlink("f")
    await fails(errno.ENOENT, a.rename("f", "g"))
    assert await foreign.body("g") == b"to be kept"


async def test_noreplace_holds_against_a_file_that_appears_in_between(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"mine")
    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.EEXIST, a.rename("f", "g", RENAME_NOREPLACE))
        await gate.entered.wait()
        await b.write("g", b"theirs")
        gate.open()
    assert await foreign.body("g") == b"theirs"
    assert await foreign.body("f") == b"mine"


async def test_rename_replaces_what_appears_in_between(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"mine")
    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await b.write("g", b"theirs")
        gate.open()
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"mine"


async def test_a_publish_between_copy_and_tombstone_is_carried_along(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"old")
    gate = a.controls.hold_reply("put")  # the copy is there, its reply waits
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await b.write("f", b"published in between")
        gate.open()
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"published in between"
    assert await a.read("g") == b"published in between"


async def test_of_two_nodes_that_rename_one_file_one_wins(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    gate = a.controls.hold_reply("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.ENOENT, a.rename("f", "g"))
        await gate.entered.wait()
        await b.rename("f", "h")
        gate.open()
    assert foreign.objects() == ["h"]


async def _both_know(a: Node, b: Node) -> None:
    """One file, and a name that both nodes have just seen to be free."""
    await b.write("f", b"abc")
    for node in (a, b):
        await node.read("f")
        await fails(errno.ENOENT, node.stat("g"))


async def test_a_copy_that_another_node_has_renamed_the_file_over_is_not_taken_back(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await _both_know(a, b)
    copied = a.controls.hold_reply("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.ENOENT, a.rename("f", "g"))
        await copied.entered.wait()
        await b.rename("f", "g")
        copied.open()
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"abc"


async def test_a_copy_over_that_of_a_node_that_renames_the_same_file_is_not_taken_back(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await _both_know(a, b)
    theirs = b.controls.hold_reply("put")
    a.controls.hold("put").open()  # the first is refused: theirs is there
    ours = a.controls.hold_reply("put")
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as other:
            other.start_soon(b.rename, "f", "g")
            await theirs.entered.wait()
            nursery.start_soon(fails, errno.ENOENT, a.rename("f", "g"))
            await ours.entered.wait()
            theirs.open()
        ours.open()
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"abc"


@pytest.mark.parametrize("_", range(5))
async def test_renames_in_opposite_directions_end(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object, _: int
) -> None:
    await a.write("f", b"one")
    await a.write("g", b"two")
    gate = a.controls.hold_reply("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        nursery.start_soon(b.rename, "g", "f")
        gate.open()
    (left,) = foreign.objects()
    assert await foreign.body(left) in (b"one", b"two")


async def test_nobody_creates_over_the_tombstone_of_a_rename(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await a.write("f", b"abc")
    gate = a.controls.hold("delete")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await fails(errno.ENOENT, b.stat("f"))
        nursery.start_soon(b.write, "f", b"new")
        await trio.sleep(1)
        assert layout.is_tombstone(await foreign.store.head("f"))
        gate.open()
    assert await foreign.body("f") == b"new"
    assert await foreign.body("g") == b"abc"
