"""The volumes of this node between two states: served by a process, or not. What verbs and upkeep both need.

Theory of operation. Each volume has a lock, by uuid; it guards the volume's record and its process: who starts,
stops or counts holds it, through the await-s in between. There is no lock over all volumes, so one endpoint that
does not answer holds up nobody else. Locks are taken one at a time, never two.

A process that ended leaves its mount behind, dead, in every container that uses it. Whoever starts the volume next, a
Mount or the upkeep, puts the new mount in their place (`heal`).

Retiring is patient: as long as the journal holds data, the process goes on serving and publishing, and a Mount that
comes meanwhile finds it running. Only then is it unmounted, and only if the kernel shows that nobody else has it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from s3vol.errors import S3volError
from s3vol.units import format_bytes
from s3vol_plugin.base import Holder, Kernel, Left, Registry, Usage, Worker, Workers
from s3vol_plugin.invocation import label
from s3vol_plugin.names import Names
from s3vol_plugin.settings import Settings
from s3vol_plugin.state import Record, State
from s3vol_plugin.volume import Volume

DRAIN_S = 40.0  # dockerd waits 60 s for Unmount
RELEASE_S = 5.0  # a release that is lost is only late: what a node holds runs out by itself
_UNDO_S = 15.0
_PAUSE_S, _PAUSE_MAX_S = 0.1, 5.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Facts:
    """What is known of a volume now; in memory only, so that a question never waits. Times by trio's clock."""

    mounted_at_s: float = 0.0  # the last answer to a Mount; at first the start of this process
    uses: int = 0
    status: Mapping[str, Any] = field(default_factory=dict)
    holders: Sequence[Holder] = ()
    last_error: str = ""
    recovering: bool = False


class Node:
    """This node's volumes. `tasks` runs what outlives the call that began it."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        workers: Workers,
        kernel: Kernel,
        state: State,
        tasks: trio.Nursery,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.workers = workers
        self.kernel = kernel
        self.state = state
        self.names = Names(registry, state, workers)
        self.adopted = trio.Event()  # processes of an earlier run are found; until then nothing is mounted or unmounted
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.registry_error = ""
        self.registry_down_since_s: float | None = None
        self.tasks = tasks
        self._began_s = trio.current_time()
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._facts: dict[str, Facts] = {}
        self._unhealed: set[Usage] = set()  # told of already

    def lock(self, uuid: str) -> trio.Lock:
        """Guards the record and the process of one volume."""
        return self._locks[uuid]

    def facts(self, uuid: str) -> Facts:
        """What is known of a volume; made when asked for first."""
        return self._facts.setdefault(uuid, Facts(self._began_s))

    def quiet_s(self, uuid: str) -> float:
        """Seconds since a Mount of this volume was answered."""
        return trio.current_time() - self.facts(uuid).mounted_at_s

    async def uses(self, record: Record) -> Sequence[Usage]:
        """Where the kernel shows the volume's mount, alive or dead, outside of our own mount point."""
        uuid, besides = record.volume.uuid, str(self.settings.mountpoint(record.volume.uuid))
        worker = self.workers.get(uuid)
        if worker is not None:
            name, device = label(self.settings, record.volume), worker.device
            found = await trio.to_thread.run_sync(lambda: self.kernel.usages(name, device, besides=besides))
        else:
            found = await self._dead(record.volume, living="")
        self.facts(uuid).uses = len(found)
        return found

    async def _dead(self, volume: Volume, *, living: str) -> Sequence[Usage]:
        """Where dead mounts of the volume are, by what this node calls it."""
        name, own = label(self.settings, volume), str(self.settings.mountpoint(volume.uuid))
        found = await trio.to_thread.run_sync(lambda: self.kernel.dead(name, living=living))
        return [usage for usage in found if usage.mountpoint != own]

    async def start(self, volume: Volume, *, deadline_s: float) -> Worker:
        """Serve a volume, and put its mount back into containers that have a dead one. The lock is held.

        Raises S3volError with one line; then all is as before.
        """
        if (worker := self.workers.get(volume.uuid)) is not None:
            return worker
        before = self.state.get(volume.uuid) or Record(volume)
        await self.state.save(replace(before, volume=volume, dirty=True))
        try:
            worker = await self.workers.start(volume, deadline_s=deadline_s)
        except BaseException as error:
            if isinstance(error, S3volError):
                self.facts(volume.uuid).last_error = str(error)
            with trio.move_on_after(_UNDO_S, shield=True):
                await self._save_quietly(before)
            raise
        self.facts(volume.uuid).last_error = ""
        log.info("mounted", extra={"volume": volume.name, "pid": worker.pid, "device": worker.device})
        await self.heal(volume.uuid)
        return worker

    async def heal(self, uuid: str) -> None:
        """Put the mount of a volume that is served into containers where a crash has left a dead one. Lock held.

        An earlier run of this daemon may have been killed before it had come to that, and what failed may work later.
        """
        worker, record = self.workers.get(uuid), self.state.get(uuid)
        if worker is None or record is None or not self.settings.heal:
            return
        dead = await self._dead(record.volume, living=worker.device)
        if healed := await self._heal(dead, worker, record.volume):
            await self._save_quietly(replace(record, heals=record.heals + healed))

    async def _heal(self, dead: Sequence[Usage], worker: Worker, volume: Volume) -> int:
        """How many places have the new mount now. One that fails is logged once: its container needs a restart."""
        healed = 0
        for usage in dead:
            where = {"volume": volume.name, "pid": usage.pid, "path": usage.mountpoint}
            try:
                await trio.to_thread.run_sync(self.kernel.heal, usage, worker.mountpoint)
            except S3volError as error:
                if usage not in self._unhealed:
                    self._unhealed.add(usage)
                    self.counters["heals_failed"] += 1
                    log.error("a container keeps a dead mount, restart it: %s", error, extra=where)
                continue
            healed += 1
            self._unhealed.discard(usage)
            log.warning("a container's dead mount was replaced", extra=where)
        self.counters["heals"] += healed
        return healed

    async def stop(self, volume: Volume, *, drain_s: float) -> Left:
        """Publish for so long and unmount. The lock is held. Raises S3volError when it is in use after all."""
        left = await self.workers.stop(volume, drain_s=drain_s)
        unpublished = bool(left.files or left.bytes)
        if unpublished:
            text = "unmounted with %d files (%s) not yet published; they are in the journal"
            log.warning(text, left.files, format_bytes(left.bytes), extra={"volume": volume.name})
        record = self.state.get(volume.uuid)
        if record is not None:
            await self._save_quietly(replace(record, dirty=unpublished))
        self.facts(volume.uuid).status = {}
        log.info("unmounted", extra={"volume": volume.name})
        return left

    async def retire(self, uuid: str, *, patience_s: float) -> bool:
        """Unmount a volume that nobody uses, when it has published all; True when nothing of it is left here.

        Ends early when it is used again. What is not reached in `patience_s` is tried again by the upkeep.
        """
        deadline_s, pause_s = trio.current_time() + patience_s, _PAUSE_S
        while True:
            async with self.lock(uuid):
                record = self.state.get(uuid)
                if record is None:
                    return True
                if record.refs:
                    return False
                if await self._retire_now(record):
                    return True
            if trio.current_time() + pause_s > deadline_s or self.workers.get(uuid) is None:
                return False
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _retire_now(self, record: Record) -> bool:
        """One try. The lock is held."""
        volume = record.volume
        if self.workers.get(volume.uuid) is not None:
            status = await self.workers.status(volume.uuid)
            if await self.uses(record) or status.get("dirty_bytes") or status.get("dirty_files"):
                return False
            try:
                left = await self.stop(volume, drain_s=DRAIN_S)
            except S3volError as error:
                log.info("not unmounted yet: %s", error, extra={"volume": volume.name})
                return False
            if left.files or left.bytes:
                return False
        elif record.dirty or await self.uses(record):
            return False
        await self.drop(volume)
        return True

    async def drop(self, volume: Volume) -> None:
        """Forget a volume that is not served here and has nothing unpublished. The lock is held."""
        try:
            await self.state.forget(volume.uuid)
        except S3volError as error:  # the record says: no references, clean; the next start forgets it
            log.error("%s", error, extra={"volume": volume.name})
        self._facts.pop(volume.uuid, None)
        await self.release(volume)

    async def release(self, volume: Volume) -> None:
        """Say that this node no longer has the volume, if the bucket answers within RELEASE_S."""
        with trio.move_on_after(RELEASE_S):
            try:
                await self.registry.release(volume)
            except S3volError as error:
                log.info("said later, by silence: %s", error, extra={"volume": volume.name})

    async def _save_quietly(self, record: Record) -> None:
        """Save, or at least remember: for what has happened and cannot be refused any more."""
        try:
            await self.state.save(record)
        except S3volError as error:
            log.error("%s", error, extra={"volume": record.volume.name})
            self.state.remember(record)

    async def put_back(self, uuid: str, refs: Mapping[str, int]) -> None:
        """Set the counts to what is true although it may not be possible to save it. The lock is held."""
        if (record := self.state.get(uuid)) is not None:
            await self._save_quietly(replace(record, refs=refs))
