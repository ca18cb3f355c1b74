"""Reading a file of an import's source, and noticing that it changes meanwhile.

A file is opened without following a symbolic link and without waiting for the writer of a fifo, and is held against
what the scan saw of it: its number, size and time. Blocking; called in threads.
"""

from __future__ import annotations

import os

from s3vol_plugin.import_plan import Item


class EntryError(Exception):
    """An error of one entry; the import goes on."""


class Changed(Exception):
    """The file changed while it was read."""


def open_file(path: bytes, item: Item) -> int:
    """Open a file of the source for reading. Raises EntryError; Changed when it is not the one that was scanned."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags)
    except OSError as error:
        raise EntryError(error.strerror) from None
    try:
        check_unchanged(file, item)
    except BaseException:
        os.close(file)
        raise
    return file


def read(file: int, start: int, wanted: int) -> bytes:
    """Exactly so many bytes. Raises Changed when there are fewer."""
    pieces = []
    while wanted:
        try:
            piece = os.pread(file, wanted, start)
        except OSError as error:
            raise EntryError(f"cannot be read: {error.strerror}") from None
        if not piece:
            raise Changed("was cut while it was being read")
        pieces.append(piece)
        start += len(piece)
        wanted -= len(piece)
    return b"".join(pieces)


def check_unchanged(file: int, item: Item) -> None:
    now = os.fstat(file)
    then = item.stat
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (then.st_ino, then.st_size, then.st_mtime_ns):
        raise Changed("changed since the directory was read")
