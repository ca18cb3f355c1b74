"""What one node sees of another: close-to-open, no lost update, no negative caching."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio

from s3vol import layout
from s3vol.cache.base import FIRST_BYTES
from s3vol.errors import Conflict, PosixError
from tests.fs.conftest import Nodes
from tests.fs.rig import USER, Foreign, Node, fails


async def test_what_is_closed_here_is_seen_at_the_next_open_there(a: Node, b: Node) -> None:
    await a.write("f", b"one")
    assert await b.read("f") == b"one"
    await a.write("f", b"other")
    assert await b.read("f") == b"other"


async def test_a_name_that_was_absent_a_moment_ago_is_found(a: Node, b: Node) -> None:
    await fails(errno.ENOENT, b.stat("f"))
    await a.write("f", b"x")
    assert (await b.stat("f")).size == 1


async def test_a_new_directory_and_what_was_closed_in_it_are_found_at_once(a: Node, b: Node) -> None:
    await fails(errno.ENOENT, b.stat("d"))
    await a.mkdir("d")
    await a.write("d/f", b"x")
    assert await b.read("d/f") == b"x"


async def test_a_file_is_not_in_the_bucket_before_it_is_closed(a: Node, b: Node, foreign: Foreign) -> None:
    fh = await a.create("f")
    await a.fs.write(fh, 0, b"x")
    assert foreign.objects() == []
    await fails(errno.ENOENT, b.stat("f"))
    assert (await a.stat("f")).size == 1
    await a.close(fh)
    assert foreign.objects() == ["f"]


async def test_a_reader_sees_one_version_while_it_has_the_file_open(a: Node, b: Node) -> None:
    await a.write("f", b"old")
    opened = await b.open("f")
    assert await b.read_handle(opened.fh) == b"old"
    await a.write("f", b"newer")
    assert await b.read_handle(opened.fh) == b"old"
    again = await b.open("f")
    assert (again.changed, again.direct, again.keep_cache) == (True, True, False)
    assert await b.read_handle(again.fh) == b"newer"


async def test_an_open_that_makes_other_pages_right_has_the_old_ones_dropped_first(a: Node, nodes: Nodes) -> None:
    b: Node = await nodes("b", attr_ttl_s=0.0)
    await a.write("f", b"old")
    assert await b.read("f") == b"old"
    await a.write("f", b"newer")
    ino = (await b.stat("f")).ino  # the kernel has the new attributes, and pages of old bytes
    first, second = await b.fs.open(ino, os.O_RDONLY), await b.fs.open(ino, os.O_RDONLY)
    assert (first.keep_cache, first.changed) == (False, True)
    assert (second.keep_cache, second.changed) == (True, False)


async def test_bytes_of_a_version_that_is_gone_are_estale_and_never_the_new_ones(a: Node, b: Node) -> None:
    await a.write("f", b"old" * FIRST_BYTES)
    opened = await b.open("f")
    await a.write("f", b"new" * FIRST_BYTES)
    await fails(errno.ESTALE, b.read_handle(opened.fh))


async def test_a_small_file_is_read_on_as_it_was_opened_whatever_becomes_of_it(a: Node, b: Node) -> None:
    await a.write("f", b"old")
    opened = await b.open("f")
    await a.write("f", b"new")
    assert await b.read_handle(opened.fh) == b"old"


async def test_pages_are_kept_only_for_the_same_version(a: Node, b: Node) -> None:
    await a.write("f", b"one")
    first = await b.open("f")
    assert not first.keep_cache
    second = await b.open("f")
    assert second.keep_cache
    await b.close(first.fh)
    await b.close(second.fh)
    assert (await b.open("f")).keep_cache
    await a.setattr("f", mode=0o600)
    assert not (await b.open("f")).keep_cache


async def test_pages_of_our_own_writes_are_kept_after_the_publish(a: Node) -> None:
    await a.write("f", b"one")
    assert (await a.open("f")).keep_cache


async def test_a_chmod_is_seen_although_the_etag_stays(a: Node, b: Node) -> None:
    await a.write("f", b"one")
    await b.stat("f")
    await a.setattr("f", mode=0o600)
    opened = await b.open("f")
    assert opened.changed
    assert stat.S_IMODE((await b.stat("f")).mode) == 0o600


async def test_attributes_are_believed_for_their_ttl_and_not_longer(a: Node, b: Node, autojump_clock: object) -> None:
    await a.write("f", b"one")
    before = await b.entry("f")
    await a.write("f", b"longer")
    assert (await b.fs.getattr(before.attr.ino)).attr.size == 3
    await trio.sleep(1.1)
    assert (await b.fs.getattr(before.attr.ino)).attr.size == 6


async def test_the_second_writer_gets_estale_and_its_content_is_kept(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"base")
    first, second = await a.open("f", os.O_RDWR), await b.open("f", os.O_RDWR)
    await a.fs.write(first.fh, 0, b"from a")
    await b.fs.write(second.fh, 0, b"from b")
    await a.close(first.fh)
    with pytest.raises(Conflict):
        await b.fs.flush(second.fh)
    await fails(errno.ESTALE, b.fs.flush(second.fh))
    await b.fs.release(second.fh)
    assert await b.read("f") == b"from a"
    (kept,) = [key for key in foreign.objects() if "conflict" in key]
    assert await foreign.body(kept) == b"from b"


async def test_two_nodes_that_create_one_name_do_not_overwrite_each_other(a: Node, b: Node, foreign: Foreign) -> None:
    first, second = await a.create("f"), await b.create("f")
    await a.fs.write(first, 0, b"from a")
    await b.fs.write(second, 0, b"from b")
    await b.close(second)
    with pytest.raises(Conflict):
        await a.close(first)
    assert await foreign.body("f") == b"from b"


async def test_o_excl_is_exclusive_among_nodes_at_once(a: Node, b: Node) -> None:
    fh = await a.create("lock", os.O_WRONLY | os.O_EXCL)
    parent, name = await b.parent("lock")
    await fails(errno.EEXIST, b.fs.create(parent, name, 0o644, os.O_CREAT | os.O_EXCL | os.O_WRONLY, USER))
    await a.fs.write(fh, 0, b"mine")
    await a.close(fh)
    assert await b.read("lock") == b"mine"


async def test_two_writers_on_one_node_share_the_file(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"....")
    first, second = await a.open("f", os.O_RDWR), await a.open("f", os.O_RDWR)
    await a.fs.write(first.fh, 0, b"1")
    await a.fs.write(second.fh, 1, b"2")
    assert await a.read_handle(first.fh) == b"12.."
    await a.close(first.fh)
    await a.close(second.fh)
    assert await foreign.body("f") == b"12.."


async def test_a_writer_that_published_and_goes_on_does_not_conflict_with_itself(a: Node, foreign: Foreign) -> None:
    fh = await a.create("f")
    for number in range(3):
        await a.fs.write(fh, number, b"x")
        await a.fs.fsync(fh)
        assert (await a.open("f")).keep_cache
    await a.close(fh)
    assert await foreign.body("f") == b"xxx"


async def test_a_file_removed_elsewhere_is_estale_at_open_and_absent_afterwards(a: Node, b: Node) -> None:
    await a.write("f", b"x")
    ino = (await b.stat("f")).ino
    await a.unlink("f")
    await fails(errno.ESTALE, b.fs.open(ino, os.O_RDONLY))
    await fails(errno.ENOENT, b.stat("f"))


async def test_a_file_that_became_a_symlink_has_another_number(a: Node, b: Node) -> None:
    await a.write("f", b"x")
    old = await b.stat("f")
    await a.unlink("f")
    await a.symlink("f", b"target")
    await fails(errno.ESTALE, b.fs.open(old.ino, os.O_RDONLY))
    new = await b.stat("f")
    assert stat.S_ISLNK(new.mode)
    assert new.ino != old.ino
    assert await b.fs.readlink(new.ino) == b"target"


async def test_an_unpublished_file_that_is_deleted_elsewhere_is_a_conflict_and_not_lost(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await a.write("f", b"x")
    opened = await a.open("f", os.O_RDWR)
    await a.read_handle(opened.fh)
    await b.unlink("f")
    await fails(errno.ENOENT, _later(a, "f"))
    await a.fs.write(opened.fh, 0, b"precious")
    with pytest.raises(Conflict):
        await a.fs.flush(opened.fh)
    await a.fs.release(opened.fh)
    (kept,) = [key for key in foreign.objects() if "conflict" in key]
    assert await foreign.body(kept) == b"precious"


async def _later(node: Node, path: str) -> object:
    await trio.sleep(2)
    return await node.stat(path)


async def test_an_answer_older_than_our_own_publish_is_asked_for_again(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"old")
    writer = await a.open("f", os.O_RDWR)
    ino = (await a.stat("f")).ino
    gate = a.controls.hold_reply("head")
    sizes: list[int] = []

    async def look() -> None:
        opened = await a.fs.open(ino, os.O_RDONLY)
        sizes.append(len(await a.read_handle(opened.fh)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await gate.entered.wait()
        await a.fs.write(writer.fh, 0, b"new and longer")
        await a.close(writer.fh)
        gate.open()
    assert sizes == [len(b"new and longer")]


async def test_opening_and_reading_a_small_file_is_one_request(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    ino = (await a.stat("f")).ino
    before = a.controls.calls.copy()
    opened = await a.fs.open(ino, os.O_RDONLY)
    assert await a.read_handle(opened.fh) == b"content"
    assert a.controls.calls - before == {"fetch": 1}
    again = await a.fs.open(ino, os.O_RDONLY)  # the bytes are here: their version is asked for, and nothing more
    assert await a.read_handle(again.fh) == b"content"
    assert a.controls.calls - before == {"fetch": 1, "head": 1}


async def test_a_file_that_has_grown_since_it_was_seen_is_read_as_it_is_now(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"small")
    ino = (await a.stat("f")).ino
    large = bytes(range(256)) * 1024
    await foreign.put("f", large)
    opened = await a.fs.open(ino, os.O_RDONLY)
    assert await a.read_handle(opened.fh) == large


async def test_a_file_that_is_gone_when_it_is_opened_to_be_read_is_gone(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"small")
    ino = (await a.stat("f")).ino
    await foreign.store.delete("f")
    with pytest.raises(PosixError) as error:
        await a.fs.open(ino, os.O_RDONLY)
    assert error.value.errno == errno.ESTALE


async def test_local_content_that_is_not_published_yet_is_the_truth_here(nodes: Nodes, b: Node) -> None:
    a = await nodes("a", close_remote=False)
    await b.write("f", b"old")
    opened = await a.open("f", os.O_RDWR)
    await a.fs.write(opened.fh, 0, b"newer")
    await a.close(opened.fh)
    assert (await b.read("f"), await a.read("f")) == (b"old", b"newer")
    await a.remount()
    assert (await a.read("f"), (await a.stat("f")).size) == (b"newer", 5)
    await a.fs.flush_path(None, lambda _: None)
    assert await b.read("f") == b"newer"


async def test_foreign_objects_have_the_mounts_owner_and_their_last_modified(nodes: Nodes, foreign: Foreign) -> None:
    node = await nodes("a", uid=5, gid=6, umask=0o027)
    await foreign.put("d/f", b"abc")
    found = await node.stat("d/f")
    assert (found.uid, found.gid, stat.S_IMODE(found.mode), found.size) == (5, 6, 0o640, 3)
    assert found.mtime_ns == (await foreign.store.head("d/f")).modified_ns
    assert stat.S_IMODE((await node.stat("d")).mode) == 0o750


async def test_a_read_only_mount_refuses_every_change(nodes: Nodes, foreign: Foreign) -> None:
    node = await nodes("a", mode="readonly")
    await foreign.put("f", b"abc")
    assert await node.read("f") == b"abc"
    ino = (await node.stat("f")).ino
    for wanted in (
        node.create("g"),
        node.mkdir("d"),
        node.symlink("s", b"t"),
        node.unlink("f"),
        node.rename("f", "g"),
        node.setattr("f", mode=0o600),
        node.fs.setxattr(ino, b"user.a", b"b"),
        node.fs.open(ino, os.O_RDWR),
        node.rmdir("f"),
    ):
        await fails(errno.EROFS, wanted)
    assert foreign.objects(own=True) == ["f"]


async def test_s3vols_own_objects_are_invisible(a: Node, foreign: Foreign) -> None:
    await foreign.put(".s3vol/format.json", b"{}")
    assert await a.names() == []
    await fails(errno.ENOENT, a.stat(".s3vol"))
    await fails(errno.EACCES, a.mkdir(".s3vol"))
    await fails(errno.EACCES, a.create(".s3vol"))
    await a.write("f", b"")
    await fails(errno.EACCES, a.rename("f", ".s3vol"))


async def test_a_tombstone_is_absent_and_a_creator_waits_until_it_is_gone(
    a: Node, foreign: Foreign, autojump_clock: object
) -> None:
    await foreign.put("f", b"left by a crash", **{layout.TOMBSTONE: "x"})
    assert await a.names() == []
    await fails(errno.ENOENT, a.stat("f"))
    began_s = trio.current_time()
    await a.write("f", b"new")
    assert 15 <= trio.current_time() - began_s < 30
    assert await foreign.body("f") == b"new"


async def test_an_endpoint_that_is_down_is_an_error_and_never_an_absent_file(a: Node, b: Node) -> None:
    await a.write("f", b"x")
    b.controls.down = True
    await fails(errno.EIO, b.stat("f"))
    b.controls.down = False
    assert await b.read("f") == b"x"


async def test_posix_errors_are_told_apart(a: Node) -> None:
    await a.write("f", b"")
    await a.mkdir("d")
    await fails(errno.ENOTDIR, a.stat("f/x"))
    await fails(errno.EISDIR, a.unlink("d"))
    await fails(errno.ENOTDIR, a.rmdir("f"))
    await fails(errno.EISDIR, a.open("d"))
    await fails(errno.EEXIST, a.mkdir("d"))
    await fails(errno.EEXIST, a.mkdir("f"))
    await fails(errno.ENOENT, a.unlink("x"))
    await fails(errno.ENAMETOOLONG, a.stat("n" * 256))
    with pytest.raises(PosixError):
        await a.fs.readlink((await a.stat("f")).ino)


async def test_before_an_append_the_kernel_is_made_to_look_when_another_node_changed_the_length(
    a: Node, b: Node
) -> None:
    """It appends at the length that it was told last; only a lookup tells it another one, an open does not."""
    await a.write("f", b"0123456789")
    ino = (await a.stat("f")).ino
    await b.write("f", b"longer than what was there")
    for _ in range(2):
        reader = await a.fs.open(ino, os.O_RDONLY)
        assert reader.changed
        await a.fs.release(reader.fh)
        await fails(errno.ESTALE, a.fs.open(ino, os.O_WRONLY | os.O_APPEND))
    assert (await a.stat("f")).size == len(b"longer than what was there")
    await a.close((await a.fs.open(ino, os.O_WRONLY | os.O_APPEND)).fh)


async def test_after_a_conflict_the_kernel_is_made_to_look_before_an_append(a: Node, b: Node) -> None:
    await a.write("f", b"0123456789")
    ino = (await a.stat("f")).ino
    writer = await a.open("f", os.O_WRONLY | os.O_TRUNC)
    await b.write("f", b"longer than what was there")
    await a.fs.write(writer.fh, 0, b"lost")
    with pytest.raises(Conflict):
        await a.fs.flush(writer.fh)
    await a.fs.release(writer.fh)
    await fails(errno.ESTALE, a.fs.open(ino, os.O_WRONLY | os.O_APPEND))
    await a.close((await a.open("f", os.O_WRONLY | os.O_APPEND)).fh)
