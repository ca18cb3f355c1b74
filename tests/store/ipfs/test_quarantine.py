"""A head that is wrong costs nobody the volume: it is named once, what was good stays, nothing is collected for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cbrrr import CID

from s3vol.store.ipfs.base import Block, PinOptions
from s3vol.store.ipfs.cid import Cid, node_cid
from s3vol.store.ipfs.collect import Collector
from s3vol.store.ipfs.entry import encode
from s3vol.store.ipfs.heads import head_prefix, register_block
from s3vol.store.ipfs.opening import OpenVolume
from s3vol.store.ipfs.state import Commit, encode_commit
from tests.store.ipfs.rig import NAME, Swarm, crash, everything, text_of, write


@pytest.fixture
def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Swarm:
    monkeypatch.setattr("s3vol.store.ipfs.refresh.LATER_S", 0.0)  # every look asks again
    return Swarm(tmp_path)


def block(body: bytes) -> Block:
    return Block(node_cid(body), body)


def committed(root: bytes, volume: str = NAME) -> list[Block]:
    """A root and a commit of it, the commit last."""
    return [block(root), block(encode_commit(Commit(volume, "w", 1, node_cid(root))))]


def with_tree(tree: object) -> list[Block]:
    leaf = block(encode(tree))
    clock = {"w": 10**6}
    return [leaf, *committed(encode({"s3vol": 1, "volume": NAME, "clock": clock, "tree": CID(leaf.cid)}))]


LEAF = block(encode([0, [["k", []]]]))

BAD: dict[str, list[Block]] = {
    "no dag-cbor": [block(b"\xff\xff")],
    "no commit": [block(encode([1, 2]))],
    "of another volume": committed(encode({}), volume="other"),
    "of a newer format": [block(encode({"s3vol": 99, "volume": NAME}))],
    "no root": committed(encode({"s3vol": 1, "volume": NAME})),
    "a tree out of order": with_tree([0, [["b", []], ["a", []]]]),
    "a tree of too many levels": [LEAF, *with_tree([1000, [["k", CID(LEAF.cid)]]])],
    "no tree": with_tree("text"),
}


async def post(swarm: Swarm, volume: OpenVolume, blocks: list[Block]) -> None:
    """Make the last block the head of this writer; all nodes have them."""
    published = volume.parts.publisher.published
    assert published is not None
    for node in swarm.network.nodes:
        node.blocks |= {one.cid: one.body for one in blocks}
    await volume.heads.post(volume.parts.volume.writer, published.sequence + 1, blocks[-1].cid)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("kind", BAD)
async def test_a_wrong_head_leaves_the_last_good_one_in_view_and_is_named_once(
    swarm: Swarm, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async with swarm.opened() as (one, two):
        await write(two.view(), "f", "good")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "good"
        await post(swarm, two, BAD[kind])
        for number in range(3):
            await write(one.view(), f"own{number}", "x")
            await one.view().sync()
        assert await everything(one.view()) == {"f": "good", "own0": "x", "own1": "x", "own2": "x"}
        writer = two.parts.volume.writer
        assert set(one.parts.refresher.quarantined) == {writer}
        (warning,) = one.health.warnings.values()
        assert writer in warning
        assert [line for line in said(caplog) if writer in line] == [f"ipfs://{NAME}: {warning}"]
        await write(two.view(), "f", "better")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "better"
        assert not one.parts.refresher.quarantined
        assert not one.health.warnings


async def test_a_volume_opens_beside_a_wrong_head(swarm: Swarm) -> None:
    async with swarm.opened(1) as (two,):
        await write(two.view(), "f", "good")
        await two.view().sync()
        await post(swarm, two, BAD["no commit"])
        async with swarm.opened(0) as (one,):
            await write(one.view(), "g", "x")
            await one.view().sync()
            assert await everything(one.view()) == {"g": "x"}
            assert one.health.warnings


async def test_a_copy_that_was_damaged_on_a_disk_is_asked_for_again(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        await write(two.view(), "f", "good")
        await two.view().sync()
        published = two.parts.publisher.published
        assert published is not None
        bodies = [node.blocks for node in swarm.network.nodes]
        kept = bodies[0][published.commit]
        for blocks in bodies:
            blocks[published.commit] = b"bits"
        assert await text_of(one.view(), "f") is None
        assert one.health.warnings
        for blocks in bodies:
            blocks[published.commit] = kept
        assert await text_of(one.view(), "f") == "good"
        assert not one.health.warnings


async def test_nothing_is_collected_that_a_wrong_head_may_need(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        await write(one.view(), "f", "x")
        for volume in (one, two, one, two):
            await volume.view().sync()
            await volume.parts.refresher.refresh()
        await one.view().delete("f")
        await post(
            swarm, two, with_tree([0, [["b", []], ["a", []]]])
        )  # its clock can be read, and says that it knows all
        collector = Collector(one, retention_s=0)
        for _ in range(2):
            outcome = await collector.collect()
            assert outcome.waits_for == (two.parts.volume.writer,)
            assert not outcome.removed


@pytest.mark.parametrize("known", [True, False])
async def test_a_register_that_lost_its_metadata_is_not_a_writer_that_is_gone(swarm: Swarm, known: bool) -> None:
    async with swarm.opened(1) as (two,):
        writer = two.parts.volume.writer
        await write(two.view(), "f", "good")
        await two.view().sync()
        one = await swarm.open(0) if known else None
        cid = register_block(NAME, writer).cid
        await two.cluster.pin(cid, PinOptions(head_prefix(NAME) + writer), timeout_s=1)  # by hand, without metadata
        one = one or await swarm.open(0)
        assert await text_of(one.view(), "f") == ("good" if known else None)
        await write(one.view(), "g", "x")
        await one.view().sync()
        await one.view().delete("g")
        assert writer in (await Collector(one, retention_s=0).collect()).waits_for
        await write(two.view(), "h", "y")
        await two.view().sync()
        assert await everything(one.view()) == {"f": "good", "h": "y"}
        await one.aclose()


async def test_a_merge_of_the_journal_that_cannot_be_read_any_more_is_left_out(swarm: Swarm) -> None:
    async with swarm.opened(1) as (two,):
        one = await swarm.open(0)
        await write(two.view(), "f", "theirs")
        await two.view().sync()
        assert await text_of(one.view(), "f") == "theirs"
        await write(one.view(), "g", "ours")
        await crash(one)
        published = two.parts.publisher.published
        assert published is not None
        merged: Cid = published.commit
        for node in swarm.network.nodes:
            node.blocks[merged] = b"bits"
        async with swarm.opened(0) as (again,):
            assert await everything(again.view()) == {"g": "ours"}


@pytest.mark.parametrize("retired", [False, True])
async def test_a_head_that_is_away_is_named_until_it_is_back_or_retired(swarm: Swarm, retired: bool) -> None:
    async with swarm.opened() as (one, two):
        await write(two.view(), "f", "x")
        await two.view().sync()
        published = two.parts.publisher.published
        assert published is not None
        writer, away = two.parts.volume.writer, published.commit
        bodies = [node.blocks.pop(away) for node in swarm.network.nodes]
        assert await text_of(one.view(), "f") is None
        assert one.parts.refresher.behind == (writer,)
        (warning,) = one.health.warnings.values()
        assert writer in warning
        assert not one.parts.refresher.quarantined
        if retired:
            await Collector(one).retire(writer)
        else:
            swarm.network.nodes[0].blocks[away] = bodies[0]
        assert await text_of(one.view(), "f") == (None if retired else "x")
        assert not one.parts.refresher.behind
        assert not one.health.warnings
