"""The contract of a store (s3vol/store/base.py), held by every backend: single objects, conditions, races, limits.

What a store may lack is asked of its capabilities, never of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest
import trio

from s3vol.errors import MetadataTooLarge, NameTooLong, NotFound, PreconditionFailed, Rejected
from s3vol.layout import META_PREFIX
from s3vol.store.base import ABSENT, DIRECTORY_TYPE, Buffer, Condition, Store, Unpublished, matches
from s3vol.types import NONCE
from tests.store.conftest import OpenAt

WRITERS = 8
ATTRIBUTES = {"mode": "33188", "uid": "1000", "mtime": "1700000000.123456789", NONCE: "n1"}


async def test_what_was_put_is_shown_by_head_and_get(store: Store) -> None:
    etag = await store.put("dir/file", b"content", metadata=ATTRIBUTES, content_type="text/plain")
    info = await store.head("dir/file")
    assert (info.key, info.size, info.etag) == ("dir/file", 7, etag)
    assert info.metadata == ATTRIBUTES
    assert info.content_type == "text/plain"
    assert bytes(await store.get("dir/file", 0, 7)) == b"content"


@pytest.mark.parametrize("length", [0, 3, 7, 8, 100])
async def test_a_fetch_is_a_head_and_the_first_bytes(store: Store, length: int) -> None:
    await store.put("a/b", b"content", metadata={"mode": "33188"})
    info, body = await store.fetch("a/b", length)
    assert (info, bytes(body)) == (await store.head("a/b"), b"content"[:length])


async def test_an_empty_object_and_a_marker_can_be_fetched(store: Store) -> None:
    await store.put("empty", b"", metadata={"mode": "33188"})
    await store.put("d/", b"", metadata={"mode": "16877"}, content_type=DIRECTORY_TYPE)
    for key in ("empty", "d/"):
        info, body = await store.fetch(key, 10)
        assert (info, bytes(body)) == (await store.head(key), b"")


async def test_the_etag_of_a_put_is_its_md5(store: Store) -> None:
    etag = await store.put("k", b"content", metadata={})
    if store.capabilities.etag_is_md5:
        assert etag == hashlib.md5(b"content").hexdigest()
    assert etag == await store.put("other", b"content", metadata={"mode": "1"}), "content only"
    assert etag != await store.put("k", b"Content", metadata={})


async def test_a_change_of_metadata_alone_changes_the_version_and_not_the_etag(store: Store) -> None:
    await store.put("k", b"x", metadata={NONCE: "1"})
    before = await store.head("k")
    await store.put("k", b"x", metadata={NONCE: "2"}, condition=matches(before.etag))
    after = await store.head("k")
    assert before.etag == after.etag
    assert before.version != after.version


async def test_last_modified_is_whole_seconds_and_the_same_everywhere(store: Store) -> None:
    await store.put("k", b"x", metadata={})
    head = await store.head("k")
    (listed,) = (await store.list("")).objects
    assert head.modified_ns % 1_000_000_000 == 0
    assert listed.modified_ns == head.modified_ns


async def test_an_empty_object_is_an_object(store: Store) -> None:
    await store.put("empty", b"", metadata={})
    assert (await store.head("empty")).size == 0
    assert bytes(await store.get("empty", 0, 10)) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_is_taken_and_not_kept(store: Store, kind: Callable[[bytearray], Buffer]) -> None:
    body = bytearray(b"abc")
    await store.put("k", kind(body), metadata={})
    body[:] = b"xyz"
    assert bytes(await store.get("k", 0, 3)) == b"abc"


async def test_a_missing_key_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.fetch("k", 10)
    with pytest.raises(NotFound):
        await store.head("nothing")
    with pytest.raises(NotFound):
        await store.get("nothing", 0, 1)
    await store.put("a/b", b"", metadata={})
    with pytest.raises(NotFound):
        await store.head("a")
    with pytest.raises(NotFound):
        await store.head("a/")
    with pytest.raises(NotFound):
        await store.head("a/b/c")


async def test_delete_removes_and_is_repeatable(store: Store) -> None:
    await store.put("a/b", b"x", metadata={})
    await store.delete("a/b")
    with pytest.raises(NotFound):
        await store.head("a/b")
    await store.delete("a/b")
    await store.delete("never/was")
    assert await store.list("") == await store.list("nothing")


async def test_other_nodes_see_a_change_when_it_returns_or_where_it_is_published_later_after_sync(
    store_at: OpenAt,
) -> None:
    store, other = await store_at(""), await store_at("", node=1)
    await store.put("k", b"x", metadata={})
    if store.capabilities.publishes_later:
        assert store.unpublished == Unpublished(names=1, bytes=1)
        with pytest.raises(NotFound):
            await other.head("k")
    else:
        assert (await other.head("k")).size == 1
    for _ in range(2):
        await store.sync()
        assert store.unpublished == Unpublished()
        assert (await other.head("k")).size == 1


async def test_a_key_with_a_slash_at_its_end_is_its_own_object(store: Store) -> None:
    await store.put("d/", b"", metadata={"mode": "16877"}, content_type=DIRECTORY_TYPE, condition=ABSENT)
    with pytest.raises(PreconditionFailed):
        await store.put("d/", b"", metadata={}, condition=ABSENT)
    with pytest.raises(NotFound):
        await store.head("d")
    info = await store.head("d/")
    assert (info.key, info.size, info.metadata) == ("d/", 0, {"mode": "16877"})
    assert info.content_type == DIRECTORY_TYPE
    await store.put("d/", b"", metadata={"mode": "16832"}, condition=matches(info.etag))
    assert (await store.head("d/")).metadata == {"mode": "16832"}
    assert bytes(await store.get("d/", 0, 1)) == b""


async def test_a_marker_and_its_children_live_independently(store: Store) -> None:
    await store.put("d/", b"", metadata={})
    await store.put("d/x", b"x", metadata={})
    await store.delete("d/")
    with pytest.raises(NotFound):
        await store.head("d/")
    assert (await store.head("d/x")).size == 1
    await store.put("d/", b"", metadata={})
    await store.delete("d/x")
    assert (await store.head("d/")).size == 0


# -- ranges


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 4, b"0123"), (2, 3, b"234"), (8, 2, b"89"), (8, 100, b"89"), (9, 1, b"9"), (10, 1, b""), (50, 5, b"")],
)
async def test_a_range_is_cut_at_the_end(store: Store, start: int, length: int, expected: bytes) -> None:
    etag = await store.put("k", b"0123456789", metadata={})
    assert bytes(await store.get("k", start, length)) == expected
    assert bytes(await store.get("k", start, length, if_match=etag)) == expected


async def test_a_range_of_another_version_is_refused(store: Store) -> None:
    old = await store.put("k", b"old version", metadata={})
    await store.put("k", b"new version", metadata={})
    with pytest.raises(PreconditionFailed):
        await store.get("k", 0, 3, if_match=old)
    with pytest.raises(PreconditionFailed):
        await store.get("k", 4, 3, if_match=old)


# -- conditions


async def test_create_wins_once(store: Store) -> None:
    await store.put("k", b"first", metadata={}, condition=ABSENT)
    with pytest.raises(PreconditionFailed):
        await store.put("k", b"second", metadata={}, condition=ABSENT)
    assert bytes(await store.get("k", 0, 10)) == b"first"
    await store.delete("k")
    await store.put("k", b"third", metadata={}, condition=ABSENT)


async def test_replace_needs_the_version_that_is_there(store: Store) -> None:
    first = await store.put("k", b"first", metadata={})
    second = await store.put("k", b"second", metadata={}, condition=matches(first))
    with pytest.raises(PreconditionFailed):
        await store.put("k", b"third", metadata={}, condition=matches(first))
    assert (await store.head("k")).etag == second


async def test_replace_of_nothing_is_not_found(store: Store) -> None:
    etag = await store.put("other", b"x", metadata={})
    with pytest.raises(NotFound):
        await store.put("k", b"x", metadata={}, condition=matches(etag))
    with pytest.raises(NotFound):
        await store.head("k")


async def race(writers: list[Callable[[], Awaitable[str]]]) -> list[int]:
    """Run all at once; the numbers of those that won. The others must have lost by the condition."""
    winners: list[int] = []

    async def one(number: int) -> None:
        try:
            await writers[number]()
        except (PreconditionFailed, NotFound):
            return
        winners.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(len(writers)):
            nursery.start_soon(one, number)
    return winners


async def race_puts(store: Store, key: str, condition: Condition, salt: int) -> None:
    def writer(number: int) -> Callable[[], Awaitable[str]]:
        body = b"round %d writer %d" % (salt, number)  # the same bytes again would have the same ETag
        return lambda: store.put(key, body, metadata={NONCE: str(number)}, condition=condition)

    (winner,) = await race([writer(number) for number in range(WRITERS)])
    assert bytes(await store.get(key, 0, 100)) == b"round %d writer %d" % (salt, winner)
    assert ((await store.head(key)).metadata or {})[NONCE] == str(winner)


async def test_of_eight_creators_one_wins(store: Store) -> None:
    for number in range(5):
        await race_puts(store, f"a/b/{number}", ABSENT, number)


async def test_of_eight_replacers_one_wins(store: Store) -> None:
    etag = await store.put("a/b", b"start", metadata={})
    for number in range(5):
        await race_puts(store, "a/b", matches(etag), number)
        etag = (await store.head("a/b")).etag


async def test_of_eight_makers_of_a_directory_one_wins(store: Store) -> None:
    def maker(number: int) -> Callable[[], Awaitable[str]]:
        return lambda: store.put("p/d/", b"", metadata={NONCE: str(number)}, condition=ABSENT)

    (winner,) = await race([maker(number) for number in range(WRITERS)])
    assert ((await store.head("p/d/")).metadata or {})[NONCE] == str(winner)


async def test_races_hold_between_two_views_of_a_bucket(store_at: OpenAt) -> None:
    views = [await store_at("") for _ in range(2)]

    def writer(number: int) -> Callable[[], Awaitable[str]]:
        return lambda: views[number % 2].put("k", b"%d" % number, metadata={}, condition=ABSENT)

    (winner,) = await race([writer(number) for number in range(WRITERS)])
    for view in views:
        assert bytes(await view.get("k", 0, 10)) == b"%d" % winner


async def test_creates_and_deletes_in_one_directory_do_not_disturb_each_other(store: Store) -> None:
    async def come_and_go(number: int) -> None:
        for _ in range(10):
            key = f"a/b/c/{number}"
            await store.put(key, b"x", metadata={}, condition=ABSENT)
            assert (await store.head(key)).size == 1
            await store.delete(key)

    async with trio.open_nursery() as nursery:
        for number in range(WRITERS):
            nursery.start_soon(come_and_go, number)
    assert not (await store.list("", delimiter=False)).objects
    assert not (await store.list("")).prefixes


# -- copies


async def test_a_copy_has_the_content_and_its_own_metadata(store: Store) -> None:
    etag = await store.put("a", b"content", metadata={"mode": "1"})
    await store.copy("a", "b/c", if_match=etag, metadata={"mode": "2"}, content_type="text/plain", condition=ABSENT)
    info = await store.head("b/c")
    assert (info.size, info.metadata, info.content_type) == (7, {"mode": "2"}, "text/plain")
    assert bytes(await store.get("b/c", 0, 7)) == b"content"
    assert (await store.head("a")).metadata == {"mode": "1"}


async def test_a_copy_is_guarded_at_its_source_and_its_target(store: Store) -> None:
    old = await store.put("a", b"old", metadata={})
    etag = await store.put("a", b"new", metadata={})
    with pytest.raises(PreconditionFailed):
        await store.copy("a", "b", if_match=old, metadata={})
    with pytest.raises(NotFound):
        await store.copy("nothing", "b", if_match=etag, metadata={})
    with pytest.raises(NotFound):
        await store.head("b")
    there = await store.put("b", b"there", metadata={})
    with pytest.raises(PreconditionFailed):
        await store.copy("a", "b", if_match=etag, metadata={}, condition=ABSENT)
    with pytest.raises(PreconditionFailed):
        await store.copy("a", "b", if_match=etag, metadata={}, condition=matches(etag))
    assert bytes(await store.get("b", 0, 10)) == b"there"
    await store.copy("a", "b", if_match=etag, metadata={}, condition=matches(there))
    assert bytes(await store.get("b", 0, 10)) == b"new"


# -- names and limits

NAMES = [
    "a b",
    " lead and trail ",
    "ä/é漢/💾",
    "e\u0301 not normalised",
    "percent%41+plus",
    "q?#&=",
    "back\\slash",
    "quote'\"<>&",
    "...",
    "a/...",
    "trailing.",
    "~tilde*",
    "new\nline",
    "tab\tand\rreturn",
    "a:b|c",
    "xl.meta",
]


@pytest.mark.parametrize("key", NAMES)
async def test_a_strange_name_is_kept_exactly(store: Store, key: str) -> None:
    await store.put(key, b"x", metadata={"mode": "1"}, condition=ABSENT)
    assert (await store.head(key)).key == key
    assert bytes(await store.get(key, 0, 1)) == b"x"
    assert [info.key for info in (await store.list("", delimiter=False)).objects] == [key]
    await store.delete(key)
    assert not (await store.list("", delimiter=False)).objects


@pytest.mark.parametrize("key", ["a//b", ".", "..", "a/./b", "a/../b", "../a", "a/..", "nul\0", "sur\udc80rogate"])
async def test_a_key_that_is_no_path_is_rejected(store: Store, key: str) -> None:
    with pytest.raises(Rejected):
        await store.put(key, b"x", metadata={})
    assert not (await store.list("", delimiter=False)).objects


async def test_names_may_be_255_bytes_and_keys_1024(store: Store) -> None:
    limit = store.capabilities.max_key_bytes
    name = "é" * 127 + "x"  # 255 bytes
    longest = "/".join(["x" * 255] * 5)[:limit].rstrip("/")
    for key in (name, longest, f"d/{name}"):
        await store.put(key, b"x", metadata={})
        assert (await store.head(key)).size == 1
    for key in ("x" * 256, "é" * 128, f"d/{'x' * 256}/e", "/".join(["x" * 250] * 5)):
        with pytest.raises(NameTooLong):
            await store.put(key, b"x", metadata={})


async def test_metadata_may_fill_its_limit_and_no_more(store: Store) -> None:
    room = store.capabilities.max_metadata_bytes - len(META_PREFIX + "v")
    await store.put("k", b"x", metadata={"v": "y" * room})
    assert (await store.head("k")).metadata == {"v": "y" * room}
    with pytest.raises(MetadataTooLarge):
        await store.put("k", b"x", metadata={"v": "y" * (room + 1)})
    with pytest.raises(MetadataTooLarge):
        await store.create_upload("k", metadata={"v": "y" * (room + 1)})


async def test_values_of_metadata_are_kept_exactly(store: Store) -> None:
    metadata = {"a": "double  space", "b": "%7B%22x%22%3A1%7D", "c": "+/=", "d": "1.5", "e-f_g.h": "\"quoted\" 'x'\\"}
    await store.put("k", b"x", metadata=metadata)
    assert (await store.head("k")).metadata == metadata


async def test_a_value_that_would_end_a_header_is_rejected(store: Store) -> None:
    with pytest.raises(Rejected):
        await store.put("k", b"x", metadata={"v": "one\nx-amz-acl: public-read"})
    with pytest.raises(NotFound):
        await store.head("k")


# -- prefixes and life


async def test_a_view_shows_keys_below_its_prefix_only(store_at: OpenAt) -> None:
    everything, view = await store_at(""), await store_at("volume/")
    await everything.put("volume-else", b"", metadata={})
    await view.put("a/b", b"x", metadata={})
    assert (await everything.head("volume/a/b")).size == 1
    assert (await view.head("a/b")).key == "a/b"
    assert (await view.list("")).prefixes == ("a/",)
    assert [info.key for info in (await view.list("", delimiter=False)).objects] == ["a/b"]
    assert [info.key for info in (await view.list("a/")).objects] == ["a/b"]
    with pytest.raises(NotFound):
        await view.head("volume/a/b")


async def test_a_view_pages_below_its_prefix(store_at: OpenAt) -> None:
    view = await store_at("v/")
    for key in ("a", "b", "c/d", "e"):
        await view.put(key, b"", metadata={})
    first = await view.list("", limit=2)
    assert [info.key for info in first.objects] == ["a", "b"]
    rest = await view.list("", cursor=first.next_cursor, limit=2)
    assert ([info.key for info in rest.objects], rest.prefixes, rest.next_cursor) == (["e"], ("c/",), None)
    after = await view.list("", start_after="b")
    assert ([info.key for info in after.objects], after.prefixes) == (["e"], ("c/",))


async def test_two_views_see_each_others_changes_at_once(store_at: OpenAt) -> None:
    one, two = await store_at(""), await store_at("")
    etag = await one.put("a/k", b"one", metadata={})
    assert (await two.head("a/k")).etag == etag
    assert len((await two.list("a/")).objects) == 1
    await two.delete("a/k")
    with pytest.raises(NotFound):
        await one.head("a/k")
    assert not (await one.list("a/")).objects


async def test_the_url_names_the_store(store: Store) -> None:
    assert ":" in store.url


async def test_watch_tells_of_changes_or_is_rejected(store: Store) -> None:
    if not store.capabilities.watch:
        with pytest.raises(Rejected):
            await anext(aiter(store.watch("")))
        return
    hints = store.watch("d/")
    await store.put("else", b"", metadata={})
    etag = await store.put("d/k", b"x", metadata={NONCE: "n"})
    await store.delete("d/k")
    with trio.fail_after(10):
        first, second = await anext(hints), await anext(hints)
    assert (first.key, first.etag, first.nonce) == ("d/k", etag, "n")
    assert (second.key, second.etag) == ("d/k", None)
