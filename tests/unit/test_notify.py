"""Notifications to the kernel may block: nobody waits for them without a bound, and none outlives the session."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from typing import cast

import pyfuse3
import pytest
import trio
import trio.testing

from s3vol.fs.base import FileSystem, Opened
from s3vol.types import Event, Fh, Ino, Invalidation, WriteError
from s3vol_fuse import notify
from s3vol_fuse.notify import Notifier
from s3vol_fuse.ops import Operations
from s3vol_fuse.push import Pusher


class Kernel:
    """What pyfuse3 was asked to tell, and a gate that makes notifications of pages block."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.answer: OSError | None = None

    def invalidate_inode(self, ino: int, attr_only: bool = False) -> None:
        self.entered.set()
        self.gate.wait()
        self.told.append((ino, attr_only))
        if self.answer:
            raise self.answer

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        self.told.append((parent, name))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel in place of pyfuse3's."""
    made = Kernel()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", made.invalidate_inode)
    monkeypatch.setattr(pyfuse3, "invalidate_entry", made.invalidate_entry)
    yield made
    made.gate.set()


async def test_invalidations_are_passed_on_and_other_events_go_elsewhere(kernel: Kernel) -> None:
    sender, events = trio.open_memory_channel[Event](10)
    others: list[Event] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Notifier().run, events, others.append)
        async with sender:
            await sender.send(Invalidation(Ino(5)))
            await sender.send(Invalidation(Ino(6), attr_only=True))
            await sender.send(Invalidation(Ino(1), b"name"))
            await sender.send(WriteError("key", "why"))
    assert sorted(map(str, kernel.told)) == ["(1, b'name')", "(5, False)", "(6, True)"]
    assert others == [WriteError("key", "why")]


async def test_an_open_waits_for_stale_pages_with_a_bound(kernel: Kernel, mock_clock: trio.testing.MockClock) -> None:
    notifier = Notifier()
    assert await notifier.forget_content(Ino(5))
    kernel.gate.clear()
    kernel.entered.clear()
    dropped: list[bool] = []

    async def drop() -> None:
        dropped.append(await notifier.forget_content(Ino(5)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop)
        await trio.to_thread.run_sync(kernel.entered.wait)  # left behind earlier, it would tell the next test's kernel
        mock_clock.jump(notify.PAGES_S - 0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert dropped == []
        mock_clock.jump(0.1)
    assert dropped == [False]


async def test_pages_that_did_not_go_in_time_are_dropped_by_the_next_open(
    kernel: Kernel, mock_clock: trio.testing.MockClock
) -> None:
    notifier = Notifier()
    kernel.gate.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.forget_content, Ino(5))
        await trio.to_thread.run_sync(kernel.entered.wait)
        mock_clock.jump(notify.PAGES_S)
    assert notifier.is_forgetting(Ino(5))
    assert not notifier.is_forgetting(Ino(6))
    kernel.gate.set()
    assert await notifier.forget_content(Ino(5))
    assert not notifier.is_forgetting(Ino(5))


async def test_an_open_that_may_keep_its_pages_waits_while_another_one_drops_the_old_ones(kernel: Kernel) -> None:
    class OneFile:
        opened = Opened(Fh(1), keep_cache=False, changed=True)

        async def open(self, ino: Ino, flags: int) -> Opened:
            return self.opened

    fs, answers = OneFile(), list[pyfuse3.FileInfo]()
    notifier = Notifier()
    operations = Operations(cast("FileSystem", fs), notifier, Pusher(cast("FileSystem", fs), notifier), suid=False)

    async def opening() -> None:
        answers.append(await operations.open(Ino(5), os.O_RDONLY, cast("pyfuse3.RequestContext", None)))

    kernel.gate.clear()
    async with trio.open_nursery() as nursery:
        for keep_cache in (False, True):
            fs.opened = Opened(Fh(1), keep_cache, changed=not keep_cache)
            kernel.entered.clear()
            nursery.start_soon(opening)
            await trio.to_thread.run_sync(kernel.entered.wait)
        assert answers == []
        kernel.gate.set()
    assert kernel.told == [(5, False), (5, False)]


async def test_the_end_waits_for_a_notification_in_progress_and_lets_no_new_one_begin(kernel: Kernel) -> None:
    notifier = Notifier()
    kernel.gate.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.forget_content, Ino(5))
        await trio.to_thread.run_sync(kernel.entered.wait)
        nursery.cancel_scope.cancel()  # the thread is left behind, inside the notification
    assert not await notifier.settled(0)
    kernel.gate.set()
    assert await notifier.settled(10)
    assert kernel.told == [(5, False)]
    assert await notifier.forget_content(Ino(6))
    assert kernel.told == [(5, False)]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTCONN, errno.ENODEV])
async def test_what_the_kernel_does_not_hold_needs_no_notification(kernel: Kernel, number: int) -> None:
    kernel.answer = OSError(number, "no")
    assert await Notifier().forget_content(Ino(5))
