"""rename(2) of a file, and what a rename is."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio

from s3vol.errors import PosixError, Unavailable
from s3vol.fs.lookup import Found
from s3vol.fs.rename import RENAME_NOREPLACE, Kind, plan
from s3vol.types import MIB, ObjectInfo
from tests.fs.conftest import Nodes
from tests.fs.rig import Foreign, Node, fails

FILE = Found("a", False, 0.0, ObjectInfo("a", 1, "e", 0, {}))
FOLDER = Found("a", True, 0.0)


@pytest.mark.parametrize(
    ("source", "target", "old", "new", "flags", "wanted"),
    [
        (FILE, None, "a", "b", 0, Kind.FILE),
        (FILE, FILE, "a", "b", 0, Kind.FILE),
        (FILE, FILE, "a", "a", 0, Kind.NOTHING),
        (FILE, FILE, "a", "b", RENAME_NOREPLACE, errno.EEXIST),
        (FILE, None, "a", "b", RENAME_NOREPLACE, Kind.FILE),
        (FILE, FOLDER, "a", "b", 0, errno.EISDIR),
        (FOLDER, FILE, "a", "b", 0, errno.ENOTDIR),
        (FOLDER, FOLDER, "a", "b", 0, Kind.TREE),
        (FOLDER, None, "a", "a/b", 0, errno.EINVAL),
        (FOLDER, None, "a", "ab", 0, Kind.TREE),
        (None, FILE, "a", "b", 0, errno.ENOENT),
        (FILE, FILE, "a", "b", 2, errno.EINVAL),
    ],
)
def test_what_a_rename_is(
    source: Found | None, target: Found | None, old: str, new: str, flags: int, wanted: Kind | int
) -> None:
    if isinstance(wanted, Kind):
        assert plan(source, target, old, new, flags) is wanted
    else:
        with pytest.raises(PosixError) as caught:
            plan(source, target, old, new, flags)
        assert caught.value.errno == wanted


async def test_a_small_file_is_renamed_by_four_requests_behind_the_lookups_of_its_names(a: Node) -> None:
    await a.write("f", b"content")
    await a.read_handle((await a.open("f")).fh)
    await fails(errno.ENOENT, a.stat("g"))
    before = a.controls.calls.copy()
    await a.rename("f", "g")
    assert a.controls.calls - before == {"put": 2, "head": 1, "delete": 1}  # the copy, its attributes, the tombstone
    assert await a.read("g") == b"content"


async def test_a_file_moves_with_its_bytes_number_and_attributes(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    before = await a.setattr("f", mode=0o640, mtime_ns=5)
    await a.rename("f", "g")
    after = await a.stat("g")
    assert (after.ino, after.mode, after.mtime_ns, after.size) == (before.ino, before.mode, 5, 3)
    assert after.ctime_ns >= before.ctime_ns
    assert foreign.objects() == ["g"]
    assert await b.read("g") == b"abc"
    await fails(errno.ENOENT, a.stat("f"))


async def test_a_foreign_file_keeps_its_mtime(a: Node, b: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"abc")
    modified_ns = (await foreign.store.head("f")).modified_ns
    foreign.store.bucket.remove("f")
    await foreign.put("f", b"abc")
    await a.rename("f", "g")
    assert abs((await b.stat("g")).mtime_ns - modified_ns) <= 2 * 10**9


async def test_the_replaced_file_is_gone_and_its_readers_read_on(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"new")
    await b.write("g", b"replaced")
    old = await a.open("g")
    await a.rename("f", "g")
    assert await a.read_handle(old.fh) == b"replaced"
    assert await a.read("g") == b"new"
    assert (await a.fs.getattr((await a.stat("g")).ino)).attr.nlink == 1
    await a.close(old.fh)
    assert foreign.objects(own=True) == ["g"]


async def test_open_handles_go_with_the_file(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"0123456789")
    opened = await a.open("f", os.O_RDWR)
    await a.rename("f", "g")
    assert await a.read_handle(opened.fh) == b"0123456789"
    await a.fs.write(opened.fh, 0, b"X")
    await a.close(opened.fh)
    assert foreign.objects() == ["g"]
    assert await b.read("g") == b"X123456789"


async def test_a_file_that_was_never_published_moves_without_a_request_for_it(a: Node, foreign: Foreign) -> None:
    fh = await a.create("f")
    await a.fs.write(fh, 0, b"abc")
    await a.rename("f", "g")
    assert foreign.objects() == []
    assert (await a.stat("g")).size == 3
    await a.close(fh)
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"abc"


async def test_a_pending_file_replaces_a_published_one(a: Node, b: Node) -> None:
    await b.write("g", b"old")
    fh = await a.create("f")
    await a.fs.write(fh, 0, b"abc")
    await a.rename("f", "g")
    assert await b.read("g") == b"old"
    await a.close(fh)
    assert await b.read("g") == b"abc"


async def test_a_file_with_unpublished_changes_is_published_first(nodes: Nodes, b: Node) -> None:
    a: Node = await nodes("a", close_remote=False)
    await b.write("f", b"old")
    opened = await a.open("f", os.O_RDWR)
    await a.fs.write(opened.fh, 0, b"new")
    await a.close(opened.fh)
    await a.rename("f", "g")
    assert await b.read("g") == b"new"


async def test_replacing_a_file_with_pending_changes_drops_them(nodes: Nodes, b: Node, foreign: Foreign) -> None:
    a: Node = await nodes("a", close_remote=False)
    await a.write("g", b"never published")
    await b.write("f", b"abc")
    await a.rename("f", "g")
    await a.fs.flush_path(None, lambda _: None)
    assert foreign.objects() == ["g"]
    assert await b.read("g") == b"abc"


async def test_large_files_are_copied_by_the_server(a: Node, b: Node) -> None:
    body = os.urandom(9 * MIB)
    await b.write("f", body)
    await a.rename("f", "g")
    assert (a.controls.calls["copy"], a.controls.calls["get"]) == (1, 0)
    opened = await b.open("g")
    assert bytes(await b.fs.read(opened.fh, 0, len(body))) == body


async def test_a_tombstone_that_cannot_be_deleted_is_removed_at_the_next_mount(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    a.controls.fail_next("delete", Unavailable("down"))
    await a.rename("f", "g")
    assert foreign.objects() == ["f", "g"]
    assert await a.names() == ["g"]
    await a.remount()
    assert foreign.objects() == ["g"]
    assert await a.read("g") == b"abc"


async def test_a_failed_rename_leaves_the_file_where_it_was(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    opened = await a.open("f", os.O_RDWR)
    a.controls.fail_next("put", Unavailable("down"))
    await fails(errno.EIO, a.rename("f", "g"))
    await a.fs.write(opened.fh, 0, b"X")
    await a.close(opened.fh)
    assert await a.read("f") == b"Xbc"
    assert foreign.objects() == ["f"]


async def test_a_rename_whose_replies_are_lost_is_seen_to_have_happened(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    a.controls.apply_then_fail("put", Unavailable("reply lost"))
    await fails(errno.EIO, a.rename("f", "g"))
    await a.rename("f", "g")
    assert foreign.objects() == ["g"]


async def test_symlinks_and_special_files_are_renamed_as_what_they_are(a: Node, b: Node) -> None:
    await a.symlink("s", b"target")
    await a.rename("s", "t")
    found = await b.stat("t")
    assert stat.S_ISLNK(found.mode)
    assert await b.fs.readlink(found.ino) == b"target"


async def test_a_writer_waits_while_its_file_is_renamed_and_loses_nothing(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    opened = await a.open("f", os.O_RDWR)
    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        nursery.start_soon(a.fs.write, opened.fh, 0, b"X")
        gate.open()
    await a.close(opened.fh)
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"Xbc"


# Directories
