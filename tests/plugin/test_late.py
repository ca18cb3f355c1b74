"""The registry's store, opened late and opened anew."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from s3vol.errors import Denied
from s3vol.store.base import Store
from s3vol.store.memory import MemoryStore
from s3vol_plugin.late import LateStore


def opens(made: Callable[[], Store], open_now: list[Store]) -> Callable[[], AbstractAsyncContextManager[Store]]:
    """Opens a new store each time; `open_now` has those that are not closed."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Store]:
        store = made()
        open_now.append(store)
        try:
            yield store
        finally:
            open_now.remove(store)

    return opening


async def test_a_registry_whose_calls_are_refused_does_not_pile_up_stores() -> None:
    open_now: list[Store] = []

    class Refusing(MemoryStore):
        async def delete(self, key: str) -> None:
            await trio.lowlevel.checkpoint()
            raise Denied("access denied")

    store = LateStore("s3://bucket/", opens(Refusing, open_now))
    for _ in range(20):
        with pytest.raises(Denied):
            await store.delete("k")
    assert len(open_now) <= 1
    await store.aclose()
    assert open_now == []


async def test_a_store_that_is_replaced_is_closed_when_its_last_call_has_ended() -> None:
    open_now: list[Store] = []
    go_on = trio.Event()

    class Slow(MemoryStore):
        async def delete(self, key: str) -> None:
            await go_on.wait()
            assert self in open_now

    store = LateStore("s3://bucket/", opens(Slow, open_now))
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(store.delete, "k")
        await trio.testing.wait_all_tasks_blocked()
        store.renew()
        nursery.start_soon(partial(store.list, "", delimiter=False, cursor=None))
        await trio.testing.wait_all_tasks_blocked()
        assert len(open_now) == 2
        go_on.set()
    assert len(open_now) == 1
    await store.aclose()
    assert open_now == []
