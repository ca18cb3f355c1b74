"""What the driver does without being asked: take over, recover, keep the counts and the registry's copy true.

Theory of operation. The order at the start is fixed: the socket answers already; then processes of an earlier run
are found (from here on Mounts go through); then what is used and not served is served again; and only then dockerd
is asked anything, for it may be waiting for one of our answers.

After that, loops that do not depend on each other:

* Every RECONCILE_S, and when a dockerd starts, each record is compared with the kernel (`references.next_step`).
* A process that ended unasked is started again at once, then after growing pauses; the start heals containers.
* The registry's copy is refreshed every REFRESH_S, and soon after somebody used an old one.
* What this node has is said to the other nodes (`Registry.hold`).
* What nobody needs any more in the registry is deleted every CLEAR_S; of all nodes at it, one gets each record.
* What the Status of a volume shows is fetched, so that a question never waits for a mount process.

Nothing here may end the daemon, and nothing may hold up anything else: a volume whose lock is taken is left to
whoever has it until the next round.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from s3vol.errors import S3volError, Unavailable
from s3vol.parallel import for_each
from s3vol_plugin.docker_api import Docker
from s3vol_plugin.holders import HOLD_S
from s3vol_plugin.node import Node
from s3vol_plugin.references import Step, next_step
from s3vol_plugin.state import Record
from s3vol_plugin.volume import Volume

RECONCILE_S = 60.0
REFRESH_S = 30.0
CLEAR_S = 3600.0
STATUS_S = 5.0
MOUNT_S = 100.0
HOLDS = 8  # volumes that are spoken of at once
_PATIENCE_S = 45.0
_FIRST_RECOVERY_S = 60.0  # dockerd is asked after this even if a volume cannot be recovered: its bucket is down
_PAUSE_S, _PAUSE_MAX_S = 1.0, 60.0
_CALM_S = 300.0  # a process that lived for this long is restarted at once again

log = logging.getLogger(__name__)


class Upkeep:
    """The background of one node. `docker` is asked which containers run; None where there is no dockerd."""

    def __init__(self, node: Node, docker: Docker | None) -> None:
        self._node = node
        self._docker = docker
        self._stale = trio.Event()
        self._recovering: dict[str, trio.Event] = {}  # set after the first try
        self._pauses: dict[str, tuple[float, float]] = {}  # uuid: next pause, time of the last try
        self._strays: set[str] = set()
        self._ending = False
        self.recovered = trio.Event()
        node.names.on_stale = lambda: self._stale.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        sender, ended = trio.open_memory_channel[str](64)
        async with sender, ended, trio.open_nursery() as nursery:
            nursery.start_soon(self._forever, REFRESH_S, self.refresh, self._old)
            await self._adopt()
            nursery.start_soon(self._node.workers.watch, sender)
            nursery.start_soon(self._restart, ended)
            await self._recover_all()
            self.recovered.set()
            nursery.start_soon(self._forever, RECONCILE_S, self.reconcile)
            nursery.start_soon(self._forever, HOLD_S, self.hold)
            nursery.start_soon(self._forever, STATUS_S, self.look)
            nursery.start_soon(self._forever, CLEAR_S, self._node.registry.clear)

    def recover_no_more(self) -> None:
        """What ends from now on is not started again: all is being ended."""
        self._ending = True

    def reconcile_soon(self) -> None:
        """A dockerd has started. Does not block.

        It waits for the recovery: a process of an earlier run that is found in the middle of a comparison would be
        taken for one whose containers need no healing, and others of whom nothing is known for dead.
        """

        async def reconcile() -> None:
            await self.recovered.wait()
            await self._guarded(self.reconcile)

        self._node.tasks.start_soon(reconcile)

    async def _forever(
        self,
        period_s: float,
        work: Callable[[], Awaitable[None]],
        early: Callable[[], Awaitable[None]] = trio.sleep_forever,
    ) -> None:
        while True:
            await self._guarded(work)
            with trio.move_on_after(period_s):
                await early()

    async def _guarded(self, work: Callable[[], Awaitable[None]], silent: list[Unavailable] | None = None) -> None:
        """Do it, and log what fails; where nobody answers it is added to `silent`, if there is one."""
        try:
            await work()
        except S3volError as error:
            if silent is not None and isinstance(error, Unavailable):
                silent.append(error)
            else:
                log.warning("%s", error)
        except Exception:  # a fault here must not end the daemon, which would help nobody
            log.exception("unexpected failure; tried again")

    # The registry.

    async def _old(self) -> None:
        """Wait until somebody has used an old copy."""
        self._stale = trio.Event()
        await trio.sleep(_PAUSE_S)
        await self._stale.wait()

    async def refresh(self) -> None:
        """Make the copy true, and note since when the bucket does not answer."""
        node = self._node
        try:
            await node.registry.refresh()
        except S3volError as error:
            if str(error) != node.registry_error:
                log.warning("the registry of volumes cannot be read: %s", error)
            node.registry_error = str(error)
            node.registry_down_since_s = node.registry_down_since_s or trio.current_time()
            return
        if node.registry_error:
            log.info("the registry of volumes can be read again")
        node.registry_error, node.registry_down_since_s = "", None

    async def hold(self) -> None:
        """Say what this node has, and learn who else has it. One that fails does not silence the others: whoever is
        not heard of for FRESH_S may lose the volume under its mount.

        Side by side, as each waits its time-out for a registry that is down; then that is one line, not one for each.
        """
        silent: list[Unavailable] = []

        async def hold(volume: Volume) -> None:
            await self._guarded(partial(self._hold, volume), silent)

        volumes = [record.volume for record in self._node.state.all()]
        await for_each(volumes, hold, limit=HOLDS)
        if silent:
            log.warning("it cannot be said of %d volumes that this node has them: %s", len(silent), silent[0])

    async def _hold(self, volume: Volume) -> None:
        node = self._node
        if node.state.get(volume.uuid) is None:  # let go while others were spoken of
            return
        await node.registry.hold(volume)
        holders = await node.registry.holders(volume)
        if node.state.get(volume.uuid) is None:
            await self._take_back(volume)
        else:
            node.facts(volume.uuid).holders = holders

    async def _take_back(self, volume: Volume) -> None:
        """Say no longer that this node has a volume that was let go in this moment: nobody could remove it until then.

        Not beside a Mount, whose own word would be taken back; and it is not waited for, for others are to be said.
        """
        lock = self._node.lock(volume.uuid)
        if not lock.locked():
            async with lock:
                if self._node.state.get(volume.uuid) is None:
                    await self._node.release(volume)

    # Processes.

    async def _adopt(self) -> None:
        """Find what an earlier run started. Until this has worked nothing can be mounted, so it is tried for ever."""
        node = self._node
        while not node.adopted.is_set():
            try:
                workers = await node.workers.adopt()
            except S3volError as error:
                log.error("mount processes of an earlier run cannot be found: %s", error)
                await trio.sleep(_PAUSE_MAX_S)
                continue
            self._strays = {worker.uuid for worker in workers if node.state.get(worker.uuid) is None}
            await self._guarded(self._know_strays)
            node.adopted.set()

    async def _know_strays(self) -> None:
        """Give a record to processes that have none (it was corrupt, or the disk was full); from then on they are
        treated like all others. One whose volume the registry does not know is left alone."""
        node = self._node
        volumes = {volume.uuid: volume for volume in node.registry.all()}
        for uuid in sorted(self._strays & volumes.keys()):
            async with node.lock(uuid):
                if node.state.get(uuid) is None:
                    await node.state.save(Record(volumes[uuid], dirty=True))
            self._strays.discard(uuid)
        for uuid in self._strays:
            log.warning("a mount process serves a volume that is not known", extra={"uuid": uuid})

    async def _restart(self, ended: trio.MemoryReceiveChannel[str]) -> None:
        async for uuid in ended:
            self._node.counters["recoveries"] += 1
            self._recover_soon(uuid)

    async def _recover_all(self) -> None:
        """Serve again what is used; returns when each volume was tried once, or after a while."""
        await self._guarded(lambda: self._compare_all(ask_docker=False))
        with trio.move_on_after(_FIRST_RECOVERY_S):
            for tried in list(self._recovering.values()):
                await tried.wait()

    def _recover_soon(self, uuid: str) -> None:
        if uuid not in self._recovering and not self._ending:
            self._recovering[uuid] = trio.Event()
            self._node.tasks.start_soon(self._recover, uuid)

    async def _recover(self, uuid: str) -> None:
        tried = self._recovering[uuid]
        try:
            await self._guarded(lambda: self._recover_until_done(uuid, tried))
        finally:
            tried.set()
            self._recovering.pop(uuid, None)
            self._node.facts(uuid).recovering = False
        await self._guarded(lambda: self._retire(uuid, _PATIENCE_S))

    async def _recover_until_done(self, uuid: str, tried: trio.Event) -> None:
        while True:
            pause_s = self._next_pause(uuid)
            await trio.sleep(pause_s)
            async with self._node.lock(uuid):
                if await self._recover_once(uuid):
                    return
            tried.set()

    def _next_pause(self, uuid: str) -> float:
        """Seconds before the next try: none at first, then growing, also for a process that ends again and again."""
        now_s = trio.current_time()
        pause_s, last_s = self._pauses.get(uuid, (0.0, -_CALM_S))
        if now_s - last_s >= _CALM_S:
            pause_s = 0.0
        self._pauses[uuid] = (min(max(2 * pause_s, _PAUSE_S), _PAUSE_MAX_S), now_s)
        return pause_s

    async def _recover_once(self, uuid: str) -> bool:
        """True when there is nothing left to do. The lock is held."""
        node = self._node
        record = node.state.get(uuid)
        if record is None or node.workers.get(uuid) is not None:
            return True
        uses = await node.uses(record)
        if not (record.refs or uses) and (not record.dirty or self._removed(record)):
            return True
        known = node.registry.get(record.volume.name)
        volume = known if known is not None and known.uuid == uuid else record.volume
        node.facts(uuid).recovering = True
        try:
            await node.start(volume, deadline_s=MOUNT_S)
        except S3volError as error:
            log.error("not mounted again: %s", error, extra={"volume": volume.name})
            return False
        return node.workers.get(uuid) is not None  # it may have died while containers were healed: that was not heard

    def _removed(self, record: Record) -> bool:
        """True when the registry has lost the volume: its objects may be being deleted, so nothing is published."""
        registry = self._node.registry
        known = registry.get(record.volume.name)
        gone = registry.age_s is not None and (known is None or known.uuid != record.volume.uuid)
        facts = self._node.facts(record.volume.uuid)
        if gone and record.dirty and not facts.last_error:
            facts.last_error = (
                "removed elsewhere, while this node had data that was not published; "
                f"`s3vol volume undelete {record.volume.name}` publishes it"
            )
            log.error("%s", facts.last_error, extra={"volume": record.volume.name})
        return gone

    # Counts.

    async def reconcile(self) -> None:
        """Compare all records with the kernel, and act."""
        if self._strays:
            await self._know_strays()
        await self._compare_all(ask_docker=True)

    async def _compare_all(self, *, ask_docker: bool) -> None:
        async with trio.open_nursery() as nursery:
            for record in self._node.state.all():
                uuid = record.volume.uuid
                if not self._node.lock(uuid).locked():  # else somebody is at it
                    nursery.start_soon(self._guarded, lambda uuid=uuid: self._compare(uuid, ask_docker=ask_docker))

    async def _compare(self, uuid: str, *, ask_docker: bool) -> None:
        async with self._node.lock(uuid):
            await self._node.heal(uuid)
            step = await self._step(uuid)
            if step is Step.ASK and ask_docker:
                step = await self._clear_leaked(uuid)
            record = self._node.state.get(uuid)
            if step is Step.FORGET and record is not None:
                await self._node.drop(record.volume)
        if step is Step.RECOVER:
            self._recover_soon(uuid)
        elif step is Step.RETIRE:
            await self._retire(uuid, 0.0)

    async def _step(self, uuid: str) -> Step:
        """The lock is held."""
        node = self._node
        if (record := node.state.get(uuid)) is None:
            return Step.KEEP
        in_use = bool(await node.uses(record))
        serving = node.workers.get(uuid) is not None
        quiet_s = node.quiet_s(uuid)
        return next_step(record.refs, serving=serving, in_use=in_use, dirty=record.dirty, quiet_s=quiet_s)

    async def _clear_leaked(self, uuid: str) -> Step:
        """Drop counts that neither the kernel nor dockerd knows of. The lock is held."""
        record = self._node.state.get(uuid)
        if record is None or await self._is_running(record.volume.name):
            return Step.KEEP
        log.warning("left-over references dropped: %d", len(record.refs), extra={"volume": record.volume.name})
        await self._node.put_back(uuid, {})
        return await self._step(uuid)

    async def _is_running(self, name: str) -> bool:
        """Whether dockerd runs a container with the volume. No answer is a no: the kernel said so as well."""
        if self._docker is None:
            return False
        try:
            containers = await trio.to_thread.run_sync(self._docker.containers, abandon_on_cancel=True)
        except S3volError:
            return False
        return any(container.running and name in container.volumes for container in containers)

    async def _retire(self, uuid: str, patience_s: float) -> None:
        record = self._node.state.get(uuid)
        if record is not None and not record.refs:
            await self._node.retire(uuid, patience_s=patience_s)

    async def look(self) -> None:
        """Fetch what Status shows."""

        async def look_at(record: Record) -> None:
            facts = self._node.facts(record.volume.uuid)
            facts.status = await self._node.workers.status(record.volume.uuid)
            if bool(record.refs) != bool(facts.uses):  # a container has come or gone since the last look
                await self._node.uses(record)

        async with trio.open_nursery() as nursery:
            for record in self._node.state.all():
                nursery.start_soon(self._guarded, lambda record=record: look_at(record))
