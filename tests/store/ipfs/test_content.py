"""Content as a row of blocks."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3vol.errors import Corrupt, Rejected
from s3vol.store.ipfs.cid import node_cid, of_text, raw_cid, text
from s3vol.store.ipfs.content import LIST_PIECES, PIECE_MAX_BYTES, Row, cut, decode_row, encode_row, etag_of, row_links
from s3vol.store.ipfs.entry import Piece, encode, pack, unpack


def pieces(*lengths: int) -> list[Piece]:
    return [Piece(hashlib.sha256(b"%d" % number).digest(), length) for number, length in enumerate(lengths)]


@pytest.mark.parametrize("size", [0, 1, PIECE_MAX_BYTES, PIECE_MAX_BYTES + 1, 3 * PIECE_MAX_BYTES])
def test_a_body_is_cut_into_blocks_that_together_are_the_body(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    blocks = cut(bytearray(body))
    assert b"".join(block.body for block in blocks) == body
    assert all(block.cid == raw_cid(block.body) for block in blocks)
    assert all(0 < len(block.body) <= PIECE_MAX_BYTES for block in blocks)


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(0, 600), st.integers(0, 600))
def test_the_spans_of_a_range_are_the_range(lengths: list[int], start: int, length: int) -> None:
    row = Row(pieces(*lengths))
    spans = list(row.spans(start, length))
    assert sum(span.length for span in spans) == max(0, min(start + length, row.size) - start) if length else not spans
    begins = {piece.digest: sum(lengths[:number]) for number, piece in enumerate(row.pieces)}
    at = start
    for span in spans:
        assert begins[span.piece.digest] + span.start == at
        assert 0 < span.length <= span.piece.length - span.start
        at += span.length


@pytest.mark.parametrize("count", [1, 65, LIST_PIECES, LIST_PIECES + 1, 3 * LIST_PIECES])
def test_a_long_row_is_read_as_it_was_written(count: int) -> None:
    row = pieces(*range(1, count + 1))
    cid, bodies = encode_row(row)
    held = {node_cid(body): body for body in bodies}
    assert decode_row(cid, held.__getitem__) == row
    assert set(row_links(held[cid])) | {cid} == set(held)


def test_a_row_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3vol.store.ipfs.content.LIST_PIECES", 2)
    with pytest.raises(Rejected):
        encode_row(pieces(1, 2, 3, 4, 5))


def test_the_etag_is_made_of_the_content_only() -> None:
    assert etag_of(pieces(1, 2)) == etag_of(pieces(1, 2))
    assert etag_of(pieces(1, 2)) != etag_of(pieces(2, 1))
    assert etag_of(pieces(1, 2), parts=2) == etag_of(pieces(1, 2)) + "-2"


@pytest.mark.parametrize("body", [encode({"pieces": b"short"}), encode([1]), encode({"lists": [1]}), encode({})])
def test_a_damaged_row_is_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_row(node_cid(body), {node_cid(body): body}.__getitem__)


def test_pieces_are_read_as_they_were_written() -> None:
    assert unpack(pack(pieces(1, 1 << 20))) == pieces(1, 1 << 20)


def test_a_cid_has_a_text_form_that_ipfs_knows() -> None:
    assert text(raw_cid(b"hello")).startswith("bafkrei")
    assert text(node_cid(encode({}))).startswith("bafyrei")
    assert of_text(text(raw_cid(b"hello"))) == raw_cid(b"hello")
    for word in ("", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "bafk", text(raw_cid(b""))[:-3]):
        with pytest.raises(Corrupt):
            of_text(word)
