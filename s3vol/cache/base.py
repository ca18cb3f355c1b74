"""What the file system asks of the chunk cache: the only face of `s3vol.cache` that `s3vol.fs` sees.

Theory of operation. A *content* is one version of one file's bytes as this node sees it, with local changes on
top. It starts either attached to an object of the bucket (`attach`: all chunks absent, fetched when read, under
If-Match) or new (`create`: nothing to fetch). Writes make byte ranges dirty; `publish` turns content and metadata
into an object, conditionally on `base`. A content never changes its version underneath a reader: when the bucket has
another version, the file system attaches another content and releases this one.

Who owns what. The cache owns bytes, journal and uploads, and knows nothing of inodes, modes or directories:
`metadata` is a mapping that the file system encodes (s3vol/layout.py). The cache adds the nonce and only that.

Durability. `write` returns when the bytes are in the page cache of the local disk and counted against the dirty cap.
`sync` returns when bytes, then the journal record, are on the disk (fdatasync, then a FULL commit; concurrent callers
share one). `publish` returns when the object in the bucket holds them. After a crash, `pending` lists every content
that was synced and not published, and the cache goes on to publish them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from s3vol.store.base import Buffer
from s3vol.types import GIB, KIB, MIB, ObjectInfo, Version

FIRST_BYTES = 64 * KIB  # may come along with an open: of a small file 0.1 ms more than a HEAD on a local MinIO


class State(enum.Enum):
    """Where a content is in its life."""

    CLEAN = "clean"  # bytes and metadata are what the bucket has at `key`, version `base`
    DIRTY = "dirty"  # something is to be published
    CONFLICTED = "conflicted"  # lost to another writer; kept under a conflict key; writes raise ESTALE
    DISCARDED = "discarded"  # its name is gone; bytes are served to open handles, nothing is published


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Limits of one cache. Every byte the cache may hold is counted against one of them."""

    directory: Path
    size_bytes: int = 10 * GIB  # cap of allocated blocks on disk
    free_floor_bytes: int = GIB  # leave at least this much free on the cache's disk
    memory_bytes: int = 128 * MIB  # in-flight bodies: fetches, uploads, prefetch; half as much again awaits readers
    dirty_max_bytes: int = 2 * GIB  # beyond it writers wait
    dirty_age_s: float = 300.0  # unpublished for longer: forced out, and writers wait
    publish_delay_s: float = 1.0  # a file that is to be published in the background is left alone so long first
    journal_age_s: float = 5.0  # dirty data that nobody synced is synced by then
    uploads: int = 8
    downloads: int = 8
    readahead_max_bytes: int = 32 * MIB
    timeout_s: float = 60.0
    node: str = "node"  # appears in conflict names; hostname by default


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """Snapshot for `s3vol status`."""

    directory: str
    used_bytes: int
    size_bytes: int
    dirty_bytes: int
    dirty_files: int
    oldest_dirty_s: float
    in_flight_bytes: int
    conflicts: int
    quarantined: int


class Content(Protocol):
    """Handle to a content. Attributes are read on the event loop; only the cache changes them."""

    @property
    def key(self) -> str:
        """Where it is, or will be, published."""
        ...

    @property
    def base(self) -> Version | None:
        """The version that the next publish replaces; None: the key must not exist."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes, local changes included."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """User metadata of the object, local changes included, without the nonce."""
        ...

    @property
    def state(self) -> State:
        """CLEAN, DIRTY, CONFLICTED or DISCARDED."""
        ...

    @property
    def blocks_bytes(self) -> int:
        """Bytes that count for st_blocks: the size without holes that are known."""
        ...


class ContentCache(Protocol):
    """The chunk cache of one volume. All methods run on the event loop; async ones may wait for disk or network."""

    def dirty(self, key: str) -> Content | None:
        """The content at `key` that is not (fully) published, if any: it is the truth for this node."""
        ...

    def pending(self) -> Iterable[Content]:
        """All DIRTY contents, those that the journal brought back included."""
        ...

    def attach(self, info: ObjectInfo, *, content_type: str = "") -> Content:
        """The content of exactly this version (its clean chunks revived if the disk has them); one reference more.

        `info.metadata` must be known. The same version attached twice is the same Content. No I/O, no await.
        """
        ...

    def holds(self, key: str, version: Version | None, length: int) -> bool:
        """True when the first `length` bytes of this version are on the disk, or held. No await."""
        ...

    async def fill(self, content: Content, body: Buffer) -> None:
        """Keep the first bytes of the content's base, which the caller has fetched, if there is room for them."""
        ...

    async def hold(self, content: Content, body: Buffer) -> None:
        """`fill` for bytes that may not be needed again: in memory until the release, while there is room."""
        ...

    async def unhold(self, content: Content) -> None:
        """Bring what is held of it to the disk, while there is room."""
        ...

    def create(
        self, key: str, metadata: Mapping[str, str], *, base: Version | None = None, content_type: str = ""
    ) -> Content:
        """New, empty, DIRTY; one reference. `base`: the version to replace (a tombstone), None: must be absent."""
        ...

    def refer(self, content: Content) -> None:
        """One reference more (a second handle)."""
        ...

    def release(self, content: Content) -> None:
        """One reference fewer. Without any, a CLEAN content is mere cache, a DISCARDED one is deleted, DIRTY stays."""
        ...

    async def read(self, content: Content, offset: int, length: int) -> Buffer:
        """Bytes, fewer only at the end. Fetches what is absent; starts readahead for sequential readers.

        Raises PreconditionFailed (ESTALE) when absent bytes are no longer in the bucket at this version.
        """
        ...

    def peek(self, content: Content, start: int, end: int) -> Buffer | None:
        """All bytes of the range, when they are on the local disk and can be had without waiting. No await."""
        ...

    async def write(self, content: Content, offset: int, data: Buffer) -> None:
        """Accept all of `data`, or raise and accept none: NoSpace, or Unavailable when the dirty cap stays full.

        Waits while the dirty cap or age limit is exceeded, at most `timeout_s`. PosixError(ESTALE) when CONFLICTED.
        """
        ...

    async def truncate(self, content: Content, size: int) -> None:
        """Set the length; growing makes a hole that reads as zeros."""
        ...

    def set_metadata(self, content: Content, metadata: Mapping[str, str], *, explicit_times: bool = False) -> None:
        """Replace the metadata (without nonce); makes the content DIRTY if it differs. No await.

        A file that was streamed while it was written is published without `mtime` and `ctime` (Last-Modified stands for
        them, and `metadata` says so afterwards), unless `explicit_times` was given: a program set them.
        Raises PosixError(ESTALE) when CONFLICTED.
        """
        ...

    async def sync(self, content: Content) -> None:
        """Return when all that was written is on the local disk and in the journal."""
        ...

    async def sync_all(self) -> None:
        """`sync` for every content."""
        ...

    def schedule(self, content: Content) -> None:
        """Publish in the background, `publish_delay_s` after the last call of this.

        Failures arrive as WriteError events and are retried.
        """
        ...

    async def publish(self, content: Content) -> Version:
        """Return when bytes and metadata as of this call are in the bucket; returns the version there.

        Does nothing for a CLEAN content. A file of which another node has made a hard link is followed: `key` is its
        body's afterwards. Raises Conflict after the conflict copy is in the bucket; Unavailable after
        `timeout_s`, the content stays DIRTY, journaled, and is retried in the background.
        """
        ...

    async def move(self, content: Content, key: str, base: Version | None) -> None:
        """Rename a content that was never published: it will be published at `key`, replacing `base` there (None: must
        be absent). Journaled on return when it had been synced before. Waits for a publish that is at work.

        Raises PreconditionFailed when that published it under the old key: rename the object instead.
        """
        ...

    def rekey(self, content: Content, info: ObjectInfo) -> None:
        """This CLEAN content's object was copied on the server: its bytes are `info.key`, `info.version` now. No await.

        Raises PosixError(EBUSY) while it is being published.
        """
        ...

    async def discard(self, content: Content, *, durable: bool = True) -> None:
        """The name is going to be deleted: never publish, abort uploads, forget in the journal. Readers with a
        reference read on. Without `durable` a content that was never published may come back after a power failure
        (not after SIGKILL), as an unlinked file may anywhere until its directory is fsync'ed.

        To be called before the DELETE: returns when no request of ours can make the object appear any more. A publish
        that is at work is stopped between two requests, or waited for. If this raises, nothing was discarded.
        """
        ...

    def is_local(self, content: Content) -> bool:
        """True when every byte is on the local disk, so that the object is not needed any more."""
        ...

    def status(self) -> CacheStatus:
        """Snapshot; no await."""
        ...

    # Small tables of the file system in the same journal (exceptions of inode numbers, server-side work in progress).

    def notes(self, kind: str) -> Mapping[str, str]:
        """All notes of one kind, as loaded and changed since."""
        ...

    def note(self, kind: str, name: str, value: str | None) -> None:
        """Set or (None) remove a note; durable with the next commit, see `sync_notes`."""
        ...

    async def settle_notes(self) -> None:
        """Return when all notes so far survive the death of this process; a full disk takes them when it has room."""
        ...

    async def sync_notes(self) -> None:
        """Return when all notes so far are on the disk."""
        ...
