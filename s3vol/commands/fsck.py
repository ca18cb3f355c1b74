"""`s3vol fsck`: what s3vol itself keeps in a bucket, looked through and, when asked, put in order.

What is wrong is decided in fs/fsck.py, and mended by the parts of a mount (fs/mending.py); here are the store and its
clock, the temporary cache, and the report. Without `--repair` nothing is written, not even the probe's objects: it
tells what an endpoint can do, and reading needs none of that. A volume in IPFS is another matter (fsck_ipfs.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from s3vol.cache.base import CacheSettings
from s3vol.cache.chunkcache import ChunkCache
from s3vol.commands.plan import fs_settings, load_options
from s3vol.config import MountOptions
from s3vol.errors import S3volError, UsageError
from s3vol.fs.fsck import Finding, plan
from s3vol.fs.mending import Clock, Mender, look
from s3vol.store import edge
from s3vol.store.base import Capabilities, Store
from s3vol.store.open import compose, open_s3, open_store
from s3vol.store.s3 import S3Store
from s3vol.store.settings import Source, ipfs_settings, parse_source, store_settings
from s3vol.types import MIB, Health

_ROUNDS = 3  # a rename of a directory, then the links in it, then what was below both
_CACHE_BYTES = 256 * MIB  # a repair reads small files only; large ones are copied by the server
_CACHE_FREE_BYTES = 16 * MIB  # it is often in a small /tmp, and gone in a minute


@dataclass(frozen=True, slots=True)
class Result:
    """What was found, and what became of it: `mended` are gone since a repair."""

    findings: Sequence[Finding]
    mended: Sequence[Finding] = ()
    refused: Sequence[S3volError] = ()

    @property
    def left(self) -> list[Finding]:
        """What is wrong."""
        return [it for it in self.findings if not it.young]


def run(args: argparse.Namespace) -> int:
    """Print the findings; returns 1 when some are left. Raises UsageError."""
    source = parse_source(args.source)
    options = load_options(args, source)
    if source.kind == "ipfs":
        # Imported here: its libraries take 0.3 s, and only this kind of source needs them.
        from s3vol.commands import fsck_ipfs

        return fsck_ipfs.run(source, ipfs_settings(options), repair=args.repair, as_json=args.json)
    try:
        result = trio.run(_check, source, options, args.repair)
    except ExceptionGroup as group:
        raise edge.first_error(group) from None
    if args.json:
        print(json.dumps({"source": source.url, "clean": not result.left, "findings": rows(result)}, indent=2))
    else:
        print("\n".join(report(result)))
    for error in result.refused:
        print(f"s3vol: {error}", file=sys.stderr)
    return 1 if result.left else 0


async def _check(source: Source, options: MountOptions, repair: bool) -> Result:
    async with _opened(source, options, repair) as (store, clock):
        if not repair:
            return Result(await look(store, clock))
        _check_able(store)
        with tempfile.TemporaryDirectory(prefix="s3vol-fsck-", ignore_cleanup_errors=True) as folder:
            return await check_and_mend(store, clock, options, Path(folder))


async def check_and_mend(store: Store, clock: Clock, options: MountOptions, folder: Path) -> Result:
    """Look, mend with a cache in `folder`, and look again; again, when what was mended lets more be decided."""
    found = await look(store, clock)
    if not plan(found):
        return Result(found)
    limits = CacheSettings(
        folder / "cache",
        size_bytes=_CACHE_BYTES,
        free_floor_bytes=_CACHE_FREE_BYTES,
        node=options.node,
        timeout_s=options.timeout,
    )
    async with ChunkCache.open(store, limits, volume=store.url) as cache, trio.open_nursery() as nursery:
        await nursery.start(cache.serve)
        mender = Mender(store, cache, fs_settings(options), clock)
        mended: list[Finding] = []
        for _ in range(_ROUNDS):
            before = plan(found)
            refused = await mender.mend(found)
            found = await look(store, clock)
            still = {(it.kind, it.key, it.upload_id) for it in found}
            mended += [it for it in before if (it.kind, it.key, it.upload_id) not in still]
            if refused or not plan(found):
                break
        nursery.cancel_scope.cancel()
    return Result(found, mended, refused)


@contextlib.asynccontextmanager
async def _opened(source: Source, options: MountOptions, repair: bool) -> AsyncIterator[tuple[Store, Clock]]:
    settings = store_settings(options)
    if source.kind == "s3":
        backend = await open_s3(source, settings, capabilities=None if repair else Capabilities())
        store, clock = compose(backend, settings, Health()), await _clock(backend)
    else:
        store, clock = await open_store(source, settings), time.time_ns
    try:
        yield store, clock
    finally:
        await store.aclose()


async def _clock(backend: S3Store) -> Clock:
    """The server's, from the Date of an answer; this machine's only if there is none."""
    client = backend.client
    reply = await client.read("examine", client.signed_get, "list-type=2&max-keys=1")
    # Whole seconds, rounded down: everything seems a little younger than it is, which is the careful side.
    ahead_ns = time.time_ns() - int(edge.parse_date(reply.date) * 1e9) if reply.date else 0
    return lambda: time.time_ns() - ahead_ns


def _check_able(store: Store) -> None:
    able = store.capabilities
    if not (able.conditional_create and able.conditional_replace):
        raise UsageError(
            f"source {store.url}: these credentials may not write, or the endpoint ignores If-Match, so that a repair "
            "could overwrite what others write; leave out --repair"
        )


def rows(result: Result) -> list[dict[str, Any]]:
    """For programs: each finding with its state."""
    listed = [("repaired", it) for it in result.mended]
    listed += [("in progress" if it.young else "problem", it) for it in result.findings]
    return [
        {"state": state, "kind": it.kind, "key": it.key, "meaning": it.meaning, "advice": it.advice}
        for state, it in listed
    ]


def report(result: Result) -> list[str]:
    """One line each for people, and how it went."""
    lines = []
    for row in rows(result):
        advice = f"; {row['advice']}" if row["state"] == "problem" else ""
        lines.append(f"{row['state']:<12} {_shown(row['key'])}: {_shown(row['meaning'])}{_shown(advice)}")
    young = len(result.findings) - len(result.left)
    counts = [(len(result.left), "to look at"), (len(result.mended), "repaired"), (young, "in progress")]
    said = ", ".join(f"{count} {what}" for count, what in counts if count)
    return [*lines, f"{'result':<12} {'findings left' if result.left else 'clean'}{f': {said}' if said else ''}"]


def _shown(text: str) -> str:
    """Keys may hold anything; a line stays a line."""
    return text if text.isprintable() else repr(text)[1:-1]
