"""Memory for large bodies: it comes back by itself, and only then."""

from __future__ import annotations

import mmap

import pytest

from s3vol.store.aligned import BLOCK_BYTES, AlignedBuffers, is_aligned


def test_a_buffer_begins_at_a_page_and_is_as_long_as_asked_for() -> None:
    view = AlignedBuffers().take(300_000)
    assert len(view) == 300_000
    assert is_aligned(view, mmap.PAGESIZE)
    assert is_aligned(view[mmap.PAGESIZE :], mmap.PAGESIZE)
    assert not is_aligned(view[1:], mmap.PAGESIZE)


def test_a_block_is_idle_again_when_its_last_view_is_gone_and_not_before() -> None:
    buffers = AlignedBuffers()
    view = buffers.take(8192)
    piece = view[4096:]
    del view
    assert buffers.idle == 0
    piece[:4] = b"kept"
    other = buffers.take(8192)
    other[4096:4100] = b"else"
    assert bytes(piece[:4]) == b"kept"
    del piece
    assert buffers.idle == 1
    assert bytes(buffers.take(8192)[4096:4100]) == b"kept"  # the same block, as it was


def test_no_more_blocks_are_kept_than_are_taken_in_turn() -> None:
    buffers = AlignedBuffers()
    views = [buffers.take(1) for _ in range(9)]
    del views
    assert buffers.idle == 4


@pytest.mark.parametrize("length", [0, BLOCK_BYTES + 1])
def test_no_bytes_and_more_than_a_block_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="a buffer of"):
        AlignedBuffers().take(length)


def test_memory_that_cannot_be_written_is_not_taken_for_aligned() -> None:
    assert not is_aligned(memoryview(bytes(4096)), 1)
