"""Volumes in IPFS on three machines in a swarm, with no server anywhere: what docs/docker.md promises of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import Engine
from tests.docker.images import BUSYBOX
from tests.docker.ipfsswarm import IpfsSwarmSite
from tests.docker.plugin import Plugin
from tests.docker.site import fresh
from tests.docker.swarmsite import SERVICE, fetch, mount
from tests.support.ipfs_config import PASSWORD
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.ipfs, pytest.mark.kernel, pytest.mark.soak]

NODES = {"node1", "node2", "node3"}
SERVE = ("httpd", "-f", "-p", "80", "-h", "/www")


@pytest.fixture(scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpfsSwarmSite]:
    site = IpfsSwarmSite(tmp_path_factory.mktemp("ipfs-swarm"))
    try:
        yield site.start()
    finally:
        site.close()


@pytest.fixture
def swarm(_site: IpfsSwarmSite) -> Iterator[IpfsSwarmSite]:
    """Three machines in a swarm: all run, no service, nothing mounted."""
    yield _site
    _site.tidy()


def heal_of(plugin: Plugin, volume: str) -> int:
    """How many mounts were put back into containers."""
    return int(plugin.status(volume)["heals"])


def test_three_web_servers_show_what_one_of_them_wrote_and_a_dead_node_takes_nothing_along(
    swarm: IpfsSwarmSite,
) -> None:
    volume = fresh("web")
    where = mount(volume, "/www", backend="ipfs", replicas="2")
    swarm.docker(*SERVICE, "--name", "web", "--replicas", "3", *where, BUSYBOX, *SERVE)
    tasks = swarm.await_tasks("web", 3)
    assert set(tasks.values()) == NODES, "one on each node"
    for number, (writer, node) in enumerate(tasks.items()):
        swarm.engine_of(node).sh(writer, f"echo 'page {number}' > /www/page.html; echo {number} > /www/only-{number}")
        for container, place in tasks.items():
            assert fetch(swarm.engine_of(place), container, "page.html") == f"page {number}\n"
    doomed = swarm.engines[2]
    last = next(container for container, node in tasks.items() if node == "node3")
    doomed.sh(last, "seq 100000 > /www/last-words; dd if=/dev/urandom of=/www/blob bs=1M count=8 2>/dev/null")
    digest = doomed.sh(last, "md5sum < /www/blob")
    swarm.crash(doomed)
    survivors = swarm.await_tasks("web", 3, without="node3")
    for container, node in survivors.items():
        assert fetch(swarm.engine_of(node), container, "last-words").splitlines()[-1] == "100000"
        assert swarm.engine_of(node).sh(container, "cat /www/only-*; md5sum < /www/blob") == f"0\n1\n2\n{digest}"
    writer, node = next(iter(survivors.items()))
    swarm.engine_of(node).sh(writer, "echo 'page of survivors' > /www/page.html")
    swarm.reboot(doomed)
    seen = doomed.docker("run", "--rm", "-v", f"{volume}:/www", BUSYBOX, "sh", "-c", "cat /www/page.html /www/only-2")
    assert seen == "page of survivors\n2"
    swarm.remove("web")
    assert swarm.on_host_disk() == []


def test_a_volume_made_on_one_node_is_found_by_name_on_all_and_its_removal_too(swarm: IpfsSwarmSite) -> None:
    volume = fresh("docs")
    one, two, three = swarm.engines
    one.docker("volume", "create", "-d", "s3vol", "-o", "backend=ipfs", "-o", "uid=33", volume)
    assert two.inspect("volume", volume)["Status"]["options"] == {"uid": "33"}
    assert volume in two.volumes()
    three.sleeper("user", "-v", f"{volume}:/d")  # no driver, no options: what `external: true` becomes
    assert three.inspect("volume", volume)["Driver"] == "s3vol"
    three.sh("user", "echo here > /d/made; chown 33 /d/made")
    assert two.docker("run", "--rm", "-v", f"{volume}:/d", BUSYBOX, "cat", "/d/made") == "here"
    assert "node3" in one.refused("volume", "rm", volume)
    other = swarm.plugins[1].ask("Create", {"Name": volume, "Opts": {"uid": "34"}})
    assert "exists already" in str(other["Err"])
    three.docker("rm", "-f", "user")
    swarm.await_idle()
    wait_for(lambda: one.run("volume", "rm", volume).returncode == 0, 30.0, "the volume to be free")
    wait_for(lambda: volume not in two.volumes(), 40.0, "the other node to know of the removal")
    assert "s3vol volume undelete" in two.refused("volume", "create", "-d", "s3vol", "-o", "uid=33", volume)
    assert swarm.plugins[1].cli("volume", "undelete", volume).returncode == 0
    assert three.docker("run", "--rm", "-v", f"{volume}:/d", BUSYBOX, "cat", "/d/made") == "here"
    swarm.await_idle()
    assert collected(swarm, 2, volume)


def collected(swarm: IpfsSwarmSite, number: int, volume: str) -> str:
    """What `s3vol gc` says of a volume on a node, typed as docs/docker.md says."""
    cache = f"/var/cache/s3vol/volumes/{swarm.plugins[number].status(volume)['uuid']}"
    reach = f"cluster={swarm.ipfs.nodes[number].cluster_url},cluster-login=/etc/s3vol/credentials.d/test"
    done = swarm.plugins[number].cli("gc", "--cache-dir", cache, "-o", reach, f"ipfs://{volume}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_killed_mount_is_healed_in_its_container_and_a_killed_daemon_goes_on(swarm: IpfsSwarmSite) -> None:
    volume, engine, plugin = fresh("heal"), swarm.manager, swarm.plugins[0]
    engine.docker("volume", "create", "-d", "s3vol", volume)
    engine.sleeper("user", "-v", f"{volume}:/d")
    engine.sh("user", "echo kept > /d/closed")
    os.kill(plugin.worker(volume), signal.SIGKILL)
    wait_for(lambda: heal_of(plugin, volume) == 1, 60.0, "the container's mount to be replaced")
    assert engine.sh("user", "cat /d/closed") == "kept"
    worker = plugin.worker(volume)
    plugin.kill()
    engine.sh("user", "echo on > /d/without-the-daemon")
    plugin.start()
    wait_for(lambda: plugin.mountpoint(volume) != "", 30.0, "the daemon to find its mount")
    assert plugin.worker(volume) == worker
    assert engine.sh("user", "cat /d/closed /d/without-the-daemon") == "kept\non"
    engine.docker("rm", "-f", "user")
    plugin.await_idle()
    assert swarm.worker.docker("run", "--rm", "-v", f"{volume}:/d", BUSYBOX, "cat", "/d/without-the-daemon") == "on"


def test_the_login_of_the_cluster_is_shown_nowhere(swarm: IpfsSwarmSite) -> None:
    volume, engine, plugin = fresh("secret"), swarm.manager, swarm.plugins[0]
    engine.docker("volume", "create", "-d", "s3vol", volume)
    engine.sleeper("user", "-v", f"{volume}:/d")
    shown = [
        engine.docker("volume", "inspect", volume),
        plugin.cli("volume", "inspect", volume).stdout,
        plugin.cli("plugin", "status").stdout,
        plugin.cli("doctor", "--docker").stdout,
        plugin.log,
        engine.log,
        str(engine.node.processes()),
        *(path.read_text(errors="replace") for path in logs_and_records(engine)),
    ]
    assert all(shown)
    assert [text for text in shown if PASSWORD in text] == []
    said = engine.refused("volume", "create", "-d", "s3vol", "-o", f"cluster=http://u:{PASSWORD}@10.0.0.1:1", "x")
    assert "must not hold credentials" in said
    assert PASSWORD not in said


def logs_and_records(engine: Engine) -> list[Path]:
    """Files that the driver and its mounts write, as text."""
    folders = (engine.node.folder / "lib/s3vol", engine.node.folder / "cache/s3vol/volumes")
    return [path for folder in folders for path in folder.rglob("*") if path.suffix in (".json", ".log")]


def test_daemons_that_do_not_answer_refuse_a_volume_and_leave_used_ones_alone(swarm: IpfsSwarmSite) -> None:
    volume, engine = fresh("used"), swarm.manager
    engine.docker("volume", "create", "-d", "s3vol", "-o", "timeout=3s", volume)
    engine.sleeper("user", "-v", f"{volume}:/d")
    engine.sh("user", "echo before > /d/file")
    said = engine.refused("volume", "create", "-d", "s3vol", "-o", "cluster=http://127.0.0.1:9", fresh())
    assert "IPFS-Cluster at http://127.0.0.1:9" in said
    swarm.ipfs.nodes[0].kill()
    said = engine.refused("volume", "create", "-d", "s3vol", fresh())
    assert "is it running" in said
    assert volume in engine.volumes()
    assert "Input/output error" in engine.refused("exec", "user", "cat", "/d/file")
    swarm.ipfs.nodes[0].start()
    swarm.ipfs.await_ready()
    assert engine.sh("user", "cat /d/file") == "before"
    engine.sh("user", "echo after > /d/file")
    assert swarm.worker.docker("run", "--rm", "-v", f"{volume}:/d", BUSYBOX, "cat", "/d/file") == "after"
