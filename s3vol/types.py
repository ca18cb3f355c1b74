"""Values that every room speaks in. No behaviour, no I/O, no imports from the rooms.

Units are in the names: `_bytes`, `_s` (seconds, float), `_ns` (nanoseconds, int).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

Ino = NewType("Ino", int)
"""Inode number as the kernel sees it; 1 is the root of the mount."""

Fh = NewType("Fh", int)
"""File handle: one open() or opendir() of the kernel."""

ROOT_INO = Ino(1)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

CHUNK_BYTES = MIB
"""Unit of caching, fetching and eviction (docs/concurrency.md)."""

NONCE = "s3vol-write"
"""User metadata name that carries the nonce of the publish (docs/format.md)."""


@dataclass(frozen=True, slots=True)
class Version:
    """What makes two observations of an object the same object.

    The ETag is content only: it survives a chmod. The nonce is written anew by each publish of s3vol, so the
    pair differs after every change made by s3vol; an object written by others has the nonce "".
    """

    etag: str
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a HEAD, a GET or a page of a listing shows it.

    `metadata` maps user metadata names, lower case and without `x-amz-meta-`, to text. It is None when the
    answer did not carry it (a plain listing), which is not the same as empty.
    `modified_ns` is cut to whole seconds, as HEAD reports it, so that all sources of it agree.
    """

    key: str
    size: int
    etag: str
    modified_ns: int
    metadata: Mapping[str, str] | None = None
    content_type: str = ""

    @property
    def version(self) -> Version:
        """The version of this object. Only meaningful where `metadata` is known."""
        return Version(self.etag, (self.metadata or {}).get(NONCE, ""))


@dataclass(frozen=True, slots=True)
class Attr:
    """POSIX attributes of one inode (`struct stat`)."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    nlink: int = 1
    rdev: int = 0

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)


@dataclass(frozen=True, slots=True)
class AttrChange:
    """The fields of one setattr; None means "leave it"."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the credentials of the process behind a request."""

    uid: int
    gid: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Invalidation:
    """Event: what the kernel holds for an inode (or for one name in a directory) is no longer true."""

    ino: Ino
    name: bytes | None = None
    attr_only: bool = False


@dataclass(frozen=True, slots=True)
class WriteError:
    """Event: content that was accepted could not be published (yet)."""

    key: str
    message: str
    conflict_key: str | None = None
    request_id: str = ""  # the store's, of the request that failed


Event = Invalidation | WriteError


@dataclass(slots=True)
class Health:
    """Counters of one mount; written on the event loop only, read by `status`.

    `gauges` hold the newest value, `counts` only grow. `warnings` are lines for people about what lasts, by subject:
    who puts one in takes it out.
    """

    counts: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    last_error: str = ""
    last_error_at_s: float = 0.0

    def count(self, name: str, by: int = 1) -> None:
        """Add `by` to the counter `name`."""
        self.counts[name] = self.counts.get(name, 0) + by
