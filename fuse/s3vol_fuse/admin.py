"""What the control socket can ask of a running mount.

`status`, `flush` and `drain` answer at any time. `end` is asked by an unmounter before it unmounts: it is answered when
the last drain is over, so that the unmounter can say what was left, and dropped when the unmounter goes away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio

from s3vol.control import Operation, Peer
from s3vol.errors import UsageError
from s3vol.fs.base import FileSystem, Progress
from s3vol_fuse.session import Session


def operations(fs: FileSystem, session: Session, status: Callable[[], Mapping[str, Any]]) -> dict[str, Operation]:
    """The table of operations for `control.serve`; `status` gives the values of the mount itself."""

    async def show(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        return status()

    async def flush(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        path = request.get("path")
        if not (path is None or isinstance(path, str)):
            raise UsageError("flush: path must be text")
        await fs.flush_path(path, _reporter(peer))
        return {}

    async def drain(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        deadline_s = _deadline(request)
        await fs.drain(0, _reporter(peer))  # the journal first: whoever kills us for being slow loses nothing
        return _values(await fs.drain(deadline_s, _reporter(peer)))

    async def end(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        async with session.ending(_deadline(request), _reporter(peer)), trio.open_nursery() as nursery:

            async def leave_when_gone() -> None:
                await peer.gone.wait()
                nursery.cancel_scope.cancel()

            peer.report(waiting=True)  # tells the asker that from here on its deadline counts
            nursery.start_soon(leave_when_gone)
            await session.drained.wait()
            nursery.cancel_scope.cancel()
        return _values(session.left)

    return {"status": show, "flush": flush, "drain": drain, "end": end}


def _values(progress: Progress) -> dict[str, int]:
    return {"files": progress.files, "bytes": progress.bytes}


def _reporter(peer: Peer) -> Callable[[Progress], None]:
    return lambda progress: peer.report(**_values(progress))


def _deadline(request: Mapping[str, Any]) -> float:
    seconds = request.get("deadline_s")
    if not isinstance(seconds, int | float) or seconds < 0:
        raise UsageError("deadline_s must be a number of seconds")
    return float(seconds)
