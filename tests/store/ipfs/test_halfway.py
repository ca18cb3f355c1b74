"""What a hostile review of the IPFS store found: each of these lost something, or ended a mount."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from s3vol.errors import Unavailable
from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import Cid
from s3vol.store.ipfs.collect import Collector
from s3vol.store.ipfs.opening import OpenVolume
from tests.store.ipfs.rig import Swarm, crash, everything, text_of, write
from tests.store.ipfs.test_collect import RETENTION_S, Clock, collect, exchange

MIB = 1 << 20


@pytest.fixture
def swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def _fail_next_import(volume: OpenVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    load = volume.blocks.load

    async def fail(blocks: Sequence[Block], root: Cid, *, timeout_s: float, update: Cid | None = None) -> None:
        monkeypatch.setattr(volume.blocks, "load", load)
        await trio.lowlevel.checkpoint()
        raise Unavailable("Kubo is restarted")

    monkeypatch.setattr(volume.blocks, "load", fail)


async def write_what_was_collected(swarm: Swarm, one: OpenVolume, two: OpenVolume, clock: Clock) -> None:
    """The second writer's file goes, with its blocks, everywhere; then the first one writes the same bytes."""
    await two.view().delete("of two")
    for _ in range(3):
        await exchange(one, two)
        clock.now_s += RETENTION_S + 1
        await collect(two, clock)
    for node in swarm.network.nodes:
        swarm.network.collect(node)
    await write(one.view(), "of one", "content")
    await one.view().sync()


async def test_a_part_that_fails_half_way_leaves_no_block_that_others_take_for_written(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await swarm.open(0)
    view = one.view()
    body = random.Random(1).randbytes(5 * MIB)
    etag = await view.put("source", body, metadata={})
    upload = await view.create_upload("new", metadata={})
    many = one.parts.fetcher.many
    reads = 0

    async def fail_the_second(cids: Sequence[Cid]) -> dict[Cid, bytes]:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise Unavailable("Kubo is restarted")
        return await many(cids)

    monkeypatch.setattr(one.parts.fetcher, "many", fail_the_second)
    with pytest.raises(Unavailable):
        await view.copy_part("new", upload, 1, source="source", start=10, length=2 * MIB, if_match=etag)
    monkeypatch.undo()
    same = body[10:MIB]
    await view.put("same", same, metadata={})
    await crash(one)
    again = await swarm.open(0)
    assert bytes(await again.view().get("same", 0, MIB)) == same
    await again.aclose()


async def test_a_part_owes_all_its_blocks_before_it_waits_for_any(
    swarm: Swarm, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.opened() as (one, two):
        body = random.Random(2).randbytes(5 * MIB)
        etag = await one.view().put("source", body, metadata={})
        await exchange(one, two)
        await one.view().delete("source")
        await collect(one, clock)
        clock.now_s += RETENTION_S + 1
        upload = await two.view().create_upload("new", metadata={})
        many = two.parts.fetcher.many

        async def read_beside_a_collection(cids: Sequence[Cid]) -> dict[Cid, bytes]:
            monkeypatch.undo()
            found = await many(cids)
            await exchange(two, one)
            await collect(one, clock)
            for node in swarm.network.nodes:
                swarm.network.collect(node)
            return found

        monkeypatch.setattr(two.parts.fetcher, "many", read_beside_a_collection)
        part = await two.view().copy_part(
            "new", upload, 1, source="source", start=10, length=3 * MIB - 10, if_match=etag
        )
        await two.view().complete_upload("new", upload, [part])
        await two.view().sync()
        assert bytes(await two.view().get("new", 0, 3 * MIB)) == body[10 : 3 * MIB]


async def test_a_segment_whose_import_failed_is_never_taken_for_one_that_holds_blocks(
    swarm: Swarm, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.opened() as (one, two):
        await write(one.view(), "f", "content")
        await _fail_next_import(one, monkeypatch)
        with pytest.raises(Unavailable):
            await one.view().sync()
        await exchange(one, two)
        await one.view().delete("f")
        await exchange(one, two)
        await collect(one, clock)
        await write(two.view(), "of two", "content")
        await exchange(two, one)
        for _ in range(3):
            clock.now_s += RETENTION_S + 1
            await collect(one, clock)
            await exchange(one, two)
        await write_what_was_collected(swarm, one, two, clock)
    async with swarm.opened() as (one, two):
        assert await everything(one.view()) == {"of one": "content"}


async def test_blocks_of_an_import_that_failed_are_not_owed_while_another_body_needs_some(
    swarm: Swarm, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.opened() as (one, _):
        body = random.Random(3).randbytes(8 * MIB)
        await _fail_next_import(one, monkeypatch)
        with pytest.raises(Unavailable):
            await one.view().put("f", body, metadata={})
        load = one.blocks.load
        importing = trio.Event()

        async def wait(blocks: Sequence[Block], root: Cid, *, timeout_s: float, update: Cid | None = None) -> None:
            monkeypatch.setattr(one.blocks, "load", load)
            importing.set()
            await trio.sleep_forever()

        monkeypatch.setattr(one.blocks, "load", wait)
        changed = body[: 2 * MIB] + random.Random(4).randbytes(6 * MIB)
        async with trio.open_nursery() as nursery:

            async def put() -> None:
                await one.view().put("f", changed, metadata={})

            nursery.start_soon(put)
            await importing.wait()
            Collector(one, now_s=clock)._judge(int(clock()))
            nursery.cancel_scope.cancel()
        await write(one.view(), "g", "x")
        await one.view().sync()


@pytest.mark.parametrize("crashed", [False, True])
async def test_a_segment_whose_removal_failed_half_way_is_not_relied_on_again(
    swarm: Swarm, clock: Clock, monkeypatch: pytest.MonkeyPatch, crashed: bool
) -> None:
    one, two = await swarm.open(0), await swarm.open(1)
    await write(one.view(), "f", "content")
    await exchange(one, two)
    await one.view().delete("f")
    await exchange(one, two)
    await collect(one, clock)
    await exchange(one, two)
    clock.now_s += RETENTION_S + 1

    async def fail(cid: Cid, *, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()
        raise Unavailable("Kubo is restarted")

    async def fail_to_remove(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise Unavailable("Kubo is restarted")

    monkeypatch.setattr(one.blocks, "unpin", fail)
    with pytest.raises(Unavailable):
        await collect(one, clock)
    monkeypatch.undo()
    if crashed:
        await crash(one)
        one = await swarm.open(0)
    await write(two.view(), "of two", "content")
    await exchange(two, one)
    monkeypatch.setattr(one.parts.segments, "remove", fail_to_remove)
    with suppress(Unavailable):
        await collect(one, clock)
    monkeypatch.undo()
    await write_what_was_collected(swarm, one, two, clock)
    await one.aclose()
    await two.aclose()
    async with swarm.opened() as (one, two):
        assert await everything(one.view()) == {"of one": "content"}


async def test_a_volume_opens_after_two_crashes_with_a_collection_in_between(
    swarm: Swarm, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await swarm.open(0)
    await write(one.view(), "f", "old")
    await one.view().sync()

    async def killed(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise Unavailable("killed")

    await write(one.view(), "f", "new")
    monkeypatch.setattr(one.parts.publisher, "_forget", killed)
    with pytest.raises(Unavailable):
        await one.view().sync()
    await crash(one)
    one = await swarm.open(0)
    clock.now_s += 10**9
    await collect(one, clock)
    swarm.network.collect(swarm.network.nodes[0])
    swarm.network.collect(swarm.network.nodes[1])
    await write(one.view(), "g", "acknowledged")
    monkeypatch.setattr(one.heads, "post", killed)
    with pytest.raises(Unavailable):
        await one.view().sync()
    await crash(one)
    one = await swarm.open(0)
    assert await everything(one.view()) == {"f": "new", "g": "acknowledged"}
    await one.aclose()


async def test_a_writer_that_appears_during_a_collection_does_not_end_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = Swarm(tmp_path, 4)
    async with swarm.opened(0, 1, 2) as (one, two, three):
        for volume in (one, two, three):
            await write(volume.view(), f"of {volume.parts.volume.writer}", "x")
        await exchange(one, two, three)
        state = one.parts.refresher.state
        four: list[OpenVolume] = []

        async def appear(commit: Cid) -> object:
            if not four:
                monkeypatch.undo()
                four.append(await swarm.open(3))
                await one.heads.scan()
            return await state(commit)

        monkeypatch.setattr(one.parts.refresher, "state", appear)
        await Collector(one, now_s=clock)._states()
        await four[0].aclose()


async def test_a_writer_that_is_retired_during_a_refresh_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = Swarm(tmp_path, 3)
    async with swarm.opened(0, 1) as (one, two):
        await write(two.view(), "f", "x")
        await exchange(one, two)
        read_one = one.heads._read_one

        async def retire(writer: str) -> None:
            await read_one(writer)
            monkeypatch.undo()
            await Collector(one).retire(writer)
            await one.heads.scan()

        monkeypatch.setattr(one.heads, "_read_one", retire)
        assert await text_of(one.view(), "f") == "x"


async def test_a_block_that_is_gone_for_good_does_not_hold_up_what_else_is_changed(swarm: Swarm) -> None:
    async with swarm.opened() as (one, two):
        etag = await write(one.view(), "f", "lost")
        await one.view().sync()
        await two.view().head("f")
        entry = one.parts.volume.find("f")
        assert entry is not None
        lost = one.parts.volume.pieces(entry)[0].digest
        await two.view().copy("f", "copy", if_match=etag, metadata={})
        for node in swarm.network.nodes:
            for cid in [cid for cid in node.blocks if cid.endswith(lost)]:
                del node.blocks[cid]
        await two.view().delete("copy")
        await two.view().delete("f")
        await write(two.view(), "g", "x")
        await two.view().sync()
        assert await text_of(one.view(), "g") == "x"
