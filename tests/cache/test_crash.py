"""kill -9 at each named step: what was promised before it is there afterwards, whatever the order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3vol.cache.base import CacheSettings, State
from s3vol.cache.chunkcache import ChunkCache
from s3vol.errors import Conflict
from s3vol.failpoints import Point
from s3vol.store.base import Store
from s3vol.store.file import FileStore
from s3vol.types import GIB, MIB
from tests.cache.crash_child import BLOCK, FLUSHED, LARGE_MIB, META, SMALL
from tests.cache.rig import content_of

SMALL_POINTS = (
    "write-after-data", "sync-after-commit", "sync-after-commit:2", "publish-before-put", "publish-after-put",
)  # fmt: skip
FLUSHED_POINTS = ("sync-after-data", "sync-after-data:2", "sync-after-commit", "sync-after-commit:2")
LARGE_POINTS = (
    "upload-after-create", "upload-after-part", "upload-after-part:3", "upload-before-complete",
    "upload-after-complete", "upload-after-create:2", "upload-after-part:4", "upload-before-complete:2",
    "upload-after-complete:2",
)  # fmt: skip


def run_until_killed(tmp_path: Path, script: str, point: str) -> list[str]:
    """What the child was promised before it died at `point`."""
    assert Point(point.partition(":")[0])
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache.crash_child", tmp_path / "cache", tmp_path / "store", script],
        env={**os.environ, "S3VOL_FAILPOINT": point},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, f"{point} was not reached: {done.stdout}{done.stderr}"
    return done.stdout.split("\n")[:-1]


async def reopen(tmp_path: Path) -> tuple[Store, CacheSettings]:
    store = await FileStore.open(tmp_path / "store")
    return store, CacheSettings(tmp_path / "cache", size_bytes=GIB, free_floor_bytes=0, node="parent")


async def publish_all(cache: ChunkCache) -> None:
    for content in list(cache.pending()):
        await cache.publish(content)


async def body(store: Store, key: str) -> bytes:
    return bytes(await store.get(key, 0, 1 << 30))


@pytest.fixture(autouse=True)
def _store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()


@pytest.mark.parametrize(
    ("script", "point"),
    [("small", point) for point in SMALL_POINTS] + [("flushed", point) for point in FLUSHED_POINTS],
)
async def test_a_small_file_survives(tmp_path: Path, script: str, point: str) -> None:
    promised = run_until_killed(tmp_path, script, point)
    wanted = {"small": SMALL, "flushed": FLUSHED}[script]
    store, settings = await reopen(tmp_path)
    async with ChunkCache.open(store, settings, volume="file://test/") as cache:
        await publish_all(cache)
    keys = [found.key for found in (await store.list("")).objects]
    if "synced" in promised:
        assert await body(store, "small") == wanted
    elif "synced half" in promised:
        assert (await body(store, "small"))[: len(wanted) // 2] == wanted[: len(wanted) // 2]
    else:
        assert keys in ([], ["small"])
    assert keys in ([], ["small"]), "no conflict with ourselves"


@pytest.mark.parametrize("point", LARGE_POINTS)
async def test_a_large_file_survives(tmp_path: Path, point: str) -> None:
    promised = run_until_killed(tmp_path, "large", point)
    assert promised[0] == "synced"
    store, settings = await reopen(tmp_path)
    async with ChunkCache.open(store, settings, volume="file://test/") as cache:
        await publish_all(cache)
    expected = bytearray(BLOCK * LARGE_MIB)
    if "synced change" in promised:
        expected[10 * MIB : 10 * MIB + 7] = b"changed"
    assert await body(store, "large") == expected
    assert [found.key for found in (await store.list("")).objects] == ["large"]


async def test_a_conflict_copy_that_was_made_is_not_lost(tmp_path: Path) -> None:
    store, settings = await reopen(tmp_path)
    await store.put("contested", b"theirs", metadata=META)
    run_until_killed(tmp_path, "conflict", "conflict-after-copy")
    async with ChunkCache.open(store, settings, volume="file://test/") as cache:
        (content,) = cache.pending()
        cache.refer(content)
        with pytest.raises(Conflict):
            await cache.publish(content)
        assert content.state is State.CONFLICTED
    keys = [found.key for found in (await store.list("")).objects]
    assert await body(store, "contested") == b"theirs"
    assert len(keys) >= 2
    for key in keys[1:]:
        assert await body(store, key) == SMALL


async def test_a_chunk_that_was_being_evicted_is_not_taken_for_zeros(tmp_path: Path) -> None:
    promised = run_until_killed(tmp_path, "evict", "evict-after-record")
    assert promised == ["published"]
    store, settings = await reopen(tmp_path)
    async with ChunkCache.open(store, settings, volume="file://test/") as cache:
        content = cache.attach(await store.head("evicted"))
        assert await content_of(cache, content) == BLOCK * 4


async def test_a_crash_while_replaying_changes_nothing(tmp_path: Path) -> None:
    run_until_killed(tmp_path, "small", "publish-before-put")
    run_until_killed(tmp_path, "small", "replay-after-load")
    store, settings = await reopen(tmp_path)
    async with ChunkCache.open(store, settings, volume="file://test/") as cache:
        await publish_all(cache)
    assert await body(store, "small") == SMALL
