"""What comes along with an open: which bytes, when the kernel may have all of them, and what becomes of them."""

from __future__ import annotations

import errno
import os

import pytest

from s3vol.cache.base import FIRST_BYTES, Content
from s3vol.store.base import Buffer
from s3vol.types import Fh
from tests.fs.rig import Foreign, Node, fails

LARGE = bytes(range(256)) * (FIRST_BYTES // 128)


async def _whole(node: Node, flags: int = os.O_RDONLY) -> bytes:
    """What an open gives to the kernel; the handle is closed again."""
    opened = await node.open("f", flags)
    await node.close(opened.fh)
    return bytes(opened.whole)


async def test_the_first_open_of_a_small_file_brings_all_of_it_for_the_kernel(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    assert await _whole(a) == b"content"


async def test_what_the_kernel_has_is_not_asked_for_again(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    await _whole(a)
    before = a.controls.calls.copy()
    for _ in range(3):
        opened = await a.open("f")
        assert (opened.whole, opened.keep_cache) == (b"", True)
    assert a.controls.calls - before == {"fetch": 1, "head": 2}  # once more: the kernel may drop what it has


async def test_another_version_is_read_by_the_kernel_when_it_has_dropped_the_former(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"old")
    assert await _whole(a) == b"old"
    await foreign.put("f", b"newer")
    opened = await a.open("f")
    assert (opened.whole, opened.keep_cache, opened.changed) == (b"", False, True)
    assert await a.read_handle(opened.fh) == b"newer"


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY | os.O_DIRECT, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY])
async def test_the_kernel_gets_nothing_with_an_open_that_would_not_use_it(
    a: Node, foreign: Foreign, flags: int
) -> None:
    await foreign.put("f", b"content")
    assert await _whole(a, flags) == b""


@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_DIRECT, os.O_WRONLY])
async def test_the_kernel_gets_nothing_while_the_file_is_open(a: Node, foreign: Foreign, flags: int) -> None:
    await foreign.put("f", b"content")
    other = await a.open("f", flags)
    assert await _whole(a) == b""
    await a.close(other.fh)


async def test_the_kernel_gets_nothing_before_it_knows_the_length(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"short")
    ino = (await a.stat("f")).ino
    await foreign.put("f", b"longer than that")
    opened = await a.fs.open(ino, os.O_RDONLY)
    assert (opened.whole, opened.changed) == (b"", True)
    assert await a.read_handle(opened.fh) == b"longer than that"


async def test_two_opens_at_once_give_the_bytes_to_the_kernel_once(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    first, second = await a.open("f"), await a.open("f")
    assert (bytes(first.whole), bytes(second.whole)) == (b"content", b"")
    assert second.keep_cache


async def _look(node: Node, foreign: Foreign, length: int = 4096) -> None:
    """A program opens a large file and reads so much of its beginning."""
    await foreign.put("other", LARGE)
    opened = await node.open("other")
    await node.fs.read(opened.fh, 0, length)
    await node.close(opened.fh)


async def test_a_large_file_brings_its_first_bytes_after_one_of_which_they_were_read(a: Node, foreign: Foreign) -> None:
    await _look(a, foreign)
    await foreign.put("f", LARGE)
    await a.stat("f")
    before = a.controls.calls.copy()
    opened = await a.open("f")
    assert opened.whole == b""
    assert bytes(await a.fs.read(opened.fh, 0, 4096)) == LARGE[:4096]
    assert bytes(await a.fs.read(opened.fh, 8192, 16384)) == LARGE[8192:24576]
    assert a.controls.calls - before == {"fetch": 1}
    assert await a.read_handle(opened.fh) == LARGE


@pytest.mark.parametrize("length", [FIRST_BYTES + 1, 2 * FIRST_BYTES])
async def test_a_large_file_brings_nothing_after_one_that_was_read_on(a: Node, foreign: Foreign, length: int) -> None:
    await _look(a, foreign)
    await _look(a, foreign, length)
    await foreign.put("f", LARGE)
    await a.stat("f")
    before = a.controls.calls.copy()
    opened = await a.open("f")
    assert a.controls.calls - before == {"head": 1}
    assert await a.read_handle(opened.fh) == LARGE


async def _of_three_lives(node: Node, foreign: Foreign) -> tuple[Fh, Fh]:
    """A handle whose version was replaced, and one of what replaced it."""
    await foreign.put("f", b"old")
    former = await node.open("f")
    await foreign.put("f", b"newer")
    return former.fh, (await node.open("f")).fh


async def test_an_open_file_is_read_on_when_the_kernel_had_to_drop_it(a: Node, foreign: Foreign) -> None:
    former, latter = await _of_three_lives(a, foreign)
    for _ in range(2):
        assert await a.read_handle(former) == b"old"
        assert await a.read_handle(latter) == b"newer"


async def test_bytes_of_a_large_file_that_did_not_come_along_are_not_those_of_another_version(
    a: Node, foreign: Foreign
) -> None:
    await _look(a, foreign)
    await foreign.put("f", LARGE)
    opened = await a.open("f")
    await foreign.put("f", LARGE[::-1])
    assert bytes(await a.fs.read(opened.fh, 0, 4096)) == LARGE[:4096]
    await fails(errno.ESTALE, a.fs.read(opened.fh, FIRST_BYTES, 4096))


async def test_a_writer_changes_what_came_along_and_keeps_the_rest_of_it(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    reader = await a.open("f")
    writer = await a.open("f", os.O_RDWR)
    await a.fs.write(writer.fh, 0, b"C")
    assert await a.read_handle(reader.fh) == b"Content"
    await a.close(writer.fh)
    assert await a.read_handle(reader.fh) == b"Content"
    assert await foreign.body("f") == b"Content"
    await a.close(reader.fh)
    assert await a.read("f") == b"Content"


async def test_a_file_is_cut_while_its_first_bytes_are_held(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    reader = await a.open("f")
    await a.setattr("f", size=3)
    assert await a.read_handle(reader.fh) == b"con"
    await a.setattr("f", size=6)
    assert await a.read_handle(reader.fh) == b"con\0\0\0"
    assert await foreign.body("f") == b"con\0\0\0"


async def test_a_file_that_is_opened_again_is_read_on_when_the_kernel_had_to_drop_it(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"old")
    await _whole(a)
    again = await a.open("f")
    assert again.keep_cache
    await foreign.put("f", b"newer")
    latter = await a.open("f")
    assert latter.changed
    assert await a.read_handle(latter.fh) == b"newer"
    assert await a.read_handle(again.fh) == b"old"


async def test_an_open_file_is_read_without_the_endpoint_when_the_kernel_has_dropped_its_pages(
    a: Node, foreign: Foreign
) -> None:
    await foreign.put("f", b"content")
    for _ in range(3):
        opened = await a.open("f")
        a.controls.down = True
        assert await a.read_handle(opened.fh) == b"content"
        a.controls.down = False
        await a.close(opened.fh)


async def test_a_reader_goes_on_when_its_file_was_renamed_and_then_replaced(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    reader = await a.open("f")
    await a.rename("f", "g")
    await foreign.put("g", b"newer")
    assert await a.read_handle(reader.fh) == b"content"


async def test_a_reader_goes_on_when_its_file_was_changed_in_mode_and_then_replaced(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    reader = await a.open("f")
    await a.setattr("f", mode=0o600)
    await foreign.put("f", b"newer")
    assert await a.read_handle(reader.fh) == b"content"


async def test_a_conflict_copy_has_what_a_reader_brought(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    reader = await a.open("f")
    writer = await a.open("f", os.O_WRONLY)
    await foreign.put("f", b"newer")
    await a.fs.write(writer.fh, 0, b"C")
    await fails(errno.ESTALE, a.close(writer.fh))
    copy = next(key for key in foreign.objects() if "conflict" in key)
    assert await foreign.body(copy) == b"Content"
    await a.close(reader.fh)


async def test_the_kernel_is_not_given_what_was_changed_while_room_was_made(
    a: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    await foreign.put("f", b"content")
    hold = a.cache.hold

    async def slowly(content: Content, body: Buffer) -> None:
        await hold(content, body)
        await a.setattr("f", size=3)
        await a.setattr("f", size=7)

    monkeypatch.setattr(a.cache, "hold", slowly)
    opened = await a.open("f")
    assert bytes(opened.whole) in (b"", b"con\0\0\0\0")
    assert await a.read_handle(opened.fh) == b"con\0\0\0\0"


async def test_an_open_file_that_came_along_is_removed_without_a_copy_in_the_bucket(a: Node, foreign: Foreign) -> None:
    await foreign.put("f", b"content")
    opened = await a.open("f")
    await a.unlink("f")
    assert (a.controls.calls["copy"], foreign.objects(own=True)) == (0, [])
    assert await a.read_handle(opened.fh) == b"content"
