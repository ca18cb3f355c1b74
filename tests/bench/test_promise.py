"""What a listing has to show for a figure to count."""

from __future__ import annotations

import pytest

from s3vol_bench.errors import PromiseBroken
from s3vol_bench.promise import Expected, Pattern, await_unstaged, first_difference


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


@pytest.mark.parametrize(
    ("expected", "grown_bytes"),
    [
        (Expected({"a": b"123", "b": 4}), 7),
        (Expected({"a": b"123"}, gone=("b",), written_bytes=0), 0),
        (Expected({"a": Pattern(b"xy", 300)}, written_bytes=20), 20),
    ],
)
def test_a_bucket_grows_by_what_was_written(expected: Expected, grown_bytes: int) -> None:
    assert expected.new_bytes == grown_bytes


def test_what_is_staged_is_awaited() -> None:
    answers = iter([True, True, False])
    assert await_unstaged(lambda: next(answers)) > 0


def test_what_stays_staged_breaks_the_promise() -> None:
    with pytest.raises(PromiseBroken, match="still holds what is not in the bucket"):
        await_unstaged(lambda: True, patience_s=0.01)
