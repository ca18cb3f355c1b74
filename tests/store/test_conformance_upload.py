"""The contract of multipart uploads."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest

from s3vol.errors import NotFound, PreconditionFailed, Rejected
from s3vol.store.base import ABSENT, Condition, Part, Store, matches
from s3vol.store.rules import multipart_etag
from s3vol.types import NONCE
from tests.store.conftest import OpenAt
from tests.store.test_conformance import WRITERS, race


def part_body(store: Store, letter: bytes) -> bytes:
    return letter * store.capabilities.min_part_bytes


async def whole(store: Store, key: str) -> bytes:
    return bytes(await store.get(key, 0, (await store.head(key)).size))


async def begin(store: Store, key: str, *bodies: bytes, nonce: str = "n") -> tuple[str, list[Part]]:
    """An upload with these parts; its id and the parts."""
    upload_id = await store.create_upload(key, metadata={NONCE: nonce}, content_type="text/plain")
    return upload_id, [await store.upload_part(key, upload_id, n, body) for n, body in enumerate(bodies, 1)]


async def test_parts_become_one_object(store: Store) -> None:
    bodies = [part_body(store, b"a"), part_body(store, b"b"), b"tail"]
    upload_id, parts = await begin(store, "d/k", *bodies)
    with pytest.raises(NotFound):
        await store.head("d/k")
    assert not (await store.list("", delimiter=False)).objects
    etag = await store.complete_upload("d/k", upload_id, parts)
    info = await store.head("d/k")
    assert (info.etag, info.size, info.content_type) == (etag, sum(map(len, bodies)), "text/plain")
    assert (info.metadata or {})[NONCE] == "n"
    assert await whole(store, "d/k") == b"".join(bodies)


async def test_the_etag_is_made_of_those_of_the_parts(store: Store) -> None:
    upload_id, parts = await begin(store, "k", part_body(store, b"a"), b"tail")
    etag = await store.complete_upload("k", upload_id, parts)
    assert etag.endswith("-2")
    if store.capabilities.etag_is_md5:
        assert etag == multipart_etag(part.etag for part in parts)


async def test_one_empty_part_makes_an_empty_object(store: Store) -> None:
    upload_id, parts = await begin(store, "k", b"")
    await store.complete_upload("k", upload_id, parts)
    assert (await store.head("k")).size == 0


async def test_parts_may_come_in_any_order_and_with_gaps(store: Store) -> None:
    upload_id = await store.create_upload("k", metadata={})
    third = await store.upload_part("k", upload_id, 30, b"tail")
    first = await store.upload_part("k", upload_id, 2, part_body(store, b"a"))
    await store.complete_upload("k", upload_id, [first, third])
    assert await whole(store, "k") == part_body(store, b"a") + b"tail"


async def test_a_part_with_the_same_number_replaces_the_first(store: Store) -> None:
    upload_id, _ = await begin(store, "k", b"first")
    second = await store.upload_part("k", upload_id, 1, b"second")
    assert second == await store.upload_part("k", upload_id, 1, b"second"), "repeating is harmless"
    await store.complete_upload("k", upload_id, [second])
    assert await whole(store, "k") == b"second"


async def test_only_what_was_uploaded_can_be_completed(store: Store) -> None:
    upload_id, parts = await begin(store, "k", part_body(store, b"a"), b"tail")
    for wrong in ([], parts[::-1]):
        with pytest.raises(Rejected):
            await store.complete_upload("k", upload_id, wrong)
    for lost in ([Part(1, "0" * 32)], [parts[0], Part(3, parts[1].etag)]):
        with pytest.raises(NotFound):
            await store.complete_upload("k", upload_id, lost)
    with pytest.raises(NotFound):
        await store.head("k")
    await store.complete_upload("k", upload_id, parts)


async def test_a_small_part_is_refused_unless_it_is_the_last(store: Store) -> None:
    upload_id, parts = await begin(store, "k", part_body(store, b"a")[:-1], b"tail")
    with pytest.raises(Rejected):
        await store.complete_upload("k", upload_id, parts)


async def test_part_numbers_have_bounds(store: Store) -> None:
    upload_id, _ = await begin(store, "k")
    for number in (0, store.capabilities.max_parts + 1):
        with pytest.raises(Rejected):
            await store.upload_part("k", upload_id, number, b"x")


async def test_an_unknown_upload_is_not_found_and_aborting_it_is_success(store: Store) -> None:
    upload_id, parts = await begin(store, "k", b"x")
    await store.abort_upload("k", upload_id)
    await store.abort_upload("k", upload_id)
    with pytest.raises(NotFound):
        await store.upload_part("k", upload_id, 2, b"x")
    with pytest.raises(NotFound):
        await store.complete_upload("k", upload_id, parts)
    with pytest.raises(NotFound):
        await store.head("k")


async def test_an_upload_completes_once(store: Store) -> None:
    upload_id, parts = await begin(store, "k", b"x")
    await store.complete_upload("k", upload_id, parts)
    with pytest.raises(NotFound):
        await store.complete_upload("k", upload_id, parts)
    await store.abort_upload("k", upload_id)
    assert await whole(store, "k") == b"x"


async def test_complete_to_create_meets_what_is_there_and_keeps_its_parts(store: Store) -> None:
    if not store.capabilities.conditional_complete:
        with pytest.raises(Rejected):
            await store.complete_upload("k", "any", [Part(1, "0" * 32)], condition=ABSENT)
        return
    await store.put("k", b"there", metadata={})
    upload_id, parts = await begin(store, "k", b"x")
    with pytest.raises(PreconditionFailed):
        await store.complete_upload("k", upload_id, parts, condition=ABSENT)
    assert await whole(store, "k") == b"there"
    await store.delete("k")
    await store.complete_upload("k", upload_id, parts, condition=ABSENT)
    assert await whole(store, "k") == b"x"


async def test_complete_to_replace_needs_the_version_that_is_there(store: Store) -> None:
    old = await store.put("k", b"old", metadata={})
    new = await store.put("k", b"new", metadata={})
    upload_id, parts = await begin(store, "k", b"x")
    with pytest.raises(PreconditionFailed):
        await store.complete_upload("k", upload_id, parts, condition=matches(old))
    with pytest.raises(PreconditionFailed):
        await store.complete_upload("k", upload_id, parts, condition=matches(old))
    await store.complete_upload("k", upload_id, parts, condition=matches(new))
    assert await whole(store, "k") == b"x"


async def test_complete_to_replace_nothing_is_not_found_and_keeps_its_parts(store: Store) -> None:
    etag = await store.put("other", b"x", metadata={})
    upload_id, parts = await begin(store, "k", b"x")
    with pytest.raises(NotFound):
        await store.complete_upload("k", upload_id, parts, condition=matches(etag))
    await store.complete_upload("k", upload_id, parts)


async def race_uploads(store: Store, key: str, condition: Condition) -> None:
    uploads = [await begin(store, key, b"upload %d" % n, nonce=str(n)) for n in range(WRITERS)]

    def completer(number: int) -> Callable[[], Awaitable[str]]:
        upload_id, parts = uploads[number]
        return lambda: store.complete_upload(key, upload_id, parts, condition=condition)

    (winner,) = await race([completer(number) for number in range(WRITERS)])
    assert await whole(store, key) == b"upload %d" % winner
    assert ((await store.head(key)).metadata or {})[NONCE] == str(winner)
    for upload_id, _ in uploads:
        await store.abort_upload(key, upload_id)


async def test_of_eight_completes_one_creates(store: Store) -> None:
    await race_uploads(store, "a/k", ABSENT)


async def test_of_eight_completes_one_replaces(store: Store) -> None:
    await race_uploads(store, "a/k", matches(await store.put("a/k", b"start", metadata={})))


async def test_of_a_put_and_a_complete_one_creates(store: Store) -> None:
    upload_id, parts = await begin(store, "k", b"upload")
    winners = await race(
        [
            lambda: store.put("k", b"put", metadata={}, condition=ABSENT),
            lambda: store.complete_upload("k", upload_id, parts, condition=ABSENT),
        ]
    )
    assert len(winners) == 1
    assert await whole(store, "k") == (b"put", b"upload")[winners[0]]


async def test_a_part_is_copied_from_a_range_of_an_object(store: Store) -> None:
    piece = store.capabilities.min_part_bytes
    etag = await store.put("source", part_body(store, b"a") + part_body(store, b"b") + b"end", metadata={})
    upload_id = await store.create_upload("target", metadata={})
    if not store.capabilities.copy_part:
        with pytest.raises(Rejected):
            await store.copy_part("target", upload_id, 1, source="source", start=0, length=1, if_match=etag)
        return
    first = await store.copy_part("target", upload_id, 1, source="source", start=piece, length=piece, if_match=etag)
    second = await store.copy_part("target", upload_id, 2, source="source", start=2 * piece, length=3, if_match=etag)
    await store.complete_upload("target", upload_id, [first, second])
    assert await whole(store, "target") == part_body(store, b"b") + b"end"


async def test_a_part_of_another_version_is_not_copied(store: Store) -> None:
    old = await store.put("source", b"old", metadata={})
    new = await store.put("source", b"new", metadata={})
    upload_id = await store.create_upload("target", metadata={})
    with pytest.raises(PreconditionFailed):
        await store.copy_part("target", upload_id, 1, source="source", start=0, length=3, if_match=old)
    with pytest.raises(Rejected):
        await store.copy_part("target", upload_id, 1, source="source", start=0, length=4, if_match=new)
    with pytest.raises(NotFound):
        await store.copy_part("target", upload_id, 1, source="nothing", start=0, length=1, if_match=new)


async def test_an_object_is_rebuilt_from_itself_with_one_part_changed(store: Store) -> None:
    piece = store.capabilities.min_part_bytes
    etag = await store.put("k", part_body(store, b"a") * 3, metadata={})
    upload_id = await store.create_upload("k", metadata={NONCE: "2"})
    parts = [
        await store.copy_part("k", upload_id, 1, source="k", start=0, length=piece, if_match=etag),
        await store.upload_part("k", upload_id, 2, part_body(store, b"b")),
        await store.copy_part("k", upload_id, 3, source="k", start=2 * piece, length=piece, if_match=etag),
    ]
    await store.complete_upload("k", upload_id, parts, condition=matches(etag))
    assert await whole(store, "k") == part_body(store, b"a") + part_body(store, b"b") + part_body(store, b"a")


async def test_a_directory_marker_is_never_uploaded(store: Store) -> None:
    with pytest.raises(Rejected):
        await store.create_upload("d/", metadata={})


async def test_uploads_are_listed_until_they_are_completed_or_aborted(store: Store, store_at: OpenAt) -> None:
    began_s = time.time()
    first, parts = await begin(store, "d/one", b"tail")
    second, _ = await begin(store, "two")
    assert {(it.key, it.id) for it in await store.uploads()} == {("d/one", first), ("two", second)}
    assert all(abs(it.begun_ns / 1e9 - began_s) < 30 for it in await store.uploads())
    assert [it.key for it in await (await store_at("d/")).uploads()] == ["one"]
    await store.complete_upload("d/one", first, parts)
    await store.abort_upload("two", second)
    assert list(await store.uploads()) == []
