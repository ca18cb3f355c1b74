"""Keeps what a mount process knows from other processes: keys are in its memory and in its environment.

A process that is not dumpable leaves no core, whatever `ulimit -c` and core_pattern say; and only root may read its
/proc/PID/environ and memory or attach to it, not every other process of its user (ptrace(2), proc(5)).

Rejected: RLIMIT_CORE (a core that is piped to a collector does not mind it), mlock (a swap is the administrator's to
encrypt).
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def conceal() -> None:
    """From here on this process and its forks cannot be dumped. A program that is executed is dumpable again."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "PR_SET_DUMPABLE")
