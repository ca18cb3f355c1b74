"""A volume on several nodes: what is seen when, what a conflict leaves, what a crash and a partition do."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from s3vol.errors import Corrupt, PreconditionFailed, Unavailable, UsageError
from s3vol.store.base import ABSENT, matches
from s3vol.store.ipfs.base import Block, PinOptions
from s3vol.store.ipfs.cid import digest_of, node_cid, raw_of_digest
from s3vol.store.ipfs.entry import encode
from s3vol.store.ipfs.heads import head_prefix, register_block
from s3vol.store.ipfs.opening import OpenVolume
from tests.store.ipfs.rig import NAME, Swarm, crash, everything, text_of, write
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster

BIG = 5 << 20


@pytest.fixture
def swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path)


def tree_of(volume: OpenVolume) -> bytes:
    return volume.parts.volume.seal().tree


@pytest.mark.parametrize("peers", [False, True])
async def test_what_is_published_on_one_node_is_seen_by_the_next_open_on_another(swarm: Swarm, peers: bool) -> None:
    async with swarm.opened(peers=peers) as (one, two):
        for number in range(20):
            await write(one.view(), "f", f"round {number}")
            await one.view().sync()
            assert await text_of(two.view(), "f") == f"round {number}"


async def test_what_is_not_published_is_seen_on_its_node_only(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        await write(one.view(), "f", "here")
        assert await text_of(one.view(), "f") == "here"
        assert await text_of(two.view(), "f") is None
        await one.view().sync()
        assert await text_of(two.view(), "f") == "here"


async def test_without_an_interval_a_change_returns_published(swarm: Swarm) -> None:
    async with swarm.opened(commit_interval_s=0) as (one, two):
        await write(one.view(), "f", "here")
        assert await text_of(two.view(), "f") == "here"
        await one.view().delete("f")
        assert await text_of(two.view(), "f") is None


async def test_callers_at_the_same_time_share_publications(swarm: Swarm) -> None:
    async with swarm.opened(commit_interval_s=0) as (one, _):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(write, one.view(), f"f{number}", "x")
        published = one.parts.publisher.published
        assert published is not None
        assert published.sequence <= 3


async def eventually(volume: OpenVolume, key: str, text: str) -> None:
    """Wait until a node shows this."""
    with trio.fail_after(30):
        while await text_of(volume.view(), key) != text:  # noqa: ASYNC110 - what another node shows must be asked
            await trio.sleep(0.01)


async def test_changes_are_published_in_the_background(swarm: Swarm) -> None:
    async with swarm.opened(commit_interval_s=0.05) as (one, two), trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await write(one.view(), "f", "here")
        await eventually(two, "f", "here")
        nursery.cancel_scope.cancel()


async def test_a_publication_that_fails_is_tried_again(swarm: Swarm) -> None:
    async with swarm.opened(commit_interval_s=0.05) as (one, two), trio.open_nursery() as nursery:
        await write(one.view(), "f", "here")
        swarm.network.nodes[0].up = False
        nursery.start_soon(one.run)
        with trio.fail_after(30):
            while not one.health.counts.get("ipfs.publish_failures"):  # noqa: ASYNC110 - a counter is no event
                await trio.sleep(0.01)
        swarm.network.nodes[0].up = True
        await eventually(two, "f", "here")
        nursery.cancel_scope.cancel()


async def test_two_nodes_that_create_the_same_file_both_succeed_and_both_are_kept(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        for volume, text in ((one, "of one"), (two, "of two")):
            await volume.view().put("d/f", text.encode(), metadata={}, condition=ABSENT)
        for volume in (one, two, one):
            await volume.view().sync()
        seen = await everything(one.view())
        assert seen == await everything(two.view())
        assert sorted(filter(None, seen.values())) == ["of one", "of two"]
        assert len([key for key in seen if ".s3vol-conflict-n" in key]) == 1
        assert tree_of(one) == tree_of(two)
        assert {volume.health.counts.get("ipfs.conflicts") for volume in (one, two)} == {1}


async def test_a_condition_fails_once_the_other_nodes_change_has_arrived(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        etag = await write(one.view(), "f", "first")
        await one.view().sync()
        assert (await two.view().head("f")).etag == etag
        await two.view().put("f", b"second", metadata={}, condition=matches(etag))
        await two.view().sync()
        await one.view().head("f")
        with pytest.raises(PreconditionFailed):
            await one.view().put("f", b"third", metadata={}, condition=matches(etag))


async def test_two_halves_that_were_cut_off_converge_and_lose_nothing(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, 4)
    nodes = swarm.network.nodes
    async with swarm.opened(commit_interval_s=0) as volumes:
        await write(volumes[0].view(), "same", "before")
        for side, group in enumerate(((0, 1), (2, 3))):
            for number in group:
                nodes[number].side = side
        for number, volume in enumerate(volumes):
            await volume.view().head("same")
            await write(volume.view(), "same", f"of {number}")
            await write(volume.view(), f"d/own{number}", f"of {number}")
        for node in nodes:
            node.side = 0
        swarm.network.settle()
        for _ in range(2):
            for volume in volumes:
                await volume.parts.refresher.refresh()
                await volume.view().sync()
        seen = [await everything(volume.view()) for volume in volumes]
        assert all(other == seen[0] for other in seen)
        assert len({tree_of(volume) for volume in volumes}) == 1
        assert {f"d/own{number}" for number in range(4)} <= set(seen[0])
        assert {"of 1", "of 3"} <= set(seen[0].values()), "each half's last content"


async def test_a_node_that_is_gone_takes_nothing_with_it_that_was_synced(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, 3)
    async with swarm.opened(1, 2) as (two, three):
        one = await swarm.open(0, replicas=2)
        await one.view().put("big", b"x" * BIG, metadata={})
        await one.view().sync()
        swarm.network.nodes[0].up = False
        for volume in (two, three):
            assert (await volume.view().head("big")).size == BIG
            assert bytes(await volume.view().get("big", 0, BIG)) == b"x" * BIG
        swarm.network.nodes[0].up = True
        await one.aclose()


async def test_sync_says_when_there_are_not_enough_replicas(swarm: Swarm) -> None:
    swarm.network.nodes[1].up = False
    one = await swarm.open(0, replicas=2, timeout_s=2)
    await write(one.view(), "f", "x")
    with pytest.raises(Unavailable, match="2 peers"):
        await one.view().sync()
    swarm.network.nodes[1].up = True
    swarm.network.settle()
    await one.view().sync()
    await one.aclose()


async def test_a_head_whose_blocks_are_gone_leaves_the_older_state_in_view(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3vol.store.ipfs.refresh.LATER_S", 0.0)
    async with swarm.opened() as (one, two):
        await write(one.view(), "f", "old")
        await one.view().sync()
        assert await text_of(two.view(), "f") == "old"
        await write(one.view(), "f", "new")
        await one.view().sync()
        dead = {cid: body for node in swarm.network.nodes for cid, body in node.blocks.items()}
        commit = one.parts.publisher.published
        assert commit is not None
        for node in swarm.network.nodes:
            node.blocks.pop(commit.commit)
        assert await text_of(two.view(), "f") == "old"
        assert two.parts.refresher.behind == (one.parts.volume.writer,)
        for node in swarm.network.nodes:
            node.blocks |= dead
        assert await text_of(two.view(), "f") == "new"
        assert not two.parts.refresher.behind


async def test_bytes_that_are_not_the_block_are_refused(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        await write(one.view(), "f", "right")
        await one.view().sync()
        info = await two.view().head("f")
        found = two.parts.volume.find("f")
        assert found is not None
        for piece in two.parts.volume.pieces(found):
            for node in swarm.network.nodes:
                node.blocks[raw_of_digest(piece.digest)] = b"wrong"
        with pytest.raises(Corrupt):
            await two.view().get("f", 0, info.size)


async def test_closing_while_the_cluster_is_away_keeps_what_is_not_published_and_says_so(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "kept")
    swarm.network.nodes[0].up = False
    await one.aclose()
    assert "the next mount publishes them" in caplog.text
    swarm.network.nodes[0].up = True
    async with swarm.opened() as (_, two):
        assert await text_of(two.view(), "f") is None
    async with swarm.opened(1) as (two,):
        assert await text_of(two.view(), "f") == "kept"


# -- crashes


async def test_what_was_acknowledged_survives_a_crash(swarm: Swarm) -> None:
    one = await swarm.open(0)
    await write(one.view(), "published", "x")
    await one.view().sync()
    await write(one.view(), "small", "y")
    await one.view().put("big", b"z" * BIG, metadata={})
    await one.view().delete("published")
    upload = await one.view().create_upload("u", metadata={"a": "b"})
    part = await one.view().upload_part("u", upload, 1, b"part")
    await crash(one)
    async with swarm.opened(0) as (again,):
        assert again.parts.volume.writer == one.parts.volume.writer
        assert sorted(await everything(again.view())) == ["big", "small"]
        await again.view().complete_upload("u", upload, [part])
        await again.view().sync()
        async with swarm.opened(1) as (two,):
            assert (await everything(two.view())).keys() == {"big", "small", "u"}


@pytest.mark.parametrize("lucky", range(12))
async def test_a_crash_at_any_step_of_a_publication_loses_nothing(swarm: Swarm, lucky: int) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "first")
    await one.view().sync()
    await write(one.view(), "f", "second")
    await write(one.view(), "g", "new")
    swarm.breaking[0].left = lucky
    try:
        await one.view().sync()
        assert lucky >= 5, "import and pin the segment, import and pin the commit, post the register"
    except Unavailable:
        pass
    swarm.breaking[0].left = None
    await crash(one)
    async with swarm.opened() as (again, two):
        for volume in (again, two):
            assert await text_of(volume.view(), "f") in (("second",) if volume is again else ("first", "second"))
        await again.view().sync()
        assert await everything(two.view()) == {"f": "second", "g": "new"}


async def test_a_removal_of_anothers_file_survives_a_crash(swarm: Swarm) -> None:
    async with swarm.opened(1) as (two,):
        await write(two.view(), "f", "of two")
        await two.view().sync()
        one = await swarm.open(0)
        assert await text_of(one.view(), "f") == "of two"
        await one.view().delete("f")
        await crash(one)
        async with swarm.opened(0) as (again,):
            assert await everything(again.view()) == {}
            await again.view().sync()
            assert await everything(two.view()) == {}


async def test_a_change_of_the_journal_does_not_overwrite_what_others_did_meanwhile(swarm: Swarm) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "of one")
    await crash(one)
    async with swarm.opened(1) as (two,):
        await write(two.view(), "f", "of two")
        await two.view().sync()
        async with swarm.opened(0) as (again,):
            assert sorted((await everything(again.view())).values(), key=str) == ["of one", "of two"]


async def test_a_journal_that_is_an_old_copy_goes_on_as_a_new_writer(swarm: Swarm, tmp_path: Path) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "first")
    await one.view().sync()
    await write(one.view(), "g", "unpublished")
    await crash(one)
    saved = {path: path.read_bytes() for path in (tmp_path / "n0").iterdir()}
    two = await swarm.open(0)
    await write(two.view(), "f", "second")
    await two.view().sync()
    await two.aclose()
    for path in (tmp_path / "n0").iterdir():
        path.unlink()
    for path, body in saved.items():
        path.write_bytes(body)
    async with swarm.opened(0) as (again,):
        assert again.parts.volume.writer != two.parts.volume.writer
        seen = await everything(again.view())
        assert seen["f"] == "second"
        assert "unpublished" in seen.values()


async def test_a_register_that_the_cluster_lost_is_posted_again(swarm: Swarm) -> None:
    one = await swarm.open(0)
    for text in ("first", "second"):
        await write(one.view(), "f", text)
        await one.view().sync()
    await one.aclose()
    register = register_block(NAME, one.parts.volume.writer).cid
    for node in swarm.network.nodes:
        del node.records[register]
    async with swarm.opened() as (again, two):
        await again.view().sync()
        assert await text_of(two.view(), "f") == "second"


async def test_a_journal_has_one_user(swarm: Swarm) -> None:
    async with swarm.opened(0):
        with pytest.raises(UsageError, match="another s3vol"):
            await swarm.open(0)


async def test_a_register_of_somebody_else_is_not_believed(swarm: Swarm) -> None:
    node = swarm.network.nodes[0]
    blocks, cluster = MemoryBlocks(swarm.network, node), MemoryCluster(swarm.network, node)
    fake = Block(node_cid(encode({"not": "a register"})), encode({"not": "a register"}))
    await blocks.load([fake], fake.cid, timeout_s=1)
    await cluster.pin(fake.cid, PinOptions(head_prefix(NAME) + "evil", {"sequence": "9", "commit": "x"}), timeout_s=1)
    real = register_block(NAME, "odd")
    await blocks.load([real], real.cid, timeout_s=1)
    await cluster.pin(real.cid, PinOptions(head_prefix(NAME) + "odd", {"sequence": "nine"}), timeout_s=1)
    async with swarm.opened(0) as (one,):
        await write(one.view(), "f", "x")
        assert await everything(one.view()) == {"f": "x"}
        assert one.heads.known.keys() == {one.parts.volume.writer, "odd"}
        assert one.heads.known["odd"].commit is None


async def test_small_files_become_one_segment_and_large_ones_their_own(swarm: Swarm) -> None:
    async with swarm.opened(0) as (one,):
        for number in range(100):
            await write(one.view(), f"f{number}", f"content {number}")
        await one.view().put("big", bytes(range(256)) * (BIG // 256), metadata={})
        await one.view().put("same", bytes(range(256)) * (BIG // 256), metadata={})
        await one.view().sync()
        segments = list(one.parts.segments.all.values())
        assert sorted(len(segment.digests) for segment in segments) == [1, 100]
        node = swarm.network.nodes[0]
        swarm.network.collect(node)
        assert all(raw_of_digest(digest) in node.blocks for segment in segments for digest in segment.digests)
        assert digest_of(segments[0].cid)


async def test_a_file_of_many_blocks_is_read_on_another_node(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        view = one.view()
        upload = await view.create_upload("big", metadata={})
        parts = [await view.upload_part("big", upload, number, b"%d" % number * BIG) for number in range(1, 8)]
        copied = await view.copy_part(
            "big", upload, 8, source=await _small(one), start=1, length=3, if_match=(await view.head("small")).etag
        )
        parts.append(copied)
        many = await view.create_upload("many", metadata={})
        one_part = await view.upload_part("many", many, 1, b"y" * (70 << 20))
        await view.complete_upload("many", many, [one_part])
        await view.complete_upload("big", upload, parts)
        await view.sync()
        swarm.network.collect(swarm.network.nodes[0])
        other = two.view()
        assert (await other.head("big")).size == 7 * BIG + 3
        assert bytes(await other.get("big", 3 * BIG - 2, 4)) == b"3344"
        assert bytes(await other.get("big", 7 * BIG, 10)) == b"mal"
        assert bytes(await other.get("many", (70 << 20) - 3, 10)) == b"yyy"


async def _small(volume: OpenVolume) -> str:
    await write(volume.view(), "small", "small")
    return "small"
