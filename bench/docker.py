"""`make bench-docker`: how long a container waits for its volume (bench/README.md).

Theory of operation. The clock runs from the start of `docker run` to the first byte that the container has read from
its volume and written to its output. Each run of s3vol has a volume that this machine has never mounted: a new mount
process, an empty cache, one object in the bucket. The same run with a local volume is what Docker itself costs; both
are measured in turn, repeat by repeat, and what counts is the difference of the medians. dockerd, the driver and the
bucket are the real ones, on a machine in namespaces of its own.

Rejected: a ratio. Docker's own share differs by kernel and version, and what is added to it is what users wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from s3vol_bench.errors import BenchError
from tests.docker.engine import Engine, client
from tests.docker.images import BUSYBOX
from tests.docker.node import Node
from tests.docker.plugin import Cable, Plugin
from tests.support.minio import Minio

BOUND_S = 1.0
FILE = "first"
BODY = b"x" * 4096
RUN_S = 60.0


class Machine:
    """A machine with dockerd and the driver, and a bucket."""

    def __init__(self, folder: Path, server: Minio) -> None:
        self._bucket = server.new_bucket("bench")
        self._objects = server.client()
        self._node = Node("bench", folder)
        self._node.boot()
        self._cable = Cable(self._node, server)
        self._plugin = Plugin(self._node, f"s3://{self._bucket}", self._cable.endpoint)
        self._engine = Engine(self._node)

    def start(self) -> None:
        """The driver before dockerd, as on a real machine; the image is loaded."""
        self._cable.connect()
        self._plugin.configure()
        self._plugin.start()
        self._engine.start().load_images()

    def close(self) -> None:
        """All of it, gone."""
        self._cable.cut()
        self._node.close()

    def make_local(self, name: str) -> str:
        """A local volume with the file; returns its name."""
        self._engine.docker("volume", "create", name)
        self._engine.docker("run", "-i", "--rm", "-v", f"{name}:/data", BUSYBOX, "tee", f"/data/{FILE}", stdin=BODY)
        return name

    def make_remote(self, name: str) -> str:
        """A volume of s3vol with the file, never mounted; returns its name."""
        self._engine.docker("volume", "create", "-d", "s3vol", name)
        self._objects.put_object(Bucket=self._bucket, Key=f"{name}/{FILE}", Body=BODY)
        return name

    def first_byte_s(self, volume: str) -> float:
        """Seconds from `docker run` to the first byte. Nothing of the run is left when this returns."""
        words = ("run", "--rm", "-v", f"{volume}:/data", BUSYBOX, "cat", f"/data/{FILE}")
        begin = time.perf_counter()
        process = subprocess.Popen(
            [client(), "-H", self._engine.host, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None
        first = process.stdout.read(1)
        took_s = time.perf_counter() - begin
        rest, said = process.communicate(timeout=RUN_S)
        if first + rest != BODY:
            raise BenchError(f"volume {volume}: read {len(rest)} bytes; {said.decode().strip()} {self._plugin.log}")
        self._plugin.await_idle()
        return took_s


@contextmanager
def machine(folder: Path, server: Minio) -> Iterator[Machine]:
    """A machine that runs."""
    made = Machine(folder, server)
    try:
        made.start()
        yield made
    finally:
        made.close()


def measure(machine: Machine, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds with s3vol and with a local volume, after one run of each that does not count."""
    local = machine.make_local("local")
    volumes = [machine.make_remote(f"v{turn}") for turn in range(repeats + 1)]
    remote_s, local_s = [], []
    for volume in volumes:
        remote_s.append(machine.first_byte_s(volume))
        local_s.append(machine.first_byte_s(local))
    return remote_s[1:], local_s[1:]


def said(times: Sequence[float]) -> str:
    """Median and spread."""
    return f"{statistics.median(times):6.3f} s   ({min(times):.3f} to {max(times):.3f})"


def main() -> int:
    """Measure, print, and return 1 when the bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.docker", description="How long a container waits.")
    parser.add_argument("--repeats", type=int, default=9, help="how often each figure is measured (default 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    arguments = parser.parse_args()
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a service is not told to compile its modules at each start
    with (
        tempfile.TemporaryDirectory(prefix="s3vol-bench-", ignore_cleanup_errors=True) as scratch,
        Minio() as server,
        machine(Path(scratch) / "node", server) as node,
    ):
        remote_s, local_s = measure(node, arguments.repeats)
    added_s = statistics.median(remote_s) - statistics.median(local_s)
    print("from `docker run` to the first byte of a volume that was never mounted here")
    print(f"    s3vol        {said(remote_s)}")
    print(f"    local volume {said(local_s)}")
    print(f"    added        {added_s:6.3f} s   bound ≤ {BOUND_S:g} s {'ok' if added_s <= BOUND_S else 'NOT MET'}")
    about = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    result = json.dumps({"machine": about, "s3vol_s": remote_s, "local_s": local_s, "added_s": added_s})
    print(result)
    if arguments.json:
        arguments.json.write_text(result + "\n")
    return 0 if added_s <= BOUND_S else 1


if __name__ == "__main__":
    sys.exit(main())
