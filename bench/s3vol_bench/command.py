"""A whole run, from what was asked for to the files of its report.

The run's prefix is `s3vol-bench-` and a random word below the user's source. It is removed at the end whatever happens;
from then on ^C is not heard, because half of a removal would leave objects that cost money. The local folder for caches
and inputs is removed as well.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from botocore.exceptions import BotoCoreError, ClientError

from s3vol import mounts
from s3vol.errors import S3volError, UsageError
from s3vol.units import format_bytes
from s3vol_bench import compare, growth, page, report, stages
from s3vol_bench.endpoint import Endpoint, Room
from s3vol_bench.errors import BenchError
from s3vol_bench.result import DISK, PLAIN, Contestant, Result, Stage
from s3vol_bench.rows import BY_NAME, QUICK_ROWS, ROWS, Sizes
from s3vol_bench.runner import Order, Runner
from s3vol_bench.targets.base import Target
from s3vol_bench.targets.filesystems import peers, s3vol

_PROGRAMS = ("fio", "git", "tar")
_SPARE_BYTES = 2 << 30
_PREFIX = "s3vol-bench-"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asked for. `rows` and `targets` are names or patterns; empty means all."""

    sizes: Sizes
    repeats: int
    budget_s: float  # further repeats are left out when they would not fit into it
    rows: Sequence[str]
    targets: Sequence[str]
    mount_options: Sequence[str]
    scratch: Path
    out: Path


def chosen_rows(wish: Wish) -> frozenset[str]:
    """The rows that are measured. Raises UsageError for a pattern that names none."""
    if not wish.rows and wish.sizes.name == "quick":
        return QUICK_ROWS
    if not wish.rows:
        return frozenset(row.name for row in ROWS if wish.sizes.name == "long" or not row.long)
    return _matching(wish.rows, list(BY_NAME), "row", "`s3vol bench --list` shows them")


def _matching(patterns: Sequence[str], names: Sequence[str], what: str, hint: str) -> frozenset[str]:
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatch(name, pattern)}
        if not matched:
            raise UsageError(f"no {what} {pattern!r}; {hint}")
        found |= matched
    return frozenset(found)


def check(wish: Wish) -> None:
    """Refuse what cannot be run here, before anything is made. Raises UsageError."""
    chosen_rows(wish)
    for program in _PROGRAMS:
        if not shutil.which(program):
            raise UsageError(f"{program} is missing: install it (`apt-get install {program}`), the benchmark runs it")
    if not wish.scratch.is_dir():
        raise UsageError(f"scratch directory {wish.scratch}: is not a directory")
    free, needed = shutil.disk_usage(wish.scratch).free, 5 * wish.sizes.large_bytes + _SPARE_BYTES
    if free < needed:
        room = f"{format_bytes(free)} free, {format_bytes(needed)} needed"
        raise UsageError(f"scratch directory {wish.scratch}: {room}; name another with --scratch, or take --quick")
    if wish.out.exists() and (not wish.out.is_dir() or any(wish.out.iterdir())):
        raise UsageError(f"output {wish.out}: is there already; name another with --out")


def contestants(wish: Wish) -> tuple[list[Target], list[str], bool, bool]:
    """The targets that run, those that are not on PATH, and whether plain and disk take part. Raises UsageError."""
    every = [*s3vol(wish.mount_options), *peers()]
    names = [PLAIN, *(one.name for one in every), DISK]
    wanted = _matching(wish.targets or ["*"], names, "target", f"there are {', '.join(names)}")
    able = [one for one in every if one.name in wanted and not one.missing()]
    absent = [f"{one.name} ({one.missing()})" for one in every if one.name in wanted and one.missing()]
    if wish.targets and absent:
        raise UsageError(
            f"target {absent[0].replace(' (', ': ').rstrip(')')} is not on PATH; install it or leave it out"
        )
    return able, absent, PLAIN in wanted, DISK in wanted


def traffic_bytes(rows: frozenset[str], sizes: Sizes, turns: int) -> int:
    """About what a run sends, and as much it fetches, small files left out; `turns` is repeats times targets."""
    stream = sizes.large_bytes + 5 * sizes.medium_bytes + sizes.files_5m * (5 << 20)
    scattered = 5 * sizes.medium_bytes
    groups = {BY_NAME[name].group for name in rows}
    each = {"stream": stream, "random": scattered, "matrix": 8 * sizes.large_bytes // 2}
    return turns * sum(size for group, size in each.items() if group in groups)


def run(wish: Wish, endpoint: Endpoint, say: Callable[[str], None]) -> Result:
    """Measure and write the report. Raises UsageError before anything is done, S3volError after."""
    check(wish)
    targets, absent, with_plain, with_disk = contestants(wish)
    order = Order(chosen_rows(wish), wish.sizes, wish.repeats, targets, wish.budget_s, with_disk, with_plain)
    began_s = time.monotonic()
    traffic = traffic_bytes(order.rows, order.sizes, order.repeats * (len(targets) + with_plain))
    with occupied(endpoint, say) as room, _scratch(wish.scratch) as scratch:
        where = f"s3://{room.endpoint.bucket}/{room.endpoint.prefix}"
        print(
            f"s3vol: up to {format_bytes(traffic)} each way, below {where}, which is removed at the end",
            file=sys.stderr,
        )
        runner = Runner(room, order, scratch, say)
        runner.run()
        costs = _stages(wish, room, scratch, say)
        about = _about(wish, room, scratch) | {"repeats": runner.repeats, "absent": absent}
        about["seconds"] = round(time.monotonic() - began_s)
    entries = [Contestant(one.name, one.label, one.promise.value, one.version(), one.is_ours) for one in targets]
    if with_plain:
        entries.insert(0, Contestant(PLAIN, "the endpoint without a file system", "", "", False))
    if with_disk:
        entries.append(Contestant(DISK, "the local disk", "", "", False))
    result = Result(about, tuple(entries), tuple(runner.samples), costs)
    write(result, wish.out)
    return result


def _stages(wish: Wish, room: Room, scratch: Path, say: Callable[[str], None]) -> tuple[Stage, ...]:
    """With a whole run of normal size, where py-spy is there."""
    if wish.rows or wish.targets or wish.sizes.name not in ("normal", "long") or not shutil.which("py-spy"):
        return ()
    try:
        return stages.measure(room, s3vol(wish.mount_options)[0], scratch, say)
    except (BenchError, OSError) as error:
        print(f"s3vol: the stages could not be measured: {error}", file=sys.stderr)
        return ()


def run_stages(wish: Wish, endpoint: Endpoint, say: Callable[[str], None]) -> tuple[Stage, ...]:
    """Where the time of one operation goes. Raises as `run`, BenchError for what cannot be measured."""
    check(wish)
    with occupied(endpoint, say) as room, _scratch(wish.scratch) as scratch:
        return stages.measure(room, s3vol(wish.mount_options)[0], scratch, say)


def run_growth(wish: Wish, endpoint: Endpoint, say: Callable[[str], None]) -> str:
    """Cost as work grows: writes growth.json, growth.md and growth.html; returns the tables. Raises as `run_stages`."""
    check(wish)
    extent = growth.QUICK if wish.sizes.name in ("tiny", "quick") else growth.FULL
    began_s = time.monotonic()
    with occupied(endpoint, say) as room, _scratch(wish.scratch) as scratch:
        try:
            charts = growth.Growth(
                room, s3vol(("--attr-ttl", "1h", *wish.mount_options))[0], scratch, extent, say
            ).run()
        except OSError as error:
            raise BenchError(f"growth: {error}") from None
        about = _about(wish, room, scratch) | {"seconds": round(time.monotonic() - began_s)}
    text = growth.markdown(charts, f"{about['date']}, {about['machine']}")
    with _output(wish.out) as folder:
        growth.save(charts, about, folder / "growth.json")
        (folder / "growth.md").write_text(text)
        (folder / "growth.html").write_text(page.drawn("s3vol: cost as work grows", growth.drawings(charts)))
    return text


@contextlib.contextmanager
def _output(folder: Path) -> Iterator[Path]:
    """The folder of the report. Raises S3volError for what cannot be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise S3volError(f"output {folder}: {error.strerror}") from None


def write(result: Result, folder: Path) -> None:
    """result.json, report.md and report.html. Raises S3volError."""
    with _output(folder):
        result.save(folder / compare.NAME)
        (folder / "report.md").write_text(report.markdown(result))
        (folder / "report.html").write_text(page.html(result))


@contextlib.contextmanager
def occupied(endpoint: Endpoint, say: Callable[[str], None]) -> Iterator[Room]:
    """A prefix of our own, and nothing left of it at the end. Raises S3volError when the endpoint goes away."""
    room = Room(replace(endpoint, prefix=f"{endpoint.prefix}{_PREFIX}{secrets.token_hex(4)}/"))
    where = f"s3://{room.endpoint.bucket}/{room.endpoint.prefix}"
    room.enter()
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield room
    except (ClientError, BotoCoreError) as error:
        raise S3volError(f"{where}: the endpoint failed in the middle of the run: {error}") from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        say(f"removing {where}")
        try:
            room.clean("")
        except (ClientError, BotoCoreError) as error:
            print(f"s3vol: {where} could not be removed, remove it by hand: {error}", file=sys.stderr)
        signal.signal(signal.SIGINT, heard)
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _about(wish: Wish, room: Room, scratch: Path) -> dict[str, Any]:
    headers = room.client.list_objects_v2(Bucket=room.endpoint.bucket, MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "disk": _file_system(scratch),
        "endpoint": f"{room.endpoint.url}, {headers.get('server', 'unknown server')}",
        "sizes": wish.sizes.name,
        "repeats": wish.repeats,
        "mount options": " ".join(wish.mount_options) or "none",
    }


def machine() -> str:
    """What this machine is, in the words of a report."""
    return f"{os.cpu_count()} cores of {_processor()}, {format_bytes(_memory_bytes())}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_system(path: Path) -> str:
    table = sorted(mounts.mount_table(), key=lambda mount: len(mount.path))
    whole = os.path.realpath(path)
    return next(m.type for m in reversed(table) if whole == m.path or whole.startswith(m.path.rstrip("/") + "/"))
