"""What systemd is told: that the daemon is ready, that it lives, that it ends (sd_notify(3)). Nothing without systemd.

The watchdog is fed only after a question has gone the whole way that dockerd's go: through the socket, the server's
threads and the loop, and back. A daemon that runs but does not answer is restarted, which leaves all mounts alone. What
is asked is a name that no volume can have, so the answer needs no bucket: one that is down is no reason for a restart.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from pathlib import Path

import trio

from s3vol.errors import S3volError
from s3vol_plugin.docker_api import request

_IMPOSSIBLE = "."

log = logging.getLogger(__name__)


class Systemd:
    """The manager that NOTIFY_SOCKET names, if it does."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period_us = environment.get("WATCHDOG_USEC", "")
        self.period_s = (
            int(period_us) / 2e6 if period_us.isdecimal() else 0.0
        )  # half, as sd_watchdog_enabled(3) advises

    def tell(self, *lines: str) -> None:
        """Send one message, such as `READY=1`. A manager that does not listen is no reason to end."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                log.warning("NOTIFY_SOCKET: %s", error.strerror)

    async def feed(self, path: Path) -> None:
        """Tell that the daemon lives, as long as its own socket at `path` answers. Runs until cancelled."""
        while self.period_s:
            if await trio.to_thread.run_sync(answers, path, self.period_s, abandon_on_cancel=True):
                self.tell("WATCHDOG=1")
            await trio.sleep(self.period_s / 2)


def answers(path: Path, timeout_s: float) -> bool:
    """Whether the driver at `path` answers a question. Blocks."""
    try:
        status, reply = request(path, "POST", "/VolumeDriver.Get", {"Name": _IMPOSSIBLE}, timeout_s=timeout_s)
    except S3volError as error:
        log.error("the driver does not answer itself: %s", error)
        return False
    return status == 200 and isinstance(reply, dict) and bool(reply.get("Err"))
