"""Reads that wait while the content changes under them."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.errors import Unavailable
from s3vol.store import aligned
from s3vol.types import MIB
from tests.cache.rig import Rig, content_of
from tests.cache.test_loader import BODY as COLD_BODY
from tests.cache.test_loader import cold

BODY = random.Random(7).randbytes(20 * MIB + 777)


async def test_a_run_that_waited_while_the_file_was_cut_and_published_is_no_error(rig: Rig) -> None:
    rig.limit(downloads=1)
    async with rig.cache(serve=False) as cache:
        other = cache.attach(await rig.put("other", BODY[:MIB]))
        content = cache.attach(await rig.put("f", BODY))
        gate = rig.faults.hold("get")
        got: list[bytes] = []

        async def read() -> None:
            got.append(bytes(await cache.read(content, 17 * MIB, 3 * MIB)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.read, other, 0, 10)
            await gate.entered.wait()
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await cache.truncate(content, 18 * MIB)
            await cache.publish(content)
            gate.open()
        assert got == [BODY[17 * MIB : 18 * MIB]]


async def test_a_read_that_waited_while_the_file_was_cut_ends_there_and_has_no_zeros(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        gate = rig.faults.hold_reply("get")
        got: list[bytes] = []

        async def read() -> None:
            got.append(bytes(await cache.read(content, 17 * MIB, 3 * MIB)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await gate.entered.wait()
            await cache.truncate(content, 18 * MIB)
            gate.open()
        assert got == [BODY[17 * MIB : 18 * MIB]]


async def test_after_a_lost_reply_reads_are_not_stale(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.write(content, 0, b"ours")
        rig.faults.apply_then_fail("complete_upload")
        with pytest.raises(Unavailable):
            await cache.parts.publisher.publish(content)
        assert bytes(await cache.read(content, 12 * MIB, 100)) == BODY[12 * MIB : 12 * MIB + 100]


async def test_a_read_after_a_crash_finds_out_about_the_publish_that_was_at_work(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", BODY))
        await cache.write(content, 0, b"ours")
        await cache.sync(content)
        gate = rig.faults.hold_reply("complete_upload")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            twin = rig.crashed(tmp_path / "twin")
            gate.open()
    async with twin.cache(serve=False) as cache:
        (content,) = cache.pending()
        cache.refer(content)
        assert bytes(await cache.read(content, 12 * MIB, 100)) == BODY[12 * MIB : 12 * MIB + 100]


async def test_no_memory_for_a_load_costs_no_background(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(errno.ENOMEM, "no memory")

    async with cold(rig) as (cache, content):
        monkeypatch.setattr(aligned, "_map", none)
        assert await content_of(cache, content) == COLD_BODY
