"""From a mount process that serves to none, without losing what it has accepted.

Theory of operation. As `s3vol umount` does it: drain while it still serves, say that the end is near, unmount, read
from the same connection what was left, and wait for the end of the process, for only then can its cache be used again.
Before the unmount nobody may have the volume in any namespace; after it this is asked again, and what a container got
in between is put back.

A process that is silent (it hangs, or somebody stopped it by a signal) is waited for by nobody: nobody uses its volume,
so it is detached and ended in three bounded steps. Its journal has what it accepted, and how much that is is not known
then; it is told as at least one file, because "nothing" would be forgotten.

The volume's lock is held by the caller. A cancelled stop leaves the volume mounted, or ending by itself.
"""

from __future__ import annotations

import errno
import logging

import trio

from s3vol import mounts, runtime
from s3vol.control import NotServing
from s3vol.errors import PosixError, S3volError
from s3vol_plugin import mountpoint
from s3vol_plugin.base import Left
from s3vol_plugin.conversation import connected
from s3vol_plugin.deadline import until
from s3vol_plugin.presence import Presence
from s3vol_plugin.roster import Known, Roster
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

EXIT_S = 45.0  # after the last drain: requests in progress are given up, libfuse is released, the journal is closed
_LAST_DRAIN_S = 1.0  # for what was written between the drain and the unmount: nobody uses the volume by then
_UNKNOWN = Left(1, 0)

log = logging.getLogger(__name__)


class Stopping:
    """Stops mount processes."""

    def __init__(self, settings: Settings, roster: Roster, presence: Presence) -> None:
        self._settings = settings
        self._roster = roster
        self._presence = presence

    async def stop(self, volume: Volume, drain_s: float) -> Left:
        """See base.Workers."""
        uuid, point = volume.uuid, self._settings.mountpoint(volume.uuid)
        known = self._roster.living(uuid)
        if known is None:
            left = _UNKNOWN if self._roster.crashed(uuid) else Left(0, 0)
        elif self._roster.get(uuid) is None:
            left = await self._await_exit(volume, known, _UNKNOWN, drain_s)
        else:
            left = await self._stop(volume, known, drain_s)
        self._roster.forget(uuid)
        await trio.to_thread.run_sync(mountpoint.detach, point)
        mountpoint.remove(point)
        return left

    async def _stop(self, volume: Volume, known: Known, drain_s: float) -> Left:
        await self._refuse_if_used(volume, known)
        known.asked = True
        try:
            left = await self._drain_and_unmount(volume, known, drain_s)
        except NotServing as error:
            log.warning("%s; it is ended", error, extra={"volume": volume.name, "pid": known.process.pid})
            return await self._end(volume, known)
        finally:
            known.asked = self._roster.mount(volume.uuid) is None
        return await self._await_exit(volume, known, left, EXIT_S)

    async def _refuse_if_used(self, volume: Volume, known: Known) -> None:
        if users := await self._presence.users(volume, known.device):
            raise _in_use(volume, f"process {users[0].pid} has it at {users[0].mountpoint}")

    async def _drain_and_unmount(self, volume: Volume, known: Known, drain_s: float) -> Left:
        """Raises S3volError when it is in use, and is mounted still; NotServing when the process does not answer."""
        deadline = trio.current_time() + drain_s
        async with connected(known.record.socket) as conversation:
            await conversation.status()  # a process that hangs is found out now, not at the end of a drain
            await conversation.drain(drain_s)
            rest_s = max(deadline - trio.current_time(), _LAST_DRAIN_S)
            await conversation.announce_end(rest_s)
            await self._unmount(volume, known)
            return await conversation.await_end(rest_s)

    async def _unmount(self, volume: Volume, known: Known) -> None:
        """Unmount, and take it back if somebody was quicker than our look at who uses it."""
        with trio.CancelScope(shield=True):  # between the two steps a container's volume would have no mount here
            try:
                await trio.to_thread.run_sync(mounts.unmount, known.record.mountpoint)
            except PosixError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise _in_use(volume, f"`fuser -vm {known.record.mountpoint}` shows by whom") from None
            if users := await self._presence.users(volume, known.device):
                await self._presence.put_back(volume, users)
                raise _in_use(volume, f"process {users[0].pid} has it at {users[0].mountpoint}")

    async def _await_exit(self, volume: Volume, known: Known, left: Left, wait_s: float) -> Left:
        """Return `left` when the process has ended: then its cache directory can be used by the next one."""
        pid = known.process.pid
        with until(trio.current_time() + wait_s, f"volume {volume.name}: unmounted, but pid {pid} has not ended yet"):
            await known.process.ended()
        return left

    async def _end(self, volume: Volume, known: Known) -> Left:
        """The end of a process that is silent, or has just died. Nobody uses the volume."""
        status = self._roster.last_status(volume.uuid)
        mount = self._roster.mount(volume.uuid)
        await trio.to_thread.run_sync(mountpoint.detach, self._settings.mountpoint(volume.uuid))
        await known.process.end(last_resort=lambda: mount and mounts.abort(mount))
        runtime.forget(known.record)
        return Left(max(status.get("dirty_files", 0), _UNKNOWN.files), status.get("dirty_bytes", 0))


def _in_use(volume: Volume, by: str) -> S3volError:
    return S3volError(f"volume {volume.name}: is in use, and still mounted; {by}")
