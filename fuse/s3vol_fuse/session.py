"""The life of one mount: appear, serve, drain, go.

Theory of operation. There are three ways to the end, and all drain:

* a signal: drain while serving goes on (so that programs can still close their files), then stop serving, drain what
  came meanwhile, unmount;
* the kernel unmounts (`s3vol umount`, fusermount3, umount by anybody): serving ends, then drain;
* the connection breaks (`umount --force` aborts it): the same.

A drain is bounded: by its deadline, and by the request that is on its way then (20 s of silence at most, see
store/settings.py). What is left is in the journal, and `left` says how much. A second signal cuts the drain short.
`s3vol umount` announces itself first (`ending`), and then its deadline counts instead of our own, so that the two do
not add up.

Order at the end: no request is read any more, requests in progress get GRACE_S, then the last drain puts everything
into the journal, and only then the mount is taken away. pyfuse3.close() frees memory that a notification in progress
uses, so it comes after the last one; if one is stuck in the kernel the connection is cut off to free it. libfuse leaves
the mount point of a connection that was cut off, by us or by somebody through sysfs: we take it away.

Rejected: unmounting first on a signal. Programs would see ENOTCONN on files they are about to close properly.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pyfuse3
import trio

from s3vol import mounts
from s3vol.errors import S3volError
from s3vol.fs.base import FileSystem, Progress
from s3vol.types import Event
from s3vol_fuse.notify import Notifier
from s3vol_fuse.ops import Operations
from s3vol_fuse.push import Pusher
from s3vol_fuse.tune import tune

GRACE_S = 5.0  # for requests in progress when serving ends; each is bounded by --timeout, which may be long
TASKS = 256  # requests in progress at most; one that waits for the endpoint occupies a task, and others must go on
_LOG_EVERY_S = 1.0
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)  # by who started us: nohup(1), and a shell's `&` in a script

log = logging.getLogger("s3vol.mount")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """What the kernel is told about the mount."""

    path: str
    source: str
    read_only: bool = False
    allow_other: bool = False
    dev: bool = False
    suid: bool = False
    exec: bool = True

    def options(self) -> set[str]:
        """Options of fuse_session_mount; permissions are always checked by the kernel."""
        source = self.source.replace("\\", "\\\\").replace(",", "\\,")
        chosen = {f"fsname={source}", "subtype=s3vol", "default_permissions"}
        chosen |= {"ro" if self.read_only else "rw", "dev" if self.dev else "nodev"}
        chosen |= {"suid" if self.suid else "nosuid", "exec" if self.exec else "noexec"}
        return chosen | ({"allow_other"} if self.allow_other else set())


class Session:
    """One mount of this process; libfuse has global state, so there is never a second one."""

    def __init__(self, fs: FileSystem, point: MountPoint, *, drain_timeout_s: float) -> None:
        self._fs = fs
        self._point = point
        self._drain_timeout_s = drain_timeout_s
        self._notifier = Notifier()
        self._pusher = Pusher(fs, self._notifier)
        self._serving = trio.Event()
        self._stop = trio.CancelScope()  # around pyfuse3.main
        self._drains: set[trio.CancelScope] = set()  # around each drain in progress
        self._hurry = False  # a second signal came
        self._signal_deadline: float | None = None  # event loop time, like those below
        self._deadlines: list[float] = []  # of announced ends
        self._watchers: list[Callable[[Progress], None]] = []
        self._device = ""  # of our mount, once it serves: another may be on the same path at the end
        self.draining = False
        self.drained = trio.Event()  # the last drain is over, and `left` is final
        self.left = Progress(0, 0)

    async def run(self, events: trio.MemoryReceiveChannel[Event], on_event: Callable[[Event], None]) -> None:
        """Mount, serve and drain. Returns when the mount is gone; `left` is what is only in the journal.

        Raises S3volError when the mount cannot be made.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)  # first: a signal may not end a process that has a mount
            self._mount()
            try:
                nursery.start_soon(self._notifier.run, events, on_event)
                nursery.start_soon(self._pusher.run)
                nursery.start_soon(self._announce)
                await self._serve()
                await self._drain_last()
            finally:
                with trio.CancelScope(shield=True):
                    await self._go()
            nursery.cancel_scope.cancel()

    def _mount(self) -> None:
        operations = _Watched(self._fs, self._notifier, self._pusher, suid=self._point.suid, on_init=self._serving.set)
        with _libfuse_messages() as last_message:
            try:
                pyfuse3.init(operations, self._point.path, self._point.options())
            except RuntimeError as error:
                reason = last_message() or str(error)
                raise S3volError(f"{self._point.path}: cannot be mounted: {reason}") from None

    async def serving(self) -> None:
        """Return when the kernel has been greeted: the first request is answered from here on."""
        await self._serving.wait()

    async def _announce(self) -> None:
        await self._serving.wait()
        mount = mounts.find_mount(self._point.path)
        self._device = mount.device if mount else ""
        tuned = tune(mount) if mount else []
        log.info("serving %s on %s %s", self._point.source, self._point.path, " ".join(tuned))

    async def _serve(self) -> None:
        """Answer requests until the kernel unmounts, the connection breaks, or `_drain_and_stop`.

        A connection that broke leaves a mount that only says ENOTCONN. It is taken away at once: after the drain the
        same device number could be that of somebody else's mount.
        """
        try:
            with self._stop:
                await pyfuse3.main(min_tasks=2, max_tasks=TASKS)
        except* OSError as group:
            # ECONNABORTED: aborted through sysfs. ENODEV: unmounted. Anything else is a fault worth a line.
            if any(e.errno not in (errno.ECONNABORTED, errno.ENODEV) for e in _leaves(group)):
                log.error("the connection to the kernel broke: %s", group.exceptions)
        if not self._stopping:
            self._cut_off()

    async def _obey_signals(self, task_status: trio.TaskStatus[None]) -> None:
        numbers = [number for number in _MAY_BE_IGNORED if signal.getsignal(number) is not signal.SIG_IGN]
        with trio.open_signal_receiver(signal.SIGTERM, *numbers) as received:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in received:
                    log.info(
                        "%s: %s", signal.Signals(number).name, "draining at once" if self._stopping else "draining"
                    )
                    if self._stopping:
                        self._hurry = True
                        for scope in self._drains:
                            scope.cancel()
                    else:
                        self._signal_deadline = trio.current_time() + self._drain_timeout_s
                        nursery.start_soon(self._drain_and_stop, self._signal_deadline)

    @property
    def _stopping(self) -> bool:
        return self._signal_deadline is not None

    async def _drain_and_stop(self, deadline: float) -> None:
        await self._drain_until(deadline)
        await self._serving.wait()
        pyfuse3.terminate()
        await trio.sleep(GRACE_S)
        self._stop.cancel()

    async def _drain_until(self, deadline: float) -> Progress:
        """Publish until `deadline` or a second signal; the rest is journaled."""
        shown = Shown()

        def show(progress: Progress) -> None:
            for watcher in self._watchers:
                watcher(progress)
            if shown.due():
                log.info("draining: %d files, %d bytes to go", progress.files, progress.bytes)

        self.draining = True
        left = await self._fs.drain(0, show)  # the journal first: whoever kills us for being slow loses nothing
        if not self._hurry:
            with trio.CancelScope() as scope:
                self._drains.add(scope)
                try:
                    return await self._fs.drain(max(deadline - trio.current_time(), 0), show)
                finally:
                    self._drains.discard(scope)
            left = await self._fs.drain(0, show)
        return left

    async def _drain_last(self) -> None:
        deadline = self._signal_deadline
        if deadline is None:
            deadline = max(self._deadlines, default=trio.current_time() + self._drain_timeout_s)
        self.left = await self._drain_until(deadline)
        if self.left.files or self.left.bytes:
            log.warning(
                "%d files with %d bytes are in the journal only; the next mount of this source publishes them",
                self.left.files,
                self.left.bytes,
            )
        self.drained.set()

    @contextlib.asynccontextmanager
    async def ending(self, deadline_s: float, watcher: Callable[[Progress], None]) -> AsyncIterator[None]:
        """Inside, an unmount is expected: its drain ends after `deadline_s` and is shown to `watcher`."""
        deadline = trio.current_time() + deadline_s
        self._deadlines.append(deadline)
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._deadlines.remove(deadline)
            self._watchers.remove(watcher)

    async def _go(self) -> None:
        """Take the mount away and release libfuse."""
        if not await self._notifier.settled(GRACE_S):
            self._cut_off()
            if not await self._notifier.settled(GRACE_S):
                log.error("a kernel notification hangs; the mount is detached without releasing libfuse")
                return
        pyfuse3.close(unmount=True)  # does nothing to the mount point when the kernel has unmounted, or is cut off

    def _cut_off(self) -> None:
        """Break the connection and take the mount point away, if it is still there."""
        mount = mounts.find_mount(self._point.path)
        if mount and mount.device == self._device:
            with contextlib.suppress(S3volError):
                mounts.cut_off(mount)


class Shown:
    """Clock of progress lines: one a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """True at most once a second."""
        now = trio.current_time()
        if now < self._next:
            return False
        self._next = now + _LOG_EVERY_S
        return True


class _Watched(Operations):
    """Operations that say when the kernel has greeted."""

    def __init__(
        self, fs: FileSystem, notifier: Notifier, pusher: Pusher, *, suid: bool, on_init: Callable[[], None]
    ) -> None:
        super().__init__(fs, notifier, pusher, suid=suid)
        self._on_init = on_init

    def init(self) -> None:
        self._on_init()


def _leaves(group: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@contextlib.contextmanager
def _libfuse_messages() -> Iterator[Callable[[], str]]:
    """Catch what libfuse and fusermount3 write to stderr, where they put the reason of a refusal."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)

        def last_line() -> str:
            caught.seek(0)
            lines = caught.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""

        try:
            yield last_line
        finally:
            os.dup2(saved, 2)
            os.close(saved)
