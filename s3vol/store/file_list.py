"""Lists a directory tree in the byte order of keys, a page at a time.

Theory of operation. A directory's entries are sorted with `/` appended to the names of directories; walking them in
that order and descending gives keys in byte order (`a-b` comes before `a/b`, because `-` is before `/`). A page starts
at the entry after the last one: of the directories above it, none is entered that lies wholly before.

Sorting a directory of 100,000 names takes 0.1 s, and a page shows 1,000 of them. So the sorted names of large
directories are kept, and used again while the directory's mtime and ctime are the same, and the mtime was old enough
when they were read that no change can hide behind the clock's granularity: a listing never misses what was there when
it began. The mtime alone does not tell: `rsync -a` and `tar x` set it back after they added files.

Rejected: a snapshot per cursor (unbounded, and a server would have to expire it), and os.walk (its order is not that of
the keys).
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from s3vol.store.base import Page
from s3vol.store.file_control import CONTROL, FOLDER_FLAGS
from s3vol.store.file_tree import Opened, Tree
from s3vol.types import ObjectInfo

logger = logging.getLogger(__name__)

_KEEP_FROM = 1000  # smaller directories are read again in under a millisecond
_KEEP_FOLDERS = 16
_SETTLED_NS = 2_000_000_000  # the coarsest mtime in use (FAT, old NFS) counts two seconds


@dataclass(frozen=True, slots=True)
class Query:
    """One listing: keys that begin with `prefix`, entries greater than `after`. `cut` as in Opened.info."""

    prefix: str
    after: str
    delimiter: bool
    metadata: bool
    cut: int


@dataclass(frozen=True, slots=True)
class _Names:
    version: tuple[int, int]  # mtime and ctime: nobody can set the latter
    names: list[str]


class Listing:
    """Makes pages. The kept names are guarded by `_lock`, which is held for look-ups only."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kept: OrderedDict[tuple[int, int], _Names] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, query: Query, limit: int) -> Page:
        """At most `limit` entries; the cursor is the last of them."""
        folder = query.prefix.rpartition("/")[0]
        parts = folder.split("/") if folder else []
        fd = self._tree.open_folder(parts) if parts[:1] != [CONTROL] else None
        if fd is None:
            return Page((), ())
        with closing(self._walk(fd, f"{folder}/" if folder else "", query)) as walk:
            entries = list(islice(walk, limit + 1))
        shown = entries[:limit]
        return Page(
            objects=tuple(entry for entry in shown if isinstance(entry, ObjectInfo)),
            prefixes=tuple(entry for entry in shown if isinstance(entry, str)),
            next_cursor=_name(shown[-1]) if len(entries) > limit else None,
        )

    def _walk(self, fd: int, folder: str, query: Query) -> Generator[ObjectInfo | str, None, None]:
        """Entries of a directory and below it, in order. `folder` is its key, or "". Closes `fd`."""
        try:
            if len(folder) > query.cut and folder > query.after and folder.startswith(query.prefix):
                yield from _shown(self._tree.open_marker(fd, folder), query)
            names = self._names(fd, is_root=not folder)
            first = query.prefix[len(folder) :]  # "" below the directory in which the listing begins
            for at in range(max(bisect_left(names, first), _position(names, folder, query.after)), len(names)):
                if not names[at].startswith(first):
                    return
                yield from self._entry(fd, folder, names[at], query)
        finally:
            os.close(fd)

    def _entry(self, fd: int, folder: str, name: str, query: Query) -> Generator[ObjectInfo | str, None, None]:
        key = folder + name
        if not name.endswith("/"):
            if key > query.after:
                yield from _shown(self._tree.open_at(fd, name, key), query)
            return
        if key <= query.after and (query.delimiter or not query.after.startswith(key)):
            return
        below = _open(fd, name[:-1])
        if below is None:
            return
        if not query.delimiter:
            yield from self._walk(below, key, query)
        elif self._holds_object(below, key):
            yield key[query.cut :]

    def _holds_object(self, fd: int, key: str) -> bool:
        """Whether there is any key below this directory. Closes `fd`."""
        everything = Query(prefix=key, after="", delimiter=False, metadata=False, cut=0)
        with closing(self._walk(fd, key, everything)) as walk:
            return next(walk, None) is not None

    def _names(self, fd: int, *, is_root: bool) -> list[str]:
        """The sorted names of a directory's entries that can be part of a key, with `/` after those of directories."""
        folder = os.fstat(fd)
        which, version = (folder.st_dev, folder.st_ino), (folder.st_mtime_ns, folder.st_ctime_ns)
        with self._lock:
            kept = self._kept.get(which)
        if kept is not None and kept.version == version:
            return kept.names
        began_ns = time.time_ns()
        found = _scan(fd, is_root)
        if os.fstat(fd).st_mtime_ns != folder.st_mtime_ns:
            found |= _scan(fd, is_root)  # some file systems may have passed over a name that was just being replaced
        names = sorted(found)
        if len(names) >= _KEEP_FROM and began_ns - folder.st_mtime_ns > _SETTLED_NS:
            with self._lock:
                self._kept[which] = _Names(version, names)
                self._kept.move_to_end(which)
                while len(self._kept) > _KEEP_FOLDERS:
                    self._kept.popitem(last=False)
        return names


def _name(entry: ObjectInfo | str) -> str:
    return entry if isinstance(entry, str) else entry.key


def _shown(found: Opened | None, query: Query) -> Iterable[ObjectInfo]:
    if found is None:
        return ()
    os.close(found.fd)
    return (found.info(query.cut, metadata=query.metadata),)


def _position(names: list[str], folder: str, after: str) -> int:
    """Index of the first name that may lie after `after`, or contain it."""
    if after.startswith(folder):
        head, slash, _ = after[len(folder) :].partition("/")
        return bisect_left(names, head + slash)
    return 0 if after < folder else len(names)


def _scan(fd: int, is_root: bool) -> set[str]:
    with os.scandir(fd) as entries:
        return {_sort_name(entry) for entry in entries if _is_entry(entry, is_root)}


def _is_entry(entry: os.DirEntry[str], is_root: bool) -> bool:
    """False for what cannot be part of a key; a name that is not UTF-8 is said in the log, once."""
    if is_root and entry.name == CONTROL:
        return False
    if not _is_utf8(entry.name):
        _warn_of_name(os.fsencode(entry.name))
        return False
    return entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)


@functools.lru_cache(maxsize=1000)
def _warn_of_name(name: bytes) -> None:
    logger.warning("file %r is not listed: its name is not UTF-8, and a key has to be", name)


def _sort_name(entry: os.DirEntry[str]) -> str:
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:  # surrogates: how Python shows bytes that are no UTF-8
        return False
    return True


def _open(folder_fd: int, name: str) -> int | None:
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=folder_fd)
    except (FileNotFoundError, NotADirectoryError):  # changed since the directory was read
        return None
