"""The rooms around the driver's core, in memory: a registry that can fall silent, processes, and a kernel that is told.

They keep the promises of `s3vol_plugin.base` and nothing more. Everything happens in trio's time, so tests run under an
autojump clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from s3vol.errors import S3volError, Unavailable, UsageError
from s3vol_plugin.base import Holder, Left, Usage, Worker
from s3vol_plugin.driver import Driver, Request
from s3vol_plugin.invocation import label
from s3vol_plugin.node import Node
from s3vol_plugin.settings import Settings
from s3vol_plugin.state import State
from s3vol_plugin.upkeep import Upkeep
from s3vol_plugin.volume import Volume
from tests.plugin.rig import settings_in

BOOT = "boot-1"
NOTHING = Left(0, 0)


def volume(name: str, number: int = 1, **values: Any) -> Volume:
    """A volume; `number` makes its uuid."""
    return Volume(name, f"{number:032x}", f"s3://bucket/{name}", "2026-01-02T03:04:05Z", "here", **values)


class FakeRegistry:
    """A bucket's records and holders, and this node's copy. `silent`: the bucket does not answer, not even no."""

    def __init__(self) -> None:
        self.bucket: dict[str, Volume] = {}
        self.copy: dict[str, Volume] = {}
        self.true_at_s: float | None = None
        self.held: dict[str, dict[str, float]] = {}
        self.silent = False
        self.refused = False
        self.asked: list[str] = []
        self.on_remove: Callable[[Volume], None] = lambda _: None

    def add(self, *volumes: Volume, known: bool = True) -> None:
        """Records in the bucket; `known`: in the copy too, which is true now."""
        self.bucket |= {one.name: one for one in volumes}
        if known:
            self.copy |= {one.name: one for one in volumes}
            self.true_at_s = trio.current_time()

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        await trio.lowlevel.checkpoint()
        if self.refused:
            raise Unavailable("endpoint: connection refused")
        if self.silent:
            await trio.sleep_forever()

    @property
    def age_s(self) -> float | None:
        return None if self.true_at_s is None else trio.current_time() - self.true_at_s

    def get(self, name: str) -> Volume | None:
        found = self.copy.get(name)
        return None if found is None or found.removed else found

    def all(self) -> Sequence[Volume]:
        return [self.copy[name] for name in sorted(self.copy) if not self.copy[name].removed]

    async def refresh(self) -> None:
        await self._ask("refresh")
        self.copy, self.true_at_s = dict(self.bucket), trio.current_time()

    async def find(self, name: str) -> Volume | None:
        await self._ask(f"find {name}")
        if name in self.bucket:
            self.copy[name] = self.bucket[name]
        else:
            self.copy.pop(name, None)
        return self.get(name)

    async def create(self, volume: Volume) -> Volume:
        await self._ask(f"create {volume.name}")
        made = self.bucket.setdefault(volume.name, volume)
        self.copy[volume.name] = made
        return made

    async def remove(self, volume: Volume) -> None:
        await self._ask(f"remove {volume.name}")
        if self.bucket[volume.name].uuid != volume.uuid:
            raise UsageError("is another volume by now")
        self.bucket[volume.name] = self.copy[volume.name] = replace(volume, removed_at="2026-01-03T00:00:00Z")
        self.on_remove(volume)

    async def undelete(self, name: str) -> Volume:
        await self._ask(f"undelete {name}")
        back = replace(self.bucket[name], removed_at="")
        self.bucket[name] = self.copy[name] = back
        return back

    async def clear(self) -> None:
        await self._ask("clear")

    async def holders(self, volume: Volume) -> Sequence[Holder]:
        await self._ask(f"holders {volume.name}")
        return [Holder(node, 0.0) for node in sorted(self.held.get(volume.uuid, {}))]

    async def hold(self, volume: Volume, node: str = "here") -> None:
        await self._ask(f"hold {volume.name}")
        self.held.setdefault(volume.uuid, {})[node] = trio.current_time()

    async def release(self, volume: Volume, node: str = "here") -> None:
        await self._ask(f"release {volume.name}")
        self.held.get(volume.uuid, {}).pop(node, None)


class FakeWorkers:
    """Mount processes by uuid. Times in seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.running: dict[str, Worker] = {}
        self.start_s = 0.5
        self.start_errors: list[S3volError] = []
        self.stop_errors: list[S3volError] = []
        self.left = NOTHING
        self.statuses: dict[str, Mapping[str, Any]] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.mountpoint = ""
        self._devices = 40
        self._sender, self._ends = trio.open_memory_channel[str](64)

    def get(self, uuid: str) -> Worker | None:
        return self.running.get(uuid)

    def run(self, volume: Volume) -> Worker:
        """A process that runs already."""
        self._devices += 1
        point = self.mountpoint or str(self._settings.mountpoint(volume.uuid))
        worker = Worker(volume.uuid, 1000 + self._devices, point, f"0:{self._devices}")
        self.running[volume.uuid] = worker
        return worker

    def crash(self, uuid: str) -> None:
        """kill -9."""
        del self.running[uuid]
        self._sender.send_nowait(uuid)

    async def adopt(self) -> Sequence[Worker]:
        await trio.lowlevel.checkpoint()
        return list(self.running.values())

    async def start(self, volume: Volume, *, deadline_s: float) -> Worker:
        self.started.append(volume.name)
        with trio.move_on_after(deadline_s):
            await trio.sleep(self.start_s)
            if self.start_errors:
                raise self.start_errors.pop(0)
            return self.running.get(volume.uuid) or self.run(volume)
        raise S3volError("was not mounted in time")

    async def stop(self, volume: Volume, *, drain_s: float) -> Left:
        await trio.sleep(0.1)
        if self.stop_errors:
            raise self.stop_errors.pop(0)
        self.stopped.append(volume.name)
        self.running.pop(volume.uuid, None)
        return self.left

    async def status(self, uuid: str) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        return self.statuses.get(uuid, {}) if uuid in self.running else {}

    async def watch(self, ended: trio.MemorySendChannel[str]) -> None:
        async for uuid in self._ends:
            await ended.send(uuid)


class FakeKernel:
    """Mount tables as a test says they are. Called in threads."""

    def __init__(self) -> None:
        self.live: dict[str, list[Usage]] = {}
        self.dead_ones: dict[str, list[Usage]] = {}
        self.healed: list[tuple[Usage, str]] = []
        self.heal_errors: list[S3volError] = []

    def usages(self, name: str, device: str, *, besides: str) -> Sequence[Usage]:
        return list(self.live.get(device, ()))

    def dead(self, name: str, *, living: str) -> Sequence[Usage]:
        return list(self.dead_ones.get(name, ()))

    def heal(self, usage: Usage, mountpoint: str) -> None:
        if self.heal_errors:
            raise self.heal_errors.pop(0)
        self.healed.append((usage, mountpoint))
        for found in self.dead_ones.values():
            if usage in found:
                found.remove(usage)


@dataclass
class Rig:
    """A driver with everything around it. `deleted` are the names of volumes whose objects were deleted."""

    settings: Settings
    registry: FakeRegistry
    workers: FakeWorkers
    kernel: FakeKernel
    state: State
    node: Node
    driver: Driver
    upkeep: Upkeep
    tasks: trio.Nursery
    deleted: list[str] = field(default_factory=list)
    prepared: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def use(self, uuid: str, pid: int = 7) -> Usage:
        """A container binds what it was told."""
        usage = Usage(pid, "/d", "/", read_only=False)
        self.kernel.live.setdefault(self.workers.running[uuid].device, []).append(usage)
        return usage

    def unuse(self, uuid: str) -> None:
        """All containers of a volume end."""
        self.kernel.live.pop(self.workers.running[uuid].device, None)

    def leave_dead(self, volume: Volume, *usages: Usage) -> None:
        """What a crash of a mount process leaves in containers."""
        self.kernel.dead_ones[label(self.settings, volume)] = list(usages)

    def refs(self, uuid: str) -> Mapping[str, int]:
        """Counts in memory."""
        record = self.state.get(uuid)
        return record.refs if record else {}

    def reloaded(self, boot: str = BOOT) -> State:
        """What a new process would find on disk."""
        return State(self.settings.volumes_directory, boot)

    async def mount(self, name: str, identity: str = "c1") -> str:
        """The mount point that dockerd is told."""
        return str((await self.driver.mount(Request(name, identity)))["Mountpoint"])

    async def unmount(self, name: str, identity: str = "c1") -> None:
        """As dockerd does it at the end of a container."""
        await self.driver.unmount(Request(name, identity))


@contextlib.asynccontextmanager
async def rig(folder: Path, *, adopted: bool = True, boot: str = BOOT) -> AsyncIterator[Rig]:
    """A driver in `folder`; what it does in the background is cancelled at the end."""
    settings = settings_in(folder)
    async with trio.open_nursery() as tasks:
        registry, workers, kernel = FakeRegistry(), FakeWorkers(settings), FakeKernel()
        state = State(settings.volumes_directory, boot)
        node = Node(settings, registry, workers, kernel, state, tasks)
        deleted: list[str] = []
        prepared: list[tuple[str, Mapping[str, str]]] = []

        async def delete(volume: Volume) -> None:
            await trio.lowlevel.checkpoint()
            deleted.append(volume.name)

        def make(name: str, options: Mapping[str, str]) -> Volume:
            if "bad" in options:
                raise UsageError("option bad: unknown; there are: bucket, prefix")
            return volume(name, 99, options=dict(options))

        async def prepare(made: Volume, given: Mapping[str, str]) -> None:
            await trio.lowlevel.checkpoint()
            if "refused" in given:
                raise UsageError("bucket 'x': does not exist, and these credentials may not create it")
            prepared.append((made.name, given))

        driver = Driver(node, make, delete, prepare)
        upkeep = Upkeep(node, None)
        if adopted:
            node.adopted.set()
        yield Rig(settings, registry, workers, kernel, state, node, driver, upkeep, tasks, deleted, prepared)
        tasks.cancel_scope.cancel()
