"""rename(2): files and directories, races with other nodes, and crashes between the steps."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio

from s3vol import failpoints, layout
from s3vol.errors import PosixError, Unavailable
from s3vol.failpoints import Point
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


async def test_a_small_file_is_renamed_by_four_requests_behind_the_lookup_of_its_new_name(a: Node) -> None:
    await a.write("f", b"content")
    await a.read_handle((await a.open("f")).fh)
    await fails(errno.ENOENT, a.stat("g"))
    before = a.controls.calls.copy()
    await a.rename("f", "g")
    assert a.controls.calls - before == {"list": 1, "put": 2, "delete": 1}
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


async def test_noreplace_holds_against_a_file_that_appears_in_between(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"mine")
    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.EEXIST, a.rename("f", "g", RENAME_NOREPLACE))
        await gate.entered.wait()
        await b.write("g", b"theirs")
        gate.open()
    assert await foreign.body("g") == b"theirs"
    assert await foreign.body("f") == b"mine"


async def test_rename_replaces_what_appears_in_between(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"mine")
    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await b.write("g", b"theirs")
        gate.open()
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"mine"


async def test_a_publish_between_copy_and_tombstone_is_carried_along(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"old")
    gate = a.controls.hold_reply("put")  # the copy is there, its reply waits
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await b.write("f", b"published in between")
        gate.open()
    assert foreign.objects() == ["g"]
    assert await foreign.body("g") == b"published in between"
    assert await a.read("g") == b"published in between"


async def test_of_two_nodes_that_rename_one_file_one_wins(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    gate = a.controls.hold_reply("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.ENOENT, a.rename("f", "g"))
        await gate.entered.wait()
        await b.rename("f", "h")
        gate.open()
    assert foreign.objects() == ["h"]


@pytest.mark.parametrize("_", range(5))
async def test_renames_in_opposite_directions_end(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object, _: int
) -> None:
    await a.write("f", b"one")
    await a.write("g", b"two")
    gate = a.controls.hold_reply("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        nursery.start_soon(b.rename, "g", "f")
        gate.open()
    (left,) = foreign.objects()
    assert await foreign.body(left) in (b"one", b"two")


async def test_nobody_creates_over_the_tombstone_of_a_rename(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await a.write("f", b"abc")
    gate = a.controls.hold("delete")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await fails(errno.ENOENT, b.stat("f"))
        nursery.start_soon(b.write, "f", b"new")
        await trio.sleep(1)
        assert layout.is_tombstone(await foreign.store.head("f"))
        gate.open()
    assert await foreign.body("f") == b"new"
    assert await foreign.body("g") == b"abc"


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


async def tree(node: Node, top: str = "d") -> None:
    """A small tree: d/f, d/e/g, an empty directory d/x, and a symlink."""
    await node.mkdir(top, 0o750)
    await node.mkdir(f"{top}/e")
    await node.mkdir(f"{top}/x")
    await node.write(f"{top}/f", b"one")
    await node.write(f"{top}/e/g", b"two")
    await node.symlink(f"{top}/s", b"f")


MOVED = ["n/", "n/e/", "n/e/g", "n/f", "n/s", "n/x/"]


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


class Crash(BaseException):
    """The process died here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
    """The next hit of `point` kills, as far as this test is concerned."""

    def die(found: Point) -> None:
        if found is point:
            raise Crash

    for module in ("rename", "tree", "removal", "linking", "linkrename", "links"):
        monkeypatch.setattr(f"s3vol.fs.{module}.hit", die)


async def crashing(work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` up to its crash."""
    try:
        await work()
    except Crash:
        return
    except BaseExceptionGroup as group:
        _, others = group.split(Crash)
        if others is not None:
            raise
        return
    raise AssertionError("the crash point was not reached")


@pytest.mark.parametrize("point", [Point.RENAME_AFTER_COPY, Point.RENAME_AFTER_TOMBSTONE, Point.RENAME_AFTER_DELETE])
async def test_a_crash_in_a_files_rename_leaves_one_of_the_names_and_all_bytes(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    await a.write("f", b"abc")
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.rename("f", "g"))
    assert await b.read("g") == b"abc"
    if point is not Point.RENAME_AFTER_COPY:
        await fails(errno.ENOENT, b.stat("f"))
    await a.remount()
    await a.write("f", b"again")
    assert (await b.read("f"), await b.read("g")) == (b"again", b"abc")
    assert failpoints.Point(point.value) is point


@pytest.mark.parametrize("point", [Point.RENAME_DIR_AFTER_INTENT, Point.RENAME_DIR_AFTER_COPIES])
async def test_a_crash_in_a_directorys_rename_is_finished_at_the_next_mount(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    await tree(a)
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.rename("d", "n"))
    await b.remount()  # not yet: the intent is young, somebody may be at work
    assert "d/f" in foreign.objects()
    await a.remount()
    assert foreign.objects(own=True) == MOVED
    assert a.health.counts["renames_finished"] == 1
    assert await b.read("n/e/g") == b"two"


async def test_another_node_finishes_a_rename_that_was_left_behind(
    a: Node, b: Node, bucket: object, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tree(a)
    with monkeypatch.context() as patch:
        crash_at(patch, Point.RENAME_DIR_AFTER_COPIES)
        await crashing(lambda: a.rename("d", "n"))
    monkeypatch.setattr("s3vol.fs.intents.LEFT_BEHIND_S", -5.0)
    await b.remount()
    assert foreign.objects(own=True) == MOVED


async def test_a_directorys_rename_that_failed_is_finished_by_the_sweep(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await tree(a)
    a.controls.fail_next("get", Unavailable("down"))
    await fails(errno.EIO, a.rename("d", "n"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fs.run)
        await trio.sleep(90)
        nursery.cancel_scope.cancel()
    assert foreign.objects(own=True) == MOVED


async def test_a_crash_before_the_delete_of_an_unlink_leaves_the_file(
    a: Node, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a.write("f", b"abc")
    with monkeypatch.context() as patch:
        crash_at(patch, Point.UNLINK_BEFORE_DELETE)
        await crashing(lambda: a.unlink("f"))
    assert await b.read("f") == b"abc"


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
