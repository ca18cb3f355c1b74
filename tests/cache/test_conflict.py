"""Conflicts: nothing is discarded, nothing is silent."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.cache.conflict import MISSING, describe_ranges
from s3vol.errors import Conflict, PosixError, PreconditionFailed, Unavailable
from s3vol.layout import metadata_bytes
from s3vol.store.decorator import Operation
from s3vol.types import MIB
from tests.cache.rig import META, Rig, content_of, foreign


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


async def test_both_contents_are_kept_and_it_is_said_by_error_event_counter_and_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("a/f", b"base"))
        await cache.write(content, 0, b"OURS")
        await rig.put("a/f", b"theirs")
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        kept = conflict.value.copy_key
        assert kept.startswith("a/f.s3vol-conflict-here-")
        assert rig.body("a/f") == b"theirs"
        assert rig.body(kept) == b"OURS"
        assert foreign((await rig.other.head(kept)).metadata) == META
        assert [error.conflict_key for error in rig.write_errors()] == [kept]
        assert rig.health.counts["conflicts"] == cache.status().conflicts == 1
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert kept in caplog.text


async def test_afterwards_writes_are_refused_reads_go_on_and_the_new_version_can_be_opened(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        info = await rig.put("f", b"base")
        content = cache.attach(info)
        await cache.write(content, 0, b"OURS")
        theirs = await rig.put("f", b"theirs")
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert content.state is State.CONFLICTED
        for refused in (cache.write(content, 0, b"x"), cache.truncate(content, 0)):
            with pytest.raises(PosixError, match="kept as"):
                await refused
        with pytest.raises(PosixError, match="kept as"):
            cache.set_metadata(content, {})
        for again in (cache.publish(content), cache.sync(content)):
            with pytest.raises(Conflict):
                await again
        assert await content_of(cache, content) == b"OURS"
        assert cache.dirty("f") is None
        assert not list(cache.pending())
        other = cache.attach(theirs)
        assert other is not content
        assert await content_of(cache, other) == b"theirs"
        assert cache.attach(info) is not content
        used = cache.status().used_bytes
        cache.release(content)
        assert cache.status().used_bytes < used
        assert len(rig.keys()) == 2


async def test_a_file_deleted_by_another_is_a_conflict_not_a_resurrection(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"base"))
        await cache.write(content, 0, b"OURS")
        await rig.other.delete("f")
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        assert rig.keys() == [conflict.value.copy_key]


async def test_a_name_that_another_created_first_is_a_conflict(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        await rig.put("f", b"theirs")
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        assert rig.body("f") == b"theirs"
        assert rig.body(conflict.value.copy_key) == b"ours"


@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
async def test_bytes_that_are_gone_with_the_old_version_are_zeros_and_listed(rig: Rig, size: int) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"b" * size))
        await cache.read(content, 0, 10)
        await cache.write(content, 2 * MIB + 5, b"OURS")
        await rig.put("f", b"theirs")
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        kept = rig.body(conflict.value.copy_key)
        expected = bytearray(b"b" * MIB + bytes(size - MIB))
        expected[2 * MIB + 5 : 2 * MIB + 9] = b"OURS"
        assert kept == expected
        missing = f"{MIB}-{2 * MIB + 5},{2 * MIB + 9}-{size}"
        assert (await rig.other.head(conflict.value.copy_key)).metadata[MISSING] == missing  # type: ignore[index]  # it has metadata
        assert missing in rig.write_errors()[0].message
        assert not rig.bucket.uploads


async def test_a_large_file_with_few_changes_that_lost_is_kept(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        await cache.truncate(content, 40 * MIB)
        await cache.publish(content)
        await cache.write(content, 30 * MIB, b"OURS")
        await rig.put("big", b"theirs")
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        assert rig.body(conflict.value.copy_key) == bytes(30 * MIB) + b"OURS" + bytes(10 * MIB - 4)
        assert rig.body("big") == b"theirs"
        assert not rig.bucket.uploads


@pytest.mark.parametrize("size", [10, 20 * MIB])
async def test_a_lost_reply_to_the_conflict_copy_makes_no_second_copy(rig: Rig, size: int) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.truncate(content, size)
        await rig.put("f", b"theirs")
        request: Operation = "put" if size == 10 else "complete_upload"
        rig.faults.fail_next(request, PreconditionFailed("f: exists"))
        rig.faults.apply_then_fail(request)
        with pytest.raises(Unavailable):
            await cache.publish(content)
        assert len(rig.keys()) == 2
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        assert rig.body(conflict.value.copy_key) == bytes(size)
        assert len(rig.keys()) == 2
        assert content.state is State.CONFLICTED


async def test_while_the_copy_cannot_be_made_the_content_stays_dirty(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        await rig.put("f", b"theirs")
        gate = rig.faults.hold("head")
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                with pytest.raises(Unavailable):
                    await cache.publish(content)

            nursery.start_soon(publish)
            await gate.entered.wait()
            rig.faults.fail_next("put")
            gate.open()
        assert content.state is State.DIRTY
        assert list(cache.pending()) == [content]
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert len(rig.keys()) == 2


async def test_a_conflict_found_in_the_background_reaches_the_next_caller(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        await rig.put("f", b"theirs")
        cache.schedule(content)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert content.state is State.CONFLICTED
        with pytest.raises(PosixError, match="kept as"):
            await cache.write(content, 0, b"more")
        with pytest.raises(Conflict):
            await cache.publish(content)


async def test_a_conflicted_file_is_forgotten_by_the_journal(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        await cache.sync(content)
        await rig.put("f", b"theirs")
        with pytest.raises(Conflict):
            await cache.publish(content)
    async with rig.cache(serve=False) as cache:
        assert not list(cache.pending())
        assert cache.status().used_bytes == 0


async def test_metadata_of_a_copy_stays_within_what_an_object_carries(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"b" * (3 * MIB), {**META, "xattr": "x" * 1800}))
        for at in range(100):
            await cache.write(content, at * 20_000, b"OURS")
        await rig.put("f", b"theirs")
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        assert metadata_bytes((await rig.other.head(conflict.value.copy_key)).metadata or {}) <= 2048


def test_long_lists_of_ranges_are_cut() -> None:
    text = describe_ranges([(at * 100, at * 100 + 1) for at in range(100)])
    assert len(text) < 240
    assert text.endswith("of-100-ranges")
