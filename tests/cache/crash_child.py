"""A process that works on a cache and is killed at an armed failpoint. It prints what it was promised, step by step.

Run as `python -m tests.cache.crash_child DIRECTORY STORE SCRIPT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from s3vol.cache.base import CacheSettings
from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.saver import CARRY_BYTES
from s3vol.store.file import FileStore
from s3vol.types import GIB, MIB

META = {"mode": "33188"}
SMALL = b"small " * 1000
FLUSHED = b"larger" * (CARRY_BYTES // 2)  # each half is flushed, not carried by the journal
LARGE_MIB = 24
BLOCK = bytes(range(256)) * 4096


def say(what: str) -> None:
    """Tell the parent, at once."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


async def small(cache: ChunkCache, body: bytes = SMALL) -> None:
    """A small file: written, synced, written again, published."""
    content = cache.create("small", META)
    await cache.write(content, 0, body[: len(body) // 2])
    await cache.sync(content)
    say("synced half")
    await cache.write(content, len(body) // 2, body[len(body) // 2 :])
    await cache.sync(content)
    say("synced")
    await cache.publish(content)
    say("published")


async def flushed(cache: ChunkCache) -> None:
    """The same with more than the journal carries."""
    await small(cache, FLUSHED)


async def large(cache: ChunkCache) -> None:
    """A large file, synced and published, then changed in one place, synced and published."""
    content = cache.create("large", META)
    for at in range(LARGE_MIB):
        await cache.write(content, at * MIB, BLOCK)
    await cache.sync(content)
    say("synced")
    await cache.publish(content)
    say("published")
    await cache.write(content, 10 * MIB, b"changed")
    await cache.sync(content)
    say("synced change")
    await cache.publish(content)
    say("published change")


async def conflict(cache: ChunkCache) -> None:
    """A file that another creates first."""
    content = cache.create("contested", META)
    await cache.write(content, 0, SMALL)
    await cache.sync(content)
    say("synced")
    await cache.publish(content)


async def evict(cache: ChunkCache) -> None:
    """Clean chunks are recorded, then evicted."""
    content = cache.create("evicted", META)
    for at in range(4):
        await cache.write(content, at * MIB, BLOCK)
    await cache.publish(content)
    say("published")
    cache.parts.writeback.record_filled()
    await cache.parts.space.evict(1 << 40)
    say("evicted")


async def main(directory: str, store_directory: str, script: str) -> None:
    """Open, run one script, close."""
    store = await FileStore.open(Path(store_directory))
    settings = CacheSettings(Path(directory), size_bytes=GIB, free_floor_bytes=0, node="child")
    async with ChunkCache.open(store, settings, volume="file://test/") as cache:
        scripts = {"small": small, "flushed": flushed, "large": large, "conflict": conflict, "evict": evict}
        await scripts[script](cache)
    say("closed")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
