"""A content cache in memory: the contract of `s3vol/cache/base.py` without disk, journal or background work.

For tests of the file system only, where they need a cache that does nothing by itself: `schedule` remembers what is to
be published, and the test says when (`publish_scheduled`). The same tests run on the real chunk cache as well.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import trio

from s3vol.cache.base import CacheStatus, Content, State
from s3vol.errors import Conflict, NotFound, PosixError, PreconditionFailed
from s3vol.layout import conflict_key, is_body_of, link_of, visible_key, without_link
from s3vol.store.base import ABSENT, FILE_TYPE, Buffer, Store, matches
from s3vol.types import NONCE, ObjectInfo, Version


@dataclass(eq=False)
class MemoryContent:
    """One content. Bytes below `base_limit` that were never touched are read from the base object."""

    key: str
    base: Version | None
    size: int
    metadata: Mapping[str, str]
    content_type: str
    state: State
    refs: int = 1
    body: bytearray | None = field(default=None)  # None: nothing is here yet, but
    first: Buffer = b""  # what came along with an open
    publishing: trio.Lock = field(default_factory=trio.Lock)

    @property
    def blocks_bytes(self) -> int:
        return self.size


class MemoryCache:
    """See the module's docstring."""

    def __init__(self, store: Store, node: str = "node", notes: dict[str, dict[str, str]] | None = None) -> None:
        self._store = store
        self._node = node
        self._dirty: dict[str, MemoryContent] = {}
        self._clean: dict[tuple[str, Version], MemoryContent] = {}
        self._notes = {} if notes is None else notes
        self._count = itertools.count()
        self._conflicts = itertools.count(1)  # their times: no two copies have one name
        self.scheduled: list[MemoryContent] = []
        self.synced: list[MemoryContent] = []

    def dirty(self, key: str) -> MemoryContent | None:
        return self._dirty.get(key)

    def pending(self) -> Iterable[MemoryContent]:
        return list(self._dirty.values())

    def attach(self, info: ObjectInfo, *, content_type: str = "") -> MemoryContent:
        assert info.metadata is not None
        found = self._clean.get((info.key, info.version))
        if found is not None:
            found.refs += 1
            return found
        metadata = {name: value for name, value in info.metadata.items() if name != NONCE}
        content = MemoryContent(
            info.key, info.version, info.size, metadata, content_type or info.content_type, State.CLEAN
        )
        self._clean[info.key, info.version] = content
        return content

    def holds(self, key: str, version: Version | None, length: int) -> bool:
        found = self._clean.get((key, version)) if version is not None else None
        return found is not None and found.body is not None

    async def fill(self, content: Content, body: Buffer) -> None:
        content = _own(content)
        if content.body is None and len(body) == content.size:
            content.body = bytearray(body)

    async def hold(self, content: Content, body: Buffer) -> None:
        await self.fill(content, body)
        _own(content).first = body

    async def unhold(self, content: Content) -> None:
        pass

    def create(
        self, key: str, metadata: Mapping[str, str], *, base: Version | None = None, content_type: str = ""
    ) -> MemoryContent:
        assert key not in self._dirty
        content = MemoryContent(key, base, 0, dict(metadata), content_type, State.DIRTY, body=bytearray())
        self._dirty[key] = content
        return content

    def refer(self, content: Content) -> None:
        content = _own(content)
        content.refs += 1

    def release(self, content: Content) -> None:
        content = _own(content)
        content.refs -= 1
        assert content.refs >= 0
        if content.refs == 0 and content.state is State.CLEAN and content.base is not None:
            self._clean.pop((content.key, content.base), None)

    async def read(self, content: Content, offset: int, length: int) -> Buffer:
        content = _own(content)
        if content.body is None and offset + length <= len(content.first):
            return content.first[offset : offset + length]
        await self._load(content)
        assert content.body is not None
        return bytes(content.body[offset : offset + length])

    def peek(self, content: Content, start: int, end: int) -> Buffer | None:
        content = _own(content)
        return None if content.body is None else bytes(content.body[start:end])

    async def write(self, content: Content, offset: int, data: Buffer) -> None:
        content = _own(content)
        self._writable(content)
        await self._load(content)
        assert content.body is not None
        if len(content.body) < offset:
            content.body.extend(bytes(offset - len(content.body)))
        content.body[offset : offset + len(data)] = data
        content.size = len(content.body)
        self._touched(content)

    async def truncate(self, content: Content, size: int) -> None:
        content = _own(content)
        self._writable(content)
        if size == 0:
            content.body = bytearray()
        await self._load(content)
        assert content.body is not None
        del content.body[size:]
        content.body.extend(bytes(size - len(content.body)))
        content.size = size
        self._touched(content)

    def set_metadata(self, content: Content, metadata: Mapping[str, str], *, explicit_times: bool = False) -> None:
        content = _own(content)
        self._writable(content)
        if dict(metadata) != dict(content.metadata):
            content.metadata = dict(metadata)
            self._touched(content)

    async def sync(self, content: Content) -> None:
        content = _own(content)
        await trio.lowlevel.checkpoint()
        self.synced.append(content)

    async def sync_all(self) -> None:
        await trio.lowlevel.checkpoint()
        self.synced.extend(self._dirty.values())

    def schedule(self, content: Content) -> None:
        content = _own(content)
        self.scheduled.append(content)

    async def publish_scheduled(self) -> None:
        scheduled, self.scheduled = self.scheduled, []
        for content in scheduled:
            if content.state is State.DIRTY:
                await self.publish(content)

    async def publish(self, content: Content) -> Version:
        content = _own(content)
        async with content.publishing:
            return await self._publish(content)

    async def _publish(self, content: MemoryContent) -> Version:
        if content.state is State.CONFLICTED:
            raise Conflict(content.key, "")
        if content.state is not State.DIRTY:
            assert content.base is not None
            return content.base
        try:
            await self._load(content)
        except (PreconditionFailed, NotFound):
            if await self._follow(content):
                return await self._publish(content)
            raise await self._lose(content, b"") from None
        assert content.body is not None
        body, metadata = bytes(content.body), content.metadata
        sent = {**metadata, NONCE: f"{self._node}.cache.{next(self._count)}"}
        condition = ABSENT if content.base is None else matches(content.base.etag)
        try:
            etag = await self._store.put(
                content.key, body, metadata=sent, content_type=content.content_type or FILE_TYPE, condition=condition
            )
        except (PreconditionFailed, NotFound):
            if await self._follow(content):
                return await self._publish(content)
            raise await self._lose(content, body) from None
        content.base = Version(etag, sent[NONCE])
        if bytes(content.body) == body and content.metadata == metadata:
            content.state = State.CLEAN
            if self._dirty.get(content.key) is content:
                del self._dirty[content.key]
            if content.refs:
                self._clean[content.key, content.base] = content
        return content.base

    async def _follow(self, content: MemoryContent) -> bool:
        """To the body of a hard link that another node has made of the file."""
        try:
            link = link_of(await self._store.head(content.key))
            body = await self._store.head(link.key) if link is not None else None
        except NotFound:
            return False
        if body is None or content.base is None or not is_body_of(body, content.base) or body.key in self._dirty:
            return False
        del self._dirty[content.key]
        content.key, content.base = body.key, body.version
        self._dirty[content.key] = content
        return True

    async def move(self, content: Content, key: str, base: Version | None) -> None:
        content = _own(content)
        async with content.publishing:
            if content.base is not None:
                raise PreconditionFailed(f"{content.key}: was published meanwhile")
            del self._dirty[content.key]
            assert key not in self._dirty
            content.key, content.base = key, base
            self._dirty[key] = content

    def rekey(self, content: Content, info: ObjectInfo) -> None:
        content = _own(content)
        assert content.state is State.CLEAN
        assert content.base is not None
        self._clean.pop((content.key, content.base), None)
        content.key, content.base = info.key, info.version
        if info.metadata is not None:
            content.metadata = {name: value for name, value in info.metadata.items() if name != NONCE}
        self._clean[info.key, info.version] = content

    async def discard(self, content: Content, *, durable: bool = True) -> None:
        content = _own(content)
        async with content.publishing:
            self._discard(content)

    def _discard(self, content: MemoryContent) -> None:
        if content.base is not None:
            self._clean.pop((content.key, content.base), None)
        if self._dirty.get(content.key) is content:
            del self._dirty[content.key]
        content.state = State.DISCARDED

    def is_local(self, content: Content) -> bool:
        content = _own(content)
        return content.body is not None or content.size == 0

    def status(self) -> CacheStatus:
        return CacheStatus("", 0, 0, 0, len(self._dirty), 0.0, 0, 0, 0)

    def notes(self, kind: str) -> Mapping[str, str]:
        return self._notes.setdefault(kind, {})

    def note(self, kind: str, name: str, value: str | None) -> None:
        table = self._notes.setdefault(kind, {})
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value

    async def settle_notes(self) -> None:
        await self.sync_notes()

    async def sync_notes(self) -> None:
        await trio.lowlevel.checkpoint()

    def _writable(self, content: MemoryContent) -> None:
        if content.state is State.CONFLICTED:
            raise PosixError(errno.ESTALE, content.key)

    def _touched(self, content: MemoryContent) -> None:
        if content.state is State.CLEAN:
            assert content.base is not None
            self._clean.pop((content.key, content.base), None)
            content.state = State.DIRTY
            self._dirty[content.key] = content

    async def _load(self, content: MemoryContent) -> None:
        """Fetch what is missing, as of the base."""
        if content.size == 0:
            content.body = bytearray() if content.body is None else content.body
        if content.body is None:
            assert content.base is not None
            body = await self._store.get(content.key, 0, content.size, if_match=content.base.etag)
            if content.body is None:
                content.body = bytearray(body)
        else:
            await trio.lowlevel.checkpoint()

    async def _lose(self, content: MemoryContent, body: bytes) -> Conflict:
        key = conflict_key(visible_key(content.key, content.metadata), self._node, float(next(self._conflicts)))
        await self._store.put(key, body, metadata=without_link(content.metadata))
        if self._dirty.get(content.key) is content:
            del self._dirty[content.key]
        content.state = State.CONFLICTED
        return Conflict(content.key, key)


def _own(content: Content) -> MemoryContent:
    assert isinstance(content, MemoryContent)
    return content
