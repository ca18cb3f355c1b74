"""Running a job file of fio(1) and reading what it measured.

The job files are in `jobs/`; what differs between rows (sizes, block size, number of jobs) comes as variables, which
fio expands itself, so that each file can be run by hand as well. Written content is one pattern again and again: what
fio makes up by itself could not be checked in the bucket.
"""

from __future__ import annotations

import json
import os
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

from s3vol_bench.errors import BenchError

_LIMIT_S = 300.0


def run(job: str, folder: Path, pattern: Path, **variables: object) -> dict[str, Any]:
    """Run `jobs/<job>.fio` in a folder; what fio says of its (one, summed up) group. Raises BenchError."""
    settings = {name.upper(): str(value) for name, value in variables.items()}
    with resources.as_file(resources.files("s3vol_bench") / "jobs" / f"{job}.fio") as file:
        try:
            done = subprocess.run(
                ["fio", "--output-format=json", str(file)],
                env={**os.environ, **settings, "FOLDER": str(folder), "PATTERN": str(pattern)},
                cwd=folder.parent if folder.exists() else None,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"fio {job}: not done within {_LIMIT_S:g} s") from None
    begin = done.stdout.find("{")
    if begin < 0:
        raise BenchError(f"fio {job}: {' '.join((done.stdout + done.stderr).split())[-300:]}")
    said: dict[str, Any] = json.loads(done.stdout[begin:])["jobs"][0]
    if done.returncode != 0 or said["error"]:
        reason = os.strerror(said["error"]) if said["error"] else " ".join(done.stderr.split())[-300:]
        raise BenchError(f"fio {job}: {reason}")
    return said


def megabytes_per_s(said: dict[str, Any], *directions: str) -> float:
    """Of all jobs together, in units of 10^6 bytes, by fio's own clock."""
    return sum(float(said[direction]["bw_bytes"]) for direction in directions) / 1e6


def operations_per_s(said: dict[str, Any], direction: str) -> float:
    """Of all jobs together, by fio's own clock."""
    return float(said[direction]["iops"])


def operations(said: dict[str, Any], *directions: str) -> int:
    """How many reads or writes there were."""
    return sum(int(said[direction]["total_ios"]) for direction in directions)
