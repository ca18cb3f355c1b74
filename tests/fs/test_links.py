"""Hard links: one inode behind several names, on two nodes; what goes with the last name, and what crashes leave."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio
import trio.testing

from s3vol import layout
from s3vol.fs import linkrecord
from s3vol.fs.linkrecord import Record
from s3vol.fs.rename import RENAME_NOREPLACE
from s3vol.types import MIB, ROOT_INO
from tests.fs.conftest import Nodes
from tests.fs.rig import USER, Foreign, Node, fails, link_record, links, stub

# One inode


async def test_both_names_are_one_inode_with_two_links(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    before = await a.setattr("f", mode=0o640, mtime_ns=5)
    made = await a.link("f", "g")
    assert (made.ino, made.nlink, made.size, made.mode, made.mtime_ns) == (before.ino, 2, 3, before.mode, 5)
    assert made.ctime_ns >= before.ctime_ns
    assert await a.stat("f") == await a.stat("g")
    theirs = [await b.stat(name) for name in ("f", "g")]
    assert theirs[0] == theirs[1]
    assert (theirs[0].nlink, theirs[0].size, stat.S_IMODE(theirs[0].mode)) == (2, 3, 0o640)
    assert [await b.read(name) for name in ("f", "g")] == [b"abc", b"abc"]


async def test_the_number_stays_over_a_remount(a: Node) -> None:
    await a.write("f", b"abc")
    before = await a.stat("f")
    await a.link("f", "g")
    await a.remount()
    assert [(await a.stat(name)).ino for name in ("g", "f")] == [before.ino, before.ino]


async def test_what_is_written_through_one_name_is_read_through_the_other_on_another_node(a: Node, b: Node) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    await b.write("g", b"changed by b")
    assert await a.read("f") == b"changed by b"
    await a.setattr("f", size=3)
    assert await b.read("g") == b"cha"


async def test_attributes_and_xattrs_are_of_the_file_and_not_of_the_name(a: Node, b: Node) -> None:
    await a.write("f", b"abc")
    made = await a.link("f", "g")
    await a.setattr("g", mode=0o600)
    await a.fs.setxattr(made.ino, b"user.x", b"1")
    found = await b.stat("f")
    assert stat.S_IMODE(found.mode) == 0o600
    assert await b.fs.getxattr(found.ino, b"user.x") == b"1"


async def test_the_path_in_the_headers_gives_way_to_what_programs_set(a: Node, b: Node) -> None:
    name = "n" * 250
    await a.write("f", b"abc")
    made = await a.link("f", name)
    await a.fs.setxattr(made.ino, b"user.x", bytes(1000))
    assert await b.fs.getxattr((await b.stat(name)).ino, b"user.x") == bytes(1000)


async def test_other_tools_see_stubs_and_the_body_with_its_attributes(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    first, second = await stub(foreign, "f"), await stub(foreign, "g")
    assert first.id == second.id
    assert first.token != second.token
    assert await foreign.body(first.key) == b"abc"
    assert (await foreign.store.head(first.key)).metadata["mode"] == str(stat.S_IFREG | 0o644)  # type: ignore[index]  # head brings it
    names = await link_record(foreign, first.id)
    assert names == Record(frozenset({first.token, second.token}))
    head = await foreign.store.head(layout.record_key(first.id))
    assert (head.metadata or {})[layout.LINK_COUNT] == "2"


async def test_rows_show_the_body_and_not_the_stub(a: Node, b: Node) -> None:
    await a.write("f", b"abc")
    await a.setattr("f", mode=0o751)
    await a.link("f", "g")
    await a.write("plain", b"x")
    for node in (a, b):
        rows = dict(await node.rows())
        assert list(rows) == ["f", "g", "plain"]
        assert rows["f"] == rows["g"]
        assert (rows["f"].size, stat.S_IMODE(rows["f"].mode), rows["f"].nlink) == (3, 0o751, 2)
        assert rows["f"].ino == (await node.stat("g")).ino
        assert rows["plain"].nlink == 1


async def test_a_directory_without_links_is_listed_with_one_request(a: Node, b: Node) -> None:
    for i in range(5):
        await a.write(f"f{i}", b"")
    await b.rows()
    assert (b.controls.calls["head"], b.controls.calls["list"]) == (1, 1)  # the root's attributes, and the page


async def test_many_links_are_listed_by_pages_and_not_one_by_one(a: Node, b: Node) -> None:
    for i in range(40):
        await a.write(f"f{i:02}", b"x" * i)
        await a.link(f"f{i:02}", f"g{i:02}")
    heads = b.controls.calls["head"]
    rows = dict(await b.rows())
    assert all(rows[f"f{i:02}"] == rows[f"g{i:02}"] for i in range(40))
    assert [rows[f"g{i:02}"].size for i in range(40)] == list(range(40))
    assert b.controls.calls["head"] - heads <= 2


async def test_a_third_name_costs_three_requests_and_leaves_the_body_alone(a: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    body = (await foreign.store.head((await stub(foreign, "f")).key)).version
    before = dict(a.controls.calls)
    assert (await a.link("g", "h")).nlink == 3
    assert a.controls.calls["put"] - before["put"] == 3
    assert (await foreign.store.head((await stub(foreign, "f")).key)).version == body


async def test_symlinks_and_special_files_have_links_too(a: Node, b: Node) -> None:
    await a.symlink("s", b"target")
    await a.fs.mknod(ROOT_INO, b"p", stat.S_IFIFO | 0o600, 0, USER)
    for name in ("s", "p"):
        await a.link(name, f"{name}2")
    for name in ("s", "p"):
        assert (await b.stat(f"{name}2")) == (await b.stat(name))
    assert await b.fs.readlink((await b.stat("s2")).ino) == b"target"
    assert stat.S_ISFIFO((await b.stat("p2")).mode)


async def test_what_is_refused(a: Node, b: Node, foreign: Foreign, nodes: Nodes) -> None:
    await a.write("f", b"abc")
    await a.mkdir("d")
    await fails(errno.EPERM, a.link("d", "e"))
    await b.write("there", b"")
    for name in ("f", "there", "d"):
        await fails(errno.EEXIST, a.link("f", name))
    assert layout.link_of(await foreign.store.head("f")) is None
    await fails(errno.EACCES, a.link("f", ".s3vol"))
    readonly: Node = await nodes("r", mode="readonly")
    await fails(errno.EROFS, readonly.link("f", "g"))
    opened = await a.open("f")
    ino = (await a.stat("f")).ino
    await a.unlink("f")
    await fails(errno.ENOENT, a.fs.link(ino, ROOT_INO, b"g", USER))
    await a.close(opened.fh)


async def test_a_file_has_at_most_so_many_names(a: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkrecord, "NAMES_MAX", 3)
    await a.write("f", b"abc")
    await a.link("f", "g")
    await a.link("f", "h")
    await fails(errno.EMLINK, a.link("f", "i"))
    await a.rename("h", "j")
    assert (await a.stat("j")).nlink == 3
    await fails(errno.ENOENT, a.stat("i"))


async def test_a_file_that_was_never_published_is_linked(nodes: Nodes, b: Node) -> None:
    a: Node = await nodes("a", close_remote=False)
    fh = await a.create("f", os.O_RDWR)
    await a.fs.write(fh, 0, b"abc")
    await a.link("f", "g")
    await a.fs.write(fh, 3, b"def")
    assert await a.read("g") == b"abcdef"
    await a.close(fh)
    await a.fs.flush_path("g", lambda _: None)
    assert await b.read("f") == b"abcdef"


async def test_open_handles_go_with_the_file(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"0123456789")
    opened = await a.open("f", os.O_RDWR)
    await a.link("f", "g")
    assert await a.read_handle(opened.fh) == b"0123456789"
    await a.fs.write(opened.fh, 0, b"X")
    await a.close(opened.fh)
    assert [await b.read(name) for name in ("f", "g")] == [b"X123456789"] * 2


async def test_a_large_file_is_moved_by_the_server(a: Node, b: Node) -> None:
    body = os.urandom(9 * MIB)
    await b.write("f", body)
    await a.link("f", "g")
    assert (a.controls.calls["copy"], a.controls.calls["get"]) == (1, 0)
    opened = await b.open("g")
    assert bytes(await b.fs.read(opened.fh, 0, len(body))) == body


# Names that go


async def test_the_body_goes_with_the_last_name_and_not_before(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    opened = await a.open("g")
    before = (await a.fs.getattr((await a.stat("g")).ino)).attr
    await a.unlink("f")
    attr = (await a.fs.getattr((await a.stat("g")).ino)).attr
    assert (attr.nlink, attr.ctime_ns > before.ctime_ns) == (1, True)
    assert await b.read("g") == b"abc"
    assert (await b.stat("g")).nlink == 1
    assert foreign.objects() == ["g"]
    await a.unlink("g")
    assert (await a.fs.getattr(attr.ino)).attr.nlink == 0
    assert await a.read_handle(opened.fh) == b"abc"
    await a.close(opened.fh)
    assert foreign.objects(own=True) == []


async def test_names_go_on_other_nodes_too(a: Node, b: Node, foreign: Foreign, autojump_clock: object) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    assert (await b.stat("f")).nlink == 2
    await a.unlink("g")
    await trio.sleep(1.1)
    await fails(errno.ENOENT, b.stat("g"))
    assert (await b.stat("f")).nlink == 1
    await b.unlink("f")
    assert foreign.objects(own=True) == []


async def test_two_nodes_that_remove_the_last_two_names_remove_the_body(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    await b.stat("g")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.unlink, "f")
        nursery.start_soon(b.unlink, "g")
    assert foreign.objects(own=True) == []


async def test_nobody_links_what_has_just_lost_its_last_name(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    await a.unlink("g")
    ino = (await b.stat("f")).ino
    gate = a.controls.hold("delete")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.unlink, "f")
        await gate.entered.wait()
        gate.open()
    await fails(errno.ENOENT, b.fs.link(ino, ROOT_INO, b"h", USER))
    assert foreign.objects(own=True) == []


async def test_unpublished_changes_survive_the_loss_of_one_name(nodes: Nodes, b: Node) -> None:
    a: Node = await nodes("a", close_remote=False)
    await b.write("f", b"abc")
    await b.link("f", "g")
    opened = await a.open("f", os.O_RDWR)
    await a.fs.write(opened.fh, 0, b"X")
    await a.unlink("f")
    await a.close(opened.fh)
    await a.fs.flush_path(None, lambda _: None)
    assert await b.read("g") == b"Xbc"


async def test_a_name_that_is_made_anew_is_another_file(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    await a.unlink("f")
    await a.write("f", b"new")
    assert [await b.read(name) for name in ("f", "g")] == [b"new", b"abc"]
    assert (await a.stat("f")).ino != (await a.stat("g")).ino
    assert (await b.stat("f")).ino != (await b.stat("g")).ino


# Rename


async def test_a_rename_of_a_name_leaves_number_and_body(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    before = await a.link("f", "g")
    await a.mkdir("d")
    await a.rename("f", "d/h")
    assert (await a.stat("d/h")) == (await a.stat("g"))
    assert (await a.stat("d/h")).ino == before.ino
    assert (await b.stat("g")).nlink == 2
    assert await b.read("d/h") == b"abc"
    assert foreign.objects() == ["d/", "d/h", "g"]
    link = await stub(foreign, "g")
    assert await link_record(foreign, link.id) == Record(frozenset({link.token, (await stub(foreign, "d/h")).token}))


async def test_a_rename_between_two_names_of_one_file_does_nothing(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    await a.rename("f", "g")
    assert foreign.objects() == ["f", "g"]
    assert (await b.stat("f")).nlink == 2
    await fails(errno.EEXIST, a.rename("f", "g", RENAME_NOREPLACE))


@pytest.mark.parametrize("pending", [False, True])
async def test_a_name_that_is_replaced_is_no_name_of_the_link_any_more(
    nodes: Nodes, b: Node, foreign: Foreign, pending: bool
) -> None:
    a: Node = await nodes("a", close_remote=not pending)
    await b.write("f", b"abc")
    await b.link("f", "g")
    await a.write("new", b"new")
    await a.rename("new", "g")
    await a.fs.flush_path(None, lambda _: None)
    assert foreign.objects() == ["f", "g"]
    assert await b.read("g") == b"new"
    assert (await a.stat("f")).nlink == 1
    await a.write("newer", b"newer")
    await a.rename("newer", "f")
    await a.fs.flush_path(None, lambda _: None)
    assert foreign.objects(own=True) == ["f", "g"]
    assert await b.read("f") == b"newer"


async def test_readers_of_a_replaced_last_name_read_on(a: Node, b: Node, foreign: Foreign) -> None:
    await b.write("f", b"abc")
    await b.link("f", "g")
    await b.unlink("f")
    opened = await a.open("g")
    await a.write("new", b"new")
    await a.rename("new", "g")
    assert await a.read_handle(opened.fh) == b"abc"
    await a.close(opened.fh)
    assert foreign.objects(own=True) == ["g"]


async def test_a_name_of_a_link_replaces_a_file_and_a_name_of_another_link(a: Node, b: Node, foreign: Foreign) -> None:
    for name in ("f", "x"):
        await a.write(name, name.encode())
        await a.link(name, f"{name}2")
    await a.write("plain", b"plain")
    old = await a.open("plain")
    await a.rename("f2", "plain")
    assert await a.read_handle(old.fh) == b"plain"
    await a.close(old.fh)
    await a.rename("plain", "x2")
    assert [(name, await b.read(name)) for name in foreign.objects()] == [("f", b"f"), ("x", b"x"), ("x2", b"f")]
    assert [(await b.stat(name)).nlink for name in ("f", "x", "x2")] == [2, 1, 2]


async def test_a_directory_moves_with_its_names_and_no_body_is_copied(a: Node, b: Node, foreign: Foreign) -> None:
    await a.mkdir("d")
    await a.write("d/f", b"abc")
    before = await a.link("d/f", "g")
    await a.link("d/f", "d/h")
    body = (await foreign.store.head((await stub(foreign, "g")).key)).version
    await a.rename("d", "n")
    assert foreign.objects() == ["g", "n/", "n/f", "n/h"]
    for name in ("g", "n/f", "n/h"):
        assert ((await b.stat(name)).nlink, await b.read(name)) == (3, b"abc")
        assert (await a.stat(name)).ino == before.ino
    link = await stub(foreign, "g")
    assert (await foreign.store.head(link.key)).version == body
    assert (await link_record(foreign, link.id)).doing == {}
    for name in ("g", "n/f", "n/h"):
        await b.unlink(name)
    assert links(foreign) == []
