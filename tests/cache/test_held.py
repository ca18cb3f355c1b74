"""First bytes that came along with opens: in memory until the last close, on the disk when there are too many."""

from __future__ import annotations

import errno

import pytest

from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.errors import Conflict, PosixError
from s3vol.types import KIB, MIB
from tests.cache.rig import META, Rig, content_of


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


async def test_a_write_brings_them_to_the_disk(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        await cache.write(content, 0, b"C")
        assert await content_of(cache, content) == b"Content"
        assert _on_disk(cache, content)


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
        assert not content.bodies.covers(64 * KIB, 64 * KIB + 1), "what was fetched went when all of it was served"


async def test_a_write_keeps_what_is_held_around_it_for_the_conflict_copy(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        await rig.put("f", b"of another writer")
        await cache.write(content, 0, b"C")
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert rig.body(content.conflict_key) == b"Content"
        assert await content_of(cache, content) == b"Content"


@pytest.mark.parametrize(("size", "expected"), [(3, b"con"), (9, b"content\0\0"), (0, b"")])
async def test_a_truncate_keeps_what_is_held_and_not_cut_for_the_conflict_copy(
    rig: Rig, size: int, expected: bytes
) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        await rig.put("f", b"of another writer")
        await cache.truncate(content, size)
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert rig.body(content.conflict_key) == expected
        assert await content_of(cache, content) == expected


async def test_a_change_of_metadata_keeps_what_is_held_for_the_conflict_copy(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = await _held(rig, cache, "f", b"content")
        await rig.put("f", b"of another writer")
        cache.set_metadata(content, {**META, "mode": "33216"})
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert rig.body(content.conflict_key) == b"content"


async def test_they_are_read_on_after_a_change_of_metadata_was_published(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", b"content"))
        await cache.hold(content, b"content")
        cache.set_metadata(content, {**META, "mode": "33216"})
        await cache.publish(content)
        await rig.other.delete("f")
        assert await content_of(cache, content) == b"content"


async def test_they_are_read_on_after_a_rename(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.attach(await rig.put("f", b"content"))
        await cache.hold(content, b"content")
        cache.rekey(content, await rig.put("g", b"content"))
        await rig.other.delete("g")
        assert await content_of(cache, content) == b"content"


async def test_they_do_not_hide_what_was_written_before_they_came(rig: Rig) -> None:
    async with rig.cache() as cache:
        info = await rig.put("f", b"content")
        content = cache.attach(info)
        await cache.write(content, 0, b"C")
        assert cache.attach(info) is content  # as when another client puts the bytes of a former version again
        await cache.hold(content, b"content")
        assert await content_of(cache, content) == b"Content"
        await cache.publish(content)
        assert rig.body("f") == b"Content"


async def test_what_cannot_go_to_the_disk_is_not_left_in_memory_uncounted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.limit(memory_bytes=MIB)
    async with rig.cache() as cache:
        first, second = [cache.attach(await rig.put(f"f{n}", bytes(40 * KIB))) for n in range(2)]
        await cache.hold(first, bytes(40 * KIB))

        async def broken(need_bytes: int) -> None:
            raise PosixError(errno.EIO, "cache disk")

        with monkeypatch.context() as patch:
            patch.setattr(cache.parts.space, "make_room", broken)
            with pytest.raises(PosixError):
                await cache.hold(second, bytes(40 * KIB))
        assert not first.bodies.covers(0, 1)
