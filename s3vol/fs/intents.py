"""Records of directory renames that are under way: `.s3vol/intents/<id>.json` (docs/format.md).

Theory of operation. The record is written before the first object moves and removed after the last one. Whoever moves
objects writes it again every minute, so that its Last-Modified tells others that somebody is at work; one that is ten
minutes old was left behind, and anybody may finish it. Which records are our own is noted in the cache's journal,
since two mounts of one machine have the same node name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from s3vol import layout
from s3vol.cache.base import ContentCache
from s3vol.errors import NotFound
from s3vol.store.base import FILE_TYPE, Store
from s3vol.types import MIB, ObjectInfo

NOTES = "intent"
BEAT_S = 60.0
LEFT_BEHIND_S = 600.0  # ten beats: also enough for clocks that differ by minutes


@dataclass(frozen=True, slots=True)
class Intent:
    """Move everything below `source` to `target`; both end in `/`."""

    id: str
    node: str
    source: str
    target: str
    at: str  # when it began, ISO 8601, for people

    @property
    def key(self) -> str:
        """Where the record is."""
        return f"{layout.INTENTS}{self.id}.json"


def parse(body: bytes) -> Intent | None:
    """The record, None when it is none of ours."""
    try:
        found = json.loads(body)
        intent = Intent(**{name: str(found[name]) for name in ("id", "node", "source", "target", "at")})
    except (ValueError, KeyError, TypeError):
        return None
    valid = all(key.endswith("/") and layout.is_path(key) for key in (intent.source, intent.target))
    return intent if valid and not intent.target.startswith(intent.source) else None


class Intents:
    """The records in one bucket."""

    def __init__(self, store: Store, cache: ContentCache) -> None:
        self._store = store
        self._cache = cache

    async def write(self, intent: Intent) -> None:
        """Write the record, or write it again; a repetition replaces it."""
        if intent.id not in self._cache.notes(NOTES):
            self._cache.note(NOTES, intent.id, intent.source)
            await self._cache.sync_notes()
        body = json.dumps(asdict(intent)).encode()
        await self._store.put(intent.key, body, metadata={}, content_type=FILE_TYPE)

    async def remove(self, intent: Intent) -> None:
        """The rename is done."""
        await self._store.delete(intent.key)
        self._cache.note(NOTES, intent.id, None)

    async def left_behind(self, now_ns: int) -> list[Intent]:
        """Our own, and those of others that nobody has written for ten minutes."""
        found: list[Intent] = []
        cursor: str | None = None
        while True:
            page = await self._store.list(layout.INTENTS, delimiter=False, cursor=cursor, metadata=False)
            for info in page.objects:
                if self._is_ours(info) or now_ns - info.modified_ns > LEFT_BEHIND_S * 1e9:
                    found += await self._read(info)
            if page.next_cursor is None:
                return found
            cursor = page.next_cursor

    def _is_ours(self, info: ObjectInfo) -> bool:
        return layout.name_of(info.key).removesuffix(".json") in self._cache.notes(NOTES)

    async def _read(self, info: ObjectInfo) -> list[Intent]:
        try:
            intent = parse(bytes(await self._store.get(info.key, 0, MIB)))
        except NotFound:
            return []
        return [intent] if intent is not None and intent.key == info.key else []
