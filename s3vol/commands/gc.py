"""`s3vol gc`: one round of collection in a volume in IPFS that is not mounted here, and the retirement of writers.

The journal that this needs is the mount's own: with it, this command is that mount's writer and collects what that
made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from s3vol.commands.plan import cache_directory, load_options
from s3vol.errors import UsageError
from s3vol.store.edge import first_error
from s3vol.store.ipfs.collect import Collector, Outcome
from s3vol.store.ipfs.mounting import journal_directory, opened
from s3vol.store.settings import IpfsSettings, Source, ipfs_settings, parse_source
from s3vol.types import Health


def run(args: argparse.Namespace) -> int:
    """Print what was done. Raises UsageError for a source of another kind, or one that is mounted."""
    source = parse_source(args.source)
    if source.kind != "ipfs":
        raise UsageError(f"source {args.source!r}: only a volume in IPFS collects, ipfs://VOLUME")
    options = load_options(args, source)
    settings = ipfs_settings(options)
    directory = journal_directory(cache_directory(source, options, settings.cluster))
    if not directory.is_dir():
        raise UsageError(f"{source.url} was never mounted here ({directory}): nothing in it is this machine's")
    try:
        print("\n".join(report(trio.run(_collect, source, settings, directory, args.retire))))
    except ExceptionGroup as group:
        raise first_error(group) from None
    return 0


async def _collect(source: Source, settings: IpfsSettings, directory: Path, retire: str | None) -> Outcome:
    async with opened(source, settings, directory, Health()) as volume:
        collector = Collector(volume, retention_s=settings.retention_s)
        if retire is not None:
            await volume.heads.scan()
            if retire == volume.parts.volume.writer:
                raise UsageError(f"writer {retire}: is this machine's own")
            if retire not in volume.heads.known:
                known = ", ".join(sorted(volume.heads.known)) or "none"
                raise UsageError(f"writer {retire}: is not known in {source.url}; known are {known}")
            await collector.retire(retire)
        return await collector.collect()


def report(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [
        f"given up     {outcome.condemned} segments; they go when `retention` has passed and all writers know",
        f"removed      {outcome.removed} segments, {outcome.commits} commits, {outcome.blocks} blocks of this Kubo",
    ]
    if outcome.waits_for:
        lines.append(f"waits for    {', '.join(outcome.waits_for)} (gone for good? `s3vol gc --retire WRITER`)")
    return lines
