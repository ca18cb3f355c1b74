"""Where a volume is mounted besides our own mount point, and getting it back from there.

Unmounting ours does not end a mount that a container has: the process serves on, its cache stays locked, and the next
container could not be given the volume. That happens when somebody unmounts by hand, and when a container starts just
between our look at the mount tables and the unmount. A mount can be cloned out of the container's namespace as well as
into it, so it is put back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from s3vol import mounts
from s3vol.errors import S3volError
from s3vol_plugin import mountpoint
from s3vol_plugin.base import Usage
from s3vol_plugin.invocation import label
from s3vol_plugin.kernel import LinuxKernel
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

log = logging.getLogger(__name__)


class Presence:
    """A volume in other mount namespaces."""

    def __init__(self, settings: Settings, kernel: LinuxKernel) -> None:
        self._settings = settings
        self._kernel = kernel

    async def users(self, volume: Volume, device: str) -> Sequence[Usage]:
        """Who has the file system `device` of a volume mounted."""
        name, besides = label(self._settings, volume), str(self._settings.mountpoint(volume.uuid))
        return await trio.to_thread.run_sync(lambda: self._kernel.usages(name, device, besides=besides))

    async def put_back(self, volume: Volume, users: Sequence[Usage]) -> None:
        """Mount here what only `users` still have, of whom each may have ended by now.

        Raises S3volError when that is impossible.
        """
        point = self._settings.mountpoint(volume.uuid)
        whole = [usage for usage in users if usage.root == "/"]
        if not whole:
            raise S3volError(
                f"volume {volume.name}: was unmounted while process {users[0].pid} uses a directory of it; "
                "stop that one first"
            )
        await trio.to_thread.run_sync(mountpoint.prepare, point.parent, point.name)
        for number, usage in enumerate(whole, 1):
            try:
                await trio.to_thread.run_sync(self._restore, volume, usage)
                break
            except S3volError:
                if number == len(whole):
                    raise
        log.warning("a volume that is in use was unmounted, and is mounted again", extra={"volume": volume.name})

    def _restore(self, volume: Volume, usage: Usage) -> None:
        """Raises S3volError when nobody, or another volume, is there by now: a process id may be another process's."""
        point = self._settings.mountpoint(volume.uuid)
        self._kernel.restore(usage, str(point))
        mount = mounts.find_mount(str(point))
        if mount is not None and mount.source != label(self._settings, volume):
            mountpoint.detach(point)
            raise S3volError(f"volume {volume.name}: process {usage.pid} has another volume at {usage.mountpoint}")
