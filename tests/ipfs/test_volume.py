"""A volume on three nodes with real daemons: what one node publishes the others see, through crashes, partitions and
garbage collection.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol.errors import S3volError, Unavailable
from s3vol.store.base import Store
from s3vol.store.ipfs.base import Cluster
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.kubo import Kubo
from s3vol.store.ipfs.opening import OpenVolume, VolumeSettings, open_volume
from s3vol.store.ipfs.store import IpfsStore
from s3vol.types import Health
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER

pytestmark = pytest.mark.ipfs

LOGIN = (USER, PASSWORD)
WAIT_S = 60.0


async def connect(url: str) -> Cluster:
    """Another node's peer."""
    return ClusterPeer(url, login=LOGIN)


class Site:
    """A new volume, and what its mounts keep on each node."""

    def __init__(self, swarm: Swarm, folder: Path) -> None:
        self.swarm = swarm
        self._folder = folder
        self.name = f"v{uuid.uuid4().hex[:8]}"

    async def open(self, number: int, *, heads: str = "peers", **values: Any) -> OpenVolume:
        """Open the volume on a node."""
        node = self.swarm.nodes[number]
        settings = VolumeSettings(
            self.name,
            self._folder / f"node{number}",
            node=f"node{number}",
            url=node.cluster_url,
            scan_s=0.0,  # a new writer is known at once
            **values,
        )
        return await open_volume(
            Kubo(node.kubo_url),
            ClusterPeer(node.cluster_url, login=LOGIN),
            settings,
            connect=connect if heads == "peers" else None,
            health=Health(),
        )

    @asynccontextmanager
    async def opened(self, *numbers: int, **values: Any) -> AsyncIterator[list[OpenVolume]]:
        """The volume on several nodes."""
        volumes = [await self.open(number, **values) for number in numbers]
        try:
            yield volumes
        finally:
            for volume in volumes:
                await volume.aclose()


@pytest.fixture
def site(swarm: Swarm, tmp_path: Path) -> Site:
    return Site(swarm, tmp_path)


async def put(store: Store, key: str, body: bytes) -> None:
    await store.put(key, body, metadata={})


async def read(store: Store, key: str) -> bytes:
    """The content as of an open that begins now."""
    info = await store.head(key)
    return bytes(await store.get(key, 0, info.size, if_match=info.etag))


async def names(store: Store) -> list[str]:
    """All keys."""
    page = await store.list("", delimiter=False)
    return [info.key for info in page.objects]


async def contents(store: Store) -> dict[str, bytes]:
    """Everything."""
    return {key: await read(store, key) for key in await names(store)}


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Poll until an asynchronous condition holds."""
    end_s = trio.current_time() + WAIT_S
    while True:
        if await condition():
            return
        if trio.current_time() > end_s:
            raise TimeoutError(f"{what}: not within {WAIT_S:g} s")
        await trio.sleep(0.1)


async def rounds(site: Site, count: int) -> None:
    """Write on one node, read on the two others at once: never an older version than the published one."""
    async with site.opened(0, 1, 2) as volumes:
        writer, *readers = (volume.store() for volume in volumes)
        for number in range(count):
            body = b"%d " % number * 1000
            await put(writer, "file", body)
            await writer.sync()
            for reader in readers:
                assert await read(reader, "file") == body


@pytest.mark.soak
async def test_five_hundred_opens_after_publication_see_it_on_the_other_nodes(site: Site) -> None:
    await rounds(site, 500)  # two minutes


async def test_writers_of_different_files_see_each_others(site: Site) -> None:
    async with site.opened(0, 1, 2) as volumes:
        stores = [volume.store() for volume in volumes]

        async def write(number: int, store: IpfsStore) -> None:
            for turn in range(5):
                await put(store, f"dir{turn}/of{number}", os.urandom(50_000))
                await store.sync()

        async with trio.open_nursery() as nursery:
            for number, store in enumerate(stores):
                nursery.start_soon(write, number, store)
        found = [await contents(store) for store in stores]
        assert len(found[0]) == 15
        assert found[0] == found[1] == found[2]


@pytest.mark.soak  # test_swarm.py has the same through the kernel
async def test_what_was_synced_to_two_replicas_survives_the_crash_of_its_node(site: Site) -> None:
    nodes = site.swarm.nodes
    synced: dict[str, bytes] = {}
    async with site.opened(1, 2) as others:

        async def write(store: IpfsStore, enough: trio.Event) -> None:
            for number in range(1000):
                name, body = f"file{number}", os.urandom(300_000)
                try:
                    await put(store, name, body)
                    await store.sync()
                except S3volError:
                    return
                synced[name] = body
                if len(synced) == 3:
                    enough.set()

        victim = await site.open(0, replicas=2, timeout_s=5.0)
        async with trio.open_nursery() as nursery:
            enough = trio.Event()
            nursery.start_soon(write, victim.store(), enough)
            await enough.wait()
            await trio.to_thread.run_sync(nodes[0].kill)
        await victim.aclose()
        assert len(synced) >= 3
        for other in others:
            for name, body in synced.items():
                assert await read(other.store(), name) == body
        await put(others[0].store(), "meanwhile", b"of another node")
        await others[0].store().sync()

        nodes[0].start()
        await trio.to_thread.run_sync(site.swarm.await_ready)
        async with site.opened(0) as (back,):
            await back.store().sync()  # what it had not published when it was killed
            ours = await contents(back.store())
            assert synced.items() <= ours.items()
            assert ours["meanwhile"] == b"of another node"
            for other in others:
                assert await contents(other.store()) == ours


@pytest.mark.soak  # test_swarm.py has the same through the kernel
async def test_two_halves_write_on_and_converge_with_conflicts_named(tmp_path: Path) -> None:
    with Swarm(3, apart=True, open_rpc=True) as swarm:
        site = Site(swarm, tmp_path)
        async with site.opened(0, 1, 2, heads="local") as volumes:
            stores = [volume.store() for volume in volumes]
            await put(stores[0], "common", b"base")
            await put(stores[0], "untouched", b"base")
            await stores[0].sync()
            for store in stores:
                await eventually(partial(holds, store, "common", b"base"), "the base")
            with swarm.cut([0], [1, 2]):
                await put(stores[0], "common", b"left")
                await put(stores[0], "only-left", b"l")
                await put(stores[1], "common", b"right")
                await put(stores[2], "only-right", b"r")
                for store in stores:
                    await store.sync()
                await eventually(lambda: holds(stores[2], "common", b"right"), "the other of this half")
                assert await read(stores[0], "common") == b"left"
            await eventually(lambda: agree(stores, 5), "one tree")
            found = await contents(stores[0])
        assert {key: found[key] for key in ("untouched", "only-left", "only-right")} == {
            "untouched": b"base",
            "only-left": b"l",
            "only-right": b"r",
        }
        (conflict,) = found.keys() - {"untouched", "only-left", "only-right", "common"}
        assert conflict.startswith("common.s3vol-conflict-")
        assert {found["common"], found[conflict]} == {b"left", b"right"}


async def holds(store: Store, key: str, body: bytes) -> bool:
    """True when an open now reads this."""
    try:
        return await read(store, key) == body
    except (S3volError, Unavailable):
        return False


async def agree(stores: list[IpfsStore], count: int) -> bool:
    """True when all show the same, of so many files, and have said so."""
    for store in stores:
        await store.sync()
    found = [await contents(store) for store in stores]
    return len(found[0]) == count and all(one == found[0] for one in found)
