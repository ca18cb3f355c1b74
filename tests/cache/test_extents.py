"""RangeSet against a set of integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3vol.cache.extents import RangeSet

OFFSETS = st.integers(0, 60)
RANGES = st.tuples(OFFSETS, OFFSETS)
CHANGES = st.lists(st.tuples(st.booleans(), RANGES), max_size=40)


def build(changes: list[tuple[bool, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    ranges, model = RangeSet(), set[int]()
    for add, (start, end) in changes:
        before = len(model)
        if add:
            model |= set(range(start, end))
            assert ranges.add(start, end) == len(model) - before
        else:
            model -= set(range(start, end))
            assert ranges.remove(start, end) == before - len(model)
    return ranges, model


@given(CHANGES)
def test_it_holds_what_a_set_of_integers_holds(changes: list[tuple[bool, tuple[int, int]]]) -> None:
    ranges, model = build(changes)
    assert {at for start, end in ranges for at in range(start, end)} == model
    assert ranges.total == len(model)
    flat = [edge for pair in ranges for edge in pair]
    assert flat == sorted(set(flat)), "sorted, disjoint and not touching"
    assert ranges.copy() == ranges


@given(CHANGES, RANGES)
def test_questions_about_a_range_agree_with_the_set(
    changes: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    ranges, model = build(changes)
    wanted = set(range(*asked))
    assert ranges.covers(*asked) == (wanted <= model)
    assert ranges.touches(*asked) == bool(wanted & model)
    assert {at for low, high in ranges.overlap(*asked) for at in range(low, high)} == wanted & model
    assert {at for low, high in ranges.gaps(*asked) for at in range(low, high)} == wanted - model
    assert ranges.count(*asked) == len(wanted & model)


def test_thirty_thousand_ranges_stay_fast() -> None:
    ranges = RangeSet()
    for at in range(30_000):
        ranges.add(at * 7919 % 30_000 * 10, at * 7919 % 30_000 * 10 + 5)
    assert len(ranges) == 30_000
    assert ranges.total == 150_000
    ranges.add(0, 300_000)
    assert list(ranges) == [(0, 300_000)]
