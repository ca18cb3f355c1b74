"""Replay: from the journal and the data files back to contents. Blocking, before anything is served.

A DIRTY content comes back with the dirty bytes that the journal vouches for; what was written after its last sync is
lost, by contract, and its file is cut to the size that was saved. What the journal carried of it is written to its
file. A CLEAN content comes back with its clean chunks, if it has any. A data file without a record is an unsynced new
file: deleted. A record without its data file, or damaged, goes to `quarantine`, with the data file if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from s3vol.cache import records
from s3vol.cache.base import State
from s3vol.cache.cachedir import CacheDirectory
from s3vol.cache.content import Attempt, CachedContent
from s3vol.cache.extents import RangeSet
from s3vol.cache.journal import Loaded
from s3vol.cache.records import Row, Statement
from s3vol.types import CHUNK_BYTES

ATTEMPTS_SKIPPED = 1 << 20
"""Numbers that a process which died may have used after its last record; each opening has its own of a row."""


@dataclass(slots=True)
class Replayed:
    """What is there to go on with. `files`: allocated bytes of the data files that are kept, by content id."""

    contents: list[CachedContent] = field(default_factory=list)
    files: dict[int, int] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    quarantined: int = 0


def replay(
    directory: CacheDirectory, loaded: Loaded, carried: Callable[[int], Iterable[tuple[int, bytes]]]
) -> Replayed:
    """Bring the contents back. `carried`: see Journal. Raises OSError when the disk fails."""
    result = Replayed(quarantined=loaded.quarantined_before + len(loaded.quarantined))
    found = _scan(directory)
    damaged = set(loaded.quarantined)
    for row in loaded.rows.values():
        content = _revive(row, loaded)
        if content is not None and row.id in loaded.carried:
            back = _put_back(directory, content, list(carried(row.id)), found.get(row.id))
            if back is not None:
                found[row.id] = back
            result.statements += records.drop_carried(row.id)
        if content is None:
            result.statements += records.drop_content(row.id)
        elif _is_whole(content, found.get(row.id)):
            result.contents.append(content)
        else:
            if content.state is State.DIRTY:
                damaged.add(row.id)
                result.quarantined += 1
                result.statements += records.quarantine_content(row.id, "its data file is gone or too short")
            result.statements += records.drop_content(row.id)
    kept = {content.id: content.size for content in result.contents}
    for content_id, (size, blocks) in found.items():
        name = f"{content_id:x}"
        if content_id in kept:
            result.files[content_id] = _cut(directory, name, kept[content_id]) if size > kept[content_id] else blocks
        elif content_id in damaged:
            os.rename(name, name, src_dir_fd=directory.data_fd, dst_dir_fd=directory.quarantine_fd)
        else:
            os.unlink(name, dir_fd=directory.data_fd)
    if loaded.carried:
        os.fsync(directory.data_fd)
    return result


def _put_back(
    directory: CacheDirectory,
    content: CachedContent,
    pieces: Sequence[tuple[int, bytes]],
    found: tuple[int, int] | None,
) -> tuple[int, int] | None:
    """Write to the data file what the journal carried of its dirty bytes. Returns size and allocated bytes.

    Nothing is done to a file that is too short for the dirty bytes that were not carried: they are lost.
    """
    rest = content.dirty.copy()
    for start, data in pieces:
        rest.remove(start, start + len(data))
    if max((end for _, end in rest), default=0) > (found[0] if found else 0):
        return found
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{content.id:x}", flags, 0o600, dir_fd=directory.data_fd)
    try:
        for start, data in pieces:
            for low, high in content.dirty.overlap(start, start + len(data)):
                _write_fully(fd, memoryview(data)[low - start : high - start], low)
        os.fdatasync(fd)
        info = os.fstat(fd)
        return info.st_size, info.st_blocks * 512
    finally:
        os.close(fd)


def _write_fully(fd: int, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], start + done)


def _scan(directory: CacheDirectory) -> dict[int, tuple[int, int]]:
    """Size and allocated bytes of each data file, by content id. What has another name is not ours, and left alone."""
    found: dict[int, tuple[int, int]] = {}
    for name in os.listdir(directory.data_fd):
        if set(name) <= set("0123456789abcdef"):
            info = os.stat(name, dir_fd=directory.data_fd, follow_symlinks=False)
            found[int(name, 16)] = (info.st_size, info.st_blocks * 512)
    return found


def _cut(directory: CacheDirectory, name: str, size: int) -> int:
    fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.data_fd)
    try:
        os.ftruncate(fd, size)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def _is_whole(content: CachedContent, found: tuple[int, int] | None) -> bool:
    """True when the data file can hold what the record says is in it. Clean bytes at its end may be zeros of a hole."""
    if found is None:
        return content.present.total <= _hole_bytes(content)
    return found[0] >= max((end for _, end in content.dirty), default=0)


def _hole_bytes(content: CachedContent) -> int:
    return content.present.count(content.base_limit, content.size) - content.dirty.count(
        content.base_limit, content.size
    )


def _revive(row: Row, loaded: Loaded) -> CachedContent | None:
    """The content of a row; None for a CLEAN one of which nothing is on the disk."""
    dirty = row.state == State.DIRTY.value
    content = CachedContent(
        id=row.id,
        key=row.key,
        base=row.base,
        size=row.size,
        metadata=row.metadata,
        content_type=row.content_type,
        state=State.DIRTY if dirty else State.CLEAN,
        derived=row.derived,
        base_limit=min(row.base_limit, row.size),
        low_water=row.size,
        attempt=row.attempt + loaded.opened * ATTEMPTS_SKIPPED,
        loaded_attempt=row.attempt,
        saved_size=row.size,
        unresolved=dirty,
        explicit_times=row.explicit_times,
        journal_state=State.DIRTY if dirty else State.CLEAN,
    )
    content.attempts = {number: Attempt({etag: -1}) for number, etag in row.attempts.items()}
    for chunk in loaded.clean.get(row.id, ()):
        start, end = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, content.base_limit)
        if start < end:
            content.present.add(start, end)
            content.recorded.add(chunk)
    if not dirty:
        return content if content.present else None
    extents = RangeSet(loaded.extents.get(row.id, ()))
    for start, end in extents.overlap(0, row.size):
        content.dirty.add(start, end)
        content.journaled.add(start, end)
        content.present.add(start, end)
    content.extent_rows = len(loaded.extents.get(row.id, ()))
    content.present.add(content.base_limit, content.size)
    content.generation = content.saved_generation = content.loaded_generation = 1
    return content
