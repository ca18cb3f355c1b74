"""The driver is not there: it dies while dockerd waits for its reply, or does not run when dockerd starts."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.site import Site
from tests.support.minio import Minio, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

LOST_DRIVER_S = 15.0  # dockerd tries a driver that refuses again after 1, 2, 4 and 8 s
SLACK_S = 15.0
CLIENT_S = 60.0


@pytest.fixture
def alone(tmp_path: Path, minio: Minio) -> Iterator[Site]:
    """A machine whose dockerd knows no other test's volumes: each costs 15 s at a start without the driver."""
    site = Site(tmp_path / "alone", minio, "alone")
    try:
        yield site.open()
    finally:
        site.close()


def test_a_driver_that_dies_in_a_mount_is_asked_again(site: Site) -> None:
    name = site.create()
    done: list[subprocess.CompletedProcess[str]] = []
    words = ("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    run = threading.Thread(target=lambda: done.append(site.docker.run(*words)))
    with site.cable.down():
        run.start()
        wait_for(lambda: site.refs(name) == 1, CLIENT_S, "the mount to begin")
        site.plugin.kill()
    site.plugin.start()
    run.join(CLIENT_S)
    assert [one.returncode for one in done] == [125]
    assert "empty request (retry)" in done[0].stderr, "dockerd repeats without the body"
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "echo kept > /d/x")
    assert site.objects(name) == {"x": b"kept\n"}
    assert site.refs(name) == 1, "for all that this driver knows its predecessor's answer is on its way to dockerd"
    site.reboot()
    site.await_unused(name)


def test_dockerd_starts_without_the_driver_and_forgets_no_volume(alone: Site) -> None:
    name = alone.create(None, "uid=33")
    alone.docker.stop()
    alone.plugin.stop()
    alone.docker.launch()
    assert alone.docker.await_ready() < LOST_DRIVER_S + SLACK_S
    alone.plugin.start()
    assert alone.docker.inspect("volume", name)["Options"] == {"uid": "33"}
    alone.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "touch", "/d/x")
    assert alone.objects(name) == {"x": b""}
