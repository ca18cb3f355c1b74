"""Names that move or go away while their content is dirty, being published, or read."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.errors import PreconditionFailed, Unavailable
from s3vol.types import MIB, NONCE
from tests.cache.rig import META, Rig, content_of

BLOCK = bytes(range(256)) * 4096  # 1 MiB


async def test_a_file_that_was_never_published_moves_without_a_request(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("old", META)
        await cache.write(content, 0, b"data")
        await cache.sync(content)
        await cache.move(content, "new", None)
        assert cache.dirty("old") is None
        assert cache.dirty("new") is content
        assert not rig.faults.calls
    async with rig.cache(serve=False) as cache:
        content = next(iter(cache.pending()))
        await cache.publish(content)
        assert rig.keys() == ["new"]


async def test_a_move_over_an_existing_file_replaces_exactly_that_version(rig: Rig) -> None:
    target = await rig.put("target", b"old content")
    async with rig.cache(serve=False) as cache:
        content = cache.create("temporary", META)
        await cache.write(content, 0, b"new")
        await cache.move(content, "target", target.version)
        await cache.publish(content)
        assert rig.body("target") == b"new"
        assert rig.keys() == ["target"]


async def test_a_move_is_refused_when_a_publish_turns_out_to_have_been_applied(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("old", META)
        await cache.write(content, 0, b"data")
        rig.faults.apply_then_fail("put")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        with pytest.raises(PreconditionFailed):
            await cache.move(content, "new", None)
        assert content.state is State.CLEAN
        assert content.base is not None


async def test_after_a_rename_on_the_server_bytes_are_read_under_the_new_name(rig: Rig) -> None:
    info = await rig.put("old", b"x" * (2 * MIB))
    async with rig.cache(serve=False) as cache:
        content = cache.attach(info)
        await cache.read(content, 0, 10)
        await rig.other.copy("old", "new", if_match=info.etag, metadata={**META, NONCE: "renamed"})
        await rig.other.delete("old")
        cache.rekey(content, await rig.other.head("new"))
        assert await content_of(cache, content) == b"x" * (2 * MIB)
        assert cache.attach(await rig.other.head("new")) is content


async def test_what_is_discarded_is_never_published(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await cache.sync(content)
        cache.schedule(content)
        await cache.discard(content)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert rig.keys() == []
        assert await content_of(cache, content) == b"data", "an open handle reads on"
        await cache.write(content, 4, b" and more")
        assert await content_of(cache, content) == b"data and more"
        cache.release(content)
        assert cache.status().used_bytes == 0
    async with rig.cache() as cache:
        assert not list(cache.pending())


async def test_discard_waits_for_a_publish_that_is_at_work(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        gate = rig.faults.hold("put")
        nursery.start_soon(cache.publish, content)
        await gate.entered.wait()
        over = trio.Event()

        async def discard() -> None:
            await cache.discard(content)
            over.set()

        nursery.start_soon(discard)
        await trio.testing.wait_all_tasks_blocked()
        assert not over.is_set()
        gate.open()
        await over.wait()
        await rig.other.delete("f")
        await trio.testing.wait_all_tasks_blocked()
        assert rig.keys() == []
        assert content.state is State.DISCARDED


async def test_a_large_publish_stops_between_two_requests_when_it_is_discarded(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache, trio.open_nursery() as nursery:
        content = cache.create("big", META)
        await cache.truncate(content, 200 * MIB)
        gate = rig.faults.hold("upload_part")
        nursery.start_soon(cache.publish, content)
        await gate.entered.wait()
        nursery.start_soon(cache.discard, content)
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.open()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert rig.keys() == []
        assert not rig.bucket.uploads
        assert rig.faults.calls["complete_upload"] == 0
