"""A file or directory of a volume for other IPFS tools: read without a writer, exported as UnixFS.

Theory of operation. The reader is no part of the volume: it finds the registers, merges all heads that it can read and
writes nothing, so it works anywhere a Kubo and a Cluster peer of the swarm are, mounted or not. The export's nodes are
imported and pinned on the Kubo that was asked. They link the volume's own blocks, so the pin keeps those too, when the
file is removed later: `ipfs pin rm` ends that.

What UnixFS has no words for is left out (owners, xattrs, devices); a hard link becomes a file of its own.
"""

from __future__ import annotations

import stat as kinds
from collections.abc import Mapping, Sequence

from s3vol import layout
from s3vol.errors import NotFound
from s3vol.store.ipfs import state as states
from s3vol.store.ipfs.base import Blocks, Cluster
from s3vol.store.ipfs.cid import Cid, raw_of_digest
from s3vol.store.ipfs.entry import Entry
from s3vol.store.ipfs.fetch import Fetcher
from s3vol.store.ipfs.heads import Connect, Heads
from s3vol.store.ipfs.nodes import Nodes
from s3vol.store.ipfs.refresh import Refresher
from s3vol.store.ipfs.unixfs import Builder, Made, Stat
from s3vol.store.ipfs.volume import Volume

_READER = "reader"
_ALL = 1 << 62


class Reader:
    """A volume that is only looked at. `warnings` name writers whose newest files may be missing."""

    def __init__(
        self, blocks: Blocks, volume: Volume, fetcher: Fetcher, warnings: Sequence[str], *, timeout_s: float
    ) -> None:
        self._blocks = blocks
        self.volume = volume
        self.warnings = warnings
        self._fetcher = fetcher
        self._timeout_s = timeout_s

    async def export(self, path: str) -> Cid:
        """Import the UnixFS form of a path ("" for all) and pin it; returns its CID. Raises NotFound, Rejected."""
        builder = Builder()
        made = await self.make(builder, path.strip("/"))
        if made is None:
            raise NotFound(f"{path}: no such file or directory in the volume")
        await self._blocks.load(builder.all(), made.cid, timeout_s=self._timeout_s)
        return made.cid

    async def make(self, builder: Builder, path: str) -> Made | None:
        """The nodes of a path, not imported yet; None when there is nothing, or nothing that UnixFS has."""
        found = self.volume.find(path) if path else None
        if found is not None:
            return await self._file(builder, found)
        prefix = f"{path}/" if path else ""
        listed = self.volume.fold(prefix, delimiter=True, after=prefix, limit=_ALL)
        names: dict[str, Made] = {}
        for name, entry in listed:
            if name == layout.RESERVED or not layout.is_path(name):  # s3vol makes none, and no mount shows them
                continue
            made = await self._file(builder, entry) if entry else await self.make(builder, name.rstrip("/"))
            if made is not None:
                names[name[len(prefix) :].rstrip("/")] = made
        marker = self.volume.find(prefix) if prefix else None
        if not names and marker is None and path:
            return None
        return builder.directory(names, _stat(marker))

    async def _file(self, builder: Builder, entry: Entry) -> Made | None:
        metadata: Mapping[str, str] = entry.metadata
        if layout.TOMBSTONE in metadata:
            return None
        if layout.LINK in metadata:
            body = self.volume.find(layout.body_key(metadata[layout.LINK]))
            return await self._file(builder, body) if body is not None else None
        mode = _mode(entry)
        pieces = self.volume.pieces(entry)
        if kinds.S_ISLNK(mode):
            bodies = [await self._fetcher.get(raw_of_digest(piece.digest)) for piece in pieces]
            return builder.symlink(b"".join(bodies), _stat(entry))
        if mode and not kinds.S_ISREG(mode):
            return None
        return builder.file(pieces, _stat(entry))


def _mode(entry: Entry) -> int:
    text = entry.metadata.get("mode", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _stat(entry: Entry | None) -> Stat:
    """Mode and time as the volume's metadata have them."""
    if entry is None or not (mode := _mode(entry)):
        return Stat()
    return Stat(mode, layout.parse_ns(entry.metadata.get("mtime", "")))


async def read_volume(
    blocks: Blocks, cluster: Cluster, name: str, *, connect: Connect | None, timeout_s: float
) -> Reader:
    """The newest state that can be read. Raises Unavailable, and NotFound when there is no such volume."""
    heads = Heads(blocks, cluster, name, connect=connect, url="", timeout_s=timeout_s)
    fetcher = Fetcher(blocks, lambda cid: None, timeout_s=timeout_s)
    nodes = Nodes()
    volume = Volume(nodes, states.nothing(nodes), _READER, 0)
    warnings: dict[str, str] = {}
    refresher = Refresher(name, volume, heads, fetcher, lambda commit: None, warnings)
    try:
        await refresher.refresh()
    finally:
        await heads.aclose()
    if not heads.known:
        raise NotFound(f"ipfs://{name}: nobody has published a volume of this name in this cluster")
    return Reader(blocks, volume, fetcher, tuple(warnings.values()), timeout_s=timeout_s)
