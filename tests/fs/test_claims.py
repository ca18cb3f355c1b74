"""Claims: who waits for whom."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from s3vol.fs.claims import Claim, Claims, overlaps


def test_shared_claims_do_not_overlap_and_exclusive_ones_do() -> None:
    assert not overlaps(Claim("a", shared=True), Claim("a", shared=True))
    assert overlaps(Claim("a", shared=True), Claim("a"))
    assert not overlaps(Claim("a"), Claim("b"))


def test_a_tree_covers_what_is_below_it_and_not_what_begins_with_its_name() -> None:
    assert overlaps(Claim("a", tree=True), Claim("a/b/c"))
    assert overlaps(Claim("a/b/c", shared=True), Claim("a", tree=True))
    assert not overlaps(Claim("a", tree=True), Claim("ab"))
    assert overlaps(Claim("", tree=True), Claim("x"))


async def run(claims: Claims, claim: Claim, name: str, log: list[str], go_on: trio.Event) -> None:
    async with claims.hold(claim):
        log.append(name)
        await go_on.wait()


async def test_waiters_go_on_in_the_order_in_which_they_came() -> None:
    claims, log = Claims(), list[str]()
    gates = {name: trio.Event() for name in ("writer", "rename", "late writer", "elsewhere")}
    wanted = {
        "writer": Claim("d/f", shared=True),
        "rename": Claim("d", tree=True),
        "late writer": Claim("d/f", shared=True),
        "elsewhere": Claim("e"),
    }
    async with trio.open_nursery() as nursery:
        for name, claim in wanted.items():
            nursery.start_soon(run, claims, claim, name, log, gates[name])
            await wait_all_tasks_blocked()
        assert log == ["writer", "elsewhere"]  # the late writer does not overtake the rename
        gates["writer"].set()
        await wait_all_tasks_blocked()
        assert log == ["writer", "elsewhere", "rename"]
        gates["rename"].set()
        await wait_all_tasks_blocked()
        assert log[-1] == "late writer"
        gates["late writer"].set()
        gates["elsewhere"].set()


async def test_a_cancelled_waiter_lets_those_behind_it_go_on() -> None:
    claims, log = Claims(), list[str]()
    first, last = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, claims, Claim("a", shared=True), "reader", log, first)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await run(claims, Claim("a"), "cancelled", log, trio.Event())
        nursery.start_soon(run, claims, Claim("a", shared=True), "second reader", log, last)
        await wait_all_tasks_blocked()
        assert log == ["reader", "second reader"]
        first.set()
        last.set()


async def test_an_operation_does_not_wait_for_its_own_other_path() -> None:
    claims = Claims()
    async with claims.hold(Claim("a", tree=True), Claim("a/b", tree=True)):
        pass
