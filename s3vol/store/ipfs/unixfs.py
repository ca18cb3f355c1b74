"""Files and directories as UnixFS, over the blocks that a volume has anyway. Pure functions.

Theory of operation. Every IPFS tool reads UnixFS: nodes in dag-pb whose data say what they are. A file of one block
*is* that block; a longer one is a node that links its blocks with their lengths, in levels of at most FANOUT links,
the shape that `ipfs add` makes with raw leaves. So an export adds nodes only, no bytes of files.

The encoding is two small protobuf messages, written out here: fields in the order that dag-pb prescribes (links before
data), so that equal directories are equal CIDs. Modes and times are written in the form of UnixFS 1.5.

Rejected: a protobuf library (seven fields do not pay for a code generator), and directories in a hash trie: a directory
with more names than one block holds is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3vol.errors import Rejected
from s3vol.store.ipfs.base import BLOCK_MAX_BYTES, Block
from s3vol.store.ipfs.cid import Cid, raw_cid, raw_of_digest
from s3vol.store.ipfs.entry import Piece

FANOUT = 1024
"""Links of one node, as in Kubo's profile unixfs-v1-2025."""

_PREFIX = b"\x01\x70\x12\x20"  # CIDv1, dag-pb, SHA-256 of 32 bytes
_DIRECTORY, _FILE, _SYMLINK = 1, 2, 4
_VARINT, _FIXED32, _BYTES = 0, 5, 2


@dataclass(frozen=True, slots=True)
class Made:
    """A node and how large everything below it is, which links to it say."""

    cid: Cid
    size: int  # of the file, 0 for a directory
    total: int  # bytes of all blocks


@dataclass(frozen=True, slots=True)
class Stat:
    """Mode and modification time, where they are known."""

    mode: int | None = None
    mtime_ns: int | None = None


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value & (1 << 64) - 1)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _link(cid: Cid, name: str, total: int) -> bytes:
    return _field(2, _field(1, bytes(cid)) + _field(2, name.encode()) + _field(3, total))


def _data(
    kind: int, stat: Stat, *, body: bytes | None = None, size: int | None = None, sizes: Sequence[int] = ()
) -> bytes:
    parts = [_field(1, kind)]
    if body is not None:
        parts.append(_field(2, body))
    if size is not None:
        parts.append(_field(3, size))
    parts += [_field(4, one) for one in sizes]
    if stat.mode is not None:
        parts.append(_field(7, stat.mode & 0o7777))
    if stat.mtime_ns is not None:
        seconds, nanoseconds = divmod(stat.mtime_ns, 1_000_000_000)
        time = _field(1, seconds)
        if nanoseconds:
            time += _varint(2 << 3 | _FIXED32) + nanoseconds.to_bytes(4, "little")
        parts.append(_field(8, time))
    return _field(1, b"".join(parts))


class Builder:
    """Makes nodes and holds them, to be imported together."""

    def __init__(self) -> None:
        self.blocks: dict[Cid, bytes] = {}

    def _put(self, body: bytes, size: int, below: int) -> Made:
        if len(body) > BLOCK_MAX_BYTES:
            raise Rejected(
                f"a directory's node has {len(body)} bytes: at most {BLOCK_MAX_BYTES} are possible; split it"
            )
        cid = Cid(_PREFIX + hashlib.sha256(body).digest())
        self.blocks[cid] = body
        return Made(cid, size, below + len(body))

    def file(self, pieces: Sequence[Piece], stat: Stat) -> Made:
        """A file of these blocks."""
        row = [Made(raw_of_digest(piece.digest), piece.length, piece.length) for piece in pieces]
        if len(row) == 1 and stat == Stat():
            return row[0]
        if not row and stat == Stat():
            empty = Block(raw_cid(b""), b"")
            self.blocks[empty.cid] = empty.body
            return Made(empty.cid, 0, 0)
        while len(row) > FANOUT:
            row = [self._level(row[at : at + FANOUT], Stat()) for at in range(0, len(row), FANOUT)]
        return self._level(row, stat)

    def _level(self, row: Sequence[Made], stat: Stat) -> Made:
        size = sum(one.size for one in row)
        links = b"".join(_link(one.cid, "", one.total) for one in row)
        data = _data(_FILE, stat, size=size, sizes=[one.size for one in row])
        return self._put(links + data, size, sum(one.total for one in row))

    def symlink(self, target: bytes, stat: Stat) -> Made:
        """A symbolic link."""
        return self._put(_data(_SYMLINK, stat, body=target), len(target), 0)

    def directory(self, names: Mapping[str, Made], stat: Stat) -> Made:
        """A directory. Raises Rejected when its names do not fit into one block."""
        ordered = sorted(names.items(), key=lambda item: item[0].encode())
        links = b"".join(_link(made.cid, name, made.total) for name, made in ordered)
        return self._put(links + _data(_DIRECTORY, stat), 0, sum(made.total for made in names.values()))

    def all(self) -> list[Block]:
        """Every node that was made."""
        return [Block(cid, body) for cid, body in self.blocks.items()]
