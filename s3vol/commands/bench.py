"""`s3vol bench`: the benchmark suite on an endpoint of the user's, and the comparison of two of its results.

What a user may want to know before: it writes below a prefix of its own only, and removes that; it needs rights to
write; it costs requests and traffic, which is said at the start; the terminal shows where it is. The suite is
`s3vol_bench`.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import trio

from s3vol.commands.plan import load_options
from s3vol.commands.reach import ProgressLine
from s3vol.config import OPTIONS, MountOptions
from s3vol.errors import S3volError, UsageError
from s3vol.layers import parse_list
from s3vol.store.base import Capabilities
from s3vol.store.edge import first_error
from s3vol.store.open import open_s3
from s3vol.store.settings import Source, parse_source, store_settings
from s3vol.units import parse_duration
from s3vol_bench import command, compare, report
from s3vol_bench.endpoint import Endpoint
from s3vol_bench.errors import BenchError
from s3vol_bench.rows import NORMAL, ROWS, SIZES

DONE, FAILED = 0, 1
_COMPARED = ("close", "fsync", "mode", "write-back", "read-only", "ro")  # each target has its own
_OWN = ("cache-dir", "log-file")  # each mount of a benchmark gets a fresh one
_REPEATS = 5
_BUDGET = {"quick": "150s", "normal": "11m"}  # and the tidying up after; --size long takes what it takes


def run(args: argparse.Namespace) -> int:
    """Measure, or compare, or list. Returns 1 when something of s3vol's own failed or got worse."""
    if args.list:
        for row in ROWS:
            print(f"{row.name:24} {row.unit:5} {row.title}{' (--size long)' if row.long else ''}")
        return DONE
    if args.compare:
        said, worse = compare.lines(*(compare.open_result(Path(name)) for name in args.compare))
        print("\n".join(said))
        return FAILED if worse else DONE
    if args.source is None:
        raise UsageError("bench: say which source, for example s3://bucket (it writes below a prefix of its own there)")
    source = parse_source(args.source)
    if source.kind != "s3":
        raise UsageError(f"source {args.source}: a benchmark needs an S3 endpoint to compare with; take s3://BUCKET")
    options = load_options(args, source)
    wish = _wish(args)
    command.check(wish)
    progress = ProgressLine("bench")
    if args.stages or args.growth:
        return _special(args, wish, _endpoint(source, options), progress)
    try:
        result = command.run(wish, _endpoint(source, options), progress.say)
    finally:
        progress.end()
    print(report.terminal(result))
    print(f"{wish.out}: report.html, report.md, result.json ({result.about['seconds']} s)")
    failed = result.errors_of_ours()
    for line in failed:
        print(f"s3vol: failed: {line}", file=sys.stderr)
    missed = result.missed() if args.goals else []
    for line in missed:
        print(f"s3vol: goal missed: {line}", file=sys.stderr)
    return FAILED if failed or missed else DONE


def _special(args: argparse.Namespace, wish: command.Wish, endpoint: Endpoint, progress: ProgressLine) -> int:
    """Stages or growth, instead of the rows."""
    try:
        if args.stages:
            said = report.stage_table(command.run_stages(wish, endpoint, progress.say))
        else:
            said = command.run_growth(wish, endpoint, progress.say)
    except BenchError as error:
        raise S3volError(str(error)) from None
    finally:
        progress.end()
    print(said)
    return DONE


def _wish(args: argparse.Namespace) -> command.Wish:
    size = args.size or ("quick" if args.quick else NORMAL.name)
    if size not in SIZES:
        raise UsageError(f"--size {size}: must be one of {', '.join(SIZES)}")
    repeats = args.repeats or str(_REPEATS)
    if not repeats.isdecimal() or not 1 <= int(repeats) <= 100:
        raise UsageError(f"--repeats {repeats}: must be a number from 1 to 100")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return command.Wish(
        sizes=SIZES[size],
        repeats=int(repeats),
        budget_s=_budget_s(args, size),
        rows=_words(args.rows),
        targets=_words(args.targets),
        mount_options=mount_options(args),
        scratch=Path(args.scratch or tempfile.gettempdir()).absolute(),
        out=Path(args.out or f"s3vol-bench-{now}").absolute(),
    )


def _budget_s(args: argparse.Namespace, size: str) -> float:
    """Infinite where repeats were asked for by number, and no time."""
    text = args.time or ("" if args.repeats else _BUDGET.get(size, ""))
    try:
        return parse_duration(text) if text else math.inf
    except ValueError as error:
        raise UsageError(f"--time {text}: {error}") from None


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def mount_options(args: argparse.Namespace) -> Sequence[str]:
    """The user's options for the mounts of s3vol, as flags. Raises UsageError for those that are compared."""
    given = dict(args.given)
    listed = parse_list(",".join(args.lists))
    for name in (*given, *(key.replace("_", "-") for key in listed)):
        if name in _COMPARED:
            raise UsageError(f"option {name}: is what the benchmark compares; it measures both ways, leave it out")
        if name in _OWN:
            raise UsageError(f"option {name}: every mount of a benchmark has a fresh one; --scratch says where")
    flags = [f"-o{text}" for text in args.lists]
    for name, text in given.items():
        if name in OPTIONS and not OPTIONS[name].is_flag:
            flags += [f"--{name}", text]
        else:
            flags.append(f"--{name}" if text == "yes" else f"--no-{name}")
    return [*flags, *(["--config", args.config] if args.config else [])]


def _endpoint(source: Source, options: MountOptions) -> Endpoint:
    """Where the source is, checked as a mount checks it. Raises UsageError."""
    if options.anonymous:
        raise UsageError("option anonymous: a benchmark has to write, and needs credentials")
    if options.sse_c_key:
        raise UsageError("option sse-c-key: the proof of a benchmark reads objects without the key, leave it out")
    try:
        url, region, path_style = trio.run(_resolve, source, options)
    except ExceptionGroup as group:
        raise first_error(group) from None
    found = boto3.session.Session(profile_name=options.profile).get_credentials()
    if found is None:
        raise UsageError(f"source {source.url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    keys = found.get_frozen_credentials()
    return Endpoint(
        url=url,
        region=region,
        bucket=source.bucket,
        prefix=source.prefix,
        access_key=str(keys.access_key),
        secret_key=str(keys.secret_key),
        session_token=keys.token,
        path_style=path_style,
        ca_bundle=str(options.ca_bundle) if options.ca_bundle else None,
        verify_tls=options.verify_tls,
    )


async def _resolve(source: Source, options: MountOptions) -> tuple[str, str, bool]:
    store = await open_s3(source, store_settings(options), capabilities=Capabilities())
    try:
        client = store.client
        path_style = urlsplit(client.base_url).path not in ("", "/")
        return client.endpoint, client.region, path_style
    finally:
        await store.aclose()
