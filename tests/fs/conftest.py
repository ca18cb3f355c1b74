"""Nodes for the tests of the file system, on the real chunk cache and on one in memory.

A test that asks for `autojump_clock` runs on the cache in memory only: while the chunk cache waits for its disk
thread, such a clock would jump to the next time-out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol.cache.base import CacheSettings
from s3vol.cache.chunkcache import ChunkCache
from s3vol.fs.base import FsSettings
from s3vol.store.base import Store
from s3vol.store.fault import FaultStore
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.types import KIB, MIB
from tests.fs.memory_cache import MemoryCache
from tests.fs.rig import Foreign, Node

Nodes = Callable[..., Any]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both caches for every test with a node, but for those that play with time."""
    if "nodes" in metafunc.fixturenames:
        kinds = ["memory"] if "autojump_clock" in metafunc.fixturenames else ["memory", "disk"]
        metafunc.parametrize("kind", kinds)


@pytest.fixture
def bucket() -> MemoryBucket:
    """One empty bucket, which all nodes of a test share."""
    return MemoryBucket()


@pytest.fixture
async def nodes(bucket: MemoryBucket, kind: str, tmp_path: Path) -> AsyncIterator[Nodes]:
    """Makes nodes: `await nodes("a", close_remote=False)`. Inside the event loop, as their clock is trio's."""
    async with AsyncExitStack() as stack:

        async def make(name: str, store: Store | None = None, **settings: Any) -> Node:
            fault = FaultStore(store or MemoryStore(bucket))
            if kind == "memory":
                return Node(fault, MemoryCache(fault, name), FsSettings(node=name, **settings))
            limits = CacheSettings(tmp_path / name, size_bytes=64 * MIB, free_floor_bytes=64 * KIB, node=name)
            cache = await stack.enter_async_context(ChunkCache.open(fault, limits, volume="memory:"))
            return Node(fault, cache, FsSettings(node=name, **settings))

        yield make


@pytest.fixture
async def a(nodes: Nodes) -> Node:
    """A node."""
    made: Node = await nodes("a")
    return made


@pytest.fixture
async def b(nodes: Nodes) -> Node:
    """Another node on the same bucket."""
    made: Node = await nodes("b")
    return made


@pytest.fixture
def foreign(bucket: MemoryBucket) -> Foreign:
    """A client that knows nothing of s3vol."""
    return Foreign(bucket)


@pytest.fixture
async def walker(a: Node) -> AsyncIterator[Node]:
    """A node whose background work runs, as in a mount."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fs.run)
        yield a
        nursery.cancel_scope.cancel()
