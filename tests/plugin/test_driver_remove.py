"""Remove: never while somebody has the volume, never through a mount, and seen by whoever mounts at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from s3vol.errors import NotFound, S3volError, UsageError
from s3vol_plugin.base import Left
from s3vol_plugin.driver import Request
from s3vol_plugin.state import Record
from s3vol_plugin.volume import Volume
from tests.plugin.fakes import rig, volume

WEB = volume("web")
ERASED = volume("tmp", 2, on_remove="delete")


async def test_a_removed_volume_is_a_tombstone_and_its_objects_stay(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        assert await it.driver.remove(Request("web")) == {}
        assert it.registry.bucket["web"].removed
        with pytest.raises(NotFound):
            await it.driver.get(Request("web"))
        await trio.sleep(1)
        assert it.deleted == []


async def test_dockerd_cannot_remove_a_sticky_volume(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(volume("kept", 3, sticky=True))
        with pytest.raises(UsageError, match="sticky; `s3vol volume rm kept`"):
            await it.driver.remove(Request("kept"))
        assert not it.registry.bucket["kept"].removed


async def test_objects_are_deleted_only_where_it_was_asked_for_and_after_the_tombstone(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        await it.driver.remove(Request("tmp"))
        await trio.sleep(1)
        assert it.registry.bucket["tmp"].removed
        assert it.deleted == ["tmp"]


async def test_a_volume_that_other_nodes_hold_is_refused_with_their_names(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        await it.registry.hold(ERASED, "node3")
        await it.registry.hold(ERASED, "node2")
        await it.registry.hold(ERASED, "here")  # left from an earlier run; nothing of it is here
        with pytest.raises(UsageError, match="mounted on node2, node3"):
            await it.driver.remove(Request("tmp"))
        await trio.sleep(1)
        assert (it.registry.bucket["tmp"].removed, it.deleted) == (False, [])


async def test_a_mount_on_another_node_in_the_same_moment_wins(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)

        def mount_elsewhere(removed: Volume) -> None:
            it.registry.held.setdefault(removed.uuid, {})["node2"] = 0.0

        it.registry.on_remove = mount_elsewhere
        with pytest.raises(UsageError, match="node2"):
            await it.driver.remove(Request("tmp"))
        await trio.sleep(1)
        assert (it.registry.bucket["tmp"].removed, it.deleted) == (False, [])


async def test_a_volume_in_use_here_is_refused(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        with pytest.raises(UsageError, match=r"in use on this node \(here\) by 1"):
            await it.driver.remove(Request("web"))
        it.use(WEB.uuid)
        await it.unmount("web")  # the count is gone, but the kernel shows it
        with pytest.raises(UsageError, match="in use on this node"):
            await it.driver.remove(Request("web"))
        assert it.registry.bucket["web"] == WEB


async def test_a_volume_that_is_mounted_and_unused_is_unmounted_first(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.state.save(Record(WEB, dirty=True))
        it.workers.run(WEB)
        await it.driver.remove(Request("web"))
        assert (it.workers.stopped, it.state.all()) == (["web"], [])


async def test_a_volume_with_data_that_is_only_here_is_refused(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.state.save(Record(WEB, dirty=True))
        it.workers.run(WEB)
        it.workers.left = Left(1, 10)
        for _ in range(2):  # served, and then not
            with pytest.raises(UsageError, match="not published yet"):
                await it.driver.remove(Request("web"))
        assert it.registry.bucket["web"] == WEB


async def test_a_mount_that_hangs_in_use_is_not_removed(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        await it.state.save(Record(ERASED))
        it.workers.run(ERASED)
        it.workers.stop_errors = [S3volError("volume tmp: is in use")]
        with pytest.raises(S3volError, match="is in use"):
            await it.driver.remove(Request("tmp"))
        await trio.sleep(1)
        assert it.deleted == []


async def test_a_removal_is_bounded_and_changes_nothing_while_the_bucket_is_silent(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        it.registry.silent = True
        begin = trio.current_time()
        with pytest.raises(S3volError, match="not removed within 45 s"):
            await it.driver.remove(Request("tmp"))
        assert trio.current_time() - begin == pytest.approx(45)
        assert it.deleted == []
