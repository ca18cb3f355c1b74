"""A rename that was begun by a process that died."""

from __future__ import annotations

import errno

import pytest
import trio

from s3vol import failpoints
from s3vol.errors import Unavailable
from s3vol.failpoints import Point
from tests.fs.crashes import crash_at, crashing
from tests.fs.rig import MOVED, Foreign, Node, fails, tree


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


async def test_a_file_made_below_the_old_name_after_the_crash_is_not_taken_for_the_one_that_was_moved(
    a: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a.mkdir("d")
    await a.write("d/f", b"moved")
    with monkeypatch.context() as patch:
        crash_at(patch, Point.RENAME_DIR_AFTER_TOMBSTONE)
        await crashing(lambda: a.rename("d", "n"))
    await foreign.store.delete("d/f")  # the DELETE of a rename may arrive after its process has died
    await foreign.put("d/f", b"another")
    await a.remount()
    found = {key: await foreign.body(key) for key in foreign.objects() if key.startswith("n/f")}
    assert found.pop("n/f") == b"moved"
    assert list(found.values()) == [b"another"]
    assert a.health.counts["rename_conflicts"] == 1
    assert not [key for key in foreign.objects() if key.startswith("d/")]


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
