"""Stale answers, writers that are two, trees and registers that nobody made, and what was removed meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cbrrr import CID

from s3vol.errors import Unavailable
from s3vol.layout import LINK
from s3vol.store.ipfs import state as states
from s3vol.store.ipfs.base import Block, PinOptions
from s3vol.store.ipfs.cid import Cid, node_cid, raw_cid
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.entry import Dot, encode, to_plain
from s3vol.store.ipfs.export import read_volume
from s3vol.store.ipfs.heads import Head, register_block
from s3vol.store.ipfs.journal import Journal
from s3vol.store.ipfs.opening import OpenVolume
from s3vol.store.ipfs.pinset import PinsetStore, object_block
from s3vol.store.ipfs.state import Commit, encode_commit
from tests.store.ipfs.make import entry
from tests.store.ipfs.rig import NAME, Swarm, crash, everything, text_of, write
from tests.store.ipfs.test_clients import ROW, WAIT_S, Canned, canned, chunked
from tests.store.ipfs.test_collect import RETENTION_S, Clock, collect
from tests.store.ipfs.test_merge import pair
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network

__all__ = ["canned"]  # a fixture


@pytest.fixture
def swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_round_that_failed_is_not_taken_for_one_that_looked(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.opened() as (one, two):
        read = two.heads.read
        rounds = 0
        go_on = trio.Event()

        async def read_slowly(without: str) -> list[Head]:
            nonlocal rounds
            rounds += 1
            if rounds == 2:
                raise Unavailable("the peer is restarted")
            heads = await read(without)
            await go_on.wait()
            return heads

        monkeypatch.setattr(two.heads, "read", read_slowly)

        async def fail() -> None:
            with suppress(Unavailable):
                await two.parts.refresher.refresh()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.parts.refresher.refresh)
            await trio.testing.wait_all_tasks_blocked()
            await write(one.view(), "f", "new")
            await one.view().sync()
            nursery.start_soon(fail)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(two.parts.refresher.refresh)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert two.parts.volume.find("f") is not None


def test_a_journal_that_was_cut_off_while_it_was_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(sqlite3.Connection):
        def executemany(self, sql: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
            self.execute(sql, next(iter(rows)))
            raise sqlite3.OperationalError("the machine crashed")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **more, factory=Dying))
    path = tmp_path / "journal"
    with pytest.raises(Exception, match="the machine crashed"):
        Journal.open(path, NAME, "node")
    monkeypatch.undo()
    _, loaded = Journal.open(path, NAME, "node")
    assert loaded.writer.startswith("node-")


def _copy(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.iterdir()}


def _restore(directory: Path, saved: dict[Path, bytes]) -> None:
    for path in directory.iterdir():
        path.unlink()
    for path, body in saved.items():
        path.write_bytes(body)


async def test_a_journal_is_opened_that_is_older_than_what_collection_has_left(
    swarm: Swarm, clock: Clock, tmp_path: Path
) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "first")
    await one.view().sync()
    await write(one.view(), "g", "unpublished")
    await crash(one)
    saved = _copy(tmp_path / "n0")
    one = await swarm.open(0)
    for text in ("second", "third"):
        await write(one.view(), "f", text)
        await one.view().sync()
    clock.now_s = 10**10
    assert (await collect(one, clock)).commits
    for node in swarm.network.nodes:
        swarm.network.collect(node)
    await one.aclose()
    _restore(tmp_path / "n0", saved)
    async with swarm.opened(0) as (again,):
        seen = await everything(again.view())
        assert seen["f"] == "third"
        assert "unpublished" in seen.values()


async def test_a_clone_that_was_about_to_publish_does_not_take_the_others_commit_for_its_own(
    swarm: Swarm, tmp_path: Path
) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "first")
    await one.view().sync()
    await crash(one)
    (tmp_path / "n1").mkdir()
    for path in (tmp_path / "n0").iterdir():
        (tmp_path / "n1" / path.name).write_bytes(path.read_bytes())
    swarm.network.nodes[1].side = 1
    one, clone = await swarm.open(0), await swarm.open(1)
    assert one.parts.volume.writer == clone.parts.volume.writer
    await write(one.view(), "g", "of the machine")
    await one.view().sync()
    await write(clone.view(), "h", "of the clone")
    swarm.breaking[1].left = 4  # both pins are there, and the intent; the register is not
    with pytest.raises(Unavailable):
        await clone.view().sync()
    swarm.breaking[1].left = None
    await crash(clone)
    swarm.network.nodes[1].side = 0
    swarm.network.settle()
    again = await swarm.open(1)
    await again.view().sync()
    expected = {"f": "first", "g": "of the machine", "h": "of the clone"}
    assert await everything(again.view()) == expected
    assert await everything(one.view()) == expected
    await again.aclose()
    await one.aclose()


async def test_a_register_that_went_back_is_posted_again_by_a_mount_that_changes_nothing(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that timed out at the client was done later, after the next one."""
    one = await swarm.open(0)
    await write(one.view(), "f", "first")
    await one.view().sync()
    pin = one.cluster.pin
    late: list[tuple[Cid, PinOptions]] = []

    async def lose_a_post(cid: Cid, options: PinOptions, *, timeout_s: float) -> None:
        if "/head/" in options.name and not late:
            late.append((cid, options))
            raise Unavailable("no answer")
        await pin(cid, options, timeout_s=timeout_s)

    monkeypatch.setattr(one.cluster, "pin", lose_a_post)
    await write(one.view(), "f", "second")
    with pytest.raises(Unavailable):
        await one.view().sync()
    await write(one.view(), "f", "third")
    await one.view().sync()
    await pin(*late[0], timeout_s=1)
    monkeypatch.setattr("s3vol.store.ipfs.opening._QUIET_S", 0.01)
    async with swarm.opened(1) as (two,):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            with trio.move_on_after(5):
                while await text_of(two.view(), "f") != "third":  # noqa: ASYNC110 - what another shows must be asked
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await text_of(two.view(), "f") == "third"
    await one.aclose()


async def test_replicas_of_what_was_imported_before_a_crash_are_waited_for(swarm: Swarm) -> None:
    one = await swarm.open(0, replicas=2, timeout_s=2)
    await write(one.view(), "f", "content")
    swarm.breaking[0].left = 2  # the segment is imported and pinned
    with pytest.raises(Unavailable):
        await one.view().sync()
    swarm.breaking[0].left = None
    await crash(one)
    (segment,) = one.parts.segments.all
    again = await swarm.open(0, replicas=2, timeout_s=2)
    other = swarm.network.nodes[1]
    other.pins.discard(segment)  # it is still copying
    fetch = swarm.network.fetch
    swarm.network.fetch = lambda node, root: (node is not other or root != segment) and fetch(node, root)  # type: ignore[method-assign] # the test's own network
    with pytest.raises(Unavailable, match="2 peers"):
        await again.view().sync()
    await again.aclose()


def test_names_of_different_hard_links_are_different_contents() -> None:
    """A name of a hard link is an empty object, and its content is elsewhere."""
    one, two = pair()
    for replica, link in ((one, "1" * 16), (two, "2" * 16)):
        dot = Dot(replica.state.latest + 1, replica.name)
        made = entry("", {LINK: link})
        edits = replica.view().edits({"f": made}, dot)
        replica.state = states.edit(replica.nodes, replica.state, dot, edits)
    one.merge(two)
    links = {found.metadata[LINK] for _, found in one.view().scan("")}
    assert links == {"1" * 16, "2" * 16}


def _node(value: object) -> Block:
    body = encode(value)
    return Block(node_cid(body), body)


def _raw(value: object) -> Block:
    body = encode(value)
    return Block(raw_cid(body), body)


def _item(key: str) -> list[object]:
    return [key, [to_plain(entry(key, dot=Dot(1, "w")))]]


def _head(tree: Block, *others: Block, clock: dict[str, int]) -> list[Block]:
    root = _node({"s3vol": 1, "volume": NAME, "clock": clock, "tree": CID(tree.cid)})
    return [*others, tree, root, _node_of(Commit(NAME, "w", 1, root.cid))]


def _node_of(commit: Commit) -> Block:
    body = encode_commit(commit)
    return Block(node_cid(body), body)


LEAF = _node([0, [_item("a")]])
DEEP = [_node([0, [_item("a")]])]
for _ in range(1500):
    DEEP.append(_node([1, [["a", CID(DEEP[-1].cid)]]]))
LISTS = [_node({"pieces": b""})]
for _ in range(1500):
    LISTS.append(_node({"lists": [CID(LISTS[-1].cid)]}))
LONG = to_plain(entry("a", dot=Dot(1, "w")))[:-1]

STRANGE: dict[str, tuple[Block, ...]] = {
    "a tree under the name of raw bytes": (_raw([0, [_item("a")]]),),
    "a row under the name of raw bytes": (
        _raw([0, [_item("a")]]),
        _node([1, [["a", CID(_raw([0, [_item("a")]]).cid)]]]),
    ),
    "a name with nothing at it": (_node([0, [["a", []]]]),),
    "a level left out": (LEAF, _node([2, [["a", CID(LEAF.cid)]]])),
    "a row under the name of another key": (LEAF, _node([1, [["b", CID(LEAF.cid)]]])),
    "a row with keys of the row before": (
        _node([0, [_item("c")]]),
        _node([0, [_item("b"), _item("d")]]),
        _node([1, [["c", CID(_node([0, [_item("c")]]).cid)], ["d", CID(_node([0, [_item("b"), _item("d")]]).cid)]]]),
    ),
    "rows without end": tuple(DEEP),
    "pieces that are none": (_node([0, [["a", [[*LONG, b"x" * 35]]]]]),),
    "lists without end": (*LISTS, _node([0, [["a", [[*LONG, CID(LISTS[-1].cid)]]]]])),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("knows_all", [False, True])
async def test_a_tree_that_nobody_makes_is_a_wrong_head(swarm: Swarm, kind: str, knows_all: bool) -> None:
    async with swarm.opened() as (one, two):
        await write(two.view(), "f", "good")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "good"
        clock = {"w": 10, **(one.parts.volume.seal().clock if knows_all else {})}
        *others, tree = STRANGE[kind]
        await _post(swarm, two, _head(tree, *others, clock=clock))
        assert await everything(one.view()) == {"f": "good"}
        await write(one.view(), "g", "x")
        await one.view().sync()
        assert await everything(one.view()) == {"f": "good", "g": "x"}
        assert set(one.parts.refresher.quarantined) == {two.parts.volume.writer}


@pytest.mark.parametrize("number", [2**64 - 1, -1])
async def test_a_clock_that_nobody_can_count_to_is_a_wrong_head(swarm: Swarm, number: int) -> None:
    async with swarm.opened() as (one, two):
        await write(two.view(), "f", "good")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "good"
        await _post(swarm, two, _head(LEAF, clock={"w": number}))
        await write(one.view(), "g", "x")
        await one.view().sync()
        assert await everything(one.view()) == {"f": "good", "g": "x"}
        assert set(one.parts.refresher.quarantined) == {two.parts.volume.writer}


async def _post(swarm: Swarm, volume: OpenVolume, blocks: list[Block]) -> None:
    """Make the last block the head of this writer; all nodes have them."""
    published = volume.parts.publisher.published
    assert published is not None
    for node in swarm.network.nodes:
        node.blocks |= {one.cid: one.body for one in blocks}
    await volume.heads.post(volume.parts.volume.writer, published.sequence + 1, blocks[-1].cid)


async def test_replicas_of_a_segment_that_was_collected_are_not_waited_for(swarm: Swarm, clock: Clock) -> None:
    async with swarm.opened(replicas=2, timeout_s=2) as (one, two):
        await write(one.view(), "f", "content")
        await one.parts.publisher.publish()
        await one.view().delete("f")
        await collect(one, clock)
        for volume in (two, one):
            await volume.parts.refresher.refresh()
            await volume.parts.publisher.publish()
        clock.now_s += RETENTION_S + 1
        assert (await collect(one, clock)).removed
        await write(one.view(), "g", "more")
        await one.view().sync()


async def test_a_strangers_pin_under_a_name_of_ours_does_not_end_a_listing(canned: Canned) -> None:
    foreign = ROW.replace(
        b"bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe",
        b"QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn",
    )
    peer = ClusterPeer(canned(chunked(ROW + foreign)))
    assert len(await peer.records("n", timeout_s=WAIT_S)) == 1
    await peer.aclose()


async def test_an_object_that_another_node_removed_meanwhile_is_pinned_when_it_is_written_again() -> None:
    network = Network(2)
    one, two = (
        PinsetStore("volumes", MemoryBlocks(network, node), MemoryCluster(network, node), timeout_s=1.0, spread_s=0.0)
        for node in network.nodes
    )
    await one.put("k", b"first", metadata={})
    await two.delete("k")
    for node in network.nodes:
        network.collect(node)
    await one.put("k", b"second", metadata={})
    assert object_block("volumes", "k").cid in network.nodes[0].pins


async def test_an_export_says_whose_files_may_be_missing(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        for volume, key in ((one, "f"), (two, "g")):
            await write(volume.view(), key, "x")
            await volume.view().sync()
        published = two.parts.publisher.published
        assert published is not None
        for node in swarm.network.nodes:
            del node.blocks[published.commit]
        found = await read_volume(one.blocks, one.cluster, NAME, connect=None, timeout_s=1)
        assert [two.parts.volume.writer in line for line in found.warnings] == [True]


async def test_an_export_leaves_out_what_is_no_path_and_times_that_are_none(swarm: Swarm) -> None:
    async with swarm.opened(0) as (one,):
        await write(one.view(), "f", "x")
        await one.view().sync()
        found = await read_volume(one.blocks, one.cluster, NAME, connect=None, timeout_s=1)
        plain = await found.export("")
        for key in ("a//b", "../x", "./y"):
            found.volume.put(key, entry("x"))
        assert await found.export("") == plain
        for mtime in ("1.x", "\N{SUPERSCRIPT TWO}", "5.\N{SUPERSCRIPT TWO}"):
            found.volume.put("t", entry("x", {"mode": "33188", "mtime": mtime}))
            assert await found.export("t")


async def test_a_register_that_was_removed_is_pinned_when_it_is_posted_again(swarm: Swarm) -> None:
    async with swarm.opened(0) as (one,):
        await write(one.view(), "f", "x")
        await one.view().sync()
        register = register_block(NAME, one.parts.volume.writer).cid
        await one.cluster.unpin(register, timeout_s=1)
        for node in swarm.network.nodes:
            swarm.network.collect(node)
        await write(one.view(), "f", "y")
        await one.view().sync()
        assert register in swarm.network.nodes[0].pins


async def test_a_wrong_register_with_a_far_number_is_replaced_by_the_next_publication(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3vol.store.ipfs.refresh.LATER_S", 0.0)
    async with swarm.opened() as (one, two):
        await write(two.view(), "f", "good")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "good"
        await two.heads.post(two.parts.volume.writer, 10**6, LEAF.cid)
        for node in swarm.network.nodes:
            node.blocks[LEAF.cid] = LEAF.body
        assert await text_of(one.view(), "f") == "good"
        assert one.parts.refresher.quarantined
        await write(two.view(), "f", "better")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "better"
        assert not one.parts.refresher.quarantined
