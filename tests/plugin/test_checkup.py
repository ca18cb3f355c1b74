"""What is found wrong with the driver on a node: each finding by itself, and all of it through the command."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol.cli import main
from s3vol.store.open import open_store
from s3vol.store.settings import StoreSettings, parse_source
from s3vol_plugin import checkup, records
from s3vol_plugin.base import Usage
from s3vol_plugin.checkup import Facts, Served, examine_mounts, judge
from s3vol_plugin.docker_api import Container, DockerVolume
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume, encode
from tests.plugin.fake_docker import answering

HEALTHY = {"socket": Path("/s"), "socket_error": "", "docker_socket": Path("/d"), "docker_error": ""}


@pytest.fixture(autouse=True)
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mounted on this machine is not these tests' concern."""
    monkeypatch.setattr("s3vol_plugin.checkup.read_namespaces", list)


def facts(**values: object) -> Facts:
    """A healthy node, but for `values`."""
    return Facts(**{**HEALTHY, "drivers": ["local", "s3vol"], **values})  # type: ignore[arg-type]  # values are Facts' own


def test_a_healthy_node_has_no_findings() -> None:
    volumes = [DockerVolume("web", "s3vol", "", {}), DockerVolume("scratch", "local", "/l", {})]
    users = [Container("1", "one", True, {"web": "s3vol"})]
    served = [Served("web", "/m", {"refs": 1, "in_use": True})]
    assert judge(facts(volumes=volumes, containers=users, served=served, skew_s=0.4)) == []


def test_a_missing_socket_says_how_to_get_one() -> None:
    (line,) = judge(facts(socket_error="does not exist", drivers=["local"]))
    assert "socket /s is missing" in line
    assert "s3vol plugin install" in line


def test_a_driver_that_does_not_answer_is_restarted() -> None:
    (line,) = judge(facts(socket_error="/s: Connection refused"))
    assert "systemctl restart s3vol-plugin" in line


def test_a_driver_that_dockerd_has_not_loaded_is_named() -> None:
    (line,) = judge(facts(drivers=["local"]))
    assert "missing plugin" in line
    assert "docker volume ls" in line


def test_a_local_volume_with_the_name_of_one_of_ours_is_named_with_its_users() -> None:
    volumes = [DockerVolume("web", "local", "/var/lib/docker/volumes/web/_data", {})]
    users = [Container("1", "site", True, {"web": "local"})]
    for known in ({"served": [Served("web", "")]}, {"registered": {"web"}}):
        (line,) = judge(facts(volumes=volumes, containers=users, **known))
        assert "local volume web shadows" in line
        assert "by site" in line
        assert "docker volume rm web" in line


def test_references_that_nobody_holds_are_leaked() -> None:
    leaked = [Served("web", "/m", {"refs": 2, "in_use": False})]
    (line,) = judge(facts(served=leaked))
    assert "web counts 2 references" in line
    assert judge(facts(served=leaked, containers=[Container("1", "a", True, {"web": "s3vol"})])) == []
    assert judge(facts(served=leaked, docker_error="no answer"))[0].startswith("dockerd was not examined")


def test_a_mount_that_waits_for_its_server_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {name: tmp_path / name for name in ("well", "dead", "silent")}
    for point in points.values():
        point.mkdir()
    found = [Usage(os.getpid(), str(point), "/", read_only=False) for point in points.values()]
    monkeypatch.setattr(checkup, "find_usages", lambda *_: found)
    monkeypatch.setattr(checkup, "_STAT_S", 0.2)
    waiting, stat = threading.Event(), os.stat

    def answer(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("/dead"):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        if str(path).endswith("/silent"):
            waiting.wait(30.0)
        return stat(path, **options)

    monkeypatch.setattr("s3vol_plugin.checkup.os.stat", answer)
    dead, silent = examine_mounts([])
    waiting.set()
    assert (dead, silent) == ([found[1]], [found[2]])
    (line,) = judge(facts(silent=silent))
    assert line.startswith(f"mount at {points['silent']} of process")
    assert "server is down or slow" in line


def test_a_dead_mount_and_a_wrong_clock_are_named() -> None:
    lines = judge(facts(dead=[Usage(7, "/m/1", "/", read_only=False)], skew_s=-75.0))
    assert "dead mount at /m/1 of process 7" in lines[0]
    assert "-75 s" in lines[1]


def test_facts_come_from_dockerd_and_from_the_driver_itself(tmp_path: Path) -> None:
    driver = {
        "POST /VolumeDriver.List": {"Volumes": [{"Name": "web", "Mountpoint": "/m"}, {"Name": "idle"}], "Err": ""},
        "POST /VolumeDriver.Get web": {"Volume": {"Name": "web", "Status": {"refs": 1, "in_use": False}}},
    }
    docker = {
        "GET /info": {"Plugins": {"Volume": ["local"]}},
        "GET /volumes": {"Volumes": [{"Name": "idle", "Driver": "local", "Mountpoint": "/l"}]},
        "GET /containers/json": [],
    }
    settings = Settings(
        source="s3://x",
        socket=tmp_path / "s3vol.sock",
        docker_socket=tmp_path / "docker.sock",
        state_directory=tmp_path,
    )
    with answering(settings.socket, driver) as asked, answering(settings.docker_socket, docker):
        found = checkup.gather(settings)
    assert [volume.name for volume in found.served] == ["web", "idle"]
    assert [verb for verb, _ in asked.asked] == ["POST /VolumeDriver.List", "POST /VolumeDriver.Get"]
    lines = judge(found)
    assert [line.split()[0] for line in lines] == ["dockerd", "local", "volume"]
    assert all("\n" not in line for line in lines)


def test_a_node_without_anything_is_three_findings_and_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = Settings(source="", socket=tmp_path / "a.sock", docker_socket=tmp_path / "b.sock")
    monkeypatch.setattr("s3vol.commands.doctor_docker.node_settings", lambda: nowhere)
    assert main(["doctor", "--docker"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert str(nowhere.socket) in lines[0]
    assert "s3vol plugin install" in lines[2]
    assert main(["doctor", "--docker", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 3


def test_the_registry_in_a_bucket_adds_its_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    web = Volume("web", "a" * 32, "s3://volumes/web", "2026-01-01T00:00:00Z", "node1")
    trio.run(_write_records, bucket, [web, replace(web, name="gone", uuid="b" * 32, removed_at="2026-01-02T00:00:00Z")])
    nowhere = Settings(source="", socket=tmp_path / "a.sock", docker_socket=tmp_path / "docker.sock")
    monkeypatch.setattr("s3vol.commands.doctor_docker.node_settings", lambda: nowhere)
    docker = {
        "GET /info": {},
        "GET /volumes": {
            "Volumes": [{"Name": name, "Driver": "local", "Mountpoint": "/l"} for name in ("web", "gone")]
        },
        "GET /containers/json": [],
    }
    with answering(nowhere.docker_socket, docker):
        assert main(["doctor", "--docker", f"file://{bucket}"]) == 1
        said = capsys.readouterr().out
    assert "local volume web shadows" in said
    assert "local volume gone" not in said


async def _write_records(bucket: Path, volumes: Sequence[Volume]) -> None:
    store = await open_store(parse_source(f"file://{bucket}"), StoreSettings())
    for volume in volumes:
        await store.put(records.key_of(volume.name), encode(volume), metadata={})
    await store.aclose()


def test_doctor_without_a_source_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    assert "--docker" in capsys.readouterr().err
