"""What every store that keeps objects itself refuses, computes and decides: pure functions over keys and ETags.

Theory of operation. The memory and the file store answer as MinIO was measured to answer: the same keys are refused,
the same limits hold, ETags have the same form, and a condition is decided by one function (`decide`), which the
caller runs in one step with the change. A condition that the capabilities do not name is refused, never ignored: an
ignored condition is a lost update.

Rejected: leaving the checks to each store (two stores then differ in what they refuse, and callers find out late).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from s3vol.errors import MetadataTooLarge, NameTooLong, NotFound, PreconditionFailed, Rejected
from s3vol.layout import NAME_MAX_BYTES, metadata_bytes
from s3vol.store.base import Buffer, Capabilities, Condition, Part

PAGE_MAX = 1000
"""Entries of one listing page; S3 and MinIO answer no more, whatever is asked."""

_META_NAME = re.compile(r"[a-z0-9._-]+")  # what HTTP clients, MinIO's listings and XML all carry unharmed
_META_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


MINIO_MARKER_MAX_BYTES = 255 - len("__XLDIR__")
"""MinIO keeps the marker `name/` as a file `name__XLDIR__`, and a file's name has 255 bytes."""


def check_text(key: str) -> int:
    """Bytes of a key, or of the beginning of keys. Raises Rejected for one that is no text: S3 has UTF-8 only."""
    try:
        return len(key.encode())
    except UnicodeEncodeError:
        raise Rejected(f"key {key!r} is not UTF-8") from None


def check_key(key: str, caps: Capabilities) -> None:
    """Raise NameTooLong or Rejected for a key that no path and no MinIO can hold."""
    size_bytes = check_text(key)
    if size_bytes > caps.max_key_bytes:
        raise NameTooLong(f"key of {size_bytes} bytes: at most {caps.max_key_bytes} are possible")
    if "\0" in key:
        raise Rejected(f"key {key!r} contains NUL")
    for part in key.removesuffix("/").split("/"):
        if part in ("", ".", ".."):
            raise Rejected(f"key {key!r} has an empty, `.` or `..` component")
        if len(part.encode()) > NAME_MAX_BYTES:
            raise NameTooLong(f"key {key!r}: a component is over {NAME_MAX_BYTES} bytes")
    if key.endswith("/") and caps.hides_children:
        size_bytes = len(key.removesuffix("/").rpartition("/")[2].encode())
        if size_bytes > MINIO_MARKER_MAX_BYTES:
            raise NameTooLong(
                f"directory name of {size_bytes} bytes: at most {MINIO_MARKER_MAX_BYTES} are possible on MinIO"
            )


def check_metadata(metadata: Mapping[str, str], caps: Capabilities) -> dict[str, str]:
    """The metadata as stored: names in lower case. Raises Rejected, MetadataTooLarge."""
    stored = {name.lower(): value for name, value in metadata.items()}
    for name, value in stored.items():
        if not _META_NAME.fullmatch(name):
            raise Rejected(f"metadata name {name!r}: only letters, digits, `.`, `_` and `-` travel safely")
        if _META_BAD_VALUE.search(value):
            raise Rejected(f"metadata {name!r} has a control character in its value: a header cannot carry it")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Rejected(f"metadata {name!r} is not UTF-8") from None
    size_bytes = metadata_bytes(stored)
    if size_bytes > caps.max_metadata_bytes:
        raise MetadataTooLarge(f"user metadata of {size_bytes} bytes: at most {caps.max_metadata_bytes} are possible")
    return stored


def check_condition(condition: Condition, caps: Capabilities, *, completing: bool = False) -> None:
    """Raise Rejected for a condition that the store cannot hold: it must not be ignored."""
    if condition.absent and condition.etag is not None:
        raise Rejected("a condition is either `absent` or an ETag, not both")
    conditional = condition.absent or condition.etag is not None
    if completing and conditional and not caps.conditional_complete:
        raise Rejected("this store cannot complete an upload under a condition")
    if condition.absent and not caps.conditional_create:
        raise Rejected("this store cannot create under a condition")
    if condition.etag is not None and not caps.conditional_replace:
        raise Rejected("this store cannot replace under a condition")


def check_range(start: int, length: int) -> None:
    """Raise Rejected for a range that makes no sense."""
    if start < 0 or length < 0:
        raise Rejected(f"range of {length} bytes from {start}: neither may be negative")


def check_limit(limit: int) -> int:
    """Entries to put on a page. Raises Rejected when fewer than one was asked for."""
    if limit < 1:
        raise Rejected(f"a page of {limit} entries: at least 1 is needed")
    return min(limit, PAGE_MAX)


def check_body(size_bytes: int, max_bytes: int) -> None:
    """Raise Rejected for a body that is larger than one request may carry."""
    if size_bytes > max_bytes:
        raise Rejected(f"body of {size_bytes} bytes: one request carries at most {max_bytes}")


def check_upload_key(key: str, caps: Capabilities) -> None:
    """As check_key; also refuses directory markers, which MinIO does not take as uploads."""
    check_key(key, caps)
    if key.endswith("/"):
        raise Rejected(f"key {key!r}: a directory marker is never uploaded in parts")


def check_part(number: int, size_bytes: int, caps: Capabilities) -> None:
    """Raise Rejected for a part number or a part size out of bounds."""
    if not 1 <= number <= caps.max_parts:
        raise Rejected(f"part number {number}: must be 1 to {caps.max_parts}")
    check_body(size_bytes, caps.max_part_bytes)


def check_parts(parts: Sequence[Part], sizes: Mapping[tuple[int, str], int], caps: Capabilities) -> None:
    """Raise Rejected unless `parts` can be completed, NotFound for one that is not there.

    `sizes` holds bytes by (number, ETag) of what was uploaded.
    """
    if not parts:
        raise Rejected("an upload needs at least one part")
    if any(a.number >= b.number for a, b in pairwise(parts)):
        raise Rejected("parts are not in ascending order")
    for part in parts:
        if (part.number, part.etag) not in sizes:
            raise NotFound(f"part {part.number} with ETag {part.etag} was never uploaded")
    for part in parts[:-1]:
        if (size := sizes[part.number, part.etag]) < caps.min_part_bytes:
            raise Rejected(f"part {part.number} has {size} bytes: all but the last need {caps.min_part_bytes}")


def decide(key: str, condition: Condition, current_etag: str | None) -> None:
    """Raise PreconditionFailed or NotFound when the condition does not hold for what is there now.

    Only meaningful in one step with the change that it guards.
    """
    if condition.absent and current_etag is not None:
        raise PreconditionFailed(f"{key}: exists already, with ETag {current_etag}")
    if condition.etag is None:
        return
    if current_etag is None:
        raise NotFound(f"{key}: no such object to replace")
    decide_read(key, condition.etag, current_etag)


def decide_read(key: str, if_match: str | None, current_etag: str) -> None:
    """Raise PreconditionFailed when an object that is there has another ETag than the one asked for."""
    if if_match is not None and if_match != current_etag:
        raise PreconditionFailed(f"{key}: has ETag {current_etag}, not {if_match}")


def md5_etag(body: Buffer) -> str:
    """ETag of an object that was put in one piece: MD5 in hex."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def multipart_etag(part_etags: Iterable[str]) -> str:
    """ETag of a completed upload: MD5 over the parts' binary MD5s, and their number."""
    binary = [bytes.fromhex(etag) for etag in part_etags]
    return f"{hashlib.md5(b''.join(binary), usedforsecurity=False).hexdigest()}-{len(binary)}"
