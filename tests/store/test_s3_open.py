"""Opening a source: what is accepted, and one clear line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from s3vol.errors import Unavailable, UsageError
from s3vol.store.base import ABSENT, Capabilities, matches
from s3vol.store.open import Source, StoreSettings, open_s3, open_store, parse_source
from s3vol.store.s3_client import connect
from s3vol.types import Health
from tests.support.canned import Canned, canned, s3_error
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY, Minio
from tests.support.s3 import MINIO_CAPABILITIES, proxied, s3_store, settings_for
from tests.support.tls import certify


async def test_a_first_client_does_not_look_into_the_descriptions_of_all_services(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = list[str]()
    exists = JSONFileLoader.exists

    def noting(loader: JSONFileLoader, path: str) -> bool:
        looked.append(path)
        return exists(loader, path)

    monkeypatch.setattr(JSONFileLoader, "exists", noting)
    client = await connect(Source("s3", bucket="bucket"), settings_for("http://127.0.0.1:1"))
    client.close()
    assert looked
    assert len(looked) < 50


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("bucket", Source("s3", bucket="bucket")),
        ("my.bucket-1", Source("s3", bucket="my.bucket-1")),
        ("s3://bucket", Source("s3", bucket="bucket")),
        ("s3://bucket/", Source("s3", bucket="bucket")),
        ("s3://bucket/a/b", Source("s3", bucket="bucket", prefix="a/b/")),
        ("s3://bucket/a/b/", Source("s3", bucket="bucket", prefix="a/b/")),
        ("s3://bucket/ä b", Source("s3", bucket="bucket", prefix="ä b/")),
        ("file:///srv/data", Source("file", directory="/srv/data")),
        ("file:///srv/a%20b/", Source("file", directory="/srv/a b")),
        ("memory:", Source("memory")),
    ],
)
def test_a_source_is_read(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(source.url.replace(" ", "%20") if source.kind == "file" else source.url) == source


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("", "3 to 63"),
        ("ab", "3 to 63"),
        ("Bucket", "lower-case"),
        ("bucket_", "lower-case"),
        ("-bucket", "beginning"),
        ("a..b", "no bucket name"),
        ("192.168.1.1", "no bucket name"),
        ("x" * 64, "3 to 63"),
        ("s3://", "no bucket name"),
        ("s3:bucket", "s3://BUCKET"),
        ("bucket/prefix", "did you mean s3://bucket/prefix"),
        ("/srv/data", "did you mean file:///srv/data"),
        ("s3://bucket//x", "empty"),
        ("s3://bucket/../x", "`..`"),
        ("s3://bucket/a\nb", "unprintable"),
        ("s3://bucket/" + "x" * 600, "512"),
        ("file:/srv", "file:///ABSOLUTE"),
        ("file://host/srv", "file:///ABSOLUTE"),
        ("file:///srv/../etc", "file:///ABSOLUTE"),
        ("http://127.0.0.1:9000/bucket", "--endpoint"),
        ("ftp://x", "s3://BUCKET"),
        ("memory:x", "memory:"),
    ],
)
def test_another_source_is_refused_with_the_way_out(text: str, way_out: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    message = str(caught.value)
    assert repr(text) in message
    assert way_out in message
    assert "\n" not in message


async def refusal(source: str, settings: StoreSettings) -> str:
    with pytest.raises(UsageError) as caught:
        await open_store(parse_source(source), settings)
    message = str(caught.value)
    assert "\n" not in message
    assert "wrong-secret" not in message
    return message


@pytest.mark.minio
async def test_each_mistake_has_its_own_line(minio: Minio, bucket: str) -> None:
    right = settings_for(minio.endpoint)
    message = await refusal("s3://no-such-bucket/x", right)
    assert "no-such-bucket" in message
    assert "does not exist" in message
    assert "AWS_SECRET_ACCESS_KEY" in await refusal(bucket, replace(right, secret_key="wrong-secret"))
    assert "AWS_ACCESS_KEY_ID" in await refusal(bucket, replace(right, access_key="wrong"))
    assert "only one" in await refusal(bucket, replace(right, secret_key=None))
    assert "no credentials" in await refusal(bucket, replace(right, access_key=None, secret_key=None))
    assert "s3:ListBucket" in await refusal(bucket, replace(right, access_key=None, secret_key=None, anonymous=True))
    assert "not in the AWS configuration" in await refusal(bucket, replace(right, profile="nobody"))
    assert "no such file" in await refusal(bucket, replace(right, ca_bundle="/nowhere/ca.pem"))


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://nowhere.invalid:9000", "nowhere.invalid"),
        ("127.0.0.1:9000", "Invalid endpoint"),
    ],
)
async def test_a_wrong_endpoint_is_named_at_once(endpoint: str, words: str) -> None:
    message = await refusal("bucket", settings_for(endpoint))
    assert endpoint in message
    assert words in message
    assert "HTTPConnection" not in message  # how the client shows its own objects


async def test_a_proxy_that_cannot_be_reached_is_told_from_the_endpoint() -> None:
    with proxied("http://127.0.0.1:1"):
        message = await refusal("bucket", settings_for("http://127.0.0.1:9000"))
    assert "the proxy is from HTTP_PROXY" in message


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Canned(200, b"<html>console</html>"), "not as S3 does"),
        (Canned(404, b"404 page not found"), "not as S3 does"),
        (Canned(400, b"Client sent an HTTP request to an HTTPS server."), "HTTP request to an HTTPS server"),
        (
            Canned(301, s3_error(301, "PermanentRedirect").body, {"x-amz-bucket-region": "eu-west-1"}),
            "--region eu-west-1",
        ),
        (Canned(403, s3_error(403, "RequestTimeTooSkewed").body, {"Date": "Sat, 21 Nov 2020 08:00:00 GMT"}), "clock"),
    ],
)
async def test_a_server_that_is_not_the_right_one_is_named(reply: Canned, words: str) -> None:
    with canned(reply) as server:
        assert words in await refusal("bucket", settings_for(server.endpoint))


async def test_a_server_that_is_still_starting_is_waited_for_until_the_deadline() -> None:
    with canned(s3_error(503, "XMinioServerNotInitialized")) as server:
        with pytest.raises(Unavailable, match="gave up"):
            await open_store(Source("s3", bucket="bucket"), replace(settings_for(server.endpoint), timeout_s=0.3))
        assert len(server.requests) > 1


@pytest.mark.minio
async def test_an_open_store_is_probed_unless_its_capabilities_are_known(minio: Minio, bucket: str) -> None:
    source = parse_source(bucket)
    health = Health()
    store = await open_store(source, settings_for(minio.endpoint), health=health)
    try:
        assert store.capabilities == MINIO_CAPABILITIES
        await store.put("k", b"body", metadata={}, condition=ABSENT)
        assert health.counts["store.put"] == 1
    finally:
        await store.aclose()
    known = Capabilities(copy_part=False)
    bare = await open_s3(source, settings_for(minio.endpoint), capabilities=known)
    assert bare.capabilities == known
    await bare.aclose()


async def test_a_directory_and_memory_are_sources_too(tmp_path: Path) -> None:
    for text in (f"file://{tmp_path}", "memory:"):
        store = await open_store(parse_source(text), StoreSettings())
        try:
            etag = await store.put("k", b"body", metadata={})
            assert (await store.head("k")).etag == etag
        finally:
            await store.aclose()


@pytest.fixture
def environment(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a user who has configured everything there."""
    for name, value in minio.environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


async def works(bucket: str, settings: StoreSettings = StoreSettings()) -> None:  # noqa: B008  # frozen
    """All three clients reach the bucket: listing, obstore, botocore."""
    store = await open_s3(Source("s3", bucket=bucket), settings, capabilities=MINIO_CAPABILITIES)
    try:
        await store.put("k", b"body", metadata={"a": "b"})
        await store.put("k/", b"", metadata={})
        assert [info.key for info in (await store.list("")).objects] == ["k"]
    finally:
        await store.aclose()


@pytest.mark.minio
async def test_the_aws_environment_is_enough(environment: pytest.MonkeyPatch, bucket: str) -> None:
    await works(bucket)


@pytest.mark.minio
async def test_settings_win_over_the_environment(environment: pytest.MonkeyPatch, minio: Minio, bucket: str) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        environment.setenv(name, "http://127.0.0.1:1")
    environment.setenv("AWS_ACCESS_KEY_ID", "wrong")
    environment.setenv("AWS_SESSION_TOKEN", "wrong")
    environment.setenv("AWS_SKIP_SIGNATURE", "true")
    environment.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    await works(bucket, settings_for(minio.endpoint))


@pytest.mark.minio
async def test_a_profile_brings_endpoint_and_credentials(
    environment: pytest.MonkeyPatch, minio: Minio, bucket: str, tmp_path: Path
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        environment.delenv(name)
    config = tmp_path / "config"
    config.write_text(
        f"[profile swarm]\nendpoint_url = {minio.endpoint}\nregion = {REGION}\n"
        f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    environment.setenv("AWS_CONFIG_FILE", str(config))
    await works(bucket, StoreSettings(profile="swarm"))
    environment.setenv("AWS_PROFILE", "swarm")
    await works(bucket)


def temporary_credentials(minio: Minio) -> dict[str, Any]:
    """Credentials with a session token, from MinIO's STS."""
    import boto3

    make: Any = boto3.session.Session().client
    sts = make(
        "sts",
        endpoint_url=minio.endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    found: dict[str, Any] = sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/test", RoleSessionName="test")[
        "Credentials"
    ]
    return found


@pytest.mark.minio
async def test_session_tokens_and_credentials_that_are_renewed_work_in_all_clients(
    environment: pytest.MonkeyPatch, minio: Minio, bucket: str, tmp_path: Path
) -> None:
    found = temporary_credentials(minio)
    keys = (found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"])
    settings = replace(settings_for(minio.endpoint), access_key=keys[0], secret_key=keys[1], session_token=keys[2])
    await works(bucket, settings)
    # A process that hands out credentials which expire: botocore's renewing kind.
    answer = tmp_path / "answer.json"
    fields = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    expiry = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    answer.write_text(json.dumps({"Version": 1, "Expiration": expiry, **dict(zip(fields, keys, strict=True))}))
    config = tmp_path / "config"
    config.write_text(f"[profile renewed]\ncredential_process = cat {answer}\n")
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    environment.setenv("AWS_CONFIG_FILE", str(config))
    await works(bucket, StoreSettings(profile="renewed"))


@pytest.mark.parametrize("behind_proxy", [False, True], ids=["light", "heavy"])
async def test_credentials_that_cannot_be_renewed_are_no_missing_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, behind_proxy: bool
) -> None:
    expiry = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # so botocore renews them before each request
    keys = {"AccessKeyId": "key", "SecretAccessKey": "secret", "SessionToken": "token"}
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps({"Version": 1, "Expiration": expiry, **keys}))
    program, config = tmp_path / "program", tmp_path / "config"
    program.write_text(f"#!/bin/sh\ncat {answer}\n")
    program.chmod(0o700)
    config.write_text(f"[profile renewed]\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    chain: dict[str, Any] = {"access_key": None, "secret_key": None, "profile": "renewed"}
    with canned(Canned(204)) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy, **chain) as store:
            program.unlink()
            put = partial(store.put, "k", b"x", metadata={}, condition=matches("0123"))
            for call in (lambda: store.head("k"), lambda: store.delete("k"), put):
                with pytest.raises(Unavailable, match="program"):
                    await call()
        assert not server.requests


@pytest.fixture(scope="module")
def tls_server(minio: Minio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A MinIO on https with a certificate that nobody knows; `minio` is asked for to skip where there is none."""
    directory = tmp_path_factory.mktemp("tls")
    certify(directory)
    with Minio(directory) as server:
        yield server


@pytest.fixture
def tls_bucket(tls_server: Minio) -> str:
    return tls_server.new_bucket()


@pytest.mark.minio
async def test_a_private_authority_is_trusted_by_all_clients_when_it_is_named(
    tls_server: Minio, tls_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = str(tls_server.authority)
    await works(tls_bucket, replace(settings_for(tls_server.endpoint), ca_bundle=bundle))
    await works(tls_bucket, replace(settings_for(tls_server.endpoint), verify_tls=False))
    monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    await works(tls_bucket, settings_for(tls_server.endpoint))


@pytest.mark.minio
async def test_an_unknown_certificate_is_refused_with_the_reason(tls_server: Minio, tls_bucket: str) -> None:
    message = await refusal(tls_bucket, settings_for(tls_server.endpoint))
    assert "certificate" in message
    assert "cannot connect" in message
