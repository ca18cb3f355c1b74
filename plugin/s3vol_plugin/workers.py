"""The mount processes of this node: one `s3vol mount` a volume, started, watched, asked, stopped, and found again.

Theory of operation. A mount process belongs to nobody: it has left our session, inherits no descriptor, and is no child
of ours, so that an upgrade or a crash of the driver never touches a mount. What ties it to us is its record in the
runtime directory. systemd must be told not to end the control group together with the service (`KillMode=process`).

What there is of a volume is one of these. *Serving*: the process lives and its mount is on our mount point; only this
is a Worker. *Ending*: the process lives and nobody has its mount. *Detached*: it lives, and only other namespaces have
its mount. *Dead*: the process has ended; its mount may be left here, and in containers (s3vol_plugin.heal).

One lock a volume, held by `start` and `stop` through all their awaits: there is never a second process for a volume,
nor a stop of what a start is making. `get`, `status` and `watch` take none.

Rejected: `s3vol mount --foreground` as our child (our end would be its own wherever a supervisor kills children), and
mounting in this process.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from s3vol import mounts
from s3vol_plugin import mountpoint
from s3vol_plugin.base import Left, Worker
from s3vol_plugin.deadline import until
from s3vol_plugin.kernel import LinuxKernel
from s3vol_plugin.mountpoint import Answer
from s3vol_plugin.presence import Presence
from s3vol_plugin.roster import Roster
from s3vol_plugin.settings import Settings
from s3vol_plugin.starting import Starting
from s3vol_plugin.stopping import EXIT_S, Stopping
from s3vol_plugin.volume import Volume

log = logging.getLogger(__name__)


class MountWorkers:
    """base.Workers with real processes."""

    def __init__(
        self, settings: Settings, *, kernel: LinuxKernel | None = None, base: Mapping[str, str] | None = None
    ) -> None:
        """`base` is the environment that mount processes inherit from; by default that of this process."""
        presence = Presence(settings, kernel or LinuxKernel())
        self._settings = settings
        self._roster = Roster(settings)
        self._starting = Starting(settings, self._roster, presence, os.environ if base is None else base)
        self._stopping = Stopping(settings, self._roster, presence)
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    def get(self, uuid: str) -> Worker | None:
        """The process that serves a volume, if it lives and its mount is there."""
        return self._roster.get(uuid)

    async def status(self, uuid: str) -> Mapping[str, Any]:
        """The values of `s3vol status --json`; {} when there is no process."""
        return await self._roster.status(uuid)

    async def watch(self, ended: trio.MemorySendChannel[str]) -> None:
        """Send the uuid of each volume whose process ended without being asked to. Runs until cancelled."""
        await self._roster.watch(ended)

    async def adopt(self) -> Sequence[Worker]:
        """Find the processes that an earlier run of this daemon started; take dead mounts out of the tree."""
        records = await trio.to_thread.run_sync(self._roster.records)
        for uuid, record in records.items():
            async with self._locks[uuid]:
                if self._roster.living(uuid) is None and self._roster.learn(uuid, record):
                    log.info("found a mount process", extra={"uuid": uuid, "pid": record.pid})
        for mount in await trio.to_thread.run_sync(mounts.mount_table):
            path = Path(mount.path)
            if mount.type == mounts.TYPE and path.parent == self._settings.mounts_directory:
                async with self._locks[path.name]:
                    await self._clear_if_dead(path)
        return self._roster.serving()

    async def _clear_if_dead(self, path: Path) -> None:
        if self._roster.living(path.name) is None and await mountpoint.examine(path) is Answer.DEAD:
            await trio.to_thread.run_sync(mountpoint.detach, path)
            mountpoint.remove(path)
            log.warning("a dead mount was taken away", extra={"path": str(path)})

    async def start(self, volume: Volume, *, deadline_s: float) -> Worker:
        """Mount a volume and prove that it is mounted: our type at that path, its root answers.

        Starting what already runs returns it. Raises S3volError with the mount command's own line; nothing is left
        behind then.
        """
        deadline = trio.current_time() + deadline_s
        async with self._held(volume, deadline):
            return self.get(volume.uuid) or await self._starting.start(volume, deadline)

    async def stop(self, volume: Volume, *, drain_s: float) -> Left:
        """Publish for so long, unmount, wait for the process's end. What is left is in the journal.

        Not mounted: Left(0, 0); one file at least when it is not known what a process has left. Raises S3volError when
        the mount is in use or the process does not end; then it is still mounted, or ending.
        """
        async with self._held(volume, trio.current_time() + drain_s + EXIT_S):
            return await self._stopping.stop(volume, drain_s)

    @contextlib.asynccontextmanager
    async def _held(self, volume: Volume, deadline: float) -> AsyncIterator[None]:
        """The volume's lock."""
        with until(deadline, f"volume {volume.name}: another start or stop of it takes too long; try again"):
            await self._locks[volume.uuid].acquire()
        try:
            yield
        finally:
            self._locks[volume.uuid].release()
