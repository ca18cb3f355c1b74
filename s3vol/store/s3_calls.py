"""Single requests to S3, each one attempt: what is sent, and what the answer means. Synchronous; run in threads.

Theory of operation. Small requests usually go another way (s3_light); here are bodies, uploads, copies, and everything
for an endpoint behind a proxy. Bodies go by obstore, and by botocore where obstore would alter or refuse something
(keys ending in `/`, control characters, metadata names that look like system headers, large bodies). The two give the
same values. Keys here are whole keys of the bucket. Exceptions are the clients' own; `Client.read` and `Client.change`
translate them.

With `checksum` on, a read from the start of an object has no Range: S3 gives a checksum with a whole body only. Where
the body turns out to be longer than what was asked for, the rest is not fetched. Parts of an upload carry no checksum
that is kept: an upload that was begun with them takes no copied parts (MinIO). Like every body they are signed by their
SHA-256, so the store refuses one that was damaged on its way.

416 (the range begins behind the end) is a value here, None, not an error: MinIO judges the range before If-Match,
so what it means is for the caller to find out.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import obstore
from botocore.exceptions import ClientError
from obstore.exceptions import BaseError

from s3vol.errors import Corrupt, Unavailable
from s3vol.store import edge
from s3vol.store import s3_wire as wire
from s3vol.store.base import Buffer, Condition, Part, Upload, matches
from s3vol.store.s3_client import FAST_BODY_BYTES, Client
from s3vol.types import ObjectInfo

if TYPE_CHECKING:
    from obstore import GetOptions, PutMode

_NS = 1_000_000_000
_MUTE = frozenset({301, 400, 401, 403, 404})  # statuses that mean several things without a body


@dataclass(frozen=True, slots=True)
class Content:
    """What a PUT carries. `metadata` is encoded already."""

    body: Buffer
    metadata: Mapping[str, str]
    content_type: str


def head(client: Client, key: str) -> ObjectInfo:
    """HEAD; its refusal, which has no body to say why, is made to speak by a GET of the same key."""
    try:
        found = client.slow.head_object(Bucket=client.bucket, Key=key, **client.encryption.touching())
    except ClientError as error:
        answer = edge.answer_of(error)
        if answer is None or answer.code or answer.status not in _MUTE:
            raise
        client.slow.get_object(Bucket=client.bucket, Key=key, **client.encryption.touching())["Body"].close()
        if answer.status == 404:
            raise Unavailable(f"head {key}: missing for HEAD, there for GET: it was written just now") from error
        raise
    etag = found.get("ETag", "")
    size = wire.told_size(f"head {key}", found.get("ContentLength"), etag)
    return ObjectInfo(
        key=key,
        size=size,
        etag=wire.unsealed(wire.bare(etag), size=size, sse=found.get("ServerSideEncryption", "")),
        modified_ns=int(found["LastModified"].timestamp()) * _NS,
        metadata=dict(wire.decode_metadata(name, value) for name, value in found["Metadata"].items()),
        content_type=found.get("ContentType", ""),
    )


def get(client: Client, key: str, start: int, length: int, if_match: str | None) -> Buffer | None:
    """Ranged GET, its body read to the end; None when `start` is at or behind the end of the object."""
    wanted = (client, key, start, length, if_match)
    checked = client.settings.checksum != "off" and start == 0 and not key.endswith("/")
    try:
        if checked:
            body, size = _get_checked(client, key, length, if_match)
        else:
            body, size = _get_fast_first(*wanted)
    except (BaseError, ClientError) as error:
        answer = edge.answer_of(error)
        if answer is not None and answer.status == 416:
            return None
        raise
    expected = min(length, size - start)
    if len(body) != expected:
        raise Unavailable(f"get {key}: {len(body)} bytes came where {expected} were announced")
    return body


def _get_fast_first(client: Client, key: str, start: int, length: int, if_match: str | None) -> tuple[Buffer, int]:
    if wire.is_plain_key(key):
        try:
            return _get_fast(client, key, start, length, if_match)
        except BaseError as error:
            # Headers in raw bytes, which some stores send for what somebody stored: botocore can read them.
            if "non UTF-8" not in str(error):
                raise
    return _get_slow(client, key, start, length, if_match)


def _get_fast(client: Client, key: str, start: int, length: int, if_match: str | None) -> tuple[Buffer, int]:
    options: GetOptions = {"range": (start, start + length)}
    if if_match is not None:
        options["if_match"] = wire.quoted(if_match)
    found = obstore.get(client.fast, key, options=options)
    wire.check_version(f"get {key}", if_match, found.meta["e_tag"])
    if found.range[0] != start:
        raise Unavailable(f"get {key}: the answer begins at {found.range[0]}, not at {start}")
    return memoryview(found.bytes()), found.meta["size"]


def _get_checked(client: Client, key: str, length: int, if_match: str | None) -> tuple[Buffer, int]:
    """The beginning of an object; when that is all of it, botocore compares it with the checksum that came along."""
    options = client.encryption.touching() | ({} if if_match is None else {"IfMatch": wire.quoted(if_match)})
    found = client.slow.get_object(Bucket=client.bucket, Key=key, ChecksumMode="ENABLED", **options)
    size = found["ContentLength"]
    with contextlib.closing(found["Body"]) as stream:  # its own __enter__ gives what is below, and unchecked
        wire.check_version(f"get {key}", if_match, found.get("ETag"))
        return stream.read() if size <= length else stream.read(length), size


def _get_slow(client: Client, key: str, start: int, length: int, if_match: str | None) -> tuple[Buffer, int]:
    options = client.encryption.touching() | ({} if if_match is None else {"IfMatch": wire.quoted(if_match)})
    found = client.slow.get_object(
        Bucket=client.bucket, Key=key, Range=f"bytes={start}-{start + length - 1}", **options
    )
    with found["Body"] as stream:
        wire.check_version(f"get {key}", if_match, found.get("ETag"))
        body = stream.read()
    extent = found.get("ContentRange", "")  # `bytes 0-9/100`
    if not extent.startswith(f"bytes {start}-"):
        raise Unavailable(f"get {key}: the answer is no range that begins at {start}: {extent!r}")
    return body, int(extent.rpartition("/")[2])


def put(client: Client, key: str, content: Content, condition: Condition) -> str:
    """One PUT; returns the ETag."""
    plain = wire.is_plain_key(key) and wire.is_plain_metadata(content.metadata)
    if plain and memoryview(content.body).nbytes <= FAST_BODY_BYTES:
        return _put_fast(client, key, content, condition)
    return _put_slow(client, key, content, condition)


def _put_fast(client: Client, key: str, content: Content, condition: Condition) -> str:
    mode: PutMode = "overwrite"
    if condition.absent:
        mode = "create"
    elif condition.etag is not None:
        mode = {"e_tag": wire.quoted(condition.etag)}
    attributes = {"Content-Type": content.content_type, **content.metadata}
    done = obstore.put(client.fast, key, content.body, attributes=attributes, mode=mode, use_multipart=False)
    return wire.told_etag(f"put {key}", done["e_tag"])


def _put_slow(client: Client, key: str, content: Content, condition: Condition) -> str:
    checksum = _checksum(content.body) if client.settings.checksum != "off" else {}

    def send(condition: Condition) -> str:
        done = client.slow.put_object(
            Bucket=client.bucket,
            Key=key,
            Body=wire.as_file(content.body),
            Metadata=content.metadata,
            ContentType=content.content_type,
            **_conditional(condition),
            **client.encryption.making(),
            **checksum,
        )
        return wire.told_etag(f"put {key}", done.get("ETag"))

    try:
        return send(condition)
    except ClientError as error:
        sealed = _sealed(client, key, condition, error)
        if sealed is None:
            raise
        return send(matches(sealed))


def _sealed(client: Client, key: str, condition: Condition, refused: ClientError) -> str | None:
    """The ETag that MinIO wants in a condition on an encrypted directory marker, if that is why it refused.

    It gives another one in HEAD than in the answer to PUT and in listings, and knows only that one in conditions.
    """
    answer = edge.answer_of(refused)
    if not key.endswith("/") or condition.etag is None or answer is None or answer.status != 412:
        return None
    found = client.slow.head_object(Bucket=client.bucket, Key=key, **client.encryption.touching())
    etag = wire.bare(found["ETag"])
    plain = wire.unsealed(etag, size=found["ContentLength"], sse=found.get("ServerSideEncryption", ""))
    return etag if wire.is_sealed(etag) and plain == condition.etag else None


def _checksum(body: Buffer) -> dict[str, Any]:
    # Given the name of the algorithm only, botocore sends a trailer over https, which older servers refuse.
    return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(body).digest()).decode()}


def check_body(what: str, body: Buffer, etag: str) -> None:
    """Raise Corrupt when `etag` is not the MD5 of the body that was sent."""
    expected = hashlib.md5(body, usedforsecurity=False).hexdigest()
    if etag != expected:
        raise Corrupt(f"{what}: the store acknowledged ETag {etag}, but the body's MD5 is {expected}")


def delete(client: Client, key: str) -> None:
    """DELETE; a missing key is success."""
    client.slow.delete_object(Bucket=client.bucket, Key=key)


def create_upload(client: Client, key: str, metadata: Mapping[str, str], content_type: str) -> str:
    """Begin a multipart upload; returns its id."""
    made = client.slow.create_multipart_upload(
        Bucket=client.bucket, Key=key, Metadata=metadata, ContentType=content_type, **client.encryption.making()
    )
    return made["UploadId"]


def upload_part(client: Client, key: str, upload_id: str, number: int, body: Buffer) -> Part:
    """Send one part."""
    done = client.slow.upload_part(
        Bucket=client.bucket,
        Key=key,
        UploadId=upload_id,
        PartNumber=number,
        Body=wire.as_file(body),
        **client.encryption.touching(),
    )
    return Part(number, wire.told_etag(f"part {number} of {key}", done.get("ETag")))


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of an existing object with this ETag. `length` None: all of it."""

    key: str
    etag: str
    start: int = 0
    length: int | None = None


def copy_part(client: Client, key: str, upload_id: str, number: int, source: Extent) -> Part:
    """Make one part on the server. A whole object goes without a range: S3 refuses ranges of objects up to 5 MiB."""
    extent: dict[str, Any] = {}
    if source.length:
        extent["CopySourceRange"] = f"bytes={source.start}-{source.start + source.length - 1}"
    done = client.slow.upload_part_copy(
        Bucket=client.bucket,
        Key=key,
        UploadId=upload_id,
        PartNumber=number,
        CopySource={"Bucket": client.bucket, "Key": source.key},
        CopySourceIfMatch=wire.quoted(source.etag),
        **client.encryption.copying(),
        **extent,
    )
    return Part(number, wire.told_etag(f"part {number} of {key}", done["CopyPartResult"].get("ETag")))


def complete_upload(client: Client, key: str, upload_id: str, parts: Sequence[Part], condition: Condition) -> str:
    """Make the object visible; returns its ETag."""
    done = client.slow.complete_multipart_upload(
        Bucket=client.bucket,
        Key=key,
        UploadId=upload_id,
        MultipartUpload={"Parts": [{"PartNumber": part.number, "ETag": wire.quoted(part.etag)} for part in parts]},
        **_conditional(condition),
        **client.encryption.touching(),  # MinIO looks at what is there with it
    )
    return wire.told_etag(f"complete {key}", done.get("ETag"))


def abort_upload(client: Client, key: str, upload_id: str) -> None:
    """Drop an upload."""
    client.slow.abort_multipart_upload(Bucket=client.bucket, Key=key, UploadId=upload_id)


def uploads(client: Client) -> list[Upload]:
    """Unfinished uploads of the whole bucket."""
    pages = client.slow.get_paginator("list_multipart_uploads").paginate(Bucket=client.bucket)
    return [
        Upload(row["Key"], row["UploadId"], int(row["Initiated"].timestamp() * _NS))
        for page in pages
        for row in page.get("Uploads", [])
    ]


def _conditional(condition: Condition) -> dict[str, Any]:
    if condition.absent:
        return {"IfNoneMatch": "*"}
    return {} if condition.etag is None else {"IfMatch": wire.quoted(condition.etag)}
