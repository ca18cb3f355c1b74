"""The contract on cancellation: wherever a call is cancelled, a change is whole or absent, and the store works on.

Each call is run again and again, cancelled at its first suspension, at its second, and so on, until it gets through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from s3vol.errors import NotFound
from s3vol.store.base import ABSENT, Store, matches
from s3vol.types import NONCE
from tests.store.test_conformance_upload import begin, whole

Call = Callable[[], Awaitable[object]]

STEPS_MAX = 200  # a call that suspends more often than this does not end


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task has been suspended so many times."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task = task
        self._scope = scope
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def runs_through(call: Call, step: int) -> bool:
    """Run the call, cancelled at suspension number `step` (0: before it begins). True when it ended by itself."""
    with trio.CancelScope() as scope:
        if step == 0:
            scope.cancel()
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await call()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return not scope.cancelled_caught


async def at_every_await(prepare: Callable[[], Awaitable[Call]], check: Callable[[], Awaitable[None]]) -> None:
    """Prepare, run the call cancelled at its next suspension, check; until the call gets through. Then check again."""
    for step in range(STEPS_MAX):
        call = await prepare()
        with trio.fail_after(60):
            done = await runs_through(call, step)
            await check()
        if done:
            return
    pytest.fail(f"suspended more than {STEPS_MAX} times")


async def content(store: Store, key: str) -> tuple[bytes, str] | None:
    """Body and nonce, or None."""
    try:
        info = await store.head(key)
        return bytes(await store.get(key, 0, 1 << 20, if_match=info.etag)), (info.metadata or {})[NONCE]
    except NotFound:
        return None


OLD, NEW = (b"old content", "old"), (b"new content, longer", "new")


async def put_old(store: Store) -> str:
    return await store.put("d/k", OLD[0], metadata={NONCE: OLD[1]})


async def put_new(store: Store, etag: str | None) -> str:
    condition = ABSENT if etag is None else matches(etag)
    return await store.put("d/k", NEW[0], metadata={NONCE: NEW[1]}, condition=condition)


async def test_a_cancelled_create_is_whole_or_absent(store: Store) -> None:
    async def prepare() -> Call:
        await store.delete("d/k")
        return lambda: put_new(store, None)

    async def check() -> None:
        found = await content(store, "d/k")
        assert found in (None, NEW)
        assert len((await store.list("d/")).objects) == (found is not None)

    await at_every_await(prepare, check)
    assert await content(store, "d/k") == NEW


async def test_a_cancelled_replace_leaves_one_version_or_the_other(store: Store) -> None:
    async def prepare() -> Call:
        etag = await put_old(store)
        return lambda: put_new(store, etag)

    async def check() -> None:
        assert await content(store, "d/k") in (OLD, NEW)

    await at_every_await(prepare, check)
    assert await content(store, "d/k") == NEW


async def test_a_cancelled_delete_leaves_all_or_nothing(store: Store) -> None:
    async def prepare() -> Call:
        await put_old(store)
        return lambda: store.delete("d/k")

    async def check() -> None:
        found = await content(store, "d/k")
        assert found in (None, OLD)
        assert (await store.list("")).prefixes == (() if found is None else ("d/",))

    await at_every_await(prepare, check)
    assert await content(store, "d/k") is None


async def test_a_cancelled_directory_marker_is_there_or_not(store: Store) -> None:
    async def prepare() -> Call:
        await store.delete("d/")
        return lambda: store.put("d/", b"", metadata={NONCE: "m"}, condition=ABSENT)

    async def check() -> None:
        assert await content(store, "d/") in (None, (b"", "m"))

    await at_every_await(prepare, check)
    assert await content(store, "d/") == (b"", "m")


async def test_a_cancelled_copy_is_whole_or_absent(store: Store) -> None:
    etag = await put_old(store)

    async def prepare() -> Call:
        await store.delete("e/copy")
        return lambda: store.copy("d/k", "e/copy", if_match=etag, metadata={NONCE: "copy"}, condition=ABSENT)

    async def check() -> None:
        assert await content(store, "e/copy") in (None, (OLD[0], "copy"))
        assert await content(store, "d/k") == OLD

    await at_every_await(prepare, check)
    assert await content(store, "e/copy") is not None


async def test_a_cancelled_complete_is_whole_or_absent(store: Store) -> None:
    first = b"p" * store.capabilities.min_part_bytes
    uploads: list[str] = []

    async def prepare() -> Call:
        await store.delete("d/k")
        upload_id, parts = await begin(store, "d/k", first, b"tail", nonce="up")
        uploads.append(upload_id)
        return lambda: store.complete_upload("d/k", upload_id, parts, condition=ABSENT)

    async def check() -> None:
        try:
            info = await store.head("d/k")
        except NotFound:
            return
        assert (info.metadata or {})[NONCE] == "up"
        assert await whole(store, "d/k") == first + b"tail"

    await at_every_await(prepare, check)
    assert await whole(store, "d/k") == first + b"tail"
    for upload_id in uploads:
        await store.abort_upload("d/k", upload_id)


async def test_an_upload_goes_on_after_a_cancelled_part(store: Store) -> None:
    body = b"p" * store.capabilities.min_part_bytes
    upload_id = await store.create_upload("d/k", metadata={NONCE: "up"})

    async def prepare() -> Call:
        return lambda: store.upload_part("d/k", upload_id, 1, body)

    async def check() -> None:
        with pytest.raises(NotFound):
            await store.head("d/k")

    await at_every_await(prepare, check)
    parts = [await store.upload_part("d/k", upload_id, number, body) for number in (1, 2)]
    await store.complete_upload("d/k", upload_id, parts)
    assert await whole(store, "d/k") == body * 2


async def test_an_upload_goes_on_after_a_cancelled_copy_of_a_part(store: Store) -> None:
    if not store.capabilities.copy_part:
        return
    etag = await put_old(store)
    upload_id = await store.create_upload("e/k", metadata={NONCE: "up"})

    def copy() -> Awaitable[object]:
        return store.copy_part("e/k", upload_id, 1, source="d/k", start=0, length=3, if_match=etag)

    async def prepare() -> Call:
        return copy

    async def check() -> None:
        assert await content(store, "d/k") == OLD

    await at_every_await(prepare, check)
    part = await store.copy_part("e/k", upload_id, 1, source="d/k", start=0, length=3, if_match=etag)
    await store.complete_upload("e/k", upload_id, [part])
    assert await whole(store, "e/k") == b"old"


async def test_a_cancelled_begin_or_abort_of_an_upload_disturbs_nothing(store: Store) -> None:
    async def prepare_create() -> Call:
        return lambda: store.create_upload("d/k", metadata={})

    async def prepare_abort() -> Call:
        upload_id, _ = await begin(store, "d/k", b"x")
        return lambda: store.abort_upload("d/k", upload_id)

    async def check() -> None:
        assert not (await store.list("", delimiter=False)).objects

    await at_every_await(prepare_create, check)
    await at_every_await(prepare_abort, check)


@pytest.mark.parametrize("operation", ["head", "get", "list"])
async def test_a_cancelled_read_blocks_no_later_writer(store: Store, operation: str) -> None:
    await put_old(store)
    calls: dict[str, Call] = {
        "head": lambda: store.head("d/k"),
        "get": lambda: store.get("d/k", 0, 100),
        "list": lambda: store.list("d/"),
    }

    async def prepare() -> Call:
        return calls[operation]

    async def check() -> None:
        await put_new(store, (await store.head("d/k")).etag)
        await put_old(store)

    await at_every_await(prepare, check)


async def test_writers_cancelled_in_a_crowd_leave_one_whole_version(store: Store) -> None:
    async def write(number: int) -> None:
        await store.put("d/k", b"%d" % number * 1000, metadata={NONCE: str(number)})

    for yields in range(0, 12, 2):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(write, number)
            for _ in range(yields):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        found = await content(store, "d/k")
        assert found is None or found[0] == found[1].encode() * 1000
    await write(9)
    assert await content(store, "d/k") == (b"9" * 1000, "9")
