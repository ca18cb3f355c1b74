"""Markers: what the bucket says of a directory itself, and of the next ones ahead of a walker.

Theory of operation. A listing names subdirectories and says nothing of their attributes, which are those of objects
within them. So `ls -l`, `du` and `find` wait for a request at each of them; those that the walker is likely to come to
next (`Trail`) are asked for side by side (`Ahead`).

Rejected: asking for all of a listing's subdirectories when it is read. Most programs that list a directory do not look
at each.
"""

from __future__ import annotations

from s3vol import layout
from s3vol.fs.ahead import Ahead
from s3vol.fs.context import Mount
from s3vol.fs.learned import Ask
from s3vol.fs.objects import Objects
from s3vol.fs.trail import Trail
from s3vol.types import ObjectInfo

AHEAD = 8


class Markers:
    """Of one mount. Without `run` nothing is asked ahead."""

    def __init__(self, mount: Mount, objects: Objects) -> None:
        self._mount = mount
        self._objects = objects
        self._trail = Trail(AHEAD)
        self.answers = Ahead(mount, self._early, self._trail.late)

    async def run(self) -> None:
        """For as long as the mount lives."""
        await self.answers.run()

    def listed(self, key: str, below: list[str]) -> None:
        """The subdirectories of a directory that was read."""
        self._trail.listed(key, below)

    async def early(self, key: str) -> tuple[ObjectInfo | None, Ask] | None:
        """The marker of a directory (None if it has none) and the question that brought it, if it was asked for ahead.

        Who gets it takes it over without an await. Raises like `look`.
        """
        self.answers.want(key for key in self._trail.step(key) if not self._is_known(key))
        found = await self.answers.take(key)
        if found is None or found[1].stale(key):
            return None
        (marker,), ask = found
        return marker, ask

    async def look(self, key: str, *, marked: bool) -> tuple[ObjectInfo | None, bool]:
        """The marker, and whether there is a directory at all. `marked`: it is known to have one."""
        if marked:
            marker = await self._objects.head(key)
            if marker is not None and not layout.is_tombstone(marker):
                return marker, True
        first = await self._objects.first_below(key)
        return (first if first is not None and first.key == key else None), first is not None

    async def _early(self, key: str) -> tuple[ObjectInfo | None] | None:
        """Of one that is there; whether one is gone is for those to find out who come to it."""
        inode = self._mount.inodes.at(key)
        marker, exists = await self.look(key, marked=inode is not None and bool(inode.marker))
        return (marker,) if exists else None

    def _is_known(self, key: str) -> bool:
        inode = self._mount.inodes.at(key)
        return inode is not None and self._mount.learned.fresh(inode.asked_s)
