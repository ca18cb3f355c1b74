"""Everything is killed with -9 in turn under running containers: mount process, driver, dockerd, machine."""

from __future__ import annotations

import os
import signal

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.site import Site
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

HEAL_S = 60.0  # takes 1.5 s; the third death within minutes is waited after for 2 s more
# Writes files, and writes down on the machine's disk which ones were acknowledged: by dd, which looks at what close()
# says; a shell's redirection does not.
_SCRIPT = """
i=0; while [ ! -e /ledger/stop ]; do
  i=$((i+1)); if echo $i | dd of=/d/file-$i; then echo $i >> /ledger/acknowledged; else sleep 0.1; fi
done 2>/dev/null
touch /ledger/stopped; sleep 1d
"""


class Writer:
    """A container that writes files into a volume all the time. Its list of them outlives it, and the machine."""

    def __init__(self, site: Site, volume: str) -> None:
        self.site = site
        self.volume = volume
        self.name = f"writer-{volume}"
        self._ledger = site.node.folder / "lib/ledgers" / volume
        self._ledger.mkdir(parents=True)
        site.docker.sleeper(
            self.name,
            *("-v", f"{volume}:/d", "-v", f"/var/lib/ledgers/{volume}:/ledger"),
            command=("sh", "-c", _SCRIPT),
        )
        self.await_written(5)

    def acknowledged(self) -> list[str]:
        """The numbers of the files that it was told are written."""
        path = self._ledger / "acknowledged"
        return path.read_text().split() if path.exists() else []

    def await_written(self, more: int, timeout_s: float = HEAL_S) -> None:
        """Wait until so many more files are written."""
        before = len(self.acknowledged())
        wait_for(lambda: len(self.acknowledged()) >= before + more, timeout_s, f"{self.name} to write")

    def stop(self) -> None:
        """End the writing; the container goes on."""
        (self._ledger / "stop").touch()
        wait_for((self._ledger / "stopped").exists, HEAL_S, f"{self.name} to stop")

    def missing(self) -> dict[str, bytes]:
        """What is not in the bucket as it has to be."""
        found = self.site.objects(self.volume)
        expected = {f"file-{number}": f"{number}\n".encode() for number in self.acknowledged()}
        return {key: body for key, body in expected.items() if found.get(key) != body}

    def missing_at_the_end(self) -> dict[str, bytes]:
        """The same, when the container is gone and the volume unmounted."""
        self.stop()
        self.site.docker.remove_containers()
        self.site.await_unused(self.volume)
        return self.missing()


@pytest.mark.parametrize("mode", ["writethrough", "writeback"])
def test_a_killed_mount_process_is_replaced_inside_the_running_container(site: Site, mode: str) -> None:
    name = site.create(None, f"cache-mode={mode}")
    writer = Writer(site, name)
    pid = site.docker.inspect("container", writer.name)["State"]["Pid"]
    for _ in range(3):
        before = site.plugin.worker(name)
        os.kill(before, signal.SIGKILL)
        writer.await_written(20)
        assert site.plugin.worker(name) != before
    assert site.docker.inspect("container", writer.name)["State"]["Pid"] == pid, "it was not restarted"
    # A container has its volume again before the driver has counted that
    wait_for(lambda: site.plugin.status(name)["heals"] == 3, HEAL_S, "three healings")
    assert writer.missing_at_the_end() == {}


def test_a_read_only_mount_is_healed_as_a_read_only_one_and_all_containers_are(site: Site) -> None:
    name = site.create()
    site.docker.sleeper("first", "-v", f"{name}:/d")
    site.docker.sleeper("second", "-v", f"{name}:/one", "-v", f"{name}:/two:ro")
    site.docker.sh("first", "echo hello > /d/greeting")
    os.kill(site.plugin.worker(name), signal.SIGKILL)

    def healed() -> bool:
        ways = (("first", "/d"), ("second", "/one"), ("second", "/two"))
        return all(site.docker.run("exec", who, "cat", f"{path}/greeting").stdout == "hello\n" for who, path in ways)

    wait_for(healed, HEAL_S, "all three mounts to work again")
    assert "Read-only" in site.docker.refused("exec", "second", "sh", "-c", "echo x > /two/x")
    site.docker.sh("second", "echo x > /one/x")
    for container in ("first", "second"):
        site.docker.docker("restart", "-t", "0", container)
    assert site.docker.sh("second", "cat /two/x") == "x"


def test_the_death_of_the_driver_is_nothing_to_containers_and_to_dockerd_a_pause(site: Site) -> None:
    name = site.create()
    writer = Writer(site, name)
    worker = site.plugin.worker(name)
    site.plugin.kill()
    writer.await_written(20)
    site.plugin.start()
    writer.await_written(20)
    assert site.plugin.worker(name) == worker, "the same process serves on"
    assert site.refs(name) == 1
    assert writer.missing_at_the_end() == {}


def test_a_mount_process_that_dies_while_the_driver_is_dead_is_replaced_by_the_next_driver(site: Site) -> None:
    name = site.create()
    writer = Writer(site, name)
    worker = site.plugin.worker(name)
    site.plugin.kill()
    os.kill(worker, signal.SIGKILL)
    site.plugin.start()
    writer.await_written(20)
    assert writer.missing_at_the_end() == {}


def test_a_container_that_ends_while_the_driver_is_dead_leaves_no_mount_for_ever(site: Site) -> None:
    name = site.create()
    writer = Writer(site, name)
    writer.stop()
    site.plugin.kill()
    site.docker.docker("rm", "-f", writer.name)  # its Unmount finds nobody, after 15 s
    site.plugin.start()
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    assert site.refs(name) <= 1
    assert writer.missing() == {}
    site.reboot()
    site.await_unused(name)


def test_the_death_of_dockerd_leaves_counts_that_come_right(site: Site) -> None:
    name = site.create()
    site.docker.docker("run", "-d", "--name", "again", "--restart", "always", "-v", f"{name}:/d", BUSYBOX)
    site.docker.sh("again", "echo hello > /d/greeting")
    (first,) = site.plugin.tap.calls("Mount", name)
    site.docker.kill()
    site.docker.start()
    wait_for(lambda: site.docker.run("exec", "again", "cat", "/d/greeting").stdout == "hello\n", 60.0, "the container")
    mounts = site.plugin.tap.calls("Mount", name)
    assert [call.request["ID"] for call in mounts] == [first.request["ID"]] * 2, "the same ID, and no Unmount between"
    assert site.plugin.tap.count("Unmount", name) == 0
    assert site.objects(name) == {"greeting": b"hello\n"}
    site.reboot()
    wait_for(lambda: site.docker.run("exec", "again", "cat", "/d/greeting").stdout == "hello\n", 60.0, "the container")
    assert site.refs(name) == 1, "a new boot has no references of the old one"
    site.docker.docker("rm", "-f", "again")
    site.await_unused(name)


def test_containers_and_mounts_outlive_a_dockerd_with_live_restore(site: Site) -> None:
    site.docker.restart(live_restore=True)
    try:
        name = site.create()
        writer = Writer(site, name)
        for end in (site.docker.kill, site.docker.stop):
            end()
            site.docker.start()
            writer.await_written(20)
        assert site.plugin.tap.count("Mount", name) == 1
        assert site.refs(name) == 1
        assert "in use" in site.docker.refused("volume", "rm", name)
        assert writer.missing_at_the_end() == {}
    finally:
        site.docker.restart(live_restore=False)


def test_the_crash_of_the_machine_loses_nothing_that_was_closed(site: Site) -> None:
    through, back = site.create(None, "cache-mode=writethrough"), site.create(None, "cache-mode=writeback")
    writers = {name: Writer(site, name) for name in (through, back)}
    writers[back].await_written(50)
    site.reboot()
    for name in (through, back):
        assert site.refs(name) == 0, "nothing runs after a boot"
    assert writers[through].missing() == {}
    # The journal of the dead machine is published without anybody asking for the volume
    wait_for(lambda: writers[back].missing() == {}, 60.0, "what was written back later")
    site.plugin.await_idle()
    assert site.on_host_disk() == []
