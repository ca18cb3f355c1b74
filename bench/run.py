"""`make bench`: the suite on a MinIO of its own, as `s3vol bench` runs it on any endpoint (bench/README.md).

Arguments go to `s3vol bench`. The server is one process on loopback, on the same disk and cores as everything else:
what counts are ratios within the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.support.minio import Minio


def main() -> int:
    """The exit status of `s3vol bench`."""
    with Minio() as server:
        source = f"s3://{server.new_bucket('bench')}"
        command = [sys.executable, "-m", "s3vol", "bench", source, "--endpoint", server.endpoint, *sys.argv[1:]]
        benchmark = subprocess.Popen(command, env={**os.environ, **server.environment})
        signal.signal(signal.SIGTERM, lambda *_: benchmark.terminate())
        while True:
            try:
                return benchmark.wait()
            except KeyboardInterrupt:  # the benchmark got it, too, and tidies up: it needs the server for that
                continue


if __name__ == "__main__":
    sys.exit(main())
