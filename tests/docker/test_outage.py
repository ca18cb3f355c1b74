"""The object store is down, or its packets are lost: who waits, for how long, and who does not.

Plugin time is what passes between dockerd's request and the driver's reply, seen by the tap between them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.plugin import PORT
from tests.docker.site import Site, fresh
from tests.docker.tap import Call
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

PLUGIN_S = 0.2
HICCUP_S = 1.0  # a machine that is busy with tests stops anything for a moment; waiting for the server takes 2 s
LOOKUP_S = 2.0  # a name that is not known is looked up in the bucket for so long
OUTAGE_S = 8.0  # longer than the driver uses its copy of the registry without asking for a new one
TIMEOUT_S = 3.0  # the volume's own, instead of 60 s
BEYOND_S = 30.0  # dockerd gives up 60 s after those 60 s; what is on its way in the time-out is waited for, for 10 s
CLIENT_S = 30.0


@contextlib.contextmanager
def lost(site: Site) -> Iterator[None]:
    """Packets to the server are dropped: neither a connection nor an error comes from there."""
    rule = ("INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP")
    site.node.check("iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        site.node.check("iptables", "-w", "-D", *rule)


@contextlib.contextmanager
def down(site: Site, how: str) -> Iterator[None]:
    """The server is down: its port refuses, or is silent."""
    with site.cable.down() if how == "refused" else lost(site):
        yield


@pytest.fixture(params=["refused", "silent"])
def outage(request: pytest.FixtureRequest) -> str:
    """The way in which the server is down: for `down`."""
    return str(request.param)


def check_times(calls: list[Call], bound_s: float) -> None:
    """Calls took the time that is promised, but for a few that the machine was too busy for."""
    took = sorted((call.took_s, call.verb, call.name) for call in calls)
    assert took
    assert took[len(took) * 95 // 100] < (bound_s,), took[-5:]
    assert took[-1] < (bound_s + HICCUP_S,), took[-5:]


def test_questions_are_answered_in_200_ms_and_other_volumes_go_on(site: Site, outage: str) -> None:
    used, idle, local, tap = site.create(), site.create(), fresh(), site.plugin.tap
    site.docker.sleeper("user", "-v", f"{used}:/d")
    tap.forget()
    with down(site, outage):
        end = time.monotonic() + OUTAGE_S
        while time.monotonic() < end or tap.count("List") < 3:
            assert {used, idle} <= set(site.docker.volumes())
            for name in (used, idle):
                assert site.docker.inspect("volume", name)["Driver"] == "s3vol"
            before = len(tap.calls())
            assert site.docker.docker("ps", "-q")
            assert len(tap.calls()) == before, "`docker ps` asks no driver"
            site.docker.docker("exec", "user", "true")
        check_times(tap.calls(), PLUGIN_S)
        assert min(tap.count("Get", used), tap.count("Get", idle)) >= 3
        # A name that is not known here may be a volume of another node, so it is looked up, but not for long
        site.docker.docker("run", "--rm", "-v", f"{local}:/d", BUSYBOX, "touch", "/d/x")
        assert {str(call.reply and call.reply["Err"]) for call in tap.calls("Get", local)} == {"no such volume"}
        check_times(tap.calls("Get", local), LOOKUP_S + PLUGIN_S)
    assert site.docker.inspect("volume", local)["Driver"] == "local"
    site.docker.docker("volume", "rm", local)


def test_containers_that_use_cached_data_go_on(site: Site, outage: str) -> None:
    name = site.create(None, "cache-mode=writeback")
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "seq 100000 > /d/data")
    site.plugin.await_idle()
    site.docker.sleeper("reader", "-v", f"{name}:/d")
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


def test_a_mount_waits_for_a_server_that_comes_back(site: Site, outage: str) -> None:
    name = site.create()
    done: list[str] = []
    run = threading.Thread(
        target=lambda: done.append(site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "ls", "/d"))
    )
    with down(site, outage):
        run.start()
        wait_for(lambda: site.refs(name) == 1, CLIENT_S, "the mount to begin")
        run.join(4.0)
        assert run.is_alive()
        assert site.plugin.mounted() == []
    run.join(60.0)
    assert done == [""]


def test_a_mount_gives_up_in_time_says_why_and_leaves_nothing(site: Site, outage: str) -> None:
    name = site.create(None, f"timeout={TIMEOUT_S:g}s")
    with down(site, outage):
        said = site.docker.refused("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    assert site.cable.endpoint in said
    assert "does not answer within 3 s; try again" in said
    (mount,) = site.plugin.tap.calls("Mount", name)
    assert TIMEOUT_S - 1 < mount.took_s < TIMEOUT_S + BEYOND_S
    assert (site.plugin.mounted(), site.refs(name), site.plugin.tap.count("Unmount", name)) == ([], 0, 0)
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")


def test_a_driver_that_starts_without_a_server_knows_its_volumes(site: Site, outage: str) -> None:
    name = site.create()
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "touch", "/d/x")
    site.plugin.stop()
    with down(site, outage):
        site.plugin.start()
        site.plugin.tap.forget()
        assert name in site.docker.volumes()
        assert site.docker.inspect("volume", name)["Status"]["source"].endswith(name)
        check_times(site.plugin.tap.calls(), PLUGIN_S)
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "ls", "/d/x")
