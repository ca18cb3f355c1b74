"""Two nodes on one bucket, without a kernel: paths in, plain values out, the calls that the kernel would send."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable

import pytest

from s3vol import layout
from s3vol.cache.base import ContentCache
from s3vol.errors import PosixError, S3volError
from s3vol.fs import linkrecord
from s3vol.fs.base import Entry, FsSettings, Opened
from s3vol.fs.filesystem import S3Fs
from s3vol.fs.linkrecord import Record
from s3vol.store.base import ANY, FILE_TYPE, Store
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.types import ROOT_INO, Attr, AttrChange, Caller, Fh, Health, Ino

USER = Caller(1000, 1000)
ROOT = Caller(0, 0)


class Node:
    """One mount. `fs` is what is tested; the methods below are a small client of it."""

    def __init__(self, store: Store, cache: ContentCache, settings: FsSettings, health: Health | None = None) -> None:
        self.store = store
        self.cache = cache
        self.settings = settings
        self.health = health or Health()
        self.fs = S3Fs(store, cache, settings, None, self.health)

    @property
    def controls(self) -> FaultControls:
        """What goes wrong between this node and the bucket."""
        assert isinstance(self.store, FaultStore)
        return self.store.controls

    async def remount(self) -> None:
        """The same node after a restart: what the kernel held is gone, notes and pending content stay."""
        self.fs = S3Fs(self.store, self.cache, self.settings, None, self.health)
        await self.fs.start()

    async def entry(self, path: str) -> Entry:
        """Walk to `path`; every step is a lookup."""
        found = await self.fs.getattr(ROOT_INO)
        for name in [part for part in path.split("/") if part]:
            found = await self.fs.lookup(found.attr.ino, name.encode())
        return found

    async def stat(self, path: str) -> Attr:
        return (await self.entry(path)).attr

    async def parent(self, path: str) -> tuple[Ino, bytes]:
        """Inode and name, as the kernel's walk finds them."""
        folder, _, name = path.rpartition("/")
        found = await self.stat(folder)
        if not found.is_dir:
            raise PosixError(errno.ENOTDIR, folder)
        return found.ino, name.encode()

    async def open(self, path: str, flags: int = os.O_RDONLY) -> Opened:
        return await self.fs.open((await self.stat(path)).ino, flags)

    async def create(self, path: str, flags: int = os.O_WRONLY, mode: int = 0o644, who: Caller = USER) -> Fh:
        """Lookup and create, as the kernel does; the file must not be there."""
        parent, name = await self.parent(path)
        opened, _ = await self.fs.create(parent, name, mode | stat.S_IFREG, flags | os.O_CREAT, who)
        return opened.fh

    async def close(self, fh: Fh) -> None:
        try:
            await self.fs.flush(fh)
        finally:
            await self.fs.release(fh)

    async def read(self, path: str) -> bytes:
        opened = await self.open(path)
        try:
            return await self.read_handle(opened.fh)
        finally:
            await self.close(opened.fh)

    async def read_handle(self, fh: Fh) -> bytes:
        return bytes(await self.fs.read(fh, 0, 1 << 20))

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace, write, close."""
        opened = await self.open_or_create(path)
        try:
            await self.fs.write(opened, 0, data)
        except BaseException:
            await self.fs.release(opened)
            raise
        await self.close(opened)

    async def open_or_create(self, path: str) -> Fh:
        parent, name = await self.parent(path)
        opened, _ = await self.fs.create(parent, name, stat.S_IFREG | 0o644, os.O_CREAT | os.O_RDWR | os.O_TRUNC, USER)
        return opened.fh

    async def mkdir(self, path: str, mode: int = 0o755, who: Caller = USER) -> Attr:
        parent, name = await self.parent(path)
        return (await self.fs.mkdir(parent, name, mode, who)).attr

    async def unlink(self, path: str) -> None:
        await self.fs.unlink(*await self.parent(path))

    async def rmdir(self, path: str) -> None:
        await self.fs.rmdir(*await self.parent(path))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        await self.fs.rename(*await self.parent(old), *await self.parent(new), flags)

    async def symlink(self, path: str, target: bytes) -> Attr:
        parent, name = await self.parent(path)
        return (await self.fs.symlink(parent, name, target, USER)).attr

    async def link(self, old: str, new: str) -> Attr:
        ino = (await self.stat(old)).ino
        parent, name = await self.parent(new)
        return (await self.fs.link(ino, parent, name, USER)).attr

    async def setattr(self, path: str, fh: Fh | None = None, **change: int) -> Attr:
        ino = (await self.stat(path)).ino
        return (await self.fs.setattr(ino, AttrChange(**change), fh, USER)).attr

    async def rows(self, path: str = "") -> list[tuple[str, Attr]]:
        fh = await self.fs.opendir((await self.stat(path)).ino)
        found: list[tuple[str, Attr]] = []
        cursor = 0
        while batch := await self.fs.readdir(fh, cursor):
            found += [(row.name.decode(), row.entry.attr) for row in batch]
            cursor = batch[-1].cursor
        await self.fs.releasedir(fh)
        return found

    async def names(self, path: str = "") -> list[str]:
        return [name for name, _ in await self.rows(path)]


class Foreign:
    """Another S3 client, which knows nothing of s3vol."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.store = MemoryStore(bucket)

    async def put(self, key: str, body: bytes = b"", **metadata: str) -> None:
        await self.store.put(key, body, metadata=metadata, content_type=FILE_TYPE)

    def put_any(self, key: str) -> None:
        """An empty object under a key that our own stores refuse to write."""
        self.store.bucket.commit(key, b"", "etag", {}, FILE_TYPE, ANY)

    async def body(self, key: str) -> bytes:
        return bytes(await self.store.get(key, 0, 1 << 20))

    def objects(self, *, own: bool = False) -> list[str]:
        """All keys, without those of s3vol itself."""
        return [key for key in self.store.bucket.keys if own or not key.startswith(".s3vol/")]


async def fails(code: int, wanted: Awaitable[object]) -> None:
    """Await `wanted` and expect this errno."""
    with pytest.raises(S3volError) as caught:
        await wanted
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


def links(foreign: Foreign) -> list[str]:
    """What is left of hard links in the bucket, aside from their names."""
    return [key for key in foreign.objects(own=True) if key.startswith(layout.LINKS)]


async def stub(foreign: Foreign, key: str) -> layout.Link:
    """What the stub at `key` says."""
    found = layout.link_of(await foreign.store.head(key))
    assert found is not None
    return found


async def link_record(foreign: Foreign, link_id: str) -> Record:
    """The list of a link's names."""
    key = layout.record_key(link_id)
    return linkrecord.parse(await foreign.body(key), key)


MOVED = ["n/", "n/e/", "n/e/g", "n/f", "n/s", "n/x/"]


async def tree(node: Node, top: str = "d") -> None:
    """A small tree: d/f, d/e/g, an empty directory d/x, and a symlink."""
    await node.mkdir(top, 0o750)
    await node.mkdir(f"{top}/e")
    await node.mkdir(f"{top}/x")
    await node.write(f"{top}/f", b"one")
    await node.write(f"{top}/e/g", b"two")
    await node.symlink(f"{top}/s", b"f")
