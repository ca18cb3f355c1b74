"""Any order of operations against a bytearray: what is read, what is published, what a crash leaves."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3vol.cache.base import State
from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.errors import Unavailable
from s3vol.types import KIB, MIB
from tests.cache.rig import META, Rig, content_of, foreign

LIMIT = 3 * MIB
EDGES = st.sampled_from([0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB - 5, 2 * MIB])
OFFSET = st.one_of(EDGES, st.integers(0, LIMIT - 300 * KIB))
LENGTH = st.one_of(st.integers(1, 300), st.integers(1, 300 * KIB))
STEP = st.one_of(
    st.tuples(st.just("write"), OFFSET, LENGTH),
    st.tuples(st.just("truncate"), st.one_of(EDGES, st.integers(0, LIMIT)), st.just(0)),
    st.tuples(st.just("read"), OFFSET, LENGTH),
    st.tuples(
        st.sampled_from(["publish", "sync", "evict", "reopen", "describe", "record", "reattach", "fail"]),
        st.just(0),
        st.just(0),
    ),
)


@dataclass
class Player:
    """Plays steps on one file and on the model of it."""

    rig: Rig
    cache: ChunkCache
    content: CachedContent
    model: bytearray
    step: int = 0

    async def play(self, name: str, at: int, length: int) -> None:
        self.step += 1
        data = bytes((self.step + i) % 251 for i in range(length))
        match name:
            case "write":
                await self.cache.write(self.content, at, data)
                self.model.extend(bytes(max(0, at - len(self.model))))
                self.model[at : at + length] = data
            case "truncate":
                await self.cache.truncate(self.content, at)
                del self.model[at:]
                self.model.extend(bytes(at - len(self.model)))
            case "read":
                assert bytes(await self.cache.read(self.content, at, length)) == self.model[at : at + length]
            case "publish":
                await self.publish()
            case "sync":
                await self.cache.sync(self.content)
            case "describe":
                self.cache.set_metadata(self.content, {**META, "step": str(self.step)})
            case "evict":
                await evict_all(self.cache)
            case "record":
                record_clean(self.cache)
            case "fail":
                self.rig.faults.apply_then_fail("put")

    async def publish(self) -> None:
        version = None
        while version is None:
            try:
                version = await self.cache.publish(self.content)
            except Unavailable:
                self.rig.health.count("injected")
        if self.content.state is State.CLEAN and "f" in self.rig.bucket.objects:
            info = await self.rig.other.head("f")
            assert info.version == version
            assert self.rig.body("f") == self.model
            assert foreign(info.metadata) == self.content.metadata

    async def check(self) -> None:
        assert self.content.size == len(self.model)
        assert await content_of(self.cache, self.content) == self.model
        dirty = self.content.dirty
        assert all(self.content.present.covers(*part) for part in dirty)
        assert self.content.present.covers(self.content.base_limit, self.content.size)


async def evict_all(cache: ChunkCache) -> None:
    space = cache.parts.space
    while await space.evict(1 << 40):
        pass


def record_clean(cache: ChunkCache) -> None:
    cache.parts.writeback.record_filled()


async def play(steps: list[tuple[str, int, int]], folder: Path) -> None:
    rig = Rig(folder / "cache")
    model, queue = bytearray(), list(steps)
    while True:
        async with rig.cache(serve=False) as cache:
            content = await find(rig, cache, model)
            player = Player(rig, cache, content, model)
            while queue:
                name, at, length = queue.pop(0)
                if name == "reopen":
                    break
                if name == "reattach" and content.state is State.CLEAN and content.base:
                    cache.release(content)
                    content = player.content = cache.attach(await rig.other.head("f"))
                await player.play(name, at, length)
            await player.check()
            if not queue:
                await player.publish()
                await player.check()
                assert rig.body("f") == model
                return


async def find(rig: Rig, cache: ChunkCache, model: bytearray) -> CachedContent:
    content = cache.dirty("f")
    if content is not None:
        cache.refer(content)
        return content
    if "f" in rig.bucket.objects:
        return cache.attach(await rig.other.head("f"))
    assert not model
    return cache.create("f", META)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, max_size=25))
def test_any_order_of_operations_reads_and_publishes_what_a_bytearray_holds(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play, steps, Path(folder))


async def play_and_crash(steps: list[tuple[str, int, int]], folder: Path, power_failure: bool) -> None:
    rig = Rig(folder / "cache")
    async with rig.cache(serve=False) as cache:
        player = Player(rig, cache, cache.create("f", META), bytearray())
        for step in steps:
            if step[0] not in ("reopen", "reattach"):
                await player.play(*step)
        await cache.sync(player.content)
        published = player.content.state is State.CLEAN
        await cache.sync_notes()
        after = rig.crashed(folder / "after", power_failure=power_failure)
    async with after.cache(serve=False) as cache:
        survivor = cache.dirty("f")
        if survivor is None:
            assert published
            survivor = cache.attach(await rig.other.head("f"))
        assert await content_of(cache, survivor) == player.model
        await cache.publish(survivor)
        assert rig.body("f") == player.model


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, max_size=20), st.booleans())
def test_what_was_synced_survives_a_crash_and_is_published_after_it(
    steps: list[tuple[str, int, int]], power_failure: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play_and_crash, steps, Path(folder), power_failure)
