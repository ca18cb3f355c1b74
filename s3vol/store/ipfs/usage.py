"""Which blocks are in use: what collection has to keep, and what publication has to link."""

from __future__ import annotations

from collections.abc import Iterable

from s3vol.store.ipfs import tree
from s3vol.store.ipfs.journal import Upload
from s3vol.store.ipfs.segments import Segments
from s3vol.store.ipfs.volume import Volume


def used_digests(volume: Volume, segments: Segments, uploads: Iterable[Upload]) -> set[bytes]:
    """Digests of all blocks that the present state, pending changes, uploads and bodies on their way consist of."""
    state = volume.seal()
    used = segments.reserved
    for _, entries in tree.scan(volume.nodes, state.tree):
        for entry in entries:
            used.update(piece.digest for piece in volume.pieces(entry))
    for upload in uploads:
        for _, pieces in upload.parts.values():
            used.update(piece.digest for piece in pieces)
    return used
