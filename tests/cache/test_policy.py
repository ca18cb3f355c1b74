"""Eviction order, admission, the byte budget, nonces."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3vol.cache.budget import ByteBudget
from s3vol.cache.nonce import format_nonce, parse_attempt, parts_etag, whole_etag
from s3vol.cache.policy import Lru, admits, eviction_goal
from s3vol.types import MIB


def test_the_least_recently_used_chunks_go_first() -> None:
    lru: Lru[str] = Lru()
    for index in range(5):
        lru.use("a", index)
    lru.use("a", 0)
    assert lru.plan(2 * MIB, lambda _, __: MIB) == [("a", 1), ("a", 2)]


def test_what_must_stay_is_never_chosen_and_does_not_slow_the_next_round_down() -> None:
    lru: Lru[str] = Lru()
    for index in range(10):
        lru.use("dirty", index)
    lru.use("clean", 0)
    assert lru.plan(MIB, lambda owner, _: 0 if owner == "dirty" else MIB, scan_limit=4) == []
    assert lru.plan(MIB, lambda owner, _: 0 if owner == "dirty" else MIB, scan_limit=7) == [("clean", 0)]


def test_chunks_that_are_gone_are_forgotten() -> None:
    lru: Lru[str] = Lru()
    lru.use("a", 0)
    lru.use("a", 1)
    assert lru.plan(MIB, lambda _, index: None if index == 0 else MIB) == [("a", 1)]
    assert len(lru) == 1


@given(*[st.integers(0, 1 << 40)] * 5)
def test_the_goal_is_at_least_what_is_missing(used: int, cap: int, free: int, floor: int, need: int) -> None:
    goal = eviction_goal(used, cap, free, floor, need)
    assert (goal == 0) == (used + need <= cap and free - need >= floor)
    assert goal == 0 or goal >= max(used + need - cap, floor + need - free)


def test_a_write_waits_for_cap_and_age_but_never_when_nothing_is_dirty() -> None:
    assert admits(0, 100, 10, 0.0, 1.0)
    assert admits(5, 5, 10, 0.0, 1.0)
    assert not admits(5, 6, 10, 0.0, 1.0)
    assert not admits(5, 1, 10, 2.0, 1.0)


async def test_the_budget_is_first_come_first_served_and_admits_a_giant_alone() -> None:
    budget, order = ByteBudget(10), list[str]()

    async def hold(name: str, size: int) -> None:
        async with budget.hold(size):
            order.append(name)
            await trio.testing.wait_all_tasks_blocked()
            assert name != "giant" or budget.used_bytes == size

    async with trio.open_nursery() as nursery:
        for name, size in (("first", 6), ("giant", 50), ("small", 1)):
            nursery.start_soon(hold, name, size)
            await trio.testing.wait_all_tasks_blocked(0.0)
    assert sorted(order) == ["first", "giant", "small"]
    assert budget.used_bytes == 0


async def test_a_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    budget = ByteBudget(10)

    async def wait() -> None:
        async with budget.hold(10):
            raise AssertionError("was cancelled")

    async with trio.open_nursery() as nursery, budget.hold(5):
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            scope.cancel()
            await wait()
        assert budget.has_room(5)
    assert budget.used_bytes == 0


def test_a_nonce_names_cache_content_and_attempt() -> None:
    nonce = format_nonce("0123abcd", 1 << 40, 17)
    assert parse_attempt(nonce, "0123abcd", 1 << 40) == 17
    assert parse_attempt(nonce, "0123abce", 1 << 40) is None
    assert parse_attempt(nonce, "0123abcd", 2) is None
    assert parse_attempt("0123abcd.10000000000.zz", "0123abcd", 1 << 40) is None
    assert parse_attempt("", "0123abcd", 1) is None


def test_etags_are_computed_as_the_store_does() -> None:
    assert whole_etag(b"hello") == "5d41402abc4b2a76b9719d911017c592"
    assert parts_etag([whole_etag(b"a"), whole_etag(b"b")]) == "96e024ba2074fe77e8e965ba43a704be-2"
    assert parts_etag(["no hex"]) is None


@pytest.mark.parametrize("size", [0, 1])
async def test_holding_nothing_or_little_never_waits(size: int) -> None:
    async with ByteBudget(1).hold(size):
        pass
