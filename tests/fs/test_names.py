"""Names that come and go: create, mkdir, symlink, unlink, rmdir, and what foreign buckets look like."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio
import trio.testing

from s3vol import layout
from s3vol.cache.base import FIRST_BYTES
from s3vol.errors import Unavailable
from s3vol.fs.listing import PAGE_ROWS
from s3vol.store.base import Capabilities
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.types import ROOT_INO, Caller
from tests.fs.conftest import Nodes
from tests.fs.rig import USER, Foreign, Node, fails


async def test_a_directory_is_a_marker_object(a: Node, b: Node, foreign: Foreign) -> None:
    made = await a.mkdir("d", 0o750)
    assert foreign.objects() == ["d/"]
    info = await foreign.store.head("d/")
    assert (info.size, info.content_type) == (0, "application/x-directory")
    found = await b.stat("d")
    assert (found.ino, found.mode, found.uid) == (made.ino, stat.S_IFDIR | 0o750, USER.uid)


async def test_mkdir_is_exclusive_among_nodes(a: Node, b: Node) -> None:
    await fails(errno.ENOENT, b.stat("d"))
    await a.mkdir("d")
    parent, name = await b.parent("d")
    await fails(errno.EEXIST, b.fs.mkdir(parent, name, 0o755, USER))


async def test_a_mkdir_whose_reply_was_lost_is_our_own(a: Node, foreign: Foreign) -> None:
    a.controls.apply_then_fail("put", Unavailable("reply lost"))
    await fails(errno.EIO, a.mkdir("d"))
    assert foreign.objects() == ["d/"]
    assert stat.S_ISDIR((await a.stat("d")).mode)


async def test_a_prefix_without_a_marker_is_a_directory(a: Node, foreign: Foreign) -> None:
    await foreign.put("d/e/f", b"x")
    assert await a.names() == ["d"]
    assert await a.names("d") == ["e"]
    assert await a.read("d/e/f") == b"x"


async def test_an_implicit_directory_survives_its_last_file(a: Node, b: Node, foreign: Foreign) -> None:
    await foreign.put("d/f", b"x")
    await a.unlink("d/f")
    assert foreign.objects() == ["d/"]
    assert await b.names("d") == []


async def test_symlinks_are_objects_whose_body_is_the_target(a: Node, b: Node, foreign: Foreign) -> None:
    made = await a.symlink("s", b"../x y")
    assert await foreign.body("s") == b"../x y"
    found = await b.stat("s")
    assert (found.mode, found.size, found.ino) == (stat.S_IFLNK | 0o777, 6, made.ino)
    assert await b.fs.readlink(found.ino) == b"../x y"


async def test_a_symlink_that_was_replaced_elsewhere_shows_its_new_target(a: Node, b: Node) -> None:
    await a.symlink("s", b"one")
    assert await b.fs.readlink((await b.stat("s")).ino) == b"one"
    await a.symlink("t", b"two")
    await a.rename("t", "s")
    fresh = await b.fs.lookup(ROOT_INO, b"s")
    opened = await b.fs.open(fresh.attr.ino, os.O_RDONLY)  # asks; the lookup may be a second old
    await b.fs.release(opened.fh)
    assert await b.fs.readlink(fresh.attr.ino) == b"two"


@pytest.mark.parametrize("kind_bits", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG])
async def test_special_files_are_empty_objects_with_their_type(a: Node, b: Node, kind_bits: int) -> None:
    await a.fs.mknod(ROOT_INO, b"n", kind_bits | 0o600, 0x0103, USER)
    found = await b.stat("n")
    assert found.mode == kind_bits | 0o600
    assert found.rdev == (0x0103 if kind_bits == stat.S_IFCHR else 0)
    again, _ = await b.parent("n")
    await fails(errno.EEXIST, b.fs.mknod(again, b"n", kind_bits | 0o600, 0, USER))


async def test_a_setgid_directory_gives_its_group(a: Node) -> None:
    await a.mkdir("d", 0o2775, Caller(0, 50))
    await a.setattr("d", mode=0o2775)
    await a.close(await a.create("d/f", mode=0o644))
    inner = await a.mkdir("d/e")
    assert (await a.stat("d/f")).gid == 50
    assert (inner.gid, bool(inner.mode & stat.S_ISGID)) == (50, True)


async def test_rmdir_refuses_what_is_not_empty_here_or_in_the_bucket(a: Node, b: Node, foreign: Foreign) -> None:
    await a.mkdir("d")
    fh = await a.create("d/pending")
    await fails(errno.ENOTEMPTY, a.rmdir("d"))
    await a.close(fh)
    await a.unlink("d/pending")
    await foreign.put("d/theirs", b"")
    await fails(errno.ENOTEMPTY, a.rmdir("d"))
    await b.unlink("d/theirs")
    await a.rmdir("d")
    assert foreign.objects() == []


async def test_rmdir_removes_tombstones_that_were_left_behind(
    a: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await a.mkdir("d")
    await foreign.put("d/old", b"n", **{layout.TOMBSTONE: "n"})
    await a.rmdir("d")
    assert foreign.objects() == []


async def test_a_removed_directory_is_empty_for_who_has_it_open(a: Node) -> None:
    await a.mkdir("d")
    fh = await a.fs.opendir((await a.stat("d")).ino)
    await a.rmdir("d")
    assert list(await a.fs.readdir(fh, 0)) == []
    await a.fs.releasedir(fh)


async def test_a_file_that_was_never_published_leaves_no_trace(a: Node, foreign: Foreign) -> None:
    fh = await a.create("f")
    await a.fs.write(fh, 0, b"x")
    await a.unlink("f")
    assert await a.read_handle(fh) == b"x"
    await a.close(fh)
    assert foreign.objects(own=True) == []


async def test_an_unlinked_file_is_read_and_written_on_by_its_handles(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"remote bytes")
    opened = await a.open("f", os.O_RDWR)
    await a.unlink("f")
    assert foreign.objects() == []
    await fails(errno.ENOENT, a.stat("f"))
    assert await a.read_handle(opened.fh) == b"remote bytes"
    await a.fs.write(opened.fh, 0, b"R")
    assert await a.read_handle(opened.fh) == b"Remote bytes"
    await a.close(opened.fh)
    assert foreign.objects(own=True) == []


async def test_an_unlinked_file_with_unpublished_changes_keeps_all_its_bytes(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await b.write("f", b"remote bytes")
    ino = (await a.stat("f")).ino
    opened = await a.fs.open(ino, os.O_RDWR)
    await a.fs.write(opened.fh, 12, b"!")
    await a.unlink("f")
    assert await a.read_handle(opened.fh) == b"remote bytes!"
    assert (await a.fs.getattr(ino)).attr.nlink == 0
    await a.close(opened.fh)
    assert foreign.objects(own=True) == []


async def test_what_a_crash_left_in_orphans_is_removed_at_the_next_mount(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"remote bytes" * FIRST_BYTES)  # too many to be here when it is opened
    await a.open("f")
    await a.unlink("f")
    assert [key for key in foreign.objects(own=True) if key.startswith(layout.ORPHANS)] != []
    await a.remount()
    assert foreign.objects(own=True) == []


async def test_a_name_can_be_used_again_while_the_old_file_is_open(a: Node) -> None:
    await a.write("f", b"old")
    old = await a.open("f")
    await a.unlink("f")
    await a.write("f", b"new")
    assert await a.read_handle(old.fh) == b"old"
    assert await a.read("f") == b"new"


async def test_foreign_keys_that_are_no_path_are_counted_once_and_not_shown(a: Node, foreign: Foreign) -> None:
    for key in ("d//x", "d/../y", "d/ok"):
        foreign.put_any(key)
    assert await a.names("d") == ["ok"]
    assert await a.names("d") == ["ok"]
    assert a.health.counts["foreign_keys"] == 2


async def test_an_object_beside_a_directory_of_its_name_is_counted_and_the_directory_shown(
    a: Node, foreign: Foreign
) -> None:
    await foreign.put("d", b"hides")
    await foreign.put("d/x", b"")
    await foreign.put("d-e", b"")
    assert await a.names() == ["d-e", "d"]
    assert stat.S_ISDIR((await a.stat("d")).mode)
    assert a.health.counts["foreign_keys"] == 1


async def test_lookups_in_an_unknown_directory_cost_one_listing(a: Node, b: Node) -> None:
    for number in range(20):
        await a.write(f"f{number}", b"x")
    for number in range(20):
        await b.stat(f"f{number}")
    calls = b.controls.calls
    assert (calls["list"], calls["head"]) == (1, 1)  # the head is for the root's attributes


@pytest.mark.parametrize(("names", "questions"), [(10, 2), (100, 8)])
async def test_a_second_walk_by_names_lists_a_small_directory_soon(
    a: Node, b: Node, autojump_clock: trio.testing.MockClock, names: int, questions: int
) -> None:
    for number in range(names):
        await a.write(f"f{number}", b"x")
    await b.names()
    parent = await b.parent("f0")
    await trio.sleep(5)
    before = b.controls.calls.copy()
    for number in range(names):
        await b.fs.lookup(parent[0], b"f%d" % number)
    assert b.controls.calls - before == {"list": questions}


async def test_absence_is_asked_for_each_time_and_a_create_uses_the_lookups_answer(a: Node) -> None:
    await fails(errno.ENOENT, a.stat("f"))
    before = dict(a.controls.calls)
    assert (before["list"], before["head"]) == (1, 1)  # the listing says which names are directories, for a while
    await a.create("f")
    after = a.controls.calls
    assert (after["list"], after["put"]) == (before["list"], 0)


async def test_a_name_in_a_large_directory_is_asked_for_without_walking_through_its_neighbours(
    a: Node, foreign: Foreign
) -> None:
    for number in range(PAGE_ROWS + 1):
        await foreign.put(f"d/{number:04}", b"")
    await fails(errno.ENOENT, a.stat("d/none"))  # lists the directory first
    before = dict(a.controls.calls)
    await fails(errno.ENOENT, a.stat("d/none"))
    after = a.controls.calls
    assert (after["head"] - before["head"], after["list"] - before["list"]) == (1, 1)
    await foreign.put("d/none/file", b"")
    assert stat.S_ISDIR((await a.stat("d/none")).mode)


async def test_a_directory_that_is_being_filled_is_large_after_a_page_of_names_that_were_not_there(a: Node) -> None:
    await a.mkdir("d")
    for number in range(PAGE_ROWS):
        await fails(errno.ENOENT, a.stat(f"d/{number}"))
    before = dict(a.controls.calls)
    await fails(errno.ENOENT, a.stat("d/none"))
    assert a.controls.calls["head"] - before["head"] == 1


async def test_a_store_that_lists_no_metadata_is_asked_for_it(nodes: Nodes, bucket: MemoryBucket, a: Node) -> None:
    await a.symlink("s", b"t")
    await a.write("f", b"x")
    node: Node = await nodes("c", MemoryStore(bucket, capabilities=Capabilities(list_metadata=False)))
    assert [(name, stat.S_IFMT(attr.mode)) for name, attr in await node.rows()] == [
        ("f", stat.S_IFREG),
        ("s", stat.S_IFLNK),
    ]
    heads = node.controls.calls["head"]
    await node.rows()
    assert node.controls.calls["head"] == heads  # known by ETag and time for as long as attributes are believed


async def test_a_file_that_was_never_published_is_renamed_without_a_request(nodes: Nodes, foreign: Foreign) -> None:
    a: Node = await nodes("a", close_remote=False)
    await a.write("f", b"abc")
    await fails(errno.ENOENT, a.stat("g"))  # the lookup that the kernel sends before
    before = a.controls.calls.total()
    await a.rename("f", "g")
    assert a.controls.calls.total() == before
    assert foreign.objects() == []
    assert await a.read("g") == b"abc"
