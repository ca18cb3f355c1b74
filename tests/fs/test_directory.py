"""readdir: order, cursors, pending files, and what the kernel may believe."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from s3vol.errors import PosixError
from s3vol.fs.base import DirEntry
from s3vol.store.base import Page
from s3vol.store.decorator import Call, Decorator, T
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.types import ROOT_INO
from tests.fs.conftest import Nodes
from tests.fs.rig import USER, Foreign, Node


async def test_rows_come_in_the_order_of_keys_with_pending_files_among_them(a: Node, b: Node) -> None:
    for name in ("b", "d"):
        await b.write(name, b"x")
    await b.mkdir("c")
    await a.create("a")
    await a.create("cc")
    assert await a.names() == ["a", "b", "c", "cc", "d"]


async def test_a_directory_of_many_pages_is_complete(a: Node, foreign: Foreign) -> None:
    wanted = [f"f{number:04}" for number in range(2100)]
    for name in wanted:
        await foreign.put(name)
    await a.create("f1500x")
    assert await a.names() == sorted([*wanted, "f1500x"])


async def test_a_seek_back_in_a_large_directory_finds_the_same_rows(a: Node, foreign: Foreign) -> None:
    for number in range(1500):
        await foreign.put(f"f{number:04}", b"x")
    await a.symlink("f0000s", b"t")
    fh = await a.fs.opendir(ROOT_INO)
    rows: list[DirEntry] = []
    cursor = 0
    while batch := await a.fs.readdir(fh, cursor):
        rows += batch
        cursor = batch[-1].cursor
    again = await a.fs.readdir(fh, 1)
    assert [(row.name, row.cursor, row.entry.attr.ino) for row in again] == [
        (row.name, row.cursor, row.entry.attr.ino) for row in rows[1 : 1 + len(again)]
    ]
    assert [stat.S_IFMT(row.entry.attr.mode) for row in again[:2]] == [stat.S_IFLNK, stat.S_IFREG]
    assert again[1].entry.attr_ttl_s == 0
    a.fs.remember(again[1].entry.attr.ino)
    assert (await a.fs.getattr(again[1].entry.attr.ino)).attr.size == 1


async def test_a_cursor_means_the_same_row_while_names_come_and_go(a: Node, b: Node) -> None:
    for number in range(200):
        await b.write(f"f{number:03}", b"")
    fh = await a.fs.opendir(ROOT_INO)
    first = await a.fs.readdir(fh, 0)
    await b.unlink("f000")
    await b.write("a", b"")
    at = first[9].cursor
    assert (await a.fs.readdir(fh, at))[0].name == first[10].name
    assert (await a.fs.readdir(fh, at))[0].name == first[10].name
    names = [row.name for row in await a.fs.readdir(fh, 0)]
    assert names[:2] == [b"a", b"f001"]


async def test_a_listing_brings_the_attributes_of_its_files(a: Node, b: Node) -> None:
    for number in range(50):
        await a.write(f"f{number:02}", b"x" * number)
    rows = await b.rows()
    assert [attr.size for _, attr in rows] == list(range(50))
    before = dict(b.controls.calls)
    for name, _ in rows:
        await b.stat(name)
    assert dict(b.controls.calls) == before


async def test_a_row_that_the_kernel_takes_is_a_lookup(a: Node, b: Node) -> None:
    await a.write("f", b"xyz")
    await a.mkdir("d")
    fh = await b.fs.opendir(ROOT_INO)
    rows = await b.fs.readdir(fh, 0)
    for row in rows:
        b.fs.remember(row.entry.attr.ino)
    await b.fs.releasedir(fh)
    directory, file = (row.entry.attr for row in rows)
    assert (await b.fs.getattr(file.ino)).attr.size == 3
    assert stat.S_ISDIR((await b.fs.getattr(directory.ino)).attr.mode)
    assert b.fs.status()["inodes"] == 3
    b.fs.forget([(file.ino, 1), (directory.ino, 1)])
    assert b.fs.status()["inodes"] == 1


async def test_numbers_of_rows_are_those_of_lookups(a: Node, b: Node) -> None:
    await a.write("f", b"")
    await a.rename("f", "g")
    await a.write("f", b"")
    await a.mkdir("d")
    for node in (a, b):
        for name, attr in await node.rows():
            assert (await node.stat(name)).ino == attr.ino


async def test_a_subdirectorys_attributes_expire_at_once(a: Node, b: Node) -> None:
    await a.mkdir("d", 0o700)
    fh = await b.fs.opendir(ROOT_INO)
    (row,) = await b.fs.readdir(fh, 0)
    assert row.entry.attr_ttl_s == 0
    assert row.entry.entry_ttl_s > 0
    b.fs.remember(row.entry.attr.ino)
    assert stat.S_IMODE((await b.fs.getattr(row.entry.attr.ino)).attr.mode) == 0o700


async def test_a_row_of_a_file_that_was_removed_here_meanwhile_is_not_to_be_believed(a: Node) -> None:
    for number in range(100):
        await a.write(f"f{number:02}", b"")
    fh = await a.fs.opendir(ROOT_INO)
    await a.fs.readdir(fh, 0)
    await a.unlink("f99")
    row = (await a.fs.readdir(fh, 99))[0]
    assert (row.name, row.entry.entry_ttl_s, row.entry.attr_ttl_s) == (b"f99", 0, 0)


async def test_a_row_shows_what_was_written_here_since_the_listing(a: Node) -> None:
    await a.write("f", b"old")
    fh = await a.fs.opendir(ROOT_INO)
    await a.fs.readdir(fh, 0)
    await a.write("f", b"longer")
    (row,) = await a.fs.readdir(fh, 0)
    assert row.entry.attr.size == 6


async def test_creating_in_a_directory_changes_its_times_here(a: Node) -> None:
    made = await a.mkdir("d")
    await a.write("d/f", b"")
    assert (await a.stat("d")).mtime_ns > made.mtime_ns


async def test_a_file_that_is_published_while_its_directory_is_listed_stays_in_sight(nodes: Nodes) -> None:
    a = await nodes("a", close_remote=False)
    await a.write("pending", b"x")
    await a.write("other", b"y")
    gate = a.controls.hold_reply("list")  # the page is of before
    found: list[str] = []

    async def look() -> None:
        found.extend(await a.names())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await gate.entered.wait()
        await a.fs.flush_path("pending", lambda _: None)
        gate.open()
    assert found == ["other", "pending"]


class Leftovers(Decorator):
    """A store whose listings go on showing `gone/`, like a MinIO that kept an empty folder on its disk."""

    haunted = False

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Every call as it is, but for listings of the root."""
        result = await perform()
        if self.haunted and call.key == "" and isinstance(result, Page):
            return replace(result, prefixes=tuple(sorted({*result.prefixes, "gone/"})))
        return result


async def test_a_prefix_that_nothing_is_below_is_not_listed_again_once_it_was_looked_at(
    nodes: Nodes, bucket: MemoryBucket, foreign: Foreign
) -> None:
    store = Leftovers(MemoryStore(bucket))
    store.haunted = True
    a: Node = await nodes("a", store=store, attr_ttl_s=0)
    await foreign.put("here/f")
    assert await a.names() == ["gone", "here"]
    with pytest.raises(PosixError):
        await a.fs.getattr((await a.stat("gone")).ino)
    assert await a.names() == ["here"]
    await foreign.put("gone/f")
    assert await a.names() == ["gone", "here"]
    assert await a.read("gone/f") == b""


@pytest.mark.parametrize("made", ["directory", "file", "exclusive", "symlink"])
async def test_a_name_that_nothing_is_below_is_free(nodes: Nodes, bucket: MemoryBucket, made: str) -> None:
    store = Leftovers(MemoryStore(bucket))
    store.haunted = True
    a: Node = await nodes("a", store=store)
    assert await a.names() == ["gone"]
    match made:
        case "directory":
            await a.mkdir("gone")
        case "file":
            await a.write("gone", b"x")
        case "exclusive":
            await a.create("gone", flags=os.O_RDWR | os.O_EXCL)
        case _:
            await a.fs.symlink(ROOT_INO, b"gone", b"target", USER)
    assert await a.names() == ["gone"]


async def test_a_directory_that_was_renamed_here_does_not_come_back_by_what_the_store_left(
    nodes: Nodes, bucket: MemoryBucket
) -> None:
    store = Leftovers(MemoryStore(bucket))
    a: Node = await nodes("a", store=store)
    await a.mkdir("gone")
    await a.write("gone/f", b"x")
    await a.rename("gone", "new")
    store.haunted = True
    assert await a.names() == ["new"]
    await a.mkdir("gone")
    assert await a.names() == ["gone", "new"]


async def test_a_directory_that_was_removed_here_does_not_come_back_by_what_the_store_left(
    nodes: Nodes, bucket: MemoryBucket
) -> None:
    store = Leftovers(MemoryStore(bucket))
    a: Node = await nodes("a", store=store)
    await a.mkdir("gone")
    await a.rmdir("gone")
    store.haunted = True
    assert await a.names() == []
