"""The reference store: a bucket in memory that answers as S3 and MinIO were measured to answer.

Theory of operation. A `MemoryBucket` holds objects and uploads; a `MemoryStore` is one view of it, opened on a prefix,
so that two mounts of a test share one bucket. Every call awaits exactly once, before it does anything: check and
change are then one step, with no `await` in between, which is what makes conditions atomic and cancellation clean.

`Capabilities` are a parameter: a test plays a store that cannot list metadata, copy parts or hold a condition. What is
not named there is refused as such a store would refuse it.

Rejected: time-outs, latency and failures here (the fault decorator has them, for every store).
"""

from __future__ import annotations

import time
import uuid
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import trio

from s3vol.errors import NotFound, Rejected
from s3vol.store import rules
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Capabilities, Change, Condition, Page, Part, Unpublished, Upload
from s3vol.types import NONCE, ObjectInfo

_S_NS = 1_000_000_000
_WATCH_BACKLOG = 1000  # hints a slow reader may miss: MinIO's channels are bounded as well

MEMORY_CAPABILITIES = Capabilities(watch=True)


@dataclass(frozen=True, slots=True)
class _Object:
    info: ObjectInfo
    body: bytes


@dataclass(slots=True)
class _Upload:
    key: str
    metadata: dict[str, str]
    content_type: str
    begun_ns: int
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


class _Watch(AsyncIterator[Change]):
    """A subscription. It lives as long as somebody holds it; nothing has to be closed."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._hints: deque[Change] = deque(maxlen=_WATCH_BACKLOG)
        self._wake = trio.Event()
        self._closed = False

    def tell(self, change: Change) -> None:
        if change.key.startswith(self.prefix):
            self._hints.append(change)
            self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        while not self._hints:
            if self._closed:
                raise StopAsyncIteration
            self._wake = trio.Event()
            await self._wake.wait()
        return self._hints.popleft()


class MemoryBucket:
    """The shared state behind any number of MemoryStores. All methods are synchronous, hence atomic under trio.

    `now_ns` is the clock of Last-Modified, which is cut to whole seconds as a HEAD reports it.
    """

    def __init__(self, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.now_ns = now_ns
        self.objects: dict[str, _Object] = {}
        self.keys: list[str] = []  # sorted; code point order is the byte order of UTF-8
        self.uploads: dict[str, _Upload] = {}
        self._watches: weakref.WeakSet[_Watch] = weakref.WeakSet()

    def find(self, key: str) -> _Object:
        """The object. Raises NotFound."""
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"{key}: no such object") from None

    def commit(
        self, key: str, body: bytes, etag: str, metadata: dict[str, str], content_type: str, condition: Condition
    ) -> str:
        """Check the condition and make the object visible; returns its ETag."""
        current = self.objects.get(key)
        rules.decide(key, condition, current.info.etag if current else None)
        modified_ns = self.now_ns() // _S_NS * _S_NS
        info = ObjectInfo(key, len(body), etag, modified_ns, metadata, content_type)
        if current is None:
            insort(self.keys, key)
        self.objects[key] = _Object(info, body)
        self._tell(Change(key, etag, metadata.get(NONCE, "")))
        return etag

    def remove(self, key: str) -> None:
        """Remove the object if it is there."""
        if self.objects.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]
            self._tell(Change(key, None))

    def upload(self, key: str, upload_id: str) -> _Upload:
        """The upload. Raises NotFound when the id is unknown, or belongs to another key."""
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NotFound(f"{key}: no upload {upload_id}")
        return upload

    def subscribe(self, prefix: str) -> _Watch:
        """Hints about keys that begin with `prefix`, from now on."""
        watch = _Watch(prefix)
        self._watches.add(watch)
        return watch

    def _tell(self, change: Change) -> None:
        for watch in list(self._watches):
            watch.tell(change)


class MemoryStore:
    """One view of a MemoryBucket; implements `s3vol.store.base.Store`, contract included."""

    def __init__(
        self,
        bucket: MemoryBucket | None = None,
        prefix: str = "",
        *,
        capabilities: Capabilities = MEMORY_CAPABILITIES,
    ) -> None:
        self.bucket = bucket or MemoryBucket()
        self._prefix = prefix
        self._caps = capabilities
        self._watches: weakref.WeakSet[_Watch] = weakref.WeakSet()

    @property
    def capabilities(self) -> Capabilities:
        """What was given to the constructor."""
        return self._caps

    @property
    def url(self) -> str:
        """`memory:` and the prefix."""
        return f"memory:{self._prefix}"

    def _full(self, key: str) -> str:
        full = self._prefix + key
        rules.check_key(full, self._caps)
        return full

    def _etag(self, body: Buffer) -> str:
        etag = rules.md5_etag(body)
        return etag if self._caps.etag_is_md5 else etag[::-1]  # still made of the content only, as ETags are

    def _show(self, info: ObjectInfo, *, metadata: bool = True) -> ObjectInfo:
        key = info.key[len(self._prefix) :]
        if metadata:
            return replace(info, key=key, metadata=dict(info.metadata or {}))
        return replace(info, key=key, metadata=None, content_type="")

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        full = self._full(key)
        await trio.lowlevel.checkpoint()
        return self._show(self.bucket.find(full).info)

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """See Store.get."""
        full = self._full(key)
        rules.check_range(start, length)
        await trio.lowlevel.checkpoint()
        found = self.bucket.find(full)
        rules.decide_read(key, if_match, found.info.etag)
        return found.body[start : start + length]

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo, Buffer]:
        """See Store.fetch."""
        full = self._full(key)
        await trio.lowlevel.checkpoint()
        found = self.bucket.find(full)
        return self._show(found.info), found.body[:length]

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """See Store.put."""
        full = self._full(key)
        rules.check_body(memoryview(body).nbytes, self._caps.max_put_bytes)
        rules.check_condition(condition, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        await trio.lowlevel.checkpoint()
        content = bytes(body)
        return self.bucket.commit(full, content, self._etag(content), stored, content_type, condition)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """See Store.copy."""
        full, full_target = self._full(source), self._full(target)
        rules.check_condition(condition, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        await trio.lowlevel.checkpoint()
        found = self.bucket.find(full)
        rules.decide_read(source, if_match, found.info.etag)
        return self.bucket.commit(full_target, found.body, self._etag(found.body), stored, content_type, condition)

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        full = self._full(key)
        await trio.lowlevel.checkpoint()
        self.bucket.remove(full)

    async def list(
        self,
        prefix: str,
        *,
        delimiter: bool = True,
        cursor: str | None = None,
        start_after: str | None = None,
        limit: int = 1000,
        metadata: bool = True,
    ) -> Page:
        """See Store.list. The cursor is the last entry of the page before."""
        limit = rules.check_limit(limit)
        rules.check_text(prefix)
        await trio.lowlevel.checkpoint()
        after = cursor or start_after
        full, full_after = self._prefix + prefix, self._prefix + after if after else self._prefix
        hidden = self._hides(full) if self._caps.hides_children else None
        entries = fold(self.bucket.keys, full, delimiter, full_after, limit + 1, hidden)
        page = entries[:limit]
        shown = metadata and self._caps.list_metadata
        cut = len(self._prefix)
        return Page(
            objects=tuple(self._show(self.bucket.objects[e].info, metadata=shown) for e, folded in page if not folded),
            prefixes=tuple(e[cut:] for e, folded in page if folded),
            next_cursor=page[-1][0][cut:] if len(entries) > limit else None,
        )

    def _hides(self, prefix: str) -> Callable[[str], bool]:
        """MinIO: an object `a` hides `a/...` from a listing, unless the listing begins below it."""
        first = max(prefix.rfind("/"), 0)

        def hidden(key: str) -> bool:
            at = key.find("/", first)
            while 0 <= at < len(key) - 1:
                if key[:at] in self.bucket.objects:
                    return True
                at = key.find("/", at + 1)
            return False

        return hidden

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """See Store.create_upload."""
        full = self._full(key)
        rules.check_upload_key(full, self._caps)
        stored = rules.check_metadata(metadata, self._caps)
        await trio.lowlevel.checkpoint()
        upload_id = uuid.uuid4().hex
        self.bucket.uploads[upload_id] = _Upload(full, stored, content_type, self.bucket.now_ns())
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        full = self._full(key)
        rules.check_part(number, memoryview(body).nbytes, self._caps)
        await trio.lowlevel.checkpoint()
        return self._keep_part(full, upload_id, number, bytes(body))

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """See Store.copy_part. Raises Rejected for a range that the source does not have."""
        if not self._caps.copy_part:
            raise Rejected("this store cannot copy parts")
        full, full_source = self._full(key), self._full(source)
        rules.check_range(start, length)
        rules.check_part(number, length, self._caps)
        await trio.lowlevel.checkpoint()
        found = self.bucket.find(full_source)
        rules.decide_read(source, if_match, found.info.etag)
        if start + length > len(found.body):
            raise Rejected(f"{source}: has no {length} bytes from {start}")
        return self._keep_part(full, upload_id, number, found.body[start : start + length])

    def _keep_part(self, full: str, upload_id: str, number: int, body: bytes) -> Part:
        part = Part(number, rules.md5_etag(body))
        self.bucket.upload(full, upload_id).parts[number] = (part.etag, body)
        return part

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """See Store.complete_upload."""
        full = self._full(key)
        rules.check_condition(condition, self._caps, completing=True)
        await trio.lowlevel.checkpoint()
        upload = self.bucket.upload(full, upload_id)
        rules.check_parts(parts, {(n, etag): len(body) for n, (etag, body) in upload.parts.items()}, self._caps)
        body = b"".join(upload.parts[part.number][1] for part in parts)
        etag = rules.multipart_etag(part.etag for part in parts)
        self.bucket.commit(full, body, etag, upload.metadata, upload.content_type, condition)
        del self.bucket.uploads[upload_id]
        return etag

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See Store.abort_upload."""
        full = self._full(key)
        await trio.lowlevel.checkpoint()
        upload = self.bucket.uploads.get(upload_id)
        if upload is not None and upload.key == full:
            del self.bucket.uploads[upload_id]

    @property
    def unpublished(self) -> Unpublished:
        """See Store.unpublished. Nothing: a change that returned is there."""
        return Unpublished()

    async def sync(self) -> None:
        """See Store.sync. A change that returned is there."""
        await trio.lowlevel.checkpoint()

    async def uploads(self) -> Sequence[Upload]:
        """See Store.uploads."""
        await trio.lowlevel.checkpoint()
        skip = len(self._prefix)
        return [
            Upload(found.key[skip:], upload_id, found.begun_ns)
            for upload_id, found in self.bucket.uploads.items()
            if found.key.startswith(self._prefix)
        ]

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See Store.watch. Changes made after this call are told, at most 1,000 of them unread."""
        if not self._caps.watch:
            raise Rejected("this store cannot watch")
        watch = self.bucket.subscribe(self._prefix + prefix)
        self._watches.add(watch)
        return _Relative(watch, len(self._prefix))

    async def aclose(self) -> None:
        """End this view's watches; the bucket stays for others."""
        for watch in list(self._watches):
            watch.close()
        await trio.lowlevel.checkpoint()


class _Relative(AsyncIterator[Change]):
    """The hints of a watch, with keys as callers of one view know them."""

    def __init__(self, watch: _Watch, cut: int) -> None:
        self._watch = watch
        self._cut = cut

    async def __anext__(self) -> Change:
        change = await anext(self._watch)
        return replace(change, key=change.key[self._cut :])


def fold(
    keys: Sequence[str],
    prefix: str,
    delimiter: bool,
    after: str,
    limit: int,
    hidden: Callable[[str], bool] | None = None,
) -> list[tuple[str, bool]]:
    """Up to `limit` entries greater than `after`, each a key or (True) a folded prefix. `keys` is sorted."""
    found: list[tuple[str, bool]] = []
    at = max(bisect_left(keys, prefix), bisect_right(keys, after))
    while at < len(keys) and keys[at].startswith(prefix) and len(found) < limit:
        key = keys[at]
        slash = key.find("/", len(prefix)) if delimiter else -1
        if hidden is not None and hidden(key):
            at += 1
        elif slash < 0:
            found.append((key, False))
            at += 1
        else:
            folded = key[: slash + 1]
            if folded > after:
                found.append((folded, True))
            at = bisect_left(keys, key[:slash] + "0")  # "0" follows "/": past everything under the prefix
    return found
