"""What happens without being asked: taking over, recovery, left-over counts, heartbeats."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from s3vol.errors import S3volError, Unavailable
from s3vol_plugin.base import Usage
from s3vol_plugin.docker_api import Container, Docker
from s3vol_plugin.report import metrics, volume_status
from s3vol_plugin.state import Record, State
from s3vol_plugin.upkeep import HOLDS, Upkeep
from s3vol_plugin.volume import Volume
from tests.plugin.fakes import BOOT, Rig, rig, volume
from tests.plugin.rig import settings_in

WEB = volume("web")
DEAD = Usage(7, "/d", "/", read_only=False)


@contextlib.asynccontextmanager
async def running(it: Rig) -> AsyncIterator[None]:
    """The upkeep runs during the block."""
    it.tasks.start_soon(it.upkeep.run)
    yield


async def remembered(folder: Path, record: Record, boot: str = BOOT) -> None:
    """What an earlier run left."""
    await State(settings_in(folder).volumes_directory, boot).save(record)


async def test_processes_of_an_earlier_run_are_taken_over_and_go_on(tmp_path: Path, hurried: object) -> None:
    await remembered(tmp_path, Record(WEB, refs={"c1": 1}, dirty=True))
    async with rig(tmp_path, adopted=False) as it, running(it):
        it.registry.add(WEB)
        it.workers.run(WEB)
        it.use(WEB.uuid)
        with trio.fail_after(1):
            await it.upkeep.recovered.wait()
        await trio.sleep(1000)
        assert (it.workers.started, it.workers.stopped, it.refs(WEB.uuid)) == ([], [], {"c1": 1})


async def test_what_was_used_and_is_not_served_is_served_again_and_containers_are_healed(
    tmp_path: Path, hurried: object
) -> None:
    await remembered(tmp_path, Record(WEB, refs={"c1": 1}, dirty=True))
    async with rig(tmp_path, adopted=False) as it:
        it.registry.add(WEB)
        it.leave_dead(WEB, DEAD)
        async with running(it):
            await it.upkeep.recovered.wait()
            point = str(it.settings.mountpoint(WEB.uuid))
            assert it.kernel.healed == [(DEAD, point)]
            assert it.node.counters["heals"] == 1
            assert it.reloaded().all() == [Record(WEB, refs={"c1": 1}, dirty=True, heals=1)]


async def test_a_dockerd_that_starts_before_processes_of_an_earlier_run_are_found_disturbs_nothing(
    tmp_path: Path, hurried: object
) -> None:
    await remembered(tmp_path, Record(WEB, refs={"c1": 1}, dirty=True))
    async with rig(tmp_path, adopted=False) as it:
        it.registry.add(WEB)
        it.leave_dead(WEB, DEAD)
        it.upkeep.reconcile_soon()
        await trio.sleep(10)
        it.workers.run(WEB)
        async with running(it):
            await it.upkeep.recovered.wait()
            assert [usage for usage, _ in it.kernel.healed] == [DEAD]
            assert it.workers.started == []


async def test_after_a_reboot_what_a_journal_may_hold_is_published_and_let_go(tmp_path: Path, hurried: object) -> None:
    await remembered(tmp_path, Record(WEB, refs={"c1": 1}, dirty=True), boot="before")
    async with rig(tmp_path, adopted=False) as it, running(it):
        it.registry.add(WEB)
        await it.upkeep.recovered.wait()
        await trio.sleep(10)
        assert (it.workers.started, it.workers.stopped, it.state.all()) == (["web"], ["web"], [])


async def test_a_record_without_anything_behind_it_is_forgotten(tmp_path: Path, hurried: object) -> None:
    await remembered(tmp_path, Record(WEB))
    async with rig(tmp_path, adopted=False) as it, running(it):
        it.registry.add(WEB)
        await it.upkeep.recovered.wait()
        assert (it.workers.started, it.state.all()) == ([], [])


async def test_a_process_without_a_record_gets_one_and_is_let_go_when_unused(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path, adopted=False) as it:
        it.registry.add(WEB)
        it.workers.run(WEB)
        async with running(it):
            await it.upkeep.recovered.wait()
            await trio.sleep(1)
            assert (it.workers.stopped, it.state.all()) == (["web"], [])


async def test_a_process_that_dies_is_started_again_and_containers_are_healed(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        await trio.sleep(1)
        it.leave_dead(WEB, DEAD)
        it.workers.crash(WEB.uuid)
        await trio.sleep(1)
        assert it.workers.started == ["web", "web"]
        assert [usage for usage, _ in it.kernel.healed] == [DEAD]
        assert it.node.counters["recoveries"] == 1


async def test_what_ends_while_all_is_being_ended_is_not_started_again(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        await trio.sleep(1)
        it.upkeep.recover_no_more()
        it.workers.crash(WEB.uuid)
        await trio.sleep(1)
        assert it.workers.started == ["web"]


async def test_a_recovery_that_fails_is_tried_until_it_works_and_says_why(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        it.workers.start_errors = [Unavailable("endpoint: connection refused")] * 4
        it.workers.crash(WEB.uuid)
        await trio.sleep(3)
        facts = it.node.facts(WEB.uuid)
        assert (facts.recovering, facts.last_error) == (True, "endpoint: connection refused")
        await trio.sleep(60)
        assert it.workers.get(WEB.uuid)
        assert (facts.recovering, facts.last_error) == (False, "")


async def test_a_process_that_dies_again_and_again_is_not_started_without_pause(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        with trio.move_on_after(100):
            while True:
                if it.workers.get(WEB.uuid):
                    it.workers.crash(WEB.uuid)
                await trio.sleep(0.1)
        assert 3 < len(it.workers.started) < 15


async def test_a_container_that_cannot_be_healed_does_not_keep_others_from_it(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        second = Usage(8, "/e", "/sub", read_only=True)
        it.leave_dead(WEB, DEAD, second)
        it.kernel.heal_errors = [S3volError("no such process")]
        it.workers.crash(WEB.uuid)
        await trio.sleep(1)
        assert [usage for usage, _ in it.kernel.healed] == [second]
        assert it.node.counters["heals_failed"] == 1


async def test_dead_mounts_of_another_volume_of_the_name_are_not_touched(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.leave_dead(WEB, DEAD)
        it.registry.add(volume("web", 2))
        await it.mount("web")
        assert it.kernel.healed == []


class Engine(Docker):
    """A dockerd that runs containers with these volumes; None: it does not answer."""

    running: Sequence[str] | None = None

    def containers(self) -> Sequence[Container]:
        if self.running is None:
            raise Unavailable("docker.sock: connection refused")
        return [Container("id", "name", True, {name: "s3vol" for name in self.running})]


class Asked(Engine):
    running = ("web",)


class Idle(Engine):
    running = ("other",)


@pytest.mark.parametrize(("engine", "kept"), [(Asked, True), (Idle, False), (Engine, False)])
async def test_left_over_counts_are_dropped_after_three_minutes_unless_dockerd_runs_such_a_container(
    tmp_path: Path, hurried: object, engine: type[Engine], kept: bool
) -> None:
    async with rig(tmp_path) as it:
        it.upkeep = Upkeep(it.node, engine(tmp_path / "docker.sock"))
        async with running(it):
            it.registry.add(WEB)
            await it.mount("web")
            await trio.sleep(120)
            assert it.refs(WEB.uuid) == {"c1": 1}
            await trio.sleep(150)
            assert it.refs(WEB.uuid) == ({"c1": 1} if kept else {})
            assert bool(it.workers.get(WEB.uuid)) is kept


async def test_a_volume_whose_count_was_lost_is_kept_while_the_kernel_shows_its_use(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        it.use(WEB.uuid)
        await it.unmount("web")
        await trio.sleep(1000)
        assert it.workers.get(WEB.uuid)
        it.unuse(WEB.uuid)
        await trio.sleep(120)
        assert (it.workers.get(WEB.uuid), it.state.all()) == (None, [])


async def test_data_of_a_volume_that_was_removed_elsewhere_is_kept_and_not_published(
    tmp_path: Path, hurried: object
) -> None:
    await remembered(tmp_path, Record(WEB, dirty=True), boot="before")
    async with rig(tmp_path, adopted=False) as it:
        it.registry.add()  # a true copy, without this volume
        async with running(it):
            await trio.sleep(300)
            assert (it.workers.started, it.state.all()) == ([], [Record(WEB, dirty=True)])
            assert "undelete" in it.node.facts(WEB.uuid).last_error
            it.registry.add(WEB)
            await trio.sleep(180)
            assert (it.workers.started, it.state.all()) == (["web"], [])


async def test_what_this_node_has_is_said_again_and_again_and_others_are_learned(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        it.use(WEB.uuid)
        await it.registry.hold(WEB, "node2")
        await trio.sleep(600)
        assert trio.current_time() - it.registry.held[WEB.uuid]["here"] <= 61
        assert [holder.node for holder in it.node.facts(WEB.uuid).holders] == ["here", "node2"]


async def test_the_copy_is_refreshed_and_a_silent_bucket_is_noted(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        await trio.sleep(200)
        assert (it.registry.age_s or 99) <= 31
        it.registry.refused = True
        await trio.sleep(100)
        assert "refused" in it.node.registry_error
        assert it.node.registry_down_since_s is not None
        it.registry.refused = False
        await trio.sleep(60)
        assert it.node.registry_error == ""


async def test_what_nobody_needs_any_more_is_cleared_away_every_hour(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        await trio.sleep(2 * 3600 + 60)
        assert it.registry.asked.count("clear") == 3


async def test_an_unforeseen_failure_does_not_end_the_upkeep(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        monkeypatch.setattr(it.kernel, "usages", lambda *_, **__: 1 // 0)
        await trio.sleep(200)
        assert it.workers.get(WEB.uuid)


async def test_status_shows_what_the_mount_process_says(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it, running(it):
        it.registry.add(WEB)
        await it.mount("web")
        it.workers.statuses[WEB.uuid] = {"dirty_bytes": 5, "endpoint": {"ok": False, "last_error": "503"}}
        await trio.sleep(10)
        status = volume_status(it.node, WEB)
        assert (status["dirty_bytes"], status["backend"], status["state"]) == (5, "down: 503", "degraded")
        assert 's3vol_plugin_volume_dirty_bytes{volume="web"} 5\n' in metrics(it.node)


@pytest.mark.parametrize("at", ["hold other", "hold web"])
async def test_a_volume_that_is_let_go_while_the_node_speaks_is_not_said_to_be_held(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    other = volume("other", 2)
    async with rig(tmp_path) as it:
        it.registry.add(WEB, other)
        await it.state.save(Record(other, refs={"c1": 1}))
        await it.state.save(Record(WEB))
        hold = it.registry.hold

        async def let_go(one: Volume) -> None:
            if f"hold {one.name}" == at:
                async with it.node.lock(WEB.uuid):
                    await it.node.drop(WEB)
            await hold(one)

        monkeypatch.setattr(it.registry, "hold", let_go)
        await it.upkeep.hold()
        assert [holder.node for holder in await it.registry.holders(other)] == ["here"]
        assert await it.registry.holders(WEB) == []  # another node may remove it


async def test_a_registry_that_is_down_is_waited_for_once_and_is_one_line(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    volumes = [volume(f"v{number}", number) for number in range(1, HOLDS + 1)]
    async with rig(tmp_path) as it:
        for each in volumes:
            await it.state.save(Record(each))

        async def wait_in_vain(held: Volume) -> None:
            await trio.sleep(60)
            raise Unavailable(f"no answer about {held.name} within 60 s")

        monkeypatch.setattr(it.registry, "hold", wait_in_vain)
        began_s = trio.current_time()
        await it.upkeep.hold()
        assert trio.current_time() - began_s == 60
        lines = [record.getMessage() for record in caplog.records if "no answer" in record.getMessage()]
        assert len(lines) == 1
        assert f"{HOLDS} volumes" in lines[0]


async def test_a_volume_of_which_nothing_can_be_said_does_not_silence_the_others(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = volume("a", 1), volume("b", 2)
    async with rig(tmp_path) as it:
        it.registry.add(one, two)
        for each in (one, two):
            await it.state.save(Record(each, refs={"c1": 1}))
            it.workers.run(each)
        hold = it.registry.hold

        async def refuse_one(held: Volume) -> None:
            if held == one:
                raise S3volError("access denied")
            await hold(held)

        monkeypatch.setattr(it.registry, "hold", refuse_one)
        it.tasks.start_soon(it.upkeep.run)
        await trio.sleep(10)
        assert list(it.registry.held.get(two.uuid, {})) == ["here"]
