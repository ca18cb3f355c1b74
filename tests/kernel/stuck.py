"""A mount whose notification is stuck in the kernel when the signal to end comes: run by test_process.

Its only file is read and never answered. Dropping the file's pages waits for that read, so the notification waits as
long as the connection lives.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import trio

from s3vol.errors import NotFound
from s3vol.fs.base import Entry, Opened, Progress, StatFs
from s3vol.types import Attr, Event, Fh, Ino, Invalidation
from s3vol_fuse import session
from s3vol_fuse.session import MountPoint, Session

FILE = Ino(2)


def _entry(ino: Ino) -> Entry:
    mode = 0o100644 if ino == FILE else 0o040755
    return Entry(
        Attr(ino=ino, mode=mode, nlink=1, uid=0, gid=0, rdev=0, size=4096, atime_ns=0, mtime_ns=0, ctime_ns=0), 60, 60
    )


class Fs:
    """As much of a FileSystem as the test asks for."""

    def __init__(self, events: trio.MemorySendChannel[Event]) -> None:
        self.events = events
        self.session: Session | None = None

    async def lookup(self, parent: Ino, name: bytes) -> Entry:
        if name != b"f":
            raise NotFound(name.decode())
        return _entry(FILE)

    async def getattr(self, ino: Ino, fh: Fh | None = None) -> Entry:
        return _entry(ino)

    async def open(self, ino: Ino, flags: int) -> Opened:
        return Opened(Fh(1), keep_cache=True)

    async def read(self, fh: Fh, offset: int, length: int) -> bytes:
        self.events.send_nowait(Invalidation(FILE))
        assert self.session is not None
        while not self.session._notifier._inside:  # noqa: ASYNC110  # it counts in a thread
            await trio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()
        raise AssertionError

    async def statfs(self) -> StatFs:
        return StatFs(4096, 1, 1, 1, 1)

    async def drain(self, deadline_s: float, progress: object) -> Progress:
        return Progress(0, 0)

    def forget(self, counts: Sequence[tuple[Ino, int]]) -> None:
        pass

    def path_of(self, ino: Ino) -> str:
        return ""

    def path_of_handle(self, fh: Fh) -> str:
        return ""


async def main(path: str) -> None:
    session.GRACE_S = 0.5  # what it waits for never happens here
    sender, events = trio.open_memory_channel[Event](8)
    fs = Fs(sender)
    made = fs.session = Session(fs, MountPoint(path, "stuck"), drain_timeout_s=1)  # type: ignore[arg-type]  # a part

    async def greet() -> None:
        await made.serving()
        print("serving", flush=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        await made.run(events, lambda event: None)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
