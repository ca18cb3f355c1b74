"""`s3vol fsck` of a volume in IPFS: what is missing, damaged or not pinned is found, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from s3vol.commands.fsck_ipfs import report, values
from s3vol.errors import NotFound, Unavailable
from s3vol.store.ipfs.cid import Cid, raw_cid, text
from s3vol.store.ipfs.collect import Collector
from s3vol.store.ipfs.examine import Examiner, Finding, Seen
from s3vol.store.ipfs.opening import OpenVolume
from tests.store.ipfs.rig import NAME, Swarm, write


@pytest.fixture
def swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path)


@pytest.fixture
async def volume(swarm: Swarm) -> AsyncIterator[OpenVolume]:
    """Two files of one machine, published."""
    async with swarm.opened(0) as (one,):
        for name in ("d/a", "d/b"):
            await write(one.view(), name, f"of {name}")
        await one.view().sync()
        yield one


async def examine(volume: OpenVolume, prefix: str = "", name: str = NAME) -> Seen:
    return await Examiner(volume.blocks, volume.cluster, name, prefix=prefix, connect=None, timeout_s=1).examine()


def found(seen: Seen) -> list[tuple[str, str]]:
    return sorted((one.kind, one.key) for one in seen.findings)


BLOCK = raw_cid(b"of d/a")


async def test_a_sound_volume_is_clean_and_counted(volume: OpenVolume) -> None:
    seen = await examine(volume)
    assert seen == Seen(writers=1, names=2, blocks=2, bytes=12, blocks_here=2, segments=1, commits=1)
    assert report(seen)[-1].split() == ["result", "clean"]


async def test_a_block_that_is_nowhere_is_a_problem_of_its_file(swarm: Swarm, volume: OpenVolume) -> None:
    for node in swarm.network.nodes:
        node.blocks.pop(BLOCK, None)
    seen = await examine(volume)
    assert found(seen) == [("block", "d/a")]
    assert seen.blocks == 2
    assert any(line.startswith("problem") and text(BLOCK) in line and "d/a" in line for line in report(seen))
    assert values(seen)["findings"][0]["key"] == "d/a"
    assert found(await examine(volume, prefix="d/b")) == []


async def test_a_damaged_block_is_a_problem(swarm: Swarm, volume: OpenVolume) -> None:
    for node in swarm.network.nodes:
        node.blocks[BLOCK] = b"of d/x"
    (finding,) = (await examine(volume)).findings
    assert (finding.kind, finding.key) == ("block", "d/a")
    assert "repo verify" in finding.meaning


async def test_what_no_pin_holds_is_a_problem(volume: OpenVolume) -> None:
    (segment,) = volume.parts.segments.all
    await volume.cluster.unpin(segment, timeout_s=1)
    assert found(await examine(volume)) == [("pin", "d/a"), ("pin", "d/b")]
    published = volume.parts.publisher.published
    assert published is not None
    await volume.cluster.unpin(published.commit, timeout_s=1)
    assert ("pin", volume.parts.volume.writer) in found(await examine(volume))


async def test_a_head_that_cannot_be_read_is_a_problem_of_its_writer(swarm: Swarm, volume: OpenVolume) -> None:
    published = volume.parts.publisher.published
    assert published is not None
    for node in swarm.network.nodes:
        node.blocks.pop(published.commit, None)
    assert ("head", volume.parts.volume.writer) in found(await examine(volume))


async def test_what_a_second_look_does_not_confirm_is_no_problem(
    volume: OpenVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = volume.blocks.get
    asked: set[Cid] = set()

    async def get_the_second_time(cid: Cid, *, timeout_s: float) -> bytes:
        if cid == BLOCK and cid not in asked:
            asked.add(cid)
            raise Unavailable("is just on its way")
        return await get(cid, timeout_s=timeout_s)

    monkeypatch.setattr(volume.blocks, "get", get_the_second_time)
    seen = await examine(volume)
    assert seen.findings == []


async def test_segments_that_nobody_needs_or_owns_are_counted(swarm: Swarm, volume: OpenVolume) -> None:
    await write(volume.view(), "d/c", "alone")
    await volume.view().sync()
    await volume.view().delete("d/c")
    await volume.view().sync()
    async with swarm.opened(1) as (other,):
        await write(other.view(), "e", "of another")
        await other.view().sync()
        seen = await examine(volume)
        assert (seen.segments, seen.segments_spare, seen.segments_ownerless) == (3, 1, 0)
        await Collector(volume).retire(other.parts.volume.writer)
        seen = await examine(volume)
        assert (seen.writers, seen.segments_ownerless) == (1, 1)
    assert "1 of writers that were retired" in "\n".join(report(seen))


async def test_a_volume_that_nobody_published_is_not_found(volume: OpenVolume) -> None:
    with pytest.raises(NotFound):
        await examine(volume, name="nothing")


def test_a_line_of_the_report_stays_a_line() -> None:
    seen = Seen(findings=[Finding("block", "a\nb", "is gone", "look again", "x")])
    assert report(seen)[0] == "problem      a\\nb: is gone; look again"
