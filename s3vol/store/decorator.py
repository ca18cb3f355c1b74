"""The shape of a store that wraps another: every call goes through one method, `around`.

Theory of operation. Retry, limit, trace and fault do the same thing to each of the store's calls, so each overrides
`around` and nothing else. `around` gets the call as a value (what, on which key, how many bytes travel) and a function
that performs it once; calling that again performs it again. `watch` is a subscription and no call: it passes through.

Rejected: `__getattr__` (mypy then checks nothing), and a decorator function per method (four times twelve of them).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from s3vol.store.base import (
    ANY,
    FILE_TYPE,
    Buffer,
    Capabilities,
    Change,
    Condition,
    Page,
    Part,
    Store,
    Unpublished,
    Upload,
)
from s3vol.types import ObjectInfo

T = TypeVar("T")

Operation: TypeAlias = Literal[
    "head",
    "get",
    "fetch",
    "put",
    "copy",
    "delete",
    "list",
    "create_upload",
    "upload_part",
    "copy_part",
    "complete_upload",
    "abort_upload",
    "uploads",
    "sync",
]

READS: frozenset[Operation] = frozenset({"head", "get", "fetch", "list", "uploads"})


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store. `body_bytes` is what travels over the wire, 0 where that is a header's worth."""

    operation: Operation
    key: str
    body_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.operation} {self.key!r}"


class Decorator:
    """A Store over another Store. Subclasses override `around`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call; what happens before, after or instead is the decorator."""
        return await perform()

    @property
    def capabilities(self) -> Capabilities:
        """Of the store inside."""
        return self.inner.capabilities

    @property
    def url(self) -> str:
        """Of the store inside."""
        return self.inner.url

    @property
    def unpublished(self) -> Unpublished:
        """Of the store inside."""
        return self.inner.unpublished

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        return await self.around(Call("head", key), lambda: self.inner.head(key))

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """See Store.get."""
        return await self.around(
            Call("get", key, length), lambda: self.inner.get(key, start, length, if_match=if_match)
        )

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo, Buffer]:
        """See Store.fetch."""
        return await self.around(Call("fetch", key, length), lambda: self.inner.fetch(key, length))

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
        return await self.around(
            Call("put", key, memoryview(body).nbytes),
            lambda: self.inner.put(key, body, metadata=metadata, content_type=content_type, condition=condition),
        )

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
        return await self.around(
            Call("copy", target),
            lambda: self.inner.copy(
                source,
                target,
                if_match=if_match,
                metadata=metadata,
                content_type=content_type,
                condition=condition,
            ),
        )

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        await self.around(Call("delete", key), lambda: self.inner.delete(key))

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
        """See Store.list."""
        return await self.around(
            Call("list", prefix),
            lambda: self.inner.list(
                prefix,
                delimiter=delimiter,
                cursor=cursor,
                start_after=start_after,
                limit=limit,
                metadata=metadata,
            ),
        )

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """See Store.create_upload."""
        return await self.around(
            Call("create_upload", key),
            lambda: self.inner.create_upload(key, metadata=metadata, content_type=content_type),
        )

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        return await self.around(
            Call("upload_part", key, memoryview(body).nbytes),
            lambda: self.inner.upload_part(key, upload_id, number, body),
        )

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """See Store.copy_part."""
        return await self.around(
            Call("copy_part", key),
            lambda: self.inner.copy_part(
                key,
                upload_id,
                number,
                source=source,
                start=start,
                length=length,
                if_match=if_match,
            ),
        )

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """See Store.complete_upload."""
        return await self.around(
            Call("complete_upload", key),
            lambda: self.inner.complete_upload(key, upload_id, parts, condition=condition),
        )

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See Store.abort_upload."""
        await self.around(Call("abort_upload", key), lambda: self.inner.abort_upload(key, upload_id))

    async def sync(self) -> None:
        """See Store.sync."""
        await self.around(Call("sync", ""), self.inner.sync)

    async def uploads(self) -> Sequence[Upload]:
        """See Store.uploads."""
        return await self.around(Call("uploads", ""), self.inner.uploads)

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See Store.watch."""
        return self.inner.watch(prefix)

    async def aclose(self) -> None:
        """See Store.aclose."""
        await self.inner.aclose()
