"""The mounts of this process's namespace, read again only when they have changed.

The kernel says so: mountinfo polls as POLLPRI after each change (proc_pid_mountinfo(5)), and a poll costs 1 µs where
reading and parsing 400 mounts, as a node with a hundred containers has them, costs a millisecond for each volume.
"""

from __future__ import annotations

import os
import select
import weakref

from s3vol import mounts

_READ_BYTES = 1 << 20


class Table:
    """Answers from memory, and from the kernel when that is out of date. For one thread."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._visible = self._read()

    def find(self, path: str) -> mounts.Mount | None:
        """The visible mount exactly on `path`, if there is one."""
        if self._poll.poll(0):
            self._visible = self._read()
        return self._visible.get(path)

    def _read(self) -> dict[str, mounts.Mount]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        text = b"".join(iter(lambda: os.read(self._fd, _READ_BYTES), b""))
        return {mount.path: mount for mount in mounts.parse_table(os.fsdecode(text))}
