"""`make bench`: the mount against plain requests to the same MinIO, in one run (bench/README.md).

Both sides of a ratio are measured in turn, repeat by repeat, so that a slow minute of the machine hits both. Figures
are medians. Rejected: absolute bounds; they measure the machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.mounted import BenchError, mounted
from bench.plain import RANGE_BYTES, Plain
from s3vol.types import KIB, MIB
from tests.support.minio import Minio

SMALL_FILES = 200
SMALL_BYTES = 4 * KIB
LARGE_BYTES = 256 * MIB
LISTED_FOLDERS = 10
LISTED_FILES = 100  # in each
PIECE_BYTES = MIB  # of one read() or write()
WARM_UP_BYTES = 3 * LARGE_BYTES  # more than one measurement has in the page cache


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result. `bound` holds for `ratio`; None: shown only."""

    name: str
    mount: float
    plain: float
    unit: str
    ratio: float
    bound: str | None
    ok: bool
    note: str = ""


class Bench:
    """One server, one bucket, and a scratch folder; each measurement mounts anew."""

    def __init__(self, server: Minio, scratch: Path, repeats: int) -> None:
        self._bucket = server.new_bucket("bench")
        self._environment = server.environment
        self._plain = Plain(server, self._bucket)
        self._scratch = scratch
        self._repeats = repeats
        self._mounts = 0

    def run(self) -> list[Row]:
        """All measurements, in the order of bench/README.md."""
        return [self._small_files(), self._large_write(), self._cold_read(), self._cold_listing()]

    def _on_mount(self, work: Callable[[Path], float], *, warm: bool = False) -> float:
        """`work` on a fresh mount with an empty cache; returns what it returns (seconds)."""
        self._mounts += 1
        folder = self._scratch / f"m{self._mounts}"
        with mounted(f"s3://{self._bucket}", folder, self._environment) as point:
            if warm:
                self._warm_up()
            seconds = work(point)
        shutil.rmtree(folder)  # its pages serve the next one
        return seconds

    def _warm_up(self) -> None:
        """Have the machine back the page cache with real memory, just before what is timed.

        A hypervisor takes back what a virtual machine does not use, after about two seconds, and gives it again page by
        page: seen here, 256 MiB into the page cache at 0.3 GB/s then, and at 1.1 to 5 GB/s right after. That is a cost
        of the hypervisor; which of two measurements pays it is chance.
        """
        piece = bytes(PIECE_BYTES)
        with tempfile.TemporaryFile(dir="/dev/shm", buffering=0) as file:  # memory only: the disk stays idle
            for _ in range(WARM_UP_BYTES // PIECE_BYTES):
                file.write(piece)

    def _small_files(self) -> Row:
        body = os.urandom(SMALL_BYTES)
        mount_s, plain_s = [], []
        counts: Counter[str] = Counter()

        def write(turn: int, point: Path) -> float:
            folder = point / f"small-{turn}"
            folder.mkdir()
            before = self._plain.requests()
            seconds = timed(lambda: [(folder / f"f{n}").write_bytes(body) for n in range(SMALL_FILES)])
            counts.update(self._plain.requests() - before)
            return seconds

        def put(turn: int) -> None:
            for n in range(SMALL_FILES):
                self._plain.put(f"plain-{turn}/f{n}", body)

        for turn in range(self._repeats):
            mount_s.append(self._on_mount(functools.partial(write, turn)))
            plain_s.append(timed(functools.partial(put, turn)))
        a, b = (statistics.median(times) / SMALL_FILES * 1000 for times in (mount_s, plain_s))
        note = "requests a file: " + said(counts, SMALL_FILES * self._repeats)
        return at_most("create, write 4 KiB, close", a, b, "ms", 2.0, note)

    def _large_write(self) -> Row:
        body = os.urandom(LARGE_BYTES)
        mount_s, plain_s = [], []
        for turn in range(self._repeats):
            name = f"written-{turn}"
            mount_s.append(self._on_mount(functools.partial(timed_write, name, body), warm=True))
            self._warm_up()
            start = time.perf_counter()
            self._plain.put(f"plain-{name}", body)
            plain_s.append(time.perf_counter() - start)
        a, b = (LARGE_BYTES / MIB / statistics.median(times) for times in (mount_s, plain_s))
        return shown("write 256 MiB, close", a, b, "MiB/s")

    def _cold_read(self) -> Row:
        self._plain.put("large", os.urandom(LARGE_BYTES))
        mount_s, plain_s = [], []
        for _ in range(self._repeats):
            mount_s.append(self._on_mount(lambda point: timed(lambda: read_file(point / "large")), warm=True))
            self._warm_up()
            plain_s.append(timed(lambda: self._plain.get_ranges("large", LARGE_BYTES)))
        a, b = (LARGE_BYTES / MIB / statistics.median(times) for times in (mount_s, plain_s))
        note = f"plain: ranges of {RANGE_BYTES // MIB} MiB"
        return at_least("cold sequential read of 256 MiB", a, b, "MiB/s", 0.5, note)

    def _cold_listing(self) -> Row:
        for folder in range(LISTED_FOLDERS):
            for n in range(LISTED_FILES):
                self._plain.put(f"listed/d{folder}/f{n}", b"x")
        mount_s, plain_s = [], []
        counts: Counter[str] = Counter()

        def walk(point: Path) -> float:
            before = self._plain.requests()
            seconds = timed(lambda: subprocess.run(["ls", "-lR", point / "listed"], check=True, capture_output=True))
            counts.update(self._plain.requests() - before)
            return seconds

        for _ in range(self._repeats):
            mount_s.append(self._on_mount(walk))
            plain_s.append(timed(lambda: self._plain.list_all("listed/")))
        a, b = (statistics.median(times) * 1000 for times in (mount_s, plain_s))
        return shown("cold ls -lR of 1,000 files in 10 folders", a, b, "ms", "requests: " + said(counts, self._repeats))


def said(counts: Counter[str], times: int) -> str:
    """Requests by kind, as a mean."""
    return ", ".join(f"{count / times:.4g} {kind}" for kind, count in sorted(counts.items()))


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed_write(name: str, body: bytes, point: Path) -> float:
    """Seconds to write `body` sequentially; the time of close() counts."""
    start = time.perf_counter()
    with (point / name).open("wb", buffering=0) as file:
        for offset in range(0, len(body), PIECE_BYTES):
            file.write(body[offset : offset + PIECE_BYTES])
    return time.perf_counter() - start


def read_file(path: Path) -> None:
    """Read once, from start to end. Raises BenchError when bytes are missing."""
    received = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            received += len(piece)
    if received != LARGE_BYTES:
        raise BenchError(f"{path}: read {received} of {LARGE_BYTES} bytes")


def at_most(name: str, mount: float, plain: float, unit: str, bound: float, note: str) -> Row:
    """A row whose ratio may not be over `bound`."""
    ratio = mount / plain
    return Row(name, mount, plain, unit, ratio, f"≤ {bound:g}", ratio <= bound, note)


def at_least(name: str, mount: float, plain: float, unit: str, bound: float, note: str) -> Row:
    """A row whose ratio may not be below `bound`."""
    ratio = mount / plain
    return Row(name, mount, plain, unit, ratio, f"≥ {bound:g}", ratio >= bound, note)


def shown(name: str, mount: float, plain: float, unit: str, note: str = "") -> Row:
    """A row without a bound."""
    return Row(name, mount, plain, unit, mount / plain, None, True, note)


def print_table(rows: list[Row]) -> None:
    """The result for people."""
    print(f"{'':42}{'mount':>10}{'plain':>10}  {'unit':6}{'ratio':>7}  bound")
    for row in rows:
        verdict = f"{row.bound} {'ok' if row.ok else 'NOT MET'}" if row.bound else ""
        print(f"{row.name:42}{row.mount:10.2f}{row.plain:10.2f}  {row.unit:6}{row.ratio:7.2f}  {verdict}")
        if row.note:
            print(f"{'':4}{row.note}")


def main() -> int:
    """Measure, print, and return 1 when a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="The mount against plain requests.")
    parser.add_argument("--repeats", type=int, default=5, help="how often each figure is measured (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    arguments = parser.parse_args()
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    with (
        tempfile.TemporaryDirectory(prefix="s3vol-bench-") as scratch,
        Minio(environment={"MINIO_PROMETHEUS_AUTH_TYPE": "public"}) as server,
    ):
        rows = Bench(server, Path(scratch), arguments.repeats).run()
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    result = json.dumps({"repeats": arguments.repeats, "machine": machine, "rows": [asdict(row) for row in rows]})
    print_table(rows)
    print(result)
    if arguments.json:
        arguments.json.write_text(result + "\n")
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
