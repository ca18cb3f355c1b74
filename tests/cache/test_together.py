"""Many at once on one file: writers, readers, publishers, syncs, evictions and a bad network."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.errors import Unavailable
from s3vol.store.decorator import Operation
from s3vol.types import KIB, MIB
from tests.cache.rig import META, Rig, content_of

PUBLISHES = 8  # the writers go on until so many succeeded
SETTLE_S = 30.0
FAULTY: tuple[Operation, ...] = ("put", "get", "upload_part", "copy_part", "complete_upload", "create_upload", "head")


class Crowd:
    """Tasks on one content. They go on until the writers are done, each of which knows what is in its region."""

    def __init__(self, rig: Rig, cache: ChunkCache, content: CachedContent, body: bytes, seed: int) -> None:
        self.rig, self.cache, self.content = rig, cache, content
        self.model = bytearray(body)
        self.random = random.Random(seed)
        self.turn = trio.Event()  # the next time that somebody else did something

    async def writer(self, start: int, end: int) -> None:
        while self.rig.health.counts.get("published", 0) < PUBLISHES:
            at = self.random.randrange(start, end - 1)
            data = self.random.randbytes(self.random.randrange(1, min(300 * KIB, end - at) + 1))
            await self.cache.write(self.content, at, data)
            self.model[at : at + len(data)] = data
            await self.turn.wait()
            seen = self.random.randrange(start, end - 1)
            length = min(200 * KIB, end - seen)
            try:
                assert bytes(await self.cache.read(self.content, seen, length)) == self.model[seen : seen + length]
            except Unavailable:
                self.rig.health.count("injected")

    def did_something(self) -> None:
        self.turn.set()
        self.turn = trio.Event()

    async def publisher(self) -> None:
        while True:
            try:
                await self.cache.publish(self.content)
            except Unavailable:
                self.rig.health.count("injected")
            self.did_something()
            await trio.lowlevel.checkpoint()

    async def syncer(self) -> None:
        while True:
            await self.cache.sync(self.content)
            self.cache.parts.writeback.record_filled()
            self.did_something()
            await trio.lowlevel.checkpoint()

    async def sequential_reader(self) -> None:
        """Long runs land while others write into them; what is right is the writers' business."""
        while True:
            for at in range(0, self.content.size, MIB):
                try:
                    await self.cache.read(self.content, at, MIB)
                except Unavailable:
                    self.rig.health.count("injected")
                await trio.lowlevel.checkpoint()
            self.did_something()

    async def evictor(self) -> None:
        while True:
            await self.cache.parts.space.evict(self.random.randrange(8 * MIB))
            self.did_something()
            await trio.lowlevel.checkpoint()

    async def saboteur(self) -> None:
        """One call in four or so fails, before or after it is applied."""
        next_call = dict.fromkeys(FAULTY, 0)
        while True:
            for operation in FAULTY:
                if self.rig.faults.calls[operation] >= next_call[operation]:
                    next_call[operation] = self.rig.faults.calls[operation] + self.random.randrange(2, 7)
                    if self.random.random() < 0.5:
                        self.rig.faults.fail_next(operation)
                    else:
                        self.rig.faults.apply_then_fail(operation)
            await self.turn.wait()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mebibytes", [6, 40])
async def test_nothing_is_lost_or_mixed_up(rig: Rig, tmp_path: Path, mebibytes: int, seed: int) -> None:
    body = random.Random(seed).randbytes(mebibytes * MIB)
    async with rig.cache() as cache:
        if seed % 2:
            content = cache.attach(await rig.put("f", body))
        else:
            content = cache.create("f", META)
            for at in range(mebibytes):
                await cache.write(content, at * MIB, body[at * MIB : (at + 1) * MIB])
        crowd = Crowd(rig, cache, content, body, seed)
        third = len(body) // 3
        async with trio.open_nursery() as nursery:
            for work in (crowd.publisher, crowd.syncer, crowd.evictor, crowd.saboteur, crowd.sequential_reader):
                nursery.start_soon(work)
            async with trio.open_nursery() as writers:
                for at in range(3):
                    writers.start_soon(crowd.writer, at * third, (at + 1) * third)
            nursery.cancel_scope.cancel()
        assert rig.health.counts["evicted_bytes"] > 0
        await cache.sync(content)
        await cache.sync_notes()
        twin = rig.crashed(tmp_path / "crashed", power_failure=bool(seed & 2))
        rig.faults.__init__()  # type: ignore[misc]  # no more faults
        assert await content_of(cache, content) == crowd.model
        while content.unpublished_bytes:
            try:
                await cache.publish(content)
            except Unavailable:
                rig.health.count("injected")
        assert rig.body("f") == crowd.model
        assert rig.keys() == ["f"]
        assert cache.parts.ledger.dirty_bytes == 0
        with trio.fail_after(SETTLE_S):  # readahead that nobody waits for may still be under way
            while cache.status().in_flight_bytes:
                await trio.lowlevel.checkpoint()
    async with twin.cache(serve=False) as cache:
        for survivor in list(cache.pending()):
            cache.refer(survivor)
            await cache.publish(survivor)
            assert await content_of(cache, survivor) == crowd.model
        assert rig.body("f") == crowd.model
        assert rig.keys() == ["f"]
