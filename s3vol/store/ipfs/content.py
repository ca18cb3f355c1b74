"""The bytes of an object as a row of blocks: cutting, joining and taking ranges. Pure functions.

Theory of operation. Content is cut into raw blocks of 1 MiB, which every Kubo takes and which equal content shares. A
body that is sent in parts is cut part by part, so blocks may be shorter within a row; each carries its length.

A row of more than ROW_PIECES is kept in nodes of its own: lists of at most LIST_PIECES, and above those, if there are
several, one node that links them. Equal rows are equal nodes.

Rejected: cutting by content (finds moved bytes, costs a pass over all of them, and files that move bytes are rare
here).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from cbrrr import CID

from s3vol.errors import Corrupt, Rejected
from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import Cid, known, raw_cid
from s3vol.store.ipfs.entry import PIECE_BYTES, Piece, decode, encode, pack, unpack
from s3vol.types import MIB

PIECE_MAX_BYTES = MIB
ROW_PIECES = 64
"""2.3 KiB: as much as an entry of the tree carries itself, so files up to 64 MiB need no further node."""

LIST_PIECES = 4096
"""144 KiB: 4 GiB of a file in one node."""


def cut(body: bytes | bytearray | memoryview) -> list[Block]:
    """A body in blocks."""
    view = memoryview(body).cast("B")
    bodies = (bytes(view[at : at + PIECE_MAX_BYTES]) for at in range(0, len(view), PIECE_MAX_BYTES))
    return [Block(raw_cid(piece), piece) for piece in bodies]


def etag_of(pieces: Iterable[Piece], parts: int = 0) -> str:
    """An ETag made of content only: of the blocks' names, and of the number of parts, where there were any."""
    digest = hashlib.sha256(pack(pieces)).hexdigest()[:32]
    return f"{digest}-{parts}" if parts else digest


@dataclass(frozen=True, slots=True)
class Span:
    """A range within one block."""

    piece: Piece
    start: int
    length: int

    @property
    def whole(self) -> bool:
        """True when it is all of the block."""
        return self.length == self.piece.length


class Row:
    """The pieces of one object, and where each begins."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self._ends = list(accumulate(piece.length for piece in pieces))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._ends[-1] if self._ends else 0

    def spans(self, start: int, length: int) -> Iterator[Span]:
        """What of which block makes the range, cut at the end of the object."""
        end = min(start + length, self.size)
        at = bisect_right(self._ends, start)
        while start < end:
            piece = self.pieces[at]
            skip = start - (self._ends[at] - piece.length)
            taken = min(piece.length - skip, end - start)
            yield Span(piece, skip, taken)
            start += taken
            at += 1


def encode_row(pieces: Sequence[Piece]) -> tuple[Cid, list[bytes]]:
    """A long row as nodes: the one that stands for it, and all bodies, that one last. Raises Rejected."""
    lists = [encode({"pieces": pack(pieces[at : at + LIST_PIECES])}) for at in range(0, len(pieces), LIST_PIECES)]
    if len(lists) > LIST_PIECES:
        raise Rejected(f"an object of {len(pieces)} blocks: at most {LIST_PIECES * LIST_PIECES} are possible")
    cids = [CID.cidv1_dag_cbor_sha256_32_from(body) for body in lists]
    if len(lists) == 1:
        return known(cids[0].cid_bytes), lists
    top = encode({"lists": cids})
    return known(CID.cidv1_dag_cbor_sha256_32_from(top).cid_bytes), [*lists, top]


def row_links(body: bytes) -> list[Cid]:
    """The lists below a node of a row; none for a list. Raises Corrupt."""
    plain = decode(body)
    links = plain.get("lists", []) if isinstance(plain, dict) else None
    if links is None or not all(isinstance(link, CID) for link in links):
        raise Corrupt(f"a block of {len(body)} bytes is no row of pieces")
    return [known(link.cid_bytes) for link in links]


def decode_row(cid: Cid, body_of: Callable[[Cid], bytes]) -> list[Piece]:
    """The pieces of a long row whose nodes are at hand. Raises Corrupt."""
    return [piece for packed in packed_lists(cid, body_of) for piece in unpack(packed)]


def packed_lists(cid: Cid, body_of: Callable[[Cid], bytes]) -> list[bytes]:
    """The lists of a long row, each as it is packed. Raises Corrupt: nobody makes lists of lists of lists."""
    body = body_of(cid)
    links = row_links(body)
    if len(links) > LIST_PIECES:
        raise Corrupt(f"a row of pieces has {len(links)} lists, at most {LIST_PIECES} are possible")
    return [_packed(body_of(link)) for link in links] or [_packed(body)]


def _packed(body: bytes) -> bytes:
    plain = decode(body)
    packed = plain.get("pieces") if isinstance(plain, dict) else None
    if not isinstance(packed, bytes) or len(packed) % PIECE_BYTES or len(packed) > LIST_PIECES * PIECE_BYTES:
        raise Corrupt(f"a block of {len(body)} bytes is no row of pieces")
    return packed
