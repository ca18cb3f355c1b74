"""The mount processes of this node: one `s3vol mount` a volume, started, watched, asked, stopped, and found again.

Theory of operation. A mount process belongs to nobody: it leaves our session, inherits no descriptor, and is no child
of ours, so that an upgrade or a crash of the driver never touches a mount. What ties it to us is in the runtime
directory: its record (s3vol.runtime) names mount point, process and control socket. `adopt` reads these records; what
is started later is read from them as well, so both ways end in the same `_Known`. systemd must be told not to end the
control group with the service (`KillMode=process`), and then it leaves the processes alone on a restart.

What is known is of three kinds. *Serving*: the process lives and its mount is on our mount point; only this is a
Worker. *Ending*: the process lives and its mount is gone from here, it publishes what is left, and its cache directory
is locked until it has ended, so a start waits for it. *Detached*: it lives and is gone from here, but another namespace
still has it (somebody unmounted ours by hand); then it cannot end, and a start or a failed stop puts the mount back
from there.

One lock a volume, held by `start` and `stop` through all their awaits: there is never a second process for a volume,
nor a stop of what a start is making. `get` and `watch` take no lock.

`watch` tells of ends that nobody asked for. A process that `stop` ends is marked first.

A process that is silent (it hangs, or is stopped by a signal) is waited for by nobody: `stop` ends it in three steps
that are bounded. Its journal has what it accepted.

Rejected: `s3vol mount --foreground` as our child (its end would be seen a little earlier, and our end would be its own
wherever a supervisor kills children), and mounting in this process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from s3vol import mounts, runtime
from s3vol.control import NotServing
from s3vol.errors import PosixError, S3volError
from s3vol.status import record_values
from s3vol_plugin import mountpoint
from s3vol_plugin.base import Left, Usage, Worker
from s3vol_plugin.conversation import connected
from s3vol_plugin.invocation import arguments, environment, label, log_file
from s3vol_plugin.kernel import LinuxKernel
from s3vol_plugin.launch import launch, undo
from s3vol_plugin.mountpoint import Answer
from s3vol_plugin.process import Process, mounting
from s3vol_plugin.settings import Settings
from s3vol_plugin.table import Table
from s3vol_plugin.volume import Volume

STATUS_AGE_S = 2.0
EXIT_S = 45.0  # after the last drain: requests in progress are given up, libfuse is released, the journal is closed
_LAST_DRAIN_S = 1.0  # for what was written between the drain and the unmount: nobody uses the volume by then
_POLL_S = 0.05
_UNKNOWN = Left(1, 0)  # a process that could not be asked may have left something: "nothing" would be forgotten

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """A living mount process. `asked`: we are ending it."""

    process: Process
    record: runtime.Record
    device: str
    asked: bool = False


@dataclass(slots=True)
class _Status:
    at_s: float
    values: Mapping[str, Any]


class MountWorkers:
    """base.Workers with real processes."""

    def __init__(
        self, settings: Settings, *, kernel: LinuxKernel | None = None, base: Mapping[str, str] | None = None
    ) -> None:
        """`base` is the environment that mount processes inherit from; by default that of this process."""
        self._settings = settings
        self._kernel = kernel or LinuxKernel()
        self._base = os.environ if base is None else base
        self._table = Table()
        self._known: dict[str, _Known] = {}
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._statuses: dict[str, _Status] = {}
        self._to_watch, self._new = trio.open_memory_channel[tuple[str, _Known]](math.inf)

    # Knowing.

    def get(self, uuid: str) -> Worker | None:
        """The process that serves a volume, if it lives and its mount is there."""
        known = self._living(uuid)
        mount = self._mount(uuid)
        if known is None or mount is None or mount.device != known.device:
            return None
        return Worker(uuid, known.process.pid, known.record.mountpoint, known.device)

    def _living(self, uuid: str) -> _Known | None:
        known = self._known.get(uuid)
        if known is not None and not known.process.alive:
            del self._known[uuid]
            return None
        return known

    def _mount(self, uuid: str) -> mounts.Mount | None:
        """What is mounted on a volume's mount point, if it is ours."""
        mount = self._table.find(str(self._settings.mountpoint(uuid)))
        return mount if mount is not None and mount.type == mounts.TYPE else None

    def _know(self, uuid: str, record: runtime.Record, device: str) -> _Known:
        known = _Known(Process(record.pid, record.started), record, device)
        self._known[uuid] = known
        self._to_watch.send_nowait((uuid, known))
        return known

    def _records(self) -> dict[str, runtime.Record]:
        """Records of mounts in our directory, by uuid."""
        found = runtime.records({"S3VOL_RUNTIME_DIR": str(self._settings.runtime_directory)})
        paths = [(Path(record.mountpoint), record) for record in found]
        return {path.name: record for path, record in paths if path.parent == self._settings.mounts_directory}

    async def adopt(self) -> Sequence[Worker]:
        """Find the processes that an earlier run of this daemon started; take dead mounts out of the tree."""
        records = await trio.to_thread.run_sync(self._records)
        for uuid, record in records.items():
            async with self._locks[uuid]:
                if self._living(uuid) is None:
                    self._take_over(uuid, record)
        await self._clear_dead()
        return [worker for uuid in list(self._known) if (worker := self.get(uuid)) is not None]

    def _take_over(self, uuid: str, record: runtime.Record) -> None:
        if not record.alive:
            runtime.forget(record)
            return
        mount = self._mount(uuid)
        device = record.device or (mount.device if mount else "")
        self._know(uuid, record, device)
        log.info("found a mount process", extra={"uuid": uuid, "pid": record.pid, "device": device})

    async def _clear_dead(self) -> None:
        for mount in await trio.to_thread.run_sync(mounts.mount_table):
            path = Path(mount.path)
            if mount.type != mounts.TYPE or path.parent != self._settings.mounts_directory:
                continue
            async with self._locks[path.name]:
                if self._living(path.name) is None and await mountpoint.examine(path) is Answer.DEAD:
                    log.warning("a dead mount was taken away", extra={"path": mount.path, "device": mount.device})
                    await trio.to_thread.run_sync(mountpoint.detach, path)
                    mountpoint.remove(path)

    async def watch(self, ended: trio.MemorySendChannel[str]) -> None:
        """Send the uuid of each volume whose process ended without being asked to. Runs until cancelled."""

        async def await_end(uuid: str, known: _Known) -> None:
            await known.process.ended()
            if not known.asked:
                log.error("a mount process has ended", extra={"uuid": uuid, "pid": known.process.pid})
                await ended.send(uuid)

        async with trio.open_nursery() as nursery:
            for uuid, known in self._unwatched_first():
                nursery.start_soon(await_end, uuid, known)
            async for uuid, known in self._new:
                nursery.start_soon(await_end, uuid, known)

    def _unwatched_first(self) -> list[tuple[str, _Known]]:
        """All that are known now, and those that came and went before anybody watched."""
        found = dict(enumerate(self._known.items()))
        seen = {id(known) for known in self._known.values()}
        with contextlib.suppress(trio.WouldBlock):
            while True:
                uuid, known = self._new.receive_nowait()
                if id(known) not in seen:
                    found[len(found)] = (uuid, known)
        return list(found.values())

    # Asking.

    async def status(self, uuid: str) -> Mapping[str, Any]:
        """The values of `s3vol status --json`, at most some seconds old; {} when there is no process."""
        known = self._living(uuid)
        if known is None:
            return {}
        held = self._statuses.get(uuid)
        if held is None or trio.current_time() - held.at_s > STATUS_AGE_S:
            try:
                async with connected(known.record.socket) as conversation:
                    values = await conversation.status()
            except NotServing:
                values = record_values(known.record, "silent" if known.process.alive else "dead")
            held = self._statuses[uuid] = _Status(trio.current_time(), values)
        return held.values

    async def _users(self, uuid: str, known: _Known) -> Sequence[Usage]:
        besides = str(self._settings.mountpoint(uuid))
        return await trio.to_thread.run_sync(lambda: self._kernel.usages(known.device, besides=besides))

    # Starting.

    async def start(self, volume: Volume, *, deadline_s: float) -> Worker:
        """Mount a volume and prove that it is mounted: our type at that path, its root answers.

        Starting what already runs returns it. Raises S3volError with the mount command's own line; nothing is left
        behind then.
        """
        deadline = trio.current_time() + deadline_s
        async with self._held(volume, deadline):
            if (worker := self.get(volume.uuid)) is not None:
                return worker
            command = arguments(self._settings, volume, root=os.geteuid() == 0)
            variables = environment(self._settings, volume, self._base)
            await self._make_way(volume, deadline)
            if (worker := self.get(volume.uuid)) is not None:
                return worker
            return await self._launch(volume, command, variables, deadline)

    @contextlib.asynccontextmanager
    async def _held(self, volume: Volume, deadline: float) -> AsyncIterator[None]:
        """The volume's lock."""
        with _until(deadline, f"volume {volume.name}: another start or stop of it takes too long; try again"):
            await self._locks[volume.uuid].acquire()
        try:
            yield
        finally:
            self._locks[volume.uuid].release()

    async def _make_way(self, volume: Volume, deadline: float) -> None:
        """Nothing of the volume is here when this returns, or it serves (again)."""
        uuid, point = volume.uuid, self._settings.mountpoint(volume.uuid)
        await self._find(volume, deadline)
        if (known := self._living(uuid)) is not None and self.get(uuid) is None:
            if users := await self._users(uuid, known):
                await self._put_back(volume, users)
                return
            late = f"volume {volume.name}: its earlier mount process {known.process.pid} is still publishing; try again"
            with _until(deadline, late):
                await known.process.ended()
        if self._mount(uuid) is None or self.get(uuid) is not None:
            return
        if await mountpoint.examine(point) is not Answer.DEAD:
            raise S3volError(f"volume {volume.name}: {point} is a mount of an unknown process; `umount {point}` first")
        await trio.to_thread.run_sync(mountpoint.detach, point)

    async def _find(self, volume: Volume, deadline: float) -> None:
        """Know the process of a volume, if there is one; one that is about to serve is waited for.

        An earlier run of this daemon may have been killed while it started one.
        """
        uuid, point = volume.uuid, self._settings.mountpoint(volume.uuid)
        with _until(deadline, f"volume {volume.name}: a mount process of it neither serves nor ends; try again"):
            while self._living(uuid) is None:
                record = (await trio.to_thread.run_sync(self._records)).get(uuid)
                if record is not None and record.alive and (record.device or self._mount(uuid)):
                    self._take_over(uuid, record)
                elif await trio.to_thread.run_sync(mounting, point):
                    await trio.sleep(_POLL_S)
                else:
                    return

    async def _put_back(self, volume: Volume, users: Sequence[Usage]) -> None:
        """Mount again here what only other namespaces still have. Raises S3volError when that is impossible."""
        point = self._settings.mountpoint(volume.uuid)
        whole = next((usage for usage in users if usage.root == "/"), None)
        if whole is None:
            raise S3volError(
                f"volume {volume.name}: was unmounted while process {users[0].pid} uses a directory of it; stop that first"
            )
        await trio.to_thread.run_sync(mountpoint.prepare, point.parent, point.name)
        await trio.to_thread.run_sync(self._kernel.restore, whole, str(point))
        log.warning("a volume that is in use was unmounted, and is mounted again", extra={"volume": volume.name})

    async def _launch(
        self, volume: Volume, command: Sequence[str], variables: Mapping[str, str], deadline: float
    ) -> Worker:
        point = self._settings.mountpoint(volume.uuid)
        await trio.to_thread.run_sync(self._make_directories, point)
        try:
            with _until(deadline, f"volume {volume.name}: was not mounted in time; {self._log_hint(volume)}"):
                await launch(command, variables)
                return await self._prove(volume)
        except BaseException:
            await undo(point)
            self._known.pop(volume.uuid, None)
            raise

    def _make_directories(self, point: Path) -> None:
        try:
            self._settings.cache_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise S3volError(f"cache directory {self._settings.cache_directory}: {error.strerror}") from None
        mountpoint.prepare(point.parent, point.name)

    async def _prove(self, volume: Volume) -> Worker:
        """What the command says is mounted is mounted. Raises S3volError."""
        uuid, point = volume.uuid, self._settings.mountpoint(volume.uuid)
        record = (await trio.to_thread.run_sync(self._records)).get(uuid)
        mount = self._mount(uuid)
        answer = await mountpoint.examine(point)
        if record is None or not record.alive or mount is None:
            raise S3volError(f"volume {volume.name}: its mount process ended at once; {self._log_hint(volume)}")
        if mount.source != label(volume.name) or answer is not Answer.ALIVE:
            raise S3volError(
                f"volume {volume.name}: {point} does not answer ({answer.value}); {self._log_hint(volume)}"
            )
        self._know(uuid, record, mount.device)
        return Worker(uuid, record.pid, str(point), mount.device)

    def _log_hint(self, volume: Volume) -> str:
        return f"see {log_file(self._settings, volume.uuid)}"

    # Stopping.

    async def stop(self, volume: Volume, *, drain_s: float) -> Left:
        """Publish for so long, unmount, wait for the process's end. What is left is in the journal.

        Not mounted: Left(0, 0). Raises S3volError when the mount is in use or the process does not end; then it is
        still mounted, or ending.
        """
        uuid = volume.uuid
        async with self._held(volume, trio.current_time() + drain_s + EXIT_S):
            crashed = uuid in self._known  # unless it lives
            known = self._living(uuid)
            if known is None:
                left = _UNKNOWN if crashed else Left(0, 0)
            elif self.get(uuid) is None:
                left = await self._await_exit(volume, known, Left(0, 0), drain_s)
            else:
                left = await self._stop(volume, known, drain_s)
            self._known.pop(uuid, None)
            self._statuses.pop(uuid, None)
            await trio.to_thread.run_sync(mountpoint.detach, self._settings.mountpoint(uuid))
            mountpoint.remove(self._settings.mountpoint(uuid))
            return left

    async def _stop(self, volume: Volume, known: _Known, drain_s: float) -> Left:
        await self._refuse_if_used(volume, known)
        known.asked = True
        try:
            left = await self._drain_and_unmount(volume, known, drain_s)
        except NotServing as error:
            log.warning("%s; it is ended", error, extra={"volume": volume.name, "pid": known.process.pid})
            return await self._end(volume, known)
        finally:
            known.asked = self._mount(volume.uuid) is None
        return await self._await_exit(volume, known, left, EXIT_S)

    async def _refuse_if_used(self, volume: Volume, known: _Known) -> None:
        if users := await self._users(volume.uuid, known):
            raise _in_use(volume, f"process {users[0].pid} has it at {users[0].mountpoint}")

    async def _drain_and_unmount(self, volume: Volume, known: _Known, drain_s: float) -> Left:
        """Raises S3volError when it is in use, and is mounted still; NotServing when the process does not answer."""
        deadline = trio.current_time() + drain_s
        async with connected(known.record.socket) as conversation:
            await conversation.status()  # a process that hangs is found out now, not at the end of a drain
            await conversation.drain(drain_s)
            rest_s = max(deadline - trio.current_time(), _LAST_DRAIN_S)
            await conversation.announce_end(rest_s)
            await self._unmount(volume, known)
            return await conversation.await_end(rest_s)

    async def _unmount(self, volume: Volume, known: _Known) -> None:
        """Unmount, and take it back if somebody was quicker than our look at who uses it."""
        with trio.CancelScope(shield=True):  # between the two steps a container's volume would have no mount here
            try:
                await trio.to_thread.run_sync(mounts.unmount, known.record.mountpoint)
            except PosixError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise _in_use(volume, f"`fuser -vm {known.record.mountpoint}` shows by whom") from None
            if users := await self._users(volume.uuid, known):
                await self._put_back(volume, users)
                raise _in_use(volume, f"process {users[0].pid} has it at {users[0].mountpoint}")

    async def _await_exit(self, volume: Volume, known: _Known, left: Left, wait_s: float) -> Left:
        """Return `left` when the process has ended: then its cache directory can be used by the next one."""
        pid = known.process.pid
        with _until(trio.current_time() + wait_s, f"volume {volume.name}: unmounted, but pid {pid} has not ended yet"):
            await known.process.ended()
        return left

    async def _end(self, volume: Volume, known: _Known) -> Left:
        """The end of a process that is silent, or has just died. Nobody uses the volume."""
        held = self._statuses.get(volume.uuid)
        mount = self._mount(volume.uuid)
        await trio.to_thread.run_sync(mountpoint.detach, self._settings.mountpoint(volume.uuid))
        await known.process.end(last_resort=lambda: mount and mounts.abort(mount))
        runtime.forget(known.record)
        dirty_bytes = held.values.get("dirty_bytes", 0) if held else 0
        return Left(max(held.values.get("dirty_files", 0) if held else 0, _UNKNOWN.files), dirty_bytes)


def _in_use(volume: Volume, by: str) -> S3volError:
    return S3volError(f"volume {volume.name}: is in use, and still mounted; {by}")


@contextlib.contextmanager
def _until(deadline: float, message: str) -> Iterator[None]:
    """Raise S3volError with `message` when the block is not done at `deadline` (time of the event loop)."""
    with trio.CancelScope(deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise S3volError(message)
