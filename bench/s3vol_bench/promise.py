"""Was the promise kept? What is in the bucket at this moment, seen by another S3 client.

Theory of operation. One listing, sent right after the last call returned, is the picture of the moment: every object
has to be there with its length, and what was removed has to be gone. Then the bytes: the ETag of a listing is the MD5
of an object that was sent whole, which proves all bytes of thousands of small files with that one request. Where it is
something else (multipart, encryption) bodies are read and compared; of long ones pieces at random places, because
reading half a gigabyte back after each figure would be the longest part of a run.

A target whose close() means "soon" gets the same check after it had time to publish (`await_kept`); how long that took
is a figure of its own. A file system with a format of its own cannot be checked object by object: there the bytes in
the bucket must have grown by what was written. A rename writes nothing, and random writes less than the file.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from botocore.exceptions import BotoCoreError, ClientError

from s3vol_bench.endpoint import Room
from s3vol_bench.errors import PromiseBroken

PATTERN_BYTES = 512  # fio keeps no longer pattern
SETTLE_S = 120.0
LATE_S = 5.0  # for what should have been there at once: what comes next builds on it
_PIECE_BYTES = 1 << 20
_PIECES = 4
_WHOLE_BYTES = 4 << 20  # up to this a body is read whole
_READ_BACK = 8  # bodies of one figure that are read when ETags do not tell
_POLL_S = 0.1  # each poll lists: more often would be load on what is measured


@dataclass(frozen=True, slots=True)
class Pattern:
    """Content that is `unit` again and again, `size` bytes in all."""

    unit: bytes
    size: int

    def piece(self, start: int, length: int) -> bytes:
        """The bytes from `start` on."""
        shift, count = start % len(self.unit), min(length, self.size - start)
        return (self.unit * ((shift + count) // len(self.unit) + 1))[shift : shift + count]


Content = bytes | Pattern | int  # an int: only the length is known


@dataclass(frozen=True, slots=True)
class Expected:
    """What has to be in the bucket, by paths relative to the target's directory, and prefixes that have to be gone."""

    present: Mapping[str, Content] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    written_bytes: int | None = None  # at least; None: all that is present was written

    @property
    def new_bytes(self) -> int:
        """By how much the bucket has to grow, whatever the format."""
        whole = sum(_length(content) for content in self.present.values())
        return whole if self.written_bytes is None else self.written_bytes

    def __bool__(self) -> bool:
        return bool(self.present or self.gone)


def _length(content: Content) -> int:
    return content if isinstance(content, int) else content.size if isinstance(content, Pattern) else len(content)


def check(room: Room, below: str, expected: Expected) -> None:
    """Compare the bucket with what has to be in it. Raises PromiseBroken."""
    listed = room.listed(below)
    wrong = first_difference(listed, expected)
    if wrong:
        raise PromiseBroken(wrong)
    doubtful = [
        (path, content)
        for path, content in expected.present.items()
        if not (
            isinstance(content, bytes) and hashlib.md5(content, usedforsecurity=False).hexdigest() == listed[path][1]
        )
        and not isinstance(content, int)
    ]
    for path, content in random.sample(doubtful, min(_READ_BACK, len(doubtful))):
        try:
            _compare(room, below, path, content)
        except (ClientError, BotoCoreError) as error:
            raise PromiseBroken(f"{path}: cannot be read back: {error}") from None


def first_difference(listed: Mapping[str, tuple[int, str]], expected: Expected) -> str:
    """What is wrong with a listing; empty when nothing is."""
    for path, content in expected.present.items():
        if path not in listed:
            return f"{path}: not in the bucket when the call had returned"
        if listed[path][0] != _length(content):
            return f"{path}: {listed[path][0]} bytes in the bucket instead of {_length(content)}"
    for prefix in expected.gone:
        left = next((path for path in listed if path == prefix or path.startswith(prefix + "/")), None)
        if left is not None:
            return f"{left}: still in the bucket when the call had returned"
    return ""


def _compare(room: Room, below: str, path: str, content: bytes | Pattern) -> None:
    size = _length(content)
    whole = size <= _WHOLE_BYTES
    starts = [0] if whole else [random.randrange(size - _PIECE_BYTES) for _ in range(_PIECES)]
    for start in starts:
        got = room.read(below + path, start, None if whole else _PIECE_BYTES)
        right = content[start : start + len(got)] if isinstance(content, bytes) else content.piece(start, len(got))
        if got != right or (whole and len(got) != size):
            raise PromiseBroken(f"{path}: other bytes in the bucket than were written, at {start} or after")


def check_growth(room: Room, below: str, before_bytes: int, expected: Expected) -> None:
    """For formats of their own: as many bytes more as were written. Raises PromiseBroken."""
    if not expected.new_bytes:
        return
    grown = stored_bytes(room, below) - before_bytes
    if grown < expected.new_bytes:
        raise PromiseBroken(f"only {grown} of {expected.new_bytes} bytes are in the bucket when the call had returned")


def stored_bytes(room: Room, below: str) -> int:
    """Bytes of all objects below a path of ours."""
    return sum(size for size, _ in room.listed(below).values())


def await_kept(room: Room, below: str, expected: Expected, patience_s: float = SETTLE_S) -> float:
    """Wait until the bucket holds what it has to, and check it; seconds that took. Raises PromiseBroken."""
    began_s = time.monotonic()
    while True:
        try:
            check(room, below, expected)
        except PromiseBroken as broken:
            if time.monotonic() - began_s > patience_s:
                raise PromiseBroken(f"{broken}, nor {patience_s:g} s later") from None
            time.sleep(_POLL_S)
        else:
            return time.monotonic() - began_s


def await_unstaged(stages: Callable[[], bool], patience_s: float = SETTLE_S) -> float:
    """Wait until a cache holds nothing that is not in the bucket; seconds that took. Raises PromiseBroken."""
    began_s = time.monotonic()
    while stages():
        if time.monotonic() - began_s > patience_s:
            raise PromiseBroken(f"{patience_s:g} s later the cache still holds what is not in the bucket")
        time.sleep(_POLL_S)
    return time.monotonic() - began_s
