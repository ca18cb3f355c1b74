"""Landing: what readahead brought is served from memory while a thread puts it on the disk, past the page cache."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from s3vol.cache.bodies import Body, ContentBodies, Shelf
from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.cache.direct import DirectWriter
from s3vol.errors import PreconditionFailed
from s3vol.types import KIB, MIB
from tests.cache.rig import Rig, content_of

SIZE = 12 * MIB + 777
BODY = random.Random(7).randbytes(SIZE)
WINDOW = (MIB, 9 * MIB)  # one run of readahead


class Thread:
    """The thread that writes: stopped before it begins, until `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self._go = threading.Event()
        write = DirectWriter.write

        def gated(own: DirectWriter, fd: int, pieces: Sequence[tuple[int, memoryview]]) -> None:
            self.begun.set()
            if not self._go.wait(20):
                raise TimeoutError("the test has forgotten the thread")
            write(own, fd, pieces)

        monkeypatch.setattr(DirectWriter, "write", gated)

    async def has_begun(self) -> None:
        assert await trio.to_thread.run_sync(self.begun.wait, 20)

    def go_on(self) -> None:
        self._go.set()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[Thread]:
    """Nothing lands before the test says so."""
    made = Thread(monkeypatch)
    yield made
    made.go_on()


async def prefetch(cache: ChunkCache, content: CachedContent) -> None:
    """As readahead does it."""
    await cache.parts.fetcher.ensure(content, *WINDOW, landing=True)


async def on_disk(cache: ChunkCache, content: CachedContent, start: int, end: int) -> bytes:
    """What the data file holds, whatever is in memory."""
    return bytes(await cache.parts.files.read(content.id, start, end - start))


@contextmanager
def dropped_pages(cache: ChunkCache, content: CachedContent) -> Iterator[None]:
    """The page cache forgets the data file: what is read then is what the disk has."""
    path = cache.parts.directory.path / "data" / f"{content.id:x}"
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    yield


async def test_readers_are_served_from_memory_before_the_disk_has_the_bytes(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.attach(await rig.put("f", BODY))
        nursery.start_soon(prefetch, cache, content)
        await thread.has_begun()
        for at in range(WINDOW[0], WINDOW[1] - MIB, 300 * KIB):
            assert bytes(await cache.read(content, at, 300 * KIB)) == BODY[at : at + 300 * KIB]
        assert rig.faults.calls["get"] == 1
        assert not content.present
        thread.go_on()


async def test_what_has_landed_is_on_the_disk(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.parts.fetcher.ensure(content, 0, SIZE, landing=True)
        assert content.present.covers(0, SIZE)
        with dropped_pages(cache, content):
            assert await on_disk(cache, content, 0, SIZE) == BODY
        assert cache.status().used_bytes >= SIZE
        assert not content.landing
        assert not content.fetching


async def test_gaps_that_begin_and_end_inside_of_pages_are_filled_to_the_byte(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        model = bytearray(BODY)
        for at, length in ((2 * MIB - 1, 3), (3 * MIB + 4095, 2), (4 * MIB, 4096), (5 * MIB + 100, 50), (SIZE - 5, 5)):
            await cache.write(content, at, b"w" * length)
            model[at : at + length] = b"w" * length
        await cache.parts.fetcher.ensure(content, 0, SIZE, landing=True)
        with dropped_pages(cache, content):
            assert await on_disk(cache, content, 0, SIZE) == model
        assert await content_of(cache, content) == model


async def test_a_write_waits_for_the_thread_and_then_stays(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await thread.has_begun()
            nursery.start_soon(cache.write, content, 4 * MIB + 17, b"mine")
            await cache.write(content, 11 * MIB, b"elsewhere")  # nothing lands there: no reason to wait
            await trio.testing.wait_all_tasks_blocked()
            assert not content.dirty.touches(*WINDOW)
            thread.go_on()
        model = bytearray(BODY)
        model[4 * MIB + 17 : 4 * MIB + 21] = b"mine"
        model[11 * MIB : 11 * MIB + 9] = b"elsewhere"
        assert await content_of(cache, content) == model
        await cache.publish(content)
        assert rig.body("f") == model


async def test_a_truncate_waits_for_the_thread_and_what_it_cut_stays_cut(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await thread.has_begun()
            nursery.start_soon(cache.truncate, content, 3 * MIB + 5)
            await trio.testing.wait_all_tasks_blocked()
            assert content.size == SIZE
            thread.go_on()
        assert content.size == 3 * MIB + 5
        await cache.truncate(content, 8 * MIB)
        assert await content_of(cache, content) == BODY[: 3 * MIB + 5] + bytes(5 * MIB - 5)


async def test_a_write_before_the_thread_begins_is_not_overwritten_and_not_hidden_by_memory(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        gate = rig.faults.hold_reply("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await gate.entered.wait()
            await cache.write(content, 2 * MIB + 1, b"first")
            gate.open()
        assert (
            bytes(await cache.read(content, 2 * MIB, 8))
            == BODY[2 * MIB : 2 * MIB + 1] + b"first" + BODY[2 * MIB + 6 :][:2]
        )
        await cache.write(content, 6 * MIB, b"second")
        assert bytes(await cache.read(content, 6 * MIB, 6)) == b"second"


async def test_what_a_publish_overtook_is_thrown_away_and_fetched_anew(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.write(content, 0, b"new")
        await cache.sync(content)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await thread.has_begun()
            content.rebase((await rig.put("f", b"new" + BODY[3:])).version)
            assert not content.bodies
            thread.go_on()
        assert rig.faults.calls["get"] == 2
        assert cache.status().used_bytes <= 8 * MIB + 64 * KIB
        assert await content_of(cache, content) == b"new" + BODY[3:]


async def test_a_content_may_be_forgotten_while_it_lands(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await thread.has_begun()
            await cache.discard(content)
            cache.release(content)
            assert content.dropped
            thread.go_on()
        assert cache.status().used_bytes == 0


async def test_a_cancelled_readahead_leaves_a_file_that_can_be_read_and_written(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await thread.has_begun()
            nursery.cancel_scope.cancel()
            thread.go_on()
        assert not content.landing
        assert not content.fetching
        assert cache.status().in_flight_bytes == 0
        await cache.write(content, 5 * MIB, b"mine")
        assert await content_of(cache, content) == BODY[: 5 * MIB] + b"mine" + BODY[5 * MIB + 4 :]


def _no_direct(path: str | int, flags: int, *rest: object, **more: object) -> int:
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "no O_DIRECT here")
    return _open(path, flags, *rest, **more)


_open: Callable[..., int] = os.open


async def test_a_disk_without_direct_writes_takes_the_ordinary_way(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", _no_direct)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.parts.fetcher.ensure(content, 0, SIZE, landing=True)
        with dropped_pages(cache, content):
            assert await on_disk(cache, content, 0, SIZE) == BODY


async def test_a_disk_that_fails_costs_readahead_and_no_reader(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(own: DirectWriter, fd: int, pieces: Sequence[tuple[int, memoryview]]) -> None:
        raise OSError(errno.EIO, "bad sector")

    write = DirectWriter.write
    monkeypatch.setattr(DirectWriter, "write", fail)
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY))
        assert await content_of(cache, content) == BODY
        with trio.fail_after(20):
            while not rig.health.counts.get("prefetch_failed"):
                await trio.testing.wait_all_tasks_blocked(0.05)
        monkeypatch.setattr(DirectWriter, "write", write)
        assert await content_of(cache, content) == BODY


async def test_the_first_bytes_of_a_sequential_reader_do_not_wait_for_the_disk_either(rig: Rig, thread: Thread) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY[:MIB]))
        with trio.fail_after(10):
            assert bytes(await cache.read(content, 0, 128 * KIB)) == BODY[: 128 * KIB]
        await thread.has_begun()
        assert not content.present
        thread.go_on()
        await cache.parts.fetcher.ensure(content, 0, MIB)
        with dropped_pages(cache, content):
            assert await on_disk(cache, content, 0, MIB) == BODY[:MIB]
        assert rig.faults.calls["get"] == 1


async def test_nor_when_what_came_with_the_open_is_on_the_disk_already(rig: Rig, thread: Thread) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY[:MIB]))
        await cache.fill(content, BODY[: 64 * KIB])
        with trio.fail_after(10):
            assert bytes(await cache.read(content, 0, 512 * KIB)) == BODY[: 512 * KIB]
        await thread.has_begun()
        thread.go_on()
        await cache.parts.fetcher.ensure(content, 0, MIB)
        with dropped_pages(cache, content):
            assert await on_disk(cache, content, 0, MIB) == BODY[:MIB]


async def test_what_a_random_reader_fetched_is_in_the_page_cache(rig: Rig, thread: Thread) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY))
        assert bytes(await cache.read(content, 5 * MIB + 7, 100)) == BODY[5 * MIB + 7 :][:100]
        assert content.present.covers(5 * MIB, 6 * MIB)
        assert not thread.begun.is_set()
        here = cache.parts.files.read_now(content.id, 5 * MIB, 10)
        assert here is not None
        assert bytes(here) == BODY[5 * MIB :][:10]


async def test_what_small_reads_in_order_need_is_in_the_page_cache(rig: Rig, thread: Thread) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY[: 3 * MIB]))
        for at in range(0, 2 * MIB, 4 * KIB):
            assert bytes(await cache.read(content, at, 4 * KIB)) == BODY[at : at + 4 * KIB]
        assert not thread.begun.is_set()
        assert cache.parts.files.read_now(content.id, 0, 2 * MIB) is not None


async def test_a_reader_whose_fetch_fails_is_told_why(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY))
        await rig.put("f", b"another version")
        with pytest.raises(PreconditionFailed, match="the version that is being read is gone"):
            await cache.read(content, 0, 10)


async def test_a_sequential_reader_has_every_byte_right_and_each_from_one_request(rig: Rig) -> None:
    body = random.Random(3).randbytes(70 * MIB + 5)
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", body))
        assert await content_of(cache, content) == body
        assert rig.health.counts["fetched_bytes"] == len(body)
        await cache.parts.fetcher.ensure(content, 0, len(body))
        with dropped_pages(cache, content):
            assert await on_disk(cache, content, 0, len(body)) == body


def test_bytes_of_two_bodies_are_put_together_and_a_hole_between_them_is_no_answer() -> None:
    bodies = ContentBodies()
    bodies.add(Body(0, memoryview(b"abcd")))
    bodies.add(Body(4, memoryview(b"efgh")))
    bodies.add(Body(9, memoryview(b"ijkl")))
    assert bodies.serve(2, 7) == b"cdefg"
    assert bodies.covers(0, 8)
    assert bodies.serve(7, 10) is None


def test_a_body_goes_when_all_of_it_was_served_or_its_bytes_have_changed() -> None:
    bodies = ContentBodies()
    bodies.add(Body(0, memoryview(b"abcd")))
    assert bodies.serve(0, 3) == b"abc"
    assert bodies.serve(3, 4) == b"d"
    assert not bodies
    bodies.add(Body(0, memoryview(b"abcd")))
    bodies.add(Body(10, memoryview(b"abcd")))
    bodies.drop(3, 10)
    assert bodies.serve(0, 1) is None
    assert bodies.serve(10, 11) == b"a"
    bodies.drop(5)
    assert not bodies


def test_the_shelf_gives_up_the_oldest_whoever_it_is_for() -> None:
    shelf, one, other = Shelf(10), ContentBodies(), ContentBodies()
    shelf.put(one, 0, memoryview(b"abcd"))
    shelf.put(other, 0, memoryview(b"efgh"))
    assert shelf.used_bytes == 8
    shelf.put(other, 4, memoryview(b"ijkl"))
    assert one.serve(0, 1) is None
    assert other.serve(0, 8) == b"efghijkl"
    assert shelf.used_bytes == 0
    shelf.put(one, 0, memoryview(bytes(11)))
    assert one.serve(0, 1) is None


async def test_memory_is_not_kept_for_a_run_of_which_only_some_bytes_were_missing(rig: Rig, thread: Thread) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        for at in range(*WINDOW, MIB):
            await cache.write(content, at, bytes(MIB - 4 * KIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, cache, content)
            await thread.has_begun()
            assert not content.bodies, "each slice of 4 KiB would hold all 8 MiB that were fetched"
            thread.go_on()
        assert bytes(await cache.read(content, 2 * MIB - 4 * KIB, 4 * KIB)) == BODY[2 * MIB - 4 * KIB : 2 * MIB]
