"""What fsck finds, what it leaves alone, and that a repair makes the next run clean and costs no file."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol import layout
from s3vol.commands.fsck import Result, check_and_mend
from s3vol.config import MountOptions
from s3vol.errors import Rejected
from s3vol.failpoints import Point
from s3vol.fs import linkrecord
from s3vol.fs.base import FsSettings
from s3vol.fs.fsck import Survey, agreed, judge
from s3vol.fs.linkrecord import Doing, Record
from s3vol.fs.mending import look, look_once
from s3vol.store.base import DIRECTORY_TYPE, FILE_TYPE, Store
from s3vol.store.fault import FaultStore
from s3vol.store.file import FileStore
from s3vol.store.memory import MEMORY_CAPABILITIES, MemoryBucket, MemoryStore
from s3vol.types import ObjectInfo
from tests.fs.crashes import crash_at, crashing
from tests.fs.memory_cache import MemoryCache
from tests.fs.rig import Node
from tests.fs.test_link_crashes import RENAME_STEPS, STEPS, UNLINK_STEPS
from tests.support.minio import Minio
from tests.support.s3 import s3_store

NOW = time.time_ns
LINK = layout.Link("0123456789abcdef", "fedcba9876543210")
Make = Callable[[Store], Coroutine[Any, Any, None]]


def later() -> int:
    """When nothing is young any more."""
    return time.time_ns() + 30 * 86_400 * 1_000_000_000


@pytest.fixture(params=["memory", "file", pytest.param("minio", marks=pytest.mark.minio)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty bucket of each kind; on MinIO and in memory a prefix of one."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryStore(MemoryBucket(), "volume/")
        elif request.param == "file":
            (tmp_path / "bucket").mkdir()
            found = await FileStore.open(tmp_path / "bucket")
            stack.push_async_callback(found.aclose)
            yield found
        else:
            server: Minio = request.getfixturevalue("minio")
            yield await stack.enter_async_context(s3_store(server.endpoint, server.new_bucket(), "volume/"))


async def put(store: Store, key: str, body: bytes = b"", **metadata: str) -> None:
    """An object as any client would write it."""
    named = {name.replace("_", "-"): value for name, value in metadata.items()}
    await store.put(key, body, metadata=named, content_type=DIRECTORY_TYPE if key.endswith("/") else FILE_TYPE)


async def put_stub(store: Store, key: str, link: layout.Link = LINK) -> None:
    body, metadata = layout.stub(link)
    await store.put(key, body, metadata=metadata)


async def put_record(store: Store, record: Record) -> None:
    body, metadata = linkrecord.encode(record), linkrecord.metadata(record, NOW())
    await store.put(layout.record_key(LINK.id), body, metadata=metadata)


async def put_link(store: Store, *keys: str, record: Record | None = None) -> None:
    """A link with one counted name, whose stub is at each of the keys."""
    await put_record(store, record or Record(frozenset({LINK.token})))
    await put(store, LINK.key, b"content")
    for key in keys:
        await put_stub(store, key)


async def tombstone(store: Store) -> None:
    await put(store, "gone", b"nonce", s3vol_tombstone="nonce")


async def orphan(store: Store) -> None:
    await put(store, ".s3vol/orphans/node/0123", b"abc")


async def left_probe(store: Store) -> None:
    await put(store, ".s3vol/probe/0123/object", b"first")


async def unreadable_intent(store: Store) -> None:
    await put(store, ".s3vol/intents/0123.json", b"{")


async def left_intent(store: Store) -> None:
    await put(store, "old/", mode="16877")
    await put(store, "old/f", b"in the directory")
    body = b'{"id": "0123", "node": "n", "source": "old/", "target": "new/", "at": "then"}'
    await put(store, ".s3vol/intents/0123.json", body)


async def unfinished_link(store: Store) -> None:
    doing = {"0000000000000000": Doing("second", "n", 0)}
    await put_link(store, "first", record=Record(frozenset({LINK.token, "0000000000000000"}), doing))


async def dead_link(store: Store) -> None:
    await put_link(store, record=Record())


async def empty_record(store: Store) -> None:
    await put_record(store, Record(frozenset({LINK.token})))


async def copied_stub(store: Store) -> None:
    await put_link(store, "a name", "b copy")


async def upload(store: Store) -> None:
    await store.create_upload("large", metadata={})


MENDED: dict[Make, str] = {
    tombstone: "tombstone",
    orphan: "orphan",
    left_probe: "probe",
    unreadable_intent: "rename",
    left_intent: "rename",
    unfinished_link: "link",
    dead_link: "link",
    empty_record: "link",
    copied_stub: "link",
    upload: "upload",
}


async def lost_record(store: Store) -> None:
    await put_link(store, "name")
    await store.delete(layout.record_key(LINK.id))


async def unreadable_record(store: Store) -> None:
    await put_link(store, "name")
    await put(store, layout.record_key(LINK.id), b"{}")


async def lost_body(store: Store) -> None:
    await put_link(store, "name")
    await store.delete(LINK.key)


async def lost_link(store: Store) -> None:
    await put_stub(store, "name")


async def lost_names(store: Store) -> None:
    await put_link(store)


async def lost_all_but_the_body(store: Store) -> None:
    await put(store, LINK.key, b"content")


async def copy_of_a_dead_link(store: Store) -> None:
    await put_link(store, "copy", record=Record())


async def copy_of_a_name_that_goes(store: Store) -> None:
    await put_link(store, "copy", record=Record(frozenset({LINK.token}), {LINK.token: Doing("name", "n", 0)}))


async def attributes(store: Store) -> None:
    await put(store, "odd", b"abc", mode="rwx", mtime="yesterday", xattr="[]")


async def unknown(store: Store) -> None:
    await put(store, ".s3vol/surprise", b"abc")


LEFT: dict[Make, str] = {
    lost_record: "link",
    unreadable_record: "link",
    lost_body: "link",
    lost_link: "link",
    lost_names: "link",
    lost_all_but_the_body: "link",
    copy_of_a_dead_link: "link",
    copy_of_a_name_that_goes: "link",
    attributes: "attributes",
    unknown: "unknown",
}


async def mend(store: Store, folder: Path, clock: Callable[[], int] = later) -> Result:
    return await check_and_mend(store, clock, MountOptions(), folder)


async def visible(store: Store) -> dict[str, bytes]:
    """What a mount shows: files and the content of links."""
    node = Node(store, MemoryCache(FaultStore(store), "eyes"), FsSettings(node="eyes"))
    found: dict[str, bytes] = {}

    async def walk(folder: str) -> None:
        for name, attr in await node.rows(folder):
            path = f"{folder}/{name}".lstrip("/")
            if attr.is_dir:
                await walk(path)
            else:
                found[path] = await node.read(path)

    await walk("")
    return found


@pytest.mark.parametrize("make", MENDED, ids=lambda make: make.__name__)
async def test_a_repair_mends_it_and_loses_no_file(make: Make, store: Store, tmp_path: Path) -> None:
    await put(store, "file", b"stays")
    await make(store)
    files = await visible(store)
    found = await look(store, later)
    assert [(it.kind, it.young) for it in found] == [(MENDED[make], False)]
    assert found[0].advice.startswith("--repair ")
    result = await mend(store, tmp_path)
    assert (list(result.findings), list(result.refused)) == ([], [])
    assert [it.kind for it in result.mended] == [MENDED[make]]
    assert await look_once(store, later) == []
    if make is left_intent:
        files["new/f"] = files.pop("old/f")
    assert await visible(store) == files


@pytest.mark.parametrize("make", MENDED, ids=lambda make: make.__name__)
async def test_two_repairs_at_once_come_to_the_same_end(make: Make, bucket: MemoryBucket, tmp_path: Path) -> None:
    store = MemoryStore(bucket)
    await make(store)
    files = await visible(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend, store, tmp_path / "one")
        nursery.start_soon(mend, store, tmp_path / "two")
    assert (await mend(store, tmp_path / "three")).findings == []
    assert sorted((await visible(store)).values()) == sorted(files.values())


@pytest.mark.parametrize("make", LEFT, ids=lambda make: make.__name__)
async def test_what_may_be_a_last_copy_is_told_and_left(make: Make, store: Store, tmp_path: Path) -> None:
    await make(store)
    before = [info.etag for info in (await store.list("", delimiter=False)).objects]
    result = await mend(store, tmp_path)
    assert [(it.kind, it.young) for it in result.left] == [(LEFT[make], False)]
    assert "leaves it" in result.left[0].advice
    assert [info.etag for info in (await store.list("", delimiter=False)).objects] == before


@pytest.mark.parametrize("make", [*MENDED, *LEFT], ids=lambda make: make.__name__)
async def test_what_is_young_is_in_progress_and_not_touched(make: Make, bucket: MemoryBucket, tmp_path: Path) -> None:
    store = MemoryStore(bucket)
    await make(store)
    keys = [info.key for info in (await store.list("", delimiter=False)).objects]
    result = await mend(store, tmp_path, NOW)
    assert [it.young for it in result.findings] == [True]
    assert result.left == []
    assert [info.key for info in (await store.list("", delimiter=False)).objects] == keys
    assert len(await store.uploads()) == (make is upload)


async def test_a_bucket_of_other_tools_is_clean(store: Store) -> None:
    await put(store, "plain", b"abc")
    await put(store, "rclone", b"abc", mtime="1700000000.5", mode="0100644", uid="0", gid="0")
    await put(store, "d/e/f", b"abc", colour="red")
    await put(store, "g/")
    assert await look(store, later) == []


async def test_an_object_that_cannot_be_asked_for_is_no_obstacle() -> None:
    fault = FaultStore(MemoryStore(MemoryBucket(), capabilities=replace(MEMORY_CAPABILITIES, list_metadata=False)))
    await tombstone(fault)
    fault.controls.fail_next("head", Rejected("no such key here"))
    assert await look_once(fault, later) == []
    assert [it.kind for it in await look_once(fault, later)] == ["tombstone"]


async def test_a_volume_below_a_prefix_has_its_own_links(bucket: MemoryBucket) -> None:
    await put_link(MemoryStore(bucket, "inner/"), "name")
    assert await look(MemoryStore(bucket), later) == []
    assert await look(MemoryStore(bucket, "inner/"), later) == []
    await put_stub(MemoryStore(bucket), "outer")
    assert [it.key for it in await look(MemoryStore(bucket), later)] == ["outer"]


async def test_a_used_volume_is_clean(store: Store) -> None:
    node = Node(store, MemoryCache(FaultStore(store), "a"), FsSettings(node="a"))
    await node.mkdir("d")
    await node.write("d/f", b"abc")
    await node.link("d/f", "g")
    await node.rename("d", "e")
    await node.rename("g", "h")
    await node.symlink("s", b"e/f")
    assert await look(store, later) == []


async def test_a_name_of_a_copied_stub_counts_and_outlives_the_first(store: Store, tmp_path: Path) -> None:
    await copied_stub(store)
    await mend(store, tmp_path)
    node = Node(store, MemoryCache(FaultStore(store), "a"), FsSettings(node="a"))
    assert (await node.stat("b copy")).nlink == 2
    await node.unlink("a name")
    assert await visible(store) == {"b copy": b"content"}
    assert await look(store, later) == []


def test_a_file_beside_a_directory_and_a_marker_with_a_body_are_told() -> None:
    survey = Survey(later())
    for key in ("a", "a-b", "a/", "a/b", "c", "c-d", "c/d", "e", "e!f", "f/g"):
        survey.show(ObjectInfo(key, 1 if key == "a/" else 0, "e", NOW(), {}))
    assert [(it.kind, it.key) for it in judge(survey, {})] == [("marker", "a/"), ("beside", "a"), ("beside", "c")]


def test_what_only_one_look_saw_is_in_progress() -> None:
    old, new = ObjectInfo("k", 1, "1", 0, {"mode": "?"}), ObjectInfo("k", 1, "2", 0, {"mode": "?"})
    looks = []
    for info in (old, old, new):
        survey = Survey(NOW())
        survey.show(info)
        looks.append(judge(survey, {}))
    assert [it.young for it in agreed(looks[0], looks[1])] == [False]
    assert [it.young for it in agreed(looks[0], looks[2])] == [True]
    assert [it.young for it in agreed([], looks[2])] == [True]


async def test_beside_writers_nothing_is_wrong(bucket: MemoryBucket) -> None:
    store = MemoryStore(bucket)
    node = Node(store, MemoryCache(FaultStore(store), "a"), FsSettings(node="a"))
    seen = 0
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            for i in range(1000):
                await node.mkdir(f"d{i}")
                await node.write(f"d{i}/F", b"abc")
                await node.link(f"d{i}/F", f"B{i}")
                await node.rename(f"d{i}", f"A{i}")
                await node.rename(f"B{i}", f"z{i}")
                await node.unlink(f"z{i}")
                await node.unlink(f"A{i}/F")
                await node.rmdir(f"A{i}")

        nursery.start_soon(work)
        for _ in range(60):
            found = await look(store, NOW)
            seen += len(found)
            assert [it for it in found if not it.young] == []
        nursery.cancel_scope.cancel()
    assert seen


@pytest.mark.parametrize("point", [*STEPS, *RENAME_STEPS, *UNLINK_STEPS, Point.RENAME_DIR_AFTER_COPIES], ids=str)
async def test_after_a_crash_fsck_mends_what_the_next_mount_would(
    bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: Point
) -> None:
    store = MemoryStore(bucket)
    node = Node(store, MemoryCache(FaultStore(store), "a"), FsSettings(node="a"))
    await node.mkdir("d")
    await node.write("d/f", b"abc")
    if point not in STEPS:
        await node.link("d/f", "g")
    if point is Point.UNLINK_NAME_AFTER_BODY:
        await node.unlink("d/f")
    work: dict[bool, Callable[[], Awaitable[object]]] = {
        point in STEPS: lambda: node.link("d/f", "g"),
        point in RENAME_STEPS: lambda: node.rename("g", "h"),
        point in UNLINK_STEPS: lambda: node.unlink("g"),
        point is Point.RENAME_DIR_AFTER_COPIES: lambda: node.rename("d", "e"),
    }
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(work[True])
    assert [it for it in await look(store, NOW) if not it.young] == []
    assert [it for it in await look(store, later) if not it.young] != []
    files = await visible(store)
    result = await mend(store, tmp_path)
    assert list(result.findings) == []
    if point is not Point.RENAME_DIR_AFTER_COPIES:
        assert await visible(store) == files
    else:
        assert await visible(store) == {"e/f": b"abc", "g": b"abc"}
