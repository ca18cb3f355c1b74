"""What is at a name in the moment before it is deleted.

Theory of operation. DELETE knows no condition, so a removal looks first: the tombstone of another node's rename is not
ours to delete (objects.py), and what has gone need not be. No look closes that gap, it only makes it short: the answer
is on its way back, and the DELETE on its way there, while others go on. So an answer may be `LOOK_AGE_S` old, which is
what the two ways take to a store elsewhere.

A HEAD for each name costs half of the speed of `rm -r`. Who removes one name after the other is therefore answered by a
piece of the directory's listing, which looks at the next ones as well. Whether that pays is seen from the piece before:
when names go in another order, or slowly, little of it was used, and for a while each name is asked for by itself.

Rejected: believing what was learned for `attr-ttl`, like a stat does (a second is long for a DELETE), and no look at
all (a rename whose DELETE is slow to arrive would take the next file of that name with it).
"""

from __future__ import annotations

from dataclasses import dataclass

from s3vol import layout
from s3vol.fs.context import Mount
from s3vol.fs.inodes import Inode
from s3vol.fs.listing import Lister
from s3vol.fs.lookup import Found
from s3vol.fs.objects import Objects

LOOK_AGE_S = 0.03
ROWS = 24  # as many as are removed in LOOK_AGE_S on a local MinIO; such a page costs as much as four HEADs
WORTH = 6  # names that a piece has to answer for
SINGLES = 3  # names asked for by themselves before the first piece
PATIENCE = 64  # and after a piece that was not worth it
DIRECTORIES = 64  # in which names are being removed at once


@dataclass(slots=True)
class Run:
    """Removals in one directory: pure counts, no request."""

    until_piece: int = SINGLES
    used: int = WORTH  # names that the last piece answered for; the first one is a try
    asking: bool = False  # for a piece, which says nothing yet

    def answered(self) -> None:
        """A name was known recently enough."""
        self.used += 1

    def asks_for_piece(self) -> bool:
        """A name has to be asked for: True when the next ones are to be asked for with it."""
        if self.asking:
            return False
        if self.until_piece > 0:
            self.until_piece -= 1
            return False
        if self.used < WORTH:
            self.until_piece, self.used = PATIENCE, WORTH
            return False
        self.used, self.asking = 0, True
        return True


class Looks:
    """Looks for one mount. Concurrent calls are independent."""

    def __init__(self, mount: Mount, objects: Objects, lister: Lister) -> None:
        self._mount = mount
        self._objects = objects
        self._lister = lister
        self._runs: dict[str, Run] = {}  # by the directory's key, the one that was asked for last at the end

    async def is_ours(self, directory: Inode, found: Found) -> bool:
        """True when the file that was found there still is, as of at most `LOOK_AGE_S` ago: no tombstone, not gone."""
        mount, path = self._mount, found.path
        run = self._run(directory.key or "")
        if found.info is not None and mount.learned.now_s() - found.asked_s <= LOOK_AGE_S:
            run.answered()
            return True
        if mount.store.capabilities.list_metadata and run.asks_for_piece():
            try:
                listing = await self._lister.window(directory, path, rows=ROWS)
            finally:
                run.asking = False
            if listing.covers(path):
                return any(row.key == path for row in listing.rows)
        now = await self._objects.head(path)
        return now is not None and not layout.is_tombstone(now)

    def _run(self, prefix: str) -> Run:
        run = self._runs.pop(prefix) if prefix in self._runs else Run()
        self._runs[prefix] = run
        if len(self._runs) > DIRECTORIES:
            del self._runs[next(iter(self._runs))]
        return run
