"""How peers are started and ended, on programs that only pretend to be them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from s3vol_bench.endpoint import Endpoint
from s3vol_bench.errors import BenchError
from s3vol_bench.rows import Promise
from s3vol_bench.targets import base
from s3vol_bench.targets.base import Ground, Launch, Target, mounted
from s3vol_bench.targets.filesystems import peers
from tests.support.minio import wait_for

ENDPOINT = Endpoint("http://127.0.0.1:1", "us-east-1", "bucket", "run/", "an-access-key", "a-secret-key", "a-token")
KEYS = {ENDPOINT.access_key, ENDPOINT.secret_key, ENDPOINT.session_token or ""}
REDIS = "while [ $# -gt 0 ]; do [ $1 = --unixsocket ] && : > $2; shift; done; exec sleep 60"


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Where a mount could be made, if something answered at the endpoint."""
    state = tmp_path / "state"
    state.mkdir()
    return Ground(ENDPOINT, "peer/", tmp_path / "ground", state)


def pretend(folder: Path, name: str, script: str) -> None:
    """Put a shell script into a folder under the name of a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("target", peers(), ids=lambda target: target.name)
def test_no_command_line_has_a_key_in_it(target: Target, ground: Ground) -> None:
    assert not [word for word in target.launch(ground).command if any(key in word for key in KEYS)]


def test_juicefs_is_formatted_with_keys_from_the_environment(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    pretend(tmp_path / "bin", "redis-server", REDIS)
    pretend(tmp_path / "bin", "juicefs", f'echo "$@" > {seen}; echo $ACCESS_KEY $SECRET_KEY $SESSION_TOKEN >> {seen}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    prepare = next(target.prepare for target in peers() if target.name == "juicefs")
    assert prepare
    with prepare(ground):
        words, keys = seen.read_text().splitlines()
    assert set(keys.split()) == KEYS
    assert not any(key in words for key in KEYS)


def test_juicefs_stages_until_no_block_waits(tmp_path: Path) -> None:
    stages = next(target.stages for target in peers() if target.name == "juicefs-write-back")
    assert stages
    blocks = tmp_path / "volume" / "rawstaging" / "chunks" / "0"
    assert not stages(tmp_path)
    blocks.mkdir(parents=True)
    assert not stages(tmp_path)
    (blocks / "1_0_4096").touch()
    assert stages(tmp_path)


def test_the_children_of_a_mount_that_never_comes_are_killed(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "START_S", 0.5)
    pids = ground.state / "pids"
    supervised = f"sleep 60 & echo $$ $! > {pids}; wait"
    target = Target("pair", "pair", Promise.BUCKET, lambda _: Launch(["sh", "-c", supervised]), "sh")
    with pytest.raises(BenchError, match="not mounted within"), mounted(target, ground):
        pass
    for pid in map(int, pids.read_text().split()):
        wait_for(partial(gone, pid), 5.0, f"the end of process {pid}")


def gone(pid: int) -> bool:
    """Process 1 reaps a child that lost its parent; until then it has no command line."""
    line = Path(f"/proc/{pid}/cmdline")
    return not line.exists() or not line.read_bytes()
