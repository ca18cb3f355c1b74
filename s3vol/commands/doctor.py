"""`s3vol doctor`: what an endpoint can really do, and what that means for a mount.

Facts come from the probe, which tries (store/probe.py), and from a bounded listing; advice is a pure function of the
facts. A problem is what makes a promise of docs/SEMANTICS.md impossible, or loses sight of data; everything else is
advice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from s3vol import layout
from s3vol.commands import doctor_docker, doctor_ipfs
from s3vol.commands.plan import load_options
from s3vol.errors import NotFound, UsageError
from s3vol.store import probe
from s3vol.store.base import Capabilities, Store
from s3vol.store.edge import first_error
from s3vol.store.open import compose, open_s3, open_store
from s3vol.store.settings import Source, StoreSettings, ipfs_settings, parse_source, store_settings
from s3vol.types import Health

SCAN_MAX_KEYS = 10_000  # ten requests, less than a second on a LAN
SKEW_MAX_S = 15 * 60  # S3 and MinIO refuse a signature that is older
_EXAMPLES = 5
_PAGE_KEYS = 1000
_ROUND_TRIPS = 5
_SLOW_MS = 100.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `clock_skew_s` is None where there is no other clock; positive: this machine is ahead."""

    source: str
    endpoint: str
    server: str
    region: str
    clock_skew_s: float | None
    round_trip_ms: float
    read_only: bool
    capabilities: Capabilities
    keys_scanned: int
    scan_complete: bool
    foreign_keys: int
    foreign_examples: tuple[str, ...]
    hidden_files: int
    format_present: bool


def run(args: argparse.Namespace) -> int:
    """Print the report; returns 1 when there are problems."""
    if args.docker:
        return doctor_docker.run(args)
    if args.source is None:
        raise UsageError("doctor: say which source, for example s3://bucket (or --docker for the volume driver)")
    source = parse_source(args.source)
    options = load_options(args, source)
    if source.kind == "ipfs":
        return doctor_ipfs.run(source, ipfs_settings(options), as_json=args.json)
    settings = store_settings(options)
    try:
        facts = trio.run(_examine, source, settings)
    except ExceptionGroup as group:
        raise first_error(group) from None
    problems, advice = judge(facts)
    if args.json:
        print(json.dumps({**dataclasses.asdict(facts), "problems": problems, "advice": advice}, indent=2))
    else:
        print("\n".join(report(facts, problems, advice)))
    return 1 if problems else 0


async def _examine(source: Source, settings: StoreSettings) -> Facts:
    if source.kind != "s3":
        store = await open_store(source, settings)
        try:
            return await gather(store, await _local_values(store))
        finally:
            await store.aclose()
    backend = await open_s3(source, settings, capabilities=Capabilities())  # `examine` probes
    try:
        found = await probe.examine(backend)
        values = {
            "endpoint": found.endpoint,
            "server": found.server,
            "region": found.region,
            "clock_skew_s": round(found.clock_skew_s, 1),
            "round_trip_ms": round(found.round_trip_ms, 2),
            "read_only": found.read_only,
            "capabilities": found.capabilities,
        }
        store = compose(backend.with_capabilities(found.capabilities), settings, Health())
        return await gather(store, values)
    finally:
        await backend.aclose()


async def _local_values(store: Store) -> dict[str, Any]:
    took_ms = []
    for _ in range(_ROUND_TRIPS):
        began_s = time.perf_counter()
        await store.list("", limit=1)
        took_ms.append((time.perf_counter() - began_s) * 1000)
    return {
        "endpoint": "this machine",
        "server": "",
        "region": "",
        "clock_skew_s": None,
        "round_trip_ms": round(statistics.median(took_ms), 2),
        "read_only": False,
        "capabilities": store.capabilities,
    }


async def gather(store: Store, values: Mapping[str, Any]) -> Facts:
    """The facts of `values` and those of a listing of at most SCAN_MAX_KEYS keys (rounded up to a page)."""
    scanned, complete, foreign, hidden = 0, False, [], 0
    cursor = None
    previous = ""
    while scanned < SCAN_MAX_KEYS and not complete:
        page = await store.list("", delimiter=False, cursor=cursor, limit=_PAGE_KEYS, metadata=False)
        keys = [info.key for info in page.objects if not layout.is_reserved(info.key)]
        scanned += len(keys)
        foreign += [key for key in keys if not layout.is_path(key)]
        hidden += beside(keys, previous)
        previous = keys[-1] if keys else previous
        cursor = page.next_cursor
        complete = cursor is None
    try:
        await store.head(f"{layout.RESERVED}format.json")
        present = True
    except NotFound:
        present = False
    return Facts(
        source=store.url,
        keys_scanned=scanned,
        scan_complete=complete,
        foreign_keys=len(foreign),
        foreign_examples=tuple(foreign[:_EXAMPLES]),
        hidden_files=hidden,
        format_present=present,
        **values,
    )


def beside(keys: Iterable[str], previous: str) -> int:
    """How many objects `a` have an `a/...` right behind them, in byte order: both cannot be one path."""
    found = 0
    for key in keys:
        found += bool(previous) and not previous.endswith("/") and key.startswith(previous + "/")
        previous = key
    return found


def judge(facts: Facts) -> tuple[list[str], list[str]]:
    """Problems and advice."""
    problems, advice = [], []
    able = facts.capabilities
    if facts.read_only:
        advice.append("these credentials may not write: mount with --read-only")
    else:
        if not (able.conditional_create and able.conditional_replace):
            problems.append(
                "conditional PUT is ignored or refused: writers would overwrite each other; mount with --read-only"
            )
        if not able.conditional_complete:
            advice.append("conditional multipart completion does not work: large files are published by a single PUT")
        if not able.copy_part:
            advice.append("UploadPartCopy does not work: renames and small changes of large files send the whole file")
    if able.hides_children and not facts.read_only:
        advice.append(
            "here an object `a` hides every `a/...` from listings: other tools must not make both, s3vol never does"
        )
    if not able.list_metadata and facts.clock_skew_s is not None:
        advice.append("listings bring no attributes: `ls -l` of a directory asks for each file once")
    if facts.clock_skew_s is not None and abs(facts.clock_skew_s) > SKEW_MAX_S / 3:
        told = problems if abs(facts.clock_skew_s) > SKEW_MAX_S else advice
        told.append(
            f"the clocks differ by {facts.clock_skew_s:.0f} s; beyond {SKEW_MAX_S} s every request is refused: use NTP"
        )
    if facts.round_trip_ms > _SLOW_MS:
        advice.append("round trips are slow: --write-back hides them from programs that close many small files")
    if facts.foreign_keys:
        problems.append(
            f"{facts.foreign_keys} keys are no path (empty, `.` or `..` component) and cannot be shown as files, for "
            f"example {', '.join(map(repr, facts.foreign_examples))}: rename them with an S3 tool"
        )
    if facts.hidden_files:
        problems.append(f"{facts.hidden_files} objects are named like a directory beside them: only one can be shown")
    return problems, advice


def report(facts: Facts, problems: list[str], advice: list[str]) -> list[str]:
    """Lines for people."""
    able = dataclasses.asdict(facts.capabilities)
    skew = "no other clock" if facts.clock_skew_s is None else f"{facts.clock_skew_s:+.1f} s"
    scanned = f"{facts.keys_scanned} keys looked at, {'all' if facts.scan_complete else 'more were left out'}"
    server = " ".join(word for word in (facts.server, facts.region) if word)
    lines = [
        f"source       {facts.source}",
        f"endpoint     {facts.endpoint}{f' ({server})' if server else ''}",
        f"round trip   {facts.round_trip_ms:.1f} ms",
        f"clock        {skew}",
        f"access       {'read only' if facts.read_only else 'read and write'}",
        f"keys         {scanned}; {facts.foreign_keys} are no path",
        "can          "
        + (", ".join(name for name, value in able.items() if value is True) or "nothing beyond the basics"),
        "cannot       " + (", ".join(name for name, value in able.items() if value is False) or "-"),
        "limits       " + ", ".join(f"{name}={value}" for name, value in able.items() if not isinstance(value, bool)),
    ]
    lines += [f"PROBLEM      {line}" for line in problems]
    lines += [f"advice       {line}" for line in advice]
    return [*lines, "result       " + ("problems found" if problems else "ok")]
