"""Makes every dockerd of this node load the driver, so that a swarm knows of it before its first use.

dockerd looks for a driver of this kind only when somebody uses it, and until then the swarm's scheduler says
"missing plugin" of this node; after a restart of dockerd again. Listing volumes makes it look. So whenever a
dockerd appears, volumes are listed once, in the background: dockerd asks us while it answers.

That a dockerd ends is seen on an idle connection to its socket. A socket that systemd holds accepts connections
while dockerd does not run, and a connection would start it: an administrator who stops Docker would see it start
again. So nothing is tried unless a process called dockerd runs.

Rejected: its event stream (the same connection, and JSON to parse), and asking every minute (a restart and a
deployment are seconds apart).
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import trio

from s3vol.errors import S3volError
from s3vol_plugin.docker_api import Docker

_LOOK_S = 2.0
_ENGINE = b"dockerd"
_PROC = Path("/proc")

log = logging.getLogger(__name__)


def engine_runs() -> bool:
    """Whether a process called dockerd runs, in this process's view of /proc."""
    for name in os.listdir(_PROC):
        try:
            # Bytes: a process calls itself what it likes, and a name of 15 bytes may end within a letter.
            if name.isdecimal() and (_PROC / name / "comm").read_bytes().strip() == _ENGINE:
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False


async def announce(docker: Docker) -> None:
    """Introduce the driver to each dockerd that appears behind the socket. Runs until cancelled."""
    while True:
        try:
            if await trio.to_thread.run_sync(engine_runs):
                async with await trio.open_unix_socket(docker.socket) as connection:
                    await _introduce(docker, connection)
        except OSError:  # no socket yet, or nobody behind it
            pass
        await trio.sleep(_LOOK_S)


async def _introduce(docker: Docker, connection: trio.SocketStream) -> None:
    """Have it done once, then wait for the end of that dockerd."""
    ended = trio.Event()

    async def wait_for_end() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await connection.receive_some(1)
        ended.set()

    async def list_volumes() -> None:
        while True:
            try:
                await trio.to_thread.run_sync(docker.kick, abandon_on_cancel=True)
                log.info("dockerd knows the driver")
                return
            except S3volError as error:  # it is still starting
                log.info("dockerd does not list volumes yet: %s", error)
            await trio.sleep(_LOOK_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_end)
        nursery.start_soon(list_volumes)
        await ended.wait()
        nursery.cancel_scope.cancel()
