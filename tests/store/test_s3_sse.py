"""Server-side encryption on a real MinIO with TLS and a key server's key: every call, and what others see."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from s3vol.errors import PreconditionFailed, S3volError
from s3vol.store.base import ABSENT, DIRECTORY_TYPE, Capabilities, matches
from s3vol.store.open import open_s3
from s3vol.store.probe import probe
from s3vol.store.s3 import S3Store
from s3vol.store.s3_client import FAST_BODY_BYTES
from s3vol.store.settings import Source
from s3vol.types import KIB, MIB
from tests.support.minio import Minio
from tests.support.s3 import MINIO_CAPABILITIES, settings_for
from tests.support.tls import certify

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.minio

KMS_KEY = "tests"
SETTINGS: dict[str, dict[str, Any]] = {
    "sse-s3": {"sse": "aes256"},
    "sse-kms": {"sse": "aws:kms", "sse_kms_key": KMS_KEY},
    "sse-c": {},
}


@pytest.fixture(scope="module")
def server(minio: Minio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A MinIO on https that can encrypt; `minio` is asked for to skip where there is none."""
    directory = tmp_path_factory.mktemp("sse")
    certify(directory)
    secret = f"{KMS_KEY}:{base64.b64encode(os.urandom(32)).decode()}"
    with Minio(directory, environment={"MINIO_KMS_SECRET_KEY": secret}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Minio) -> S3Client:
    """Another client; each costs a quarter of a second."""
    return server.client()


@dataclass
class Bucket:
    """A bucket that is written encrypted, and what another client needs to read it."""

    name: str
    server: Minio
    client: S3Client
    kind: str
    key_file: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What the store is told."""
        own = SETTINGS[self.kind] or {"sse_c_key": str(self.key_file)}
        return {**own, "ca_bundle": str(self.server.authority)}

    def stored(self, key: str) -> Any:
        """HEAD by another client. Asserts that the object is encrypted in the way that was asked for."""
        if self.kind == "sse-c":
            with pytest.raises(ClientError, match="400"):
                self.client.head_object(Bucket=self.name, Key=key)
            secret: Any = self.key_file.read_bytes()
            return self.client.head_object(
                Bucket=self.name, Key=key, SSECustomerAlgorithm="AES256", SSECustomerKey=secret
            )
        found = self.client.head_object(Bucket=self.name, Key=key)
        wanted = {"sse-s3": ("AES256", None), "sse-kms": ("aws:kms", f"arn:aws:kms:{KMS_KEY}")}[self.kind]
        assert (found.get("ServerSideEncryption"), found.get("SSEKMSKeyId")) == wanted
        return found


@pytest.fixture(params=SETTINGS)
def bucket(request: pytest.FixtureRequest, server: Minio, client: S3Client, tmp_path: Path) -> Bucket:
    key_file = tmp_path / "key"
    key_file.write_bytes(os.urandom(32))
    key_file.chmod(0o600)
    return Bucket(server.new_bucket(), server, client, request.param, key_file)


@pytest.fixture
async def store(bucket: Bucket) -> AsyncIterator[S3Store]:
    """With the encryption on, and believed to be what the first test finds."""
    known = replace(MINIO_CAPABILITIES, etag_is_md5=bucket.kind == "sse-s3")
    settings = settings_for(bucket.server.endpoint, **bucket.settings)
    opened = await open_s3(Source("s3", bucket=bucket.name), settings, capabilities=known)
    yield opened
    await opened.aclose()


async def test_the_probe_finds_what_is_there_without_encryption_but_for_the_etag(store: S3Store) -> None:
    assert await probe(store) == store.capabilities


@pytest.mark.parametrize("key", ["plain", "by\nbotocore"])
async def test_small_objects_are_written_read_and_replaced(store: S3Store, bucket: Bucket, key: str) -> None:
    etag = await store.put(key, b"0123456789", metadata={"mode": "33188"}, condition=ABSENT)
    assert bucket.stored(key)["Metadata"] == {"mode": "33188"}
    info = await store.head(key)
    assert (info.size, info.etag, info.metadata) == (10, etag, {"mode": "33188"})
    assert (await store.list("")).objects[0].etag == etag
    assert bytes(await store.get(key, 2, 3, if_match=etag)) == b"234"
    newer = await store.put(key, b"new", metadata={}, condition=matches(etag))
    with pytest.raises(PreconditionFailed):
        await store.get(key, 0, 3, if_match=etag)
    with pytest.raises(PreconditionFailed):
        await store.put(key, b"lost", metadata={}, condition=matches(etag))
    assert bytes(await store.get(key, 0, 9, if_match=newer)) == b"new"


async def test_a_directory_marker_has_one_etag_whoever_tells_it(store: S3Store, bucket: Bucket) -> None:
    made = await store.put("d/", b"", metadata={"mode": "16877"}, content_type=DIRECTORY_TYPE, condition=ABSENT)
    bucket.stored("d/")
    assert (await store.head("d/")).etag == (await store.list("d/")).objects[0].etag == made
    newer = await store.put("d/", b"", metadata={"mode": "16832"}, condition=matches(made))
    assert (await store.head("d/")).etag == newer
    if bucket.kind != "sse-s3":  # there two empty bodies have one MD5: what differs is the nonce in the metadata
        with pytest.raises(PreconditionFailed):
            await store.put("d/", b"", metadata={}, condition=matches(made))
    copied = await store.copy("d/", "e/", if_match=newer, metadata={"mode": "1"}, condition=ABSENT)
    assert (await store.head("e/")).etag == copied


async def test_large_bodies_parts_and_copies_are_encrypted_too(store: S3Store, bucket: Bucket) -> None:
    body = os.urandom(64 * KIB) * ((FAST_BODY_BYTES + MIB) // (64 * KIB))
    etag = await store.put("large", body, metadata={})
    bucket.stored("large")
    upload = await store.create_upload("parts", metadata={"a": "b"})
    parts = [
        await store.copy_part("parts", upload, 1, source="large", start=0, length=5 * MIB, if_match=etag),
        await store.upload_part("parts", upload, 2, b"tail"),
    ]
    with pytest.raises(PreconditionFailed):
        await store.copy_part("parts", upload, 1, source="large", start=0, length=5 * MIB, if_match="0" * 32)
    whole = await store.complete_upload("parts", upload, parts, condition=ABSENT)
    assert bucket.stored("parts")["Metadata"] == {"a": "b"}
    assert await store.get("parts", 0, 6 * MIB, if_match=whole) == body[: 5 * MIB] + b"tail"
    for name, source, source_etag in (("copy", "large", etag), ("copy of parts", "parts", whole)):
        copied = await store.copy(source, name, if_match=source_etag, metadata={}, condition=ABSENT)
        bucket.stored(name)
        found = await store.head(name)
        assert found.etag == copied
        assert await store.get(name, found.size - 3, 3) == (body[-3:] if source == "large" else b"ail")


async def test_without_the_key_or_with_another_nothing_is_read_and_the_reason_said(
    server: Minio, tmp_path: Path
) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    for path in (mine, others):
        path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
        path.chmod(0o600)
    source = Source("s3", bucket=server.new_bucket())
    settings = settings_for(server.endpoint, ca_bundle=str(server.authority))
    stores = {
        name: await open_s3(source, replace(settings, sse_c_key=path), capabilities=MINIO_CAPABILITIES)
        for name, path in (("mine", str(mine)), ("others", str(others)), ("none", None))
    }
    try:
        await stores["mine"].with_capabilities(Capabilities(etag_is_md5=False)).put("secret", b"body", metadata={})
        await stores["none"].put("plain", b"body", metadata={})
        for name, key, words in (
            ("none", "secret", "form of Server Side Encryption"),
            ("mine", "plain", "encryption parameters are not applicable"),
            ("others", "secret", "AccessDenied"),
        ):
            for call in (stores[name].head(key), stores[name].get(key, 0, 4)):
                with pytest.raises(S3volError, match=words) as caught:
                    await call
                assert "\n" not in str(caught.value)
    finally:
        for store in stores.values():
            await store.aclose()


async def refusal(endpoint: str, bucket: str, **changes: object) -> str:
    with pytest.raises(S3volError) as caught:
        await open_s3(Source("s3", bucket=bucket), settings_for(endpoint, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_key_file_that_will_not_do_is_refused_with_the_way_out(server: Minio, tmp_path: Path) -> None:
    good, short, open_to_all = tmp_path / "good", tmp_path / "short", tmp_path / "open"
    for path, body in ((good, os.urandom(32)), (short, b"abc"), (open_to_all, os.urandom(32))):
        path.write_bytes(body)
        path.chmod(0o600)
    open_to_all.chmod(0o644)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    bucket, tls = server.new_bucket(), {"ca_bundle": str(server.authority)}
    for changes, words in (
        ({"sse_c_key": str(tmp_path / "none")}, "No such file"),
        ({"sse_c_key": str(short)}, "32 bytes"),
        ({"sse_c_key": str(open_to_all)}, "chmod 600"),
        ({"sse_c_key": str(fifo)}, "no regular file"),
        ({"sse_c_key": str(good), "sse": "aes256"}, "give one of them"),
        ({"sse_kms_key": KMS_KEY}, "sse=aws:kms"),
    ):
        assert words in await refusal(server.endpoint, bucket, **tls, **changes)
    message = await refusal(server.endpoint.replace("https:", "http:"), bucket, sse_c_key=str(good))
    assert "clear text" in message
    assert base64.b64encode(good.read_bytes()).decode() not in message


async def test_a_server_that_cannot_encrypt_is_named_and_not_taken_for_one_that_ignores_conditions(
    minio: Minio, server: Minio
) -> None:
    message = await refusal(minio.endpoint, minio.new_bucket(), sse="aes256")
    assert "KMS is not configured" in message
    assert "sse" in message
    wrong = {"sse": "aws:kms", "sse_kms_key": "nobody", "ca_bundle": str(server.authority)}
    assert "KeyNotFound" in await refusal(server.endpoint, server.new_bucket(), **wrong)


async def test_the_key_is_in_no_description(server: Minio, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"K" * 32)
    path.chmod(0o600)
    changes = {"ca_bundle": str(server.authority), "sse_c_key": str(path)}
    settings = settings_for(server.endpoint, **changes)
    store = await open_s3(Source("s3", bucket=server.new_bucket()), settings, capabilities=MINIO_CAPABILITIES)
    try:
        told = (store, store.client, store.client.settings, store.client.encryption, store.client.fast)
        shown = " ".join(repr(it) for it in told)
        assert "KKKK" not in shown
        assert base64.b64encode(b"K" * 32).decode()[:8] not in shown
    finally:
        await store.aclose()
