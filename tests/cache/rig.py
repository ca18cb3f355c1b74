"""A chunk cache on a bucket in memory, with faults on demand, and crashes that are copies of its directory."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from s3vol.cache.base import CacheSettings
from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.store.base import Capabilities
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MEMORY_CAPABILITIES, MemoryBucket, MemoryStore
from s3vol.types import GIB, MIB, NONCE, Event, Health, ObjectInfo, WriteError

VOLUME = "memory://bucket/"
META: Mapping[str, str] = {"mode": "33188", "uid": "0", "gid": "0"}


@dataclass
class Rig:
    """One cache directory and the bucket behind it."""

    directory: Path
    bucket: MemoryBucket = field(default_factory=MemoryBucket)
    capabilities: Capabilities = MEMORY_CAPABILITIES
    health: Health = field(default_factory=Health)
    settings: CacheSettings = field(init=False)
    faults: FaultControls = field(default_factory=FaultControls)

    def __post_init__(self) -> None:
        self.settings = CacheSettings(
            self.directory, size_bytes=GIB, free_floor_bytes=0, publish_delay_s=0, node="here"
        )
        send, self.events = trio.open_memory_channel[Event](1000)
        self.send = send
        self.store = FaultStore(MemoryStore(self.bucket, capabilities=self.capabilities), self.faults)
        self.other = MemoryStore(self.bucket)  # another client of the bucket, without faults

    def limit(self, **changes: object) -> None:
        """Change settings of caches that are opened from now on."""
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]  # names and types are the caller's

    @asynccontextmanager
    async def cache(self, *, serve: bool = True, volume: str = VOLUME) -> AsyncIterator[ChunkCache]:
        """The cache, with its background running if `serve`."""
        async with ChunkCache.open(
            self.store, self.settings, volume=volume, events=self.send, health=self.health
        ) as cache:
            if not serve:
                yield cache
                return
            async with trio.open_nursery() as nursery:
                await nursery.start(cache.serve)
                yield cache
                nursery.cancel_scope.cancel()

    def crashed(self, to: Path, *, power_failure: bool = False) -> Rig:
        """A rig on what is left of the directory when the process dies now. The bucket is the same."""
        shutil.copytree(self.directory, to)
        if power_failure:
            with sqlite3.connect(to / "journal.db") as connection:
                connection.execute("UPDATE meta SET value='another boot' WHERE name='boot'")
            connection.close()
        twin = Rig(to, self.bucket, self.capabilities)
        twin.settings = replace(self.settings, directory=to)
        return twin

    def body(self, key: str) -> bytes:
        """What the bucket holds."""
        return self.bucket.objects[key].body

    def keys(self) -> list[str]:
        """All keys in the bucket."""
        return list(self.bucket.keys)

    async def put(self, key: str, body: bytes, metadata: Mapping[str, str] = META) -> ObjectInfo:
        """Somebody else writes an object."""
        await self.other.put(key, body, metadata=metadata)
        return await self.other.head(key)

    def write_errors(self) -> list[WriteError]:
        """The events so far."""
        found: list[WriteError] = []
        while True:
            try:
                event = self.events.receive_nowait()
            except trio.WouldBlock:
                return found
            if isinstance(event, WriteError):
                found.append(event)


async def content_of(cache: ChunkCache, content: CachedContent) -> bytes:
    """All bytes, as a reader sees them."""
    found = bytearray()
    while len(found) < content.size:
        found += await cache.read(content, len(found), MIB)
    return bytes(found)


def foreign(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Metadata without our nonce."""
    return {name: value for name, value in (metadata or {}).items() if name != NONCE}
