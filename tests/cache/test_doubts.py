"""What a crash, a second crash or a cancelled call may do to what was acknowledged: nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.cache.journal import Journal
from s3vol.cache.records import Statement
from s3vol.errors import NoSpace, Unavailable
from s3vol.store.memory import MEMORY_CAPABILITIES
from s3vol.types import MIB
from tests.cache.rig import META, Rig, content_of

CHANGED = {**META, "mode": "33152"}


async def test_what_was_synced_while_a_store_without_conditions_is_asked_survives_a_crash(tmp_path: Path) -> None:
    weak = replace(MEMORY_CAPABILITIES, conditional_create=False, conditional_replace=False)
    rig = Rig(tmp_path / "cache", capabilities=weak)
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"first")
        look, reply = rig.faults.hold("head"), rig.faults.hold_reply("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await look.entered.wait()
            await cache.write(content, 0, b"later")
            await cache.sync(content)
            look.open()
            await reply.entered.wait()
            twin = rig.crashed(tmp_path / "twin")
            nursery.cancel_scope.cancel()
    async with twin.cache(serve=False) as cache:
        for one in cache.pending():
            await cache.publish(one)
    assert twin.body("f") == b"later"


@pytest.mark.parametrize("etag_is_md5", [True, False])
async def test_a_publish_of_the_last_process_is_not_taken_for_one_of_this_process(
    tmp_path: Path, etag_is_md5: bool
) -> None:
    first = Rig(tmp_path / "first", capabilities=replace(MEMORY_CAPABILITIES, etag_is_md5=etag_is_md5))
    async with first.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"older")
        await cache.sync(content)
        second = first.crashed(tmp_path / "second")
    async with second.cache(serve=False) as cache:
        revived = cache.dirty("f")
        assert revived is not None
        third = second.crashed(tmp_path / "third", power_failure=True)  # what follows has not reached the disk
        await cache.write(revived, 0, b"newer and longer")
        await cache.publish(revived)
    async with third.cache(serve=False) as cache:
        found = cache.dirty("f")
        assert found is not None
        cache.refer(found)
        await cache.publish(found)
        assert await content_of(cache, found) == b"newer and longer"
        await cache.truncate(found, 5)
        await cache.publish(found)
    assert third.keys() == ["f"]
    assert third.body("f") == b"newer"


async def test_metadata_that_was_synced_before_a_doubt_was_settled_do_not_hide_a_later_publish(
    rig: Rig, tmp_path: Path
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"older")
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "twin", power_failure=True)
        await cache.write(content, 0, b"newer and longer")
        await cache.publish(content)
    async with twin.cache(serve=False) as cache:
        found = cache.dirty("f")
        assert found is not None
        cache.set_metadata(found, CHANGED)  # and unmounted while the endpoint is out of reach
    async with twin.cache(serve=False) as cache:
        found = cache.dirty("f")
        assert found is not None
        await cache.publish(found)
    assert twin.body("f") == b"newer and longer"


async def test_publish_returns_when_the_metadata_of_the_call_are_in_the_bucket(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        await cache.truncate(content, 20 * MIB)
        gate = rig.faults.hold("upload_part")
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                with pytest.raises(Unavailable):
                    await cache.parts.publisher.publish(content)

            nursery.start_soon(first)
            await gate.entered.wait()  # the upload was begun with the first metadata
            cache.set_metadata(content, CHANGED)
            rig.faults.fail_next("complete_upload")
            nursery.start_soon(cache.publish, content)
            await trio.testing.wait_all_tasks_blocked()
            await cache.write(content, 0, b"x")
            gate.open()
        assert ((await rig.other.head("big")).metadata or {})["mode"] == CHANGED["mode"]


@pytest.mark.parametrize("crash", [True, False])
async def test_a_discard_that_is_cancelled_leaves_the_journal_as_it_was(rig: Rig, tmp_path: Path, crash: bool) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"first")
        gate = rig.faults.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            await cache.write(content, 0, b"later")
            await cache.sync(content)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner, content.sync_lock:  # as an fsync has it for a while
                    inner.start_soon(cache.discard, content)
                    await trio.testing.wait_all_tasks_blocked()
                    gate.open()
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        assert content.state is State.DIRTY
        await cache.parts.journal.settle()
        if crash:
            rig = rig.crashed(tmp_path / "twin")
    async with rig.cache(serve=False) as cache:
        assert [await content_of(cache, one) for one in cache.pending()] == [b"later"]


async def test_what_was_discarded_while_it_was_published_does_not_come_back_after_a_power_failure(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await cache.sync(content)
        gate = rig.faults.hold("put")
        commits: list[bool] = []
        commit = cache.parts.journal.commit

        async def note(statements: Sequence[Statement], *, durable: bool) -> None:
            commits.append(durable)
            await commit(statements, durable=durable)

        monkeypatch.setattr(cache.parts.journal, "commit", note)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            nursery.start_soon(cache.discard, content)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert commits == [True], "the object may be deleted now: the record of it must be gone for good"


async def test_the_record_of_a_publish_does_not_vouch_for_bytes_that_nobody_synced(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("log", META)
        await cache.write(content, 0, b"line one\n")
        await cache.sync(content)
        gate = rig.faults.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.parts.publisher.publish, content)
            await gate.entered.wait()
            await cache.write(content, 9, b"line two\n")
            gate.open()
        assert rig.body("log") == b"line one\n"
        await cache.write(content, 18, b"line three\n")
        await cache.parts.saver.flush_records()  # as the fsync of any other file does
        twin = rig.crashed(tmp_path / "twin", power_failure=True)
        os.truncate(twin.directory / "data" / f"{content.id:x}", 9)  # nothing of the rest was flushed
    async with twin.cache(serve=False) as cache:
        for one in cache.pending():
            await cache.publish(one)
    assert b"\0" not in twin.body("log")


async def test_metadata_that_were_synced_are_not_lost_when_a_later_publish_is_taken_over(
    rig: Rig, tmp_path: Path
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"older")
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "twin", power_failure=True)
        await cache.write(content, 0, b"newer and longer")
        await cache.publish(content)
    async with twin.cache(serve=False) as cache:
        found = cache.dirty("f")
        assert found is not None
        cache.set_metadata(found, CHANGED)
        await cache.sync(found)
        await cache.publish(found)
        assert (twin.body("f"), found.metadata["mode"]) == (b"newer and longer", CHANGED["mode"])
    assert ((await twin.other.head("f")).metadata or {})["mode"] == CHANGED["mode"]


async def test_what_could_not_be_kept_beside_is_not_forgotten_when_a_discard_is_cancelled(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        await cache.sync(content)
        await rig.put("f", b"theirs")
        verdict = rig.faults.hold_reply("head")
        async with trio.open_nursery() as nursery:

            async def background() -> None:
                with pytest.raises(Unavailable):
                    await cache.parts.publisher.publish(content)

            nursery.start_soon(background)
            await verdict.entered.wait()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner, content.sync_lock:  # as an fsync has it for a while
                    async with cache.parts.budget.hold(rig.settings.memory_bytes):
                        verdict.open()
                        await trio.testing.wait_all_tasks_blocked(0.05)
                        assert content.state is State.CONFLICTED
                        inner.start_soon(cache.discard, content)
                        await trio.testing.wait_all_tasks_blocked()
                        rig.faults.down = True
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        rig.faults.down = False
        assert list(cache.pending()) == [content]
        await cache.sync(content)
    async with rig.cache(serve=False) as cache:
        assert [await content_of(cache, one) for one in cache.pending()] == [b"ours"]


async def test_a_cut_that_the_journal_had_no_room_for_does_not_cost_the_rest_of_the_file(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(256)) * 8192
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, body)
        await cache.sync(content)

        async def full(self: Journal, statements: Sequence[Statement], *, durable: bool) -> None:
            raise NoSpace("full")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "commit", full)
            with pytest.raises(NoSpace):
                await cache.truncate(content, MIB)
        twin = rig.crashed(tmp_path / "twin")
        await cache.truncate(content, 2 * MIB)
        assert await content_of(cache, content) == body[:MIB] + bytes(MIB)
    async with twin.cache(serve=False) as cache:
        found = [await content_of(cache, one) for one in cache.pending()]
        assert [one[:MIB] for one in found] == [body[:MIB]]
