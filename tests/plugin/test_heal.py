"""Dead mounts in running containers are replaced by live ones, without a restart and without a moment of nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from s3vol.errors import S3volError
from s3vol.mounts import find_mount, parse_table
from s3vol_plugin import heal
from s3vol_plugin.base import Usage
from s3vol_plugin.heal import make_plan
from s3vol_plugin.invocation import label
from s3vol_plugin.kernel import LinuxKernel
from s3vol_plugin.presence import Presence
from s3vol_plugin.process import mounting
from s3vol_plugin.volume import Volume
from tests.plugin.containers import Bind, Container
from tests.plugin.rig import DRAIN_S, Rig, command, rig_in, until
from tests.support.minio import Minio

# Deciding.

POINT = "/mounts/abc"
OURS = f"""\
20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 20 0:60 / {POINT} rw,nosuid,nodev - fuse.s3vol s3vol:web rw
41 20 0:61 / /mounts/def rw,nosuid,nodev - fuse.s3vol s3vol:up rw
"""
THEIRS = """\
100 90 0:77 / / rw - overlay overlay rw
101 100 0:50 / /d rw,nosuid,nodev - fuse.s3vol s3vol:web rw
"""


def plan(theirs: str, path: str = "/d") -> heal.Plan | None:
    return make_plan(parse_table(OURS), parse_table(theirs), POINT, path)


def refused(theirs: str, path: str = "/d") -> str:
    with pytest.raises(S3volError) as caught:
        plan(theirs, path)
    return str(caught.value)


def test_a_dead_mount_of_the_same_name_is_replaced_by_its_directory_of_the_live_one() -> None:
    made = plan(THEIRS)
    assert made is not None
    assert (made.live.device, made.dead.id, made.directory, made.inner) == ("0:60", 101, "", [])
    made = plan(THEIRS.replace("0:50 / ", "0:50 /a/b "))
    assert made is not None
    assert made.directory == "a/b"


def test_what_is_alive_is_left_alone() -> None:
    assert plan(THEIRS.replace("0:50", "0:60")) is None


def test_what_is_not_this_volume_s_is_refused() -> None:
    assert "no longer mounted there" in refused(THEIRS.replace("s3vol:web", "s3vol:other"))
    assert "no longer mounted there" in refused(THEIRS.replace("fuse.s3vol", "fuse.sshfs"))
    assert "no longer mounted there" in refused(THEIRS + "102 101 0:9 / /d rw - tmpfs none rw\n")
    assert "no longer mounted there" in refused(THEIRS, "/elsewhere")
    assert "had been deleted" in refused(THEIRS.replace("0:50 / ", "0:50 /gone//deleted "))
    with pytest.raises(S3volError, match="no volume is mounted at"):
        make_plan(parse_table(OURS)[:1], parse_table(THEIRS), POINT, "/d")


def test_what_is_mounted_inside_is_found_in_our_namespace_each_after_what_it_hangs_on() -> None:
    inner = (
        "104 103 8:1 /srv/x /d/up/x ro - ext4 /dev/sda1 rw\n"
        "103 101 0:61 / /d/up rw - fuse.s3vol s3vol:up rw\n"
        "105 100 0:9 / /dd rw - tmpfs none rw\n"
    )
    made = plan(THEIRS + inner)
    assert made is not None
    up, x = made.inner
    assert (up.origin.path, up.directory, up.within, up.place) == ("/mounts/def", "", -1, "up")
    assert (x.origin.path, x.directory, x.within, x.place) == ("/", "srv/x", 0, "x")
    assert "ro" in x.flags


def test_what_is_mounted_inside_and_is_nowhere_else_refuses_the_healing() -> None:
    assert "/d/t, which is mounted inside" in refused(THEIRS + "103 101 0:9 / /d/t rw - tmpfs none rw\n")


# Acting.


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A node without any endpoint."""
    with rig_in(tmp_path) as made:
        yield made


async def crash_and_heal(rig: Rig, volume: Volume) -> list[Usage]:
    """SIGKILL of the mount process, a new one, and its mount put into every place that has the dead one."""
    await rig.crash(volume)
    await rig.start(volume)
    worker, kernel, name = rig.workers.get(volume.uuid), LinuxKernel(), label(rig.settings, volume)
    assert worker is not None
    dead = list(kernel.dead(name, living=worker.device))
    for usage in dead:
        await trio.to_thread.run_sync(kernel.heal, usage, worker.mountpoint)
    assert kernel.dead(name, living=worker.device) == []
    return dead


kernel_test = pytest.mark.kernel


@kernel_test
@pytest.mark.minio
async def test_a_killed_mount_process_is_healed_under_a_running_container(tmp_path: Path, minio: Minio) -> None:
    with rig_in(tmp_path, minio.environment) as rig:
        volume = rig.volume(source=f"s3://{minio.new_bucket()}")
        await rig.start(volume)
        point, rw, ro, sub = rig.point(volume), tmp_path / "rw", tmp_path / "ro", tmp_path / "sub"
        (point / "a/b").mkdir(parents=True)
        binds = [Bind(point, rw), Bind(point, ro, read_only=True), Bind(point / "a/b", sub)]
        with Container(*binds) as container:
            before = container.table
            container.shell(f"echo closed > {rw}/f; echo inner > {sub}/g")
            assert len(await crash_and_heal(rig, volume)) == 3
            assert container.shell(f"cat {rw}/f {ro}/f {sub}/g {rw}/a/b/g") == "closed\nclosed\ninner\ninner\n"
            container.shell(f"echo again > {rw}/f; echo new > {sub}/h")
            assert (point / "f").read_text() == "again\n"
            assert (point / "a/b/h").read_text() == "new\n"
            assert "Read-only" in container.run("touch", f"{ro}/x").stderr
            # The same lines as before but for the ids and the device: one mount each, private, with its flags.
            assert [line.split()[3:] for line in container.table] == [line.split()[3:] for line in before]
            for _ in range(3):  # and again, as often as it crashes
                assert len(await crash_and_heal(rig, volume)) == 3
            assert container.shell(f"cat {ro}/f") == "again\n"
        with Container(Bind(point, rw)) as restarted:
            assert restarted.shell(f"cat {rw}/f") == "again\n"
        assert (await rig.workers.stop(volume, drain_s=DRAIN_S)).files == 0


@kernel_test
async def test_a_program_in_the_container_never_sees_the_directory_below(rig: Rig) -> None:
    volume, target = rig.volume(), rig.folder / "c"
    await rig.start(volume)
    (rig.point(volume) / "f").write_text("x")
    stop, stopped = rig.folder / "stop", rig.folder / "stopped"
    writer = f"(while [ ! -e {stop} ]; do echo w > {target}/w || :; done; touch {stopped}) > /dev/null 2>&1 &"
    with Container(Bind(rig.point(volume), target), then=writer) as container:
        for _ in range(5):
            await crash_and_heal(rig, volume)
        stop.touch()
        await until(stopped.exists, "the writer")
        container.shell(f"cat {target}/f && umount {target}")
        assert container.shell(f"ls -A {target}") == ""


@kernel_test
async def test_healing_what_is_healed_changes_nothing(rig: Rig) -> None:
    volume = rig.volume()
    await rig.start(volume)
    with Container(Bind(rig.point(volume), rig.folder / "c")) as container:
        (usage,) = await crash_and_heal(rig, volume)
        before = container.table
        LinuxKernel().heal(usage, str(rig.point(volume)))
        assert container.table == before


@kernel_test
async def test_volumes_inside_a_volume_are_there_again(rig: Rig) -> None:
    outer, inner, target = rig.volume("outer"), rig.volume("inner"), rig.folder / "c"
    await rig.start(outer)
    await rig.start(inner)
    (rig.point(outer) / "up/deep").mkdir(parents=True)
    (rig.point(inner) / "x").mkdir()
    host = rig.folder / "host"
    host.mkdir()
    (host / "h").write_text("of the host")
    binds = [Bind(rig.point(outer), target), Bind(rig.point(inner), target / "up")]
    then = f"mount --bind {host} {target}/up/x; mount -o remount,bind,ro {target}/up/x"
    with Container(*binds, then=then) as container:
        container.shell(f"echo i > {target}/up/i")
        await crash_and_heal(rig, outer)
        assert container.shell(f"cat {target}/up/i {target}/up/x/h; ls {target}") == "i\nof the hostup\n"
        assert "Read-only" in container.run("touch", f"{target}/up/x/y").stderr
        container.shell(f"echo still > {target}/up/i")
        assert (rig.point(inner) / "i").read_text() == "still\n"
        assert not (rig.point(outer) / "up/i").exists()
        await crash_and_heal(rig, inner)
        assert container.shell(f"cat {target}/up/i; ls {target}") == "still\nup\n"


@kernel_test
async def test_a_tmpfs_inside_a_dead_volume_refuses_the_healing_and_nothing_is_written_beside_it(rig: Rig) -> None:
    volume, target = rig.volume(), rig.folder / "c"
    await rig.start(volume)
    (rig.point(volume) / "t").mkdir()
    with Container(Bind(rig.point(volume), target), then=f"mount -t tmpfs none {target}/t") as container:
        device = await rig.crash(volume)
        await rig.start(volume)
        (usage,) = LinuxKernel().usages(label(rig.settings, volume), device, besides=str(rig.point(volume)))
        with pytest.raises(S3volError, match="restart the container"):
            LinuxKernel().heal(usage, str(rig.point(volume)))
        container.run("touch", f"{target}/t/secret")
        assert device in "".join(container.table)
    assert list((rig.point(volume) / "t").iterdir()) == []


@kernel_test
async def test_a_link_that_a_container_put_into_the_volume_does_not_lead_out_of_it(rig: Rig) -> None:
    volume, target = rig.volume(), rig.folder / "c"
    await rig.start(volume)
    point = rig.point(volume)
    (point / "sub").mkdir()
    with Container(Bind(point / "sub", target)) as container:
        device = await rig.crash(volume)
        await rig.start(volume)
        (point / "sub").rmdir()
        (point / "sub").symlink_to("/etc")
        (usage,) = LinuxKernel().usages(label(rig.settings, volume), device, besides=str(point))
        with pytest.raises(S3volError, match=f"{target} of process {container.pid}"):
            LinuxKernel().heal(usage, str(point))
        assert container.run("cat", f"{target}/passwd").returncode != 0


@kernel_test
async def test_where_the_kernel_cannot_mount_beneath_the_clone_goes_on_top(rig: Rig) -> None:
    volume, target = rig.volume(), rig.folder / "c"
    await rig.start(volume)
    point = rig.point(volume)
    (point / "f").write_text("x")
    with Container(Bind(point, target)) as container:
        device = await rig.crash(volume)
        await rig.start(volume)
        request = {
            "verb": "heal",
            "pid": container.pid,
            "path": str(target),
            "mountpoint": str(point),
            "beneath": False,
        }
        command(sys.executable, "-m", "s3vol_plugin.heal", said=json.dumps(request))
        assert container.shell(f"cat {target}/f") == "x"
        assert LinuxKernel().usages(label(rig.settings, volume), device, besides=str(point)) == []
        await crash_and_heal(rig, volume)
        assert container.shell(f"cat {target}/f") == "x"


@kernel_test
async def test_another_driver_s_volume_of_the_same_name_is_not_ours_dead_or_alive(rig: Rig, tmp_path: Path) -> None:
    with rig_in(tmp_path / "other") as other:
        ours, theirs, target = rig.volume(), other.volume(), rig.folder / "c"
        await rig.start(ours)
        await other.start(theirs)
        with Container(Bind(other.point(theirs), target)) as container:
            for _ in range(2):
                assert LinuxKernel().dead(label(rig.settings, ours), living="") == []
                with pytest.raises(S3volError, match="no longer mounted there"):
                    LinuxKernel().heal(Usage(container.pid, str(target), "/", False), str(rig.point(ours)))
                if other.workers.get(theirs.uuid) is not None:
                    await other.crash(theirs)


@kernel_test
async def test_a_living_mount_is_never_replaced_whatever_it_is_called(rig: Rig, tmp_path: Path) -> None:
    volume, second, target = rig.volume(), tmp_path / "second", tmp_path / "c"
    second.mkdir()
    await rig.start(volume)
    name = label(rig.settings, volume)
    options = f"fsname={name},allow_other,cache-dir={tmp_path}/second-cache"
    mount = ("env", f"S3VOL_RUNTIME_DIR={tmp_path}/second-run", sys.executable, "-m", "s3vol", "mount")
    command(*mount, "-o", options, "memory:", second)
    with Container(Bind(second, target)) as container:
        command("umount", second)
        container.shell(f"echo alive > {target}/f")
        before = container.table
        assert str(target) not in [usage.mountpoint for usage in LinuxKernel().dead(name, living="")]
        with pytest.raises(S3volError, match="is alive"):
            LinuxKernel().heal(Usage(container.pid, str(target), "/", False), str(rig.point(volume)))
        assert (container.table, container.shell(f"cat {target}/f")) == (before, "alive\n")
    await until(lambda: not mounting(second), "the end of the second mount")


@kernel_test
async def test_a_container_that_is_gone_is_one_line(rig: Rig) -> None:
    volume = rig.volume()
    await rig.start(volume)
    with pytest.raises(S3volError, match="No such file"):
        LinuxKernel().heal(Usage(2**22 - 1, "/d", "/", False), str(rig.point(volume)))
    await rig.workers.stop(volume, drain_s=DRAIN_S)


def test_a_dead_mount_that_lies_on_a_live_one_is_still_to_be_taken_away() -> None:
    begun = THEIRS.replace("101 100", "101 104") + "104 100 0:60 / /d rw,nosuid,nodev - fuse.s3vol s3vol:web rw\n"
    made = make_plan(parse_table(OURS), parse_table(begun), POINT, "/d")
    assert made is not None
    assert made.dead.id == 101


_CUT_SHORT = (
    "import json, os, sys; from s3vol_plugin import heal; heal._detach = lambda *_: os._exit(9); "
    "heal.heal(**json.load(sys.stdin))"
)


@pytest.mark.kernel
async def test_a_healing_that_was_cut_short_is_ended_by_the_next_one(tmp_path: Path) -> None:
    with rig_in(tmp_path) as node:
        web, target = node.volume(), tmp_path / "c"
        await node.start(web)
        (node.point(web) / "f").write_text("x")
        with Container(Bind(node.point(web), target)) as container:
            await node.crash(web)
            await node.start(web)
            request = {"pid": container.pid, "path": str(target), "mountpoint": str(node.point(web))}
            cut = [sys.executable, "-c", _CUT_SHORT]
            done = await trio.run_process(cut, stdin=json.dumps(request).encode(), check=False)
            assert done.returncode == 9
            assert container.run("cat", f"{target}/f").returncode != 0
            await trio.to_thread.run_sync(
                LinuxKernel().heal, Usage(container.pid, str(target), "/", False), str(node.point(web))
            )
            assert container.shell(f"cat {target}/f") == "x"


@pytest.mark.kernel
async def test_another_volume_is_not_put_back_in_the_place_of_one(tmp_path: Path) -> None:
    with rig_in(tmp_path) as node:
        web, other, target = node.volume("web"), node.volume("other"), tmp_path / "c"
        await node.start(other)
        with Container(Bind(node.point(other), target)) as container:
            reused = [Usage(container.pid, str(target), "/", read_only=False)]  # seen when the id was another process's
            with pytest.raises(S3volError, match="another volume"):
                await Presence(node.settings, LinuxKernel()).put_back(web, reused)
            assert find_mount(str(node.point(web))) is None
            container.shell(f"echo x > {target}/f")
        assert (node.point(other) / "f").read_text() == "x\n"
