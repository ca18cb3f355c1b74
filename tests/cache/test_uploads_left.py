"""Multipart uploads that came to nothing: begun anew, and aborted in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from s3vol.errors import NotFound, Unavailable
from s3vol.types import MIB
from tests.cache.rig import META, Rig

SIZE_BYTES = 40 * MIB


async def _begin_in_vain(rig: Rig) -> None:
    """A large object, a change of it that fails, and an abort that fails, too."""
    await rig.other.put("big", bytes(SIZE_BYTES), metadata=META)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.other.head("big"))
        await cache.write(content, 0, b"new")
        rig.faults.fail_next("complete_upload")
        rig.faults.fail_next("abort_upload")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        assert len(rig.bucket.uploads) == 1


async def _until_no_upload(rig: Rig) -> None:
    with trio.fail_after(20):
        while rig.bucket.uploads:  # noqa: ASYNC110 - the memory bucket tells nobody
            await trio.sleep(0.01)


async def test_an_upload_that_could_not_be_aborted_is_aborted_later(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "cache")
    await rig.other.put("big", bytes(SIZE_BYTES), metadata=META)
    async with rig.cache() as cache:
        content = cache.attach(await rig.other.head("big"))
        await cache.write(content, 0, b"new")
        rig.faults.fail_next("complete_upload")
        rig.faults.fail_next("abort_upload", times=2)  # once more than the first try of the background
        with pytest.raises(Unavailable):
            await cache.publish(content)
        assert len(rig.bucket.uploads) == 1
        await _until_no_upload(rig)


async def test_the_next_start_aborts_what_a_process_left_behind_although_its_first_try_fails(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "cache")
    await _begin_in_vain(rig)
    twin = rig.crashed(tmp_path / "twin")
    twin.faults.fail_next("abort_upload")
    async with twin.cache():
        await _until_no_upload(twin)


async def test_an_upload_whose_parts_the_store_has_lost_is_dropped_and_begun_anew(tmp_path: Path) -> None:
    """As MinIO answers after it was killed within a Complete: the id is known, and its parts are not."""
    rig = Rig(tmp_path / "cache")
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        await cache.truncate(content, SIZE_BYTES)
        rig.faults.fail_next("complete_upload", NotFound("complete big: (400 InvalidPart)"))
        version = await cache.publish(content)
        assert (await rig.other.head("big")).version == version
        assert rig.body("big") == bytes(SIZE_BYTES)
        assert not rig.bucket.uploads


async def test_a_stream_that_is_dropped_before_its_task_ran_leaves_no_upload(rig: Rig) -> None:
    async with rig.cache() as cache:
        content = cache.create("f", META)
        for at in range(0, 64 * MIB, 8 * MIB):
            await cache.write(content, at, bytes(8 * MIB))
        assert content.stream is not None
        await cache.parts.sender.drop_stream(content)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert not rig.bucket.uploads
