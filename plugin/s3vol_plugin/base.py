"""The borders between the rooms of the volume driver.

All of it runs in one trio loop; the HTTP threads enter it through a portal. What is not `async` here answers from
memory and must not block: dockerd asks it before nearly everything it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from s3vol_plugin.volume import Volume

__all__ = ["Holder", "Kernel", "Left", "Registry", "Usage", "Worker", "Workers"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that says it has a volume mounted; `age_s` is how old its last word is."""

    node: str
    age_s: float


class Registry(Protocol):
    """Which volumes there are, on all nodes: records in the bucket, and a copy of them in memory and on disk.

    Errors: what `s3vol.store` raises. UsageError for what the user can correct.
    """

    @property
    def age_s(self) -> float | None:
        """Seconds since the copy was last true; None when this node never had one."""
        ...

    def get(self, name: str) -> Volume | None:
        """From the copy. Tombstones are None."""
        ...

    def all(self) -> Sequence[Volume]:
        """From the copy, by name, without tombstones."""
        ...

    async def refresh(self) -> None:
        """Make the copy true. One task at a time asks; the others wait for its answer."""
        ...

    async def find(self, name: str) -> Volume | None:
        """Ask the bucket for one volume, and put the answer into the copy."""
        ...

    async def create(self, volume: Volume) -> Volume:
        """Write the record unless there is one: returns the volume that has the name now, which may be another's.

        A tombstone that is in the way is replaced when the source is another, or its time is over; else UsageError
        says that `s3vol volume undelete` brings it back.
        """
        ...

    async def remove(self, volume: Volume) -> None:
        """Turn the record into a tombstone, on the condition that it still is this volume (by uuid)."""
        ...

    async def undelete(self, name: str) -> Volume:
        """Turn a tombstone back into a volume. Raises UsageError when there is none."""
        ...

    async def clear(self) -> None:
        """Delete from the bucket what nobody needs any more: tombstones that cannot be undeleted, and what nodes that
        are long silent have said. All ages are by the store's clock."""
        ...

    async def holders(self, volume: Volume) -> Sequence[Holder]:
        """The nodes that have said lately that they have it mounted, this one included."""
        ...

    async def hold(self, volume: Volume) -> None:
        """Say that this node has it mounted; to be repeated every HOLD_S."""
        ...

    async def release(self, volume: Volume) -> None:
        """Say that it no longer has. Missing is success."""
        ...


@dataclass(frozen=True, slots=True)
class Worker:
    """An `s3vol mount` process that serves a volume here. `device` is `major:minor` as in mountinfo."""

    uuid: str
    pid: int
    mountpoint: str
    device: str


@dataclass(frozen=True, slots=True)
class Left:
    """What an unmount left in the journal of this node."""

    files: int
    bytes: int


class Workers(Protocol):
    """The mount processes of this node. Each survives the end of this process, and is found again."""

    def get(self, uuid: str) -> Worker | None:
        """The process that serves a volume, if it lives and its mount is there."""
        ...

    async def adopt(self) -> Sequence[Worker]:
        """Find the processes that an earlier run of this daemon started; take dead mounts out of the tree."""
        ...

    async def start(self, volume: Volume, *, deadline_s: float) -> Worker:
        """Mount a volume and prove that it is mounted: our type at that path, its root answers.

        Starting what already runs returns it. Raises S3volError with the mount command's own line; nothing is left
        behind then.
        """
        ...

    async def stop(self, volume: Volume, *, drain_s: float) -> Left:
        """Publish for so long, unmount, wait for the process's end. What is left is in the journal.

        Not mounted: Left(0, 0). Raises S3volError when the mount is in use or the process does not end; then it is
        still mounted, or ending.
        """
        ...

    async def status(self, uuid: str) -> Mapping[str, Any]:
        """The values of `s3vol status --json`; {} when there is no process."""
        ...

    async def watch(self, ended: trio.MemorySendChannel[str]) -> None:
        """Send the uuid of each volume whose process ended without being asked to. Runs until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """One place where a volume's mount is seen outside of our own mount point.

    `pid` is one process of that mount namespace; `root` is the directory of the volume that is mounted there (`/`, or
    a subpath).
    """

    pid: int
    mountpoint: str
    root: str
    read_only: bool


class Kernel(Protocol):
    """The truth about who uses a volume: the mount tables of all namespaces. Called in threads: reads /proc."""

    def usages(self, name: str, device: str, *, besides: str) -> Sequence[Usage]:
        """Where the file system `device` that the table calls `name` is mounted, except at `besides` in our namespace.

        In any mount namespace. Both count: a device's number is given to another mount as soon as this one is gone.
        """
        ...

    def dead(self, name: str, *, living: str) -> Sequence[Usage]:
        """Where mounts that the table calls `name` are that are not of the device `living`: what crashes have left."""
        ...

    def heal(self, usage: Usage, mountpoint: str) -> None:
        """Put the live mount at `mountpoint` in the place of a dead one in another namespace. Raises S3volError."""
        ...
