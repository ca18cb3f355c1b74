"""Reading records of the registry from its store: one, or all that have changed.

A record may be replaced between the look at it and the read of its body: the read is under If-Match, and is tried again
with what is there then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from s3vol.errors import Corrupt, NotFound, PreconditionFailed, Unavailable
from s3vol.store.base import Store
from s3vol.store.edge import first_error
from s3vol.types import ObjectInfo
from s3vol_plugin import records
from s3vol_plugin.records import Damaged, Entry

TRIES = 10
"""How often a record is asked for: each time means that another node changed this very record in that moment."""

_READS = 8  # records read side by side; a first start with a thousand takes a second on a LAN


@dataclass(slots=True)
class Found:
    """What reading the changed records gave."""

    read: list[Entry] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)


async def read_changed(store: Store, known: Mapping[str, str], listed: Mapping[str, ObjectInfo]) -> Found:
    """Read what is listed with another ETag than is `known` of it, and look for what is known and not listed."""
    found = Found()
    names = [name for name in {**known, **listed} if name not in listed or known.get(name) != listed[name].etag]
    limit = trio.CapacityLimiter(_READS)

    async def look(name: str) -> None:
        async with limit:
            try:
                entry = await read(store, name, listed.get(name))
            except Corrupt as error:
                # The listing's ETag, so that it is read again only when it has changed.
                found.damaged.append(Damaged(name, listed[name].etag if name in listed else "", str(error)))
                return
        if entry is None:
            found.gone.append(name)
        else:
            found.read.append(entry)

    try:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(look, name)
    except ExceptionGroup as group:
        raise first_error(group) from None
    return found


async def read(store: Store, name: str, info: ObjectInfo | None = None) -> Entry | None:
    """A record as it is now; `info` is what a listing says of it. None: there is none. Raises Corrupt, Unavailable."""
    key = records.key_of(name)
    for _ in range(TRIES):
        try:
            info = info or await store.head(key)
            wanted = min(info.size, records.RECORD_MAX_BYTES)
            body = await store.get(key, 0, wanted, if_match=info.etag)
        except NotFound:
            return None
        except PreconditionFailed:
            info = None
        else:
            return records.read(bytes(body), info, name)
    raise restless(key)


def restless(key: str) -> Unavailable:
    """The error for a record that others change faster than we can look."""
    return Unavailable(f"record {key}: is being changed again and again")
