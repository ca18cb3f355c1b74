"""Applied, then the connection broke: what a caller sees through retry, and how it finds out whose write it was."""

from __future__ import annotations

import random

import pytest

from s3vol.errors import NotFound, PreconditionFailed, Unavailable
from s3vol.store.base import ABSENT, Store, matches
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.retry import RetryStore
from s3vol.types import NONCE
from tests.store.test_conformance_upload import begin, whole


@pytest.fixture
def controls() -> FaultControls:
    return FaultControls()


@pytest.fixture
async def stack(store: Store, controls: FaultControls) -> Store:
    """The store under faults, under retry with pauses too short to matter."""
    return RetryStore(FaultStore(store, controls), first_pause_s=0.001, rng=random.Random(1))


async def nonce(store: Store, key: str) -> str:
    return ((await store.head(key)).metadata or {})[NONCE]


async def test_a_412_after_a_lost_reply_to_a_create_is_our_own_write(stack: Store, controls: FaultControls) -> None:
    controls.apply_then_fail("put")
    with pytest.raises(PreconditionFailed):
        await stack.put("k", b"x", metadata={NONCE: "ours"}, condition=ABSENT)
    assert await nonce(stack, "k") == "ours"
    assert controls.calls["put"] == 2


async def test_a_412_after_a_lost_reply_to_a_replace_is_our_own_write(stack: Store, controls: FaultControls) -> None:
    etag = await stack.put("k", b"old", metadata={NONCE: "theirs"})
    controls.apply_then_fail("put")
    with pytest.raises(PreconditionFailed):
        await stack.put("k", b"new", metadata={NONCE: "ours"}, condition=matches(etag))
    assert await nonce(stack, "k") == "ours"


async def test_a_412_after_a_request_that_never_arrived_is_anothers_write(
    stack: Store, store: Store, controls: FaultControls
) -> None:
    etag = await stack.put("k", b"old", metadata={NONCE: "old"})
    await store.put("k", b"new", metadata={NONCE: "theirs"})
    controls.fail_next("put")
    with pytest.raises(PreconditionFailed):
        await stack.put("k", b"x", metadata={NONCE: "ours"}, condition=matches(etag))
    assert await nonce(stack, "k") == "theirs"


async def test_a_metadata_change_is_repeated_without_a_412(stack: Store, controls: FaultControls) -> None:
    etag = await stack.put("k", b"same", metadata={NONCE: "1"})
    controls.apply_then_fail("put")
    assert await stack.put("k", b"same", metadata={NONCE: "2"}, condition=matches(etag)) == etag
    assert await nonce(stack, "k") == "2"


async def test_an_unconditional_put_is_repeated(stack: Store, controls: FaultControls) -> None:
    controls.apply_then_fail("put", times=3)
    await stack.put("k", b"x", metadata={NONCE: "ours"})
    assert await nonce(stack, "k") == "ours"
    assert controls.calls["put"] == 4


async def test_a_lost_reply_to_a_copy_shows_our_nonce_at_the_target(stack: Store, controls: FaultControls) -> None:
    etag = await stack.put("a", b"x", metadata={NONCE: "a"})
    controls.apply_then_fail("copy")
    with pytest.raises(PreconditionFailed):
        await stack.copy("a", "b", if_match=etag, metadata={NONCE: "ours"}, condition=ABSENT)
    assert await nonce(stack, "b") == "ours"


async def test_a_lost_reply_to_a_complete_is_an_unknown_upload_and_our_nonce(
    stack: Store, controls: FaultControls
) -> None:
    upload_id, parts = await begin(stack, "k", b"x", nonce="ours")
    controls.apply_then_fail("complete_upload")
    with pytest.raises((NotFound, PreconditionFailed)):
        await stack.complete_upload("k", upload_id, parts, condition=ABSENT)
    assert await nonce(stack, "k") == "ours"
    assert await whole(stack, "k") == b"x"


async def test_lost_replies_to_idempotent_calls_are_not_seen(stack: Store, controls: FaultControls) -> None:
    for operation in ("head", "get", "list", "create_upload", "upload_part", "copy_part", "abort_upload", "delete"):
        controls.apply_then_fail(operation)
    etag = await stack.put("k", b"content", metadata={NONCE: "1"})
    assert (await stack.head("k")).etag == etag
    assert bytes(await stack.get("k", 0, 7)) == b"content"
    assert len((await stack.list("")).objects) == 1
    upload_id = await stack.create_upload("u", metadata={NONCE: "u"})
    part = await stack.upload_part("u", upload_id, 1, b"part")
    await stack.complete_upload("u", upload_id, [part])
    if stack.capabilities.copy_part:
        again = await stack.create_upload("v", metadata={NONCE: "v"})
        copied = await stack.copy_part("v", again, 1, source="k", start=0, length=3, if_match=etag)
        await stack.complete_upload("v", again, [copied])
        assert await whole(stack, "v") == b"con"
    await stack.abort_upload("u", upload_id)
    await stack.delete("k")
    with pytest.raises(NotFound):
        await stack.head("k")
    assert all(controls.calls[operation] >= 2 for operation in ("head", "get", "list", "upload_part", "delete"))


async def test_a_refusal_is_not_retried(stack: Store, controls: FaultControls) -> None:
    with pytest.raises(NotFound):
        await stack.head("nothing")
    assert controls.calls["head"] == 1


async def test_a_store_that_comes_back_in_time_was_never_away(stack: Store, controls: FaultControls) -> None:
    controls.fail_next("put", Unavailable("503"), times=4)
    await stack.put("k", b"x", metadata={NONCE: "ours"}, condition=ABSENT)
    assert await nonce(stack, "k") == "ours"
