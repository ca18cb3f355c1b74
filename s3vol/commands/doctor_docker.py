"""`s3vol doctor --docker [SOURCE]`: what is wrong with the volume driver on this node.

The facts of this node are the driver's own room (s3vol_plugin.checkup). SOURCE, the registry, adds what only the bucket
knows: volumes that this node's driver may not have heard of, and the server's clock. Without it the driver's list has
to do, and no other clock is asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Collection

import trio

from s3vol.commands.plan import load_options
from s3vol.commands.plugin import node_settings
from s3vol.errors import Corrupt, NotFound
from s3vol.store import probe
from s3vol.store.base import Capabilities, Store
from s3vol.store.edge import first_error
from s3vol.store.open import compose, open_s3, open_store
from s3vol.store.settings import Source, StoreSettings, parse_source, store_settings
from s3vol.types import Health
from s3vol_plugin import checkup, records


def run(args: argparse.Namespace) -> int:
    """Print a line for each finding; returns 1 when there are any."""
    names: Collection[str] = ()
    skew_s: float | None = None
    damaged: list[str] = []
    if args.source is not None:
        source = parse_source(args.source)
        try:
            names, damaged, skew_s = trio.run(_ask, source, store_settings(load_options(args, source)))
        except ExceptionGroup as group:
            raise first_error(group) from None
    facts = checkup.gather(node_settings(), registered=names, skew_s=skew_s)
    findings = [*checkup.judge(facts), *damaged]
    if args.json:
        print(json.dumps({**dataclasses.asdict(facts), "findings": findings}, indent=2, default=str))
    else:
        print("\n".join(findings or ["ok: the driver answers, dockerd knows it, nothing is shadowed, dead or leaked"]))
    return 1 if findings else 0


async def _ask(source: Source, settings: StoreSettings) -> tuple[set[str], list[str], float | None]:
    """Names of the volumes in the registry, lines about damaged records, and how far this clock is ahead."""
    if source.kind != "s3":
        store = await open_store(source, settings)
        try:
            return (*await _volumes(store), None)
        finally:
            await store.aclose()
    backend = await open_s3(source, settings, capabilities=Capabilities())
    try:
        found = await probe.examine(backend)
        store = compose(backend.with_capabilities(found.capabilities), settings, Health())
        return (*await _volumes(store), found.clock_skew_s)
    finally:
        await backend.aclose()


async def _volumes(store: Store) -> tuple[set[str], list[str]]:
    names, damaged = set[str](), list[str]()
    cursor = None
    while True:
        page = await store.list(records.FOLDER, delimiter=False, cursor=cursor, metadata=False)
        for name, info in records.sort_out(page.objects).records.items():
            try:
                body = await store.get(info.key, 0, records.RECORD_MAX_BYTES)
                if not records.read(bytes(body), info, name).volume.removed:
                    names.add(name)
            except NotFound:
                continue  # removed meanwhile
            except Corrupt as error:
                damaged.append(str(error))
        if (cursor := page.next_cursor) is None:
            return names, damaged
