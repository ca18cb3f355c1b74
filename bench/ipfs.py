"""`make bench-ipfs`: volumes in IPFS beside MinIO, and what garbage collection leaves (bench/README.md).

Theory of operation. The daemons are the real ones, in a network namespace that has only `lo`, so this needs root. The
parts run one after the other: files through mounts, commits, databases, garbage. The report is written after each, so
that an interrupted run leaves what it has.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfs_bench import commits, files
from ipfs_bench.places import Places
from ipfs_bench.report import Report
from s3vol_bench.command import machine
from s3vol_bench.growth import Chart
from tests.ipfs.churn import Plan, churn
from tests.support import ipfs_binaries, netns
from tests.support.ipfs import Swarm
from tests.support.minio import Minio

MIB = 1 << 20
OUT = Path(__file__).resolve().parents[1] / "dist" / "bench-ipfs"


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a run is."""

    files: files.Amount
    latency_repeats: int
    commits: int
    garbage: Plan


NORMAL = Size(
    files.Amount(large_bytes=256 * MIB, small_files=50, back_files=1000, repeats=3),
    latency_repeats=5,
    commits=1000,
    garbage=Plan(
        commits=200, file_bytes=64 * MIB, kept_bytes=64 * MIB, bound_bytes=16 * 64 * MIB, look_every=20, retention="10s"
    ),
)
QUICK = Size(
    files.Amount(large_bytes=32 * MIB, small_files=10, back_files=100, repeats=1),
    latency_repeats=1,
    commits=40,
    garbage=Plan(commits=20, file_bytes=8 * MIB, kept_bytes=8 * MIB, bound_bytes=64 * MIB, look_every=5),
)


def _files(places: Places, size: Size, report: Report, say: Callable[[str], None]) -> None:
    report.figures = files.measure(places, size.files, say)


def _commits(places: Places, size: Size, report: Report, say: Callable[[str], None]) -> None:
    report.charts.append(trio.run(commits.latency, places, size.latency_repeats, say))


def _databases(places: Places, size: Size, report: Report, say: Callable[[str], None]) -> None:
    chart, facts = trio.run(commits.databases, places, size.commits, say)
    report.charts.append(chart)
    report.facts += facts


def _garbage(places: Places, size: Size, report: Report, say: Callable[[str], None]) -> None:
    plan = size.garbage
    title = f"Kubo's repositories over {plan.commits} commits of a changing file of {plan.file_bytes // MIB} MiB"
    chart = Chart(title, "commits", "MiB")

    def told(commit: int, used_bytes: int) -> None:
        if commit % plan.look_every == 0:
            say(f"{commit} commits, {used_bytes / MIB:.0f} MiB")

    site = places.site()
    try:
        course = churn(site, plan, told)
    finally:
        site.close()
    for name, sizes in zip(("machine that rewrites it", "the other machine"), course.sizes, strict=True):
        for commit, used_bytes in enumerate(sizes, 1):
            chart.add(name, commit, used_bytes / MIB)
            if name == "the other machine":
                chart.add("needed", commit, plan.needed_bytes / MIB)
    report.charts.append(chart)
    written = plan.commits * plan.file_bytes // MIB
    largest, left = (
        ", ".join(f"{size / MIB:.0f}" for size in sizes) for sizes in (map(max, course.sizes), course.left)
    )
    report.facts += [
        f"{plan.commits} commits rewrote {written:,} MiB beside {course.small_commits} commits of the other machine; "
        f"the repositories held at most {largest} MiB, and {left} MiB after the last collection "
        f"(needed: {plan.needed_bytes / MIB:.0f})",
        f"{course.read_back} files were read back, {plan.commits // plan.look_every} meanwhile, the others on both "
        "machines with empty caches after the last collection: all had the SHA-256 of what was closed last",
    ]


PARTS = {"files": _files, "commits": _commits, "databases": _databases, "garbage": _garbage}


def main() -> int:
    """Measure, write the report, print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.ipfs", description="Volumes in IPFS beside MinIO.")
    parser.add_argument("--quick", action="store_true", help="a first look: about a minute")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="where the report goes (default: %(default)s)"
    )
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else NORMAL
    report = Report(_about("quick" if arguments.quick else "normal"))
    netns.isolate()

    def say(line: str) -> None:
        print(f"bench-ipfs: {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, Minio() as server, Swarm(2) as swarm:
        places = Places(swarm, server, Path(scratch))
        for name, part in PARTS.items():
            if arguments.only in (None, name):
                part(places, size, report, say)
                report.save(arguments.out)
    print(report.markdown())
    return 0


def _about(size: str) -> dict[str, str]:
    programs = (ipfs_binaries.KUBO, ipfs_binaries.CLUSTER)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "daemons": ", ".join(f"{program.name} {program.version()}" for program in programs),
        "size": size,
    }


if __name__ == "__main__":
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    sys.exit(main())
