"""Which nodes have a volume mounted: one small object a node and volume, put again and again while it is mounted.

Theory of operation. `.s3vol/mounts/<uuid>/<node>.json` is put every `HOLD_S` and deleted at the end. Its Last-Modified
counts, and that is the store's clock; so is the "now" that it is compared with: who asks puts an object of his own
(`.s3vol/mounts/clock/<node>.json`) and reads when the store says that this was. No node's clock takes part, so one that
is an hour off neither hides a holder nor keeps one for ever. Only a listing is read: node and volume are in the key.

Keys go by uuid: who comes late to say that he has the old volume mounted says nothing about a new one of its name.

Rejected: expiry times in the body (whose clock?), the Date header (a store of files has none), and a lease (nothing
here is exclusive: the answer only keeps people from removing what is in use).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from s3vol.layout import RESERVED
from s3vol.store.base import Store
from s3vol.types import ObjectInfo
from s3vol_plugin.base import Holder
from s3vol_plugin.volume import Volume

HOLD_S = 60.0
FRESH_S = 180.0
"""A holder counts for this long after its last word: two words may be lost."""

FOLDER = f"{RESERVED}mounts/"
_CLOCK = f"{FOLDER}clock/"
_SUFFIX = ".json"
_S_NS = 1_000_000_000


class Holders:
    """Heartbeats of all nodes, in one registry. `node` must be a word that can be part of a key."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node

    async def hold(self, volume: Volume) -> None:
        """Say that this node has it mounted."""
        await self._store.put(self._key(volume), self._body(volume.name), metadata={})

    async def release(self, volume: Volume) -> None:
        """Say that it no longer has. Missing is success."""
        await self._store.delete(self._key(volume))

    async def of(self, volume: Volume) -> Sequence[Holder]:
        """The nodes that hold one volume, by name."""
        found = await self._fresh(f"{FOLDER}{volume.uuid}/")
        return found.get(volume.uuid, ())

    async def all(self) -> Mapping[str, Sequence[Holder]]:
        """The nodes that hold something, by uuid of the volume."""
        return await self._fresh(FOLDER)

    async def now_ns(self) -> int:
        """The store's clock, in nanoseconds since the epoch, cut to seconds."""
        key = f"{_CLOCK}{self._node}{_SUFFIX}"
        await self._store.put(key, self._body(""), metadata={})
        return (await self._store.head(key)).modified_ns

    def _key(self, volume: Volume) -> str:
        return f"{FOLDER}{volume.uuid}/{self._node}{_SUFFIX}"

    def _body(self, name: str) -> bytes:
        return json.dumps({"node": self._node, "volume": name}).encode()

    async def _fresh(self, prefix: str) -> dict[str, list[Holder]]:
        # Listed first: a holder that speaks after our clock was read is a second or two younger than "now".
        objects = await list_all(self._store, prefix, delimiter=False)
        return fresh(objects, await self.now_ns()) if objects else {}


def fresh(objects: Sequence[ObjectInfo], now_ns: int) -> dict[str, list[Holder]]:
    """Those that spoke within FRESH_S, by uuid of the volume. Pure."""
    found: dict[str, list[Holder]] = {}
    for info in objects:
        uuid, slash, file = info.key.removeprefix(FOLDER).partition("/")
        age_s = max(now_ns - info.modified_ns, 0) / _S_NS
        if slash and not info.key.startswith(_CLOCK) and file.endswith(_SUFFIX) and age_s <= FRESH_S:
            found.setdefault(uuid, []).append(Holder(file.removesuffix(_SUFFIX), age_s))
    return found


async def list_all(store: Store, prefix: str, *, delimiter: bool) -> list[ObjectInfo]:
    """All objects of a listing, without metadata."""
    objects: list[ObjectInfo] = []
    cursor: str | None = None
    while True:
        page = await store.list(prefix, delimiter=delimiter, cursor=cursor, metadata=False)
        objects += page.objects
        cursor = page.next_cursor
        if cursor is None:
            return objects
