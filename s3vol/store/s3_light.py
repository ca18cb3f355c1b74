"""Requests to S3 on the event loop, each one attempt: HEAD, ranged GET, PUT, DELETE, parts, and pages of a listing.

Theory of operation. Most of what a file system asks moves so few bytes that a thread or a general-purpose client costs
more than the request (connections.py says how much). Where there is no TLS, a large body is as cheap: it is received
where the cache wants it, and sent from where it is (`can_read`, `can_send`); only its hash is made in a thread. Keys
travel exactly as they are, those that end in `/` included. Errors are judged by the one table in edge.py.

HEAD has no body, so a refusal does not say why. MinIO puts its error code into a header; where there is none, a GET of
one byte of the same key is asked, and its body tells. Only NoSuchKey becomes NotFound (a 404 may be a proxy's).

Reads that are cancelled close their connection. Changes are waited for: one that was cancelled must not land behind a
later one of the same caller.

Not for endpoints behind a proxy, nor for large bodies over TLS, which would hold up the loop. Those go through the
clients of s3_client.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio
from botocore.credentials import RefreshableCredentials

from s3vol.errors import Rejected, S3volError, Unavailable
from s3vol.store import edge, s3_sign
from s3vol.store import s3_wire as wire
from s3vol.store.aligned import BLOCK_BYTES
from s3vol.store.base import Buffer, Condition
from s3vol.store.connections import LARGE_BYTES, Connections, Reply
from s3vol.types import ObjectInfo

if TYPE_CHECKING:
    from botocore.credentials import Credentials

    from s3vol.store.s3_sse import Encryption

LIGHT_BODY_BYTES = LARGE_BYTES
"""SHA-256 and MD5 of so much take 0.4 ms of the event loop (2-core VM, measured); a thread's way and back 0.25 ms."""

_KEYS_S = 60.0  # keys that can be renewed are asked for this often; botocore renews 15 minutes before they expire
_META = "x-amz-meta-"
_MUTE = frozenset({301, 400, 401, 403, 404})  # statuses that mean several things without a body
_NS = 1_000_000_000
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket at a server: `host` as in the Host header, `path` before each key, "" or `/bucket`."""

    host: str
    path: str
    region: str


class Light:
    """Requests to one bucket. `credentials` None: nothing is signed."""

    def __init__(
        self, connections: Connections, place: Place, credentials: Credentials | None, encryption: Encryption
    ) -> None:
        self._connections = connections
        self._place = place
        self._credentials = credentials
        self._encryption = encryption
        self._keys: s3_sign.Keys | None = None
        self._keys_until_s = float("-inf")

    def can_read(self, length: int) -> bool:
        """True when a GET of so many bytes is well done here."""
        return length <= (BLOCK_BYTES if self._connections.carries_large else LIGHT_BODY_BYTES)

    def can_send(self, length: int) -> bool:
        """True when a body of so many bytes is well sent from here."""
        return length <= LIGHT_BODY_BYTES or self._connections.carries_large

    async def head(self, what: str, key: str) -> ObjectInfo:
        """HEAD."""
        reply = await self._ask(what, "HEAD", key, headers=self._encryption.headers())
        if 200 <= reply.status < 300:
            told = reply.headers
            return _info(key, reply, wire.told_size(what, told.get("content-length"), told.get("etag")))
        raise await self._reason(what, key, reply)

    async def get(self, what: str, key: str, start: int, length: int, if_match: str | None) -> Buffer | None:
        """Ranged GET; None when `start` is at or behind the end of the object."""
        found = await self.get_with_info(what, key, start, length, if_match)
        return None if found is None else found[1]

    async def get_with_info(
        self, what: str, key: str, start: int, length: int, if_match: str | None = None
    ) -> tuple[ObjectInfo, Buffer] | None:
        """The same, with what HEAD would say."""
        headers = {"range": f"bytes={start}-{start + length - 1}", **self._encryption.headers()}
        if if_match is not None:
            headers["if-match"] = wire.quoted(if_match)
        reply = await self._ask(what, "GET", key, headers=headers, in_place=True)
        if reply.status == 416:
            return None
        if reply.status not in (200, 206):
            raise reply.error(what)
        wire.check_version(what, if_match, reply.headers.get("etag"))
        size = _whole_size(what, reply, start)
        expected = min(length, size - start)
        content = reply.content
        if len(content) != expected:
            raise Unavailable(f"{what}: {len(content)} bytes came where {expected} were announced")
        return _info(key, reply, size), content

    async def put(
        self,
        what: str,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str,
        condition: Condition,
        checksum: bool,
    ) -> str:
        """PUT; returns the ETag. `metadata` is encoded already."""
        headers = {
            "content-type": content_type,
            "content-length": str(memoryview(body).nbytes),
            **{f"{_META}{name}": value for name, value in metadata.items()},
            **self._encryption.headers(making=True),
        }
        if condition.absent:
            headers["if-none-match"] = "*"
        elif condition.etag is not None:
            headers["if-match"] = wire.quoted(condition.etag)
        digest = await _sha256(body)
        if checksum:
            headers["x-amz-checksum-sha256"] = base64.b64encode(digest).decode()
        reply = await self._change(what, "PUT", key, headers, body, digest.hex())
        if reply.status != 200:
            raise reply.error(what)
        return wire.told_etag(what, reply.headers.get("etag"))

    async def upload_part(self, what: str, key: str, upload_id: str, number: int, body: Buffer) -> str:
        """Send one part of an upload; returns its ETag."""
        query = f"partNumber={number}&uploadId={quote(upload_id, safe='-_.~')}"
        headers = {"content-length": str(memoryview(body).nbytes), **self._encryption.headers()}
        digest = await _sha256(body)
        reply = await self._change(what, "PUT", key, headers, body, digest.hex(), query)
        if reply.status != 200:
            raise reply.error(what)
        return wire.told_etag(what, reply.headers.get("etag"))

    async def delete(self, what: str, key: str) -> None:
        """DELETE; a missing key is success."""
        reply = await self._change(what, "DELETE", key, {}, b"", _EMPTY_SHA256)
        if reply.status not in (200, 204):
            raise reply.error(what)

    async def page(self, what: str, query: str) -> Reply:
        """GET of the bucket itself, with an encoded and sorted query."""
        return await self._ask(what, "GET", "", query=query)

    def close(self) -> None:
        """Close idle connections."""
        self._connections.close()

    async def _reason(self, what: str, key: str, reply: Reply) -> S3volError:
        """Why HEAD was refused."""
        code = reply.headers.get("x-minio-error-code", "")
        if code:
            told = reply.headers.get("x-minio-error-desc", "").strip('"')
            request_id = reply.headers.get("x-amz-request-id", "")
            return edge.judge(edge.Answer(reply.status, code, told, reply.date, request_id), what)
        if reply.status not in _MUTE:
            return reply.error(what)
        headers = {"range": "bytes=0-0", **self._encryption.headers()}
        spoken = await self._ask(what, "GET", key, headers=headers)
        if spoken.status not in (200, 206, 416):
            return spoken.error(what)
        if reply.status == 404:
            return Unavailable(f"{what}: missing for HEAD, there for GET: it was written just now")
        return reply.error(what)

    async def _change(
        self,
        what: str,
        method: str,
        key: str,
        headers: Mapping[str, str],
        body: Buffer,
        body_sha256: str,
        query: str = "",
    ) -> Reply:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope() as scope:
            scope.shield = True  # bounded by the connection's time-outs
            reply = await self._ask(what, method, key, query=query, headers=headers, body=body, body_sha256=body_sha256)
        return reply

    async def _ask(
        self,
        what: str,
        method: str,
        key: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
        body_sha256: str = _EMPTY_SHA256,
        in_place: bool = False,
    ) -> Reply:
        place = self._place
        path = f"{place.path}/{quote(key, safe='/-_.~')}" if key else place.path or "/"
        sent = headers or {}
        if self._credentials is None:
            sent = {"host": place.host, **sent}
        else:
            request = s3_sign.Request(method, place.host, path, query, sent, body_sha256)
            keys = await self._current_keys(what)
            try:
                sent = s3_sign.sign(request, keys, place.region, time.time())
            except UnicodeError as error:
                raise Rejected(f"{what}: a header cannot be sent: {error}") from None
        target = f"{path}?{query}" if query else path
        return await self._connections.exchange(what, method, target, sent, body, in_place=in_place)

    async def _current_keys(self, what: str) -> s3_sign.Keys:
        """Keys that can expire are renewed by botocore, over the network: in a thread."""
        now_s = trio.current_time()
        if self._keys is not None and now_s < self._keys_until_s:
            return self._keys
        assert self._credentials is not None
        if isinstance(self._credentials, RefreshableCredentials):
            try:
                found = await trio.to_thread.run_sync(self._credentials.get_frozen_credentials)
            except Exception as error:
                raise edge.translate(error, what) or error from error
            self._keys_until_s = now_s + _KEYS_S
        else:
            found = self._credentials.get_frozen_credentials()
            self._keys_until_s = float("inf")
        self._keys = s3_sign.Keys(str(found.access_key), str(found.secret_key), found.token)
        return self._keys


async def _sha256(body: Buffer) -> bytes:
    """Digest of the body; of a large one in a thread, whose end is waited for: the caller may reuse the memory."""

    def digest() -> bytes:
        return hashlib.sha256(body).digest()

    return digest() if memoryview(body).nbytes <= LIGHT_BODY_BYTES else await trio.to_thread.run_sync(digest)


def _whole_size(what: str, reply: Reply, start: int) -> int:
    """Length of the object that the answer is a piece of."""
    if reply.status == 200 and start == 0:
        if reply.headers.keys().isdisjoint(("content-length", "transfer-encoding")):
            raise Unavailable(f"{what}: an answer that ends with its connection may have been cut")
        return len(reply.content)
    extent = reply.headers.get("content-range", "")  # `bytes 0-9/100`
    total = extent.rpartition("/")[2]
    if not extent.startswith(f"bytes {start}-") or not total.isdecimal():
        raise Unavailable(f"{what}: the answer is no range that begins at {start}: {extent!r}")
    return int(total)


def _info(key: str, reply: Reply, size: int) -> ObjectInfo:
    headers = reply.headers
    sse = headers.get("x-amz-server-side-encryption", "")
    try:
        modified_s = int(edge.parse_date(headers.get("last-modified", "")))
    except (ValueError, OverflowError):
        modified_s = 0
    return ObjectInfo(
        key=key,
        size=size,
        etag=wire.unsealed(wire.bare(headers.get("etag")), size=size, sse=sse),
        modified_ns=modified_s * _NS,
        metadata=dict(
            wire.decode_metadata(name[len(_META) :], value) for name, value in headers.items() if name.startswith(_META)
        ),
        content_type=headers.get("content-type", ""),
    )
