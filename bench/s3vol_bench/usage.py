"""What a process and its children have used: processor seconds and peak memory, from /proc (proc_pid_stat(5)).

The peak is the kernel's high-water mark. It is reset before a row by writing 5 to clear_refs (proc_pid_clear_refs(5)),
so that a row does not carry the peak of the one before. Children are followed because JuiceFS serves from one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds in user and in kernel mode since the start, and the peak of resident memory."""

    user_s: float = 0.0
    system_s: float = 0.0
    peak_bytes: int = 0

    def since(self, before: Usage) -> Usage:
        """What was used after `before`; the peak is that of the later one."""
        return Usage(self.user_s - before.user_s, self.system_s - before.system_s, self.peak_bytes)


def family(pid: int) -> list[int]:
    """A process and its descendants that run."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                waiting += map(int, task.read_text().split())
    return found


def of(pid: int | None) -> Usage:
    """The use of a process and its descendants; nothing when it is gone or there is none."""
    total = Usage()
    for one in family(pid) if pid else []:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total = Usage(
                total.user_s + int(fields[11]) * _TICK_S,
                total.system_s + int(fields[12]) * _TICK_S,
                total.peak_bytes + _status_bytes(one, "VmHWM"),
            )
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of one process now."""
    return _status_bytes(pid, "VmRSS")


def _status_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def reset_peak(pid: int | None) -> None:
    """Begin a new high-water mark."""
    for one in family(pid) if pid else []:
        with contextlib.suppress(OSError):
            Path(f"/proc/{one}/clear_refs").write_text("5")
