"""Fault: each fault happens once, at the call that it was asked for."""

from __future__ import annotations

import pytest
import trio

from s3vol.errors import Denied, NotFound, Unavailable
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MemoryStore


@pytest.fixture
def store() -> FaultStore:
    return FaultStore(MemoryStore())


async def test_a_call_that_fails_is_not_applied(store: FaultStore) -> None:
    store.controls.fail_next("put", Denied("403"))
    with pytest.raises(Denied):
        await store.put("k", b"x", metadata={})
    with pytest.raises(NotFound):
        await store.head("k")
    await store.put("k", b"x", metadata={})


async def test_a_lost_reply_is_applied(store: FaultStore) -> None:
    store.controls.apply_then_fail("put")
    with pytest.raises(Unavailable):
        await store.put("k", b"x", metadata={})
    assert (await store.head("k")).size == 1


async def test_faults_of_one_operation_queue_up_and_leave_others_alone(store: FaultStore) -> None:
    store.controls.fail_next("head", Denied("first"))
    store.controls.fail_next("head", Unavailable("second"))
    await store.put("k", b"x", metadata={})
    with pytest.raises(Denied, match="first"):
        await store.head("k")
    with pytest.raises(Unavailable, match="second"):
        await store.head("k")
    assert (await store.head("k")).size == 1
    assert store.controls.calls == {"put": 1, "head": 3}


async def test_a_held_call_waits_before_and_a_held_reply_after_it_is_applied(store: FaultStore) -> None:
    before, after = store.controls.hold("put"), store.controls.hold_reply("put")

    async def put(key: str) -> None:
        await store.put(key, b"x", metadata={})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, "k")
        await before.entered.wait()
        assert not (await store.list("")).objects
        before.open()
        nursery.start_soon(put, "k")
        await after.entered.wait()
        assert len((await store.list("")).objects) == 1
        after.open()


async def test_down_is_down_for_every_call_until_it_is_up(store: FaultStore) -> None:
    await store.put("k", b"x", metadata={})
    store.controls.down = True
    with pytest.raises(Unavailable):
        await store.head("k")
    with pytest.raises(Unavailable):
        await store.delete("k")
    store.controls.down = False
    assert (await store.head("k")).size == 1


async def test_a_body_is_cut_and_an_etag_is_wrong_once() -> None:
    controls = FaultControls(truncate_get_bytes=3, corrupt_next_etag=True)
    store = FaultStore(MemoryStore(), controls)
    wrong = await store.put("k", b"content", metadata={})
    assert wrong != (await store.head("k")).etag
    assert wrong != await store.put("k", b"content", metadata={})
    assert bytes(await store.get("k", 0, 7)) == b"con"
    assert bytes(await store.get("k", 0, 7)) == b"content"
