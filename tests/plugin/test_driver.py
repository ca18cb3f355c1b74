"""The verbs apart from HTTP: questions, Create, Mount, Unmount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.errors import Corrupt, Denied, NotFound, S3volError, Unavailable, UsageError
from s3vol_plugin.base import Left
from s3vol_plugin.driver import MOUNT_S, UNMOUNT_S, Request
from s3vol_plugin.state import Record
from tests.plugin.fakes import rig, volume

WEB = volume("web")


# Questions.


async def test_get_answers_from_memory_what_a_volume_is(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.registry.silent = True
        with trio.fail_after(0.2):
            found = (await it.driver.get(Request("web")))["Volume"]
        assert (found["Name"], found["CreatedAt"]) == ("web", "2026-01-02T03:04:05Z")
        assert "Mountpoint" not in found
        assert found["Status"]["state"] == "idle"
        assert it.registry.asked == []


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-20 03:35:03", "2026-11-20T03:35:03"])
async def test_a_date_that_dockerd_cannot_decode_is_left_out(tmp_path: Path, text: str) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(volume("web").__class__("web", WEB.uuid, WEB.source, text, "here"))
        found = (await it.driver.get(Request("web")))["Volume"]
        assert "CreatedAt" not in found
        assert isinstance(found["Status"], dict)


async def test_status_hides_options_that_sound_like_secrets(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(volume("web", options={"session-token": "abc", "cache-size": "2G"}))
        status = (await it.driver.get(Request("web")))["Volume"]["Status"]
        assert status["options"] == {"session-token": "***", "cache-size": "2G"}


async def test_an_unknown_name_is_none_when_the_bucket_says_so(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        with pytest.raises(NotFound, match="no such volume"):
            await it.driver.get(Request("other"))
        assert it.registry.asked == ["find other"]


async def test_a_volume_made_on_another_node_is_found_at_once_however_fresh_the_copy_is(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.registry.add(volume("new", 2), known=False)
        assert (await it.driver.get(Request("new")))["Volume"]["Name"] == "new"


async def test_an_old_copy_decides_when_the_bucket_is_silent_and_is_not_waited_for_again(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.registry.silent = True
        await trio.sleep(10)
        begin = trio.current_time()
        with pytest.raises(NotFound):
            await it.driver.get(Request("other"))
        assert trio.current_time() - begin == pytest.approx(2.0)
        begin = trio.current_time()
        with pytest.raises(NotFound):
            await it.driver.get(Request("another"))
        assert trio.current_time() == begin


@pytest.mark.parametrize("how", ["silent", "refused"])
async def test_without_any_copy_and_without_the_bucket_nothing_can_be_known(
    tmp_path: Path, hurried: object, how: str
) -> None:
    async with rig(tmp_path) as it:
        setattr(it.registry, how, True)
        for verb in (it.driver.get, it.driver.path, it.driver.list):
            with pytest.raises(Unavailable):
                await verb(Request("web"))


async def test_a_damaged_record_is_not_no_volume(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)

        def damaged(name: str) -> None:
            raise Corrupt("record web: is not a volume record")

        it.registry.get = damaged  # type: ignore[method-assign]  # the registry says it so
        with pytest.raises(Corrupt):
            await it.driver.get(Request("web"))


HOSTILE = ["", ".", "..", "../../x", "/abs", "a/b", "a\nb", "a\0b", "-a", "x" * 129, "ä", "a b", "%2e%2e", "\ud800"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_is_no_volume_and_becomes_no_path(tmp_path: Path, name: str) -> None:
    async with rig(tmp_path) as it:
        before = sorted(os.walk(tmp_path))
        for question in (it.driver.get, it.driver.path):
            with pytest.raises(NotFound, match="no such volume"):
                await question(Request(name))
        for order in (it.driver.create, it.driver.mount, it.driver.remove):
            with pytest.raises((UsageError, NotFound)):
                await order(Request(name, "c1"))
        await it.unmount(name)
        assert it.registry.asked == []
        assert sorted(os.walk(tmp_path)) == before


async def test_list_shows_the_copy_and_what_is_used_here(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(volume("b", 2), WEB)
        await it.state.save(Record(volume("lost", 3), refs={"c": 1}))
        await it.state.save(Record(volume("old", 4)))
        it.workers.run(WEB)
        listed = (await it.driver.list(Request()))["Volumes"]
        point = str(it.settings.mountpoint(WEB.uuid))
        assert listed == [{"Name": "b"}, {"Name": "lost"}, {"Name": "web", "Mountpoint": point}]


async def test_path_is_never_empty(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        assert (await it.driver.path(Request("web")))["Mountpoint"] == str(it.settings.mountpoint(WEB.uuid))


# Create.


async def test_create_twice_is_the_same_volume_and_other_options_are_refused(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        assert await it.driver.create(Request("web", options={"cache-size": "1G"})) == {}
        assert await it.driver.create(Request("web", options={"cache-size": "1G"})) == {}
        with pytest.raises(UsageError, match="exists already"):
            await it.driver.create(Request("web", options={"cache-size": "2G"}))


async def test_create_says_which_option_is_wrong_and_makes_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        with pytest.raises(UsageError, match="option bad"):
            await it.driver.create(Request("web", options={"bad": "1"}))
        assert it.registry.bucket == {}


async def test_what_a_volume_needs_is_made_before_its_record_or_there_is_no_record(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.driver.create(Request("web", options={"cache-size": "1G"}))
        assert it.prepared == [("web", {"cache-size": "1G"})]
        with pytest.raises(UsageError, match="may not create it"):
            await it.driver.create(Request("other", options={"refused": "yes"}))
        assert list(it.registry.bucket) == ["web"]


async def test_create_is_bounded_when_the_bucket_is_silent(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.silent = True
        begin = trio.current_time()
        with pytest.raises(Unavailable, match="30 s"):
            await it.driver.create(Request("web"))
        assert trio.current_time() - begin == pytest.approx(30)


# Mount and Unmount.


async def test_a_mount_is_counted_on_disk_before_it_is_answered_and_given_back(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        assert await it.mount("web") == str(it.settings.mountpoint(WEB.uuid))
        found = it.reloaded().get(WEB.uuid)
        assert found == Record(WEB, refs={"c1": 1}, dirty=True)
        assert it.registry.held == {WEB.uuid: {"here": pytest.approx(0, abs=1)}}
        await it.unmount("web")
        assert it.workers.stopped == ["web"]
        assert it.reloaded().all() == []
        assert it.registry.held == {WEB.uuid: {}}


async def test_the_same_id_twice_is_two_uses(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        it.use(WEB.uuid)
        await it.mount("web")
        assert it.refs(WEB.uuid) == {"c1": 2}
        await it.unmount("web")
        assert (it.refs(WEB.uuid), it.workers.stopped) == ({"c1": 1}, [])
        it.unuse(WEB.uuid)
        await it.unmount("web")
        assert it.workers.stopped == ["web"]


async def test_a_count_that_leaked_in_a_crash_of_dockerd_goes_with_the_last_container(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        await it.mount("web")  # again with the old ID, and no Unmount in between
        it.use(WEB.uuid)
        await trio.sleep(600)
        it.unuse(WEB.uuid)
        await it.unmount("web")
        assert it.workers.stopped == ["web"]
        assert it.state.all() == []


async def test_what_the_kernel_shows_as_used_is_not_unmounted(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        it.use(WEB.uuid)
        await it.unmount("web")
        assert (it.refs(WEB.uuid), it.workers.stopped) == ({}, [])


async def test_unmount_of_what_is_not_known_is_success(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.unmount("nobody", "c9")


async def test_unmount_works_by_this_node_s_record_when_the_registry_has_another_volume_of_the_name(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        it.registry.add(volume("web", 2))
        await it.unmount("web")
        assert it.state.all() == []
        assert it.workers.running == {}


async def test_unmount_is_answered_in_time_and_goes_on_until_all_is_published(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        it.workers.statuses[WEB.uuid] = {"dirty_bytes": 5, "dirty_files": 1}
        begin = trio.current_time()
        await it.unmount("web")
        assert trio.current_time() - begin <= UNMOUNT_S
        assert it.workers.stopped == []  # it goes on serving and publishing
        assert await it.mount("web", "c2") == str(it.settings.mountpoint(WEB.uuid))
        assert it.workers.started == ["web"]  # and a Mount finds it
        it.workers.statuses.clear()
        await it.unmount("web", "c2")
        assert it.workers.stopped == ["web"]


async def test_what_an_unmount_left_in_the_journal_is_remembered(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        it.workers.left = Left(2, 4096)
        await it.unmount("web")
        assert it.reloaded().get(WEB.uuid) == Record(WEB, dirty=True)
        assert it.registry.held[WEB.uuid]  # so that no other node removes it


async def test_a_failed_unmount_is_an_answer_all_the_same(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web")
        it.workers.stop_errors = [S3volError("is in use"), S3volError("is in use")]
        await it.unmount("web")
        assert it.workers.stopped == ["web"]


async def test_a_failed_mount_leaves_nothing(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.workers.start_errors = [Denied("bucket: access denied; use other credentials")]
        with pytest.raises(Denied, match="other credentials"):
            await it.mount("web")
        assert (it.refs(WEB.uuid), it.workers.running) == ({}, {})
        await trio.sleep(1)
        assert (it.state.all(), it.registry.held[WEB.uuid]) == ([], {})
        assert it.reloaded().all() == []


async def test_a_failed_mount_keeps_the_uses_of_others(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web", "c1")
        del it.workers.running[WEB.uuid]
        it.workers.start_errors = [S3volError("no")]
        with pytest.raises(S3volError):
            await it.mount("web", "c2")
        assert it.refs(WEB.uuid) == {"c1": 1}


async def test_a_mount_has_a_deadline_and_is_undone(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.workers.start_s = 1000
        begin = trio.current_time()
        with pytest.raises(S3volError):
            await it.mount("web")
        assert trio.current_time() - begin == pytest.approx(MOUNT_S, abs=1)
        await trio.testing.wait_all_tasks_blocked()
        assert (it.state.all(), it.workers.running) == ([], {})


async def test_a_use_is_dropped_when_dockerd_has_hung_up(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        with pytest.raises(Unavailable, match="hung up"):
            await it.driver.mount(Request("web", "c1", gone=lambda: True))
        assert it.refs(WEB.uuid) == {}
        await trio.sleep(1)
        assert it.workers.running == {}


async def test_a_mount_without_a_mount_point_is_an_error(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.workers.run(WEB)
        it.workers.running[WEB.uuid] = it.workers.running[WEB.uuid].__class__(WEB.uuid, 1, "", "0:40")
        with pytest.raises(S3volError, match="no mount point"):
            await it.mount("web")


async def test_a_mount_waits_for_a_bucket_that_is_starting(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.registry.refused = True

        async def start_bucket() -> None:
            await trio.sleep(20)
            it.registry.refused = False

        it.tasks.start_soon(start_bucket)
        assert await it.mount("web")


@pytest.mark.parametrize(
    ("how", "says"), [("refused", "connection refused"), ("silent", r"registry of volumes \(file://.*\) .* within 7 s")]
)
async def test_a_mount_waits_for_the_bucket_as_long_as_the_volume_s_timeout_says(
    tmp_path: Path, hurried: object, how: str, says: str
) -> None:
    async with rig(tmp_path) as it:
        web = volume("web", options={"timeout": "7s"})
        it.registry.add(web)
        setattr(it.registry, how, True)
        begin = trio.current_time()
        with pytest.raises(S3volError, match=says):
            await it.mount("web")
        assert 5 <= trio.current_time() - begin <= 8
        assert (it.refs(web.uuid), it.workers.running) == ({}, {})


async def test_a_second_use_needs_no_bucket(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        await it.mount("web", "c1")
        it.registry.silent = True
        with trio.fail_after(0.2):
            assert await it.mount("web", "c2")


async def test_mounts_wait_until_processes_of_an_earlier_run_are_found(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path, adopted=False) as it:
        it.registry.add(WEB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.mount, "web")
            await trio.sleep(5)
            assert it.workers.started == []
            it.node.adopted.set()


async def test_mounts_of_one_volume_start_one_process_and_one_of_another_does_not_wait(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB, volume("b", 2))
        it.workers.start_s = 50
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(it.mount, "web", f"c{number}")
            await trio.sleep(1)
            it.workers.start_s = 0.5
            with trio.fail_after(2):
                await it.mount("b")
        assert it.workers.started == ["web", "b"]
        assert len(it.refs(WEB.uuid)) == 20


async def test_a_volume_that_was_removed_and_made_anew_elsewhere_is_the_new_one(
    tmp_path: Path, hurried: object
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        it.registry.add(volume("web", 2), known=False)
        assert await it.mount("web") == str(it.settings.mountpoint(volume("web", 2).uuid))
        assert it.state.get(WEB.uuid) is None


async def test_a_volume_that_is_gone_is_not_mounted(tmp_path: Path, hurried: object) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)
        del it.registry.bucket["web"]
        with pytest.raises(NotFound, match="docker volume create"):
            await it.mount("web")
        await trio.sleep(1)
        assert it.state.all() == []
        assert it.workers.started == []


async def test_nothing_is_mounted_when_the_use_cannot_be_saved(
    tmp_path: Path, hurried: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        it.registry.add(WEB)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(S3volError, match="No space left"):
                await it.mount("web")
        assert (it.state.all(), it.workers.started) == ([], [])
        assert await it.mount("web")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            await it.unmount("web")  # a container is gone, whether the disk is full or not
        assert it.refs(WEB.uuid) == {}
        assert it.workers.running == {}
