"""The chunk cache on a real MinIO, through the whole stack of the store: conditions, multipart, copies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from s3vol.cache.base import CacheSettings, State
from s3vol.cache.chunkcache import ChunkCache
from s3vol.errors import Conflict, PreconditionFailed
from s3vol.store.base import Store
from s3vol.store.open import open_store
from s3vol.store.settings import Source
from s3vol.types import GIB, MIB
from tests.cache.rig import META, content_of, foreign
from tests.support.minio import Minio
from tests.support.s3 import MINIO_CAPABILITIES, settings_for

pytestmark = pytest.mark.minio

BLOCK = bytes(range(256)) * 4096


@pytest.fixture
async def store(minio: Minio, bucket: str) -> AsyncIterator[Store]:
    """A store as the product opens it."""
    source = Source("s3", bucket=bucket, prefix="prefix/")
    opened = await open_store(source, settings_for(minio.endpoint), capabilities=MINIO_CAPABILITIES)
    try:
        yield opened
    finally:
        await opened.aclose()


def settings(tmp_path: Path) -> CacheSettings:
    return CacheSettings(tmp_path / "cache", size_bytes=GIB, free_floor_bytes=0)


async def test_files_of_every_size_and_kind_of_change_arrive(store: Store, tmp_path: Path) -> None:
    async with ChunkCache.open(store, settings(tmp_path), volume="minio") as cache:
        for size in (0, 1, 5 * MIB, 17 * MIB, 40 * MIB + 3):
            content = cache.create(f"f{size}", META)
            body = bytearray((BLOCK * 41)[:size])
            for at in range(0, size, MIB):
                await cache.write(content, at, body[at : at + MIB])
            await cache.publish(content)
            assert bytes(await store.get(f"f{size}", 0, 100 * MIB)) == body
            if size:
                await cache.write(content, size // 2, b"!")
                body[size // 2 : size // 2 + 1] = b"!"
                await cache.publish(content)
            cache.set_metadata(content, {**META, "mode": "33152"})
            version = await cache.publish(content)
            info = await store.head(f"f{size}")
            assert info.version == version
            assert foreign(info.metadata) == {**META, "mode": "33152"}
            assert bytes(await store.get(f"f{size}", 0, 100 * MIB)) == body
            await cache.truncate(content, size // 3)
            await cache.publish(content)
            assert bytes(await store.get(f"f{size}", 0, 100 * MIB)) == body[: size // 3]


async def test_a_streamed_file_arrives(store: Store, tmp_path: Path) -> None:
    async with (
        ChunkCache.open(store, settings(tmp_path), volume="minio") as cache,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(cache.serve)
        content = cache.create("big", META)
        for at in range(130):
            await cache.write(content, at * MIB, BLOCK)
            await trio.lowlevel.checkpoint()
        await cache.publish(content)
        assert (await store.head("big")).etag.endswith("-17")
        other = cache.attach(await store.head("big"))
        assert other is content
        nursery.cancel_scope.cancel()


async def test_a_conflict_and_a_version_that_is_gone(store: Store, tmp_path: Path) -> None:
    async with ChunkCache.open(store, settings(tmp_path), volume="minio") as cache:
        await store.put("f", BLOCK * 2, metadata=META)
        content = cache.attach(await store.head("f"))
        late = cache.create("g", META)
        await store.put("g", b"theirs", metadata=META)
        await cache.write(content, 0, b"ours")
        await store.put("f", b"theirs", metadata=META)
        with pytest.raises(PreconditionFailed):
            await cache.read(content, MIB, 10)
        for lost in (content, late):
            with pytest.raises(Conflict) as conflict:
                await cache.publish(lost)
            assert lost.state is State.CONFLICTED
            assert (await store.head(conflict.value.copy_key)).size == lost.size
            assert bytes(await store.get(lost.key, 0, 100)) == b"theirs"


async def test_a_reader_gets_every_byte_through_prefetch(store: Store, tmp_path: Path) -> None:
    async with (
        ChunkCache.open(store, settings(tmp_path), volume="minio") as cache,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(cache.serve)
        await store.put("f", BLOCK * 64, metadata=META)
        content = cache.attach(await store.head("f"))
        assert await content_of(cache, content) == BLOCK * 64
        nursery.cancel_scope.cancel()
