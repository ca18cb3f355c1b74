"""Trail: which directories a walker comes to next. Pure.

Theory of operation. `find`, `du`, `ls -l`, `ls -R`, rsync and git come to directories one after the other, in the order
of their names. Once three neighbours were come to one after the other, the next one is likely, and with each further
step one more, up to `most`; the same for the first directories below one that such a walk came to. What was prepared
and came too late was for nothing; the walker is slow then, and for a while nothing is prepared for him.
"""

from __future__ import annotations

from bisect import bisect_left

from s3vol import layout

PARENTS = 64  # whose subdirectories are remembered
PATIENCE = 32  # directories without looking ahead after something that came too late


class Trail:
    """Of one kind of walk. Keys end in `/`; no method awaits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._below: dict[str, list[str]] = {}  # subdirectories, sorted, by directory; the last one listed at the end
        self._at: dict[str, tuple[int, int]] = {}  # which of them was last (-1: none yet), and steps so far
        self._walk: tuple[str, int] = ("", 0)  # where a walk is, and its steps
        self._pause = 0

    def step(self, key: str) -> list[str]:
        """A walker comes to the directory: those that he is likely to come to next."""
        parent = layout.parent_key(key)
        below = self._below.get(parent, [])
        at = bisect_left(below, key)
        if at == len(below) or below[at] != key:
            return []
        before, steps = self._at.get(parent, (at, 0))
        steps = steps + 1 if at == before + 1 else 0
        self._at[parent] = at, steps
        self._walk = key, steps
        return self._next(below[at + 1 : at + 1 + self._most], steps)

    def listed(self, key: str, below: list[str]) -> list[str]:
        """Its subdirectories are known: those that a walker is likely to come to next."""
        self._forget(key)
        self._below[key] = below
        if len(self._below) > PARENTS:
            self._forget(next(iter(self._below)))
        walked, steps = self._walk
        if key != walked or not steps:
            return []
        self._at[key] = -1, steps
        return self._next(below, steps)

    def late(self) -> None:
        """Something came too late to be used."""
        self._pause = PATIENCE

    def _next(self, keys: list[str], steps: int) -> list[str]:
        if self._pause:
            self._pause -= 1
            return []
        return keys[: max(0, min(steps - 1, self._most))]

    def _forget(self, key: str) -> None:
        self._below.pop(key, None)
        self._at.pop(key, None)
