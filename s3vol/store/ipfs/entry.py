"""One version of one object, as the tree of a volume holds it; and its form in dag-cbor.

Theory of operation. An entry is made once, by one writer, and never changed: an edit replaces it by another one. What
tells entries of one key apart is the `Dot`: the writer, and the number of that writer's change. Numbers are Lamport
clocks: greater than all that the writer had seen, so an edit made in knowledge of another one is always greater, and
among edits that knew nothing of each other the order is arbitrary but everywhere the same.

Content is a row of pieces, each the SHA-256 of a raw block and its length. A short row is within the entry, a long one
in nodes of its own (content.py). Pieces are plain bytes, not links: pinning a tree must not read all files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from cbrrr import CID, decode_dag_cbor, encode_dag_cbor

from s3vol import layout
from s3vol.errors import Corrupt
from s3vol.store.ipfs.cid import DIGEST_BYTES, Cid, known

LENGTH_BYTES = 4
PIECE_BYTES = DIGEST_BYTES + LENGTH_BYTES

NUMBER_MAX = 1 << 62
"""Of changes. Nobody counts so far, and dag-cbor has no integers of more than 64 bits."""


class Dot(NamedTuple):
    """Who made a change, and its Lamport number. Ordered: the greatest of several is the one that is shown."""

    number: int
    writer: str


class Piece(NamedTuple):
    """A part of a file: one raw block."""

    digest: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of an object. `pieces` is packed, or the CID of the node that holds the row."""

    dot: Dot
    size: int
    etag: str
    modified_s: int
    content_type: str
    metadata: Mapping[str, str]
    pieces: bytes | Cid
    listed: bool = False  # `pieces` is a CID

    def same_content(self, other: Entry) -> bool:
        """True when nothing would be lost by showing one of the two only."""
        return self._content == other._content

    @property
    def _content(self) -> tuple[object, ...]:
        # A name of a hard link is an empty object: its content is where its link says.
        return self.size, self.etag, self.content_type, self.metadata.get(layout.LINK)


Entries: TypeAlias = tuple[Entry, ...]
"""What is at one key: the greatest dot first. More than one: they knew nothing of each other."""


def pack(pieces: Iterable[Piece]) -> bytes:
    """Pieces in a row, 36 bytes each."""
    return b"".join(piece.digest + piece.length.to_bytes(LENGTH_BYTES, "big") for piece in pieces)


def unpack(packed: bytes) -> list[Piece]:
    """The pieces of a row. Raises Corrupt."""
    if len(packed) % PIECE_BYTES:
        raise Corrupt(f"a row of pieces has {len(packed)} bytes, which is no multiple of {PIECE_BYTES}")
    starts = range(0, len(packed), PIECE_BYTES)
    return [
        Piece(packed[at : at + DIGEST_BYTES], int.from_bytes(packed[at + DIGEST_BYTES : at + PIECE_BYTES], "big"))
        for at in starts
    ]


def to_plain(entry: Entry) -> list[Any]:
    """What dag-cbor encodes."""
    return [
        entry.dot.number,
        entry.dot.writer,
        entry.size,
        entry.etag,
        entry.modified_s,
        entry.content_type,
        dict(entry.metadata),
        CID(entry.pieces) if entry.listed else entry.pieces,
    ]


def from_plain(plain: Any) -> Entry:
    """The entry of `to_plain`. Raises Corrupt."""
    try:
        number, writer, size, etag, modified_s, content_type, metadata, pieces = plain
    except (TypeError, ValueError):
        raise Corrupt(f"an entry of the tree is damaged: {plain!r:.100}") from None
    texts = (writer, etag, content_type, *metadata.keys(), *metadata.values()) if isinstance(metadata, dict) else (0,)
    if not all(isinstance(text, str) for text in texts):
        raise Corrupt(f"an entry of the tree is damaged: {plain!r:.100}")
    if not all(isinstance(count, int) for count in (number, size, modified_s)):
        raise Corrupt(f"an entry of the tree is damaged: {plain!r:.100}")
    if not 0 <= number <= NUMBER_MAX or size < 0:
        raise Corrupt(f"an entry of the tree is damaged: {plain!r:.100}")
    listed = isinstance(pieces, CID)
    if not listed and not (isinstance(pieces, bytes) and len(pieces) % PIECE_BYTES == 0):
        raise Corrupt(f"an entry of the tree is damaged: {plain!r:.100}")
    held = known(pieces.cid_bytes) if isinstance(pieces, CID) else pieces
    return Entry(Dot(number, writer), size, etag, modified_s, content_type, metadata, held, listed)


def encode(value: Any) -> bytes:
    """Canonical dag-cbor."""
    return encode_dag_cbor(value)


def decode(body: bytes) -> Any:
    """What was encoded. Raises Corrupt."""
    try:
        return decode_dag_cbor(body)
    except ValueError as error:
        raise Corrupt(f"a block of {len(body)} bytes is no dag-cbor: {error}") from None
