"""Pages that a random reader will ask for next, put into the kernel's page cache before it does.

Theory of operation. The file system says which pages are worth it, and gives them out when they are right
(s3vol/fs/beside.py, `FileSystem.pages`); a task hands them to the kernel after the read was answered. What has to wait
for pages on their way is decided here, for all answers alike:

* an open waits for all stores of its inode: it may be one for writing, or of other bytes than the kernel has pages of;
* so does a change of the file's length;
* attributes wait for a store that reaches beyond the length they tell, for it would make the file longer again.

All of these find the store in the notifier's table, for there is no await between the moment when the bytes were right
and the entry in the table; and the file system gives out no more of them from the moment when it prepared the answer.
So a wait is as long as the stores that had begun, and its end is not delayed by new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from s3vol.fs.base import DirEntry, Entry, FileSystem, Opened, Range
from s3vol.types import Fh, Ino
from s3vol_fuse.notify import Notifier

STORES_MAX = 8  # on their way at a time; each holds 128 KiB, and what does not fit is not pushed


class Pusher:
    """Of one mount. Pushes nothing unless `run` is running."""

    def __init__(self, fs: FileSystem, notifier: Notifier) -> None:
        self._fs = fs
        self._notifier = notifier
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Push in the background until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def answered(self, fh: Fh, offset: int, length: int) -> None:
        """A read is about to be answered: begin to push what is beside it, if that is worth it."""
        found = self._fs.beside(fh, offset, length)
        if found is not None and self._nursery is not None and self._notifier.stores < STORES_MAX:
            self._nursery.start_soon(self._push, fh, found)

    async def _push(self, fh: Fh, wanted: Range) -> None:
        pages = self._fs.pages(fh, *wanted)
        # No await until the notifier has them in its table.
        if pages is not None:
            await self._notifier.store(pages.ino, pages.start, pages.data)

    async def opened(self, ino: Ino, opened: Opened) -> Opened:
        """The open to answer. One that had to wait drops the pages, and stores none: others may have waited, too."""
        if not self._notifier.is_storing(ino):
            return opened
        await self._notifier.stored(ino)
        return replace(opened, keep_cache=False, whole=b"")

    async def resized(self, ino: Ino) -> None:
        """Return when a change of the file's length may be answered."""
        await self._notifier.stored(ino)

    async def listed(self, rows: Sequence[DirEntry]) -> bool:
        """True when these rows may be shown. False: some had to wait, and are to be asked for again."""
        late = [row.entry.attr for row in rows if self._notifier.is_storing(row.entry.attr.ino, row.entry.attr.size)]
        for attr in late:
            await self._notifier.stored(attr.ino, attr.size)
        return not late

    async def shown(self, entry: Entry) -> Entry:
        """The attributes to answer. What they are may have changed while they had to wait."""
        ino = entry.attr.ino
        while self._notifier.is_storing(ino, entry.attr.size):
            await self._notifier.stored(ino, entry.attr.size)
            entry = self._fs.entry(ino, entry)
        return entry
