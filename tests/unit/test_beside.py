"""Which pages are pushed to a random reader."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from s3vol.fs.beside import AGAIN, BLOCK_BYTES, BLOCKS, FIRST, SMALL_BYTES, Misses, whole_pages
from s3vol.types import GIB, KIB, MIB

PAGE = 4 * KIB


def _pushes(misses: Misses, reads: list[int], length: int = PAGE) -> list[tuple[int, int]]:
    return [found for at in reads if (found := misses.note(at, length))]


def test_a_block_is_pushed_when_a_few_of_its_pages_were_asked_for() -> None:
    misses = Misses()
    assert _pushes(misses, [MIB + PAGE * page for page in (7, 3, 31)[: FIRST - 1]]) == []
    assert misses.note(MIB + 9 * PAGE, PAGE) == (MIB, MIB + BLOCK_BYTES)


def test_a_block_that_was_pushed_in_vain_is_not_pushed_again_soon() -> None:
    pushes = _pushes(Misses(), [0] * 10 * (AGAIN + FIRST))
    assert len(pushes) <= 11


def test_large_reads_push_nothing() -> None:
    assert _pushes(Misses(), [0] * 100, SMALL_BYTES + 1) == []


def test_a_file_is_soon_pushed_where_random_reads_go() -> None:
    """Of 64 MiB nearly all is there when as many reads have come as half of its pages."""
    draw, misses, pushed = random.Random(1), Misses(), set[int]()
    for _ in range(16_384 // 2):
        at = draw.randrange(16_384) * PAGE
        if at // BLOCK_BYTES not in pushed and misses.note(at, PAGE):
            pushed.add(at // BLOCK_BYTES)
    assert len(pushed) > 0.99 * 512


def test_a_file_far_too_large_gets_hardly_any_pushes_and_little_memory() -> None:
    draw, misses = random.Random(1), Misses()
    pushes = _pushes(misses, [draw.randrange(GIB // PAGE) * 16 * PAGE for _ in range(50_000)])
    assert len(pushes) < 50_000 * 0.01


def test_what_is_counted_is_bounded() -> None:
    misses = Misses()
    _pushes(misses, [number * BLOCK_BYTES for number in range(3 * BLOCKS)])
    assert _pushes(misses, [0, 0]) == []
    assert _pushes(misses, [(3 * BLOCKS - 1) * BLOCK_BYTES] * (FIRST - 1)) != []


@given(st.integers(0, MIB), st.integers(0, MIB), st.integers(0, MIB))
def test_no_page_reaches_beyond_the_end(start: int, length: int, size: int) -> None:
    found = whole_pages(start, start + length, size)
    if found is not None:
        assert start <= found[0] < found[1] <= min(start + length, size)
        assert found[0] % PAGE == found[1] % PAGE == 0
