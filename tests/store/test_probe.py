"""The probe: what it finds on MinIO, on careless servers, without the right to write, and that it leaves nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import pytest

from s3vol.errors import Rejected, Unavailable
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Capabilities, Condition, Page, Part
from s3vol.store.memory import MEMORY_CAPABILITIES, MemoryBucket, MemoryStore
from s3vol.store.probe import NOTHING, examine, probe
from s3vol.store.s3 import S3Store
from tests.support.canned import canned, s3_error
from tests.support.minio import Minio
from tests.support.s3 import MINIO_CAPABILITIES, s3_store

CAPABLE = Capabilities()


class Server:
    """How a server of the memory kind treats what it is asked."""

    def __init__(self, **habits: bool) -> None:
        self.bucket = MemoryBucket()
        self.habits = habits

    def does(self, habit: str) -> bool:
        return self.habits.get(habit, False)


class CarelessStore(MemoryStore):
    """A memory store that ignores, or refuses, what its server's habits say."""

    def __init__(self, server: Server, capabilities: Capabilities) -> None:
        super().__init__(
            server.bucket,
            capabilities=replace(
                capabilities,
                list_metadata=not server.does("plain_listings"),
                etag_is_md5=not server.does("other_etags"),
                hides_children=server.does("hides"),
            ),
        )
        self.server = server

    def with_capabilities(self, capabilities: Capabilities) -> CarelessStore:
        return CarelessStore(self.server, capabilities)

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        if condition.absent and self.server.does("refuses_create"):
            raise Rejected("501 NotImplemented")
        if condition.absent and self.server.does("ignores_create"):
            condition = ANY
        if condition.etag is not None and self.server.does("ignores_replace"):
            condition = ANY
        return await super().put(key, body, metadata=metadata, content_type=content_type, condition=condition)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        if self.server.does("ignores_complete"):
            condition = ANY
        return await super().complete_upload(key, upload_id, parts, condition=condition)

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
        if metadata and self.server.does("refuses_metadata"):
            raise Rejected("400 InvalidArgument")
        return await super().list(
            prefix, delimiter=delimiter, cursor=cursor, start_after=start_after, limit=limit, metadata=metadata
        )

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        if self.server.does("no_uploads"):
            raise Rejected("501 NotImplemented")
        return await super().create_upload(key, metadata=metadata, content_type=content_type)

    async def copy_whole(self, key: str, upload_id: str, number: int, *, source: str, if_match: str) -> Part:
        if self.server.does("no_copies"):
            raise Rejected("501 NotImplemented")
        info = await self.head(source)
        if self.server.does("unguarded_copies"):
            if_match = info.etag
        return await self.copy_part(key, upload_id, number, source=source, start=0, length=info.size, if_match=if_match)


@pytest.mark.parametrize(
    ("habit", "found"),
    [
        ("none", CAPABLE),
        ("ignores_create", replace(CAPABLE, conditional_create=False, conditional_replace=False)),
        ("refuses_create", replace(CAPABLE, conditional_create=False)),
        ("ignores_replace", replace(CAPABLE, conditional_replace=False)),
        ("ignores_complete", replace(CAPABLE, conditional_complete=False)),
        ("no_uploads", replace(CAPABLE, conditional_complete=False, copy_part=False)),
        ("no_copies", replace(CAPABLE, copy_part=False)),
        ("unguarded_copies", replace(CAPABLE, copy_part=False)),
        ("refuses_metadata", replace(CAPABLE, list_metadata=False)),
        ("plain_listings", replace(CAPABLE, list_metadata=False)),
        ("other_etags", replace(CAPABLE, etag_is_md5=False)),
        ("hides", replace(CAPABLE, hides_children=True)),
    ],
)
async def test_what_a_server_ignores_is_found_out_and_nothing_is_left(habit: str, found: Capabilities) -> None:
    server = Server(**{habit: True})
    assert await probe(CarelessStore(server, MEMORY_CAPABILITIES)) == found
    assert server.bucket.keys == []
    assert server.bucket.uploads == {}


@pytest.fixture
async def store(minio: Minio, bucket: str) -> AsyncIterator[S3Store]:
    async with s3_store(minio.endpoint, bucket, "some/prefix/") as opened:
        yield opened


@pytest.mark.minio
async def test_minio_can_do_what_the_design_counts_on_and_is_left_clean(
    store: S3Store, minio: Minio, bucket: str
) -> None:
    assert await probe(store) == MINIO_CAPABILITIES
    client = minio.client()
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


@pytest.mark.minio
async def test_without_the_right_to_write_nothing_is_assumed(store: S3Store, minio: Minio, bucket: str) -> None:
    await store.put("k", b"body", metadata={"a": "b"})
    allowed = [
        {"Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{bucket}/*"]},
        {"Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]},
    ]
    statements = [{"Effect": "Allow", "Principal": {"AWS": ["*"]}, **statement} for statement in allowed]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    minio.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    async with s3_store(minio.endpoint, bucket, "some/prefix/", anonymous=True) as reader:
        found = await probe(reader)
        assert replace(found, list_metadata=False) == NOTHING
        report = await examine(reader)
        assert report.read_only
        trusting = reader.with_capabilities(found)
        assert bytes(await trusting.get("k", 0, 9)) == b"body"
        (info,) = (await trusting.list("")).objects
        assert info.metadata == ({"a": "b"} if found.list_metadata else None)


async def test_an_outage_says_nothing_about_what_a_server_can_do() -> None:
    with canned(s3_error(503, "SlowDown")) as server:
        async with s3_store(server.endpoint, "bucket") as store:
            with pytest.raises(Unavailable):
                await probe(store)


@pytest.mark.minio
async def test_the_report_has_the_facts_that_doctor_shows(store: S3Store, minio: Minio) -> None:
    report = await examine(store)
    assert (report.url, report.endpoint) == (store.url, minio.endpoint)
    assert report.server == "MinIO"
    assert abs(report.clock_skew_s) < 2
    assert 0 < report.round_trip_ms < 1000
    assert not report.read_only
    assert report.capabilities == MINIO_CAPABILITIES
