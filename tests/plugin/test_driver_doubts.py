"""What is refused, cut short, or met in a rare moment leaves no volume half done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.errors import S3volError, Unavailable, UsageError
from s3vol_plugin.base import Holder, Left, Usage
from s3vol_plugin.driver import Request
from s3vol_plugin.kernel import LinuxKernel
from s3vol_plugin.presence import Presence
from s3vol_plugin.state import Record
from s3vol_plugin.volume import Volume
from tests.plugin.fakes import rig, volume
from tests.plugin.rig import settings_in

WEB = volume("web")
ERASED = volume("tmp", 2, on_remove="delete")


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("why", ["mounted elsewhere", "bucket down"])
async def test_a_refused_removal_does_not_forget_what_this_node_has_not_published(
    tmp_path: Path, hurried: object, why: str, served: bool
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        await it.state.save(Record(ERASED, dirty=True))
        if served:
            it.workers.run(ERASED)
            it.workers.left = Left(1, 10)
        if why == "bucket down":
            it.registry.refused = True
        else:
            it.registry.held[ERASED.uuid] = {"node2": 0.0}
        with pytest.raises(S3volError):
            await it.driver.remove(Request("tmp"))
        assert it.registry.bucket["tmp"] == ERASED
        record = it.reloaded().get(ERASED.uuid)
        assert record is not None
        assert record.dirty
        it.registry.refused, it.workers.left = False, Left(0, 0)
        it.workers.started.clear()
        it.tasks.start_soon(it.upkeep.run)
        await trio.sleep(100)
        assert (it.workers.started, it.state.all()) == (["tmp"], [])  # published, and let go


async def test_a_removal_whose_time_ends_behind_the_tombstone_is_undone(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        ask = it.registry.holders

        async def holders(asked: Volume) -> Sequence[Holder]:
            if it.registry.bucket["tmp"].removed:
                await trio.sleep_forever()
            return await ask(asked)

        monkeypatch.setattr(it.registry, "holders", holders)
        begin_s = trio.current_time()
        with pytest.raises(Unavailable, match="not removed within 45 s"):
            await it.driver.remove(Request("tmp"))
        assert trio.current_time() - begin_s < 60
        assert not it.registry.bucket["tmp"].removed


@pytest.mark.parametrize("name", ["web", "tmp"])
async def test_a_volume_whose_process_has_no_record_is_not_removed_under_its_containers(
    tmp_path: Path, hurried: object, name: str
) -> None:
    one = {"web": WEB, "tmp": ERASED}[name]
    async with rig(tmp_path) as it:
        it.registry.add(one)
        it.workers.run(one)
        it.use(one.uuid)
        with pytest.raises(UsageError, match="in use on this node"):
            await it.driver.remove(Request(name))
        await trio.sleep(1)
        assert (it.registry.bucket[name].removed, it.deleted, it.workers.stopped) == (False, [], [])


async def test_a_use_of_a_process_that_has_no_record_says_that_its_journal_may_hold_data(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.workers.run(WEB)
        await it.mount("web")
        record = it.reloaded().get(WEB.uuid)
        assert record is not None
        assert (record.refs, record.dirty) == ({"c1": 1}, True)


async def test_a_process_that_dies_while_containers_are_healed_is_started_again_at_once(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Usage(7, "/d", "/", read_only=False)
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.state.save(Record(WEB, refs={"c1": 1}, dirty=True))
        it.workers.run(WEB)
        it.use(WEB.uuid)
        it.tasks.start_soon(it.upkeep.run)
        await trio.sleep(500)
        it.leave_dead(WEB, dead)
        heal = it.kernel.heal

        def die_first(usage: Usage, mountpoint: str) -> None:
            monkeypatch.setattr(it.kernel, "heal", heal)
            heal(usage, mountpoint)
            it.workers.crash(WEB.uuid)

        monkeypatch.setattr(it.kernel, "heal", die_first)
        it.workers.crash(WEB.uuid)
        await trio.sleep(5)
        assert it.workers.started == ["web", "web"]


@pytest.mark.parametrize("living", [2, 0])
async def test_a_volume_is_mounted_again_from_any_container_that_still_has_it(tmp_path: Path, living: int) -> None:
    class Kernel(LinuxKernel):
        def restore(self, usage: Usage, mountpoint: str) -> None:
            asked.append(usage.pid)
            if usage.pid != living:
                raise S3volError(f"process {usage.pid} has ended")

    asked: list[int] = []
    presence = Presence(settings_in(tmp_path), Kernel())
    users = [Usage(pid, "/d", root, read_only=False) for pid, root in ((1, "/"), (9, "/sub"), (2, "/"), (3, "/"))]
    if living:
        await presence.put_back(WEB, users)
        assert asked == [1, 2]
        return
    with pytest.raises(S3volError, match="process 3 has ended"):
        await presence.put_back(WEB, users)


async def test_a_removal_whose_time_ends_while_the_tombstone_is_on_its_way_is_undone(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        remove = it.registry.remove

        async def arrive_late(removed: Volume) -> None:
            await remove(removed)  # a store waits for the end of a change, and then is cancelled
            await trio.sleep_forever()

        monkeypatch.setattr(it.registry, "remove", arrive_late)
        with pytest.raises(Unavailable, match="not removed within 45 s"):
            await it.driver.remove(Request("tmp"))
        assert (it.registry.bucket["tmp"].removed, it.deleted) == (False, [])


async def test_a_removal_whose_answer_is_lost_is_undone(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)
        remove = it.registry.remove

        async def lose_the_answer(removed: Volume) -> None:
            await remove(removed)
            raise Unavailable("no answer")

        monkeypatch.setattr(it.registry, "remove", lose_the_answer)
        with pytest.raises(Unavailable, match="no answer"):
            await it.driver.remove(Request("tmp"))
        assert (it.registry.bucket["tmp"].removed, it.deleted) == (False, [])


async def test_a_removal_that_never_arrived_says_why_and_not_that_there_is_nothing_to_undo(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(ERASED)

        async def refuse(_: object) -> Volume:
            raise Unavailable("no answer")

        async def nothing_there(name: str) -> Volume:
            raise UsageError(f"volume {name}: is there, it was not removed")

        monkeypatch.setattr(it.registry, "remove", refuse)
        monkeypatch.setattr(it.registry, "undelete", nothing_there)
        with pytest.raises(Unavailable, match="no answer"):
            await it.driver.remove(Request("tmp"))
