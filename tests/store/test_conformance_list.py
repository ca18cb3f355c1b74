"""The contract of a store's listings: order, folding, paging, metadata."""

from __future__ import annotations

import pytest

from s3vol.errors import Rejected
from s3vol.store.base import Page, Store
from s3vol.types import ObjectInfo

KEYS = ["a-b", "a.b", "a/", "a/b", "a/b-c", "a/b0", "a/c/d", "a/c/e", "a0", "ab/c", "b", "é", "漢/x", "💾"]


async def fill(store: Store, keys: list[str]) -> None:
    for key in keys:
        await store.put(key, b"" if key.endswith("/") else key.encode(), metadata={"mode": str(len(key))})


def keys_of(page: Page) -> list[str]:
    return [info.key for info in page.objects]


async def pages(store: Store, prefix: str, *, delimiter: bool, limit: int) -> list[Page]:
    """All pages of a listing."""
    found = [await store.list(prefix, delimiter=delimiter, limit=limit)]
    while (cursor := found[-1].next_cursor) is not None:
        found.append(await store.list(prefix, delimiter=delimiter, limit=limit, cursor=cursor))
    return found


async def test_an_empty_bucket_has_an_empty_page(store: Store) -> None:
    assert await store.list("") == Page((), (), None)
    assert await store.list("nothing/here/") == Page((), (), None)


async def test_a_prefix_that_is_no_text_is_refused(store: Store) -> None:
    with pytest.raises(Rejected, match="not UTF-8"):
        await store.list("sur\udc80rogate/")


async def test_keys_come_in_byte_order(store: Store) -> None:
    await fill(store, KEYS[::-1])
    page = await store.list("", delimiter=False)
    assert keys_of(page) == sorted(KEYS, key=str.encode)
    assert (page.prefixes, page.next_cursor) == ((), None)
    assert [info.size for info in page.objects if not info.key.endswith("/")] == [
        len(key.encode()) for key in sorted(KEYS, key=str.encode) if not key.endswith("/")
    ]


async def test_a_delimiter_folds_what_is_deeper(store: Store) -> None:
    await fill(store, KEYS)
    page = await store.list("")
    assert keys_of(page) == ["a-b", "a.b", "a0", "b", "é", "💾"]
    assert page.prefixes == ("a/", "ab/", "漢/")


async def test_a_prefix_with_its_marker_shows_the_marker_itself(store: Store) -> None:
    await fill(store, KEYS)
    page = await store.list("a/")
    assert keys_of(page) == ["a/", "a/b", "a/b-c", "a/b0"]
    assert page.prefixes == ("a/c/",)


async def test_a_prefix_may_end_within_a_name(store: Store) -> None:
    await fill(store, KEYS)
    page = await store.list("a")
    assert (keys_of(page), page.prefixes) == (["a-b", "a.b", "a0"], ("a/", "ab/"))
    assert keys_of(await store.list("a/b")) == ["a/b", "a/b-c", "a/b0"]
    assert keys_of(await store.list("a/c", delimiter=False)) == ["a/c/d", "a/c/e"]
    assert (await store.list("a/c")).prefixes == ("a/c/",)
    assert keys_of(await store.list("b")) == ["b"]


async def test_an_empty_directory_is_a_prefix_as_long_as_it_has_a_marker(store: Store) -> None:
    await store.put("p/d/", b"", metadata={})
    assert (await store.list("")).prefixes == ("p/",)
    assert (await store.list("p/")).prefixes == ("p/d/",)
    assert keys_of(await store.list("p/d/")) == ["p/d/"]
    await store.delete("p/d/")
    assert await store.list("") == Page((), (), None)


async def test_a_prefix_vanishes_with_its_last_key(store: Store) -> None:
    await fill(store, ["a/b/c", "a/d"])
    await store.delete("a/b/c")
    page = await store.list("a/")
    assert (keys_of(page), page.prefixes) == (["a/d"], ())
    await store.delete("a/d")
    assert await store.list("") == Page((), (), None)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("delimiter", [True, False])
@pytest.mark.parametrize("prefix", ["", "a", "a/"])
async def test_pages_together_are_the_whole(store: Store, limit: int, delimiter: bool, prefix: str) -> None:
    await fill(store, KEYS)
    whole = await store.list(prefix, delimiter=delimiter)
    found = await pages(store, prefix, delimiter=delimiter, limit=limit)
    assert [key for page in found for key in keys_of(page)] == keys_of(whole)
    assert [name for page in found for name in page.prefixes] == list(whole.prefixes)
    assert all(len(page.objects) + len(page.prefixes) <= limit for page in found)


async def test_start_after_begins_behind_a_key_that_need_not_exist(store: Store) -> None:
    await fill(store, KEYS)
    assert keys_of(await store.list("", delimiter=False, start_after="a/b1")) == KEYS[6:]
    assert keys_of(await store.list("", delimiter=False, start_after="a/c/d")) == KEYS[7:]
    assert keys_of(await store.list("", delimiter=False, start_after="zzz", limit=1)) == ["é"]
    assert keys_of(await store.list("a/", start_after="a/b")) == ["a/b-c", "a/b0"]
    assert await store.list("", start_after="\U0010ffff") == Page((), (), None)


async def test_start_after_and_limit_page_on_with_a_cursor(store: Store) -> None:
    await fill(store, [f"k{number:02}" for number in range(10)])
    first = await store.list("", start_after="k03", limit=3)
    assert keys_of(first) == ["k04", "k05", "k06"]
    assert keys_of(await store.list("", cursor=first.next_cursor, limit=100)) == ["k07", "k08", "k09"]


async def test_a_key_added_behind_the_cursor_is_seen_and_one_deleted_is_not(store: Store) -> None:
    await fill(store, ["a", "b", "d", "e"])
    first = await store.list("", limit=2)
    await store.put("c", b"", metadata={})
    await store.delete("d")
    assert keys_of(await store.list("", cursor=first.next_cursor)) == ["c", "e"]


async def test_a_cursor_holds_when_its_key_is_deleted(store: Store) -> None:
    await fill(store, ["a/x", "b/x", "c/x", "d"])
    first = await store.list("", limit=2)
    assert first.prefixes == ("a/", "b/")
    await store.delete("b/x")
    rest = await store.list("", cursor=first.next_cursor)
    assert (keys_of(rest), rest.prefixes) == (["d"], ("c/",))


async def test_a_page_of_nothing_is_rejected(store: Store) -> None:
    with pytest.raises(Rejected):
        await store.list("", limit=0)


async def test_a_listing_with_metadata_agrees_with_head(store: Store) -> None:
    await fill(store, ["a", "d/", "d/b"])
    for info in (await store.list("", delimiter=False)).objects:
        head = await store.head(info.key)
        if store.capabilities.list_metadata:
            assert info == head
        else:
            assert info == ObjectInfo(head.key, head.size, head.etag, head.modified_ns, None, "")


async def test_a_listing_without_metadata_says_that_it_does_not_know(store: Store) -> None:
    await fill(store, ["a"])
    (info,) = (await store.list("", metadata=False)).objects
    assert info.metadata is None
    assert info.etag == (await store.head("a")).etag


async def test_an_object_beside_its_children_is_refused_or_listed_as_the_capability_says(store: Store) -> None:
    await store.put("x/y", b"child", metadata={})
    try:
        await store.put("x", b"object", metadata={})
    except Rejected:
        assert (await store.list("")).prefixes == ("x/",)
        assert bytes(await store.get("x/y", 0, 10)) == b"child"
        return
    page = await store.list("")
    assert keys_of(page) == ["x"]
    assert page.prefixes == (() if store.capabilities.hides_children else ("x/",))
    assert bytes(await store.get("x/y", 0, 10)) == b"child", "hidden is not lost"
    await store.delete("x")
    assert (await store.list("")).prefixes == ("x/",)


async def test_a_child_of_an_object_is_refused_or_listed_as_the_capability_says(store: Store) -> None:
    await store.put("x", b"object", metadata={})
    try:
        await store.put("x/y", b"child", metadata={})
    except Rejected:
        assert keys_of(await store.list("", delimiter=False)) == ["x"]
        return
    expected = ["x"] if store.capabilities.hides_children else ["x", "x/y"]
    assert keys_of(await store.list("", delimiter=False)) == expected


async def test_more_keys_than_a_page_holds_are_all_listed(store: Store) -> None:
    keys = [f"many/{number:04}" for number in range(1050)]
    for key in keys:
        await store.put(key, b"", metadata={})
    found = await pages(store, "many/", delimiter=True, limit=1000)
    assert [key for page in found for key in keys_of(page)] == keys
    assert len(found) == 2
