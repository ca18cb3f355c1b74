"""Collection: what nobody needs goes, and nothing else, while all go on writing."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3vol.errors import NotFound, PreconditionFailed, Unavailable
from s3vol.store.ipfs.base import Block, PinOptions
from s3vol.store.ipfs.cid import Cid
from s3vol.store.ipfs.collect import Collector, Outcome
from s3vol.store.ipfs.opening import OpenVolume
from s3vol.store.ipfs.segments import DIRECT_BYTES
from tests.store.ipfs.rig import Swarm, crash, everything, text_of, write

RETENTION_S = 100


@pytest.fixture
def swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path)


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def volumes(swarm: Swarm) -> AsyncIterator[list[OpenVolume]]:
    async with swarm.opened() as opened:
        yield opened


async def collect(volume: OpenVolume, clock: Clock) -> Outcome:
    return await Collector(volume, retention_s=RETENTION_S, now_s=clock).collect()


async def exchange(*volumes: OpenVolume) -> None:
    """Let all see and publish what the others published."""
    for volume in (*volumes, *volumes):
        await volume.parts.refresher.refresh()
        await volume.view().sync()


def bytes_on(swarm: Swarm, number: int) -> int:
    return sum(map(len, swarm.network.nodes[number].blocks.values()))


async def test_a_removed_file_goes_after_the_retention_once_all_have_seen_it(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock
) -> None:
    one, two = volumes
    await one.view().put("big", b"x" * (5 << 20), metadata={})
    await write(one.view(), "small", "kept")
    await exchange(one, two)
    await one.view().delete("big")
    assert (await collect(one, clock)).condemned == 1
    clock.now_s += RETENTION_S + 1
    outcome = await collect(one, clock)
    assert (outcome.removed, outcome.waits_for) == (0, (two.parts.volume.writer,))
    await exchange(one, two)
    assert (await collect(one, clock)).removed == 1
    assert bytes_on(swarm, 0) < 100_000
    assert await text_of(two.view(), "small") == "kept"


async def test_nothing_goes_before_the_retention_has_passed(volumes: list[OpenVolume], clock: Clock) -> None:
    one, two = volumes
    await write(one.view(), "f", "x")
    await exchange(one, two)
    await one.view().delete("f")
    await collect(one, clock)
    await exchange(one, two)
    clock.now_s += RETENTION_S - 1
    assert (await collect(one, clock)).removed == 0


async def test_a_copy_on_another_node_keeps_its_blocks(swarm: Swarm, volumes: list[OpenVolume], clock: Clock) -> None:
    one, two = volumes
    etag = await write(one.view(), "f", "copied")
    await exchange(one, two)
    await two.view().head("f")
    await two.view().copy("f", "copy", if_match=etag, metadata={})
    await one.view().delete("f")
    await collect(one, clock)
    clock.now_s += RETENTION_S + 1
    await exchange(one, two)
    await collect(one, clock)
    for node in swarm.network.nodes:
        swarm.network.collect(node)
    assert await everything(one.view()) == {"copy": "copied"}


async def test_an_upload_keeps_the_blocks_that_it_took_from_a_file(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock
) -> None:
    one, two = volumes
    etag = await write(one.view(), "f", "copied")
    await exchange(one, two)
    await two.view().head("f")
    upload = await two.view().create_upload("new", metadata={})
    part = await two.view().copy_part("new", upload, 1, source="f", start=0, length=6, if_match=etag)
    await one.view().delete("f")
    await collect(one, clock)
    clock.now_s += RETENTION_S + 1
    await exchange(one, two)
    await collect(one, clock)
    for node in swarm.network.nodes:
        swarm.network.collect(node)
    await two.view().complete_upload("new", upload, [part])
    assert await text_of(two.view(), "new") == "copied"


async def test_a_segment_that_is_hardly_used_is_packed_anew(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock
) -> None:
    one, two = volumes
    for number in range(10):
        await write(one.view(), f"f{number}", f"content {number}")
    await exchange(one, two)
    for number in range(8):
        await one.view().delete(f"f{number}")
    assert (await collect(one, clock)).condemned == 1
    await exchange(one, two)
    clock.now_s += RETENTION_S + 1
    assert (await collect(one, clock)).removed == 1
    assert [len(segment.digests) for segment in one.parts.segments.all.values()] == [2]
    swarm.network.collect(swarm.network.nodes[0])
    assert await everything(two.view()) == {"f8": "content 8", "f9": "content 9"}


async def test_content_that_comes_back_is_kept(swarm: Swarm, volumes: list[OpenVolume], clock: Clock) -> None:
    one, two = volumes
    await write(one.view(), "f", "again")
    await exchange(one, two)
    await one.view().delete("f")
    await collect(one, clock)
    await write(one.view(), "g", "again")
    await exchange(one, two)
    clock.now_s += RETENTION_S + 1
    await collect(one, clock)
    await exchange(one, two)
    for node in swarm.network.nodes:
        swarm.network.collect(node)
    assert await everything(two.view()) == {"g": "again"}


async def test_old_commits_go_and_a_writer_that_is_gone_can_be_retired(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock
) -> None:
    one, two = volumes
    for number in range(5):
        await write(one.view(), "f", f"version {number}")
        await one.view().sync()
    await two.aclose()
    await collect(one, clock)
    clock.now_s += 10**9  # commits carry the machine's time
    outcome = await collect(one, clock)
    assert outcome.waits_for == (two.parts.volume.writer,)
    assert outcome.commits >= 4
    await Collector(one).retire(two.parts.volume.writer)
    assert (await collect(one, clock)).removed >= 1
    assert await everything(one.view()) == {"f": "version 4"}


@pytest.mark.parametrize("seed", range(6))
async def test_under_any_workload_all_that_is_shown_can_be_read(tmp_path: Path, clock: Clock, seed: int) -> None:
    swarm = Swarm(tmp_path, 3)
    rng = random.Random(seed)
    async with swarm.opened() as volumes:
        for step in range(60):
            number = rng.randrange(3)
            volume, view = volumes[number], volumes[number].view()
            keys = [info.key for info in (await view.list("", delimiter=False)).objects]
            what = rng.choice(["write", "write", "delete", "copy", "sync", "collect", "collect", "part", "crash"])
            if what == "write":
                await write(view, f"f{rng.randrange(8)}", f"step {rng.randrange(step + 1)} " + "x" * 500)
            elif what == "delete" and keys:
                await view.delete(rng.choice(keys))
            elif what == "copy" and keys:
                await _copy(volume, rng.choice(keys), f"c{rng.randrange(4)}")
            elif what == "sync":
                await view.sync()
            elif what == "collect":
                clock.now_s += RETENTION_S
                await collect(volume, clock)
            elif what == "part":
                swarm.network.nodes[number].side = rng.randrange(2)
                swarm.network.settle()
            elif what == "crash":
                await crash(volume)
                volumes[number] = await swarm.open(number)
        for node in swarm.network.nodes:
            node.side = 0
        swarm.network.settle()
        await exchange(*volumes)
        for node in swarm.network.nodes:
            swarm.network.collect(node)
        seen = [await everything(volume.view()) for volume in volumes]
        assert seen[0] == seen[1] == seen[2]


async def _copy(volume: OpenVolume, source: str, target: str) -> None:
    try:
        etag = (await volume.view().head(source)).etag
        await volume.view().copy(source, target, if_match=etag, metadata={})
    except (NotFound, PreconditionFailed):  # another node's change came between
        return


async def test_what_is_packed_anew_is_there_before_the_old_segment_goes(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock
) -> None:
    one, two = volumes
    for number in range(10):
        await write(one.view(), f"f{number}", f"content {number}")
    for number in range(8):
        await one.view().delete(f"f{number}")
    await exchange(one, two)
    assert (await collect(one, clock)).condemned == 1, "and nothing else is to be published"
    await exchange(one, two)
    clock.now_s += RETENTION_S + 1
    assert (await collect(one, clock)).removed == 1
    for node in swarm.network.nodes:
        swarm.network.collect(node)
    assert await everything(two.view()) == {"f8": "content 8", "f9": "content 9"}


async def collect_all(swarm: Swarm, volumes: list[OpenVolume], clock: Clock) -> None:
    """Until there is nothing to remove, in Kubo as well."""
    for _ in range(3):
        clock.now_s += RETENTION_S + 1
        for volume in volumes:
            await collect(volume, clock)
        await exchange(*volumes)
    for node in swarm.network.nodes:
        swarm.network.collect(node)


@pytest.mark.parametrize("when", ["before the import", "after the import"])
@pytest.mark.parametrize("part", [False, True])
async def test_a_body_that_no_file_shows_yet_is_kept_by_a_collection_beside_its_import(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock, monkeypatch: pytest.MonkeyPatch, when: str, part: bool
) -> None:
    one, two = volumes
    await write(one.view(), "other", "x")
    await exchange(one, two)
    body = random.Random(when).randbytes(DIRECT_BYTES)
    load = one.blocks.load
    imports = 0

    async def load_beside_a_collection(
        blocks: Sequence[Block], root: Cid, *, timeout_s: float, update: Cid | None = None
    ) -> None:
        nonlocal imports
        imports += 1
        if when == "after the import" or imports > 1:
            await load(blocks, root, timeout_s=timeout_s, update=update)
        if imports == 1:
            nursery.start_soon(collect, one, clock)
            await wait_all_tasks_blocked()
        if when == "before the import" and imports == 1:
            await load(blocks, root, timeout_s=timeout_s, update=update)

    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(one.blocks, "load", load_beside_a_collection)
        if part:
            upload = await one.view().create_upload("f", metadata={})
            parts = [await one.view().upload_part("f", upload, 1, body)]
            await one.view().complete_upload("f", upload, parts)
        else:
            await one.view().put("f", body, metadata={})
    await collect_all(swarm, volumes, clock)
    assert bytes(await two.view().get("f", 0, len(body))) == body


async def test_a_body_is_kept_whose_blocks_a_removed_file_had_until_now(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = volumes
    body = random.Random(1).randbytes(DIRECT_BYTES)
    await one.view().put("old", body, metadata={})
    await one.view().delete("old")
    load = one.parts.segments.load

    async def load_then_collect(blocks: Sequence[Block]) -> None:
        await load(blocks)
        await collect(one, clock)
        clock.now_s += RETENTION_S + 1
        await exchange(two)
        await collect(one, clock)

    monkeypatch.setattr(one.parts.segments, "load", load_then_collect)
    await one.view().put("new", body, metadata={})
    await collect_all(swarm, volumes, clock)
    assert bytes(await two.view().get("new", 0, len(body))) == body


async def test_a_publication_whose_reply_was_lost_keeps_its_commit(
    swarm: Swarm, volumes: list[OpenVolume], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = volumes
    await write(one.view(), "f", "old")
    await exchange(one, two)
    post = one.heads.post

    async def post_and_lose_the_reply(writer: str, sequence: int, commit: Cid | None) -> None:
        await post(writer, sequence, commit)
        raise Unavailable("the reply was lost")

    monkeypatch.setattr(one.heads, "post", post_and_lose_the_reply)
    await write(one.view(), "f", "new")
    with pytest.raises(Unavailable):
        await one.view().sync()
    clock.now_s = time.time() + RETENTION_S + 1  # the publisher's clock is the machine's
    monkeypatch.setattr(one.parts.publisher, "publish", trio.lowlevel.checkpoint)
    await collect(one, clock)
    swarm.network.collect(swarm.network.nodes[0])
    swarm.network.collect(swarm.network.nodes[1])
    assert await text_of(two.view(), "f") == "new"


async def test_a_segment_that_goes_while_others_are_pinned_is_not_pinned_any_more(
    volumes: list[OpenVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = volumes[0]
    for name in ("a", "b"):
        await one.view().put(name, random.Random(name).randbytes(DIRECT_BYTES), metadata={})
    await one.view().delete("b")
    pin = one.cluster.pin
    _, second = (segment for segment in one.parts.segments.all.values())

    async def pin_while_the_second_one_goes(cid: Cid, options: PinOptions, *, timeout_s: float) -> None:
        monkeypatch.setattr(one.cluster, "pin", pin)
        await one.parts.segments.remove(second)
        await pin(cid, options, timeout_s=timeout_s)

    monkeypatch.setattr(one.cluster, "pin", pin_while_the_second_one_goes)
    await one.view().sync()
    assert second.cid not in one.parts.segments.all
    assert await one.cluster.record(second.cid, timeout_s=1) is None
