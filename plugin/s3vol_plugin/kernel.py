"""Who really uses a volume: the mount tables of all namespaces.

Theory of operation. dockerd's references leak (a crash of dockerd, a Mount that outlived its patience), so nothing is
unmounted or kept on their word. A container that has a volume has it in its mount namespace, and every process shows
the table of its own: /proc/PID/mountinfo, read once for each namespace and root directory. A file system is known by
its device, which is its own for as long as anybody has it mounted, dead or alive; when nobody has, the number is given
to the next one. So a dead one is recognised by the name that the driver has given it (`invocation.label`), and by being
dead.

What does not count as use: our own mount point; a copy of it that follows what is unmounted in ours, be it in a
namespace that was split off from ours (systemd gives many services one), or in the one that ours is propagated to (the
host's, twice, for a managed plugin); a dead mount that is covered by the living one of its volume.

Taking the tables apart is pure; `LinuxKernel` reads, and starts the healing of a mount in a process of its own
(s3vol_plugin.heal).

Rejected: asking dockerd which containers there are. It knows its own only, and must not be needed while it waits for
us.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3vol import mounts
from s3vol.errors import S3volError
from s3vol.mounts import Mount
from s3vol.runtime import process_started
from s3vol_plugin.base import Usage

HEAL_S = 15.0  # takes 60 ms; a subdirectory is looked up in the volume, which may have to wait for its endpoint
ANSWER_S = 2.0  # a dead mount answers at once
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A mount namespace as one of its processes sees it. `own`: it is this process's."""

    pid: int
    own: bool
    table: Sequence[Mount]


def find_usages(namespaces: Iterable[Namespace], wanted: Callable[[Mount], bool], *, besides: str = "") -> list[Usage]:
    """Where our `wanted` mounts are seen, except at `besides` in our namespace and in copies that follow it."""
    views = list(namespaces)
    ours = [place for view in views if view.own for place in _places(besides, view.table)]
    return [
        Usage(view.pid, mount.path, mount.root, read_only="ro" in mount.flags)
        for view in views
        for mount in view.table
        if mount.type == mounts.TYPE
        and wanted(mount)
        and not (view.own and mount.path == besides)
        and not _follows(mount, view.table, ours)
        and not _covered(mount, view.table)
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """The directory that something is mounted on: where on which device, and the peer groups of the mount above.

    An unmount at this directory travels along those groups to the same directory, whatever its path is elsewhere.
    """

    device: str
    directory: str
    peers: frozenset[str]


def _places(path: str, table: Sequence[Mount]) -> list[_Place]:
    by_id = {mount.id: mount for mount in table}
    return [_place(mount, by_id[mount.parent]) for mount in table if mount.path == path and mount.parent in by_id]


def _place(mount: Mount, above: Mount) -> _Place:
    inside = os.path.relpath(mount.path, above.path)
    return _Place(above.device, os.path.normpath(os.path.join(above.root, inside)), above.peers)


def _follows(mount: Mount, table: Sequence[Mount], ours: Sequence[_Place]) -> bool:
    """True for what is unmounted together with ours."""
    above = next((other for other in table if other.id == mount.parent), None)
    if above is None:
        return False
    place = _place(mount, above)
    return any(
        (place.device, place.directory) == (our.device, our.directory) and place.peers & our.peers for our in ours
    )


def _covered(mount: Mount, table: Sequence[Mount]) -> bool:
    """True when a mount of the same volume lies on it."""
    return any(
        other.parent == mount.id and other.path == mount.path and other.source == mount.source for other in table
    )


def read_namespaces() -> list[Namespace]:
    """All mount namespaces that a process is in. Needs root; processes of others are left out for anybody else."""
    own = os.readlink(_PROC / "thread-self/ns/mnt")
    found = (_read(pids, own=own == namespace) for (namespace, _), pids in sorted(_views().items()))
    return [view for view in found if view is not None]


def _views() -> dict[tuple[str, str], list[int]]:
    """The processes of each namespace and root directory, the oldest first: that is a container's own first process,
    where others (`docker exec`, a health check) may be gone in the next moment.

    A process below another root directory sees less of the same namespace.
    """
    found: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for pid in (int(name) for name in os.listdir(_PROC) if name.isdecimal()):
        process = _PROC / str(pid)
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is a zombie
            view = os.readlink(process / "ns/mnt"), os.readlink(process / "root")
            if started := process_started(pid):
                found[view].append((started, pid))
    return {view: [pid for _, pid in sorted(pids)] for view, pids in found.items()}


def _read(pids: Sequence[int], *, own: bool) -> Namespace | None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            return Namespace(pid, own, mounts.mount_table(pid))
    return None


class _Question(threading.Thread):
    """Asks a mount whether its process is there. A thread, which is left behind when nobody answers."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._dead = False
        self.start()

    def run(self) -> None:
        """Ask; statfs(2) is never answered from the kernel's memory."""
        try:
            os.statvfs(self._path)
        except OSError as error:
            self._dead = error.errno in mounts.DEAD

    def says_dead(self, end_s: float) -> bool:
        """True when it has said so until then (monotonic time)."""
        self.join(max(end_s - time.monotonic(), 0.0))
        return self._dead


class LinuxKernel:
    """base.Kernel on the running kernel."""

    def usages(self, name: str, device: str, *, besides: str) -> Sequence[Usage]:
        """See Kernel.usages."""
        return find_usages(
            read_namespaces(), lambda mount: mount.device == device and mount.source == name, besides=besides
        )

    def dead(self, name: str, *, living: str) -> Sequence[Usage]:
        """Where dead file systems called `name` are mounted, other than the device `living`: what crashes have left.

        Each place is asked, in parallel, for ANSWER_S.
        """
        found = find_usages(read_namespaces(), lambda mount: mount.source == name and mount.device != living)
        answers = {usage: _Question(f"/proc/{usage.pid}/root{usage.mountpoint}") for usage in found}
        end = time.monotonic() + ANSWER_S
        return [usage for usage, question in answers.items() if question.says_dead(end)]

    def heal(self, usage: Usage, mountpoint: str) -> None:
        """Put the live mount at `mountpoint` in the place of a dead one in another namespace.

        What is healed already stays as it is. Raises S3volError; then the dead mount is still there.
        """
        _surgery("heal", usage, mountpoint)

    def restore(self, usage: Usage, mountpoint: str) -> None:
        """Put the mount that another namespace has at `usage` (root `/`) back to `mountpoint` in ours.

        Raises S3volError; then nothing is mounted there.
        """
        _surgery("restore", usage, mountpoint)


def _surgery(verb: str, usage: Usage, mountpoint: str) -> None:
    request = {"verb": verb, "pid": usage.pid, "path": usage.mountpoint, "mountpoint": mountpoint}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "s3vol_plugin.heal"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=HEAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise S3volError(f"{usage.mountpoint} of process {usage.pid}: not healed within {HEAL_S:g} s") from None
    except OSError as error:
        raise S3volError(f"{sys.executable}: cannot be started: {error.strerror}") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise S3volError(f"{usage.mountpoint} of process {usage.pid}: {lines[-1]}")
