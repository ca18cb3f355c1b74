"""When a closed file is published in the background: after it was left alone for a while, and without crowding."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.types import MIB
from tests.cache.rig import META, Rig


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """With the delay of a mount."""
    rig.limit(publish_delay_s=1.0)
    return rig


async def test_a_closed_file_is_published_when_it_was_left_alone_for_the_delay(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"first")
        cache.schedule(content)
        await trio.sleep(0.7)
        cache.set_metadata(content, {**META, "mode": "33152"})
        cache.schedule(content)
        await trio.sleep(0.7)
        assert rig.keys() == [], "the second change began the delay anew"
        await trio.sleep(0.7)
        assert rig.body("f") == b"first"
        assert rig.faults.calls["put"] == 1, "both changes in one request"


async def test_a_file_that_is_closed_again_and_again_is_published_all_the_same(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    async with rig.cache() as cache:
        content = cache.create("log", META)
        for _ in range(24):
            await cache.write(content, content.size, b"line")
            cache.schedule(content)
            await trio.sleep(0.5)
        assert rig.body("log").startswith(b"line")


async def test_a_file_that_is_renamed_or_removed_in_time_costs_nothing_under_its_first_name(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    async with rig.cache() as cache:
        for name in ("kept.tmp", "gone.tmp"):
            content = cache.create(name, META)
            await cache.write(content, 0, b"data")
            await cache.sync(content)
            cache.schedule(content)
            if name == "kept.tmp":
                await cache.move(content, "kept", None)
            else:
                await cache.discard(content)
        await trio.sleep(3)
        assert rig.keys() == ["kept"]
        assert rig.faults.calls == {"put": 1}


async def test_whoever_waits_for_a_publish_does_not_wait_for_the_delay(rig: Rig) -> None:
    rig.limit(publish_delay_s=1e6)
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        cache.schedule(content)
        await cache.publish(content)
        assert rig.body("f") == b"data"


async def test_a_file_that_somebody_publishes_is_left_to_them(rig: Rig, jumping_clock: trio.testing.MockClock) -> None:
    async with rig.cache() as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        cache.schedule(content)
        gate = rig.faults.hold("put")
        with trio.move_on_after(2.5):
            await cache.publish(content)
        assert rig.faults.calls["put"] == 1
        await trio.sleep(1.5)
        assert rig.body("f") == b"data"
        assert gate.entered.is_set()


async def test_near_the_dirty_cap_nothing_is_left_alone(rig: Rig) -> None:
    rig.limit(publish_delay_s=1e6, dirty_max_bytes=4 * MIB)
    async with rig.cache() as cache:
        for name in ("one", "two", "three"):
            content = cache.create(name, META)
            await cache.write(content, 0, bytes(MIB))
            cache.schedule(content)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert rig.keys() == ["three"], "closed when more than half of the cap was in use"


async def test_while_files_are_being_closed_few_are_published_at_a_time(
    rig: Rig, jumping_clock: trio.testing.MockClock
) -> None:
    async with rig.cache() as cache:
        for at in range(20):
            content = cache.create(f"f{at}", META)
            await cache.write(content, 0, b"data")
            cache.schedule(content)
        gates = [rig.faults.hold("put") for _ in range(20)]
        late = cache.create("late", META)
        for _ in range(10):
            await trio.sleep(0.15)
            cache.schedule(late)
        assert [gate.entered.is_set() for gate in gates].count(True) == 2
        await trio.sleep(0.9)
        assert [gate.entered.is_set() for gate in gates].count(True) == rig.settings.uploads
        for gate in gates:
            gate.open()
        await trio.sleep(2)
        assert len(rig.keys()) == 21
        assert late.state is State.CLEAN
