"""Loading: a sequential reader of bytes on the own disk, which the page cache has forgotten, is served from memory."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3vol.cache.bodies import Shelf
from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.cache.direct import DirectReader
from s3vol.cache.loader import Loader
from s3vol.types import KIB, MIB
from tests.cache.rig import Rig, content_of

SIZE = 21 * MIB + 777
BODY = random.Random(5).randbytes(SIZE)


def forget_pages(cache: ChunkCache, content: CachedContent) -> None:
    """The page cache drops the data file."""
    fd = os.open(cache.parts.directory.path / "data" / f"{content.id:x}", os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@asynccontextmanager
async def cold(rig: Rig) -> AsyncIterator[tuple[ChunkCache, CachedContent]]:
    """A content that is on the disk whole, and nowhere else here."""
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.parts.fetcher.ensure(content, 0, SIZE)
        forget_pages(cache, content)
        yield cache, content


class Reads:
    """The direct reads; each waits for `go_on` before it begins, if `hold` was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int]] = []
        self.begun = threading.Event()
        self._go = threading.Event()
        self._go.set()
        read = DirectReader.read

        def noted(own: DirectReader, fd: int, place: memoryview, offset: int) -> bool:
            self.seen.append((offset, offset + len(place)))
            self.begun.set()
            if not self._go.wait(20):
                raise TimeoutError("the test has forgotten the thread")
            return read(own, fd, place, offset)

        monkeypatch.setattr(DirectReader, "read", noted)

    def hold(self) -> None:
        self._go.clear()

    def go_on(self) -> None:
        self._go.set()

    async def has_begun(self) -> None:
        assert await trio.to_thread.run_sync(self.begun.wait, 20)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    made = Reads(monkeypatch)
    yield made
    made.go_on()


@pytest.mark.parametrize("step", [MIB, 128 * KIB, 300_001])
async def test_a_sequential_reader_has_every_byte_right_and_the_disk_is_read_in_long_runs(
    rig: Rig, reads: Reads, step: int
) -> None:
    async with cold(rig) as (cache, content):
        got = bytearray()
        while piece := await cache.read(content, len(got), step):
            got += piece
        assert got == BODY
        assert sum(end - start for start, end in reads.seen) > SIZE - 3 * MIB
        assert len(reads.seen) < 8
        assert rig.health.counts["fetched_bytes"] == SIZE


async def test_a_random_reader_and_one_who_finds_the_page_cache_warm_load_nothing(rig: Rig, reads: Reads) -> None:
    async with cold(rig) as (cache, content):
        for at in (13, 5, 17, 9, 3, 0):
            for page in (0, 40, 20):  # within the slack of a stream
                place = at * MIB + page * 4096
                assert bytes(await cache.read(content, place, 4096)) == BODY[place : place + 4096]
        await cache.parts.files.read(content.id, 0, SIZE)
        assert await content_of(cache, content) == BODY
        assert not reads.seen


async def test_a_reader_waits_for_what_is_being_loaded_and_does_not_read_it_twice(rig: Rig, reads: Reads) -> None:
    async with cold(rig) as (cache, content):
        reads.hold()
        await cache.read(content, 0, MIB)
        await reads.has_begun()
        got: list[bytes] = []

        async def read_on() -> None:
            got.append(bytes(await cache.read(content, MIB, 4096)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            reads.go_on()
        assert got == [BODY[MIB:][:4096]]
        assert cache.parts.files.read_now(content.id, MIB, 4096) is None


async def test_a_write_while_its_range_is_loaded_is_what_readers_see(rig: Rig, reads: Reads) -> None:
    async with cold(rig) as (cache, content):
        reads.hold()
        await cache.read(content, 0, MIB)
        await reads.has_begun()
        await cache.write(content, MIB + 5, b"written meanwhile")
        reads.go_on()
        model = bytearray(BODY)
        model[MIB + 5 : MIB + 22] = b"written meanwhile"
        assert await content_of(cache, content) == model


async def test_what_was_evicted_while_it_was_loaded_is_fetched(rig: Rig, reads: Reads) -> None:
    async with cold(rig) as (cache, content):
        reads.hold()
        await cache.read(content, 0, MIB)
        await reads.has_begun()
        await cache.parts.space.evict(1 << 40)
        assert not content.present
        reads.go_on()
        assert await content_of(cache, content) == BODY


async def test_two_readers_at_one_place_load_it_once(rig: Rig, reads: Reads) -> None:
    async with cold(rig) as (cache, content):
        reads.hold()
        loader = Loader(cache.parts.files, cache.parts.budget, Shelf(64 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loader.load, content, 0, 4 * MIB)
            await reads.has_begun()
            await loader.load(content, 0, 4 * MIB)
            await loader.load(content, MIB, 4 * MIB)
            reads.go_on()
        assert reads.seen == [(0, 4 * MIB)]
        await loader.load(content, MIB, 2 * MIB)
        assert len(reads.seen) == 1


PLACE = st.one_of(st.sampled_from([0, 4095, MIB, 3 * MIB + 1]), st.integers(0, 9 * MIB))
STEP = st.one_of(
    st.tuples(st.just("walk"), PLACE),
    st.tuples(st.sampled_from(["walk", "begin"]), st.just(0)),
    st.tuples(st.just("write"), PLACE),
    st.tuples(st.just("truncate"), PLACE),
    st.tuples(st.sampled_from(["forget", "evict", "publish", "wait"]), st.just(0)),
)


async def play(steps: list[tuple[str, int]], folder: Path) -> None:
    rig = Rig(folder / "cache")
    model = bytearray(BODY[: 8 * MIB + 99])
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", bytes(model)))
        for number, (name, at) in enumerate(steps):
            match name:
                case "walk" | "begin":
                    last = len(model) if name == "walk" else MIB
                    for place in range(at, last, 700 * KIB):
                        got = bytes(await cache.read(content, place, 700 * KIB))
                        assert got == model[place : place + 700 * KIB]
                case "write":
                    await cache.write(content, at, b"%05d" % number)
                    model.extend(bytes(max(0, at + 5 - len(model))))
                    model[at : at + 5] = b"%05d" % number
                case "truncate":
                    await cache.truncate(content, at)
                    del model[at:]
                    model.extend(bytes(at - len(model)))
                case "forget":
                    if cache.parts.files.exists(content.id):
                        forget_pages(cache, content)
                case "evict":
                    await cache.parts.space.evict(1 << 40)
                case "publish":
                    await cache.publish(content)
                case _:
                    while (loading := content.loading_in(0, content.size)) is not None:
                        await loading.wait()
        assert await content_of(cache, content) == model


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(STEP, max_size=15))
def test_whatever_is_done_while_bytes_are_loaded_readers_see_what_a_bytearray_holds(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play, [("walk", 0), ("forget", 0), ("begin", 0), ("wait", 0), *steps], Path(folder))


async def test_a_content_may_be_forgotten_while_it_is_loaded(rig: Rig, reads: Reads) -> None:
    async with cold(rig) as (cache, content):
        reads.hold()
        await cache.read(content, 0, MIB)
        await reads.has_begun()
        await cache.discard(content)
        cache.release(content)
        reads.go_on()
        with trio.fail_after(10):
            while content.loading:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert not content.bodies
        assert cache.status().used_bytes == 0


_open: Callable[..., int] = os.open


def _no_direct(path: str | int, flags: int, *rest: object, **more: object) -> int:
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "no O_DIRECT here")
    return _open(path, flags, *rest, **more)


async def test_a_disk_without_direct_reads_is_read_the_ordinary_way(
    rig: Rig, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cold(rig) as (cache, content):
        monkeypatch.setattr(os, "open", _no_direct)
        assert await content_of(cache, content) == BODY
        assert len(reads.seen) <= 4  # those that had begun when the first one failed


async def test_a_disk_that_fails_in_a_load_costs_no_reader(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(own: DirectReader, fd: int, place: memoryview, offset: int) -> bool:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(DirectReader, "read", fail)
    async with cold(rig) as (cache, content):
        assert await content_of(cache, content) == BODY
        assert rig.health.counts["prefetch_failed"]
