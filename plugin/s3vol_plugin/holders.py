"""Which nodes have a volume mounted: one small object a node and volume, put again and again while it is mounted.

Theory of operation. `.s3vol/mounts/<uuid>/<node>.json` is put every `HOLD_S` and deleted at the end. Its Last-Modified
counts, and that is the store's clock; so is the "now" that it is compared with: who asks puts an object of his own
(`.s3vol/mounts/clock/<node>.json`) and reads when the store says that this was. No node's clock takes part, so one that
is an hour off neither hides a holder nor keeps one for ever. Only a listing is read: node and volume are in the key.

Words of nodes that are gone for good are deleted after SILENT_S (`clear`). DELETE knows no condition, and a node may
come back in that moment: so its word is first replaced by a mark, under If-Match, and deleted right after. A node that
has not spoken lately looks before it speaks, and speaks under the condition of what it saw: so either its word is
there and the mark is refused, or it sees the mark and waits until the delete has arrived or never will. Each word is
different, for an ETag tells content only.

Keys go by uuid: who comes late to say that he has the old volume mounted says nothing about a new one of its name.

A pinset (s3vol.store.ipfs.pinset) keeps every word for ever in each peer's database, 1.3 KB each, and has neither a
clock nor conditions of its own. There a word is said again much more seldom, without a look before: of a word and a
delete in the same moment the word stays. "Now" is this node's: a clock that is an hour off hides a holder, or keeps one
for an hour. `Pace` says which it is.

Rejected: expiry times in the body (whose clock?), the Date header (a store of files has none), and a lease (nothing
here is exclusive: the answer only keeps people from removing what is in use).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from s3vol.errors import NotFound, PreconditionFailed, Unavailable
from s3vol.layout import RESERVED
from s3vol.store.base import ABSENT, ANY, Condition, Store, matches
from s3vol.types import ObjectInfo
from s3vol_plugin.base import Holder
from s3vol_plugin.volume import Volume

HOLD_S = 60.0
FRESH_S = 180.0
"""A holder counts for this long after its last word: two words may be lost."""

SILENT_S = 7 * 86400.0
"""What was said this long ago is deleted."""

CLEAR_WITHIN_S = 10.0
"""A word is deleted within this time after it was marked, or not by this mark."""

GUARD_S = 30.0
"""Who finds a mark waits for this long, by his own clock; a Mount has 100 s."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a node says that it has a volume mounted: `speak_s` is the least time between two words, `fresh_s` how
    long one counts. `store_decides`: the store has a clock, and conditions that hold between nodes."""

    speak_s: float
    fresh_s: float
    store_decides: bool


IN_BUCKET = Pace(0.0, FRESH_S, store_decides=True)
IN_PINSET = Pace(900.0, 2700.0, store_decides=False)
"""A volume that is mounted all the time costs 96 records a day and node, 125 KB."""

_LOOK_S = 0.5
_TRIES = 10  # only one who clears, or a second process of this node, is in the way
MARK = "s3vol-clearing"

FOLDER = f"{RESERVED}mounts/"
_CLOCK = f"{FOLDER}clock/"
_SUFFIX = ".json"
_S_NS = 1_000_000_000


class Holders:
    """Heartbeats of all nodes, in one registry. `node` must be a word that can be part of a key."""

    def __init__(self, store: Store, node: str, pace: Pace = IN_BUCKET) -> None:
        self._store = store
        self._node = node
        self._pace = pace
        self._spoken_s: dict[str, float] = {}  # when this process put a key, by trio's clock

    async def hold(self, volume: Volume) -> None:
        """Say that this node has it mounted, unless it has said so just now."""
        key = self._key(volume)
        spoken_s = self._spoken_s.get(key)
        if spoken_s is None or trio.current_time() - spoken_s >= self._pace.speak_s:
            await self._say(key, volume.name)

    async def release(self, volume: Volume) -> None:
        """Say that it no longer has. Missing is success."""
        key = self._key(volume)
        self._spoken_s.pop(key, None)
        await self._store.delete(key)

    async def _say(self, key: str, name: str) -> None:
        for _ in range(_TRIES):
            spoken_s = self._spoken_s.get(key)
            lately = spoken_s is not None and trio.current_time() - spoken_s < self._pace.fresh_s
            condition = ANY if lately or not self._pace.store_decides else await self._look(key)
            try:
                await self._store.put(key, self._body(name), metadata={}, condition=condition)
            except (PreconditionFailed, NotFound):  # marked or deleted meanwhile; or it was our own, the reply lost
                continue
            self._spoken_s[key] = trio.current_time()
            return
        raise Unavailable(f"{key}: is being changed again and again; do two nodes have the name {self._node}?")

    async def _look(self, key: str) -> Condition:
        """The condition for speaking after a silence. Waits while a word of ours is being deleted."""
        until_s = trio.current_time() + GUARD_S
        while True:
            try:
                info = await self._store.head(key)
            except NotFound:
                return ABSENT
            if MARK not in (info.metadata or {}) or trio.current_time() >= until_s:
                return matches(info.etag)
            await trio.sleep(_LOOK_S)

    async def clear(self) -> None:
        """Delete what was said SILENT_S ago, and not since."""
        objects = await list_all(self._store, FOLDER, delimiter=False)
        if objects:
            now_ns = await self.now_ns()
            for info in objects:
                if now_ns - info.modified_ns > SILENT_S * _S_NS:
                    await self._clear(info)

    async def _clear(self, info: ObjectInfo) -> None:
        """A mark that a crash leaves behind counts as a word as long as any, and is cleared like one."""
        try:
            await self._store.put(info.key, self._body(""), metadata={MARK: self._node}, condition=matches(info.etag))
        except (PreconditionFailed, NotFound):  # that node is back, or another one is at it
            return
        with trio.move_on_after(CLEAR_WITHIN_S):
            await self._store.delete(info.key)

    async def of(self, volume: Volume) -> Sequence[Holder]:
        """The nodes that hold one volume, by name."""
        found = await self._fresh(f"{FOLDER}{volume.uuid}/")
        return found.get(volume.uuid, ())

    async def all(self) -> Mapping[str, Sequence[Holder]]:
        """The nodes that hold something, by uuid of the volume."""
        return await self._fresh(FOLDER)

    async def now_ns(self) -> int:
        """The store's clock, in nanoseconds since the epoch, cut to seconds; this node's where the store has none."""
        if not self._pace.store_decides:
            return int(time.time()) * _S_NS
        key = f"{_CLOCK}{self._node}{_SUFFIX}"
        for _ in range(_TRIES):
            await self._say(key, "")
            try:
                return (await self._store.head(key)).modified_ns
            except NotFound:  # cleared by a node to which this one was silent; the next word looks before it speaks
                del self._spoken_s[key]
        raise Unavailable(f"{key}: is deleted again and again; do two nodes have the name {self._node}?")

    def _key(self, volume: Volume) -> str:
        return f"{FOLDER}{volume.uuid}/{self._node}{_SUFFIX}"

    def _body(self, name: str) -> bytes:
        return json.dumps({"node": self._node, "volume": name, "word": secrets.token_hex(8)}).encode()

    async def _fresh(self, prefix: str) -> dict[str, list[Holder]]:
        # Listed first: a holder that speaks after our clock was read is a second or two younger than "now".
        objects = await list_all(self._store, prefix, delimiter=False)
        return fresh(objects, await self.now_ns(), self._pace.fresh_s) if objects else {}


def fresh(objects: Sequence[ObjectInfo], now_ns: int, fresh_s: float = FRESH_S) -> dict[str, list[Holder]]:
    """Those that spoke within `fresh_s`, by uuid of the volume. Pure."""
    found: dict[str, list[Holder]] = {}
    for info in objects:
        uuid, slash, file = info.key.removeprefix(FOLDER).partition("/")
        age_s = max(now_ns - info.modified_ns, 0) / _S_NS
        if slash and not info.key.startswith(_CLOCK) and file.endswith(_SUFFIX) and age_s <= fresh_s:
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
