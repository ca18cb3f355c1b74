"""A mount process: known by its id and start time, waited for, and ended.

Process ids are reused, so a process is its id and the time it started, and who waits or signals does it through a pidfd
that was opened before the start time was compared. A mount process is no child of this one (it outlives it), so there
is no exit status to be had; a pidfd becomes readable at its end all the same, also before anybody reaps it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from s3vol.errors import S3volError
from s3vol.runtime import process_started

_STEPS = (  # signal, and how long its effect is waited for; as `s3vol umount --force` does it
    (signal.SIGTERM, 1.0),  # drain: whoever calls this has waited for that already
    (signal.SIGTERM, 8.0),  # only the journal
    (signal.SIGKILL, 10.0),
)
_GONE = (errno.ESRCH, errno.EINVAL, errno.ENOENT)  # the last two: the number is now that of a thread (by kernel)
END_S = sum(wait_s for _, wait_s in _STEPS)


@dataclass(frozen=True, slots=True)
class Process:
    """`started` is in clock ticks since boot."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """True while it runs; a zombie does not."""
        return process_started(self.pid) == self.started

    async def ended(self) -> None:
        """Return when it has ended."""
        with self._handle() as handle:
            if handle is not None:
                await trio.lowlevel.wait_readable(handle)

    async def end(self, last_resort: Callable[[], object] = lambda: None) -> None:
        """End it without waiting for the endpoint; what it has accepted is in its journal. At most END_S.

        `last_resort` is called before SIGKILL. Raises S3volError when that does not help either (it hangs in the
        kernel).
        """
        with self._handle() as handle:
            if handle is None:
                return
            for number, wait_s in _STEPS:
                if number == signal.SIGKILL:
                    last_resort()
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                with trio.move_on_after(wait_s):
                    await trio.lowlevel.wait_readable(handle)
                    return
        raise S3volError(
            f"mount process {self.pid} does not end; it hangs in the kernel (`cat /proc/{self.pid}/stack`)"
        )

    @contextlib.contextmanager
    def _handle(self) -> Iterator[int | None]:
        """A pidfd of exactly this process; None when it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            yield None
            return
        try:
            # Compared after the handle was opened: the id cannot be reused any more.
            yield handle if self.alive else None
        finally:
            os.close(handle)


def mounting(point: Path) -> list[Process]:
    """The living `s3vol mount` processes for a mount point, whether they serve already or not, by their command line.

    For those that have no record: it is written when the endpoint has accepted us and the journal is replayed.
    """
    end = b"\0" + os.fsencode(point) + b"\0"
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(OSError):  # gone meanwhile
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.endswith(end) and b"\0s3vol\0mount\0" in words and (started := process_started(pid)):
                found.append(Process(pid, started))
    return found
