"""Everything is killed with -9 in turn under running containers: mount process, driver, dockerd, machine."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.site import Site
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

HEAL_S = 30.0
# Writes files, and writes down on the container's own disk which ones were acknowledged: by dd, which looks at what
# close() says; a shell's redirection does not.
WRITER = """
i=0; while [ ! -e /tmp/stop ]; do
  i=$((i+1)); if echo $i | dd of=/d/file-$i; then echo $i >> /tmp/acknowledged; else sleep 0.1; fi
done 2>/dev/null
touch /tmp/stopped; sleep 1d
"""


def start_writer(site: Site, name: str) -> None:
    """A container `writer` that writes into a volume all the time."""
    site.docker.sleeper("writer", "-v", f"{name}:/d", command=("sh", "-c", WRITER))
    await_written(site, 5)


def acknowledged(site: Site) -> list[str]:
    """The numbers of the files that the writer was told are written."""
    return site.docker.run("exec", "writer", "cat", "/tmp/acknowledged").stdout.split()


def await_written(site: Site, more: int, timeout_s: float = HEAL_S) -> float:
    """Wait until so many more files are written; returns the seconds that took."""
    begin, before = time.monotonic(), len(acknowledged(site))
    wait_for(lambda: len(acknowledged(site)) >= before + more, timeout_s, "the writer to write")
    return time.monotonic() - begin


def stop_writer(site: Site) -> dict[str, bytes]:
    """End the writing; the files that have to be there, by name."""
    site.docker.sh("writer", "touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.05; done")
    return {f"file-{number}": f"{number}\n".encode() for number in acknowledged(site)}


def missing(site: Site, name: str, expected: dict[str, bytes]) -> dict[str, bytes]:
    """What is not in the bucket as it has to be, when everything was unmounted."""
    site.docker.remove_containers()
    site.await_unused(name)
    found = site.objects(name)
    return {key: body for key, body in expected.items() if found.get(key) != body}


@pytest.mark.parametrize("mode", ["writethrough", "writeback"])
def test_a_killed_mount_process_is_replaced_inside_the_running_container(site: Site, mode: str) -> None:
    name = site.create(None, f"cache-mode={mode}")
    start_writer(site, name)
    pid = site.docker.docker("inspect", "--format", "{{.State.Pid}}", "writer")
    for _ in range(3):
        before = site.plugin.worker(name)
        os.kill(before, signal.SIGKILL)
        await_written(site, 20)
        assert site.plugin.worker(name) != before
    assert site.docker.docker("inspect", "--format", "{{.State.Pid}}", "writer") == pid, "it was not restarted"
    assert site.plugin.status(name)["heals"] == 3
    assert missing(site, name, stop_writer(site)) == {}


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
    start_writer(site, name)
    worker = site.plugin.worker(name)
    site.plugin.kill()
    await_written(site, 20)
    site.plugin.start()
    await_written(site, 20)
    assert site.plugin.worker(name) == worker, "the same process serves on"
    assert site.refs(name) == 1
    assert missing(site, name, stop_writer(site)) == {}


def test_a_mount_process_that_dies_while_the_driver_is_dead_is_replaced_by_the_next_driver(site: Site) -> None:
    name = site.create()
    start_writer(site, name)
    worker = site.plugin.worker(name)
    site.plugin.kill()
    os.kill(worker, signal.SIGKILL)
    site.plugin.start()
    await_written(site, 20)
    assert missing(site, name, stop_writer(site)) == {}


def test_a_container_that_ends_while_the_driver_is_dead_leaves_no_mount_for_ever(site: Site) -> None:
    name = site.create()
    start_writer(site, name)
    expected = stop_writer(site)
    site.plugin.kill()
    site.docker.docker("rm", "-f", "writer")  # its Unmount finds nobody, after 15 s
    site.plugin.start()
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    assert site.refs(name) <= 1
    found = site.objects(name)
    assert {key for key in expected if key not in found} == set()
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
        start_writer(site, name)
        for end in (site.docker.kill, site.docker.stop):
            end()
            site.docker.start()
            await_written(site, 20)
        assert site.plugin.tap.count("Mount", name) == 1
        assert site.refs(name) == 1
        assert "in use" in site.docker.refused("volume", "rm", name)
        assert missing(site, name, stop_writer(site)) == {}
    finally:
        site.docker.restart(live_restore=False)


def test_the_crash_of_the_machine_loses_nothing_that_was_closed(site: Site) -> None:
    through, back = site.create(None, "cache-mode=writethrough"), site.create(None, "cache-mode=writeback")
    script = "i=0; while true; do i=$((i+1)); echo $i > /d/file-$i && echo $i; done"
    for name in (through, back):
        site.docker.sleeper(f"w-{name}", "-v", f"{name}:/d", command=("sh", "-c", script))
    wait_for(lambda: len(site.docker.docker("logs", f"w-{back}").split()) > 50, 30.0, "the writers to write")
    logs = {name: site.docker.docker("logs", f"w-{name}").split()[:-1] for name in (through, back)}
    site.reboot()
    for name in (through, back):
        assert site.refs(name) == 0, "nothing runs after a boot"
    assert {f"file-{row}" for row in logs[through]} <= set(site.objects(through))

    def published() -> bool:
        return {f"file-{row}" for row in logs[back]} <= set(site.objects(back))

    wait_for(published, 60.0, "the journal of the dead machine to be published without anybody asking for the volume")
    site.plugin.await_idle()
    assert site.on_host_disk() == []
