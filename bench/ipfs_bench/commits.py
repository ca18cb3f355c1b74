"""What a commit costs: its time by the number of changed files, and what a thousand of them leave in the databases.

On the store, without a mount: a commit is what `sync` does, and through a mount the time of the changes themselves
would hide it. MinIO knows no commits; beside them stands the time of as many PUTs, eight at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import trio

from ipfs_bench.places import Places
from s3vol.store.base import Store
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.collect import Collector
from s3vol.store.ipfs.kubo import Kubo
from s3vol.store.ipfs.opening import OpenVolume, VolumeSettings, open_volume
from s3vol.types import MIB, Health
from s3vol_bench.growth import Chart
from tests.support.ipfs import Node
from tests.support.ipfs_config import PASSWORD, USER
from tests.support.s3 import s3_store

CHANGED = (1, 10, 100, 1000)
_BODY_BYTES = 4096
_AT_ONCE = 8
_FOLDERS = 10
_CALL_S = 60.0
_POINTS = 20  # of the database's size


@contextlib.asynccontextmanager
async def _volume(places: Places, name: str) -> AsyncIterator[OpenVolume]:
    node = places.swarm.nodes[0]
    settings = VolumeSettings(name, places.folder(), node="bench", url=node.cluster_url)
    cluster = ClusterPeer(node.cluster_url, login=(USER, PASSWORD))
    volume = await open_volume(Kubo(node.kubo_url), cluster, settings, health=Health())
    try:
        yield volume
    finally:
        await volume.aclose()


async def _change(store: Store, count: int) -> None:
    slots = trio.CapacityLimiter(_AT_ONCE)

    async def put(number: int) -> None:
        async with slots:
            await store.put(f"d{number % _FOLDERS}/f{number}", os.urandom(_BODY_BYTES), metadata={"mode": "33188"})

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(put, number)


async def latency(places: Places, repeats: int, say: Callable[[str], None]) -> Chart:
    """Milliseconds, medians, in a volume of a thousand files."""
    chart = Chart(f"Time of a commit, in a volume of {CHANGED[-1]:,} files", "changed files", "ms")
    bucket = places.server.new_bucket("bench")
    async with _volume(places, "latency") as volume, s3_store(places.server.endpoint, bucket) as plain:
        store = volume.store()
        for filled in (store, plain):
            await _change(filled, CHANGED[-1])
            await filled.sync()
        for count in CHANGED:
            say(f"commits of {count} changed files")
            times: list[tuple[float, float, float]] = []
            for _ in range(repeats):
                began_s = trio.current_time()
                await _change(store, count)
                changed_s = trio.current_time()
                await store.sync()
                synced_s = trio.current_time()
                await _change(plain, count)
                times.append((synced_s - changed_s, synced_s - began_s, trio.current_time() - synced_s))
            names = ("IPFS: the commit", "IPFS: changes and commit", "MinIO: as many PUTs")
            for name, values in zip(names, zip(*times, strict=True), strict=True):
                chart.add(name, count, 1000 * sorted(values)[repeats // 2])
    return chart


async def databases(places: Places, commits: int, say: Callable[[str], None]) -> tuple[Chart, list[str]]:
    """Sizes of Cluster's datastores over so many commits of one changed file each; and what else was seen."""
    chart = Chart(f"Datastores of IPFS-Cluster over {commits:,} commits of one changed file each", "commits", "KiB")
    nodes: Sequence[Node] = places.swarm.nodes
    async with _volume(places, "databases") as volume:
        store = volume.store()
        await _change(store, 1)
        await store.sync()
        before = [_datastore_bytes(node) for node in nodes]
        kubo_bytes = (await volume.blocks.stat(timeout_s=_CALL_S)).used_bytes
        began_s = trio.current_time()
        for commit in range(1, commits + 1):
            await _change(store, 1)
            await store.sync()
            if commit % max(1, commits // _POINTS) == 0:
                say(f"{commit} commits")
                for number, node in enumerate(nodes):
                    chart.add(f"machine {number + 1}", commit, (_datastore_bytes(node) - before[number]) / 1024)
        each_s = (trio.current_time() - began_s) / commits
        added_bytes = (await volume.blocks.stat(timeout_s=_CALL_S)).used_bytes - kubo_bytes
        outcome = await Collector(volume, retention_s=0.0).collect()
        left_bytes = (await volume.blocks.stat(timeout_s=_CALL_S)).used_bytes - kubo_bytes
    grown = [_datastore_bytes(node) - size for node, size in zip(nodes, before, strict=True)]
    unpinned = f"{outcome.removed} segments and {outcome.commits} commits"
    return chart, [
        f"{commits:,} commits of one changed file took {1000 * each_s:.0f} ms each, one after the other",
        f"after collection, which unpinned {unpinned}, Cluster's datastores had grown by "
        f"{' and '.join(f'{size / commits:,.0f}' for size in grown)} bytes for each commit",
        f"Kubo of the writer had {added_bytes / MIB:.1f} MiB more after them, and {left_bytes / MIB:.1f} MiB after "
        "collection",
    ]


def _datastore_bytes(node: Node) -> int:
    """All files of the peer's folder; those that leveldb removes meanwhile are not there."""
    total = 0
    for path in Path(node.folder / "cluster").rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
