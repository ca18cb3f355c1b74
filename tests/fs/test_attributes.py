"""setattr, xattrs, and the rules that the kernel leaves to us."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio

from s3vol import layout
from s3vol.errors import Unavailable
from s3vol.fs import attributes
from s3vol.fs.inodes import Inode
from s3vol.types import ROOT_INO, AttrChange, Caller, Ino
from tests.fs.conftest import Nodes
from tests.fs.rig import Foreign, Node, fails

S = 10**9
FMODE_EXEC = 0x20  # what the kernel adds to the flags of the open of execve(2)


async def test_attributes_of_a_closed_file_are_published_at_once(a: Node, b: Node) -> None:
    await a.write("f", b"abc")
    await a.setattr("f", mode=0o600, uid=7, gid=8, mtime_ns=5 * S, atime_ns=6 * S)
    found = await b.stat("f")
    assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o600, 7, 8)
    assert (found.mtime_ns, found.atime_ns, found.size) == (5 * S, 6 * S, 3)
    assert await b.read("f") == b"abc"


@pytest.mark.parametrize("name", ["f", "d"])
async def test_times_before_1970_are_kept(a: Node, b: Node, name: str) -> None:
    await a.write("f", b"abc")
    await a.mkdir("d")
    shown = await a.setattr(name, mtime_ns=-5 * S // 4, atime_ns=-7 * S)
    found = await b.stat(name)
    assert (shown.mtime_ns, shown.atime_ns) == (found.mtime_ns, found.atime_ns) == (-5 * S // 4, -7 * S)


async def test_attributes_of_a_file_being_written_go_with_its_publish(a: Node, b: Node) -> None:
    fh = await a.create("f")
    await a.fs.write(fh, 0, b"abc")
    await a.setattr("f", fh, mode=0o640, mtime_ns=5 * S)
    puts = a.controls.calls["put"]
    await a.close(fh)
    assert a.controls.calls["put"] == puts + 1
    found = await b.stat("f")
    assert (stat.S_IMODE(found.mode), found.mtime_ns) == (0o640, 5 * S)


async def test_two_changes_at_once_add_up(a: Node, b: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: a.setattr("f", mode=0o600))
        nursery.start_soon(lambda: a.setattr("f", uid=7))
    found = await b.stat("f")
    assert (stat.S_IMODE(found.mode), found.uid) == (0o600, 7)


async def test_a_directorys_attributes_are_its_markers(a: Node, b: Node, foreign: Foreign) -> None:
    await foreign.put("d/f", b"")
    await a.setattr("d", mode=0o700, uid=7)
    assert "d/" in foreign.objects()
    found = await b.stat("d")
    assert (stat.S_IMODE(found.mode), found.uid) == (0o700, 7)


async def test_the_roots_attributes_survive_a_remount_and_are_seen_elsewhere(a: Node, b: Node) -> None:
    await a.fs.setattr(ROOT_INO, AttrChange(uid=70, gid=71, mode=0o700), None, Caller(0, 0))
    await a.remount()
    for node in (a, b):
        found = (await node.fs.getattr(ROOT_INO)).attr
        assert (found.uid, found.gid, found.mode) == (70, 71, stat.S_IFDIR | 0o700)


async def test_a_change_that_could_not_be_saved_is_not_shown(a: Node) -> None:
    await a.mkdir("d", 0o755)
    a.controls.fail_next("put", Unavailable("down"))
    await fails(errno.EIO, a.setattr("d", mode=0o700))
    assert stat.S_IMODE((await a.stat("d")).mode) == 0o755


async def test_truncate_by_path_cuts_and_grows(a: Node, b: Node) -> None:
    await a.write("f", b"abcdef")
    assert (await a.setattr("f", size=3)).size == 3
    assert await b.read("f") == b"abc"
    await a.setattr("f", size=5)
    assert await b.read("f") == b"abc\0\0"


async def test_ftruncate_is_published_with_the_close(a: Node, b: Node) -> None:
    await a.write("f", b"abcdef")
    opened = await a.open("f", os.O_RDWR)
    await a.setattr("f", opened.fh, size=2)
    assert (await a.stat("f")).size == 2
    await a.close(opened.fh)
    assert await b.read("f") == b"ab"


async def test_o_trunc_empties_the_file(a: Node, b: Node) -> None:
    await a.write("f", b"abcdef")
    opened = await a.open("f", os.O_WRONLY | os.O_TRUNC)
    await a.close(opened.fh)
    assert await b.read("f") == b""


async def test_a_write_sets_times_and_clears_set_id_bits(a: Node) -> None:
    await a.write("f", b"abc")
    await a.setattr("f", mode=0o6755, mtime_ns=5 * S)
    opened = await a.open("f", os.O_RDWR)
    await a.fs.write(opened.fh, 0, b"x")
    found = await a.stat("f")
    assert stat.S_IMODE(found.mode) == 0o755
    assert found.mtime_ns == found.ctime_ns > 5 * S


async def test_a_changed_owner_clears_set_id_bits_of_files_and_not_of_directories(a: Node) -> None:
    await a.write("f", b"")
    await a.mkdir("d")
    for path in ("f", "d"):
        await a.setattr(path, mode=0o6755)
    assert stat.S_IMODE((await a.setattr("f", uid=5)).mode) == 0o755
    assert stat.S_IMODE((await a.setattr("d", uid=5)).mode) == 0o6755


def test_a_set_group_id_bit_without_group_execution_is_a_lock_bit_and_stays() -> None:
    assert attributes.without_set_id(stat.S_IFREG | 0o2644) == stat.S_IFREG | 0o2644
    assert attributes.without_set_id(stat.S_IFREG | 0o6754) == stat.S_IFREG | 0o754


def test_a_set_group_id_program_is_not_made_for_a_group_one_is_not_in() -> None:
    parent = Inode(Ino(5), "d/", stat.S_IFDIR | 0o2777, gid=50)
    made = attributes.new_posix(parent, stat.S_IFREG | 0o2755, 0, Caller(1000, 1000), 1)
    assert (made.mode, made.gid) == (stat.S_IFREG | 0o755, 50)
    assert attributes.new_posix(parent, stat.S_IFREG | 0o2755, 0, Caller(0, 0), 1).mode & stat.S_ISGID


async def test_every_change_of_attributes_moves_ctime(a: Node) -> None:
    await a.write("f", b"")
    before = (await a.stat("f")).ctime_ns
    assert (await a.setattr("f", mode=0o600)).ctime_ns > before


@pytest.mark.parametrize("name", ["f", "d"])
async def test_a_change_that_changes_nothing_writes_nothing(a: Node, foreign: Foreign, name: str) -> None:
    await a.write("f", b"abc")
    await a.mkdir("d", 0o755)
    await a.setattr(name, uid=7, gid=8, mode=0o644, mtime_ns=5 * S)
    ino = (await a.stat(name)).ino
    await a.fs.setxattr(ino, b"user.x", b"1")
    key = "f" if name == "f" else "d/"
    before, puts, ctime_ns = await foreign.store.head(key), a.controls.calls["put"], (await a.stat(name)).ctime_ns
    shown = await a.setattr(name, uid=7, gid=8)
    assert shown.ctime_ns > ctime_ns
    assert (await a.fs.getattr(ino)).attr.ctime_ns == shown.ctime_ns
    await a.setattr(name, mode=0o644)
    await a.setattr(name, mtime_ns=5 * S)
    await a.fs.setxattr(ino, b"user.x", b"1")
    assert a.controls.calls["put"] == puts
    assert await foreign.store.head(key) == before


async def test_an_owner_that_only_the_mount_supplies_is_written_when_it_is_set(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"abc")
    shown = await a.stat("f")
    await a.setattr("f", uid=shown.uid)
    metadata = (await foreign.store.head("f")).metadata or {}
    assert metadata["uid"] == str(shown.uid)


@pytest.mark.parametrize("name", ["f", "d"])
async def test_what_another_node_has_just_changed_is_changed_back(a: Node, b: Node, name: str) -> None:
    await a.write("f", b"abc")
    await a.mkdir("d", 0o755)
    await a.setattr(name, mode=0o640)
    await b.setattr(name, mode=0o600)
    await a.setattr(name, mode=0o640)  # which is what it still believes
    await b.remount()
    assert stat.S_IMODE((await b.stat(name)).mode) == 0o640


async def test_headers_of_other_tools_stay_with_the_file(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"abc", colour="red")
    await a.setattr("f", mode=0o600)
    await a.rename("f", "g")
    assert ((await foreign.store.head("g")).metadata or {})["colour"] == "red"


async def test_a_file_full_of_foreign_headers_can_be_written_and_says_e2big_to_chmod(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"abc", filler="x" * 1940)
    await fails(errno.E2BIG, a.setattr("f", mode=0o600))
    await a.write("f", b"new")
    assert await foreign.body("f") == b"new"
    await a.rename("f", "g")
    assert ((await foreign.store.head("g")).metadata or {})["filler"] == "x" * 1940


async def test_extended_attributes_are_kept_with_the_object(a: Node, b: Node) -> None:
    await a.write("f", b"abc")
    await a.mkdir("d")
    for path in ("", "f", "d"):
        ino = (await a.stat(path)).ino
        await a.fs.setxattr(ino, b"user.colour", b"\0red")
        await a.fs.setxattr(ino, b"user.shape", b"")
        other = (await b.stat(path)).ino
        assert await b.fs.listxattr(other) == [b"user.colour", b"user.shape"]
        assert await b.fs.getxattr(other, b"user.colour") == b"\0red"
        await b.fs.removexattr(other, b"user.shape")
        await fails(errno.ENODATA, b.fs.getxattr(other, b"user.shape"))
        await fails(errno.ENODATA, b.fs.removexattr(other, b"user.shape"))
    assert await b.read("f") == b"abc"


async def test_xattrs_of_a_new_file_are_published_with_it(a: Node, b: Node) -> None:
    fh = await a.create("f")
    ino = (await a.stat("f")).ino
    await a.fs.setxattr(ino, b"user.a", b"1")
    await a.fs.write(fh, 0, b"x")
    await a.close(fh)
    assert await b.fs.getxattr((await b.stat("f")).ino, b"user.a") == b"1"


async def test_xattrs_that_do_not_fit_are_enospc_and_acls_are_not_supported(a: Node) -> None:
    await a.write("f", b"")
    ino = (await a.stat("f")).ino
    await fails(errno.ENOSPC, a.fs.setxattr(ino, b"user.big", b"x" * 2000))
    assert await a.fs.listxattr(ino) == []
    await fails(errno.EOPNOTSUPP, a.fs.setxattr(ino, b"system.posix_acl_access", b"x"))
    await fails(errno.EOPNOTSUPP, a.fs.getxattr(ino, b"system.posix_acl_access"))


async def test_a_capability_query_of_a_file_being_written_costs_no_request(a: Node) -> None:
    fh = await a.create("f", os.O_WRONLY | os.O_EXCL)
    ino = (await a.stat("f")).ino
    before = dict(a.controls.calls)
    for _ in range(3):
        await fails(errno.ENODATA, a.fs.getxattr(ino, b"security.capability"))
        await a.fs.write(fh, 0, b"x")
    assert dict(a.controls.calls) == before


async def test_with_a_local_close_attributes_are_journaled_and_published_later(nodes: Nodes, b: Node) -> None:
    a: Node = await nodes("a", close_remote=False)
    await b.write("f", b"x")
    await a.setattr("f", mode=0o600)
    assert stat.S_IMODE((await a.stat("f")).mode) == 0o600
    assert stat.S_IMODE((await b.stat("f")).mode) != 0o600
    await a.fs.flush_path("f", lambda _: None)
    opened = await b.open("f")
    await b.close(opened.fh)
    assert stat.S_IMODE((await b.stat("f")).mode) == 0o600


@pytest.mark.parametrize("where", ["f", "d", "s"])
async def test_the_type_of_a_node_never_changes_by_chmod(a: Node, where: str) -> None:
    await a.write("f", b"")
    await a.mkdir("d")
    await a.symlink("s", b"t")
    before = stat.S_IFMT((await a.stat(where)).mode)
    assert stat.S_IFMT((await a.setattr(where, mode=0o600 | stat.S_IFIFO)).mode) == before


def test_root_attributes_are_kept_where_no_mount_shows_them() -> None:
    assert layout.is_reserved(layout.ROOT_ATTRIBUTES)


async def test_statfs_is_large_and_constant(a: Node) -> None:
    found = await a.fs.statfs()
    assert (found.name_max, found.blocks) == (255, found.blocks_free)


async def test_a_program_that_runs_is_not_truncated_by_an_open_for_reading(a: Node) -> None:
    await a.write("f", b"abc")
    running = await a.open("f", os.O_RDONLY | FMODE_EXEC)
    await fails(errno.ETXTBSY, a.open("f", os.O_RDONLY | os.O_TRUNC))
    assert await a.read("f") == b"abc"
    await a.close(running.fh)
    await a.close((await a.open("f", os.O_RDONLY | os.O_TRUNC)).fh)
    assert await a.read("f") == b""
