"""`s3vol plugin uninstall`, and questions at the terminal."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from s3vol.commands import plugin_managed
from s3vol.errors import S3volError
from tests.plugin.fake_docker import answering
from tests.support.minio import wait_for

_DOCKER = """\
#!/bin/sh
shift 2
echo "$*" >> {log}
case "$*" in "plugin disable"*)
  [ -e {enabled} ] || {{ echo "Error response from daemon: plugin is already disabled" >&2; exit 1; }}
  rm {enabled};; "plugin enable"*) : > {enabled};; esac
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `docker`, what it was asked for in `log`, and `enabled` as long as the plugin is."""
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(_DOCKER.format(log=tmp_path / "log", enabled=tmp_path / "enabled"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def uninstall(folder: Path, answers: Mapping[str, Any]) -> list[str]:
    """What the docker command was asked for."""
    socket = folder / "docker.sock"
    with answering(socket, answers):
        plugin_managed.run(argparse.Namespace(action="uninstall", docker_socket=str(socket)))
    return (folder / "log").read_text().splitlines()


def test_a_managed_plugin_that_is_disabled_can_be_uninstalled(engine: Path) -> None:
    answers = {
        "GET /containers/json": [],
        "GET /volumes": {"Volumes": []},
        "GET /plugins/s3vol/json": {"Enabled": False},
    }
    assert uninstall(engine, answers)[-1] == "plugin rm --force s3vol"


def test_a_managed_plugin_is_not_left_on_an_empty_registry(engine: Path) -> None:
    (engine / "enabled").touch()
    answers = {
        "GET /containers/json": [],
        "GET /volumes": {"Volumes": [{"Name": "web", "Driver": "s3vol:latest"}]},
        "GET /plugins/s3vol/json": {"Enabled": True},
        "GET /volumes/web": (500, {"message": "driver is busy"}),
    }
    with pytest.raises(S3volError, match="still has records of web"):
        uninstall(engine, answers)
    assert (engine / "log").read_text().splitlines()[-1] == "plugin rm --force s3vol"
    assert not (engine / "enabled").exists()


@pytest.mark.parametrize("key", ["Ctrl-C", "Ctrl-D"])
def test_an_interrupt_ends_a_question_at_once_and_nothing_is_deleted(tmp_path: Path, key: str) -> None:
    (tmp_path / "registry").mkdir()
    variables = {**os.environ, "S3VOL_PLUGIN_SOURCE": f"file://{tmp_path}/registry", "S3VOL_PLUGIN_NODE": "n1"}
    variables["S3VOL_PLUGIN_ADMIN_SOCKET"] = str(tmp_path / "none")
    command = [sys.executable, "-m", "s3vol", "volume"]
    subprocess.run([*command, "create", "web"], env=variables, check=True, timeout=60, stdout=subprocess.DEVNULL)
    terminal, typed = os.openpty()
    with subprocess.Popen(
        [*command, "rm", "--data", "web"], env=variables, stdin=typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as asking:
        try:
            assert asking.stdout is not None
            said = b""
            while b"to go on: " not in said:
                said += os.read(asking.stdout.fileno(), 4096)
            if key == "Ctrl-C":
                stat = Path(f"/proc/{asking.pid}/stat")  # a signal between the question and read(2) is noticed after it
                wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", 30, "the read")
                asking.send_signal(signal.SIGINT)
            else:
                os.write(terminal, b"\x04")
            assert asking.wait(10) != 0
            assert b"Traceback" not in said + asking.stdout.read()
        finally:
            asking.kill()
            os.close(terminal)
            os.close(typed)
    listed = subprocess.run([*command, "ls"], env=variables, capture_output=True, text=True, check=True, timeout=60)
    assert "web" in listed.stdout
