"""`s3vol mount ipfs://VOLUME` on real daemons: files through the kernel, on two nodes, and the commands around them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ipfs.site import Site
from tests.support import ipfs_binaries
from tests.support.ipfs import Swarm
from tests.support.minio import wait_for

pytestmark = [pytest.mark.ipfs, pytest.mark.kernel]


@pytest.fixture
def site(swarm: Swarm, tmp_path: Path) -> Iterator[Site]:
    made = Site(swarm, tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_files_that_are_closed_on_one_node_are_read_on_another(site: Site) -> None:
    one, two = site.mount(0), site.mount(1)
    (one.path / "d").mkdir()
    for number in range(10):
        (one.path / "d" / "f").write_bytes(b"%d " % number * 1000)
        assert (two.path / "d" / "f").read_bytes() == b"%d " % number * 1000
    big = os.urandom(20 << 20)
    (two.path / "big").write_bytes(big)
    assert (one.path / "big").read_bytes() == big
    os.rename(one.path / "big", one.path / "d" / "moved")
    os.symlink("moved", one.path / "d" / "link")
    assert (one.path / "d" / "link").read_bytes() == big


def test_what_was_closed_survives_the_kill_of_the_mount(site: Site) -> None:
    one = site.mount(0, "--write-back")
    (one.path / "kept").write_bytes(b"journaled")
    (one.path / "gone").write_bytes(b"x")
    os.remove(one.path / "gone")
    one.kill()
    again = site.mount(0)
    assert os.listdir(again.path) == ["kept"]
    again.umount()
    assert (site.mount(1).path / "kept").read_bytes() == b"journaled"


def test_an_export_is_read_by_ipfs_and_gc_and_doctor_know_the_volume(site: Site) -> None:
    one = site.mount(0)
    (one.path / "d").mkdir()
    (one.path / "d" / "hello").write_text("hello")
    os.chmod(one.path / "d" / "hello", 0o640)
    os.symlink("hello", one.path / "d" / "link")
    with (one.path / "d" / "hello").open("r+") as file:
        os.fsync(file.fileno())
    one.umount()
    node = site.node(0)
    cid = node.check("export", f"{site.source}/d").strip()
    target = node.folder / "got"
    api = ["--api", f"/ip4/{site.swarm.nodes[0].address}/tcp/5001"]
    subprocess.run(
        [ipfs_binaries.ensure(ipfs_binaries.KUBO), *api, "get", "-o", target, cid],
        check=True,
        env={**os.environ, "IPFS_PATH": str(node.folder / "none")},
        capture_output=True,
    )
    assert (target / "hello").read_text() == "hello"
    assert os.readlink(target / "link") == "hello"
    assert node.run("export", f"{site.source}/nothing").returncode == 2
    assert "removed" in node.check("gc", site.source)
    assert "3 names, 1 blocks" in node.check("fsck", site.source)
    assert node.run("fsck", "--repair", site.source).returncode == 2
    assert f"source       {site.source}" in node.run("doctor", site.source).stdout


def test_gc_leaves_a_mounted_volume_to_its_mount(site: Site) -> None:
    site.mount(0)
    done = site.node(0).run("gc", site.source)
    assert done.returncode == 2
    assert "another s3vol uses this volume's journal" in done.stderr


def test_umount_while_the_cluster_is_away_says_what_is_left_and_the_next_mount_publishes_it(site: Site) -> None:
    one = site.mount(0, "--write-back", "--commit-interval", "1h")
    (one.path / "left").write_bytes(b"12345")
    wait_for(lambda: not one.status()["dirty_files"], 30, "the store to take the file over")
    peer = site.swarm.nodes[0].cluster
    peer.kill()
    said = one.umount("--drain-timeout", "2s", status=3).stderr
    assert "unmounted; 1 files with 5 B are in the journal" in said
    peer.start()
    site.swarm.await_ready()
    again = site.mount(0)
    assert os.listdir(again.path) == ["left"]
    again.umount()
    assert (site.mount(1).path / "left").read_bytes() == b"12345"
