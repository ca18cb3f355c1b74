"""`s3vol fsck ipfs://VOLUME`: every block of every file read and hashed, and what the cluster pins of them.

What is wrong is found by the store (store/ipfs/examine.py); here are the daemons and the report. Nothing is repaired:
what a machine that is away has comes back with it, and what nobody has cannot be made again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import trio

from s3vol.errors import NotFound, UsageError
from s3vol.store.edge import first_error
from s3vol.store.ipfs.examine import Examiner, Seen
from s3vol.store.ipfs.mounting import clients
from s3vol.store.settings import IpfsSettings, Source
from s3vol.units import format_bytes


def run(source: Source, settings: IpfsSettings, *, repair: bool, as_json: bool) -> int:
    """Print what was found; returns 1 when something is wrong. Raises UsageError."""
    if repair:
        raise UsageError(
            f"source {source.url}: fsck repairs nothing in IPFS (what a machine that is away has comes back with it); "
            "leave out --repair"
        )
    try:
        seen = trio.run(_examine, source, settings)
    except ExceptionGroup as group:
        raise first_error(group) from None
    if as_json:
        print(json.dumps({"source": source.url, "clean": not seen.findings, **values(seen)}, indent=2))
    else:
        print("\n".join(report(seen)))
    return 1 if seen.findings else 0


async def _examine(source: Source, settings: IpfsSettings) -> Seen:
    blocks, cluster, connect = clients(settings)
    examiner = Examiner(
        blocks, cluster, source.bucket, prefix=source.prefix, connect=connect, timeout_s=settings.timeout_s
    )
    try:
        return await examiner.examine()
    except NotFound as error:
        raise UsageError(f"source {source.url}: {error}") from None
    finally:
        await blocks.aclose()
        await cluster.aclose()


def values(seen: Seen) -> dict[str, Any]:
    """For programs: findings as for a bucket, and counts."""
    counts = asdict(seen)
    del counts["findings"]
    findings = [
        {"state": "problem", "kind": one.kind, "key": one.key, "meaning": one.meaning, "advice": one.way}
        for one in seen.findings
    ]
    return {"findings": findings, "counts": counts}


def report(seen: Seen) -> list[str]:
    """Lines for people."""
    spare = f"{seen.segments_spare} of them with nothing that a file needs (`s3vol gc` removes them in time)"
    if seen.segments_ownerless:
        spare += f", {seen.segments_ownerless} of writers that were retired"
    return [
        *(f"{'problem':<12} {_shown(one.key)}: {_shown(one.meaning)}; {_shown(one.way)}" for one in seen.findings),
        f"{'read':<12} {seen.names} names, {seen.blocks} blocks with {format_bytes(seen.bytes)}, "
        f"{seen.blocks_here} of them on this Kubo",
        f"{'pins':<12} {seen.writers} writers, {seen.commits} commits, {seen.segments} segments, {spare}",
        f"{'result':<12} {f'{len(seen.findings)} problems' if seen.findings else 'clean'}",
    ]


def _shown(text: str) -> str:
    """Keys may hold anything; a line stays a line."""
    return text if text.isprintable() else repr(text)[1:-1]
