"""Fetching: once per chunk, under If-Match, never over what was written meanwhile."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.cache.extents import Range
from s3vol.errors import Corrupt, NoSpace, PreconditionFailed, Unavailable
from s3vol.types import KIB, MIB
from tests.cache.rig import META, Rig, content_of


async def test_the_same_version_attached_twice_is_the_same_content(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        info = await rig.put("f", b"x")
        assert cache.attach(info) is cache.attach(info)
        assert cache.attach(await rig.put("f", b"y")) is not cache.attach(info)


async def test_readers_of_one_chunk_share_one_request(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        for _ in range(20):
            nursery.start_soon(cache.read, content, 0, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.faults.calls["get"] == 1


async def test_a_cancelled_reader_leaves_its_chunk_to_the_next(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        gate = rig.faults.hold("get")
        async with trio.open_nursery() as others, trio.open_nursery() as nursery:
            nursery.start_soon(cache.read, content, 0, 10)
            await gate.entered.wait()
            others.start_soon(cache.read, content, 0, 10)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not content.fetching
        assert bytes(await cache.read(content, 5, 3)) == b"xxx"
        assert cache.status().in_flight_bytes == 0


async def test_each_reader_gets_the_error_of_its_own_request(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        rig.faults.fail_next("get")
        with pytest.raises(Unavailable):
            await cache.read(content, 0, 10)
        assert bytes(await cache.read(content, 0, 1)) == b"x"


async def test_bytes_that_came_with_the_proof_are_kept_and_not_asked_for_again(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        info = await rig.put("f", b"content")
        assert not cache.holds("f", info.version, 7)
        content = cache.attach(info)
        await cache.fill(content, b"content")
        assert cache.holds("f", info.version, 7)
        assert bytes(await cache.read(content, 0, 10)) == b"content"
        assert rig.faults.calls["get"] == 0


async def test_bytes_that_came_with_the_proof_never_cover_what_was_written_since(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"content"))
        await cache.write(content, 2, b"NEW")
        await cache.fill(content, b"content")
        assert bytes(await cache.read(content, 0, 10)) == b"coNEWnt"


async def test_a_disk_without_room_does_not_stop_an_open(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"content"))

        async def full(need_bytes: int) -> None:
            raise NoSpace("no room")

        monkeypatch.setattr(cache.parts.space, "make_room", full)
        await cache.fill(content, b"content")
        assert bytes(await cache.read(content, 0, 10)) == b"content"


async def test_what_is_written_while_a_fetch_is_under_way_stays(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.attach(await rig.put("f", b"old " * 1000))
        gate = rig.faults.hold_reply("get")
        nursery.start_soon(cache.read, content, 0, 10)
        await gate.entered.wait()
        await cache.write(content, 4, b"NEW!")
        await cache.truncate(content, 100)
        await cache.truncate(content, 200)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert await content_of(cache, content) == b"old NEW!" + b"old " * 23 + bytes(100)


async def test_a_fetch_that_a_publish_overtook_is_thrown_away(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.attach(await rig.put("f", b"old " * 1000))
        gate = rig.faults.hold_reply("get")
        nursery.start_soon(cache.read, content, 0, 10)
        await gate.entered.wait()
        await cache.write(content, 0, b"NEW!" * 1000)
        await cache.publish(content)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert await content_of(cache, content) == b"NEW!" * 1000


@pytest.mark.parametrize(
    ("serve", "place", "length", "asks"),
    [(False, 30 * MIB, 10, 1), (True, 30 * MIB, 10, 1), (True, 0, 10, 1), (True, 0, 64 * KIB, 2)],
)
async def test_a_reader_that_meets_the_new_object_before_the_reply_waits_for_the_publish(
    rig: Rig, serve: bool, place: int, length: int, asks: int
) -> None:
    async with rig.cache(serve=serve) as cache:
        content = cache.attach(await rig.put("f", b"x" * (40 * MIB)))
        await cache.write(content, 30 * MIB - place, b"new")
        gate = rig.faults.hold_reply("complete_upload")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            before = rig.faults.calls["get"]
            nursery.start_soon(cache.read, content, place, length)
            await trio.testing.wait_all_tasks_blocked(0.05)
            asked = rig.faults.calls["get"] - before
            gate.open()
        assert asked == asks, "the reader's own request, and that of his readahead at the beginning of the file"
        assert bytes(await cache.read(content, place, length)) == b"x" * length


async def test_waiting_readers_do_not_keep_the_budget_that_the_publisher_needs(rig: Rig) -> None:
    rig.limit(memory_bytes=8 * MIB, downloads=2)
    async with rig.cache(serve=False) as cache:
        await rig.put("f", b"x" * (40 * MIB))
        content = cache.attach(await rig.other.head("f"))
        await cache.write(content, 0, b"new")
        await cache.write(content, 39 * MIB, b"new")
        gate = rig.faults.hold("upload_part")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            rig.faults.fail_next("get", PreconditionFailed("f: replaced"), times=3)
            for at in (10, 11, 12):
                nursery.start_soon(cache.read, content, at * MIB, 10)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not content.fetching
            gate.open()
        assert rig.body("f") == b"new" + b"x" * (39 * MIB - 3) + b"new" + b"x" * (MIB - 3)


async def test_a_version_that_is_gone_is_said_and_cached_bytes_are_still_served(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * (3 * MIB)))
        await cache.read(content, 0, 10)
        await rig.put("f", b"y" * (3 * MIB))
        assert bytes(await cache.read(content, MIB - 10, 10)) == b"x" * 10
        with pytest.raises(PreconditionFailed, match="gone from the bucket"):
            await cache.read(content, MIB - 10, 20)
        await rig.other.delete("f")
        with pytest.raises(PreconditionFailed):
            await cache.read(content, 2 * MIB, 20)


async def test_short_data_under_the_same_etag_is_corrupt(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        rig.faults.truncate_get_bytes = 1000
        with pytest.raises(Corrupt, match="1000 bytes"):
            await cache.read(content, 0, 10)
        assert await content_of(cache, content) == b"x" * MIB


async def test_a_read_waits_no_longer_than_the_timeout(rig: Rig, jumping_clock: trio.testing.MockClock) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        rig.faults.hold("get")
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await cache.read(content, 0, 10)
        assert trio.current_time() - began >= 59
        assert bytes(await cache.read(content, 0, 1)) == b"x"


async def test_cached_bytes_are_read_and_written_while_the_endpoint_is_down(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        await cache.read(content, 0, 10)
        rig.faults.down = True
        await cache.write(content, 5, b"local")
        assert bytes(await cache.read(content, 0, 12)) == b"xxxxxlocalxx"


async def test_a_write_needs_no_fetch_and_is_read_back_at_once(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * (10 * MIB)))
        await cache.write(content, 5 * MIB + 7, b"new")
        assert rig.faults.calls["get"] == 0
        assert bytes(await cache.read(content, 5 * MIB + 7, 3)) == b"new"
        assert rig.faults.calls["get"] == 0
        assert bytes(await cache.read(content, 5 * MIB + 5, 7)) == b"xxnewxx"
        assert rig.faults.calls["get"] == 1


async def test_a_sequential_reader_finds_the_bytes_there_before_it_asks(rig: Rig) -> None:
    body = bytes(range(256)) * 4096 * 24
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", body))
        waited = 0
        for at in range(0, len(body), 128 * KIB):
            waited += not content.present.covers(at, at + 128 * KIB)
            assert bytes(await cache.read(content, at, 128 * KIB)) == body[at : at + 128 * KIB]
            await trio.testing.wait_all_tasks_blocked()
            while content.fetching:  # the reader is slower than the fetches
                await next(iter(content.fetching.values())).wait()
        assert waited == 1
        assert rig.health.counts["fetched_bytes"] == len(body)
        assert rig.faults.calls["get"] < 12


async def test_a_failed_prefetch_is_nobodys_error(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", b"x" * (8 * MIB)))
        await cache.read(content, 0, 64 * KIB)
        await trio.testing.wait_all_tasks_blocked(0.01)
        rig.faults.down = True
        await cache.read(content, 64 * KIB, 64 * KIB)
        await cache.read(content, MIB, 4096)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.health.counts["prefetch_failed"] >= 1
        rig.faults.down = False
        assert await content_of(cache, content) == b"x" * (8 * MIB)


async def test_bytes_that_are_evicted_while_a_thread_reads_them_are_fetched_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * MIB))
        await cache.read(content, 0, 10)
        files = cache.parts.files
        real = files.read

        async def slow(content_id: int, start: int, length: int, around: Range | None = None) -> bytearray:
            if rig.faults.calls["get"] == 1:
                await cache.parts.space.evict(1 << 40)
            return await real(content_id, start, length, around)

        monkeypatch.setattr(type(files), "read_now", lambda *_: None)
        monkeypatch.setattr(files, "read", slow)
        assert bytes(await cache.read(content, 0, 10)) == b"x" * 10


async def test_a_released_clean_content_is_cache_and_found_again(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        info = await rig.put("f", b"x" * MIB)
        content = cache.attach(info)
        await cache.read(content, 0, 10)
        cache.release(content)
        again = cache.attach(info)
        assert again is content
        assert cache.is_local(again)
        cache.release(again)
        untouched = cache.attach(await rig.put("g", b"y"))
        cache.release(untouched)
        assert untouched.dropped
        with pytest.raises(ValueError, match="released more often"):
            cache.release(untouched)


async def test_holes_count_for_size_but_not_for_blocks(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.truncate(content, 10 * MIB)
        assert content.blocks_bytes == 0
        await cache.write(content, 5 * MIB, b"x" * 4096)
        assert (content.size, content.blocks_bytes) == (10 * MIB, 4096)
        assert content.state is State.DIRTY
        await cache.publish(content)
        assert content.blocks_bytes == 10 * MIB
