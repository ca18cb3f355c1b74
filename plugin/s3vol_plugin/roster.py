"""The mount processes of this node that live: which there are, what they say, and when one ends.

Theory of operation. A process is known by its record in the runtime directory (s3vol.runtime), whether this run of the
driver started it or an earlier one. `get` is asked before nearly every answer to dockerd: it reads one line of /proc
and a table that the kernel keeps up to date (s3vol_plugin.table), and waits for nothing.

Each process that becomes known goes through a channel to `watch`, which waits for its end on a pidfd. One whose end was
asked for is marked before it is ended, and not told of.

Nothing here takes a lock: who starts and stops processes (s3vol_plugin.workers) holds that of the volume.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from s3vol import mounts, runtime
from s3vol.control import NotServing
from s3vol.status import record_values
from s3vol_plugin.base import Worker
from s3vol_plugin.conversation import connected
from s3vol_plugin.process import Process
from s3vol_plugin.settings import Settings
from s3vol_plugin.table import Table

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Known:
    """A mount process. `device` is what it mounted; `asked`: we are ending it."""

    uuid: str
    process: Process
    record: runtime.Record
    device: str
    asked: bool = False


class Roster:
    """The processes by the volume's uuid."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._table = Table()
        self._known: dict[str, Known] = {}
        self._statuses: dict[str, Mapping[str, Any]] = {}
        self._to_watch, self._new = trio.open_memory_channel[Known](math.inf)

    def get(self, uuid: str) -> Worker | None:
        """The process that serves a volume, if it lives and its mount is there."""
        known, mount = self.living(uuid), self.mount(uuid)
        if known is None or mount is None or mount.device != known.device:
            return None
        return Worker(uuid, known.process.pid, known.record.mountpoint, known.device)

    def serving(self) -> list[Worker]:
        """All of them."""
        return [worker for uuid in list(self._known) if (worker := self.get(uuid)) is not None]

    def living(self, uuid: str) -> Known | None:
        """The living process of a volume, whether its mount is here or not."""
        known = self._known.get(uuid)
        return known if known is not None and known.process.alive else None

    def crashed(self, uuid: str) -> bool:
        """True when the process that was known last has ended, and nobody has said `forget`."""
        return uuid in self._known and self.living(uuid) is None

    def mount(self, uuid: str) -> mounts.Mount | None:
        """What is mounted on a volume's mount point, alive or dead, if it is ours."""
        mount = self._table.find(str(self._settings.mountpoint(uuid)))
        return mount if mount is not None and mount.type == mounts.TYPE else None

    def records(self) -> dict[str, runtime.Record]:
        """Records of mounts in our directory, by uuid. Reads files."""
        found = runtime.records({"S3VOL_RUNTIME_DIR": str(self._settings.runtime_directory)})
        paths = [(Path(record.mountpoint), record) for record in found]
        return {path.name: record for path, record in paths if path.parent == self._settings.mounts_directory}

    def learn(self, uuid: str, record: runtime.Record) -> bool:
        """Know the process of a record, if it lives and has mounted. The record of a dead one is removed."""
        if not record.alive:
            runtime.forget(record)
            return False
        mount = self.mount(uuid)
        device = record.device or (mount.device if mount else "")
        if not device:
            return False
        known = self._known[uuid] = Known(uuid, Process(record.pid, record.started), record, device)
        self._to_watch.send_nowait(known)
        return True

    def forget(self, uuid: str) -> None:
        """The volume's process has ended, and that is all right."""
        self._known.pop(uuid, None)
        self._statuses.pop(uuid, None)

    async def watch(self, ended: trio.MemorySendChannel[str]) -> None:
        """Send the uuid of each volume whose process ended without being asked to. Runs until cancelled."""

        async def await_end(known: Known) -> None:
            await known.process.ended()
            if not known.asked:
                log.error("a mount process has ended", extra={"uuid": known.uuid, "pid": known.process.pid})
                await ended.send(known.uuid)

        async with trio.open_nursery() as nursery:
            for known in self._unwatched():
                nursery.start_soon(await_end, known)
            async for known in self._new:
                nursery.start_soon(await_end, known)

    def _unwatched(self) -> Sequence[Known]:
        """All that are known now, and those that came and went before anybody watched."""
        found = {id(known): known for known in self._known.values()}
        with contextlib.suppress(trio.WouldBlock):
            while True:
                known = self._new.receive_nowait()
                found[id(known)] = known
        return list(found.values())

    async def status(self, uuid: str) -> Mapping[str, Any]:
        """The values of `s3vol status --json`; {} when there is no process."""
        known = self.living(uuid)
        if known is None:
            return {}
        try:
            async with connected(known.record.socket) as conversation:
                values = await conversation.status()
        except NotServing:
            values = record_values(known.record, "silent" if known.process.alive else "dead")
        self._statuses[uuid] = values
        return values

    def last_status(self, uuid: str) -> Mapping[str, Any]:
        """What `status` answered last, however long ago."""
        return self._statuses.get(uuid, {})
