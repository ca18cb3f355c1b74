"""`make bench`: the suite on a MinIO of its own, as `s3vol bench` runs it on any endpoint (bench/README.md).

Arguments go to `s3vol bench`. The server is one process on loopback, on the same disk and cores as everything else:
what counts are ratios within the run. `--reference` puts the report into bench/results, by date and machine, to be
kept with the code.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.minio import Minio

RESULTS = Path(__file__).resolve().parent / "results"


def reference() -> list[str]:
    """The arguments of a reference run: `bench/results/2026-11-21-2x-amd-epyc`."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    words = re.findall(r"[a-z0-9]+", (found[1] if found else os.uname().machine).lower())
    machine = "-".join([f"{os.cpu_count()}x", *words[:3]])
    return ["--out", str(RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{machine}")]


def main(words: list[str]) -> int:
    """The exit status of `s3vol bench`."""
    if "--reference" in words:
        words = [*(word for word in words if word != "--reference"), *reference()]
    with Minio() as server:
        source = f"s3://{server.new_bucket('bench')}"
        command = [sys.executable, "-m", "s3vol", "bench", source, "--endpoint", server.endpoint, *words]
        benchmark = subprocess.Popen(command, env={**os.environ, **server.environment})
        signal.signal(signal.SIGTERM, lambda *_: benchmark.terminate())
        while True:
            try:
                return benchmark.wait()
            except KeyboardInterrupt:  # the benchmark got it, too, and tidies up: it needs the server for that
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
