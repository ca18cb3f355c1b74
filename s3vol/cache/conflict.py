"""ConflictKeeper: what lost to another writer is put beside it, whole, and said aloud. Nothing is discarded.

Theory of operation. From the verdict on the content is CONFLICTED: writes are refused, so the copy is the whole file at
one moment. Until the copy is there (`keeping`), it is saved, counted and journaled like a DIRTY one: only this node has
it, and the last handle may be closed meanwhile. The copy is created If-None-Match under
`name.s3vol-conflict-<node>-<time>`; the name is chosen once, so that a second try after a lost reply finds its own
first one (by the nonce) and makes no second copy. When the copy cannot be made now, the content is DIRTY again and the
next publish comes back here.

Bytes that we never had and that are gone with the old version are zeros in the copy; they are listed in its metadata
(`s3vol-conflict-missing`) and in the event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import trio

from s3vol import layout
from s3vol.cache.base import CacheSettings, State
from s3vol.cache.budget import ByteBudget
from s3vol.cache.content import CachedContent
from s3vol.cache.extents import Range
from s3vol.cache.guard import Guard
from s3vol.cache.nonce import parse_attempt
from s3vol.cache.plan import SMALL_BYTES, Multipart, plan_publish
from s3vol.cache.sender import Sender
from s3vol.errors import Conflict, NotFound, PreconditionFailed
from s3vol.failpoints import Point, hit
from s3vol.parallel import run_all
from s3vol.store.base import FILE_TYPE, Part, Store
from s3vol.types import NONCE, Health, WriteError

MISSING = "s3vol-conflict-missing"
_MISSING_CHARS = 200

log = logging.getLogger(__name__)


class ConflictKeeper:
    """Of one cache. `settled(content)` is called when the content is finally CONFLICTED; `tell` emits the event."""

    def __init__(
        self,
        store: Store,
        sender: Sender,
        guard: Guard,
        budget: ByteBudget,
        settings: CacheSettings,
        health: Health,
        cache_id: str,
        settled: Callable[[CachedContent], None],
        tell: Callable[[WriteError], None],
    ) -> None:
        self._store = store
        self._sender = sender
        self._guard = guard
        self._budget = budget
        self._node = settings.node
        self._health = health
        self._cache_id = cache_id
        self._settled = settled
        self._tell = tell

    async def keep(self, content: CachedContent) -> None:
        """Copy the content, which is DIRTY, beside its key and raise Conflict. `publish_lock` is held by the caller."""
        content.state = State.CONFLICTED
        content.conflict_key = content.conflict_key or self._place(content)
        content.keeping = True
        content.refs += 1  # ours: without any, a CONFLICTED content is deleted, and the copy would be zeros
        try:
            await self._sender.drop_stream(content)
            missing = await self._copy(content)
        except BaseException:
            if content.state is State.CONFLICTED:  # and not discarded meanwhile
                content.state = State.DIRTY
            else:
                content.unkept = True
            raise
        finally:
            content.refs -= 1
            content.keeping = False
        hit(Point.CONFLICT_AFTER_COPY)
        self._report(content, missing)
        self._settled(content)
        raise Conflict(content.key, content.conflict_key)

    def _report(self, content: CachedContent, missing: str) -> None:
        lost = f"; bytes {missing} of the old version were not cached and are zeros in it" if missing else ""
        message = f"{content.key}: changed by another writer; our content is kept as {content.conflict_key}{lost}"
        self._health.count("conflicts")
        path = layout.visible_key(content.key, content.metadata)
        log.warning("%s", message, extra={"op": "publish", "path": path, "kept_as": content.conflict_key})
        self._tell(WriteError(path, message, content.conflict_key))

    def _place(self, content: CachedContent) -> str:
        path = layout.visible_key(content.key, content.metadata)
        return layout.conflict_key(path, self._node, time.time(), self._store.capabilities.max_key_bytes)

    async def _copy(self, content: CachedContent) -> str:
        """Make the copy; returns what is missing in it, as text."""
        await self._fetch_what_is_left(content)
        missing = describe_ranges(content.absent(0, content.size))
        metadata = layout.without_link(content.metadata)  # of a hard link, the copy is an ordinary file
        if missing:
            metadata[MISSING] = missing
            if layout.metadata_bytes(metadata) > layout.METADATA_MAX_BYTES - 80:
                metadata.pop("xattr", None)
        while True:
            try:
                await (self._put if content.size <= SMALL_BYTES else self._upload)(content, metadata)
                return missing
            except PreconditionFailed:
                if await self._is_ours(content):
                    return missing
                content.conflict_key = self._place(content)

    async def _fetch_what_is_left(self, content: CachedContent) -> None:
        """Absent bytes are usually gone with the old version; not so if only its metadata were changed."""
        for low, high in content.absent(0, content.size):
            for start in range(low, high, SMALL_BYTES):
                try:
                    await self._sender.fetch(content, start, min(start + SMALL_BYTES, high))
                except (PreconditionFailed, NotFound):
                    return

    async def _is_ours(self, content: CachedContent) -> bool:
        try:
            info = await self._store.head(content.conflict_key)
        except NotFound:
            return False
        ours = parse_attempt(info.version.nonce, self._cache_id, content.id) is not None
        return ours and info.size == content.size

    async def _put(self, content: CachedContent, metadata: dict[str, str]) -> None:
        _, nonce = self._sender.number_attempt(content)
        async with self._sender.uploads, self._budget.hold(content.size):
            body = await self._sender.read_what_is_left(content, 0, content.size)
            await self._store.put(
                content.conflict_key,
                body,
                metadata={**metadata, NONCE: nonce},
                content_type=content.content_type or FILE_TYPE,
                condition=self._guard.creation(content.size),
            )
        self._sender.progress(content, len(body))

    async def _upload(self, content: CachedContent, metadata: dict[str, str]) -> None:
        key = content.conflict_key
        _, nonce = self._sender.number_attempt(content)
        upload_id = await self._sender.begin(key, metadata, content.content_type, nonce)
        plan = plan_publish(content.size, (), 0, self._store.capabilities)
        assert isinstance(plan, Multipart)  # larger than SMALL_BYTES
        parts: dict[int, Part] = {}

        async def send(number: int, start: int, end: int) -> None:
            parts[number] = await self._sender.send_what_is_left(content, key, upload_id, number, start, end)

        try:
            await run_all([partial(send, at, part.start, part.end) for at, part in enumerate(plan.parts, start=1)])
            await self._store.complete_upload(
                key, upload_id, [parts[at] for at in sorted(parts)], condition=self._guard.creation(content.size)
            )
        except NotFound:  # an upload is unknown after its Complete was applied and the reply lost
            with trio.CancelScope(shield=True):
                await self._sender.abort(key, upload_id)
            if not await self._is_ours(content):
                raise
            return
        except BaseException:
            await self._sender.abort(key, upload_id)
            raise
        self._sender.ended(upload_id)


def describe_ranges(ranges: list[Range]) -> str:
    """`0-1048576,2097152-3145728`, end exclusive, cut to 200 characters."""
    text = ",".join(f"{start}-{end}" for start, end in ranges)
    if len(text) <= _MISSING_CHARS:
        return text
    return text[: text.rindex(",", 0, _MISSING_CHARS)] + f",and-more-of-{len(ranges)}-ranges"
