"""The object store is down, or accepts connections and says nothing: who waits, for how long, and who does not.

Plugin time is what passes between dockerd's request and the driver's reply, seen by the tap between them.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.site import Site, fresh, within
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

PLUGIN_S = 0.2
LOOKUP_S = 2.5  # a name that is not known may be looked up in the bucket, for 2 s at most
MOUNT_MAX_S = 115.0  # dockerd gives up after 120 s, and neither undoes nor repeats then


@pytest.fixture(params=["refused", "silent"])
def outage(request: pytest.FixtureRequest, site: Site) -> str:
    """The way in which the server is down. `down` below does it."""
    return str(request.param)


def down(site: Site, how: str) -> AbstractContextManager[None]:
    """Context in which the server is down."""
    return site.cable.silent() if how == "silent" else site.cable.down()


def test_questions_are_answered_in_200_ms(site: Site, outage: str) -> None:
    used, idle = site.create(), site.create()
    site.docker.sleeper("user", "-v", f"{used}:/d")
    site.docker.volumes()
    site.plugin.tap.forget()
    with down(site, outage):
        end = time.monotonic() + 12.0  # longer than the driver believes its copy of the registry without asking
        while time.monotonic() < end:
            assert {used, idle} <= set(site.docker.volumes())
            for name in (used, idle):
                assert site.docker.inspect("volume", name)["Driver"] == "s3vol"
            with within(2.0, "docker ps"):
                assert site.docker.docker("ps", "-q")
            site.docker.docker("exec", "user", "true")
    slow = [call for call in site.plugin.tap.calls() if call.took_s > PLUGIN_S]
    assert [(call.verb, call.name, round(call.took_s, 3)) for call in slow] == []
    assert site.plugin.tap.count("Get") > 20


def test_a_name_that_is_not_known_is_looked_up_for_two_seconds_and_local_volumes_go_on(site: Site, outage: str) -> None:
    with down(site, outage):
        time.sleep(6.0)  # the copy of the registry is fresh for 5 s; only then is an unknown name asked for
        took_s, said = site.plugin.timed_ask("Get", {"Name": fresh()})
        assert said["Err"] == "no such volume"
        assert took_s < LOOKUP_S
        local = fresh()
        with within(5.0, "a run with a local volume"):
            site.docker.docker("run", "--rm", "-v", f"{local}:/d", BUSYBOX, "touch", "/d/x")
    assert site.docker.inspect("volume", local)["Driver"] == "local"
    site.docker.docker("volume", "rm", local)


def test_containers_that_use_cached_data_go_on(site: Site, outage: str) -> None:
    name = site.create(None, "cache-mode=writeback")
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "seq 100000 > /d/data")
    site.plugin.await_idle()
    site.docker.sleeper("reader", "-v", f"{name}:/d", command=("sleep", "1d"))
    script = (
        "exec 3< /d/data 4>> /d/log 5< /d/data; md5sum <&3; touch /tmp/open;"
        "while [ ! -e /tmp/go ]; do sleep 0.1; done; echo during >&4; md5sum <&5"
    )
    done: list[str] = []
    worker = threading.Thread(target=lambda: done.append(site.docker.run("exec", "reader", "sh", "-ec", script).stdout))
    worker.start()
    wait_for(lambda: site.docker.run("exec", "reader", "ls", "/tmp/open").returncode == 0, 20.0, "the files to be open")
    with down(site, outage):
        site.docker.sh("reader", "touch /tmp/go")
        worker.join(20.0)
        assert not worker.is_alive(), "reading an open file and writing to one waited for the server"
    first, second = done[0].splitlines()
    assert first == second
    site.docker.remove_containers()
    site.await_unused(name)
    assert site.objects(name)["log"] == b"during\n"


def test_a_mount_waits_for_a_server_that_comes_back(site: Site) -> None:
    name = site.create()
    done: list[str] = []
    run = threading.Thread(
        target=lambda: done.append(site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "ls", "/d"))
    )
    with site.cable.silent():
        run.start()
        wait_for(lambda: site.plugin.log.count("mount") > 0, 10.0, "the mount to begin")
        time.sleep(15.0)
        assert run.is_alive()
    run.join(60.0)
    assert done == [""]


def test_a_mount_gives_up_in_time_says_why_and_leaves_nothing(site: Site) -> None:
    name = site.create()
    with site.cable.down():
        begin = time.monotonic()
        said = site.docker.refused("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true", timeout_s=200.0)
        took_s = time.monotonic() - begin
    assert 5.0 < took_s < MOUNT_MAX_S
    assert "deadline exceeded" not in said, "dockerd gave up first"
    assert "9000" in said or "not mounted within" in said, said
    assert site.plugin.mounted() == []
    assert site.refs(name) == 0
    assert site.plugin.tap.count("Unmount", name) == 0
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")


def test_a_driver_that_starts_without_a_server_knows_its_volumes(site: Site) -> None:
    name = site.create()
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "touch", "/d/x")
    site.plugin.stop()
    with site.cable.down():
        site.plugin.start()
        took_s, said = site.plugin.timed_ask("Get", {"Name": name})
        assert said["Volume"]["Name"] == name
        assert took_s < PLUGIN_S
        assert name in site.docker.volumes()
