"""Limits: disk, dirty cap, ages, memory. A write is accepted whole, or refused before anything happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.errors import NoSpace, Unavailable
from s3vol.types import KIB, MIB
from tests.cache.rig import META, Rig, content_of

BLOCK = b"\xa5" * MIB


async def test_clean_chunks_make_room_those_of_open_files_included(rig: Rig) -> None:
    rig.limit(size_bytes=8 * MIB, readahead_max_bytes=0)
    body = b"".join(bytes([at]) * MIB for at in range(20))
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", body))
        for _ in range(2):
            assert await content_of(cache, content) == body
            assert cache.status().used_bytes <= 8 * MIB + 64 * KIB
        assert rig.health.counts["evicted_bytes"] >= 20 * MIB


async def test_dirty_data_is_never_evicted(rig: Rig) -> None:
    rig.limit(size_bytes=8 * MIB)
    async with rig.cache(serve=False) as cache:
        mine = cache.create("mine", META)
        for at in range(4):
            await cache.write(mine, at * MIB, BLOCK)
        content = cache.attach(await rig.put("f", b"x" * (20 * MIB)))
        assert await content_of(cache, content) == b"x" * (20 * MIB)
        assert await content_of(cache, mine) == BLOCK * 4
        assert mine.dirty.total == 4 * MIB


async def test_a_full_cache_refuses_a_write_and_accepts_nothing_of_it(rig: Rig) -> None:
    rig.limit(size_bytes=4 * MIB)
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        for at in range(4):
            await cache.write(content, at * MIB, BLOCK)
        with pytest.raises(NoSpace, match="nothing can be evicted"):
            await cache.write(content, 4 * MIB - 10, b"y" * 20)
        assert content.size == 4 * MIB
        assert await content_of(cache, content) == BLOCK * 4
        await cache.write(content, 0, b"in place")
        await cache.publish(content)
        assert rig.body("f") == b"in place" + (BLOCK * 4)[8:]


async def test_a_full_cache_waits_for_what_can_be_published(rig: Rig) -> None:
    rig.limit(size_bytes=4 * MIB)
    async with rig.cache() as cache:
        content = cache.create("f", META)
        for at in range(16):
            await cache.write(content, at * MIB, BLOCK)
        await cache.publish(content)
        assert await content_of(cache, content) == BLOCK * 16
        assert rig.body("f") == BLOCK * 16


async def test_a_file_that_does_not_fit_into_the_cache_at_once_is_published(rig: Rig) -> None:
    rig.limit(size_bytes=8 * MIB, readahead_max_bytes=0)
    body = b"".join(bytes([at]) * MIB for at in range(12))
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", body))
        for at in range(4):
            await cache.read(content, at * MIB, MIB)
            await cache.write(content, (8 + at) * MIB, BLOCK)
        with trio.fail_after(60):
            await cache.publish(content)
        assert rig.body("f") == body[: 8 * MIB] + BLOCK * 4
        assert rig.health.counts["fetched_bytes"] <= 4 * len(body)


async def test_the_floor_of_free_space_is_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.limit(free_floor_bytes=10 * MIB)
    async with rig.cache(serve=False) as cache:
        monkeypatch.setattr(cache.parts.directory, "free_bytes", lambda: 10 * MIB + 4)
        content = cache.create("f", META)
        with pytest.raises(NoSpace):
            await cache.write(content, 0, b"12345")
        assert content.size == 0
        await cache.write(content, 0, b"1234")


async def test_readers_are_served_although_the_disk_is_full(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.limit(free_floor_bytes=10 * MIB)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"abc" * MIB))
        await cache.write(content, 1, b"XYZ")
        monkeypatch.setattr(cache.parts.directory, "free_bytes", lambda: 0)
        assert bytes(await cache.read(content, 0, 6)) == b"aXYZbc"
        assert bytes(await cache.read(content, 2 * MIB, 3)) == (b"abc" * MIB)[2 * MIB : 2 * MIB + 3]
        assert content.present.total == 3
        await cache.publish(content)
        assert rig.body("f") == b"aXYZ" + (b"abc" * MIB)[4:]


async def test_a_hole_that_is_filled_while_it_is_read_is_not_taken_for_bytes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.limit(free_floor_bytes=10 * MIB, readahead_max_bytes=0)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"abc" * MIB))
        await cache.write(content, 2 * MIB, b"X")  # the data file is there, and a hole at its begin
        files = cache.parts.files
        read, free_bytes = files.read, cache.parts.directory.free_bytes

        async def slow(content_id: int, start: int, length: int) -> bytearray:
            found = await read(content_id, start, length)
            monkeypatch.setattr(files, "read", read)
            monkeypatch.setattr(files, "read_now", read_now)
            monkeypatch.setattr(cache.parts.directory, "free_bytes", free_bytes)
            assert bytes(await cache.read(content, 0, 3)) == b"abc"
            assert content.present.covers(0, MIB)
            return found

        read_now = files.read_now
        monkeypatch.setattr(files, "read", slow)
        monkeypatch.setattr(files, "read_now", lambda *_: None)  # "would block"
        monkeypatch.setattr(cache.parts.directory, "free_bytes", lambda: 0)
        assert bytes(await cache.read(content, 0, 3)) == b"abc"


@pytest.mark.parametrize("step", ["reserve", "write"])
async def test_a_disk_that_is_suddenly_full_leaves_the_old_bytes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"old bytes" * 1000))
        await content_of(cache, content)
        real: Callable[[int, int, bytes], None] = cache.parts.files.write

        def torn(content_id: int, start: int, data: bytes) -> None:
            real(content_id, start, data[:5])
            raise NoSpace("cache disk, write: No space left on device")

        def full(content_id: int, start: int, length: int) -> None:
            raise NoSpace("cache disk, reserve: No space left on device")

        monkeypatch.setattr(cache.parts.files, step, full if step == "reserve" else torn)
        with pytest.raises(NoSpace):
            await cache.write(content, 0 if step == "reserve" else 20_000, b"NEW BYTES")
        monkeypatch.undo()
        assert await content_of(cache, content) == b"old bytes" * 1000
        assert content.state is State.CLEAN
        await cache.truncate(content, 30_000)
        assert await content_of(cache, content) == b"old bytes" * 1000 + bytes(21_000)


async def test_writers_wait_for_the_dirty_cap_and_the_oldest_file_is_published_first(rig: Rig) -> None:
    rig.limit(dirty_max_bytes=4 * MIB)
    async with rig.cache() as cache:
        contents = [cache.create(f"f{at}", META) for at in range(4)]
        for content in contents:
            await cache.write(content, 0, BLOCK)
        gate = rig.faults.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.write, contents[3], MIB, b"more")
            await gate.entered.wait()
            assert contents[3].size == MIB
            gate.open()
        assert rig.keys() == ["f0"]
        assert contents[3].size == MIB + 4
        assert rig.health.counts["writes_delayed"] == 1


async def test_a_cap_that_stays_full_is_an_error_after_the_timeout(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    rig.limit(dirty_max_bytes=MIB, timeout_s=5.0)
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, BLOCK)
        rig.faults.down = True
        with pytest.raises(Unavailable, match="unpublished"):
            await cache.write(content, MIB, b"more")
        assert content.size == MIB
        rig.faults.down = False
        await cache.publish(content)
        await cache.write(content, MIB, b"more")


async def test_old_dirty_data_is_forced_out_and_writers_wait_beyond_the_limit(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    rig.limit(dirty_age_s=100.0, timeout_s=20.0)
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await trio.sleep(49)
        assert rig.keys() == []
        await trio.sleep(3)
        assert rig.keys() == ["f"]
        assert content.state is State.CLEAN
        rig.faults.down = True
        await cache.write(content, 0, b"late")
        await trio.sleep(90)
        assert cache.status().oldest_dirty_s > 80
        await cache.write(content, 0, b"more")
        await trio.sleep(20)
        with pytest.raises(Unavailable):
            await cache.write(content, 0, b"nope")
        rig.faults.down = False
        await trio.sleep(61)
        assert rig.body("f") == b"more"
        assert len(rig.write_errors()) == 1, "one event for a series of failures"
        assert rig.health.counts["publish_retries"] > 2


async def test_data_that_nobody_synced_is_synced_in_time(rig: Rig, jumping_clock: trio.testing.MockClock) -> None:
    rig.limit(journal_age_s=5.0)
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await trio.sleep(4)
        assert content.saved_generation < content.generation
        await trio.sleep(2)
        assert content.saved_generation == content.generation


async def test_bodies_in_memory_stay_within_the_budget(rig: Rig) -> None:
    rig.limit(memory_bytes=16 * MIB)
    async with rig.cache() as cache:
        contents = [cache.attach(await rig.put(f"f{at}", b"x" * (20 * MIB))) for at in range(3)]
        high = 0

        async def read(at: int) -> None:
            nonlocal high
            while len(data := await cache.read(contents[at % 3], 0, 20 * MIB)) < 20 * MIB:
                pass
            assert data == b"x" * (20 * MIB)

        async def watch() -> None:
            nonlocal high
            while True:
                high = max(high, cache.status().in_flight_bytes)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as readers:
                for at in range(6):
                    readers.start_soon(read, at)
            nursery.cancel_scope.cancel()
        assert 0 < high <= 16 * MIB
        assert rig.health.counts["fetched_bytes"] == 60 * MIB, "each chunk once, although two read it"


async def test_a_large_file_that_is_streamed_is_not_published_again_and_again_by_the_cap(rig: Rig) -> None:
    rig.limit(dirty_max_bytes=96 * MIB)
    async with rig.cache() as cache:
        content = cache.create("big", META)
        for at in range(300):
            await cache.write(content, at * MIB, BLOCK)
            await trio.lowlevel.checkpoint()
        assert rig.faults.calls["complete_upload"] == 0
        await cache.publish(content)
        assert rig.body("big") == BLOCK * 300
        assert rig.faults.calls["copy_part"] == 0
        assert cache.parts.ledger.unsent_bytes == cache.status().dirty_bytes == 0
