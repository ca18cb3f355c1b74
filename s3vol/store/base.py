"""The Store protocol: all that s3vol asks of an object store, and the contract in prose.

Contract, for every backend and every decorator (tests/store/test_conformance.py holds it):

* Keys are text without a leading `/`. A key ending in `/` is an ordinary key (a directory marker). A store is
  opened on a prefix and shows keys relative to it: callers never see the prefix.
* **Atomic**: put, complete_upload and copy make the whole new object visible at once, or nothing.
* **Conditional**: with a `Condition`, the check and the change are one step; of N concurrent callers with the same
  condition exactly one wins, the others get PreconditionFailed. IfMatch on a missing key is NotFound.
* **Idempotent**: head, get, list, uploads, delete (a missing key is success), upload_part and copy_part (same number
  replaces), abort_upload (unknown id is success). put, complete_upload and copy are NOT under a condition:
  repeated after a lost reply they raise PreconditionFailed although the first attempt was applied. Callers put a
  nonce into the metadata and look (`head`) before they call it a conflict.
* **Retry**: a backend tries once. The retry decorator repeats what raised a retryable error, until its deadline.
* **Cancel**: on cancellation a change is applied or not, never half; the caller does not learn which. No task, file
  or connection of the call is left to block a later one. A cancelled upload's parts stay until aborted.
* **Errors**: only kinds of s3vol.errors leave. NotFound means that the store said 404, and nothing else.
* **Order**: read-after-write for every call, listings included. A listing of many pages is not a snapshot.
* **Bytes**: `put` and `upload_part` take any buffer and do not keep it after they return. What `put` returns was
  checked: where `etag_is_md5`, a wrong ETag raises Corrupt. `get` returns exactly what was asked for, cut at the end of
  the object; a shorter body raises Unavailable, never short data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from s3vol.types import GIB, MIB, ObjectInfo

Buffer: TypeAlias = bytes | bytearray | memoryview

DIRECTORY_TYPE = "application/x-directory"
FILE_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Condition:
    """When a change may be applied. Use ANY, ABSENT or `matches(etag)`."""

    absent: bool = False
    etag: str | None = None


ANY = Condition()
ABSENT = Condition(absent=True)


def matches(etag: str) -> Condition:
    """The change is applied only to the object with this ETag (RFC 9110 If-Match)."""
    return Condition(etag=etag)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint can really do, as the probe saw it (store/probe.py). Sizes are in bytes."""

    conditional_create: bool = True
    conditional_replace: bool = True
    conditional_complete: bool = True
    copy_part: bool = True
    list_metadata: bool = True
    etag_is_md5: bool = True
    conditions_span_nodes: bool = True  # else they hold among the users of one mount, and conflicts are merged
    publishes_later: bool = (
        False  # other nodes see a change after `sync`; else when it returns, and `sync` does nothing
    )
    hides_children: bool = False  # object `a` makes `a/...` vanish from listings (MinIO)
    versions: bool = False
    watch: bool = False
    min_part_bytes: int = 5 * MIB  # S3: every part but the last
    max_part_bytes: int = 5 * GIB
    max_parts: int = 10_000
    max_put_bytes: int = 5 * GIB
    max_metadata_bytes: int = 2048
    max_key_bytes: int = 1024  # of the keys that callers see: without the store's prefix


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in byte order of the keys. `next_cursor` is None on the last page."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]  # with delimiter: keys up to and including the next `/`
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a multipart upload that the store acknowledged."""

    number: int  # 1-based
    etag: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    key: str
    id: str
    begun_ns: int  # by the store's clock


@dataclass(frozen=True, slots=True)
class Change:
    """Hint from `watch`: something happened to this key. May be lost, late or doubled; never a proof."""

    key: str
    etag: str | None  # None: deleted
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Changes that returned and that other nodes do not see: names, and the bytes of those that are files."""

    names: int = 0
    bytes: int = 0


class Store(Protocol):
    """An object store, seen from one prefix. See the module's docstring for the contract."""

    @property
    def capabilities(self) -> Capabilities:
        """What this endpoint can do. Constant while the store is open."""
        ...

    @property
    def url(self) -> str:
        """The source in the user's words, without credentials."""
        ...

    @property
    def unpublished(self) -> Unpublished:
        """What `sync` has still to do; nothing without `capabilities.publishes_later`."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Size, version and metadata, as of a request that began after this call. Raises NotFound."""
        ...

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """`length` bytes from `start`, fewer only at the end of the object; beyond the end: b"".

        `if_match` is an ETag; PreconditionFailed when the object has another one. Raises NotFound.
        """
        ...

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo, Buffer]:
        """What `head` and `get` from 0 say, of one version; in one request where the store can. Raises NotFound.

        For a file that is opened to be read: the proof that it is current brings its first bytes along. None of them
        come from a store that was asked to check what it reads, and can check only all of the object.
        """
        ...

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """Write a whole object; returns its ETag. Raises PreconditionFailed, NotFound (IfMatch on nothing)."""
        ...

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
        """Copy on the server side with new metadata; returns the target's ETag.

        `if_match` guards the source, `condition` the target; PreconditionFailed when either fails. Never done by
        CopyObject onto the key itself: racing a PUT that leaves new bytes under the old ETag (docs/rfcs).
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object, whatever version it has: S3's DELETE knows no condition. Missing is success."""
        ...

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
        """One page of keys that begin with `prefix` (the key equal to `prefix` included), at most `limit` entries.

        With `delimiter`, keys with a further `/` are folded into `prefixes`. With `metadata`, objects carry it where
        the store can say it in a listing (`capabilities.list_metadata`, and the page was well-formed); else it is None.
        """
        ...

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """Begin a multipart upload; returns its id. Nothing is visible before complete_upload."""
        ...

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """Send part `number` (1-based)."""
        ...

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """Make part `number` from a range of an existing object with this ETag. PreconditionFailed if it changed."""
        ...

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """Make the object visible; returns its ETag. After PreconditionFailed the parts are still there.

        NotFound: the upload id is unknown (completed or aborted before) or its parts are, or IfMatch on a missing key.
        """
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts. An unknown id is success."""
        ...

    async def sync(self) -> None:
        """Return when every change that returned before is visible to all nodes, as durable as the store can make it.

        Nothing to do without `capabilities.publishes_later`: callers on a hot path look there. Idempotent. Raises
        Unavailable.
        """
        ...

    async def uploads(self) -> Sequence[Upload]:
        """Unfinished multipart uploads, as far as the store remembers them: MinIO forgets them when it restarts."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Hints about changes made by others. Raises Rejected without `capabilities.watch`."""
        ...

    async def aclose(self) -> None:
        """Release connections and threads. The store is not used afterwards."""
        ...
