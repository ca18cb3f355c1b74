"""What a listing has to show for a figure to count."""

from __future__ import annotations

import pytest

from s3vol_bench.promise import Expected, Pattern, first_difference


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        (Expected({"a": b"123"}), ""),
        (Expected({"a": 3}, gone=("c",)), ""),
        (Expected({"a": Pattern(b"xy", 3)}), ""),
        (Expected({"b": b"x"}), "b: not in the bucket when the call had returned"),
        (Expected({"a": b"1234"}), "a: 3 bytes in the bucket instead of 4"),
        (Expected(gone=("a",)), "a: still in the bucket when the call had returned"),
        (Expected(gone=("d",)), "d/e: still in the bucket when the call had returned"),
        (Expected(gone=("d/e/f",)), ""),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(expected: Expected, difference: str) -> None:
    assert first_difference({"a": (3, "etag"), "d/e": (1, "etag")}, expected) == difference


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 10), (2, 3), (5, 99), (9, 1)])
def test_a_piece_of_a_pattern_is_what_is_there(start: int, length: int) -> None:
    whole = (b"abc" * 4)[:10]
    assert Pattern(b"abc", 10).piece(start, length) == whole[start : start + length]
