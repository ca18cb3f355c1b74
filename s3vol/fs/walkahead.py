"""Who walks through a tree finds the next directories listed already.

Theory of operation. `find`, `du`, `ls -R`, rsync and git read directories one behind the other, in the order of their
names, and wait for a LIST at each. Once three neighbours were read one after the other, the next one is listed while
the walker is busy with this one, and with each further step one more, up to `AHEAD`; the same for the first directories
below one that such a walk came to. `Trail` decides this, from names only.

A page that was listed ahead counts like any other: it may be as old as `attr-ttl` when its directory is read, and
never older than a change of that directory made here. So it runs as an `Ask` until it is taken, and where something is
pending in the directory nothing is listed ahead. One that comes too late was for nothing; the walker is slow then, and
for a while nothing is listed ahead for him.

Rejected: listing the tree without delimiter. One request brings ten directories of a hundred files, but of a large one
it brings a page of what nobody came for.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass, field

import trio

from s3vol import layout
from s3vol.errors import S3volError
from s3vol.fs.context import Mount
from s3vol.fs.inodes import Inode
from s3vol.fs.learned import Ask
from s3vol.fs.listing import Lister, Listing

AHEAD = 3  # directories: `ls -lR` 1.4 times as fast beside MinIO, 1.8 at 10 ms; other depths were not measured
PIECES = 16  # listed ahead at most, for all walkers
PARENTS = 64  # whose subdirectories are remembered
PATIENCE = 32  # directories without looking ahead after a page that came too late

log = logging.getLogger(__name__)


class Trail:
    """Which directories come next. Keys end in `/`; no method awaits."""

    def __init__(self) -> None:
        self._below: dict[str, list[str]] = {}  # subdirectories, sorted, by directory; the last one listed at the end
        self._at: dict[str, tuple[int, int]] = {}  # which of them was read last (-1: none yet), and steps so far
        self._walk: tuple[str, int] = ("", 0)  # where a walk is, and its steps
        self._pause = 0

    def read(self, key: str) -> list[str]:
        """The directory is read from its beginning: those that are likely to be read next."""
        parent = layout.parent_key(key)
        below = self._below.get(parent, [])
        at = bisect_left(below, key)
        if at == len(below) or below[at] != key:
            return []
        before, steps = self._at.get(parent, (at, 0))
        steps = steps + 1 if at == before + 1 else 0
        self._at[parent] = at, steps
        self._walk = key, steps
        return self._next(below[at + 1 :], steps)

    def listed(self, key: str, below: list[str]) -> list[str]:
        """Its subdirectories are known: those that are likely to be read next."""
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
        """A page came too late to be used."""
        self._pause = PATIENCE

    def _next(self, keys: list[str], steps: int) -> list[str]:
        if self._pause:
            self._pause -= 1
            return []
        return keys[: max(0, min(steps - 1, AHEAD))]

    def _forget(self, key: str) -> None:
        self._below.pop(key, None)
        self._at.pop(key, None)


@dataclass(eq=False, slots=True)
class _Piece:
    """A page that is listed ahead. `ask` lives until it is taken."""

    key: str
    ask: Ask | None = None
    listing: Listing | None = None
    error: S3volError | None = None
    listed: trio.Event = field(default_factory=trio.Event)
    taken: trio.Event = field(default_factory=trio.Event)


class WalkAhead:
    """Listings ahead of the walkers of one mount. Without `run` nothing is listed ahead."""

    def __init__(self, mount: Mount, lister: Lister) -> None:
        self._mount = mount
        self._lister = lister
        self._trail = Trail()
        self._pieces: dict[str, _Piece] = {}  # wanted, and neither taken nor too old
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """For as long as the mount lives."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def first_page(self, directory: Inode) -> Listing:
        """The first page of a directory that is being read. Raises like `Lister.page`."""
        key = directory.key
        piece = self._pieces.get(key) if key is not None else None
        if key is not None:
            self._want(self._trail.read(key))
        listing = await self._take(directory, piece) if piece is not None else None
        if listing is None or directory.key != key:
            listing = await self._lister.page(directory, None)
        else:
            self._lister.note(directory, listing)
        if key is not None:
            self._want(self._trail.listed(key, [row.key for row in listing.rows if row.is_dir]))
        return listing

    async def _take(self, directory: Inode, piece: _Piece) -> Listing | None:
        """What was listed, if it is good for this directory now. No await after the event.

        Raises what the listing met while it was waited for: asked again, it would take the time-out twice.
        """
        waited = not piece.listed.is_set()
        await piece.listed.wait()
        if waited and piece.error is not None:
            raise piece.error
        if piece.taken.is_set():
            return None  # by another walker, and what is changed from then on is told to nobody
        piece.taken.set()
        ask, listing = piece.ask, piece.listing
        if ask is None or listing is None or not self._mount.learned.fresh(ask.at_s):
            return None
        return None if ask.concerns(piece.key) or directory.changed_s >= ask.at_s else listing

    def _want(self, keys: list[str]) -> None:
        if self._nursery is None or not self._mount.settings.attr_ttl_s:
            return
        for key in keys:
            if key not in self._pieces and len(self._pieces) < PIECES:
                piece = self._pieces[key] = _Piece(key)
                self._nursery.start_soon(self._fetch, piece)

    async def _fetch(self, piece: _Piece) -> None:
        """List it, and keep the page for as long as it may be believed."""
        learned = self._mount.learned
        try:
            with learned.asking() as ask:
                # No await since the question began: what is made from here on is known to it.
                if any(layout.parent_key(content.key) == piece.key for content in self._mount.cache.pending()):
                    return
                try:
                    piece.listing = await self._lister.ahead(piece.key)
                    piece.ask = ask
                except S3volError as error:
                    piece.error = error
                except Exception:  # a fault of ours: the walker meets it again, and it must not end the mount
                    log.exception("%s could not be listed ahead", piece.key)
                piece.listed.set()
                if piece.ask is not None:
                    with trio.move_on_after(learned.left_s(ask.at_s)):
                        await piece.taken.wait()
                    if not piece.taken.is_set():
                        self._trail.late()
        finally:
            piece.listed.set()
            del self._pieces[piece.key]
