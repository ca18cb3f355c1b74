"""While a conflict copy is made: the content is nobody's to change, and still all that there is of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.cache.disk import DataFiles
from s3vol.errors import Conflict, Unavailable
from s3vol.types import MIB
from tests.cache.rig import META, Rig, content_of

BODY = random.Random(7).randbytes(20 * MIB + 777)


@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
async def test_a_handle_that_is_closed_while_the_conflict_copy_is_made_loses_nothing(rig: Rig, size: int) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, BODY[:size])
        await rig.put("f", b"theirs")
        async with trio.open_nursery() as nursery:

            async def background() -> None:
                with pytest.raises(Conflict):
                    await cache.publish(content)

            verdict = rig.faults.hold_reply("head")  # put or complete refused: the object is looked at
            nursery.start_soon(background)
            await verdict.entered.wait()
            async with cache.parts.budget.hold(rig.settings.memory_bytes):  # the copy waits for its turn
                verdict.open()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert content.state is State.CONFLICTED
                cache.release(content)  # the last handle is closed
        assert rig.body(content.conflict_key) == BODY[:size]
        assert content.dropped
        assert cache.status().used_bytes == 0


async def test_what_could_not_be_kept_beside_is_not_forgotten_because_of_a_sync_meanwhile(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        await rig.put("f", b"theirs")
        verdict = rig.faults.hold_reply("head")
        async with trio.open_nursery() as nursery:

            async def background() -> None:
                with pytest.raises(Unavailable):
                    await cache.parts.publisher.publish(content)

            nursery.start_soon(background)
            await verdict.entered.wait()
            async with cache.parts.budget.hold(rig.settings.memory_bytes):
                verdict.open()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert content.state is State.CONFLICTED
                await cache.sync_all()  # as the background does every five seconds
                rig.faults.down = True
        rig.faults.down = False
        pending = list(cache.pending())
    async with rig.cache(serve=False) as cache:
        found = [await content_of(cache, one) for one in cache.pending()]
    assert found == [b"ours"]
    assert pending == [content]


@pytest.mark.parametrize("when", ["before the flush", "during the flush"])
async def test_what_was_synced_while_the_conflict_copy_is_made_survives_a_crash(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, BODY[:MIB])  # too much to be carried: it is flushed
        await rig.put("f", b"theirs")
        verdict = rig.faults.hold_reply("head")
        flushing, flushed = trio.Event(), trio.Event()
        flush = DataFiles.flush

        async def slow(self: DataFiles, content_id: int) -> None:
            flushing.set()
            await flushed.wait()
            await flush(self, content_id)

        async with trio.open_nursery() as nursery:

            async def background() -> None:
                with pytest.raises(Conflict):
                    await cache.publish(content)

            nursery.start_soon(background)
            await verdict.entered.wait()
            done = trio.Event()

            async def fsync() -> None:
                await cache.parts.saver.sync(content)
                done.set()

            if when == "during the flush":
                monkeypatch.setattr(DataFiles, "flush", slow)
                nursery.start_soon(fsync)
                await flushing.wait()
            async with cache.parts.budget.hold(rig.settings.memory_bytes):
                verdict.open()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert content.state is State.CONFLICTED
                keys = rig.keys()
                assert content.conflict_key not in keys
                if when != "during the flush":
                    nursery.start_soon(fsync)
                flushed.set()
                await done.wait()  # sync(2), or fsync(2), has returned without an error
                twin = rig.crashed(tmp_path / "twin")
    async with twin.cache(serve=False) as cache:
        assert [await content_of(cache, one) for one in cache.pending()] == [BODY[:MIB]]
