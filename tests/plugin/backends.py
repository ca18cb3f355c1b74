"""The stores that tests of the registry run on: each opens as many views of one empty bucket as there are nodes.

`pinset` is for the registry only, and each view of it is a node of its own: volumes in IPFS have other stores.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from s3vol.store.base import Store
from s3vol.store.file import FileStore
from s3vol.store.ipfs.pinset import PinsetStore
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.store.open import compose
from s3vol.store.s3 import S3Store
from s3vol.store.s3_client import connect
from s3vol.store.settings import Source, parse_source
from s3vol.types import Health
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network, Node
from tests.support.minio import Minio
from tests.support.s3 import MINIO_CAPABILITIES, settings_for

Open = Callable[[str], Awaitable[Store]]
"""Opens what a path below the source's root is: "" for the registry, `web/` for the volume of that prefix."""

REGISTRY_KINDS = ["memory", "file", "pinset", pytest.param("s3", marks=pytest.mark.minio)]
KINDS = ["memory", "file", pytest.param("s3", marks=pytest.mark.minio)]


class NamedMemoryStore(MemoryStore):
    """A bucket in memory that says it is one of S3, so that sources below it have names."""

    url = "s3://memory"


@asynccontextmanager
async def backend(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Open]]:
    """The source's URL, and what opens it. Everything is closed at the end."""
    opened: list[Store] = []
    bucket = MemoryBucket()
    if kind == "s3":
        server: Minio = request.getfixturevalue("minio")
        url = f"s3://{server.new_bucket()}"
    elif kind == "file":
        (tmp_path / "bucket").mkdir()
        url = f"file://{tmp_path / 'bucket'}"
    else:
        url = "ipfs://memory" if kind == "pinset" else "s3://memory"
    network = Network(0)

    async def open_one(below: str) -> Store:
        store: Store
        if kind == "s3":
            source = Source("s3", bucket=parse_source(url).bucket, prefix=below)
            settings = settings_for(server.endpoint)
            store = compose(S3Store(await connect(source, settings), source, MINIO_CAPABILITIES), settings, Health())
        elif kind == "file":
            directory = tmp_path / "bucket" / below
            directory.mkdir(exist_ok=True)
            store = await FileStore.open(directory)
        elif kind == "pinset":
            assert not below
            network.nodes.append(node := Node(f"n{len(network.nodes)}"))
            clients = MemoryBlocks(network, node), MemoryCluster(network, node)
            store = PinsetStore("memory", *clients, timeout_s=1.0, spread_s=0.0)
        else:
            store = NamedMemoryStore(bucket, below)
        opened.append(store)
        return store

    try:
        yield url, open_one
    finally:
        for store in opened:
            await store.aclose()
