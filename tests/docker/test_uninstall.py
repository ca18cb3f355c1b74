"""`s3vol plugin uninstall` on a real dockerd: nobody loses a volume, and the next dockerd waits for nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import Engine
from tests.docker.node import Node
from tests.plugin.fake_docker import answering

pytestmark = pytest.mark.docker

SOCKET = "run/docker/plugins/s3vol.sock"


def driver(*names: str) -> dict[str, object]:
    """Answers of a driver that has these volumes."""
    answers: dict[str, object] = {
        "POST /Plugin.Activate": {"Implements": ["VolumeDriver"]},
        "POST /VolumeDriver.Capabilities": {"Capabilities": {"Scope": "global"}},
        "POST /VolumeDriver.List": {"Volumes": [{"Name": name, "Mountpoint": ""} for name in names]},
    }
    for name in names:
        answers[f"POST /VolumeDriver.Get {name}"] = {"Volume": {"Name": name}}
        answers[f"POST /VolumeDriver.Mount {name}"] = {"Mountpoint": "/mnt"}
        answers[f"POST /VolumeDriver.Unmount {name}"] = {"Err": ""}
    return answers


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A dockerd on a machine of its own."""
    node = Node("leaving", tmp_path / "node")
    node.boot()
    try:
        engine = Engine(node).start()
        yield engine
        engine.stop()
    finally:
        node.close()


def searches(engine: Engine) -> int:
    """How often dockerd has looked for a driver in vain: it tries again after 1, 2, 4 and 8 s."""
    return len(re.findall("Unable to (?:connect to|locate) plugin", engine.log))


def uninstall(engine: Engine) -> tuple[int, str]:
    """Run the command on the machine; its status and what it said."""
    done = engine.node.run(sys.executable, "-m", "s3vol", "plugin", "uninstall")
    return done.returncode, done.stdout + done.stderr


def test_dockerd_forgets_the_volumes_and_never_asks_for_their_removal(engine: Engine) -> None:
    with answering(engine.node.path(SOCKET), driver("web", "db")) as asked:
        for name in ("web", "db"):
            engine.docker("volume", "create", "-d", "s3vol", name)
        assert engine.volumes() == ["db", "web"]
        status, said = uninstall(engine)
        assert (status, "stop s3vol-plugin first" in said) == (1, True), said
    status, said = uninstall(engine)
    assert status == 0, said
    assert "forgotten 2 volumes" in said
    assert not [verb for verb, _ in asked.asked if verb.endswith("Remove")]
    assert not engine.node.path(SOCKET).exists()
    assert searches(engine) == 0
    engine.restart()
    assert engine.volumes() == []
    assert "No such volume" in engine.refused("volume", "inspect", "web")
    engine.docker("volume", "create", "web")
    assert searches(engine) == 0


def test_a_volume_that_a_container_refers_to_stops_it(engine: Engine) -> None:
    engine.load_images()
    with answering(engine.node.path(SOCKET), driver("web")):
        engine.sleeper("site", "-v", "web:/data", "--volume-driver", "s3vol")
        engine.docker("kill", "site")
        status, said = uninstall(engine)
        assert status == 1
        assert "volume web: is used by container site" in said
        assert engine.volumes() == ["web"]
