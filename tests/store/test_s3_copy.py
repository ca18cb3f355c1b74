"""Copies on the server: pieces, guards, and what is left behind by a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3vol.errors import NotFound, PreconditionFailed, Rejected, Unavailable
from s3vol.store import s3_copy
from s3vol.store.base import ABSENT, ANY, Condition, Part, matches
from s3vol.store.s3 import S3Store
from s3vol.store.s3_copy import INLINE_BYTES, pieces
from s3vol.types import GIB, MIB
from tests.support.minio import Minio
from tests.support.s3 import MINIO_CAPABILITIES, s3_store


@given(st.integers(0, 5 * 1024 * GIB))
def test_pieces_cover_everything_once_and_are_few_enough(size: int) -> None:
    found = pieces(size, 256 * MIB, 10_000)
    assert len(found) <= 10_000
    assert sum(length for _, length in found) == size
    assert all(start == sum(length for _, length in found[:at]) for at, (start, _) in enumerate(found[:50]))
    assert all(length <= 5 * GIB for _, length in found)


@pytest.fixture
async def store(minio: Minio, bucket: str) -> AsyncIterator[S3Store]:
    async with s3_store(minio.endpoint, bucket) as opened:
        yield opened


def uploads(minio: Minio, bucket: str, key: str) -> int:
    return len(minio.client().list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", []))


pytestmark = pytest.mark.minio


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 6 * MIB])
async def test_a_copy_has_the_content_and_its_own_attributes(store: S3Store, size: int) -> None:
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    etag = await store.put("source", body, metadata={"a": "old"})
    copied = await store.copy(
        "source", "target", if_match=etag, metadata={"b": "é"}, content_type="x/y", condition=ABSENT
    )
    info = await store.head("target")
    assert (info.etag, info.size, info.metadata, info.content_type) == (copied, size, {"b": "é"}, "x/y")
    assert await store.get("target", 0, size + 1, if_match=copied) == body
    assert (await store.head("source")).metadata == {"a": "old"}


@pytest.mark.parametrize("size", [10, INLINE_BYTES + 1])
async def test_a_copy_keeps_both_conditions(store: S3Store, minio: Minio, bucket: str, size: int) -> None:
    etag = await store.put("source", b"x" * size, metadata={})
    there = await store.put("target", b"there", metadata={})
    for if_match, condition in ((etag, ABSENT), (etag, matches(etag)), (there, matches(there))):
        with pytest.raises(PreconditionFailed):
            await store.copy("source", "target", if_match=if_match, metadata={}, condition=condition)
    assert bytes(await store.get("target", 0, 99)) == b"there"
    with pytest.raises(NotFound):
        await store.copy("source", "nothing", if_match=etag, metadata={}, condition=matches(there))
    with pytest.raises(NotFound):
        await store.copy("nothing", "target", if_match=etag, metadata={})
    assert uploads(minio, bucket, "target") == uploads(minio, bucket, "nothing") == 0
    await store.copy("source", "target", if_match=etag, metadata={}, condition=matches(there))
    assert (await store.head("target")).size == size


async def test_attributes_of_a_large_file_change_by_a_guarded_copy_onto_itself(store: S3Store) -> None:
    etag = await store.put("k", b"x" * MIB, metadata={"mode": "1"})
    again = await store.copy("k", "k", if_match=etag, metadata={"mode": "2"}, condition=matches(etag))
    assert again != etag
    assert (await store.head("k")).metadata == {"mode": "2"}
    with pytest.raises(PreconditionFailed):
        await store.copy("k", "k", if_match=etag, metadata={"mode": "3"}, condition=matches(etag))


async def test_a_large_source_is_copied_in_pieces_side_by_side(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_copy, "PIECE_BYTES", 5 * MIB)
    body = bytes(range(256)) * (13 * MIB // 256)
    etag = await store.put("source", body, metadata={})
    copied = await store.copy("source", "target", if_match=etag, metadata={})
    assert copied.endswith("-3")
    assert await store.get("target", 0, len(body)) == body


async def test_a_source_that_changes_in_the_middle_fails_the_copy_and_leaves_nothing(
    store: S3Store, minio: Minio, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_copy, "PIECE_BYTES", 5 * MIB)
    etag = await store.put("source", b"x" * (11 * MIB), metadata={})
    upload_began = trio.Event()
    go_on = trio.Event()

    class Slow(S3Store):
        async def create_upload(self, key: str, **options: object) -> str:
            upload_id = await super().create_upload(key, **options)  # type: ignore[arg-type]  # as above
            upload_began.set()
            await go_on.wait()
            return upload_id

    slow = Slow(store.client, store.source, store.capabilities)

    async def change() -> None:
        await upload_began.wait()
        await store.put("source", b"other", metadata={})
        go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        with pytest.raises(PreconditionFailed):
            await slow.copy("source", "target", if_match=etag, metadata={})
    assert uploads(minio, bucket, "target") == 0
    with pytest.raises(NotFound):
        await store.head("target")


async def test_a_cancelled_copy_leaves_no_upload(store: S3Store, minio: Minio, bucket: str) -> None:
    etag = await store.put("source", b"x" * MIB, metadata={})

    class Cancelled(S3Store):
        async def copy_whole(self, *args: object, **options: object) -> object:  # type: ignore[override]  # never returns
            scope.cancel()
            await trio.sleep_forever()

    with trio.CancelScope() as scope:
        await Cancelled(store.client, store.source, store.capabilities).copy(
            "source", "target", if_match=etag, metadata={}
        )
    assert scope.cancelled_caught
    assert uploads(minio, bucket, "target") == 0


async def test_a_directory_marker_is_copied_although_minio_takes_no_upload_for_it(store: S3Store) -> None:
    etag = await store.put("old/", b"", metadata={"mode": "1"})
    await store.copy("old/", "new/", if_match=etag, metadata={"mode": "1"}, condition=ABSENT)
    assert (await store.head("new/")).metadata == {"mode": "1"}


async def test_without_multipart_copy_the_bytes_travel_and_the_conditions_hold(minio: Minio, bucket: str) -> None:
    poor = replace(MINIO_CAPABILITIES, copy_part=False, conditional_complete=False)
    async with s3_store(minio.endpoint, bucket, capabilities=poor) as store:
        etag = await store.put("source", b"x" * MIB, metadata={})
        assert await store.copy("source", "target", if_match=etag, metadata={}, condition=ABSENT) == etag
        with pytest.raises(PreconditionFailed):
            await store.copy("source", "target", if_match=etag, metadata={}, condition=ABSENT)
        with pytest.raises(Rejected):
            await store.copy_part("target", "id", 1, source="source", start=0, length=1, if_match=etag)
        upload = await store.create_upload("target", metadata={})
        part = await store.upload_part("target", upload, 1, b"x")
        with pytest.raises(Rejected):
            await store.complete_upload("target", upload, [part], condition=ABSENT)
        await store.abort_upload("target", upload)


class Forgetful(S3Store):
    """A store that was killed within a Complete: the upload is not what it was."""

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        raise NotFound(f"complete {key}: (400 InvalidPart)")


async def test_a_copy_whose_upload_was_lost_is_to_be_tried_again_and_not_a_missing_source(
    store: S3Store, minio: Minio, bucket: str
) -> None:
    etag = await store.put("source", b"x" * (INLINE_BYTES + 1), metadata={})
    forgetful = Forgetful(store.client, store.source, store.capabilities)
    with pytest.raises(Unavailable):
        await forgetful.copy("source", "target", if_match=etag, metadata={}, condition=ABSENT)
    assert uploads(minio, bucket, "target") == 0


class Stubborn(Forgetful):
    """One whose uploads can only be aborted at the third try."""

    refusals = 2

    async def abort_upload(self, key: str, upload_id: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise Unavailable(f"abort upload of {key}: 503 SlowDown")
        await super().abort_upload(key, upload_id)


async def test_an_abort_that_a_busy_store_refuses_is_tried_again(store: S3Store, minio: Minio, bucket: str) -> None:
    etag = await store.put("source", b"x" * (INLINE_BYTES + 1), metadata={})
    stubborn = Stubborn(store.client, store.source, store.capabilities)
    with pytest.raises(Unavailable, match="has lost the upload"):
        await stubborn.copy("source", "target", if_match=etag, metadata={}, condition=ABSENT)
    assert stubborn.refusals == 0
    assert uploads(minio, bucket, "target") == 0
