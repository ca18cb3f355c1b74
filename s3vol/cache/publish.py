"""Publisher: turns a content into an object, conditionally, one publisher per content at a time.

Theory of operation. `publish_lock` of the content is held throughout. A publish goes in rounds: take a snapshot (what
is dirty becomes in flight), send it, settle. Writes during a round are dirty again and are none of its business: the
round ends with what was there when the snapshot was taken.

* Small content is read, and the snapshot taken, in one step: the object is the file at one moment.
* Large content is a multipart upload (cache/upload.py).

A refused condition ends the round. The object is read and judged (cache/verdict.py): our own write whose reply was
lost is adopted, a conflict is kept (cache/conflict.py), everything else is another round. A file that was cut during
a large upload ends the round as well, because what was sent may contain the zeros behind the cut.

The time-out of `publish` is one of progress: each acknowledged request starts it again, so a large file may take its
time and a dead endpoint may not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from s3vol import layout
from s3vol.cache import records
from s3vol.cache.base import CacheSettings, State
from s3vol.cache.budget import ByteBudget
from s3vol.cache.conflict import ConflictKeeper
from s3vol.cache.content import Abandoned, CachedContent, Snapshot
from s3vol.cache.disk import DataFiles
from s3vol.cache.guard import Guard
from s3vol.cache.journal import Journal
from s3vol.cache.ledger import Ledger
from s3vol.cache.nonce import whole_etag
from s3vol.cache.plan import SMALL_BYTES
from s3vol.cache.saver import Saver
from s3vol.cache.sender import Sender
from s3vol.cache.stream import without_times
from s3vol.cache.upload import Uploader
from s3vol.cache.verdict import Applied, Foreign, Rebase, Retry, judge
from s3vol.errors import Conflict, Corrupt, NotFound, PreconditionFailed, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.store.base import FILE_TYPE, Store
from s3vol.types import NONCE, Health, ObjectInfo, Version

_ROUNDS = 10
_PAUSE_S = 0.05  # between rounds after a refusal that has no visible reason; doubles


class Publisher:
    """Of one cache. `moved(content)` is called whenever key or base of a content changed."""

    def __init__(
        self,
        store: Store,
        files: DataFiles,
        sender: Sender,
        guard: Guard,
        saver: Saver,
        keeper: ConflictKeeper,
        journal: Journal,
        ledger: Ledger,
        budget: ByteBudget,
        settings: CacheSettings,
        health: Health,
        cache_id: str,
        moved: Callable[[CachedContent], None],
    ) -> None:
        self._store = store
        self._files = files
        self._sender = sender
        self._guard = guard
        self._uploader = Uploader(store, sender, guard, cache_id)
        self._saver = saver
        self._keeper = keeper
        self._journal = journal
        self._ledger = ledger
        self._budget = budget
        self._timeout_s = settings.timeout_s
        self._health = health
        self._cache_id = cache_id
        self._moved = moved

    async def publish(self, content: CachedContent) -> Version:
        """Return when bytes and metadata as of this call are in the bucket; returns the version there.

        Raises Conflict; Unavailable when nothing was acknowledged for `timeout_s`; what the store raises.
        """
        wanted = content.generation
        with trio.CancelScope(deadline=trio.current_time() + self._timeout_s) as scope:
            content.watchers.add(scope)
            try:
                async with content.publish_lock:
                    return await self._publish(content, wanted)
            finally:
                content.watchers.discard(scope)
        raise Unavailable(f"{content.key}: no answer within {self._timeout_s:g} s; it is kept locally and tried again")

    async def resolve(self, content: CachedContent) -> None:
        """Content from the journal: see whether the bucket has a later publish of it, and take that if so."""
        async with content.publish_lock:
            if content.unresolved:
                await self.settle_doubts(content)
                content.unresolved = False

    async def settle_doubts(self, content: CachedContent) -> None:
        """Requests whose outcome is unknown may have made the object: look, and adopt it if so.

        `publish_lock` is held by the caller.
        """
        if content.attempts or content.unresolved:
            info = await self._guard.head(content.key)
            verdict = judge(content, info, self._cache_id, etag_is_md5=self._store.capabilities.etag_is_md5)
            if isinstance(verdict, Applied):
                self._adopt(content, verdict, info)

    async def _publish(self, content: CachedContent, wanted: int) -> Version:
        pause_s = _PAUSE_S
        for _ in range(_ROUNDS):
            if content.state is State.CONFLICTED:
                raise Conflict(content.key, content.conflict_key)
            if content.state is not State.DIRTY or (content.base and content.published_generation >= wanted):
                return content.base or Version("")
            try:
                await self._round(content)
                continue
            except Abandoned:
                continue
            except (PreconditionFailed, NotFound):
                pass  # refused: to be examined, after what was in flight is dirty again
            finally:
                self._give_back(content)
            if await self._examine(content):
                await trio.sleep(pause_s)
                pause_s *= 2
        raise Unavailable(f"{content.key}: the condition was refused {_ROUNDS} times for no visible reason")

    def _give_back(self, content: CachedContent) -> None:
        if content.inflight:
            content.give_back()
            self._ledger.update(content)

    async def _round(self, content: CachedContent) -> None:
        began_s = trio.current_time()
        if content.size <= SMALL_BYTES:
            await self._sender.drop_stream(content)
            await self._put(content, began_s)
        else:
            sent = await self._uploader.upload(content)
            whole = _is_sent(sent.metadata, sent.snapshot.metadata, content.explicit_times)
            self._settle(content, sent.snapshot, sent.version, sent.metadata, began_s, metadata_too=whole)

    # Small

    async def _put(self, content: CachedContent, began_s: float) -> None:
        """One PUT. The snapshot is the file at the moment at which the last byte of the body was read.

        If it was written while a thread read it, it is read on the event loop (at most 16 MiB, and in the page cache
        by then): else a file that is written all the time would never be published.
        """
        turn = 0
        while content.size <= SMALL_BYTES:
            size, before = content.size, content.generation
            body = await self._sender.fetch(content, 0, size)
            async with self._sender.uploads, self._budget.hold(size):
                if body is None or content.generation != before:
                    size, before = min(size, content.size), content.generation
                    read = self._sender.read_now if turn % 2 else self._sender.read
                    body = await read(content, 0, size)
                    turn += 1
                if content.state is not State.DIRTY:
                    raise Abandoned
                if body is not None and content.generation == before and content.size == size:
                    await self._put_body(content, content.take(), body, began_s)
                    return
        raise Abandoned

    async def _put_body(self, content: CachedContent, snapshot: Snapshot, body: bytearray, began_s: float) -> None:
        key = content.key
        # No await since the snapshot: a row that is saved while we ask for the condition knows of this attempt.
        number, nonce = self._sender.number_attempt(content)
        attempt = content.attempts[number]
        attempt.note("", snapshot.generation)
        condition = await self._guard.condition(content)
        hit(Point.PUBLISH_BEFORE_PUT)
        try:
            etag = await self._store.put(
                key,
                body,
                metadata={**snapshot.metadata, NONCE: nonce},
                content_type=snapshot.content_type or FILE_TYPE,
                condition=condition,
            )
        except BaseException as failure:  # the outcome may be unknown: remember what it would look like
            if self._store.capabilities.etag_is_md5:
                attempt.sent = {whole_etag(body): snapshot.generation}
            attempt.broken = isinstance(failure, Corrupt)
            raise
        hit(Point.PUBLISH_AFTER_PUT)
        self._sender.progress(content, len(body))
        self._settle(content, snapshot, Version(etag, nonce), snapshot.metadata, began_s)

    # Conditions and what they mean

    async def _examine(self, content: CachedContent) -> bool:
        """Look at the object after a refusal. True: no reason is to be seen. Raises Conflict."""
        info = await self._guard.head(content.key)
        verdict = judge(content, info, self._cache_id, etag_is_md5=self._store.capabilities.etag_is_md5)
        match verdict:
            case Retry():
                return True
            case Rebase(base):
                content.base = base
                self._moved(content)
            case Applied():
                self._adopt(content, verdict, info)
            case Foreign() if content.state is not State.DISCARDED:
                if not await self._follow(content, info):
                    await self._keeper.keep(content)
        return False

    async def _follow(self, content: CachedContent, info: ObjectInfo | None) -> bool:
        """True when another node has made a hard link of the file: what is to be replaced is its body by now."""
        link = layout.link_of(info) if info is not None else None
        if link is None or content.base is None:
            return False
        await self._sender.drop_stream(content)  # an upload belongs to its key
        body = await self._guard.head(link.key)
        if body is None or not layout.is_body_of(body, content.base) or self._is_dirty(link.key):
            return False
        # No await since the look at what is pending there.
        content.key = link.key
        content.rebase(body.version)
        self._moved(content)
        return True

    def _is_dirty(self, key: str) -> bool:
        return any(content.key == key for content in self._ledger.dirty)

    def _adopt(self, content: CachedContent, verdict: Applied, info: ObjectInfo | None) -> None:
        """The object is one of our own attempts, whose reply was lost. No await."""
        assert info is not None  # only an object can be ours
        self._health.count("lost_replies")
        sent = {name: value for name, value in (info.metadata or {}).items() if name != NONCE}
        stream = content.stream
        if stream is not None and stream.attempt == verdict.number:
            content.stream = None
            self._sender.ended(stream.upload_id)
        if verdict.whole and verdict.number in content.attempts:
            whole = _is_sent(sent, content.metadata, content.explicit_times)
            self._settle(content, content.take(), info.version, sent, trio.current_time(), metadata_too=whole)
        elif verdict.whole:
            self._take_over(content, info, sent)
        else:
            content.rebase(info.version)
            for number in [at for at in content.attempts if at <= verdict.number]:
                del content.attempts[number]
            self._moved(content)

    def _take_over(self, content: CachedContent, info: ObjectInfo, sent: Mapping[str, str]) -> None:
        """The bucket has a publish that is later than our journal: it holds all that we know, and more."""
        touched = content.metadata if content.generation > content.loaded_generation else None  # bytes wait for us
        content.reset(info, sent)
        self._files.cut(content.id, 0)
        self._journal.enqueue(records.drop_clean(content.id, content.recorded))
        content.recorded.clear()
        if touched is not None and content.describe(touched, explicit_times=False):
            content.published_generation = content.loaded_generation  # whoever asked for these has still to wait
        self._ledger.update(content)
        self._saver.record_publish(content)
        self._moved(content)

    def _settle(
        self,
        content: CachedContent,
        snapshot: Snapshot,
        version: Version,
        sent: Mapping[str, str],
        began_s: float,
        *,
        metadata_too: bool = True,
    ) -> None:
        content.settle(snapshot, version, sent, metadata_too=metadata_too)
        self._health.count("published")
        self._ledger.update(content, since_s=began_s)
        self._saver.record_publish(content)
        self._moved(content)


def _is_sent(sent: Mapping[str, str], wanted: Mapping[str, str], explicit_times: bool) -> bool:
    """True when an object with metadata `sent` needs no further publish: equal, or only without unimportant times."""
    return sent == wanted or (not explicit_times and sent == without_times(wanted))
