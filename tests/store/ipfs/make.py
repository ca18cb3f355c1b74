"""Values for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from s3vol.store.ipfs.content import cut, etag_of
from s3vol.store.ipfs.entry import Dot, Entry, Piece, pack


def entry(content: str, metadata: Mapping[str, str] | None = None, dot: Dot | None = None) -> Entry:
    """An object with this content."""
    body = content.encode()
    pieces = [Piece(hashlib.sha256(block.body).digest(), len(block.body)) for block in cut(body)]
    return Entry(dot or Dot(1, "w"), len(body), etag_of(pieces), 1_700_000_000, "t", metadata or {}, pack(pieces))
