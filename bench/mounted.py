"""A mount to measure: `s3vol mount` in a process of its own, as users run it, on an empty cache directory.

Nothing of the product is imported: what is measured is what the command does, start of the interpreter excluded.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

START_S = 30.0
STOP_S = 120.0
_POLL_S = 0.01
_COMMAND = Path(sys.executable).with_name("s3vol")


class BenchError(RuntimeError):
    """The measurement could not be made; the message holds what s3vol said."""


@contextlib.contextmanager
def mounted(source: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Mount `source` below `folder` (fresh, so that the cache is cold), and unmount at the end. Raises BenchError."""
    point, log = folder / "mnt", folder / "log"
    point.mkdir(parents=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3VOL_"))}
    variables |= {**environment, "XDG_RUNTIME_DIR": str(folder)}
    command = [str(_COMMAND), "mount", "--foreground", "--cache-dir", str(folder / "cache"), source, str(point)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables)
    try:
        _wait_until_mounted(point, process, log)
        yield point
    finally:
        process.terminate()  # SIGTERM drains and unmounts
        try:
            status = process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            subprocess.run(["fusermount3", "-uz", str(point)], check=False)
            status = -9
    if status != 0:
        raise BenchError(f"s3vol mount ended with {status}: {log.read_text()[-2000:]}")


def _wait_until_mounted(point: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while not os.path.ismount(point):
        if process.poll() is not None or time.monotonic() > end:
            raise BenchError(f"{point} was not mounted: {log.read_text()[-2000:]}")
        time.sleep(_POLL_S)
