"""`s3vol export`: a tree of a volume in IPFS as UnixFS, for gateways and all other IPFS tools."""

from __future__ import annotations

import argparse
import sys

import trio

from s3vol.commands.plan import load_options
from s3vol.errors import NotFound, UsageError
from s3vol.store.edge import first_error
from s3vol.store.ipfs.cid import Cid, text
from s3vol.store.ipfs.export import read_volume
from s3vol.store.ipfs.mounting import clients
from s3vol.store.settings import IpfsSettings, Source, ipfs_settings, parse_source


def run(args: argparse.Namespace) -> int:
    """Print the CID. Raises UsageError for a source of another kind and for a path that is not there."""
    source = parse_source(args.source)
    if source.kind != "ipfs":
        raise UsageError(f"source {args.source!r}: only a volume in IPFS can be exported, ipfs://VOLUME/PATH")
    try:
        cid = trio.run(_export, source, ipfs_settings(load_options(args, source)))
    except ExceptionGroup as group:
        raise first_error(group) from None
    print(text(cid))
    return 0


async def _export(source: Source, settings: IpfsSettings) -> Cid:
    blocks, cluster, connect = clients(settings)
    try:
        reader = await read_volume(blocks, cluster, source.bucket, connect=connect, timeout_s=settings.timeout_s)
        for line in reader.warnings:
            print(f"s3vol: warning: {line}", file=sys.stderr)  # the CID alone is what `ipfs get $(...)` reads
        return await reader.export(source.prefix)
    except NotFound as error:
        raise UsageError(f"source {source.url}: {error}") from None
    finally:
        await blocks.aclose()
        await cluster.aclose()
