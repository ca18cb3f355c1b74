"""The client of dockerd's API: what it makes of answers, errors and silence."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from s3vol.errors import NotFound, Rejected, S3volError, Unavailable
from s3vol_plugin.docker_api import Container, Docker, DockerVolume, request
from tests.plugin.fake_docker import answering


def test_volumes_containers_and_drivers_are_values(tmp_path: Path) -> None:
    mounts = [
        {"Type": "volume", "Name": "web", "Driver": "s3vol"},
        {"Type": "bind", "Source": "/etc"},
    ]
    answers = {
        "GET /info": {"Plugins": {"Volume": ["local", "s3vol"]}},
        "GET /volumes": {"Volumes": [{"Name": "web", "Driver": "s3vol", "Mountpoint": ""}], "Warnings": None},
        "GET /containers/json": [{"Id": "ab" * 32, "Names": ["/one"], "State": "running", "Mounts": mounts}],
    }
    with answering(tmp_path / "docker.sock", answers):
        docker = Docker(tmp_path / "docker.sock")
        assert docker.volume_drivers() == ["local", "s3vol"]
        assert docker.volumes() == [DockerVolume("web", "s3vol", "", {})]
        assert docker.containers() == [Container("ab" * 32, "one", True, {"web": "s3vol"})]


def test_lists_that_dockerd_leaves_out_are_empty(tmp_path: Path) -> None:
    answers = {"GET /info": {"Plugins": {"Volume": None}}, "GET /volumes": {"Volumes": None}}
    with answering(tmp_path / "docker.sock", answers):
        docker = Docker(tmp_path / "docker.sock")
        assert (docker.volume_drivers(), docker.volumes()) == ([], [])


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (409, Rejected), (500, S3volError)])
def test_an_error_of_dockerd_is_one_line_and_has_a_kind(tmp_path: Path, status: int, kind: type[S3volError]) -> None:
    answers = {"DELETE /volumes/a%2Fb": (status, {"message": "volume is in use\nby many"})}
    with (
        answering(tmp_path / "docker.sock", answers),
        pytest.raises(kind, match=r"^dockerd: DELETE /volumes/a%2Fb: volume is in use$"),
    ):
        Docker(tmp_path / "docker.sock").remove_volume("a/b")


def test_a_socket_that_is_missing_or_refuses_is_unavailable_and_named(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with pytest.raises(Unavailable, match=f"{path}: No such file"):
        Docker(path).info()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(Unavailable, match=f"{path}: Connection refused"):
        Docker(path).info()


def test_silence_ends_after_the_time_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            Docker(path, timeout_s=0.2).info()
        assert time.monotonic() - began_s < 2


def test_a_connection_that_is_closed_without_a_reply_is_unavailable(tmp_path: Path) -> None:
    with answering(tmp_path / "s.sock", {"POST /VolumeDriver.Get x": None}), pytest.raises(Unavailable):
        request(tmp_path / "s.sock", "POST", "/VolumeDriver.Get", {"Name": "x"})


def test_a_long_path_of_the_socket_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    short = tmp_path / "s"
    with answering(short, {"GET /info": {}}):
        short.rename(deep / "docker.sock")
        assert Docker(deep / "docker.sock").info() == {}


def test_a_body_that_is_no_json_is_text(tmp_path: Path) -> None:
    with answering(tmp_path / "s.sock", {"GET /info": (502, "bad\ngateway")}):
        assert request(tmp_path / "s.sock", "GET", "/info") == (502, "bad\ngateway")
