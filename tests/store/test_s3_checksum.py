"""`checksum=sha256`: what is sent with a PUT, kept by a real MinIO, and compared when an object is read whole."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest

from s3vol.errors import Corrupt, PreconditionFailed
from s3vol.store.base import ABSENT, Buffer
from s3vol.store.s3_client import FAST_BODY_BYTES
from s3vol.types import MIB
from tests.support.canned import Canned, canned
from tests.support.minio import Minio
from tests.support.s3 import s3_store


def sha256(body: Buffer) -> str:
    """As the header has it."""
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


@pytest.mark.minio
@pytest.mark.parametrize("key", ["plain", "by\nbotocore", "large", "marker/"])
async def test_the_store_keeps_the_checksum_of_each_put(minio: Minio, bucket: str, key: str) -> None:
    body = b"" if key == "marker/" else os.urandom(FAST_BODY_BYTES + MIB if key == "large" else 5000)
    async with s3_store(minio.endpoint, bucket, checksum="sha256") as store:
        etag = await store.put(key, body, metadata={"a": "b"}, condition=ABSENT)
        assert await store.get(key, 0, 64 * MIB, if_match=etag) == body
    found = minio.client().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert found["ChecksumSHA256"] == sha256(body)


@pytest.mark.minio
async def test_reads_mean_the_same_with_and_without_a_checksum(minio: Minio, bucket: str) -> None:
    async with s3_store(minio.endpoint, bucket, checksum="sha256") as store, s3_store(minio.endpoint, bucket) as plain:
        etag = await plain.put("k", b"0123456789", metadata={})  # another writer's, without a checksum
        for reader in (store, plain):
            assert await reader.get("k", 0, 10, if_match=etag) == b"0123456789"
            assert await reader.get("k", 0, 4, if_match=etag) == b"0123"
            assert await reader.get("k", 4, 100) == b"456789"
            assert await reader.get("k", 10, 1) == b""
            with pytest.raises(PreconditionFailed):
                await reader.get("k", 0, 10, if_match="0" * 32)
        empty = await store.put("empty", b"", metadata={})
        for reader in (store, plain):
            assert await reader.get("empty", 0, 5, if_match=empty) == b""
        upload = await store.create_upload("parts", metadata={})
        parts = [
            await store.upload_part("parts", upload, 1, b"x" * 5 * MIB),
            await store.copy_part("parts", upload, 2, source="k", start=0, length=10, if_match=etag),
        ]
        whole = await store.complete_upload("parts", upload, parts)
        assert await store.get("parts", 0, 6 * MIB, if_match=whole) == b"x" * 5 * MIB + b"0123456789"


@pytest.mark.minio
async def test_a_part_that_nobody_can_check_does_not_come_along(minio: Minio, bucket: str) -> None:
    async with s3_store(minio.endpoint, bucket, checksum="sha256") as store:
        etag = await store.put("k", b"0123456789", metadata={})
        for length, expected in ((4, b""), (10, b"0123456789"), (100, b"0123456789")):
            info, body = await store.fetch("k", length)
            assert (info.etag, info.size, body) == (etag, 10, expected)


@pytest.mark.parametrize("body", [b"what was written", b"what was damaged"])
async def test_a_body_that_is_not_what_was_written_is_never_returned(body: bytes) -> None:
    headers = {"x-amz-checksum-sha256": sha256(b"what was written"), "ETag": '"1"'}
    with canned(Canned(200, body, headers)) as server:
        async with s3_store(server.endpoint, "bucket", checksum="sha256") as store:
            if body == b"what was written":
                assert await store.get("k", 0, 100) == body
            else:
                with pytest.raises(Corrupt):
                    await store.get("k", 0, 100)
                assert await store.get("k", 0, 4) == b"what"  # a part of it cannot be judged
