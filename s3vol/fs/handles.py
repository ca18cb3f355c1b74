"""Open files and directories, by handle number.

Theory of operation. A file handle holds one reference on its content for as long as it is open, so it reads one
version whatever happens to the name; a directory handle holds the rows it has listed so far, so that a cursor means the
same row for ever. Synchronous; touched on the event loop only.
"""

from __future__ import annotations

import errno
import itertools
from dataclasses import dataclass, field

from s3vol.cache.base import Content
from s3vol.errors import PosixError
from s3vol.fs.beside import Misses
from s3vol.fs.inodes import Inode
from s3vol.fs.linkrecord import Count
from s3vol.types import Fh, Ino, ObjectInfo


@dataclass(frozen=True, slots=True)
class Row:
    """One name of a directory, as a listing (or pending content) shows it.

    `info` is None for a subdirectory, and for a file that was given out long ago: then `kind` is left of it.
    """

    key: str
    info: ObjectInfo | None
    asked_s: float
    kind: int = 0  # type bits of a row without `info`; 0: a directory
    stub: ObjectInfo | None = None  # one name of a hard link: the object at `key`; `info` is the body's
    count: Count | None = None

    @property
    def name(self) -> str:
        """The last component."""
        return self.key.removesuffix("/").rpartition("/")[2]

    @property
    def is_dir(self) -> bool:
        """True for a subdirectory."""
        return self.info is None and self.kind == 0


@dataclass(eq=False, slots=True)
class FileHandle:
    """One open(). `content` is this handle's reference, given back at release."""

    fh: Fh
    inode: Inode
    content: Content
    writable: bool
    executed: bool  # the kernel opened it to run it, and holds it until that program ends
    paged: bool  # it reads through the kernel's page cache
    misses: Misses = field(default_factory=Misses)
    was_read: bool = False


@dataclass(eq=False, slots=True)
class DirHandle:
    """One opendir(). `rows` only grows until a rewind; a row's cursor is its index plus one."""

    fh: Fh
    inode: Inode
    rows: list[Row] = field(default_factory=list)
    slim: int = 0  # rows up to here have lost their `info`
    local: list[str] = field(default_factory=list)  # keys of pending files, sorted, not merged yet
    prefix: str = ""  # the directory's key, as the rows have it
    last: str | None = None  # the greatest key that the pages so far cover
    store_cursor: str | None = None
    complete: bool = False
    offered: dict[Ino, Row] = field(default_factory=dict)  # the rows of the last reply


class Handles:
    """All open handles of one mount."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._files: dict[Fh, FileHandle] = {}
        self._directories: dict[Fh, DirHandle] = {}
        self._of_inode: dict[Ino, list[FileHandle]] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def open_file(
        self, inode: Inode, content: Content, *, writable: bool, executed: bool = False, paged: bool = False
    ) -> FileHandle:
        """Register an open(); takes over the caller's reference on `content`."""
        handle = FileHandle(Fh(next(self._numbers)), inode, content, writable, executed, paged)
        self._files[handle.fh] = handle
        self._of_inode.setdefault(inode.ino, []).append(handle)
        inode.pins += 1
        return handle

    def open_directory(self, inode: Inode) -> DirHandle:
        """Register an opendir()."""
        handle = DirHandle(Fh(next(self._numbers)), inode)
        self._directories[handle.fh] = handle
        inode.pins += 1
        return handle

    def file(self, fh: Fh) -> FileHandle:
        """The open file; PosixError(EBADF)."""
        try:
            return self._files[fh]
        except KeyError:
            raise PosixError(errno.EBADF, f"handle {fh}") from None

    def find(self, fh: Fh) -> FileHandle | None:
        """The open file, if it still is one."""
        return self._files.get(fh)

    def directory(self, fh: Fh) -> DirHandle:
        """The open directory; PosixError(EBADF)."""
        try:
            return self._directories[fh]
        except KeyError:
            raise PosixError(errno.EBADF, f"handle {fh}") from None

    def inode_of(self, fh: Fh) -> Inode | None:
        """Whose handle it is; None when it is not open."""
        handle = self._files.get(fh) or self._directories.get(fh)
        return None if handle is None else handle.inode

    def close_file(self, handle: FileHandle) -> None:
        """Forget the handle; its content's reference is the caller's to give back."""
        del self._files[handle.fh]
        others = self._of_inode[handle.inode.ino]
        others.remove(handle)
        if not others:
            del self._of_inode[handle.inode.ino]
        handle.inode.pins -= 1

    def close_directory(self, handle: DirHandle) -> None:
        """Forget the handle."""
        del self._directories[handle.fh]
        handle.inode.pins -= 1

    def of(self, inode: Inode) -> list[FileHandle]:
        """The open files of an inode."""
        return list(self._of_inode.get(inode.ino, ()))

    def contents_of(self, inode: Inode) -> list[Content]:
        """The distinct contents that handles of this inode read."""
        return list({id(h.content): h.content for h in self._of_inode.get(inode.ino, ())}.values())

    def writer(self, inode: Inode, content: Content) -> bool:
        """True when a handle may write to this content."""
        return any(h.writable and h.content is content for h in self._of_inode.get(inode.ino, ()))

    def executed(self, inode: Inode) -> bool:
        """True while a program on this node runs from this file."""
        return any(h.executed for h in self._of_inode.get(inode.ino, ()))

    def offered(self, ino: Ino) -> tuple[DirHandle, Row] | None:
        """The row that an open directory gave out last under this number."""
        return next(((h, h.offered[ino]) for h in self._directories.values() if ino in h.offered), None)
