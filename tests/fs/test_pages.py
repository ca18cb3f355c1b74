"""Which pages the file system gives out to be put into the kernel's page cache, and when it gives out none."""

from __future__ import annotations

import errno
import os

from s3vol.fs.base import Pages
from s3vol.fs.beside import BLOCK_BYTES, FIRST
from s3vol.types import Fh
from tests.fs.rig import Node, fails

PAGE = 4096
BODY = bytes(range(250)) * 1000
WHOLE = len(BODY) // PAGE * PAGE


def _pages(node: Node, fh: Fh) -> Pages | None:
    return node.fs.pages(fh, 0, 1 << 20)


async def _reader(node: Node, flags: int = os.O_RDONLY) -> Fh:
    """A handle on the file whose attributes the kernel knows, with its bytes here."""
    opened = await node.open("f", flags)
    await node.stat("f")
    assert await node.read_handle(opened.fh) == BODY
    return opened.fh


async def test_pages_are_whole_and_end_with_the_file(a: Node) -> None:
    await a.write("f", BODY)
    fh = await _reader(a)
    found = _pages(a, fh)
    assert found is not None
    assert (found.ino, found.start) == ((await a.stat("f")).ino, 0)
    assert bytes(found.data) == BODY[:WHOLE]
    assert a.fs.pages(fh, WHOLE, WHOLE + BLOCK_BYTES) is None
    assert a.fs.pages(fh, 1 << 30, 2 << 30) is None
    await a.close(fh)
    assert _pages(a, fh) is None


async def test_a_random_reader_is_told_what_is_beside_its_reads_but_not_one_that_goes_past_the_cache(a: Node) -> None:
    await a.write("f", BODY)
    fh, direct = await _reader(a), await _reader(a, os.O_RDONLY | os.O_DIRECT)
    assert [a.fs.beside(fh, at * PAGE, PAGE) for at in range(FIRST)] == [None] * (FIRST - 1) + [(0, BLOCK_BYTES)]
    assert [a.fs.beside(direct, at * PAGE, PAGE) for at in range(FIRST)] == [None] * FIRST
    assert _pages(a, direct) is None


async def test_none_are_given_out_while_somebody_may_write(a: Node) -> None:
    await a.write("f", BODY)
    fh = await _reader(a)
    writer = await a.open("f", os.O_WRONLY)
    assert _pages(a, fh) is None
    await a.fs.write(writer.fh, 0, b"new")
    assert _pages(a, fh) is None
    await a.close(writer.fh)
    found = _pages(a, fh)
    assert found is not None
    assert bytes(found.data)[:3] == b"new"


async def test_none_are_given_out_while_a_change_is_not_published(a: Node) -> None:
    await a.write("f", BODY)
    fh = await _reader(a)
    a.controls.fail_next("put")
    await fails(errno.EIO, a.setattr("f", size=WHOLE + 1))
    assert _pages(a, fh) is None


async def test_none_are_given_out_of_a_version_that_was_replaced_and_seen(a: Node, b: Node) -> None:
    await a.write("f", BODY)
    fh = await _reader(b)
    await a.write("f", b"short")
    assert _pages(b, fh) is not None  # the kernel knows of nothing else yet
    again = await b.open("f")
    assert again.direct
    assert _pages(b, again.fh) is None
    await b.stat("f")  # from here on the kernel has the new length
    assert _pages(b, fh) is None


async def test_none_are_given_out_before_the_kernel_knows_the_length_of_what_was_opened(a: Node, b: Node) -> None:
    await a.write("f", b"short")
    ino = (await b.stat("f")).ino
    await a.write("f", BODY)
    opened = await b.fs.open(ino, os.O_RDONLY)
    assert await b.read_handle(opened.fh) == BODY
    assert opened.changed
    assert _pages(b, opened.fh) is None
    await b.fs.getattr(ino)
    assert _pages(b, opened.fh) is not None
