"""The backends that the conformance suite runs on. A new backend is one entry in BACKENDS, and no new tests."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from s3vol.store.base import Store
from s3vol.store.fault import FaultStore
from s3vol.store.file import FILE_CAPABILITIES, FileStore
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.kubo import Kubo
from s3vol.store.ipfs.opening import OpenVolume, VolumeSettings, open_volume
from s3vol.store.ipfs.store import IPFS_CAPABILITIES
from s3vol.store.limit import LimitStore
from s3vol.store.memory import MEMORY_CAPABILITIES, MemoryBucket, MemoryStore
from s3vol.store.retry import RetryStore
from s3vol.store.s3 import S3Store
from s3vol.store.s3_client import connect
from s3vol.store.settings import Source
from s3vol.store.trace import TraceStore
from s3vol.types import KIB, Health
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network
from tests.support.minio import Minio
from tests.support.s3 import MINIO_CAPABILITIES, proxied, settings_for


class OpenAt(Protocol):
    """Opens a view, on a prefix ("" for all), of the one bucket that a test has. The fixture closes it."""

    def __call__(self, prefix: str, node: int = 0) -> Awaitable[Store]:
        """The view of one of several nodes; they are one where all see the bucket itself."""
        ...


Backend = Callable[[Path, pytest.FixtureRequest], AbstractAsyncContextManager[OpenAt]]
"""Makes an empty bucket for one test; may use the directory, and ask for fixtures by name."""

PART_BYTES = 4 * KIB  # small parts keep tests fast; tests read the size from the capabilities


@asynccontextmanager
async def memory(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """The reference."""
    bucket = MemoryBucket()
    capabilities = replace(MEMORY_CAPABILITIES, min_part_bytes=PART_BYTES)

    async def open_at(prefix: str, node: int = 0) -> Store:
        return MemoryStore(bucket, prefix, capabilities=capabilities)

    yield open_at


@asynccontextmanager
async def memory_poor(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """The reference, poorer: children hidden by an object, no metadata in listings, no watch, ETags that are no MD5."""
    bucket = MemoryBucket()
    capabilities = replace(
        MEMORY_CAPABILITIES,
        min_part_bytes=PART_BYTES,
        hides_children=True,
        list_metadata=False,
        etag_is_md5=False,
        watch=False,
    )

    async def open_at(prefix: str, node: int = 0) -> Store:
        return MemoryStore(bucket, prefix, capabilities=capabilities)

    yield open_at


@asynccontextmanager
async def file(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """A directory."""
    yield _file_opener(tmp_path, use_xattrs=True)


@asynccontextmanager
async def file_sidecar(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """A directory on a file system without user attributes."""
    yield _file_opener(tmp_path, use_xattrs=False)


def _file_opener(tmp_path: Path, *, use_xattrs: bool) -> OpenAt:
    directory = tmp_path / "bucket"
    directory.mkdir()
    capabilities = replace(FILE_CAPABILITIES, min_part_bytes=PART_BYTES)

    async def open_at(prefix: str, node: int = 0) -> Store:
        return await FileStore.open(directory, prefix, capabilities=capabilities, use_xattrs=use_xattrs)

    return open_at


@asynccontextmanager
async def s3(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """A real MinIO."""
    server: Minio = request.getfixturevalue("minio")
    bucket = server.new_bucket()

    async def open_at(prefix: str, node: int = 0) -> Store:
        source = Source("s3", bucket=bucket, prefix=prefix)
        return S3Store(await connect(source, settings_for(server.endpoint)), source, MINIO_CAPABILITIES)

    yield open_at


@asynccontextmanager
async def s3_proxied(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """The same as behind a proxy: no request goes the light way."""
    server: Minio = request.getfixturevalue("minio")
    async with s3(tmp_path, request) as open_directly:

        async def open_at(prefix: str, node: int = 0) -> Store:
            with proxied(server.endpoint):
                return await open_directly(prefix)

        yield open_at


@asynccontextmanager
async def decorated(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """The reference under all decorators: a decorator keeps the contract of what it wraps."""
    async with memory(tmp_path, request) as open_at:

        async def open_decorated(prefix: str, node: int = 0) -> Store:
            health = Health()
            traced = TraceStore(FaultStore(await open_at(prefix)), health)
            return RetryStore(LimitStore(traced, reads=4, writes=2, body_bytes=PART_BYTES), health=health)

        yield open_decorated


@asynccontextmanager
async def _volumes(open_volume_in: Callable[[Path], Awaitable[OpenVolume]], folder: Path) -> AsyncIterator[OpenAt]:
    """One volume; a node is a writer with a journal of its own."""
    opened: dict[int, OpenVolume] = {}
    capabilities = replace(IPFS_CAPABILITIES, min_part_bytes=PART_BYTES)

    async def open_at(prefix: str, node: int = 0) -> Store:
        if node not in opened:
            opened[node] = await open_volume_in(folder / f"state{node}")
        return opened[node].view(prefix, capabilities=capabilities)

    yield open_at
    for volume in opened.values():
        await volume.aclose()


@asynccontextmanager
async def ipfs(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """A volume in IPFS, on nodes whose daemons are in memory."""
    network = Network()
    (daemons,) = network.nodes

    async def open_in(state: Path) -> OpenVolume:
        blocks, cluster = MemoryBlocks(network, daemons), MemoryCluster(network, daemons)
        return await open_volume(blocks, cluster, VolumeSettings("volume", state, scan_s=0.0), health=Health())

    async with _volumes(open_in, tmp_path) as open_at:
        yield open_at


@pytest.fixture(scope="session")
def ipfs_daemons() -> Iterator[Swarm]:
    """A Kubo and a Cluster peer. Missing ones fail: only `soak` asks for them here."""
    with Swarm(1) as one:
        yield one


@asynccontextmanager
async def ipfs_real(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenAt]:
    """A volume in IPFS, on real daemons."""
    swarm: Swarm = request.getfixturevalue("ipfs_daemons")
    (daemons,) = swarm.nodes
    name = f"v{uuid.uuid4().hex}"

    async def open_in(state: Path) -> OpenVolume:
        peer = ClusterPeer(daemons.cluster_url, login=(USER, PASSWORD))
        settings = VolumeSettings(name, state, scan_s=0.0)
        return await open_volume(Kubo(daemons.kubo_url), peer, settings, health=Health())

    async with _volumes(open_in, tmp_path) as open_at:
        yield open_at


BACKENDS: dict[str, Backend] = {
    "memory": memory,
    "memory-poor": memory_poor,
    "decorated": decorated,
    "file": file,
    "file-sidecar": file_sidecar,
    "s3": s3,
    "s3-proxied": s3_proxied,
    "ipfs": ipfs,
    "ipfs-daemons": ipfs_real,
}

MARKS: dict[str, list[pytest.MarkDecorator]] = {
    "s3": [pytest.mark.minio],
    "s3-proxied": [pytest.mark.minio],
    "ipfs-daemons": [pytest.mark.ipfs, pytest.mark.soak],
}
"""Marks of a backend's tests, by the same names: what needs a server is marked here."""


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS])
async def store_at(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenAt]:
    """Opens views of one empty bucket."""
    opened: list[Store] = []
    async with BACKENDS[request.param](tmp_path, request) as open_at:

        async def open_and_note(prefix: str, node: int = 0) -> Store:
            opened.append(await open_at(prefix, node))
            return opened[-1]

        yield open_and_note
        for store in opened:
            await store.aclose()


@pytest.fixture
async def store(store_at: OpenAt) -> Store:
    """A store on an empty bucket."""
    return await store_at("")
