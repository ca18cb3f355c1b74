"""The S3 backend and servers that misbehave: wrong answers, silence, crashes. One attempt each; retry is elsewhere."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from email.utils import formatdate

import pytest
import trio

from s3vol.errors import Corrupt, Denied, NoSpace, NotFound, QuotaExceeded, Rejected, S3volError, Unavailable
from s3vol.store.base import Part
from s3vol.store.open import compose
from s3vol.store.s3 import S3Store
from s3vol.types import MIB, Health
from tests.support.canned import LIST_START, Canned, canned, s3_error
from tests.support.minio import Minio, paused
from tests.support.s3 import MINIO_CAPABILITIES, s3_store
from tests.support.throttle import throttled

BOTH_CLIENTS = pytest.mark.parametrize(
    ("key", "behind_proxy"),
    [("k", False), ("k/", False), ("k", True), ("k/", True)],
    ids=["light", "light/", "heavy", "heavy/"],
)
ETAG = {"ETag": '"0123"', "Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT"}
PROXY_404 = Canned(404, b"404 page not found\n")
GATEWAY = Canned(503, b"<html>no backend</html>")


@BOTH_CLIENTS
async def test_a_404_of_a_proxy_is_not_a_missing_file(key: str, behind_proxy: bool) -> None:
    with canned(PROXY_404) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            for call in (lambda: store.head(key), lambda: store.get(key, 0, 1), lambda: store.delete(key)):
                with pytest.raises(Unavailable):
                    await call()


@BOTH_CLIENTS
async def test_a_404_of_head_is_believed_when_a_get_says_no_such_key(key: str, behind_proxy: bool) -> None:
    with canned(Canned(404), s3_error(404, "NoSuchKey")) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(NotFound):
                await store.head(key)
            assert [request.split()[0] for request in server.requests] == ["HEAD", "GET"]


@BOTH_CLIENTS
async def test_a_404_of_head_is_not_believed_when_a_get_finds_the_object(key: str, behind_proxy: bool) -> None:
    with canned(Canned(404), Canned(200, b"body", ETAG)) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Unavailable):
                await store.head(key)


@BOTH_CLIENTS
async def test_metadata_in_raw_bytes_hides_no_object(key: str, behind_proxy: bool) -> None:
    headers = {**ETAG, "x-amz-meta-text": "é漢".encode().decode("latin-1"), "Content-Range": "bytes 0-3/4"}
    with canned(Canned(206, b"body", headers)) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            assert (await store.head(key)).metadata == {"text": "é漢"}
            assert bytes(await store.get(key, 0, 9)) == b"body"


@BOTH_CLIENTS
async def test_deleting_what_is_missing_is_success_whatever_the_store_says(key: str, behind_proxy: bool) -> None:
    with canned(s3_error(404, "NoSuchKey")) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            await store.delete(key)


@BOTH_CLIENTS
@pytest.mark.parametrize("cut", [0, 5, 9])
async def test_a_body_that_ends_early_is_an_error_and_never_short_data(key: str, behind_proxy: bool, cut: int) -> None:
    reply = Canned(206, b"0123456789", {**ETAG, "Content-Range": "bytes 0-9/100"}, cut=cut)
    with canned(reply) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Unavailable):
                await store.get(key, 0, 10)


@BOTH_CLIENTS
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-9/100"},  # other bytes than were asked for
        {"Content-Range": "bytes 50-59/100"},  # fewer than were asked for
        {},
    ],
)
@pytest.mark.parametrize("status", [200, 206])
async def test_bytes_from_elsewhere_in_the_object_are_never_returned(
    key: str, behind_proxy: bool, headers: dict[str, str], status: int
) -> None:
    with canned(Canned(status, b"0123456789", {**ETAG, **headers})) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Unavailable):
                await store.get(key, 50, 20)


async def test_a_body_whose_length_nobody_said_is_not_taken_for_the_whole_object() -> None:
    with canned(Canned(200, b"whole body", {**ETAG, "Content-Length": ""}, cut=4)) as server:
        async with s3_store(server.endpoint, "bucket") as store:
            with pytest.raises(Unavailable, match="may have been cut"):
                await store.get("k", 0, 100)


@BOTH_CLIENTS
async def test_an_object_whose_length_nobody_says_is_not_taken_for_an_empty_one(key: str, behind_proxy: bool) -> None:
    empty = {**ETAG, "ETag": f'"{hashlib.md5().hexdigest()}"'}
    with canned(
        Canned(200, b"", {**ETAG, "Content-Length": ""}), Canned(200, b"", {**empty, "Content-Length": ""})
    ) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Unavailable, match="how long"):
                await store.head(key)
            assert (await store.head(key)).size == 0


@BOTH_CLIENTS
async def test_a_write_whose_version_nobody_says_is_to_be_looked_up(key: str, behind_proxy: bool) -> None:
    with canned(Canned(200)) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Unavailable, match=r"which version|ETag"):
                await store.put(key, b"body", metadata={})


async def test_a_header_that_is_no_text_is_refused() -> None:
    with canned(Canned(200, b"", ETAG)) as server:
        async with s3_store(server.endpoint, "bucket") as store:
            with pytest.raises(Rejected):
                await store.put("k", b"x", metadata={}, content_type="text/\udcff")
        assert not server.requests


async def test_a_date_beyond_all_time_hides_no_object() -> None:
    with canned(Canned(200, b"", {**ETAG, "Content-Length": "7", "Last-Modified": "0 JAN 3000000000 0:0"})) as server:
        async with s3_store(server.endpoint, "bucket") as store:
            assert (await store.head("k")).modified_ns == 0


@BOTH_CLIENTS
async def test_a_wrong_etag_after_a_put_is_corruption(key: str, behind_proxy: bool) -> None:
    with canned(Canned(200, b"", {"ETag": f'"{"0" * 32}"'})) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Corrupt):
                await store.put(key, b"body", metadata={})
        unchecked = replace(MINIO_CAPABILITIES, etag_is_md5=False)
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy, capabilities=unchecked) as store:
            assert await store.put(key, b"body", metadata={}) == "0" * 32


async def test_a_wrong_etag_of_a_part_is_corruption() -> None:
    with canned(
        Canned(200, b"", {"ETag": '"00"'}), Canned(200, b"", {"ETag": f'"{hashlib.md5(b"x").hexdigest()}"'})
    ) as server:
        async with s3_store(server.endpoint, "bucket") as store:
            with pytest.raises(Corrupt):
                await store.upload_part("k", "id", 1, b"x")
            assert await store.upload_part("k", "id", 1, b"x") == Part(1, hashlib.md5(b"x").hexdigest())


@BOTH_CLIENTS
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (s3_error(503, "SlowDown"), Unavailable),
        (s3_error(500, "InternalError"), Unavailable),
        (GATEWAY, Unavailable),
        (s3_error(507, "XMinioStorageFull"), NoSpace),
        (s3_error(400, "XMinioAdminBucketQuotaExceeded"), QuotaExceeded),
        (s3_error(400, "IncompleteBody"), Unavailable),
    ],
)
async def test_a_failure_is_reported_after_one_attempt(
    key: str, behind_proxy: bool, reply: Canned, kind: type[S3volError]
) -> None:
    with canned(reply) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(kind):
                await store.put(key, b"body", metadata={})
            assert len(server.requests) == 1, "retrying is not this layer's"


async def test_a_listing_that_is_no_listing_is_an_error_and_never_an_empty_directory() -> None:
    pages = [b"", b"<html>login</html>", LIST_START, LIST_START + b"<IsTruncated>true</IsTruncated></ListBucketResult>"]
    for body in pages:
        with canned(Canned(200, body)) as server:
            async with s3_store(server.endpoint, "bucket") as store:
                with pytest.raises(Unavailable):
                    await store.list("")


@BOTH_CLIENTS
async def test_a_wrong_clock_is_named_although_head_has_no_body(key: str, behind_proxy: bool) -> None:
    date = {"Date": formatdate(time.time() + 3600, usegmt=True)}
    skewed = s3_error(403, "RequestTimeTooSkewed")
    with canned(Canned(403), replace(skewed, headers=date)) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            with pytest.raises(Denied, match="clock is 60 minutes behind"):
                await store.head(key)


async def test_a_wrong_clock_is_named_although_obstore_hides_the_date() -> None:
    with canned(replace(s3_error(403, "RequestTimeTooSkewed"), headers={"Date": formatdate(0, usegmt=True)})) as server:
        async with s3_store(server.endpoint, "bucket") as store:
            with pytest.raises(Denied, match="ahead of the store's"):
                await store.get("k", 0, 1)


Operation = Callable[[S3Store], Awaitable[object]]
READS: dict[str, Operation] = {
    "head": lambda store: store.head("k"),
    "head-slow": lambda store: store.head("k/"),
    "get": lambda store: store.get("k", 0, 1),
    "get-slow": lambda store: store.get("k/", 0, 1),
    "list": lambda store: store.list(""),
}
CHANGES: dict[str, Operation] = {
    "put": lambda store: store.put("k", b"body", metadata={}),
    "put-slow": lambda store: store.put("k/", b"body", metadata={}),
    "put-large": lambda store: store.put("k", b"x" * (9 * MIB), metadata={}),
    "delete": lambda store: store.delete("k"),
    "upload": lambda store: store.create_upload("k", metadata={}),
}
ALL = READS | CHANGES


@pytest.mark.parametrize("operation", ALL.values(), ids=ALL.keys())
async def test_nobody_listening_is_unavailable(operation: Operation) -> None:
    with canned(Canned(200)) as server:
        endpoint = server.endpoint
    async with s3_store(endpoint, "bucket") as store:
        with pytest.raises(Unavailable):
            await operation(store)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Minio]:
    """A MinIO that tests may pause and kill."""
    with Minio() as server:
        yield server


@pytest.fixture
async def impatient(minio: Minio, own_server: Minio) -> AsyncIterator[S3Store]:
    """A store on `own_server` that waits half a second; `minio` is only asked for to skip where there is none."""
    bucket = own_server.new_bucket()
    async with s3_store(own_server.endpoint, bucket, attempt_timeout_s=0.5, connect_timeout_s=0.5) as store:
        yield store


@pytest.mark.minio
@pytest.mark.parametrize("operation", ALL.values(), ids=ALL.keys())
async def test_silence_ends_with_the_attempt(impatient: S3Store, own_server: Minio, operation: Operation) -> None:
    await impatient.list("")  # connections are open already
    began_s = time.monotonic()
    with paused(own_server), pytest.raises(Unavailable):
        await operation(impatient)
    assert time.monotonic() - began_s < 3


@pytest.mark.minio
@pytest.mark.parametrize("operation", READS.values(), ids=READS.keys())
async def test_a_cancelled_read_returns_at_once(impatient: S3Store, own_server: Minio, operation: Operation) -> None:
    with paused(own_server):
        began_s = time.monotonic()
        with trio.move_on_after(0.05) as scope:
            await operation(impatient)
        assert scope.cancelled_caught
        assert time.monotonic() - began_s < 0.4


@pytest.mark.minio
async def test_a_cancelled_change_is_waited_for_so_that_it_cannot_land_behind_the_next(
    impatient: S3Store, own_server: Minio
) -> None:
    with paused(own_server), pytest.raises(Unavailable), trio.move_on_after(0.05):
        await impatient.put("k", b"body", metadata={})


@pytest.mark.minio
async def test_a_store_survives_a_crash_and_a_restart_of_its_server(impatient: S3Store, own_server: Minio) -> None:
    etag = await impatient.put("k", b"body", metadata={"a": "b"})
    await impatient.put("k/", b"", metadata={})
    own_server.kill()
    for operation in ALL.values():
        with pytest.raises(Unavailable):
            await operation(impatient)
    own_server.start()
    assert bytes(await impatient.get("k", 0, 9, if_match=etag)) == b"body"
    assert (await impatient.head("k")).metadata == {"a": "b"}
    assert [info.key for info in (await impatient.list("", delimiter=False)).objects] == ["k", "k/"]
    await impatient.put("k", b"again", metadata={})


@pytest.mark.minio
async def test_a_call_with_retry_outlives_a_restart_of_the_server(impatient: S3Store, own_server: Minio) -> None:
    store = compose(impatient, replace(impatient.client.settings, timeout_s=30.0), Health())
    etag = await store.put("k", b"body", metadata={})
    own_server.kill()
    got: list[bytes] = []

    async def read() -> None:
        got.append(bytes(await store.get("k", 0, 9, if_match=etag)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(trio.to_thread.run_sync, own_server.start)
    assert got == [b"body"]


@pytest.mark.minio
async def test_a_slow_link_is_no_failure(minio: Minio, bucket: str) -> None:
    """A body of 9 MiB takes longer than the time-out, but never falls silent for as long."""
    body = b"x" * (9 * MIB)
    with throttled(minio.port, bytes_per_s=12 * MIB) as endpoint:
        async with s3_store(endpoint, bucket, attempt_timeout_s=0.4) as store:
            began_s = time.monotonic()
            etag = await store.put("k", body, metadata={})
            assert time.monotonic() - began_s > 0.4
            assert await store.get("k", 0, len(body), if_match=etag) == body
