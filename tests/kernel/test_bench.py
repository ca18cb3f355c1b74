"""The benchmark suite measures what it says, on a real MinIO; figures are kept as a file and decide nothing here."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3vol import mounts
from tests.kernel.harness import environment_for
from tests.kernel.rig import Bucket
from tests.support.minio import Minio, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.minio, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "dist" / "bench"
ROWS = "write-1,read-cached,create-1,create-8,stat-cold,read-small-cold-8,rename,delete-1,append-fsync,ttfb,randread-4k"


def bench(minio: Minio, folder: Path, source: str, *words: str) -> subprocess.Popen[str]:
    """`s3vol bench`, as users start it."""
    command: Sequence[str] = (sys.executable, "-m", "s3vol", "bench", source, "--endpoint", minio.endpoint, *words)
    return subprocess.Popen(
        command,
        env={**environment_for(folder, minio.environment), "TMPDIR": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_suite_runs_beside_the_endpoint_the_disk_and_s3fs_and_keeps_its_report(
    minio: Minio, bucket: Bucket, tmp_path: Path
) -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    bucket.client.put_object(Bucket=bucket.name, Key="mine", Body=b"x")
    words = ("--size", "tiny", "--repeats", "1", "--rows", ROWS, "--out", str(KEPT))
    run = bench(minio, tmp_path, f"s3://{bucket.name}", *words, "--targets", "plain,s3vol,s3vol-write-back,s3fs,disk")
    said, errors = run.communicate(timeout=550)
    assert run.returncode == 0, f"{said}\n{errors}"
    assert f"each way, below s3://{bucket.name}/s3vol-bench-" in errors
    result = json.loads((KEPT / "result.json").read_text())
    ours = {(s["row"], s["target"]) for s in result["samples"] if s["value"] and not s["error"]}
    for target in ("s3vol", "s3vol-write-back", "disk"):
        assert {row for row, name in ours if name == target} >= set(ROWS.split(",")), target
    assert {"create-1", "write-1", "ttfb"} <= {row for row, name in ours if name == "plain"}
    assert "create-1" in (KEPT / "report.md").read_text()
    assert "<svg" in (KEPT / "report.html").read_text()
    assert bucket.all_keys() == ["mine"], "something is left in the bucket"


def test_after_an_interrupt_nothing_is_left_behind(minio: Minio, bucket: Bucket, tmp_path: Path) -> None:
    run = bench(minio, tmp_path, f"s3://{bucket.name}/some/prefix", "--size", "tiny", "--targets", "s3vol")
    try:
        wait_for(lambda: _mounts_below(tmp_path) != [] or run.poll() is not None, 60, "a mount of the benchmark")
        wait_for(lambda: len(bucket.all_keys()) > 3 or run.poll() is not None, 60, "objects of the benchmark")
        run.send_signal(signal.SIGINT)
        said, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130, f"{said}\n{errors}"
    assert bucket.all_keys() == []
    assert _mounts_below(tmp_path) == []
    assert list(tmp_path.glob("s3vol-bench-*")) == []


def _mounts_below(folder: Path) -> list[str]:
    return [mount.path for mount in mounts.mount_table() if mount.path.startswith(f"{folder}/")]
