"""The publish plan: which requests turn a content into an object. Pure.

Theory of operation. Up to `SMALL_BYTES` a content is one conditional PUT. Beyond, it is a multipart upload in which
ranges that the base object already has are copied on the server and the rest is sent.

Parts that are sent *while the file is being written* lie on a fixed grid (`part_range`), because the final size is
not known then: 8 MiB, doubling every 1,000 parts, so that part 10,000 ends beyond 5 TiB and memory stays small for
small files. The rest, or all, is planned when the size is known: changed ranges are widened to legal parts (S3: at
least 5 MiB, but the last), gaps too small to be copied are sent, and what is in between is copied. If that takes more
parts than are left, everything is planned again twice as coarse (and begun as coarse as the size asks for at least).

Rejected: one grid for both (a changed byte in a 1 TiB file would send a part of 1 GiB), and planning by cost of bytes
against requests (not measurable from here; on a loopback MinIO the copy costs as much as the send, docs/minio.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from s3vol.cache.extents import Range, RangeSet
from s3vol.errors import Rejected
from s3vol.store.base import Capabilities
from s3vol.types import MIB

SMALL_BYTES = 16 * MIB
PART_BYTES = 8 * MIB
PARTS_PER_STEP = 1000
COPY_BYTES = 256 * MIB
"""One copied part: a server moves about 200 MiB/s (1 GiB in 5 s, docs/minio.md), and must answer within its timeout."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Send these bytes as one part."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Let the server copy these bytes from the base object."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PutWhole:
    """One PUT of the whole content."""


@dataclass(frozen=True, slots=True)
class Multipart:
    """Parts in order, the first with number `first`; what is before them was sent while streaming."""

    parts: tuple[Upload | Copy, ...]
    first: int = 1


def part_range(number: int) -> Range:
    """The range of part `number` (1-based) on the streaming grid."""
    step, within = divmod(number - 1, PARTS_PER_STEP)
    size = PART_BYTES << step
    start = PARTS_PER_STEP * PART_BYTES * ((1 << step) - 1) + within * size
    return start, start + size


def part_at(offset: int) -> int:
    """The number of the grid part that holds `offset`."""
    step = 0
    start = 0
    while offset >= start + PARTS_PER_STEP * (PART_BYTES << step):
        start += PARTS_PER_STEP * (PART_BYTES << step)
        step += 1
    return step * PARTS_PER_STEP + (offset - start) // (PART_BYTES << step) + 1


def plan_publish(
    size: int, changed: Iterable[Range], base_limit: int, can: Capabilities, *, streamed: int = 0
) -> PutWhole | Multipart:
    """How to publish `size` bytes of which `changed` are not in the base and none beyond `base_limit` is.

    `streamed` is the number of grid parts at the front that are sent already. Raises Rejected when the store cannot
    hold an object of this size.
    """
    if size <= SMALL_BYTES and not streamed:
        return PutWhole()
    start = part_range(streamed)[1] if streamed else 0
    if start > size:
        raise ValueError(f"{streamed} streamed parts are longer than {size} bytes")
    if start == size:
        return Multipart((), streamed + 1)
    sent = RangeSet(changed)
    sent.add(base_limit if can.copy_part else 0, size)
    sent.remove(0, start)
    sent.remove(size, max(size, max((end for _, end in sent), default=0)))
    room = can.max_parts - streamed
    unit, copy_unit, smallest = max(PART_BYTES, can.min_part_bytes), COPY_BYTES, can.min_part_bytes
    while sent.total // unit > room and unit < can.max_part_bytes:
        unit *= 2
    while size // copy_unit > room and copy_unit * 4 <= can.max_part_bytes:
        copy_unit *= 2
    while unit * 2 <= can.max_part_bytes:  # a piece is shorter than twice its unit
        parts = _cut(_windows(sent, start, size, smallest), start, size, unit, copy_unit)
        if len(parts) <= room:
            return Multipart(tuple(parts), streamed + 1)
        unit, copy_unit, smallest = unit * 2, min(copy_unit * 2, can.max_part_bytes // 2), smallest * 2
    raise Rejected(f"{size} bytes do not fit into {room} parts of at most {can.max_part_bytes} bytes")


def _windows(sent: RangeSet, start: int, size: int, smallest: int) -> list[Range]:
    """`sent` widened so that it, and each gap that is left to be copied, is at least `smallest`, but the last one."""
    windows: list[Range] = []
    for low, high in sent:
        before = windows[-1][1] if windows else start
        if low - before < smallest:  # too little to copy: send it along
            low = before
        high = min(max(high, low + smallest), size)
        if windows and low <= windows[-1][1]:
            windows[-1] = (windows[-1][0], max(windows[-1][1], high))
        else:
            windows.append((low, high))
    return windows


def _cut(windows: list[Range], start: int, size: int, unit: int, copy_unit: int) -> list[Upload | Copy]:
    """Parts that cover [start, size): windows are sent in pieces of `unit` to twice that, the rest is copied."""
    parts: list[Upload | Copy] = []
    at = start
    for low, high in windows:
        parts.extend(Copy(*piece) for piece in _pieces(at, low, copy_unit))
        parts.extend(Upload(*piece) for piece in _pieces(low, high, unit))
        at = high
    parts.extend(Copy(*piece) for piece in _pieces(at, size, copy_unit))
    return parts


def _pieces(start: int, end: int, unit: int) -> list[Range]:
    """[start, end) in equal pieces of at least `unit` (one piece if it is shorter), less than twice that."""
    length = end - start
    if length <= 0:
        return []
    count = max(1, length // unit)
    cuts = [start + length * at // count for at in range(count + 1)]
    return list(pairwise(cuts))
