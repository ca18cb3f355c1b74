"""The reference store: what the conformance suite cannot ask of every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from s3vol.errors import Rejected
from s3vol.store.base import ABSENT, Part, matches
from s3vol.store.memory import MEMORY_CAPABILITIES, MemoryBucket, MemoryStore


async def test_last_modified_comes_from_the_clock_cut_to_seconds() -> None:
    store = MemoryStore(MemoryBucket(now_ns=lambda: 1_700_000_000_999_999_999))
    await store.put("k", b"", metadata={})
    assert (await store.head("k")).modified_ns == 1_700_000_000_000_000_000


async def test_a_condition_that_the_store_lacks_is_refused_and_not_ignored() -> None:
    poor = replace(MEMORY_CAPABILITIES, conditional_create=False, conditional_replace=False, conditional_complete=False)
    store = MemoryStore(capabilities=poor)
    for condition in (ABSENT, matches("0" * 32)):
        with pytest.raises(Rejected):
            await store.put("k", b"", metadata={}, condition=condition)
        with pytest.raises(Rejected):
            await store.complete_upload("k", "id", [Part(1, "0" * 32)], condition=condition)
    await store.put("k", b"", metadata={})


async def test_a_store_without_copied_parts_says_so() -> None:
    store = MemoryStore(capabilities=replace(MEMORY_CAPABILITIES, copy_part=False))
    with pytest.raises(Rejected):
        await store.copy_part("k", "id", 1, source="s", start=0, length=0, if_match="e")


async def test_hidden_children_are_shown_by_a_listing_that_begins_below_them() -> None:
    store = MemoryStore(capabilities=replace(MEMORY_CAPABILITIES, hides_children=True))
    for key in ("a", "a/", "a/b", "a/c/d"):
        await store.put(key, b"", metadata={})
    assert [info.key for info in (await store.list("", delimiter=False)).objects] == ["a", "a/"]
    assert (await store.list("")).prefixes == ("a/",)
    assert [info.key for info in (await store.list("a/")).objects] == ["a/"]
    assert [info.key for info in (await store.list("a/c/")).objects] == ["a/c/d"]
    await store.delete("a")
    assert [info.key for info in (await store.list("a/", delimiter=False)).objects] == ["a/", "a/b", "a/c/d"]


async def test_a_watch_ends_when_its_store_is_closed() -> None:
    bucket = MemoryBucket()
    store, other = MemoryStore(bucket), MemoryStore(bucket, "x/")
    hints = store.watch("")
    await other.put("k", b"", metadata={})
    await store.aclose()
    with trio.fail_after(5):
        assert [change.key async for change in hints] == ["x/k"]


async def test_a_slow_watcher_loses_the_oldest_hints_and_nobody_waits_for_it() -> None:
    store = MemoryStore()
    hints = store.watch("")
    for number in range(1500):
        await store.put(f"{number:04}", b"", metadata={})
    await store.aclose()
    keys = [change.key async for change in hints]
    assert (len(keys), keys[0], keys[-1]) == (1000, "0500", "1499")


async def test_metadata_given_to_a_caller_is_a_copy() -> None:
    store = MemoryStore()
    given = {"mode": "1"}
    await store.put("k", b"", metadata=given)
    given["mode"] = "2"
    assert (await store.head("k")).metadata == {"mode": "1"}
