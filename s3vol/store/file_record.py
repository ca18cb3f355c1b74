"""What a file cannot say of itself: ETag, content type and metadata of an object, kept with the file.

Theory of operation. The record is one JSON text in the extended attribute `user.s3vol.object`. It is set on the
temporary file before that is renamed into place, so bytes and metadata become visible in the same instant, and a crash
cannot pair new bytes with old metadata. Where extended attributes are not supported, or the text is too big for
them (ext4: one block for all), it goes to `meta/` of the control area, under a name made of inode number, mtime and
size: again written before the rename, and again it fits this very file only. Copies made by hand keep the
attribute with `cp -a`, `rsync -aX` or `tar --xattrs`; without it a copy is a plain object without metadata.

The record holds size and mtime of the file that it was made for. When they differ, somebody edited the file by hand:
the ETag then comes from inode, size, mtime and ctime, and what described the old bytes (`mtime`, the nonce) is dropped,
while mode and owner stay. A file that never had a record is an object without metadata. Such an ETag ends in `-0`:
no MD5, and no number of parts.

A directory's marker is such a record on the directory itself; it holds no size to compare.

Rejected: MD5 of files that others wrote (a first `ls` would read a terabyte), and records by key (a file moved by hand
would meet the metadata of its predecessor).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from s3vol.errors import Corrupt
from s3vol.layout import TOMBSTONE
from s3vol.store.base import DIRECTORY_TYPE, FILE_TYPE
from s3vol.store.file_control import Control
from s3vol.types import NONCE

OBJECT_XATTR = "user.s3vol.object"
MARKER_XATTR = "user.s3vol.marker"

_NO_ROOM = {errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EPERM}  # ENOSPC: ext4, over one block
_OF_OLD_BYTES = ("mtime", "ctime", "atime", NONCE, TOMBSTONE)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept with a file. `size` and `mtime_ns` are those of the file that it was made for."""

    etag: str
    size: int
    mtime_ns: int
    content_type: str
    metadata: Mapping[str, str]


class Records:
    """Reads and writes records of open files and directories, given as descriptors."""

    def __init__(self, control: Control, *, use_xattrs: bool) -> None:
        self._control = control
        self._use_xattrs = use_xattrs

    def attach(self, fd: int, record: Record) -> None:
        """Keep the record with a file that has its final bytes and is not visible yet."""
        text = _encode(record)
        if not self._set_xattr(fd, OBJECT_XATTR, text):
            self._control.write_small(_object_path(os.fstat(fd)), text)

    def read(self, fd: int, stat: os.stat_result, key: str) -> tuple[Record, bool]:
        """The record of a file, and whether one was found. Raises Corrupt."""
        text = self._get_xattr(fd, OBJECT_XATTR) or self._control.read_small(_object_path(stat))
        if text is None:
            return Record(stat_etag(stat), stat.st_size, stat.st_mtime_ns, FILE_TYPE, {}), False
        record = _decode(text, key)
        if (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return record, True
        kept = {name: value for name, value in record.metadata.items() if name not in _OF_OLD_BYTES}
        return Record(stat_etag(stat), stat.st_size, stat.st_mtime_ns, record.content_type, kept), True

    def detach(self, stat: os.stat_result) -> None:
        """Forget a file that is no longer visible; its inode must still be held open, else the name may be reused."""
        self._control.remove_small(_object_path(stat))

    def mark(self, fd: int, key: str, record: Record) -> None:
        """Make an open directory the object `key`."""
        text = _encode(record)
        if self._set_xattr(fd, MARKER_XATTR, text):
            self._control.remove_small(_marker_path(fd), durable=True)  # `marker` would prefer it
        else:
            self._control.write_small(_marker_path(fd), key.encode() + b"\n" + text)

    def marker(self, fd: int, key: str) -> Record | None:
        """The record of a directory, or None: the directory exists through its children only. Raises Corrupt."""
        if (found := self._control.read_small(_marker_path(fd))) is not None:
            of, _, text = found.partition(b"\n")
            if of == key.encode():  # else left from a directory removed by hand, whose inode was used again
                return _decode(text, key)
        found = self._get_xattr(fd, MARKER_XATTR)
        return None if found is None else _decode(found, key)

    def unmark(self, fd: int) -> None:
        """Let the directory be one that exists through its children only."""
        if self._get_xattr(fd, MARKER_XATTR) is not None:
            os.removexattr(fd, MARKER_XATTR)
        self._control.remove_small(_marker_path(fd), durable=True)

    def _set_xattr(self, fd: int, name: str, text: bytes) -> bool:
        if not self._use_xattrs:
            return False
        try:
            os.setxattr(fd, name, text)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            raise
        return True

    def _get_xattr(self, fd: int, name: str) -> bytes | None:
        if not self._use_xattrs:
            return None
        try:
            return os.getxattr(fd, name)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return None
            raise


def marker_record(etag: str, at_ns: int, content_type: str, metadata: Mapping[str, str]) -> Record:
    """The record of a directory that was made an object at `at_ns`."""
    return Record(etag, 0, at_ns, content_type or DIRECTORY_TYPE, metadata)


def stat_etag(stat: os.stat_result) -> str:
    """ETag of bytes that others wrote: differs after every change, since nobody can set a ctime."""
    text = f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + "-0"


def _object_path(stat: os.stat_result) -> str:
    return f"meta/{stat.st_ino & 0xFF:02x}/{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"


def _marker_path(fd: int) -> str:
    ino = os.fstat(fd).st_ino
    return f"meta/{ino & 0xFF:02x}/{ino}-dir"


def _encode(record: Record) -> bytes:
    table = {
        "etag": record.etag,
        "size": record.size,
        "mtime_ns": record.mtime_ns,
        "type": record.content_type,
        "meta": dict(record.metadata),
    }
    return json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()


def _decode(text: bytes, key: str) -> Record:
    try:
        table = json.loads(text)
        return Record(
            etag=str(table["etag"]),
            size=int(table["size"]),
            mtime_ns=int(table["mtime_ns"]),
            content_type=str(table["type"]),
            metadata={str(name): str(value) for name, value in dict(table["meta"]).items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(
            f"{key}: its record ({OBJECT_XATTR} or {MARKER_XATTR}) is damaged: {error!r}; "
            "removing that attribute with setfattr -x makes it a plain object again"
        ) from None
