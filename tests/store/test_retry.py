"""Retry: what is repeated, how long, and what is said at the end. On a clock that jumps."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from s3vol.errors import Denied, Unavailable
from s3vol.store.decorator import Call
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MemoryStore
from s3vol.store.retry import SERVER_SIDE_S, SLOWEST_BYTES_PER_S, RetryStore, allowance_s
from s3vol.types import MIB, Health


@pytest.fixture
def controls() -> FaultControls:
    return FaultControls()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def store(controls: FaultControls, health: Health) -> RetryStore:
    inner = FaultStore(MemoryStore(), controls)
    return RetryStore(inner, timeout_s=60.0, attempt_timeout_s=20.0, rng=random.Random(7), health=health)


async def test_an_endpoint_that_stays_down_is_given_up_at_the_deadline(
    store: RetryStore, controls: FaultControls, health: Health, autojump_clock: MockClock
) -> None:
    controls.down = True
    with pytest.raises(Unavailable) as caught:
        await store.put("dir/key", b"x", metadata={})
    assert 54.0 < trio.current_time() <= 60.0, "no pause reaches beyond the deadline"
    assert "put 'dir/key'" in str(caught.value)
    assert "injected: endpoint is down" in str(caught.value)
    assert caught.value.retryable
    assert health.counts["store.gave_up"] == 1
    assert health.counts["store.retries"] == controls.calls["put"] - 1


async def test_pauses_double_up_to_a_cap_and_are_drawn_at_random(
    store: RetryStore, controls: FaultControls, autojump_clock: MockClock
) -> None:
    controls.down = True
    with pytest.raises(Unavailable):
        await store.head("k")
    # 0.05 s doubling to 5 s, each at half to full length: 7 steps up, then about 14 at the cap
    assert 16 <= controls.calls["head"] <= 32


async def test_the_reply_of_a_call_that_hangs_is_not_awaited_for_ever(
    store: RetryStore, controls: FaultControls, health: Health, autojump_clock: MockClock
) -> None:
    await store.put("k", b"x", metadata={})
    began_s = trio.current_time()
    controls.hold("head")  # and nobody opens the gate
    assert (await store.head("k")).size == 1
    assert 20.0 <= trio.current_time() - began_s <= 20.1
    assert health.last_error == "head 'k': no answer within 20.0 s"
    assert controls.calls["head"] == 2


async def test_calls_that_all_hang_end_at_the_deadline(
    store: RetryStore, controls: FaultControls, autojump_clock: MockClock
) -> None:
    for _ in range(10):
        controls.hold("head")
    with pytest.raises(Unavailable, match="no answer within"):
        await store.head("k")
    assert trio.current_time() <= 60.0


async def test_what_takes_long_by_nature_gets_longer(autojump_clock: MockClock) -> None:
    assert allowance_s(Call("head", "k")) == 0
    assert allowance_s(Call("put", "k", 8 * MIB)) == 8 * MIB / SLOWEST_BYTES_PER_S
    assert allowance_s(Call("complete_upload", "k")) == SERVER_SIDE_S


async def test_a_slow_complete_is_not_cut(
    store: RetryStore, controls: FaultControls, autojump_clock: MockClock
) -> None:
    upload_id = await store.create_upload("k", metadata={})
    part = await store.upload_part("k", upload_id, 1, b"x")
    gate = controls.hold_reply("complete_upload")

    async def answer_late() -> None:
        await gate.entered.wait()
        await trio.sleep(300)
        gate.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_late)
        await store.complete_upload("k", upload_id, [part])
    assert controls.calls["complete_upload"] == 1


async def test_what_cannot_help_is_not_repeated(
    store: RetryStore, controls: FaultControls, autojump_clock: MockClock
) -> None:
    controls.fail_next("put", Denied("403"))
    with pytest.raises(Denied, match="403"):
        await store.put("k", b"x", metadata={})
    assert controls.calls["put"] == 1
    assert trio.current_time() == 0


async def test_cancellation_ends_a_pause_at_once(
    store: RetryStore, controls: FaultControls, autojump_clock: MockClock
) -> None:
    controls.down = True
    with trio.move_on_after(1.0) as scope:
        await store.head("k")
    assert scope.cancelled_caught
    assert trio.current_time() == 1.0
    controls.down = False
    await store.put("k", b"x", metadata={})


async def test_a_deadline_of_the_caller_is_the_callers(store: RetryStore, autojump_clock: MockClock) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.head("k")
    assert scope.cancelled_caught
