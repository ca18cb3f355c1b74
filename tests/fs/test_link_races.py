"""Hard links: two nodes at once on one file."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from s3vol import layout
from s3vol.errors import S3volError
from s3vol.types import MIB
from tests.fs.rig import Foreign, Node, fails, stub


async def test_a_link_is_exclusive_among_nodes(a: Node, b: Node, foreign: Foreign) -> None:
    for node, name in ((a, "f"), (b, "x")):
        await node.write(name, name.encode())
    outcomes: list[str] = []

    async def link(node: Node, old: str) -> None:
        try:
            await node.link(old, "lock")
        except S3volError as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append(old)

    gate = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link, a, "f")
        await gate.entered.wait()
        nursery.start_soon(link, b, "x")
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.open()
    (winner,) = [name for name in outcomes if name in ("f", "x")]
    assert outcomes.count("PosixError") == 1
    assert await a.read("lock") == await b.read("lock") == winner.encode()


@pytest.mark.parametrize("body", [b"abc", b""], ids=["full", "empty"])
@pytest.mark.parametrize("step", range(6))
async def test_two_nodes_that_link_one_file_at_once_make_one_link(
    a: Node, b: Node, foreign: Foreign, body: bytes, step: int
) -> None:
    await a.write("f", body)
    gates = [a.controls.hold("put")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.link, "f", "g")
        for _ in range(step):  # the other node comes at each step
            await gates[-1].entered.wait()
            gates.append(a.controls.hold("put"))
            gates[-2].open()
            await trio.testing.wait_all_tasks_blocked(0.01)
        await b.link("f", "h")
        gates[-1].open()
    assert foreign.objects() == ["f", "g", "h"]
    assert len({(await stub(foreign, name)).id for name in ("f", "g", "h")}) == 1
    assert [(await b.stat(name)).nlink for name in ("f", "g", "h")] == [3, 3, 3]


async def test_a_publish_while_a_file_becomes_a_link_is_carried_along(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"old")
    gate = a.controls.hold_reply("put")  # of the record; the body comes next
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.link, "f", "g")
        await gate.entered.wait()
        await b.write("f", b"published in between")
        gate.open()
    assert [await a.read(name) for name in ("f", "g")] == [b"published in between"] * 2


async def test_a_node_that_has_the_file_open_follows_when_another_makes_it_a_link(
    a: Node, b: Node, autojump_clock: object
) -> None:
    await a.write("f", b"abc")
    before = await b.stat("f")
    opened = await b.open("f")
    assert await b.read_handle(opened.fh) == b"abc"
    await a.link("f", "g")
    await trio.sleep(1.1)
    after = (await b.fs.getattr(before.ino)).attr
    assert (after.ino, after.nlink, after.size) == (before.ino, 2, 3)
    assert (await b.stat("g")).ino == before.ino
    await b.close(opened.fh)


async def test_a_name_that_another_node_has_put_there_meanwhile_is_not_taken_away(
    a: Node, b: Node, foreign: Foreign
) -> None:
    for name in ("f", "r"):
        await a.write(name, name.encode())
        await a.link(name, f"{name}2")
    gate = a.controls.hold_reply("delete")  # nothing of a rename is deleted before its tombstone
    for _ in range(2):
        a.controls.hold("put").open()  # record, new stub
    tombstone = a.controls.hold("put")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rename, "f", "moved")
        await tombstone.entered.wait()
        await b.rename("r", "f")
        tombstone.open()
        gate.open()
    assert {name: await a.read(name) for name in foreign.objects()} == {"f2": b"f", "r2": b"r", "moved": b"r"}


async def test_who_has_the_file_open_reads_and_writes_on_when_another_node_makes_it_a_link(
    a: Node, b: Node, foreign: Foreign
) -> None:
    await a.write("f", b"0123456789")
    reader = await b.open("f")
    writer = await b.open("f", os.O_RDWR)
    await b.fs.write(writer.fh, 0, b"X")
    await a.link("f", "g")
    assert await b.read_handle(reader.fh) in (b"0123456789", b"X123456789")
    await b.close(writer.fh)
    assert [await a.read(name) for name in ("f", "g")] == [b"X123456789"] * 2
    assert foreign.objects() == ["f", "g"]
    await b.close(reader.fh)
    assert (await b.stat("g")).nlink == 2


async def test_a_large_file_is_followed_too(a: Node, b: Node) -> None:
    body = os.urandom(20 * MIB)
    await a.write("f", body)
    writer = await b.open("f", os.O_RDWR)
    await b.fs.write(writer.fh, 5 * MIB, b"changed by b")
    await a.link("f", "g")
    await b.close(writer.fh)
    again = await a.open("g")
    assert (
        bytes(await a.fs.read(again.fh, 5 * MIB - 1, 14))
        == body[5 * MIB - 1 : 5 * MIB] + b"changed by b" + body[5 * MIB + 12 : 5 * MIB + 13]
    )
    assert (await a.stat("f")).size == len(body)


async def test_a_reader_follows_to_the_body_for_what_it_has_not_read_yet(a: Node, b: Node) -> None:
    await a.write("f", b"0123456789")
    reader = await b.open("f")
    await a.link("f", "g")
    assert await b.read_handle(reader.fh) == b"0123456789"
    await a.write("g", b"changed")
    again = await b.open("f")
    assert await b.read_handle(again.fh) == b"changed"
    await b.close(reader.fh)
    await b.close(again.fh)


async def test_a_writer_that_was_overtaken_after_the_link_has_a_conflict(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"0123456789")
    writer = await b.open("f", os.O_RDWR)
    await b.fs.write(writer.fh, 0, b"X")
    await a.link("f", "g")
    await a.write("g", b"changed")
    await fails(errno.ESTALE, b.close(writer.fh))
    (kept,) = [key for key in foreign.objects() if "conflict" in key]
    assert kept.startswith("f.s3vol-conflict-")
    assert await b.read("f") == b"changed"


@pytest.mark.parametrize("name", ["d/g", "d/" + "ü" * 100])
async def test_what_lost_to_another_node_is_kept_beside_a_name_as_an_ordinary_file(
    a: Node, b: Node, foreign: Foreign, name: str
) -> None:
    await a.mkdir("d")
    await a.write("f", b"abc")
    await a.link("f", name)
    opened = await b.open(name, os.O_RDWR)
    await b.fs.write(opened.fh, 0, b"of b")
    await a.write("f", b"of a")
    await fails(errno.ESTALE, b.close(opened.fh))
    (kept,) = [key for key in foreign.objects() if "conflict" in key]
    assert kept.startswith(f"{name}.s3vol-conflict-" if name == "d/g" else "hard-link-")
    assert await foreign.body(kept) == b"of b"
    assert layout.link_of(await foreign.store.head(kept)) is None
    assert (await a.stat(kept)).nlink == 1
    assert [await b.read(path) for path in ("f", name)] == [b"of a"] * 2
