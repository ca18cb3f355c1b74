"""The publish plan: it covers the file exactly, with parts that S3 accepts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3vol.cache.plan import SMALL_BYTES, Copy, Multipart, PutWhole, Upload, part_at, part_range, plan_publish
from s3vol.errors import Rejected
from s3vol.store.base import Capabilities
from s3vol.types import GIB, MIB

TIB = 1 << 40
S3 = Capabilities()
SIZES = st.one_of(st.integers(0, 100 * MIB), st.integers(0, 20 * GIB), st.integers(TIB, 5 * TIB))
SHARES = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 64 * MIB)), max_size=30)


def check(
    plan: Multipart, start: int, size: int, changed: list[tuple[int, int]], limit: int, can: Capabilities
) -> None:
    at = start
    for number, part in enumerate(plan.parts, start=plan.first):
        assert number <= can.max_parts
        assert part.start == at
        length = part.end - part.start
        assert length <= can.max_part_bytes
        assert length >= can.min_part_bytes or part.end == size
        assert length > 0
        if isinstance(part, Copy):
            assert part.end <= limit
            assert not any(low < part.end and part.start < high for low, high in changed)
        at = part.end
    assert at == size


@settings(max_examples=300)
@given(SIZES, SHARES, st.floats(0, 1))
def test_a_plan_covers_the_file_with_legal_parts_and_copies_only_what_is_unchanged(
    size: int, shares: list[tuple[float, int]], kept: float
) -> None:
    changed = [(int(size * at), min(size, int(size * at) + length)) for at, length in shares]
    limit = int(size * kept)
    plan = plan_publish(size, changed, limit, S3)
    if size <= SMALL_BYTES:
        assert plan == PutWhole()
        return
    assert isinstance(plan, Multipart)
    check(plan, 0, size, changed, limit, S3)


@given(SIZES.filter(lambda size: size > SMALL_BYTES))
def test_behind_streamed_parts_only_the_tail_is_left(size: int) -> None:
    count = part_at(size) - 1
    plan = plan_publish(size, (), 0, S3, streamed=count)
    assert isinstance(plan, Multipart)
    assert plan.first == count + 1
    check(plan, part_range(count)[1] if count else 0, size, [(0, size)], 0, S3)


def test_a_store_that_cannot_copy_parts_gets_them_all() -> None:
    plan = plan_publish(GIB, [(0, 1)], GIB, Capabilities(copy_part=False))
    assert isinstance(plan, Multipart)
    assert all(isinstance(part, Upload) for part in plan.parts)


def test_one_changed_byte_in_a_tebibyte_sends_little() -> None:
    plan = plan_publish(TIB, [(TIB // 2, TIB // 2 + 1)], TIB, S3)
    assert isinstance(plan, Multipart)
    assert sum(part.end - part.start for part in plan.parts if isinstance(part, Upload)) <= 16 * MIB


def test_changed_metadata_alone_is_all_copies() -> None:
    plan = plan_publish(GIB, [], GIB, S3)
    assert isinstance(plan, Multipart)
    assert all(isinstance(part, Copy) for part in plan.parts)


def test_the_grid_is_without_gaps_and_reaches_five_tebibytes() -> None:
    for number in (1, 2, 999, 1000, 1001, 1999, 2000, 2001, 5000, 9999):
        assert part_range(number)[1] == part_range(number + 1)[0]
        assert part_at(part_range(number)[0]) == number
        assert part_at(part_range(number)[1] - 1) == number
    assert part_range(10_000)[1] >= 5 * TIB


def test_what_no_object_can_hold_is_rejected() -> None:
    with pytest.raises(Rejected, match="do not fit"):
        plan_publish(100 * TIB, [], 0, S3)
