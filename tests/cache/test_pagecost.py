"""When memory counts as dear."""

from __future__ import annotations

from s3vol.cache.pagecost import BELIEVED_S, COUNTED_BYTES, DEAR_BYTES_S, WINDOW_BYTES, PageCost
from s3vol.types import MIB

SLOW_S, FAST_S = 2 * MIB / DEAR_BYTES_S, MIB / DEAR_BYTES_S / 2  # for one MiB


def _write(cost: PageCost, took_s: float, now_s: float, length: int = MIB) -> None:
    for _ in range(WINDOW_BYTES // length):
        cost.note(length, took_s, now_s)


def test_slow_writes_say_for_a_while_that_memory_is_dear() -> None:
    cost = PageCost()
    assert not cost.is_high(0)
    _write(cost, SLOW_S, 10)
    assert cost.is_high(10)
    _write(cost, FAST_S, 20)  # to the same pages again
    assert cost.is_high(9 + BELIEVED_S)
    assert not cost.is_high(10 + BELIEVED_S)


def test_a_slow_write_among_fast_ones_and_small_writes_say_nothing() -> None:
    cost = PageCost()
    cost.note(MIB, 8 * SLOW_S, 1)
    _write(cost, FAST_S, 1)
    _write(cost, 1.0, 1, COUNTED_BYTES // 2)
    assert not cost.is_high(1)
