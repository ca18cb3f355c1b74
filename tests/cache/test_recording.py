"""What the journal says of clean chunks, and what is on the disk: evicted, written and recorded at the same time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.journal import Journal
from s3vol.cache.records import Statement
from s3vol.types import MIB
from tests.cache.rig import META, Rig, content_of

BODY = random.Random(7).randbytes(4 * MIB)


def record_after_commit(cache: ChunkCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder has its turn after each commit, before whoever waited for it."""
    commit = Journal.commit

    async def slow(self: Journal, statements: Sequence[Statement], *, durable: bool) -> None:
        await commit(self, statements, durable=durable)
        cache.parts.writeback.record_filled()

    monkeypatch.setattr(Journal, "commit", slow)


async def test_what_is_recorded_while_an_eviction_waits_for_the_journal_is_not_punched(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.read(content, 0, 2 * MIB)
        cache.parts.writeback.record_filled()
        assert content.recorded == {0, 1}
        await cache.read(content, 2 * MIB, 2 * MIB)  # on the disk, and not yet recorded
        record_after_commit(cache, monkeypatch)
        await cache.parts.space.evict(1 << 40)
        monkeypatch.undo()
    async with rig.cache(serve=False) as cache:  # an ordinary restart
        content = cache.attach(await rig.other.head("f"))
        found = await content_of(cache, content)
        wrong = [at for at in range(4) if found[at * MIB : (at + 1) * MIB] != BODY[at * MIB : (at + 1) * MIB]]
        assert not wrong


async def test_a_chunk_that_was_evicted_and_recorded_anew_while_a_write_waits_is_taken_out_again(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY[: 2 * MIB]))
        await cache.read(content, 0, 2 * MIB)
        cache.parts.writeback.record_filled()
        commit = Journal.commit
        first = True

        async def slow(self: Journal, statements: Sequence[Statement], *, durable: bool) -> None:
            nonlocal first
            await commit(self, statements, durable=durable)
            if first:
                first = False
                await cache.parts.space.evict(1 << 40)  # in the same group, or the one after it
                await cache.parts.fetcher.ensure(content, 0, 2 * MIB)
                cache.parts.writeback.record_filled()

        monkeypatch.setattr(Journal, "commit", slow)
        await cache.write(content, MIB, b"not synced, and not published")
        monkeypatch.undo()
        await cache.parts.journal.settle()
        twin = rig.crashed(tmp_path / "twin")
    async with twin.cache(serve=False) as cache:
        content = cache.attach(await twin.other.head("f"))
        assert await content_of(cache, content) == BODY[: 2 * MIB]


async def test_an_eviction_makes_no_data_file_for_a_content_that_was_dropped_meanwhile(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.read(content, 0, 4 * MIB)
        cache.parts.writeback.record_filled()
        commit = Journal.commit

        async def slow(self: Journal, statements: Sequence[Statement], *, durable: bool) -> None:
            await commit(self, statements, durable=durable)
            cache.release(content)
            cache.parts.registry.drop(content)  # as when there are more than MAX_IDLE

        monkeypatch.setattr(Journal, "commit", slow)
        monkeypatch.setattr("s3vol.cache.policy.EVICT_STEP_BYTES", MIB)
        await cache.parts.space.evict(MIB)
        monkeypatch.undo()
        assert not cache.parts.files.exists(content.id)
        assert not list((rig.directory / "data").iterdir())


async def test_files_that_came_and_went_leave_nothing_in_memory(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        for number in range(300):
            content = cache.create(f"f{number}", META)
            await cache.write(content, 0, b"temporary")
            await cache.truncate(content, 0)
            await cache.write(content, 0, b"temporary")
            await cache.discard(content)
            cache.release(content)
            assert content.dropped
        assert len(cache.parts.space.lru) == 0
