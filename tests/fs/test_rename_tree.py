"""rename(2) of a directory."""

from __future__ import annotations

import errno
import os
import stat

import trio

from tests.fs.rig import MOVED, Foreign, Node, fails, tree


async def test_a_directory_moves_with_all_that_is_below(a: Node, b: Node, foreign: Foreign) -> None:
    await tree(a)
    top, inner = await a.stat("d"), await a.stat("d/e/g")
    await a.rename("d", "n")
    assert foreign.objects(own=True) == MOVED
    assert (await a.stat("n")).ino == top.ino
    assert (await a.stat("n/e/g")).ino == inner.ino
    assert stat.S_IMODE((await b.stat("n")).mode) == 0o750
    assert await b.read("n/e/g") == b"two"
    await fails(errno.ENOENT, a.stat("d"))
    await a.remount()
    assert (await a.stat("n/e/g")).ino == inner.ino


async def test_open_and_pending_files_go_with_their_directory(a: Node, b: Node, foreign: Foreign) -> None:
    await tree(b)
    opened = await a.open("d/e/g", os.O_RDWR)
    pending = await a.create("d/new")
    await a.fs.write(pending, 0, b"pending")
    await a.rename("d", "n")
    assert await a.read_handle(opened.fh) == b"two"
    await a.fs.write(opened.fh, 0, b"T")
    await a.close(opened.fh)
    await a.close(pending)
    assert foreign.objects(own=True) == sorted([*MOVED, "n/new"])
    assert (await b.read("n/e/g"), await b.read("n/new")) == (b"Two", b"pending")


async def test_an_empty_directory_is_replaced_and_a_full_one_is_not(a: Node, foreign: Foreign) -> None:
    await tree(a)
    await a.mkdir("n")
    await a.mkdir("full")
    await a.write("full/x", b"")
    await a.write("file", b"")
    await fails(errno.ENOTEMPTY, a.rename("d", "full"))
    await fails(errno.ENOTDIR, a.rename("d", "file"))
    await fails(errno.EISDIR, a.rename("file", "n"))
    await fails(errno.EINVAL, a.rename("d", "d/e/y"))
    await fails(errno.ENOTEMPTY, a.rename("d/e", "d"))
    await a.rename("d", "n")
    assert foreign.objects(own=True) == sorted([*MOVED, "file", "full/", "full/x"])


async def test_an_implicit_directory_is_a_real_one_afterwards(a: Node, b: Node, foreign: Foreign) -> None:
    await foreign.put("d/e/f", b"x")
    await a.rename("d/e", "n")
    assert foreign.objects() == ["d/", "n/", "n/f"]
    assert await b.names("d") == []


async def test_what_others_publish_below_the_old_name_meanwhile_is_carried_along(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await tree(a)
    gate = a.controls.hold("delete")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "d", "n")
        await gate.entered.wait()
        await foreign.put("d/late", b"late")
        gate.open()
    assert foreign.objects(own=True) == sorted([*MOVED, "n/late"])


async def test_what_others_put_under_the_new_name_meanwhile_is_not_overwritten(a: Node, foreign: Foreign) -> None:
    await tree(a)
    gate = a.controls.hold("put")  # of the intent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "d", "n")
        await gate.entered.wait()
        await foreign.put("n/f", b"theirs")
        gate.open()
    assert await foreign.body("n/f") == b"theirs"
    (kept,) = [key for key in foreign.objects() if "conflict" in key]
    assert await foreign.body(kept) == b"one"


async def test_bytes_that_another_tool_put_into_a_marker_survive_a_rename_and_a_chmod(
    a: Node, foreign: Foreign
) -> None:
    await foreign.put("d/", b"at the top")
    await foreign.put("d/sub/", b"below")
    await foreign.put("d/sub/f", b"file")
    await a.setattr("d", mode=0o700)
    await a.setattr("d/sub", mode=0o711)
    await a.rename("d", "e")
    assert await foreign.body("e/") == b"at the top"
    assert await foreign.body("e/sub/") == b"below"
    assert foreign.objects() == ["e/", "e/sub/", "e/sub/f"]
    assert stat.S_IMODE((await a.stat("e/sub")).mode) == 0o711
    assert stat.S_IMODE((await a.stat("e")).mode) == 0o700
