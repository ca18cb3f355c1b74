"""Names that go or move while something fails, or while another node is at them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import trio
import trio.testing

from s3vol.errors import PosixError, S3volError, Unavailable
from s3vol.fs.looks import LOOK_AGE_S
from s3vol.store.fault import FaultStore, Gate, _Fault
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.store.retry import RetryStore
from s3vol.types import Fh
from tests.fs.conftest import Nodes
from tests.fs.rig import USER, Foreign, Node, fails


async def _write_and_flush(node: Node, fh: Fh) -> None:
    await node.fs.write(fh, 0, b"new")
    await node.fs.flush(fh)


async def test_a_rename_that_fails_keeps_what_was_acknowledged_at_its_target(nodes: Nodes, foreign: Foreign) -> None:
    a = await nodes("a", close_remote=False)
    await foreign.put("f", b"source")
    await foreign.put("g", b"old")
    await a.write("g", b"acknowledged")
    a.controls.fail_next("get")
    await fails(errno.EIO, a.rename("f", "g"))
    assert await a.read("g") == b"acknowledged"
    await a.fs.flush_path(None, lambda _: None)
    assert await foreign.body("g") == b"acknowledged"


async def test_a_writer_of_a_file_that_a_failed_rename_should_have_replaced_loses_nothing_silently(
    a: Node, foreign: Foreign
) -> None:
    await foreign.put("f", b"source")
    await foreign.put("g", b"old")
    writer = await a.open("g", os.O_WRONLY)
    a.controls.fail_next("get")
    await fails(errno.EIO, a.rename("f", "g"))
    await fails(errno.ESTALE, _write_and_flush(a, writer.fh))
    await a.fs.release(writer.fh)
    assert await a.read("g") == b"old"


async def test_a_writer_of_a_file_that_could_not_be_unlinked_loses_nothing_silently(a: Node, foreign: Foreign) -> None:
    await foreign.put("g", b"old")
    writer = await a.open("g", os.O_WRONLY)
    a.controls.fail_next("delete")
    await fails(errno.EIO, a.unlink("g"))
    await fails(errno.ESTALE, _write_and_flush(a, writer.fh))
    await a.fs.release(writer.fh)


async def test_a_chmod_by_another_node_a_moment_ago_goes_with_the_rename(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"content")
    await a.read("f")
    await fails(errno.ENOENT, a.stat("g"))
    await b.setattr("f", mode=0o600)
    await a.rename("f", "g")
    assert (await b.stat("g")).mode & 0o777 == 0o600


async def test_an_unlink_does_not_take_a_tombstone_away_whose_delete_is_still_to_come(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await b.write("f", b"old")
    await a.read("f")
    await trio.sleep(2 * LOOK_AGE_S)
    gate = b.controls.hold("delete")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.rename, "f", "g")
        await gate.entered.wait()
        with suppress(PosixError):  # ENOENT would be right as well
            await a.unlink("f")
        nursery.start_soon(a.write, "f", b"new")
        await trio.sleep(0.5)
        gate.open()
    assert await foreign.body("f") == b"new"
    assert await foreign.body("g") == b"old"


async def test_a_tombstone_is_not_deleted_after_others_may_have_taken_it_over(
    nodes: Nodes, b: Node, bucket: MemoryBucket, foreign: Foreign, autojump_clock: object
) -> None:
    inner = FaultStore(MemoryStore(bucket))
    a = await nodes("a", RetryStore(inner))
    await a.write("f", b"old")
    gate = inner.controls.hold("delete")  # the first attempt hangs, and is cut after 30 s
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await gate.entered.wait()
        await b.write("f", b"new")
        assert await foreign.body("f") == b"new"
    assert await foreign.body("f") == b"new"
    assert await foreign.body("g") == b"old"


async def test_a_new_file_below_the_old_name_does_not_replace_the_one_that_was_moved(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await a.mkdir("d")
    await a.write("d/f", b"first")
    a.controls.hold("delete").open()  # of the tombstone
    gate = a.controls.hold("delete")  # of the marker
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "d", "n")
        await gate.entered.wait()
        await b.write("d/f", b"second")
        gate.open()
    bodies = [await foreign.body(key) for key in foreign.objects() if not key.endswith("/")]
    assert sorted(bodies) == [b"first", b"second"]
    assert await foreign.body("n/f") == b"first"


async def test_a_name_that_another_node_is_making_a_link_of_is_not_renamed_with_its_token(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await b.write("f", b"content")
    await a.read("f")
    await fails(errno.ENOENT, a.stat("g"))
    copied = a.controls.hold_reply("put")  # of g; the tombstone comes next
    for _ in range(3):  # of b: record, body, stub at f
        b.controls.hold("put").open()
    second = Gate()  # of the stub at h, which cannot be made
    b.controls._queue("put").append(_Fault(before=Unavailable("broken"), gate_before=second))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "g")
        await copied.entered.wait()
        nursery.start_soon(fails, errno.EIO, b.link("f", "h"))
        await second.entered.wait()
        copied.open()
        await trio.sleep(0.5)
        second.open()
    assert foreign.objects() == ["g"]
    assert await b.read("g") == b"content"


async def test_what_is_created_while_its_directory_is_renamed_is_not_put_under_the_old_name(
    a: Node, foreign: Foreign
) -> None:
    await a.mkdir("d")
    await a.write("d/f", b"first")
    parent = (await a.stat("d")).ino
    gate = a.controls.hold("delete")
    made: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "d", "n")
        await gate.entered.wait()

        async def make() -> None:
            try:
                opened, _ = await a.fs.create(parent, b"x", 0o100644, os.O_CREAT | os.O_WRONLY, USER)
            except S3volError as error:
                made.append(errno.errorcode[error.errno])
            else:
                await a.close(opened.fh)
                made.append("made")

        nursery.start_soon(make)
        await trio.testing.wait_all_tasks_blocked(0.01)
        gate.open()
    assert (made, foreign.objects()) in ((["ESTALE"], ["n/", "n/f"]), (["made"], ["n/", "n/f", "n/x"]))


async def test_an_unlink_that_the_endpoint_did_not_hear_of_keeps_what_was_acknowledged(
    nodes: Nodes, foreign: Foreign
) -> None:
    a = await nodes("a", close_remote=False)
    await foreign.put("g", b"old")
    await a.write("g", b"acknowledged")
    parent, name = await a.parent("g")
    a.controls.down = True
    await fails(errno.EIO, a.fs.unlink(parent, name))
    a.controls.down = False
    assert await a.read("g") == b"acknowledged"


async def test_a_pending_file_below_the_new_name_is_not_lost_when_a_rename_is_finished_later(
    nodes: Nodes, foreign: Foreign
) -> None:
    a = await nodes("a", close_remote=False)
    await foreign.put("d/f", b"one")
    a.controls.fail_next("get")
    await fails(errno.EIO, a.rename("d", "n"))
    await a.write("d/x", b"below the old")
    await a.write("n/x", b"below the new")
    with trio.fail_after(5):
        await a.fs._upkeep._finish_renames()
    await a.fs.flush_path(None, lambda _: None)
    bodies = [await foreign.body(key) for key in foreign.objects() if not key.endswith("/")]
    assert sorted(bodies) == [b"below the new", b"below the old", b"one"], foreign.objects()
    assert await foreign.body("n/x") == b"below the new"
