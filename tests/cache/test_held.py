"""First bytes that came along with opens: in memory until the last close, on the disk when there are too many."""

from __future__ import annotations

import pytest

from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.errors import PreconditionFailed
from s3vol.types import KIB, MIB
from tests.cache.rig import Rig, content_of


async def _held(rig: Rig, cache: ChunkCache, key: str, body: bytes) -> CachedContent:
    """An object whose first bytes came along with the open of its content, and which is gone from the bucket."""
    content = cache.attach(await rig.put(key, body))
    await cache.hold(content, body)
    await rig.other.delete(key)
    return content


def _on_disk(cache: ChunkCache, content: CachedContent) -> bool:
    return cache.parts.files.exists(content.id)


async def test_they_are_read_again_and_again_and_written_nowhere(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        for _ in range(3):
            assert await content_of(cache, content) == b"content"
            assert bytes(await cache.read(content, 3, 2)) == b"te"
        assert not _on_disk(cache, content)


async def test_their_memory_is_free_after_the_last_close(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        cache.refer(content)
        cache.release(content)
        assert await content_of(cache, content) == b"content"
        cache.release(content)
        assert not content.bodies.covers(0, 1)
        assert content.dropped


async def test_the_oldest_of_too_many_go_to_the_disk_and_are_read_there(rig: Rig) -> None:
    rig.limit(memory_bytes=MIB)  # of which a sixteenth is held
    async with rig.cache() as cache:
        contents = [await _held(rig, cache, f"f{n}", bytes([n]) * 16 * KIB) for n in range(6)]
        assert [_on_disk(cache, content) for content in contents] == [True, True, False, False, False, False]
        for n, content in enumerate(contents):
            assert await content_of(cache, content) == bytes([n]) * 16 * KIB
            cache.release(content)


async def test_what_is_larger_than_all_that_may_be_held_goes_to_the_disk(rig: Rig) -> None:
    rig.limit(memory_bytes=MIB)
    async with rig.cache() as cache:
        body = bytes(range(256)) * 257
        content = await _held(rig, cache, "f", body)
        assert _on_disk(cache, content)
        assert await content_of(cache, content) == body


async def test_a_write_gives_them_up_and_what_it_leaves_is_asked_for(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        await cache.write(content, 0, b"C")
        with pytest.raises(PreconditionFailed):
            await cache.read(content, 0, 7)
        assert bytes(await cache.read(content, 0, 1)) == b"C"


async def test_a_content_that_was_changed_is_held_no_more_and_can_be_closed(rig: Rig) -> None:
    rig.limit(memory_bytes=MIB)
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", b"content"))
        await cache.hold(content, b"content")
        await cache.write(content, 0, b"another")
        await cache.publish(content)
        others = [await _held(rig, cache, f"f{n}", bytes([n]) * 32 * KIB) for n in range(3)]
        assert await content_of(cache, content) == b"another"
        for one in (content, *others):
            cache.release(one)
        assert not any(other.bodies.covers(0, 1) for other in others if other.dropped)


async def test_the_rest_of_a_large_content_is_fetched_beside_what_is_held(rig: Rig) -> None:
    async with rig.cache() as cache:
        body = bytes(range(256)) * 20 * KIB
        content = cache.attach(await rig.put("f", body))
        await cache.hold(content, body[: 64 * KIB])
        assert await content_of(cache, content) == body
        assert rig.faults.calls["get"] > 0
