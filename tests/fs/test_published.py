"""Stores that publish later than they acknowledge: what the file system waits for."""

from __future__ import annotations

import os
from dataclasses import replace

from s3vol.errors import Unavailable
from s3vol.fs.base import Progress
from s3vol.store.base import Unpublished
from s3vol.store.memory import MEMORY_CAPABILITIES, MemoryBucket, MemoryStore
from s3vol.types import ROOT_INO
from tests.fs.conftest import Nodes
from tests.fs.rig import Node


class Later(MemoryStore):
    """Counts in `published` the calls that asked for all changes to be published."""

    published = 0

    def __init__(self, bucket: MemoryBucket, *, publishes_later: bool = True) -> None:
        super().__init__(bucket, capabilities=replace(MEMORY_CAPABILITIES, publishes_later=publishes_later))

        self.left = Unpublished()
        self.away = False

    @property
    def unpublished(self) -> Unpublished:
        """See Store.unpublished."""
        return self.left

    async def sync(self) -> None:
        """See Store.sync."""
        await super().sync()
        if self.away:
            raise Unavailable("the other machines are away")
        self.published += 1
        self.left = Unpublished()


async def test_a_remote_close_of_a_writer_and_fsync_wait_until_the_store_has_published(
    nodes: Nodes, bucket: MemoryBucket
) -> None:
    store = Later(bucket)
    node: Node = await nodes("a", store)
    fh = await node.create("f")
    await node.fs.write(fh, 0, b"x")
    assert store.published == 0
    await node.fs.fsync(fh)
    assert store.published == 1
    await node.fs.fsync(fh)  # nothing was written since, but other names may have changed
    assert store.published == 2
    await node.close(fh)
    assert store.published == 3
    await node.close((await node.open("f", os.O_RDONLY)).fh)
    assert store.published == 3
    directory = await node.fs.opendir(ROOT_INO)
    await node.fs.fsyncdir(directory)
    assert store.published == 4


async def test_local_close_and_fsync_do_not_wait_for_the_store(nodes: Nodes, bucket: MemoryBucket) -> None:
    store = Later(bucket)
    node: Node = await nodes("a", store, close_remote=False, fsync_remote=False)
    fh = await node.create("f")
    await node.fs.write(fh, 0, b"x")
    await node.fs.fsync(fh)
    await node.close(fh)
    assert store.published == 0


async def test_a_flush_waits_for_the_store_whatever_the_mode(nodes: Nodes, bucket: MemoryBucket) -> None:
    store = Later(bucket)
    node: Node = await nodes("a", store, close_remote=False, fsync_remote=False)
    await node.close(await node.create("f"))
    await node.fs.flush_path(None, lambda _: None)
    assert store.published == 1


async def test_a_store_whose_changes_are_published_when_they_return_is_not_asked(
    nodes: Nodes, bucket: MemoryBucket
) -> None:
    store = Later(bucket, publishes_later=False)
    node: Node = await nodes("a", store)
    fh = await node.create("f")
    await node.fs.write(fh, 0, b"x")
    await node.fs.fsync(fh)
    await node.close(fh)
    await node.fs.fsyncdir(await node.fs.opendir(ROOT_INO))
    await node.fs.flush_path(None, lambda _: None)
    assert store.published == 0


async def test_a_drain_publishes_and_says_what_the_store_could_not(nodes: Nodes, bucket: MemoryBucket) -> None:
    store = Later(bucket)
    node: Node = await nodes("a", store, close_remote=False)
    await node.write("f", b"abc")
    store.left, store.away = Unpublished(2, 10), True
    seen: list[Progress] = []
    assert await node.fs.drain(10, seen.append) == Progress(2, 10)
    assert seen[-1] == Progress(2, 10)
    store.away = False
    assert await node.fs.drain(10, seen.append) == Progress(0, 0)
    assert store.published == 1
