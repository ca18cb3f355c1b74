"""Read-around: neighbours come along where random reads profit, and nothing does that is not there."""

from __future__ import annotations

import os
import random
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from s3vol.cache.cachedir import CacheDirectory
from s3vol.cache.disk import DataFiles
from s3vol.cache.extents import RangeSet
from s3vol.cache.readaround import BLOCK_BYTES, CREDITS, SMALL_BYTES, ReadAround
from s3vol.types import GIB, KIB, MIB

PAGE = 4 * KIB
WAIT_S = 10.0


def test_a_small_read_brings_the_block_around_it() -> None:
    everything = RangeSet([(0, 10 * MIB)])
    assert ReadAround().missed(300 * KIB, 304 * KIB, everything, PAGE) == (256 * KIB, 384 * KIB)
    assert ReadAround().missed(MIB, MIB + SMALL_BYTES + 1, everything, PAGE) == (MIB, MIB + SMALL_BYTES + 1)


@given(
    st.lists(st.tuples(st.integers(0, MIB), st.integers(1, MIB)), min_size=1, max_size=20),
    st.integers(0, 1000),
    st.integers(1, SMALL_BYTES),
)
def test_no_page_that_is_brought_along_reaches_into_bytes_that_are_not_there(
    ranges: list[tuple[int, int]], at: int, length: int
) -> None:
    present = RangeSet((start, start + size) for start, size in ranges)
    low, high = next(iter(present))
    start = low + (high - low) * at // 1001
    end = min(start + length, high)
    first, last = ReadAround().missed(start, end, present, PAGE)
    assert first <= start
    assert end <= last
    assert last - first <= 2 * BLOCK_BYTES
    for low, high in ((first, start), (end, last)):
        assert present.covers(low, high)
    assert first == start or first % PAGE == 0
    assert last == end or last % PAGE == 0


def _read_at_random(size: int, reads: int) -> tuple[int, int]:
    """Blocks read around, and reads that hit, of a reader all over a file of `size` bytes."""
    around, there, draw = ReadAround(), set[int](), random.Random(1)
    hits = 0
    everything = RangeSet([(0, size)])
    for _ in range(reads):
        start = draw.randrange(size // PAGE) * PAGE
        if start // BLOCK_BYTES in there:
            around.hit(PAGE)
            hits += 1
        elif around.missed(start, start + PAGE, everything, PAGE) != (start, start + PAGE):
            there.add(start // BLOCK_BYTES)
    return len(there), hits


def test_a_file_that_is_read_all_over_is_soon_in_memory() -> None:
    blocks, hits = _read_at_random(256 * MIB, 20_000)
    assert blocks > 2000
    assert hits > 17_000


def test_a_file_too_large_to_profit_costs_little_more_than_its_credits() -> None:
    blocks, _ = _read_at_random(1024 * GIB, 20_000)
    assert CREDITS <= blocks < CREDITS * 1.1


async def test_what_is_around_a_read_of_the_disk_is_in_the_page_cache_soon_after(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path / "cache")
    files = DataFiles(directory, {})
    body = random.Random(2).randbytes(MIB)
    files.write(1, 0, body)
    await files.flush(1)
    fd = os.open(tmp_path / "cache/data/1", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert await files.read(1, 300 * KIB, PAGE, (256 * KIB, 384 * KIB)) == body[300 * KIB : 304 * KIB]
    with trio.fail_after(WAIT_S):
        while files.read_now(1, 256 * KIB, 128 * KIB) is None:  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(0.001)
    assert bytes(files.read_now(1, 256 * KIB, 128 * KIB) or b"") == body[256 * KIB : 384 * KIB]
    files.close()
    directory.close()
