"""Limit: how many calls travel at a time, and how many bytes."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3vol.store.fault import FaultControls, FaultStore, Gate
from s3vol.store.limit import ByteBudget, LimitStore
from s3vol.store.memory import MemoryStore


@pytest.fixture
def controls() -> FaultControls:
    return FaultControls()


def limited(controls: FaultControls, **limits: int) -> LimitStore:
    settings = {"reads": 10, "writes": 10} | limits
    return LimitStore(FaultStore(MemoryStore(), controls), **settings)


async def put(store: LimitStore, key: str, size_bytes: int = 1) -> None:
    await store.put(key, bytes(size_bytes), metadata={})


async def test_no_more_writes_travel_than_allowed_and_reads_go_on(controls: FaultControls) -> None:
    store = limited(controls, writes=2, reads=1)
    await put(store, "there")
    gates = [controls.hold("put") for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(put, store, str(number))
        await wait_all_tasks_blocked()
        assert [gate.entered.is_set() for gate in gates] == [True, True, False]
        assert (await store.head("there")).size == 1, "a reader does not wait for writers"
        gates[0].open()
        await gates[2].entered.wait()
        gates[1].open()
        gates[2].open()
    assert len((await store.list("")).objects) == 4


async def test_reads_are_bounded_apart_from_writes(controls: FaultControls) -> None:
    store = limited(controls, reads=1)
    gate, second = controls.hold("list"), controls.hold("list")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.list, "")
        nursery.start_soon(store.list, "")
        await wait_all_tasks_blocked()
        assert gate.entered.is_set()
        assert not second.entered.is_set()
        await put(store, "k")
        gate.open()
        second.open()


async def test_bytes_under_way_are_bounded(controls: FaultControls) -> None:
    store = limited(controls, body_bytes=100)
    gates = [controls.hold("put") for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(put, store, str(number), 50)
        await wait_all_tasks_blocked()
        assert [gate.entered.is_set() for gate in gates] == [True, True, False]
        for gate in gates:
            gate.open()


async def test_a_body_over_the_whole_budget_travels_alone(controls: FaultControls) -> None:
    store = limited(controls, body_bytes=10)
    big, small = controls.hold("put"), controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, store, "big", 1000)
        await big.entered.wait()
        nursery.start_soon(put, store, "small", 1)
        await wait_all_tasks_blocked()
        assert not small.entered.is_set()
        big.open()
        small.open()


async def test_a_large_claim_is_not_starved_by_small_ones() -> None:
    budget = ByteBudget(10)
    order: list[str] = []

    async def claim(name: str, claimed_bytes: int, gate: Gate) -> None:
        async with budget.claim(claimed_bytes):
            order.append(name)
            await gate.pass_through()

    first, rest = Gate(), Gate()
    rest.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim, "small", 1, first)
        await first.entered.wait()
        nursery.start_soon(claim, "large", 10, rest)
        await wait_all_tasks_blocked()
        nursery.start_soon(claim, "late", 1, rest)
        await wait_all_tasks_blocked()
        assert order == ["small"], "late would fit, but large was first"
        first.open()
    assert order == ["small", "large", "late"]
    assert budget.used_bytes == 0


async def test_what_is_cancelled_gives_its_place_back(controls: FaultControls) -> None:
    store = limited(controls, writes=1, body_bytes=10)
    controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, store, "travelling", 10)
        nursery.start_soon(put, store, "waiting", 10)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await put(store, "next", 10)


async def test_a_claim_cancelled_while_it_waits_lets_the_next_one_in() -> None:
    budget = ByteBudget(10)
    entered = trio.Event()

    async def claim_in_vain() -> None:
        async with budget.claim(10):
            entered.set()

    async with trio.open_nursery() as nursery, budget.claim(5):
        nursery.start_soon(claim_in_vain)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not entered.is_set()
    with trio.fail_after(5):
        async with budget.claim(10):
            assert budget.used_bytes == 10
