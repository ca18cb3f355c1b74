"""Pages on their way to the kernel: what has to wait for them waits, and nothing else does."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from s3vol.fs.base import DirEntry, Entry, FileSystem, Opened, Pages, Range
from s3vol.types import Attr, AttrChange, Caller, Event, Fh, Ino, Invalidation
from s3vol_fuse.notify import Notifier
from s3vol_fuse.ops import Operations
from s3vol_fuse.push import Pusher

INO, FH = Ino(5), Fh(1)
CONTEXT = cast("pyfuse3.RequestContext", Caller(0, 0))
PAGES = Pages(INO, 4096, b"x" * 8192)


def _entry(size: int) -> Entry:
    return Entry(Attr(INO, stat.S_IFREG | 0o644, 0, 0, size, 0, 0, 0), 1.0, 1.0)


@dataclass
class OneFile:
    """A file system with one file. What it answers is set by the test."""

    size: int = 20_000
    now: int = 20_000
    opened: Opened = field(default_factory=lambda: Opened(FH, keep_cache=True))
    given: int = 0

    async def read(self, fh: Fh, offset: int, length: int) -> bytes:
        return b"x" * length

    def beside(self, fh: Fh, offset: int, length: int) -> Range:
        return 4096, 12288

    def pages(self, fh: Fh, start: int, end: int) -> Pages:
        self.given += 1
        return PAGES

    def entry(self, ino: Ino, entry: Entry) -> Entry:
        return _entry(self.now)

    async def getattr(self, ino: Ino, fh: Fh | None = None) -> Entry:
        return _entry(self.size)

    async def setattr(self, ino: Ino, change: AttrChange, fh: Fh | None, caller: Caller) -> Entry:
        return _entry(self.size)

    async def open(self, ino: Ino, flags: int) -> Opened:
        return self.opened

    async def readdir(self, fh: Fh, cursor: int) -> Sequence[DirEntry]:
        return [] if cursor else [DirEntry(b"f", _entry(self.size), 1)]

    def remember(self, ino: Ino) -> None: ...


class Kernel:
    """What it was told, in order; stores of pages stay inside until let go."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.inside = threading.Semaphore(0)
        self.store_gate = threading.Event()

    def notify_store(self, ino: int, offset: int, data: bytes) -> None:
        self.inside.release()
        self.store_gate.wait()
        self.told.append(f"store {ino} {offset} {len(data)}")

    def invalidate_inode(self, ino: int, attr_only: bool = False) -> None:
        self.inside.release()
        self.told.append(f"drop {ino}")

    async def entered(self) -> None:
        await trio.to_thread.run_sync(self.inside.acquire)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(pyfuse3, "notify_store", made.notify_store)
    monkeypatch.setattr(pyfuse3, "invalidate_inode", made.invalidate_inode)
    yield made
    made.store_gate.set()


class Mount:
    """The handlers of one mount, with a log of what was answered."""

    def __init__(self, kernel: Kernel, fs: OneFile, nursery: trio.Nursery) -> None:
        self.kernel = kernel
        self.notifier = Notifier()
        self.pusher = Pusher(cast("FileSystem", fs), self.notifier)
        self.operations = Operations(cast("FileSystem", fs), self.notifier, self.pusher, suid=False)
        self.asked = 0
        self.answers: list[Any] = []
        self._nursery = nursery

    def ask(self, call: Callable[..., Awaitable[Any]], *arguments: object) -> None:
        async def asking() -> None:
            self.answers.append(await call(*arguments))

        self.asked += 1
        self._nursery.start_soon(asking)

    async def answered(self) -> None:
        """All that was asked is answered, and no pages are on their way."""
        with trio.fail_after(10):
            while self.notifier.stores or len(self.answers) < self.asked:  # noqa: ASYNC110  # threads tell nobody
                await trio.sleep(0.001)

    async def pushed(self) -> None:
        """A read was answered, and pages beside it are inside the kernel."""
        await self.operations.read(FH, 0, 4096)
        await self.kernel.entered()


@asynccontextmanager
async def _mount(kernel: Kernel, fs: OneFile) -> AsyncIterator[Mount]:
    async with trio.open_nursery() as nursery:
        mount = Mount(kernel, fs, nursery)
        nursery.start_soon(mount.pusher.run)
        await trio.testing.wait_all_tasks_blocked()
        yield mount
        kernel.store_gate.set()
        await mount.answered()
        nursery.cancel_scope.cancel()


async def test_a_read_pushes_what_is_beside_it(kernel: Kernel) -> None:
    async with _mount(kernel, OneFile()) as mount:
        await mount.pushed()
    assert kernel.told == ["store 5 4096 8192"]


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
async def test_an_open_waits_for_pages_and_then_drops_them(kernel: Kernel, flags: int) -> None:
    async with _mount(kernel, OneFile()) as mount:
        await mount.pushed()
        mount.ask(mount.operations.open, INO, flags, CONTEXT)
        await trio.testing.wait_all_tasks_blocked()
        assert mount.answers == []
    assert [info.keep_cache for info in mount.answers] == [False]


async def test_without_pages_on_their_way_an_open_keeps_what_the_kernel_has(kernel: Kernel) -> None:
    async with _mount(kernel, OneFile()) as mount:
        info = await mount.operations.open(INO, os.O_RDONLY, CONTEXT)
    assert info.keep_cache


async def test_a_new_length_waits_for_pages(kernel: Kernel) -> None:
    names = ("update_mode", "update_uid", "update_gid", "update_size", "update_atime", "update_mtime", "update_ctime")
    fields = SimpleNamespace(**{name: name == "update_size" for name in names})
    async with _mount(kernel, OneFile()) as mount:
        await mount.pushed()
        mount.ask(mount.operations.setattr, INO, pyfuse3.EntryAttributes(), fields, None, CONTEXT)
        await trio.testing.wait_all_tasks_blocked()
        assert mount.answers == []
    assert len(mount.answers) == 1


async def test_attributes_wait_for_pages_beyond_their_length_and_say_what_is_so_then(kernel: Kernel) -> None:
    fs = OneFile(size=12287)
    async with _mount(kernel, fs) as mount:
        await mount.pushed()
        mount.ask(mount.operations.getattr, INO, CONTEXT)
        await trio.testing.wait_all_tasks_blocked()
        assert mount.answers == []
        fs.now = 13_000
    assert [answer.st_size for answer in mount.answers] == [13_000]


async def test_attributes_of_a_file_that_is_long_enough_do_not_wait(kernel: Kernel) -> None:
    async with _mount(kernel, OneFile(size=12288)) as mount:
        await mount.pushed()
        assert (await mount.operations.getattr(INO, CONTEXT)).st_size == 12288
        assert kernel.told == []


async def test_rows_of_a_directory_are_asked_for_again_after_a_wait(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, shown = OneFile(size=100), list[int]()

    def accept(token: object, name: bytes, attributes: pyfuse3.EntryAttributes, cursor: int) -> bool:
        shown.append(attributes.st_size)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", accept)
    async with _mount(kernel, fs) as mount:
        await mount.pushed()
        mount.ask(mount.operations.readdir, FH, 2, None)
        await trio.testing.wait_all_tasks_blocked()
        assert shown == []
        fs.size = 13_000
    assert shown == [13_000]


async def test_a_drop_of_pages_comes_after_those_on_their_way(kernel: Kernel) -> None:
    sender, events = trio.open_memory_channel[Event](1)
    async with _mount(kernel, OneFile()) as mount:
        await mount.pushed()
        mount.ask(mount.notifier.run, events, lambda _: None)
        async with sender:
            await sender.send(Invalidation(INO))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.told == []
        kernel.store_gate.set()
        await kernel.entered()
    assert kernel.told == ["store 5 4096 8192", "drop 5"]


async def test_the_end_of_the_mount_waits_for_pages_and_lets_no_more_begin(kernel: Kernel) -> None:
    fs = OneFile()
    async with _mount(kernel, fs) as mount:
        await mount.pushed()
        assert not await mount.notifier.settled(0)
        kernel.store_gate.set()
        assert await mount.notifier.settled(10)
        await mount.operations.read(FH, 0, 4096)
        await trio.testing.wait_all_tasks_blocked()
    assert kernel.told == ["store 5 4096 8192"]
