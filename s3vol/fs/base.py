"""What a frontend asks of the file system: the only face of `s3vol.fs` that `s3vol_fuse`, the CLI and tests see.

One async method per file operation, in POSIX terms: inode numbers and handles in, values out, S3volError raised (its
`errno` is the answer). Nothing here knows FUSE or S3. Names are bytes, as the kernel has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from s3vol.store.base import Buffer
from s3vol.types import Attr, AttrChange, Caller, Fh, Ino


@dataclass(frozen=True, slots=True)
class FsSettings:
    """The contract of one mount (docs/SEMANTICS.md)."""

    mode: str = "shared"  # shared | readonly (exclusive comes with leases)
    close_remote: bool = True  # close() returns when published; False: when journaled
    fsync_remote: bool = True  # the same for fsync()
    uid: int = 0  # owner of what carries no attributes
    gid: int = 0
    umask: int = 0o022
    attr_ttl_s: float = 1.0  # how long attributes and names may be believed without asking; open() always asks
    timeout_s: float = 60.0
    node: str = "node"


@dataclass(frozen=True, slots=True)
class Entry:
    """Attributes of a node and for how long a frontend may keep them and the name."""

    attr: Attr
    attr_ttl_s: float
    entry_ttl_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """Result of open/create. `keep_cache`: pages held by the frontend are of this version.

    `direct`: bypass the frontend's page cache (another version of this inode is open).
    `changed`: attributes or pages that the frontend holds for this inode are stale: invalidate before replying. Another
    open of it may be told to keep its pages from now on, so that one has to wait for it, too.
    `whole`: all bytes of the file, which the frontend may put into its page cache, and keep, if it does so before it
    awaits anything. If it does not, they are read like any others.
    """

    fh: Fh
    keep_cache: bool
    direct: bool = False
    changed: bool = False
    whole: Buffer = b""


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One row of readdir. `cursor` is what the next readdir call passes to go on behind this row."""

    name: bytes
    entry: Entry
    cursor: int


@dataclass(frozen=True, slots=True)
class StatFs:
    """statvfs(3). An object store has no size: the figures are large and constant, in `block_bytes` units."""

    block_bytes: int
    blocks: int
    blocks_free: int
    files: int
    files_free: int
    name_max: int = 255


@dataclass(frozen=True, slots=True)
class Progress:
    """What a flush or drain has still to do."""

    files: int
    bytes: int


Range = tuple[int, int]
"""Half-open: the bytes of a file from the first offset up to, not including, the second."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Whole pages of a file, to be put into the frontend's page cache."""

    ino: Ino
    start: int
    data: Buffer


class FileSystem(Protocol):
    """One mounted volume. `lookup`, `mknod`, `mkdir`, `symlink`, `link`, `create` and each row of `readdir` that the
    frontend accepts (`remember`) add one to the inode's lookup count; `forget` takes them back."""

    async def lookup(self, parent: Ino, name: bytes) -> Entry: ...
    def forget(self, counts: Sequence[tuple[Ino, int]]) -> None: ...
    def remember(self, ino: Ino) -> None: ...
    async def getattr(self, ino: Ino, fh: Fh | None = None) -> Entry: ...
    async def setattr(self, ino: Ino, change: AttrChange, fh: Fh | None, caller: Caller) -> Entry: ...
    async def readlink(self, ino: Ino) -> bytes: ...
    async def mknod(self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry: ...
    async def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Entry: ...
    async def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Entry: ...
    async def link(self, ino: Ino, parent: Ino, name: bytes, caller: Caller) -> Entry: ...
    async def unlink(self, parent: Ino, name: bytes) -> None: ...
    async def rmdir(self, parent: Ino, name: bytes) -> None: ...
    async def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> None: ...
    async def create(self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Opened, Entry]: ...
    async def open(self, ino: Ino, flags: int) -> Opened: ...
    async def read(self, fh: Fh, offset: int, length: int) -> Buffer: ...
    def beside(self, fh: Fh, offset: int, length: int) -> Range | None:
        """A read has been answered: the bytes beside it that are worth having in the frontend's page cache, if any."""
        ...

    def pages(self, fh: Fh, start: int, end: int) -> Pages | None:
        """What may be put into the page cache of that range, None: nothing, or not without waiting. No await.

        It is right until the frontend sends an answer by which it may change its pages or the file's length: an open
        that writes, or of another version, a setattr, attributes of another length, an invalidation of pages. Such an
        answer has to wait until the pages are stored; no new ones are given out for it meanwhile.
        """
        ...

    def entry(self, ino: Ino, entry: Entry) -> Entry:
        """An entry that had to wait, as it is by now; what the kernel is told of is what is sent last. No await."""
        ...

    async def write(self, fh: Fh, offset: int, data: Buffer) -> int: ...
    async def flush(self, fh: Fh) -> None: ...
    async def fsync(self, fh: Fh) -> None: ...
    async def release(self, fh: Fh) -> None: ...
    async def opendir(self, ino: Ino) -> Fh: ...
    async def readdir(self, fh: Fh, cursor: int) -> Sequence[DirEntry]:
        """The next rows behind `cursor` (0: from the start, listing anew); empty at the end."""
        ...

    async def releasedir(self, fh: Fh) -> None: ...
    async def fsyncdir(self, fh: Fh) -> None: ...
    async def statfs(self) -> StatFs: ...
    async def getxattr(self, ino: Ino, name: bytes) -> bytes: ...
    async def setxattr(self, ino: Ino, name: bytes, value: bytes) -> None: ...
    async def listxattr(self, ino: Ino) -> Sequence[bytes]: ...
    async def removexattr(self, ino: Ino, name: bytes) -> None: ...

    # For messages.

    def path_of(self, ino: Ino) -> str:
        """The path by which an inode is known, without a leading slash; empty for the root and when there is none."""
        ...

    def path_of_handle(self, fh: Fh) -> str:
        """The same for an open file or directory."""
        ...

    # For the control socket.

    async def flush_path(self, path: str | None, progress: Callable[[Progress], None]) -> None:
        """Publish one file (path relative to the mount), everything below a directory, or (None) everything."""
        ...

    async def drain(self, deadline_s: float, progress: Callable[[Progress], None]) -> Progress:
        """Publish everything, for at most `deadline_s`; what is left is journaled. Returns what is left."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Plain values for `s3vol status --json`."""
        ...
