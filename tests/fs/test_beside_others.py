"""Attributes, listings and handles beside what other nodes and other handles do."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio

from s3vol import layout
from s3vol.errors import Unavailable
from s3vol.fs import listing
from s3vol.types import AttrChange, Fh
from tests.fs.rig import USER, Foreign, Node, fails


async def both_are_there(node: Node) -> None:
    """The mode and the owner that two have given to one directory."""
    await node.remount()
    shown = await node.stat("d")
    assert (stat.S_IMODE(shown.mode), shown.uid) == (0o700, 5)


async def test_a_chown_of_a_directory_does_not_undo_a_chmod_that_another_node_has_just_made(a: Node, b: Node) -> None:
    await a.mkdir("d", 0o755)
    await b.stat("d")
    await a.setattr("d", mode=0o700)
    await b.setattr("d", uid=5)
    await both_are_there(a)


async def test_a_listing_beside_a_chmod_of_its_directory_does_not_undo_it(a: Node, b: Node) -> None:
    await a.mkdir("d", 0o755)
    ino = (await a.stat("d")).ino
    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fs.setattr, ino, AttrChange(mode=0o700), None, USER)
        await gate.entered.wait()
        assert await a.names("d") == []
        gate.open()
    assert stat.S_IMODE((await a.fs.getattr(ino)).attr.mode) == 0o700
    await a.fs.setattr(ino, AttrChange(uid=5), None, USER)
    await both_are_there(b)


async def test_a_chown_of_a_directory_does_not_undo_a_chmod_of_another_tool(a: Node, foreign: Foreign) -> None:
    await foreign.put("d/", mode="16877")
    assert stat.S_IMODE((await a.stat("d")).mode) == 0o755
    await foreign.put("d/", mode="16832")
    await a.setattr("d", uid=5)
    await both_are_there(a)


async def test_attributes_of_a_directory_without_a_marker_are_added_to_those_another_node_makes(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await foreign.put("d/f")
    await b.stat("d")
    await a.setattr("d", mode=0o700)
    await b.setattr("d", uid=5)
    await both_are_there(a)


async def test_a_directory_whose_marker_another_node_is_just_replacing_is_changed_on_top_of_the_new_one(
    a: Node, foreign: Foreign
) -> None:
    await foreign.put("d/", mode="16877")
    await a.stat("d")
    await foreign.put("d/", b"renamed away", **{layout.TOMBSTONE: "1"})
    async with trio.open_nursery() as nursery:
        gate = a.controls.hold("head")
        nursery.start_soon(lambda: a.setattr("d", uid=5))
        await gate.entered.wait()
        again = a.controls.hold("head")
        gate.open()
        await again.entered.wait()
        await foreign.put("d/", mode="16832")
        again.open()
    await both_are_there(a)


async def test_two_nodes_that_change_a_directory_at_once_both_have_their_way(a: Node, b: Node) -> None:
    await a.mkdir("d", 0o755)
    await b.stat("d")
    gate = b.controls.hold("head")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: b.setattr("d", uid=5))
        await gate.entered.wait()
        await a.setattr("d", mode=0o700)
        gate.open()
    await both_are_there(a)


async def test_an_xattr_that_a_directory_has_no_room_for_is_not_there_afterwards(a: Node) -> None:
    ino = (await a.mkdir("d")).ino
    await fails(errno.ENOSPC, a.fs.setxattr(ino, b"user.x", b"x" * 2048))
    assert await a.fs.listxattr(ino) == []
    await a.fs.setattr(ino, AttrChange(mode=0o700), None, USER)


async def test_an_xattr_that_an_open_file_has_no_room_for_is_not_there_afterwards(a: Node) -> None:
    fh = await a.create("f")
    await a.fs.write(fh, 0, b"x")
    ino = (await a.stat("f")).ino
    await fails(errno.ENOSPC, a.fs.setxattr(ino, b"user.x", b"x" * 2048))
    assert await a.fs.listxattr(ino) == []
    await a.close(fh)


async def test_a_symlink_that_is_replaced_while_it_is_read_shows_its_new_target_afterwards(a: Node, b: Node) -> None:
    await a.symlink("s", b"old")
    ino = (await b.stat("s")).ino
    gate = b.controls.hold_reply("get")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.fs.readlink, ino)
        await gate.entered.wait()
        await a.symlink("t", b"new")
        await a.rename("t", "s")
        opened = await b.fs.open(ino, os.O_RDONLY)  # as any HEAD of it would
        gate.open()
    await b.fs.release(opened.fh)
    assert await b.fs.readlink(ino) == b"new"


async def test_a_listing_that_failed_in_the_middle_goes_on_where_it_was(
    a: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE_ROWS", 2)
    for name in ("a", "b", "c", "d", "e"):
        await a.write(name, b"")
    await a.link("c", "d2")
    await a.remount()
    fh = await a.fs.opendir((await a.stat("")).ino)
    found = list(await a.fs.readdir(fh, 0))
    a.controls.fail_next("get")
    a.controls.fail_next("head")
    with pytest.raises(Unavailable):  # noqa: PT012  # at one of the calls
        while rows := await a.fs.readdir(fh, found[-1].cursor):
            found += rows
    while rows := await a.fs.readdir(fh, found[-1].cursor):
        found += rows
    assert [row.name for row in found] == [b"a", b"b", b"c", b"d", b"d2", b"e"]


async def test_an_open_directory_that_is_renamed_is_listed_to_its_end(a: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_ROWS", 3)
    await a.mkdir("m")
    await a.mkdir("m/b")
    names = ["a", "b", "c", "d", "e", "f", "g"]
    for name in names:
        if name != "b":
            await a.write(f"m/{name}", b"")
    fh = await a.fs.opendir((await a.stat("m")).ino)
    found = list(await a.fs.readdir(fh, 0))
    await a.rename("m", "k")
    while rows := await a.fs.readdir(fh, found[-1].cursor):
        for row in rows:
            a.fs.remember(row.entry.attr.ino)
        found += rows
    assert [row.name.decode() for row in found] == names
    for row in found[-2:]:
        assert row.entry.attr.ino == (await a.stat(f"k/{row.name.decode()}")).ino


async def test_a_reader_of_an_old_version_that_closes_takes_no_times_from_a_writer(a: Node, b: Node) -> None:
    await a.write("f", b"old")
    reader = await a.open("f")
    await b.write("f", b"new")
    writer = await a.open("f", os.O_WRONLY)
    await a.fs.write(writer.fh, 0, b"1")
    await trio.sleep(0.01)
    await a.fs.write(writer.fh, 1, b"2")
    ino = (await a.stat("f")).ino
    told = (await a.fs.getattr(ino)).attr.mtime_ns
    await a.close(reader.fh)
    await a.close(writer.fh)
    await a.remount()
    assert (await a.stat("f")).mtime_ns == told


async def test_an_answer_that_a_newer_one_has_overtaken_is_asked_for_again(a: Node, b: Node) -> None:
    await a.write("f", b"longer than the next")
    ino = (await b.stat("f")).ino
    opened: list[Fh] = []

    async def open_() -> None:
        opened.append((await b.fs.open(ino, os.O_RDONLY)).fh)

    gate = b.controls.hold_reply("fetch")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_)
        await gate.entered.wait()
        await a.write("f", b"short")
        other = await b.fs.open(ino, os.O_RDONLY)
        gate.open()
    assert await b.read_handle(opened[0]) == b"short"  # the kernel cuts at the newer length
    await b.fs.release(other.fh)


async def test_a_length_that_no_object_can_have_is_refused(a: Node) -> None:
    fh = await a.create("f", os.O_RDWR)
    ino = (await a.stat("f")).ino
    await fails(errno.EFBIG, a.fs.setattr(ino, AttrChange(size=1 << 62), fh, USER))
    await a.close(fh)


async def test_a_chmod_of_what_a_failed_removal_has_discarded_is_not_silently_lost(a: Node) -> None:
    await a.write("f", b"text")
    fh = await a.open("f", os.O_RDWR)
    a.controls.fail_next("delete")
    await fails(errno.EIO, a.unlink("f"))
    ino = (await a.stat("f")).ino
    await fails(errno.ESTALE, a.fs.setattr(ino, AttrChange(size=1), fh.fh, USER))
    await a.fs.setattr(ino, AttrChange(mode=0o600), fh.fh, USER)
    await a.remount()
    assert stat.S_IMODE((await a.stat("f")).mode) == 0o600


async def test_after_a_conflict_the_first_open_drops_the_pages_of_what_lost(a: Node, b: Node) -> None:
    await a.write("f", b"base")
    writer = await a.open("f", os.O_RDWR)
    await b.write("f", b"won")
    await a.fs.write(writer.fh, 0, b"lost")
    await fails(errno.ESTALE, a.fs.flush(writer.fh))
    await a.fs.release(writer.fh)
    ino = (await a.stat("f")).ino
    first, second = await a.fs.open(ino, os.O_RDONLY), await a.fs.open(ino, os.O_RDONLY)
    assert (first.keep_cache, first.changed) == (False, True)
    assert second.keep_cache


async def test_a_name_that_comes_back_has_the_pages_of_its_former_file_dropped(a: Node, b: Node) -> None:
    await a.write("f", b"old")
    assert await b.read("f") == b"old"
    ino = (await b.stat("f")).ino
    await a.unlink("f")
    await fails(errno.ESTALE, b.fs.open(ino, os.O_RDONLY))
    await a.write("f", b"new")
    assert (await b.stat("f")).ino == ino
    first, second = await b.fs.open(ino, os.O_RDONLY), await b.fs.open(ino, os.O_RDONLY)
    assert (first.keep_cache, first.changed) == (False, True)
    assert second.keep_cache
