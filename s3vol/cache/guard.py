"""Guard: under which condition a content may be published, and what is in the bucket now."""

from __future__ import annotations

from s3vol.cache.content import CachedContent
from s3vol.cache.plan import SMALL_BYTES
from s3vol.errors import NotFound, PreconditionFailed
from s3vol.store.base import ABSENT, ANY, Condition, Store, matches
from s3vol.types import ObjectInfo


class Guard:
    """Of one cache."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def head(self, key: str) -> ObjectInfo | None:
        """The object, or None when the store says that there is none."""
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    def creation(self, size: int) -> Condition:
        """The condition for a key that nobody else uses: absent, where the store can say so."""
        can = self._store.capabilities
        return ABSENT if can.conditional_create and (can.conditional_complete or size <= SMALL_BYTES) else ANY

    async def condition(self, content: CachedContent) -> Condition:
        """The condition of a change: If-Match on the base, or absent.

        A store that cannot hold conditions (the probe says so, and `doctor` shows it) is asked just before the change:
        two nodes can then still overwrite each other within one round trip, which is the best that such a store allows.
        """
        can = self._store.capabilities
        base = content.base
        able = can.conditional_replace if base else can.conditional_create
        if able and (can.conditional_complete or content.size <= SMALL_BYTES):
            return matches(base.etag) if base else ABSENT
        info = await self.head(content.key)
        if (info.version if info else None) != base:
            raise PreconditionFailed(f"{content.key}: changed in the bucket")
        return ANY
