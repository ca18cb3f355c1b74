"""A judge: a program that nobody here wrote, run in a directory of any file system, and what it found.

Theory of operation. A judge gets an empty directory and returns a `Verdict`; it knows nothing of what is mounted there,
so that the same one runs on s3vol, on other file systems, and on the local disk, whose verdict tells a fault of the
machine from a fault of ours. A verdict counts what was done as well as what failed: a suite that skips everything
would else pass. A program that hangs is killed and has failed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_END_S = 10.0  # a killed program that a dead file system holds may take for ever: it is left to the unmount
_SAID_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one run found. `executed` are checks that ran to an end, `failed` those of them that went wrong."""

    executed: frozenset[str]
    failed: frozenset[str]
    said: str = ""

    @property
    def passed(self) -> int:
        """How many checks ran and found nothing."""
        return len(self.executed - self.failed)


Judge = Callable[[Path], Verdict]


@dataclass(frozen=True, slots=True)
class Done:
    """A program that ended. `status` is None when it hung and was killed."""

    status: int | None
    said: str


def run(
    argv: Iterable[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    user: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> Done:
    """Run a program in a session of its own, as `user` if one is named; all of it is killed when the time is over."""
    row = None if user is None else pwd.getpwnam(user)
    process = subprocess.Popen(
        [str(word) for word in argv],
        cwd=cwd,
        env={**os.environ, **(extra or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        user=row and row.pw_uid,
        group=row and row.pw_gid,
        extra_groups=row and [],
    )
    said = ""
    try:
        said, _ = process.communicate(timeout=timeout_s)
        return Done(process.returncode, said)
    except subprocess.TimeoutExpired as late:
        os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = process.communicate(timeout=_END_S)
        partial = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        return Done(None, f"{said or partial}\nkilled after {timeout_s:g} s")


class Steps:
    """A judge made of steps that build on one another: the first that fails is the last that runs."""

    def __init__(self) -> None:
        self._executed: list[str] = []
        self._failed: list[str] = []
        self._said = ""

    def run(self, name: str, *argv: str | Path, timeout_s: float = 900.0, **more: object) -> str | None:
        """A step that is a program: it has to end with 0. Returns what it said, None after a failure."""
        if self._failed:
            return None
        done = run(argv, timeout_s=timeout_s, **more)  # type: ignore[arg-type]  # as `run` has them
        self.check(name, done.status == 0, f"{' '.join(map(str, argv))}: {done.status}\n{done.said}")
        return None if self._failed else done.said

    def check(self, name: str, holds: bool, said: str = "") -> None:
        """A step that is a comparison."""
        if self._failed:
            return
        self._executed.append(name)
        if not holds:
            self._failed.append(name)
            self._said = said[-_SAID_CHARS:]

    def verdict(self) -> Verdict:
        """What the steps found."""
        return Verdict(frozenset(self._executed), frozenset(self._failed), self._said)
