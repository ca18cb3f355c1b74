"""From nothing, or from what a crash has left, to a mount process that provably serves.

Theory of operation. Four things can be in the way, and each is told apart by the process and by the mount table. A
process that serves already: it is used. One that is about to serve (an earlier run of the driver was killed while it
started it): it is waited for. One that lives and has no mount here: when other namespaces have it, its mount is put
back; else it is ending, it publishes what is left, and its cache directory is locked until then, so it is waited for. A
dead mount: it is detached.

What is started has to prove itself: our type and name at exactly that path, a living record, and an answer of the root.
When it does not, or when anything else goes wrong or is cancelled, it is taken back: no process, no mount, no
directory.

The volume's lock is held by the caller.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from s3vol.errors import S3volError
from s3vol_plugin import mountpoint
from s3vol_plugin.base import Worker
from s3vol_plugin.deadline import until
from s3vol_plugin.invocation import arguments, environment, label, log_file
from s3vol_plugin.launch import launch, undo
from s3vol_plugin.mountpoint import Answer
from s3vol_plugin.presence import Presence
from s3vol_plugin.process import mounting
from s3vol_plugin.roster import Roster
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

_POLL_S = 0.05

log = logging.getLogger(__name__)


class Starting:
    """Starts mount processes. `base` is the environment that they inherit from."""

    def __init__(self, settings: Settings, roster: Roster, presence: Presence, base: Mapping[str, str]) -> None:
        self._settings = settings
        self._roster = roster
        self._presence = presence
        self._base = base

    async def start(self, volume: Volume, deadline: float) -> Worker:
        """See base.Workers; `deadline` is a time of the event loop."""
        command = arguments(self._settings, volume, root=os.geteuid() == 0)
        variables = environment(self._settings, volume, self._base)
        await self._make_way(volume, deadline)
        return self._roster.get(volume.uuid) or await self._launch(volume, command, variables, deadline)

    async def _make_way(self, volume: Volume, deadline: float) -> None:
        """Nothing of the volume is here when this returns, or it serves (again)."""
        uuid, point = volume.uuid, self._settings.mountpoint(volume.uuid)
        await self._find(volume, deadline)
        known = self._roster.living(uuid)
        if known is not None and self._roster.get(uuid) is None:
            if users := await self._presence.users(volume, known.device):
                await self._presence.put_back(volume, users)
                return
            late = f"volume {volume.name}: its earlier mount process {known.process.pid} is still publishing; try again"
            with until(deadline, late):
                await known.process.ended()
        if self._roster.mount(uuid) is None or self._roster.get(uuid) is not None:
            return
        if await mountpoint.examine(point) is not Answer.DEAD:
            raise S3volError(f"volume {volume.name}: {point} is a mount of an unknown process; `umount {point}` first")
        await trio.to_thread.run_sync(mountpoint.detach, point)

    async def _find(self, volume: Volume, deadline: float) -> None:
        """Know the process of a volume, if there is one; one that is about to serve is waited for."""
        uuid, point = volume.uuid, self._settings.mountpoint(volume.uuid)
        with until(deadline, f"volume {volume.name}: a mount process of it neither serves nor ends; try again"):
            while self._roster.living(uuid) is None:
                record = (await trio.to_thread.run_sync(self._roster.records)).get(uuid)
                if record is not None and self._roster.learn(uuid, record):
                    log.info("found a mount process", extra={"volume": volume.name, "pid": record.pid})
                elif await trio.to_thread.run_sync(mounting, point):
                    await trio.sleep(_POLL_S)
                else:
                    return

    async def _launch(
        self, volume: Volume, command: Sequence[str], variables: Mapping[str, str], deadline: float
    ) -> Worker:
        point = self._settings.mountpoint(volume.uuid)
        await trio.to_thread.run_sync(self._make_directories, point)
        try:
            with until(deadline, f"volume {volume.name}: was not mounted in time; {self._log_hint(volume)}"):
                await launch(command, variables)
                return await self._prove(volume)
        except BaseException:
            await undo(point)
            self._roster.forget(volume.uuid)
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
        record = (await trio.to_thread.run_sync(self._roster.records)).get(uuid)
        mount = self._roster.mount(uuid)
        answer = await mountpoint.examine(point)
        if record is None or not record.alive or mount is None:
            raise S3volError(f"volume {volume.name}: its mount process ended at once; {self._log_hint(volume)}")
        if mount.source != label(self._settings, volume) or answer is not Answer.ALIVE:
            raise S3volError(
                f"volume {volume.name}: {point} does not answer ({answer.value}); {self._log_hint(volume)}"
            )
        self._roster.learn(uuid, record)
        return Worker(uuid, record.pid, str(point), mount.device)

    def _log_hint(self, volume: Volume) -> str:
        return f"see {log_file(self._settings, volume.uuid)}"
