"""S3 and MinIO as a Store: requests in, values out; no retry, no cache.

Theory of operation. This class puts the prefix before keys, checks what can be checked before anything is sent, and
gives each request to the event loop (`s3_light`: small ones, and large bodies without TLS) or to a thread (`s3_calls`:
the rest). A copy, which is several requests, is in `s3_copy`. A condition that the endpoint would ignore is refused
here: an ignored condition is a lost update.

Two answers of S3 do not say enough, and a second request settles them. HEAD has no body, so its 404 may be a missing
bucket, or a proxy that lost its backend; a GET tells (`s3_light`, `s3_calls.head`), and only NoSuchKey becomes
NotFound. 416 does not say whether If-Match held (MinIO looks at the range first), so the ETag is looked up.

Rejected: trusting a 404 without an S3 error code (behind a reverse proxy, files vanish while the store restarts).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree

import trio

from s3vol.errors import NotFound, PreconditionFailed, Rejected, Unavailable
from s3vol.store import rules, s3_calls, s3_list
from s3vol.store import s3_wire as wire
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Capabilities, Change, Condition, Page, Part, Unpublished, Upload
from s3vol.store.fetching import fetch_in_two
from s3vol.store.s3_client import Client
from s3vol.store.s3_copy import copy_object
from s3vol.store.s3_light import LIGHT_BODY_BYTES, Light
from s3vol.store.settings import Source
from s3vol.types import ObjectInfo


class S3Store:
    """One bucket, seen from one prefix. Owns `client`: `aclose` closes it."""

    def __init__(self, client: Client, source: Source, capabilities: Capabilities) -> None:
        self._client = client
        self._source = source
        self._root = source.prefix
        self._capabilities = capabilities
        room_bytes = capabilities.max_key_bytes - len(source.prefix.encode())
        self._told = replace(capabilities, max_key_bytes=room_bytes)

    @property
    def capabilities(self) -> Capabilities:
        """What this endpoint can do below the prefix."""
        return self._told

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._source.url

    @property
    def source(self) -> Source:
        """Bucket and prefix."""
        return self._source

    @property
    def client(self) -> Client:
        """The connections, for the probe."""
        return self._client

    def with_capabilities(self, capabilities: Capabilities) -> S3Store:
        """The same store, believed to be able to do this in the whole bucket. Use only one of the two."""
        return S3Store(self._client, self._source, capabilities)

    def _key(self, key: str) -> str:
        if not key or key.startswith("/"):
            raise Rejected(f"key {key!r}: a key is not empty and has no leading `/`")
        whole = self._root + key
        rules.check_key(whole, self._capabilities)
        wire.check_alias(whole)
        return whole

    def _light(self, key: str, body_bytes: int = 0, *, reading: bool = False) -> Light | None:
        """What does requests on the event loop, if it should do this one."""
        client = self._client
        light = client.light
        if light is None or (key.endswith("/") and client.encryption.asked):
            return None  # s3_calls knows the two ETags of encrypted markers
        if reading:
            return light if client.settings.checksum == "off" and light.can_read(body_bytes) else None
        return light if light.can_send(body_bytes) else None

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        whole, what = self._key(key), f"head {key}"
        light = self._light(whole)
        if light is not None:
            found = await light.head(what, whole)
        else:
            found = await self._client.read(what, s3_calls.head, self._client, whole)
        return replace(found, key=key)

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """See Store.get."""
        whole, what = self._key(key), f"get {key}"
        rules.check_range(start, length)
        body: Buffer | None = None
        light = self._light(whole, length, reading=True)
        if length and light is not None:
            body = await light.get(what, whole, start, length, if_match)
        elif length:
            body = await self._client.read(what, s3_calls.get, self._client, whole, start, length, if_match)
        if body is not None:
            return body
        if if_match is not None or not length:
            found = await self.head(key)
            rules.decide_read(key, if_match, found.etag)
        return b""

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo, Buffer]:
        """See Store.fetch."""
        whole, what = self._key(key), f"fetch {key}"
        light = self._light(whole, length, reading=True) if length else None  # a range has no way to say "nothing"
        found = await light.get_with_info(what, whole, 0, length) if light is not None else None
        if found is None:  # or the object is empty: 416 shows no attributes. A part of one cannot be checked.
            return await fetch_in_two(self, key, length, only_whole=self._client.settings.checksum != "off")
        return replace(found[0], key=key), found[1]

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
        whole = self._key(key)
        rules.check_condition(condition, self._capabilities)
        rules.check_body(memoryview(body).nbytes, self._capabilities.max_put_bytes)
        what = f"put {key}"
        encoded = wire.encode_metadata(metadata, self._capabilities)
        checked = self._capabilities.etag_is_md5
        light = self._light(whole, memoryview(body).nbytes)
        if light is None:
            content = s3_calls.Content(body, encoded, content_type)
            return await self._client.change(what, _put, self._client, whole, content, condition, checked)
        checksum = self._client.settings.checksum != "off"
        etag = await light.put(
            what, whole, body, metadata=encoded, content_type=content_type, condition=condition, checksum=checksum
        )
        if checked:
            await _check_body(what, body, etag)
        return etag

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
        self._key(target)
        rules.check_condition(condition, self._capabilities)
        info = await self.head(source)
        if info.etag != if_match:
            raise PreconditionFailed(f"copy {source}: has ETag {info.etag}, not {if_match}")
        return await copy_object(self, info, target, metadata, content_type, condition)

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        with contextlib.suppress(NotFound):  # some stores say NoSuchKey; that is what was asked for
            whole, what = self._key(key), f"delete {key}"
            light = self._light(whole)
            if light is not None:
                await light.delete(what, whole)
            else:
                await self._client.change(what, s3_calls.delete, self._client, whole)

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
        limit = rules.check_limit(limit)
        rules.check_text(prefix + (start_after or ""))
        after = None if start_after is None else self._root + start_after
        with_metadata = metadata and self._capabilities.list_metadata

        async def page(wanted: bool) -> Page:
            query = s3_list.query(
                self._root + prefix,
                delimiter=delimiter,
                cursor=cursor,
                start_after=after,
                limit=limit,
                metadata=wanted,
            )
            return await self._page(f"list {prefix}", query, limit, wanted)

        if with_metadata:
            with contextlib.suppress(ElementTree.ParseError):  # a foreign metadata name breaks such a page
                return await page(True)
        try:
            return await page(False)
        except ElementTree.ParseError as error:
            raise Unavailable(f"list {prefix}: the answer is no listing: {error}") from error

    async def _page(self, what: str, query: str, limit: int, wanted_metadata: bool) -> Page:
        """One request. Raises ElementTree.ParseError."""
        light = self._client.light
        if light is not None:
            reply = await light.page(what, query)
        else:
            reply = await self._client.read(what, self._client.signed_get, query)
        if reply.status != 200:
            raise reply.error(what)
        parse = partial(s3_list.parse, reply.body, self._root, limit=limit, wanted_metadata=wanted_metadata)
        if len(reply.body) <= LIGHT_BODY_BYTES:
            return parse()
        return await trio.to_thread.run_sync(parse, abandon_on_cancel=True)  # a thousand rows take 20 ms

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """See Store.create_upload."""
        rules.check_upload_key(key, self._capabilities)
        encoded = wire.encode_metadata(metadata, self._capabilities)
        return await self._client.change(
            f"begin upload of {key}", s3_calls.create_upload, self._client, self._key(key), encoded, content_type
        )

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        rules.check_part(number, memoryview(body).nbytes, self._capabilities)
        whole, what = self._key(key), f"upload part {number} of {key}"
        checked = self._capabilities.etag_is_md5
        light = self._light(whole, memoryview(body).nbytes)
        if light is None:
            return await self._client.change(what, _upload_part, self._client, whole, upload_id, number, body, checked)
        etag = await light.upload_part(what, whole, upload_id, number, body)
        if checked:
            await _check_body(what, body, etag)
        return Part(number, etag)

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """See Store.copy_part."""
        if not self._capabilities.copy_part:
            raise Rejected(f"copy part {number} of {key}: this store cannot make parts from objects")
        rules.check_range(start, length)
        rules.check_part(number, length, self._capabilities)
        extent = s3_calls.Extent(self._key(source), if_match, start, length)
        return await self._copy_part(key, upload_id, number, extent)

    async def copy_whole(self, key: str, upload_id: str, number: int, *, source: str, if_match: str) -> Part:
        """As copy_part, for all of an object: without a range, which S3 refuses for objects up to 5 MiB."""
        return await self._copy_part(key, upload_id, number, s3_calls.Extent(self._key(source), if_match))

    async def _copy_part(self, key: str, upload_id: str, number: int, extent: s3_calls.Extent) -> Part:
        return await self._client.change(
            f"copy part {number} of {key}",
            s3_calls.copy_part,
            self._client,
            self._key(key),
            upload_id,
            number,
            extent,
        )

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """See Store.complete_upload."""
        rules.check_condition(condition, self._capabilities, completing=True)
        if not parts:
            raise Rejected(f"complete {key}: an upload needs at least one part")
        return await self._client.change(
            f"complete {key}", s3_calls.complete_upload, self._client, self._key(key), upload_id, parts, condition
        )

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See Store.abort_upload."""
        with contextlib.suppress(NotFound):  # unknown id: dropped before
            await self._client.change(
                f"abort upload of {key}", s3_calls.abort_upload, self._client, self._key(key), upload_id
            )

    @property
    def unpublished(self) -> Unpublished:
        """See Store.unpublished. Nothing: a change that returned is there."""
        return Unpublished()

    async def sync(self) -> None:
        """See Store.sync. A change that returned is there."""
        await trio.lowlevel.checkpoint()

    async def uploads(self) -> Sequence[Upload]:
        """See Store.uploads. Asked without a prefix: MinIO answers with all of a bucket, or those of one whole key."""
        found = await self._client.read("list uploads", s3_calls.uploads, self._client)
        return [replace(it, key=it.key[len(self._root) :]) for it in found if it.key.startswith(self._root)]

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Not offered: see Store.watch."""
        raise Rejected(f"watch {prefix}: this store has no notifications")

    async def aclose(self) -> None:
        """Close the connections."""
        self._client.close()


async def _check_body(what: str, body: Buffer, etag: str) -> None:
    if memoryview(body).nbytes <= LIGHT_BODY_BYTES:
        s3_calls.check_body(what, body, etag)
    else:
        await trio.to_thread.run_sync(s3_calls.check_body, what, body, etag)


def _put(client: Client, key: str, content: s3_calls.Content, condition: Condition, checked: bool) -> str:
    etag = s3_calls.put(client, key, content, condition)
    if checked:
        s3_calls.check_body(f"put {key}", content.body, etag)
    return etag


def _upload_part(client: Client, key: str, upload_id: str, number: int, body: Buffer, checked: bool) -> Part:
    part = s3_calls.upload_part(client, key, upload_id, number, body)
    if checked:
        s3_calls.check_body(f"upload part {number} of {key}", body, part.etag)
    return part
