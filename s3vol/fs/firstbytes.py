"""First bytes: what comes along with the answer to an open, and what of it goes to the kernel at once. Pure.

Theory of operation. Who opens a file for reading mostly begins at its beginning. An open asks the bucket anyway, and a
ranged GET says all that a HEAD says, so one request brings the proof and the bytes. For a small file that costs next to
nothing. Of a large one MinIO reads and checks a whole block, which takes 1 ms more than a HEAD and saves a request of
1.8 where the program looks at the beginning only, and none where it reads on. As the last one did, so does the next one
(`Habit`).

A file that is here as a whole goes into the kernel's page cache before the open is answered, so that its reads never
come here. That is right while nobody can be in the way: the kernel has no pages of this inode and no handle of it is
open, so that no read, write or mapping is in progress, a store need not wait for the lock of a page, and there is
nothing that it could overwrite.

All of them are held in memory until the last close (cache/held.py), for a reader whose pages the kernel has
dropped. The disk gets them at once from who opens for writing, for he changes them; and from who opens a file again
whose pages the kernel has: it may drop them while the file is open, when the endpoint is silent or has another version.

Rejected: the first pages of a larger file for the kernel (its readahead then begins behind them, every request is
across two chunks, and files of 5 MiB took a fifth longer); more than FIRST_BYTES (`file` and `head` would pay for what
they do not read).
"""

from __future__ import annotations

import os

from s3vol.cache.base import FIRST_BYTES, Content, ContentCache, State
from s3vol.fs.handles import Handles
from s3vol.fs.inodes import Inode
from s3vol.store.base import Buffer


class Habit:
    """What programs do with large files that they open: `looks` is true when the last one looked at its beginning."""

    __slots__ = ("looks",)

    def __init__(self) -> None:
        self.looks = False

    def note(self, offset: int, length: int) -> None:
        """The first read of one."""
        self.looks = offset == 0 and length <= FIRST_BYTES


def worth_bytes(cache: ContentCache, inode: Inode, flags: int, habit: Habit) -> int:
    """How many first bytes to ask for with an open: at most FIRST_BYTES, 0 where they are of no use."""
    length = min(inode.size, FIRST_BYTES)
    if inode.key is None or not _reads(flags) or cache.holds(inode.key, inode.version, length):
        return 0
    return length if length == inode.size or (_only_reads(flags) and habit.looks) else 0


def for_kernel(handles: Handles, inode: Inode, content: Content, flags: int, body: Buffer) -> bool:
    """True while the kernel may be given `body` as all of the content, with an open that is about to be answered.

    Not unless it knows this version's length, and nothing here is about to change it. Whoever asks registers the
    handle and answers without an await in between.
    """
    known = inode.told == content.base and inode.size == content.size == len(body) and not inode.unpushed
    clean = content.state is State.CLEAN and content.base is not None
    free = inode.pages is None and not handles.of(inode)
    return known and clean and free and _only_reads(flags) and flags & os.O_DIRECT == 0


def _only_reads(flags: int) -> bool:
    return flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY


def _reads(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_WRONLY and flags & os.O_TRUNC == 0
