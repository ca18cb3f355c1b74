"""Who uses a volume, by the mount tables: what counts as use, and what does not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3vol.mounts import parse_table
from s3vol_plugin.base import Usage
from s3vol_plugin.invocation import label
from s3vol_plugin.kernel import LinuxKernel, Namespace, find_usages, read_namespaces
from tests.plugin.containers import Bind, Container
from tests.plugin.rig import DRAIN_S, Rig, command, rig_in

POINT = "/var/lib/s3vol/mounts/abc"
OURS = f"""\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 20 0:50 / {POINT} rw,nosuid,nodev,relatime shared:7 - fuse.s3vol s3vol:web rw,user_id=0
"""
CONTAINER = """\
100 90 0:77 / / rw,relatime - overlay overlay rw
101 100 0:50 / /data rw,nosuid,nodev,relatime - fuse.s3vol s3vol:web rw,user_id=0
102 100 0:50 /site\\0401 /etc/site ro,nosuid,nodev,relatime - fuse.s3vol s3vol:web rw,user_id=0
103 100 0:51 / /other rw - fuse.s3vol s3vol:other rw
104 100 0:50 / /not-ours rw - fuse.sshfs web rw
"""


def usages(*tables: str, device: str = "0:50") -> list[Usage]:
    views = [Namespace(pid, pid == 1, parse_table(table)) for pid, table in enumerate((OURS, *tables), 1)]
    return find_usages(views, lambda mount: mount.device == device, besides=POINT)


def test_a_container_s_mounts_are_told_with_directory_and_mode() -> None:
    assert usages(CONTAINER) == [Usage(2, "/data", "/", False), Usage(2, "/etc/site", "/site 1", True)]
    assert usages() == []
    assert usages(CONTAINER, device="0:51") == [Usage(2, "/other", "/", False)]


def test_our_own_mount_point_is_no_use_and_a_second_place_in_our_namespace_is() -> None:
    cp = "41 20 0:50 / /var/lib/docker/overlay2/x/merged/data rw - fuse.s3vol s3vol:web rw\n"
    view = Namespace(1, True, parse_table(OURS + cp))
    found = find_usages([view], lambda mount: mount.device == "0:50", besides=POINT)
    assert [usage.mountpoint for usage in found] == ["/var/lib/docker/overlay2/x/merged/data"]


def test_a_copy_of_our_mount_point_counts_unless_it_follows_ours() -> None:
    copy = OURS.replace("shared:1", "{above}").replace("shared:7", "{own}")
    assert usages(copy.format(above="master:1", own="master:7")) == []  # a service of systemd with PrivateTmp
    assert len(usages(copy.format(above="master:2", own="master:7"))) == 1
    kept = copy.replace(" {above}", "").replace(" {own}", "")  # `unshare -m`: it stays when ours is unmounted
    assert usages(kept) == [Usage(2, POINT, "/", False)]


def test_a_dead_mount_that_is_covered_by_its_living_volume_is_no_use() -> None:
    dead = "101 100 0:49 / /data rw - fuse.s3vol s3vol:web rw\n"
    assert usages(dead, device="0:49") == [Usage(2, "/data", "/", False)]
    assert usages(dead + "105 101 0:50 / /data rw - fuse.s3vol s3vol:web rw\n", device="0:49") == []
    assert len(usages(dead + "105 101 0:50 / /data rw - tmpfs none rw\n", device="0:49")) == 1


@pytest.mark.parametrize("name", ["\r", "\x0b", "\x1c", "\x85", "\u2028", "\\012", "\\040- tmpfs"])
def test_a_path_that_a_container_chooses_does_not_break_the_table(name: str) -> None:
    hostile = f"110 100 0:60 / /x{name}y rw - tmpfs none rw\n"
    assert usages(hostile + CONTAINER) == usages(CONTAINER)
    assert usages(CONTAINER + hostile) == usages(CONTAINER)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A node without any endpoint."""
    with rig_in(tmp_path) as made:
        yield made


@pytest.mark.kernel
async def test_the_running_kernel_is_read_alive_and_dead(rig: Rig) -> None:
    kernel, volume = LinuxKernel(), rig.volume()
    await rig.start(volume)
    worker = rig.workers.get(volume.uuid)
    assert worker is not None
    name, besides = label(rig.settings, volume), worker.mountpoint
    (rig.point(volume) / "sub dir").mkdir()
    target = rig.folder / "c"
    binds = [Bind(rig.point(volume), target), Bind(rig.point(volume) / "sub dir", rig.folder / "d", read_only=True)]
    assert kernel.usages(name, worker.device, besides=besides) == []
    with Container(*binds) as container:
        expected = [
            Usage(container.pid, str(target), "/", False),
            Usage(container.pid, str(rig.folder / "d"), "/sub dir", True),
        ]
        assert kernel.usages(name, worker.device, besides=besides) == expected
        assert kernel.dead(name, living=worker.device) == []
        device = await rig.crash(volume)
        await rig.workers.adopt()
        assert kernel.usages(name, device, besides=besides) == expected
        assert kernel.dead(name, living="") == expected
    assert kernel.usages(name, device, besides=besides) == []


@pytest.mark.kernel
async def test_a_second_mount_in_our_own_namespace_is_seen(rig: Rig) -> None:
    volume = rig.volume()
    await rig.start(volume)
    worker = rig.workers.get(volume.uuid)
    assert worker is not None
    second = rig.folder / "second"
    second.mkdir()
    command("mount", "--bind", worker.mountpoint, second)
    try:
        name = label(rig.settings, volume)
        (usage,) = LinuxKernel().usages(name, worker.device, besides=worker.mountpoint)
        assert (usage.mountpoint, usage.root) == (str(second), "/")
    finally:
        command("umount", second)
    await rig.workers.stop(volume, drain_s=DRAIN_S)


@pytest.mark.kernel
def test_a_namespace_is_seen_through_its_oldest_process(rig: Rig) -> None:
    with Container() as container:
        script = "for i in $(seq 400); do (sleep 0.05 &) ; done"  # come and go, with ids below and above its own
        with subprocess.Popen(["nsenter", f"--mount=/proc/{container.pid}/ns/mnt", "bash", "-c", script]):
            for _ in range(20):
                own = os.readlink(f"/proc/{container.pid}/ns/mnt")
                seen = {view.pid for view in read_namespaces() if os.readlink(f"/proc/{view.pid}/ns/mnt") == own}
                assert seen == {container.pid}


def test_each_namespace_is_read_once_and_ours_is_known() -> None:
    views = read_namespaces()
    assert sum(view.own for view in views) >= 1
    names = [(os.readlink(f"/proc/{view.pid}/ns/mnt"), os.readlink(f"/proc/{view.pid}/root")) for view in views]
    assert len(names) == len(set(names))
