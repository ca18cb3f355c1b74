"""What moby's own tests want of a volume driver, here of this driver under a real dockerd.

1 to 18 are moby's integration-cli/docker_cli_external_volume_driver_test.go, 19 to 21 unit tests of its volume/ and
pkg/plugins/, 22 its tests of managed plugins. moby asks its engine with a fake driver; here the engine is given, and
the driver is asked. A to N are what else was seen to go wrong with drivers. A test without a file is below.

| #  | moby's test | test |
|----|-------------|------|
| 1  | VolumeCLICreateOptionConflict | a_name_belongs_to_one_driver |
| 2  | Named | a_run_with_a_named_volume_creates_mounts_and_unmounts_once |
| 3  | Unnamed | a_run_with_an_anonymous_volume_removes_it_as_well |
| 4  | VolumesFrom | volumes_from_another_container_are_mounted_once_more |
| 5  | DeleteContainer | removing_a_container_removes_its_anonymous_volume_once |
| 6  | LookupNotBlocked | a_driver_that_is_down_does_not_block_this_one |
| 7  | RetryNotImmediatelyExists | a_run_waits_for_a_driver_that_appears_two_seconds_later |
| 8  | BindExternalVolume | inspect_of_a_container_shows_name_and_driver |
| 9  | List | ls_asks_once_and_shows_the_volume |
| 10 | Get | inspect_shows_the_status_and_an_unknown_volume_is_none |
| 11 | WithDaemonRestart | the_driver_is_remembered_over_a_restart_of_dockerd |
| 12 | GetEmptyResponse | a_get_that_was_answered_by_nothing_loses_no_volume |
| 13 | PathCalls | create_and_ls_ask_for_no_path |
| 14 | MountID | every_mount_has_an_id_and_its_unmount_has_the_same |
| 15 | Capabilities | capabilities_are_asked_once_and_the_scope_is_shown |
| 16 | OutOfBandDelete | a_volume_removed_behind_dockerds_back_can_be_created_anew |
| 17 | UnmountOnMountFail | a_mount_that_failed_is_followed_by_no_unmount_and_counted_by_nobody |
| 18 | UnmountOnCp | cp_mounts_and_unmounts_and_a_kill_unmounts |
| 19 | CreateKeepOptsLabelsWhenExistsRemotely | a_volume_that_exists_elsewhere_is_not_created_again |
| 20 | TestVolumeRequestError | the_drivers_own_words_reach_the_user |
| 21 | FailOnce, AbortRetry | an_order_without_a_reply_is_refused_once_and_then_works |
| 22 | TestVolumePlugin | docker/test_managed: a_container_s_data_outlives_a_restart_by_hand_and_the_plugin_s_crash |
| 22 | TestPluginVolumeRemoveOnRestart | docker/test_managed: plugin_and_mounts_outlive_a_dockerd_with_live_restore |
| 22 | Test…LiveRestoreWithPlugins | docker/test_managed: plugin_and_mounts_outlive_a_dockerd_with_live_restore |

| #  | what happens | test |
|----|--------------|------|
| A  | a repeated request is empty | plugin/test_http: a_repeated_request_without_a_body_is_never_no_such_volume |
| B  | packets to the bucket are lost | docker/test_outage: questions_are_answered_in_200_ms_and_other_volumes_go_on |
| C  | kill -9 of the driver before its reply | docker/test_driver_down: a_driver_that_dies_in_a_mount_is_asked_again |
| D  | kill -9 of a mount | docker/test_crash: a_killed_mount_process_is_replaced_inside_the_running_container |
| E  | kill -9 of dockerd | docker/test_crash: the_death_of_dockerd_leaves_counts_that_come_right |
| E  | what leaked | plugin/test_driver: a_count_that_leaked_in_a_crash_of_dockerd_goes_with_the_last_container |
| F  | 200 hostile names | docker/test_hostile: two_hundred_hostile_names_are_refused_and_leave_nothing |
| G  | a bucket that is too slow | docker/test_outage: a_mount_gives_up_in_time_says_why_and_leaves_nothing |
| G  | a mount that is too slow | plugin/test_driver: a_mount_has_a_deadline_and_is_undone |
| H  | cp beside a writer | docker/test_copy_up: a_hundred_times_cp_beside_a_running_writer |
| I  | replicas, forced updates, kills | docker/test_swarm: forced_updates_and_kills_lose_no_byte_and_no_mount |
| J  | no copy-up | docker/test_copy_up: nothing_is_copied_where_nothing_may_be |
| J  | copy-up | docker/test_copy_up: everything_that_a_tree_can_have_is_copied_into_a_new_volume |
| J  | hard links, xattrs | docker/test_copy_up: hard_links_stay_one_file_and_extended_attributes_are_copied |
| K  | dockerd starts alone | docker/test_driver_down: dockerd_starts_without_the_driver_and_forgets_no_volume |
| L  | a reboot | docker/test_crash: the_crash_of_the_machine_loses_nothing_that_was_closed |
| M  | a user who is not root | docker/test_copy_up: a_user_who_is_not_root_owns_what_the_image_says |
| N  | a managed plugin | docker/test_managed: the_directory_holds_no_development_tools_and_times_of_its_inputs |

What cannot be asked of this driver here: `{}` as the answer to Get (12: it never gives it; the end of a connection is
what comes closest), errors of Path, Capabilities and Unmount (20: it has none), dockerd's own time-outs of 60 and 120 s
(21, ClientWithRequestTimeout: every answer comes before them; 7 and 12 see its repetitions), a bind of the whole of
/dev (22, TestPluginWithDevMounts: the plugin asks for /dev/fuse and nothing else). What takes minutes (the 100 s of G,
the three minutes of E) passes on a clock that jumps.
"""

from __future__ import annotations

import json
import re
import select
import threading
from pathlib import Path

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.site import Site, fresh
from tests.docker.tap import UnixConnection

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

RUN = ("run", "--rm", "--volume-driver=s3vol")


def test_the_tables_name_tests_that_exist() -> None:
    cells = re.findall(r"^\| (?:\d+|[A-N]) +\| .* \| (.*) \|$", __doc__ or "", re.MULTILINE)
    assert len(cells) == 42
    for cell in cells:
        file, _, name = cell.rpartition(": ")
        text = (Path(__file__).parents[1] / f"{file or 'docker/test_moby_behaviours'}.py").read_text()
        assert f"def test_{name}(" in text, cell


def test_a_name_belongs_to_one_driver(site: Site) -> None:
    name = site.create()
    assert "must be unique" in site.docker.refused("volume", "create", "-d", "local", name)
    local = fresh()
    site.docker.docker("volume", "create", local)
    try:
        assert "must be unique" in site.docker.refused("volume", "create", "-d", "s3vol", local)
        assert not site.plugin.tap.calls("Create", local)
    finally:
        site.docker.docker("volume", "rm", local)


def test_a_run_with_a_named_volume_creates_mounts_and_unmounts_once(site: Site) -> None:
    name = fresh()
    site.docker.docker(*RUN, "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "echo hello > /d/greeting")
    counts = {verb: site.plugin.tap.count(verb, name) for verb in ("Create", "Mount", "Unmount", "Remove")}
    assert counts == {"Create": 1, "Mount": 1, "Unmount": 1, "Remove": 0}
    assert site.docker.docker(*RUN, "-v", f"{name}:/d", BUSYBOX, "cat", "/d/greeting") == "hello"
    assert site.plugin.tap.count("Create", name) == 1
    assert site.objects(name) == {"greeting": b"hello\n"}


def test_a_run_with_an_anonymous_volume_removes_it_as_well(site: Site) -> None:
    site.docker.docker(*RUN, "-v", "/d", BUSYBOX, "sh", "-c", "echo hello > /d/greeting")
    (created,) = site.plugin.tap.calls("Create")
    assert re.fullmatch("[0-9a-f]{64}", created.name)
    counts = {verb: site.plugin.tap.count(verb, created.name) for verb in ("Create", "Mount", "Unmount", "Remove")}
    assert counts == {"Create": 1, "Mount": 1, "Unmount": 1, "Remove": 1}
    assert created.name not in site.docker.volumes()


def test_volumes_from_another_container_are_mounted_once_more(site: Site) -> None:
    name = site.create()
    site.docker.docker("run", "--name", "first", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "echo hello > /d/greeting")
    assert site.docker.docker("run", "--rm", "--volumes-from", "first", BUSYBOX, "cat", "/d/greeting") == "hello"
    assert (site.plugin.tap.count("Mount", name), site.plugin.tap.count("Unmount", name)) == (2, 2)


def test_removing_a_container_removes_its_anonymous_volume_once(site: Site) -> None:
    site.docker.sleeper("holder", "--volume-driver=s3vol", "-v", "/d")
    (created,) = site.plugin.tap.calls("Create")
    site.docker.docker("rm", "-fv", "holder")
    assert site.plugin.tap.count("Remove", created.name) == 1
    assert site.plugin.tap.count("Unmount", created.name) == 1


def test_a_driver_that_is_down_does_not_block_this_one(site: Site) -> None:
    spec = site.node.path("etc/docker/plugins/dead.spec")
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text("tcp://127.0.0.127:1")
    waiting = UnixConnection(site.node.path("run/docker.sock"))
    try:
        body = json.dumps({"Name": fresh(), "Driver": "dead"})
        waiting.request("POST", "/volumes/create", body, {"Content-Type": "application/json"})
        assert site.docker.inspect("volume", site.create())["Driver"] == "s3vol"
        answered, _, _ = select.select([waiting.sock], [], [], 0)
        assert not answered, "dockerd waits 15 s for the other driver, and this one had to be quicker than that"
    finally:
        waiting.close()
        spec.unlink()


def test_a_run_waits_for_a_driver_that_appears_two_seconds_later(site: Site) -> None:
    name = site.create()
    site.plugin.stop()
    late = threading.Timer(2.0, site.plugin.start)
    late.start()
    try:
        site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    finally:
        late.join()


def test_inspect_of_a_container_shows_name_and_driver(site: Site) -> None:
    name = site.create()
    site.docker.sleeper("shown", "-v", f"{name}:/d:ro")
    (mount,) = site.docker.inspect("container", "shown")["Mounts"]
    assert (mount["Type"], mount["Name"], mount["Driver"], mount["RW"]) == ("volume", name, "s3vol", False)


def test_ls_asks_once_and_shows_the_volume(site: Site) -> None:
    name = site.create()
    with site.plugin.tap.counting() as tap:
        assert name in site.docker.volumes()
        assert tap.count("List") == 1


def test_inspect_shows_the_status_and_an_unknown_volume_is_none(site: Site) -> None:
    name = site.create()
    shown = site.docker.inspect("volume", name)
    assert shown["Driver"] == "s3vol"
    assert shown["Status"]["source"] == f"s3://{site.bucket.name}/{name}"
    assert not shown["CreatedAt"].startswith("0001")
    assert "no such volume" in site.docker.refused("volume", "inspect", fresh()).lower()


def test_the_driver_is_remembered_over_a_restart_of_dockerd(site: Site) -> None:
    name = site.create()
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "echo hello > /d/greeting")
    site.docker.restart()
    assert site.docker.inspect("volume", name)["Driver"] == "s3vol"
    assert site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "cat", "/d/greeting") == "hello"


def test_a_get_that_was_answered_by_nothing_loses_no_volume(site: Site) -> None:
    name = site.create(None, "uid=33")
    site.plugin.tap.spoil("Get", "after")
    site.docker.run("volume", "inspect", name)  # fails after 15 s: each repetition is empty, and nobody can answer that
    empty = [call for call in site.plugin.tap.calls("Get") if not call.request]
    assert empty, "dockerd repeated with a body, so this proved nothing"
    assert {call.reply and call.reply.get("Err") for call in empty} == {None}
    assert site.docker.inspect("volume", name)["Options"] == {"uid": "33"}
    assert name in site.docker.volumes()


def test_create_and_ls_ask_for_no_path(site: Site) -> None:
    site.create()
    site.docker.volumes()
    assert site.plugin.tap.count("Path") == 0


def test_every_mount_has_an_id_and_its_unmount_has_the_same(site: Site) -> None:
    name = site.create()
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    (mount,), (unmount,) = site.plugin.tap.calls("Mount", name), site.plugin.tap.calls("Unmount", name)
    assert re.fullmatch("[0-9a-f]{64}", mount.request["ID"])
    assert mount.request["ID"] == unmount.request["ID"]


def test_capabilities_are_asked_once_and_the_scope_is_shown(site: Site) -> None:
    site.docker.restart()
    site.plugin.tap.forget()
    for _ in range(3):
        assert site.docker.inspect("volume", site.create())["Scope"] == "global"
    assert site.plugin.tap.count("Capabilities") <= 1  # 0 when dockerd asked while it started


@pytest.mark.parametrize("driver", ["s3vol", "local"])
def test_a_volume_removed_behind_dockerds_back_can_be_created_anew(site: Site, driver: str) -> None:
    name = site.create(None, "uid=33")
    removed = site.plugin.cli("volume", "rm", name)
    assert removed.returncode == 0, removed.stderr
    options = ["-o", "uid=34", "-o", f"prefix={name}-other"] if driver == "s3vol" else []
    site.docker.docker("volume", "create", "-d", driver, *options, name)
    try:
        shown = site.docker.inspect("volume", name)
        assert shown["Driver"] == driver
        assert driver == "local" or shown["Status"]["options"]["uid"] == "34"
    finally:
        site.docker.docker("volume", "rm", name)


def test_a_mount_that_failed_is_followed_by_no_unmount_and_counted_by_nobody(site: Site) -> None:
    name = site.create(None, "bucket=there-is-no-such-bucket-here", "create-bucket=no")
    said = site.docker.refused("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    assert "there-is-no-such-bucket-here" in said
    assert site.plugin.tap.count("Mount", name) == 1
    assert site.plugin.tap.count("Unmount", name) == 0
    assert site.refs(name) == 0
    assert site.plugin.mounted() == []


def test_cp_mounts_and_unmounts_and_a_kill_unmounts(site: Site, tmp_path: Path) -> None:
    name = site.create()
    site.docker.sleeper("target", "-v", f"{name}:/d")
    (tmp_path / "file").write_text("copied")
    site.plugin.tap.forget()
    site.docker.docker("cp", str(tmp_path / "file"), "target:/d/file")
    mounts = site.plugin.tap.count("Mount", name)
    assert mounts in (1, 2), "newer clients look at the target first, which is one more pair"
    assert site.plugin.tap.count("Unmount", name) == mounts
    assert site.docker.sh("target", "cat /d/file") == "copied"
    site.docker.docker("kill", "target")
    site.docker.docker("wait", "target")
    site.await_unused(name)
    assert site.plugin.tap.count("Unmount", name) == mounts + 1


def test_a_volume_that_exists_elsewhere_is_not_created_again(site: Site) -> None:
    name = fresh()
    made = site.plugin.cli("volume", "create", name, "-o", "uid=33")
    assert made.returncode == 0, made.stderr
    site.docker.docker("volume", "create", "-d", "s3vol", "--label", "mine=yes", "-o", "uid=44", name)
    assert site.plugin.tap.count("Create", name) == 0
    shown = site.docker.inspect("volume", name)
    assert shown["Labels"] == {"mine": "yes"}
    assert shown["Options"] == {"uid": "44"}, "dockerd keeps what its caller said"
    assert shown["Status"]["options"]["uid"] == "33", "and Status tells the truth"


def test_the_drivers_own_words_reach_the_user(site: Site) -> None:
    assert "colour" in site.docker.refused("volume", "create", "-d", "s3vol", "-o", "colour=blue", fresh())
    name = site.create()
    site.docker.sleeper("user", "-v", f"{name}:/d")
    direct = site.plugin.ask("Remove", {"Name": name})
    assert "in use on this node (node1)" in direct["Err"]
    assert "in use" in site.docker.refused("volume", "rm", name)
    assert "no such volume" in site.plugin.ask("Mount", {"Name": fresh(), "ID": "a"})["Err"]


def test_an_order_without_a_reply_is_refused_once_and_then_works(site: Site) -> None:
    name, tap = fresh(), site.plugin.tap
    tap.spoil("Create")
    assert "retry" in site.docker.refused("volume", "create", "-d", "s3vol", name)
    site.create(name)
    tap.spoil("Mount")
    assert "retry" in site.docker.refused("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    tap.spoil("List")
    assert name in site.docker.volumes()
    site.plugin.await_idle()
    tap.spoil("Remove")
    assert "retry" in site.docker.refused("volume", "rm", name)
    site.docker.docker("volume", "rm", name)
    assert name not in site.docker.volumes()


def test_an_order_that_was_done_but_not_answered_can_be_given_again(site: Site) -> None:
    name, tap = fresh(), site.plugin.tap
    tap.spoil("Create", "after")
    site.docker.refused("volume", "create", "-d", "s3vol", name)
    site.create(name)
    tap.spoil("Remove", "after")
    site.docker.refused("volume", "rm", name)
    site.docker.run("volume", "rm", name)
    assert name not in site.docker.volumes()
