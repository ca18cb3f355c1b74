"""Publishing: conditions, lost replies, large files, streaming."""

from __future__ import annotations

from dataclasses import replace
from hashlib import md5

import pytest
import trio
import trio.testing

from s3vol.cache import pagecost
from s3vol.cache.base import State
from s3vol.cache.plan import part_range
from s3vol.errors import Conflict, Corrupt, NotFound, PreconditionFailed, Unavailable
from s3vol.layout import TOMBSTONE
from s3vol.store.memory import MEMORY_CAPABILITIES
from s3vol.types import GIB, MIB
from tests.cache.rig import META, Rig, content_of, foreign

BLOCK = bytes(range(256)) * 4096  # 1 MiB
WAIT_S = 10.0


async def test_a_new_file_is_created_under_a_condition_and_carries_metadata_and_nonce(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("a/b", META, content_type="text/plain")
        await cache.write(content, 0, b"hello")
        version = await cache.publish(content)
        info = await rig.other.head("a/b")
        assert info.version == version == content.base
        assert (info.size, info.content_type, foreign(info.metadata)) == (5, "text/plain", META)
        assert content.state is State.CLEAN
        assert await cache.publish(content) == version
        assert rig.faults.calls["put"] == 1


async def test_an_empty_file_is_published(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("empty", META)
        await cache.publish(content)
        assert rig.body("empty") == b""
        assert await cache.read(content, 0, 10) == b""


@pytest.mark.parametrize("new", [True, False])
async def test_a_412_after_a_lost_reply_is_our_own_write(rig: Rig, new: bool) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"one")
        if not new:
            await cache.publish(content)
            await cache.write(content, 0, b"two")
        rig.faults.apply_then_fail("put")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        assert cache.dirty("f") is content
        version = await cache.publish(content)
        assert (await rig.other.head("f")).version == version
        assert content.state is State.CLEAN
        assert rig.keys() == ["f"]


async def test_a_write_after_a_lost_reply_is_published_over_our_own_older_attempt(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"older")
        rig.faults.apply_then_fail("put")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        await cache.write(content, 0, b"newer")
        await cache.publish(content)
        assert rig.body("f") == b"newer"
        assert rig.keys() == ["f"]


async def test_our_nonce_over_foreign_content_is_a_conflict(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"ours")
        rig.faults.apply_then_fail("put")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        kept = (await rig.other.head("f")).metadata or {}
        await rig.other.put("f", b"another tool that keeps headers", metadata=kept)
        with pytest.raises(Conflict) as conflict:
            await cache.publish(content)
        assert rig.body("f") == b"another tool that keeps headers"
        assert rig.body(conflict.value.copy_key) == b"ours"


async def test_a_tombstone_is_replaced_as_if_nothing_were_there(rig: Rig) -> None:
    await rig.put("f", b"", {TOMBSTONE: "1"})
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"new")
        await cache.publish(content)
        assert rig.body("f") == b"new"


async def test_a_tombstone_to_be_replaced_that_is_gone_does_not_matter(rig: Rig) -> None:
    info = await rig.put("f", b"", {TOMBSTONE: "1"})
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META, base=info.version)
        await rig.other.delete("f")
        await cache.publish(content)
        assert rig.body("f") == b""


async def test_a_refusal_without_a_visible_reason_is_tried_again_but_not_for_ever(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        rig.faults.fail_next("put", PreconditionFailed("a race"), times=2)
        await cache.publish(content)
        cache.set_metadata(content, {**META, "more": "1"})
        rig.faults.fail_next("put", PreconditionFailed("for no reason"), times=100)
        with pytest.raises(Unavailable):
            await cache.publish(content)


async def test_a_wrong_etag_of_a_put_is_corrupt_and_the_next_publish_replaces_it(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        rig.faults.apply_then_fail("put", Corrupt("f: wrong ETag"))
        with pytest.raises(Corrupt):
            await cache.publish(content)
        await rig.other.put("f", b"DAMAGED", metadata=(await rig.other.head("f")).metadata or {})
        await cache.publish(content)
        assert rig.body("f") == b"data"
        assert content.state is State.CLEAN
        assert rig.keys() == ["f"]


async def test_writes_during_a_publish_are_not_in_it_and_are_published_by_the_next(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.create("f", META)
        await cache.write(content, 0, b"first")
        gate = rig.faults.hold("put")
        nursery.start_soon(cache.publish, content)
        await gate.entered.wait()
        await cache.write(content, 0, b"SEC")
        await cache.truncate(content, 4)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.body("f") == b"first"
        assert content.state is State.DIRTY
        await cache.publish(content)
        assert rig.body("f") == b"SECs"


async def test_what_is_cut_during_a_publish_that_fails_is_not_dirty_again(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.create("f", META)
        await cache.write(content, 0, b"0123456789")
        gate = rig.faults.hold("put")

        async def publish() -> None:
            with pytest.raises(Unavailable):
                await cache.publish(content)

        rig.faults.fail_next("head")
        nursery.start_soon(publish)
        await gate.entered.wait()
        await cache.truncate(content, 4)
        await rig.put("f", b"theirs")
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert list(content.dirty) == list(content.present) == [(0, 4)]
        assert cache.status().dirty_bytes == 4


async def test_concurrent_publishes_of_one_file_share_the_work(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"x")
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(cache.publish, content)
        assert rig.faults.calls["put"] == 1


async def test_a_cancelled_publish_leaves_everything_usable(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        for hold in (rig.faults.hold, rig.faults.hold_reply):
            gate = hold("put")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cache.publish, content)
                await gate.entered.wait()
                nursery.cancel_scope.cancel()
            assert content.state is State.DIRTY
            assert await content_of(cache, content) == b"data"
        await cache.publish(content)
        assert rig.body("f") == b"data"
        assert rig.keys() == ["f"]


async def test_a_dead_endpoint_is_unavailable_after_the_timeout_and_the_data_stays(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        rig.faults.hold("put")
        began = trio.current_time()
        with pytest.raises(Unavailable, match="no answer within 60 s"):
            await cache.publish(content)
        assert 59 < trio.current_time() - began < 75
        await cache.publish(content)
        assert rig.body("f") == b"data"


# Large files


async def large(rig: Rig, mebibytes: int) -> bytes:
    body = bytearray(BLOCK * mebibytes)
    for at in range(mebibytes):
        body[at * MIB] = at % 256
        body[at * MIB + 1] = 77
    await rig.put("big", bytes(body))
    return bytes(body)


@pytest.mark.parametrize("copies", [True, False])
async def test_few_changes_of_a_large_file_are_sent_and_the_rest_is_copied(rig: Rig, copies: bool) -> None:
    rig.capabilities = replace(MEMORY_CAPABILITIES, copy_part=copies)
    rig.__post_init__()
    body = bytearray(await large(rig, 60))
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.other.head("big"))
        for at in (0, 30 * MIB + 5, 60 * MIB - 3):
            await cache.write(content, at, b"changed")
            body[at : at + 7] = b"changed"
        await cache.publish(content)
        assert rig.body("big") == body
        assert rig.health.counts["fetched_bytes"] <= (40 * MIB if copies else 60 * MIB)
        assert (rig.faults.calls["copy_part"] > 0) == copies
        assert not rig.bucket.uploads


async def test_new_metadata_of_a_large_file_moves_no_bytes(rig: Rig) -> None:
    body = await large(rig, 40)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.other.head("big"))
        cache.set_metadata(content, {**META, "mode": "33152"})
        await cache.publish(content)
        info = await rig.other.head("big")
        assert foreign(info.metadata) == {**META, "mode": "33152"}
        assert rig.body("big") == body
        assert rig.faults.calls["get"] == rig.faults.calls["upload_part"] == 0


async def test_a_truncated_large_file_is_published_short(rig: Rig) -> None:
    body = await large(rig, 40)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.other.head("big"))
        await cache.truncate(content, 20 * MIB + 1)
        await cache.truncate(content, 30 * MIB)
        await cache.publish(content)
        assert rig.body("big") == body[: 20 * MIB + 1] + bytes(10 * MIB - 1)


async def test_a_large_file_is_uploaded_while_it_is_written(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("big", {**META, "mtime": "1.000000000"})
        for at in range(100):
            await cache.write(content, at * MIB, BLOCK)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert content.stream is not None
        assert len(content.stream.done) >= 6
        await cache.write(content, 5, b"again")  # part 1 is out of date now
        assert 1 not in content.stream.done
        sent = rig.faults.calls["upload_part"]
        await cache.publish(content)
        expected = bytearray(BLOCK * 100)
        expected[5:10] = b"again"
        assert rig.body("big") == expected
        assert rig.faults.calls["upload_part"] - sent <= 100 // 8 + 1 - 6 + 1
        assert content.metadata == META, "no mtime: Last-Modified stands for it"
        assert rig.bucket.objects["big"].info.etag.endswith("-13")


async def test_times_that_a_program_set_are_published_with_a_streamed_file(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("big", {**META, "mtime": "1.000000000"})
        for at in range(70):
            await cache.write(content, at * MIB, BLOCK)
            await trio.testing.wait_all_tasks_blocked(0.001)
        cache.set_metadata(content, {**META, "mtime": "7.000000000"}, explicit_times=True)
        version = await cache.publish(content)
        info = await rig.other.head("big")
        assert info.version == version
        assert foreign(info.metadata) == content.metadata == {**META, "mtime": "7.000000000"}
        assert rig.body("big") == BLOCK * 70


async def test_where_memory_is_dear_the_page_cache_need_not_keep_what_a_stream_has_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecost, "DEAR_BYTES_S", 1000 * GIB)
    async with rig.cache() as cache:
        content = cache.create("big", META)
        files = cache.parts.files
        with trio.fail_after(WAIT_S):
            at = 0
            while at < 80 or files.read_now(content.id, 0, MIB) is not None:  # dirty pages stay until they are written
                await cache.write(content, at * MIB, BLOCK)
                await trio.testing.wait_all_tasks_blocked(0.001)
                at += 1
        assert bytes(files.read_now(content.id, (at - 1) * MIB, MIB) or b"") == BLOCK
        assert bytes(await cache.read(content, 0, 3 * MIB)) == BLOCK * 3
        await cache.publish(content)
        assert rig.body("big") == BLOCK * at


async def test_a_failed_large_publish_goes_on_where_it_stopped(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        for at in range(80):
            await cache.write(content, at * MIB, BLOCK)
        rig.faults.fail_next("complete_upload")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        sent = rig.faults.calls["upload_part"]
        await cache.publish(content)
        assert rig.faults.calls["upload_part"] - sent <= 1
        assert rig.body("big") == BLOCK * 80
        assert not rig.bucket.uploads


@pytest.mark.parametrize("based", [True, False])
async def test_a_lost_reply_to_complete_is_our_own_write(rig: Rig, based: bool) -> None:
    body = bytearray(await large(rig, 40)) if based else bytearray(40 * MIB)
    async with rig.cache(serve=False) as cache:
        if based:
            content = cache.attach(await rig.other.head("big"))
        else:
            content = cache.create("big", META)
            await cache.truncate(content, 40 * MIB)
        await cache.write(content, 0, b"new")
        body[:3] = b"new"
        rig.faults.apply_then_fail("complete_upload")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        version = await cache.publish(content)
        info = await rig.other.head("big")
        assert info.version == version
        assert rig.body("big") == body
        assert rig.keys() == ["big"]
        assert not rig.bucket.uploads


async def test_an_upload_that_the_store_forgot_is_begun_anew(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        await cache.truncate(content, 40 * MIB)
        rig.faults.fail_next("complete_upload")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        rig.bucket.uploads.clear()
        await cache.publish(content)
        assert rig.body("big") == bytes(40 * MIB)


async def test_a_file_cut_while_it_is_uploaded_is_never_visible_with_zeros(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.create("big", META)
        for at in range(40):
            await cache.write(content, at * MIB, BLOCK)
        gate = rig.faults.hold("upload_part")
        nursery.start_soon(cache.publish, content)
        await gate.entered.wait()
        await cache.truncate(content, 20 * MIB)
        await cache.write(content, 30 * MIB, b"end")
        visible = rig.faults.hold_reply("complete_upload")
        gate.open()
        await visible.entered.wait()
        assert rig.body("big") == BLOCK * 20 + bytes(10 * MIB) + b"end"
        visible.open()


async def test_a_stream_that_fails_is_given_up_and_the_publish_sends_everything(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("big", META)
        rig.faults.fail_next("upload_part")
        for at in range(100):
            await cache.write(content, at * MIB, BLOCK)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert content.stream is None
        assert not rig.bucket.uploads
        await cache.publish(content)
        assert rig.body("big") == BLOCK * 100


async def test_a_stream_is_aborted_when_the_file_becomes_small(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("big", META)
        for at in range(80):
            await cache.write(content, at * MIB, BLOCK)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert rig.bucket.uploads
        await cache.truncate(content, 10)
        await cache.publish(content)
        assert rig.body("big") == BLOCK[:10]
        assert not rig.bucket.uploads


async def test_the_parts_of_a_multipart_object_make_its_etag(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        await cache.truncate(content, 20 * MIB)
        version = await cache.publish(content)
        parts = [part_range(1), part_range(2), (16 * MIB, 20 * MIB)]
        joined = b"".join(md5(bytes(end - start)).digest() for start, end in parts)
        assert version.etag == md5(joined).hexdigest() + "-3"


# Names


async def test_without_conditions_the_object_is_compared_before_it_is_replaced(rig: Rig) -> None:
    rig.capabilities = replace(MEMORY_CAPABILITIES, conditional_create=False, conditional_replace=False)
    rig.__post_init__()
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"one")
        await cache.publish(content)
        await rig.put("f", b"foreign")
        await cache.write(content, 0, b"two")
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert rig.body("f") == b"foreign"


async def test_a_missing_bucket_is_not_taken_for_success(rig: Rig, jumping_clock: trio.testing.MockClock) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        rig.faults.fail_next("put", NotFound("no such bucket"), times=100)
        with pytest.raises(Unavailable):
            await cache.publish(content)
        assert content.state is State.DIRTY
