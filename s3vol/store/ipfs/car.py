"""Content archives (CARv1): how many blocks travel to Kubo in one request.

Theory of operation. A header names the root; each block follows as its length, its CID and its bytes. Kubo's
`dag/import` stores the blocks and pins the root under one lock, which is the only way to upload many blocks past its
garbage collector. Pieces are handed on as they are: a body is never copied, and what is small is sent together.

Source: the CARv1 specification of IPLD. Rejected: packages for CAR, which are larger than the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cbrrr

from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import Cid

_TOGETHER_BYTES = 1 << 16  # one write to the socket of this size costs what one of 100 bytes costs


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _pieces(blocks: Iterable[Block], root: Cid) -> Iterator[bytes]:
    header = cbrrr.encode_dag_cbor({"roots": [cbrrr.CID(root)], "version": 1})
    yield _varint(len(header)) + header
    for block in blocks:
        yield _varint(len(block.cid) + len(block.body)) + block.cid
        yield block.body


def archive(blocks: Sequence[Block], root: Cid) -> Iterator[bytes]:
    """The archive of `blocks`, in pieces of at least 64 KiB where there is as much."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for piece in _pieces(blocks, root):
        if waiting_bytes + len(piece) > _TOGETHER_BYTES and waiting:
            yield b"".join(waiting)
            waiting, waiting_bytes = [], 0
        if len(piece) > _TOGETHER_BYTES:
            yield piece
        else:
            waiting.append(piece)
            waiting_bytes += len(piece)
    if waiting:
        yield b"".join(waiting)
