"""The S3 backend on a real MinIO: what the conformance suite, which knows no S3, cannot ask."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from s3vol.errors import Denied, MetadataTooLarge, NotFound, PreconditionFailed, Rejected, S3volError
from s3vol.store.base import ABSENT, DIRECTORY_TYPE, Page, matches
from s3vol.store.s3 import S3Store
from s3vol.store.s3_client import FAST_BODY_BYTES
from s3vol.types import MIB, ObjectInfo
from tests.support.minio import Minio
from tests.support.s3 import s3_store

pytestmark = pytest.mark.minio

ODD_KEYS = [
    "d/",
    "d/sub/",
    "new\nline",
    "tab\there",
    "\x01",
    "del\x7f",
    "c1\u0085",
    "sep\u2028",
    " lead",
    "trail ",
    "dot.",
    "...",
    "a b+c",
    "%41",
    "a?b#c",
    "back\\slash",
    "<>&\"'|*",
    "[x]{y}^`~",
    "é",  # NFC
    "e\u0301",  # NFD
    "漢/字",
    "😀",
    "xl.meta",
]


@pytest.fixture
async def store(minio: Minio, bucket: str) -> AsyncIterator[S3Store]:
    async with s3_store(minio.endpoint, bucket, "pre/fix/") as opened:
        yield opened


async def everything(store: S3Store, prefix: str = "", *, limit: int = 1000, delimiter: bool = False) -> list[str]:
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list(prefix, delimiter=delimiter, cursor=cursor, limit=limit)
        assert len(page.objects) + len(page.prefixes) <= limit
        names += sorted([info.key for info in page.objects] + list(page.prefixes))
        cursor = page.next_cursor
        if cursor is None:
            return names


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_an_odd_key_is_kept_exactly(store: S3Store, minio: Minio, bucket: str, key: str) -> None:
    etag = await store.put(key, b"body", metadata={"k": "v"}, content_type="x/y", condition=ABSENT)
    (info,) = (await store.list("", delimiter=False)).objects
    assert info == await store.head(key) == ObjectInfo(key, 4, etag, info.modified_ns, {"k": "v"}, "x/y")
    assert bytes(await store.get(key, 1, 2, if_match=etag)) == b"od"
    stored = minio.client().head_object(Bucket=bucket, Key=f"pre/fix/{key}")
    assert stored["ContentLength"] == 4
    await store.delete(key)
    assert await everything(store) == []


@pytest.mark.parametrize("key", ["a//b", "/a", "a/../b", "./a", "..", "a\0", "", "a__XLDIR__", "\udcff"])
async def test_a_key_that_would_be_stored_elsewhere_is_refused(store: S3Store, key: str) -> None:
    with pytest.raises(Rejected):
        await store.put(key, b"", metadata={})
    with pytest.raises(Rejected):
        await store.head(key)


async def test_metadata_of_any_text_survives_put_head_and_list(store: S3Store) -> None:
    metadata = {
        "plain": "v",
        "text": "é漢 \U0001f600",
        "ends": " x ",
        "word": "=?UTF-8?q?x?=",
        "empty": "",
        "a.b_c-d": "1",
    }
    for key in ("fast", "slow/"):
        await store.put(key, b"", metadata=metadata)
        assert (await store.head(key)).metadata == metadata
    assert [info.metadata for info in (await store.list("")).objects] == [metadata]
    upload = await store.create_upload("parts", metadata=metadata)
    part = await store.upload_part("parts", upload, 1, b"x")
    await store.complete_upload("parts", upload, [part])
    assert (await store.head("parts")).metadata == metadata


async def test_metadata_names_that_look_like_headers_stay_metadata(store: S3Store) -> None:
    metadata = {"content-type": "mine", "cache-control": "mine", "storage-class": "mine"}
    await store.put("k", b"", metadata=metadata, content_type="x/real")
    info = await store.head("k")
    assert (info.metadata, info.content_type) == (metadata, "x/real")
    assert (await store.list("")).objects == (info,)


async def test_foreign_text_in_metadata_survives_a_read_and_a_write(store: S3Store, minio: Minio, bucket: str) -> None:
    import obstore

    # A client that sends raw UTF-8, as MinIO's own does.
    obstore.put(store.client.fast, "pre/fix/k", b"", attributes={"text": "é漢", "odd!name": "v"})
    info = await store.head("k")
    assert info.metadata == {"text": "é漢", "odd!name": "v"}
    await store.put("k", b"new", metadata=info.metadata, condition=matches(info.etag))
    assert (await store.head("k")).metadata == info.metadata


@pytest.mark.parametrize("name", ["a!b", "a&b", "a~b"])
async def test_a_foreign_name_that_breaks_the_page_costs_its_metadata_and_hides_nothing(
    store: S3Store, name: str
) -> None:
    await store.put("good", b"", metadata={"k": "v"})
    await store.put("odd", b"", metadata={name: "v"})
    page = await store.list("")
    assert [(info.key, info.metadata) for info in page.objects] == [("good", None), ("odd", None)]
    assert (await store.head("odd")).metadata == {name: "v"}


async def test_too_much_metadata_is_its_own_error(store: S3Store) -> None:
    with pytest.raises(MetadataTooLarge):
        await store.put("k", b"", metadata={"v": "x" * 2048})


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("delimiter", [True, False])
async def test_pages_of_any_size_show_everything_once(store: S3Store, limit: int, delimiter: bool) -> None:
    keys = ["a", "b/", "b/c", "d/e", "d/f/g", "d0", "e/", "f"]
    for key in keys:
        await store.put(key, b"", metadata={})
    expected = ["a", "b/", "d/", "d0", "e/", "f"] if delimiter else keys
    assert await everything(store, limit=limit, delimiter=delimiter) == expected
    below = ["d/e", "d/f/"] if delimiter else ["d/e", "d/f/g"]
    assert await everything(store, "d/", limit=limit, delimiter=delimiter) == below


@pytest.mark.parametrize("after", ["", "a", "b/", "b/c", "b/zzz", "d", "d/e", "e/", "f", "zz"])
async def test_a_listing_starts_after_any_name(store: S3Store, after: str) -> None:
    keys = ["a", "b/", "b/c", "d/e", "e/", "f"]
    for key in keys:
        await store.put(key, b"", metadata={})
    page = await store.list("", start_after=after)
    names = sorted([info.key for info in page.objects] + list(page.prefixes))
    assert names == [name for name in ["a", "b/", "d/", "e/", "f"] if name > after]
    page = await store.list("", delimiter=False, start_after=after)
    assert [info.key for info in page.objects] == [key for key in keys if key > after]


async def test_a_missing_bucket_is_not_a_missing_key(minio: Minio) -> None:
    async with s3_store(minio.endpoint, "no-such-bucket") as store:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.head("k"),
            lambda: store.head("k/"),
            lambda: store.get("k", 0, 1),
            lambda: store.get("k/", 0, 1),
            lambda: store.put("k", b"", metadata={}),
            lambda: store.put("k", b"", metadata={}, condition=matches("0" * 32)),
            lambda: store.delete("k"),
            lambda: store.list(""),
            lambda: store.create_upload("k", metadata={}),
        ]
        for call in calls:
            with pytest.raises(S3volError, match="bucket is gone") as caught:
                await call()
            assert not isinstance(caught.value, NotFound)
            assert not caught.value.retryable


@pytest.mark.parametrize("key", ["k", "k/"])
async def test_a_wrong_key_or_secret_is_denied_with_what_to_check(minio: Minio, bucket: str, key: str) -> None:
    async with s3_store(minio.endpoint, bucket, secret_key="wrong") as store:
        with pytest.raises(Denied, match="AWS_SECRET_ACCESS_KEY"):
            await store.head(key)
        with pytest.raises(Denied, match="AWS_SECRET_ACCESS_KEY"):
            await store.put(key, b"", metadata={})
    async with s3_store(minio.endpoint, bucket, access_key="wrong") as store:
        with pytest.raises(Denied, match="AWS_ACCESS_KEY_ID"):
            await store.head(key)


@pytest.mark.parametrize("key", ["k", "k/"])
async def test_a_range_behind_the_end_is_empty_only_if_the_version_still_holds(store: S3Store, key: str) -> None:
    etag = await store.put(key, b"0123456789", metadata={})
    assert bytes(await store.get(key, 8, 100, if_match=etag)) == b"89"
    assert await store.get(key, 10, 1, if_match=etag) == b""
    assert await store.get(key, 99, 1) == b""
    assert await store.get(key, 3, 0, if_match=etag) == b""
    await store.put(key, b"", metadata={})  # MinIO answers 416 here, before it looks at If-Match
    for start in (0, 5):
        with pytest.raises(PreconditionFailed):
            await store.get(key, start, 5, if_match=etag)
    with pytest.raises(PreconditionFailed):
        await store.get(key, 0, 0, if_match=etag)
    assert await store.get(key, 0, 5) == b""


async def test_a_large_body_goes_by_one_put_all_the_same(store: S3Store) -> None:
    body = bytearray(bytes(range(256)) * ((FAST_BODY_BYTES + MIB) // 256))
    etag = await store.put("k", memoryview(body), metadata={"a": "b"}, condition=ABSENT)
    assert etag == hashlib.md5(body).hexdigest()
    with pytest.raises(PreconditionFailed):
        await store.put("k", body, metadata={}, condition=ABSENT)
    assert await store.get("k", 0, 1 << 30, if_match=etag) == body


async def test_an_object_with_a_content_encoding_is_read_as_it_is_stored(
    store: S3Store, minio: Minio, bucket: str
) -> None:
    minio.client().put_object(Bucket=bucket, Key="pre/fix/k", Body=b"no gzip", ContentEncoding="gzip")
    assert bytes(await store.get("k", 0, 100)) == b"no gzip"
    assert (await store.head("k")).size == 7


async def test_the_marker_of_a_directory_is_an_ordinary_key(store: S3Store) -> None:
    etag = await store.put("d/", b"", metadata={"mode": "16877"}, content_type=DIRECTORY_TYPE, condition=ABSENT)
    with pytest.raises(PreconditionFailed):
        await store.put("d/", b"", metadata={}, condition=ABSENT)
    with pytest.raises(NotFound):
        await store.head("d")
    await store.put("d/", b"", metadata={"mode": "16832"}, content_type=DIRECTORY_TYPE, condition=matches(etag))
    assert (await store.head("d/")).metadata == {"mode": "16832"}
    page = await store.list("d/")
    assert page == Page((await store.head("d/"),), ())


async def test_keys_of_another_prefix_are_out_of_sight(minio: Minio, bucket: str) -> None:
    async with s3_store(minio.endpoint, bucket, "a/") as first, s3_store(minio.endpoint, bucket) as whole:
        await whole.put("a/x", b"", metadata={})
        await whole.put("ab/y", b"", metadata={})
        assert await everything(first) == ["x"]
        assert await everything(whole) == ["a/x", "ab/y"]


async def test_a_stores_description_holds_no_secret(store: S3Store) -> None:
    for shown in (repr(store), repr(store.client), repr(store.client.settings), repr(store.client.fast), store.url):
        assert "secret" not in shown.replace("secret_key=", "")


async def test_many_calls_at_once_share_the_connections(store: S3Store) -> None:
    async def one(number: int) -> None:
        etag = await store.put(f"k{number:03}", b"%d" % number, metadata={})
        assert bytes(await store.get(f"k{number:03}", 0, 9, if_match=etag)) == b"%d" % number

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    assert len(await everything(store)) == 200
