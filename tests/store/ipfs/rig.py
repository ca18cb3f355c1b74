"""Nodes of a volume over daemons in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from s3vol.errors import NotFound, Unavailable
from s3vol.store.base import Store
from s3vol.store.ipfs.base import Cluster
from s3vol.store.ipfs.opening import OpenVolume, VolumeSettings, open_volume
from s3vol.types import NONCE, Health
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network

NAME = "volume"


class Breaking:
    """Lets so many calls of the daemons through, and no more."""

    def __init__(self) -> None:
        self.left: int | None = None

    def pass_one(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Unavailable("the daemon was killed")
            self.left -= 1


class BreakingBlocks(MemoryBlocks):
    """A Kubo that dies after so many calls."""

    breaking: Breaking

    async def _call(self, name: str) -> None:
        self.breaking.pass_one()
        await super()._call(name)


class BreakingCluster(MemoryCluster):
    """A Cluster peer that dies with its Kubo."""

    breaking: Breaking

    async def _call(self, name: str) -> None:
        self.breaking.pass_one()
        await super()._call(name)


class Swarm:
    """A network, and the state directories of its nodes."""

    def __init__(self, tmp_path: Path, count: int = 2) -> None:
        self.network = Network(count)
        self.breaking = [Breaking() for _ in range(count)]
        self._tmp_path = tmp_path

    async def open(self, number: int, *, peers: bool = False, **values: Any) -> OpenVolume:
        """Open the volume on a node; `peers` as with heads=peers."""
        node = self.network.nodes[number]
        blocks, cluster = BreakingBlocks(self.network, node), BreakingCluster(self.network, node)
        blocks.breaking = cluster.breaking = self.breaking[number]
        settings = VolumeSettings(NAME, self._tmp_path / node.name, node=node.name, url=node.name, scan_s=0, **values)
        return await open_volume(blocks, cluster, settings, connect=self._connect if peers else None, health=Health())

    async def _connect(self, url: str) -> Cluster:
        return MemoryCluster(self.network, next(node for node in self.network.nodes if node.name == url))

    @asynccontextmanager
    async def opened(self, *numbers: int, **values: Any) -> AsyncIterator[list[OpenVolume]]:
        """The volume on several nodes; all by default."""
        volumes = [await self.open(number, **values) for number in numbers or range(len(self.network.nodes))]
        yield volumes
        for volume in volumes:
            await volume.aclose()


async def crash(volume: OpenVolume) -> None:
    """End without publishing: what was acknowledged is in the journal."""
    await volume.parts.journal.aclose()


async def write(store: Store, key: str, text: str) -> str:
    """Put a text; returns its ETag."""
    return await store.put(key, text.encode(), metadata={NONCE: text[:40]})


async def text_of(store: Store, key: str) -> str | None:
    """The text of an object, None when there is none."""
    try:
        info = await store.head(key)
        return bytes(await store.get(key, 0, info.size, if_match=info.etag)).decode()
    except NotFound:
        return None


async def everything(store: Store) -> dict[str, str | None]:
    """All objects."""
    keys: list[str] = []
    cursor = None
    while True:
        page = await store.list("", delimiter=False, cursor=cursor)
        keys += [info.key for info in page.objects]
        cursor = page.next_cursor
        if cursor is None:
            return {key: await text_of(store, key) for key in keys}
