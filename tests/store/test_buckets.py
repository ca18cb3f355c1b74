"""Making a bucket that is missing, on a real MinIO."""

from __future__ import annotations

import secrets

import pytest
import trio

from s3vol.errors import S3volError
from s3vol.store.buckets import make_bucket
from s3vol.store.settings import Source
from tests.support.minio import Minio
from tests.support.s3 import settings_for

pytestmark = pytest.mark.minio


def missing() -> Source:
    """A bucket that nobody has."""
    return Source("s3", bucket=f"made-{secrets.token_hex(6)}", prefix="site/")


async def test_a_bucket_that_is_missing_is_made_and_one_that_is_there_is_left_alone(minio: Minio) -> None:
    source, settings = missing(), settings_for(minio.endpoint)
    assert await make_bucket(source, settings)
    minio.client().put_object(Bucket=source.bucket, Key="x", Body=b"kept")
    assert not await make_bucket(source, settings)
    assert minio.client().get_object(Bucket=source.bucket, Key="x")["Body"].read() == b"kept"


async def test_of_two_nodes_that_make_one_bucket_none_fails(minio: Minio) -> None:
    source, settings, made = missing(), settings_for(minio.endpoint), list[bool]()

    async def make() -> None:
        made.append(await make_bucket(source, settings))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make)
        nursery.start_soon(make)
    assert len(made) == 2
    assert any(made)


async def test_what_stands_in_the_way_is_said_in_one_line_and_nothing_is_made(minio: Minio) -> None:
    source = missing()
    for settings, said in (
        (settings_for(minio.endpoint, secret_key="wrong-secret"), "the secret key is wrong"),
        (settings_for("http://127.0.0.1:1", connect_timeout_s=0.2), "Could not connect"),
    ):
        with pytest.raises(S3volError, match=said) as caught:
            await make_bucket(source, settings)
        assert "\n" not in str(caught.value)
    assert source.bucket not in {bucket["Name"] for bucket in minio.client().list_buckets()["Buckets"]}
