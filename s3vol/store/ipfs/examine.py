"""A volume as its heads show it, looked through: can all of it be read, and does a pin hold it?

Theory of operation. Like the reader of an export this is no writer: it finds the registers, reads each head with its
whole tree, and then asks for every block of every file and hashes it. Each block must also be linked from a segment
that the cluster pins, and each head's commit must be pinned: what is not pinned is there until the next collection.

Mounts work on meanwhile, so one look proves nothing. What a look finds wrong is believed when a second one, which began
after it, says the same; blocks that were sound are not read again.

Not looked at: how many copies there are (`s3vol doctor` asks the peers), and what only the journal of a mount has.

Rejected: asking whether Kubo has a block (a damaged one is there as well), and mending (what is missing everywhere
cannot be made again, and what is only away comes back by itself).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import trio
from cbrrr import CID

from s3vol.errors import Corrupt, NotFound, S3volError, Unavailable
from s3vol.store.ipfs import state as states
from s3vol.store.ipfs import tree
from s3vol.store.ipfs.base import Blocks, Cluster, Pin
from s3vol.store.ipfs.cid import Cid, check, digest_of, known, raw_of_digest, text
from s3vol.store.ipfs.entry import Piece, decode
from s3vol.store.ipfs.fetch import FETCHES, Fetcher
from s3vol.store.ipfs.heads import Connect, Head, Heads
from s3vol.store.ipfs.nodes import Nodes
from s3vol.store.ipfs.refresh import Refresher
from s3vol.store.ipfs.volume import Volume

Kind = Literal["head", "block", "pin"]

_NOBODY = "examiner"
_AWAY = "start the machines that are away and look again"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. `key` is a file, a writer or the name of a pin; `way` is for people."""

    kind: Kind
    key: str
    meaning: str
    way: str
    subject: str = ""  # what two looks agree on


@dataclass(slots=True)
class Seen:
    """What was looked at. Segments are `spare` when no file needs a block of them, `ownerless` when their writer was
    retired."""

    writers: int = 0
    names: int = 0
    blocks: int = 0
    bytes: int = 0
    blocks_here: int = 0
    segments: int = 0
    segments_spare: int = 0
    segments_ownerless: int = 0
    commits: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Use:
    """A block that a file needs. `below`: the file is in the part that was asked for."""

    key: str
    length: int
    below: bool


class Examiner:
    """Of one volume. `prefix` narrows the files whose blocks are read."""

    def __init__(
        self, blocks: Blocks, cluster: Cluster, name: str, *, prefix: str, connect: Connect | None, timeout_s: float
    ) -> None:
        self._blocks = blocks
        self._cluster = cluster
        self._name = name
        self._prefix = prefix
        self._connect = connect
        self._timeout_s = timeout_s
        self._here: dict[bytes, bool] = {}  # sound blocks, and whether this Kubo had them

    async def examine(self) -> Seen:
        """Look once, and twice when something seems wrong. Raises NotFound without a volume, Unavailable."""
        first = await self._look()
        if not first.findings:
            return first
        second = await self._look()
        before = {(one.kind, one.subject) for one in first.findings}
        second.findings = [one for one in second.findings if (one.kind, one.subject) in before]
        return second

    async def _look(self) -> Seen:
        seen = Seen()
        heads = Heads(self._blocks, self._cluster, self._name, connect=self._connect, url="", timeout_s=self._timeout_s)
        try:
            found = await heads.read(_NOBODY)
            if not found:
                raise NotFound(f"ipfs://{self._name}: nobody has published a volume of this name in this cluster")
            seen.writers = len(found)
            volume = await self._read_heads(seen, heads, found)
        finally:
            await heads.aclose()
        uses = self._uses(seen, volume)
        await self._read_blocks(seen, uses)
        await self._look_at_pins(seen, found, uses)
        return seen

    async def _read_heads(self, seen: Seen, heads: Heads, found: Iterable[Head]) -> Volume:
        nodes = Nodes()
        volume = Volume(nodes, states.nothing(nodes), _NOBODY, 0)
        fetcher = Fetcher(self._blocks, lambda cid: None, timeout_s=self._timeout_s)
        reader = Refresher(self._name, volume, heads, fetcher, lambda commit: None, {})
        for head in found:
            if head.commit is None:
                continue
            try:
                await reader.merge(head.commit)
            except (Unavailable, Corrupt) as error:
                way = "its next publication replaces it" if isinstance(error, Corrupt) else _AWAY
                seen.findings.append(
                    Finding("head", head.writer, f"what it published last cannot be read: {error}", way, head.writer)
                )
        return volume

    def _uses(self, seen: Seen, volume: Volume) -> dict[bytes, _Use]:
        """Every block that a file consists of, with one of the files."""
        uses: dict[bytes, _Use] = {}
        for key, entries in tree.scan(volume.nodes, volume.state.tree):
            below = key.startswith(self._prefix)
            seen.names += len(entries) if below else 0
            for entry in entries:
                for piece in volume.pieces(entry):
                    if (use := uses.get(piece.digest)) is None or (below and not use.below):
                        uses[piece.digest] = _Use(key, piece.length, below)
        return uses

    async def _read_blocks(self, seen: Seen, uses: dict[bytes, _Use]) -> None:
        wanted = iter([Piece(digest, use.length) for digest, use in uses.items() if use.below])

        async def read() -> None:
            for piece in wanted:  # shared by all readers
                error = await self._trouble(piece)
                seen.blocks += 1
                seen.bytes += piece.length
                seen.blocks_here += self._here.get(piece.digest, False)
                if error is not None:
                    name = text(raw_of_digest(piece.digest))
                    way = "restore the file from a backup" if isinstance(error, Corrupt) else _AWAY
                    meaning = f"block {name} of it cannot be read: {error}"
                    seen.findings.append(Finding("block", uses[piece.digest].key, meaning, way, name))

        async with trio.open_nursery() as nursery:
            for _ in range(FETCHES):
                nursery.start_soon(read)

    async def _trouble(self, piece: Piece) -> S3volError | None:
        """What is wrong with a block, None when it is sound."""
        if piece.digest in self._here:
            return None
        cid = raw_of_digest(piece.digest)
        here = await self._blocks.has(cid, timeout_s=self._timeout_s)
        try:
            body = await self._blocks.get(cid, timeout_s=self._timeout_s)
            check(cid, body)
            if len(body) != piece.length:
                raise Corrupt(f"it has {len(body)} bytes, and the file says {piece.length}")
        except (Unavailable, Corrupt) as error:
            return error
        self._here[piece.digest] = here
        return None

    async def _look_at_pins(self, seen: Seen, heads: Sequence[Head], uses: dict[bytes, _Use]) -> None:
        base = f"s3vol/{self._name}/"
        pins = await self._cluster.records(base, timeout_s=self._timeout_s)
        segments = [pin for pin in pins if pin.name.startswith(f"{base}seg/")]
        commits = {pin.cid for pin in pins if pin.name.startswith(f"{base}commit/")}
        seen.segments, seen.commits = len(segments), len(commits)
        writers = {head.writer for head in heads}
        held: set[bytes] = set()
        for pin in segments:
            digests = await self._digests(seen, pin)
            held |= digests
            seen.segments_spare += digests.isdisjoint(uses)
            seen.segments_ownerless += pin.name.removeprefix(f"{base}seg/").rpartition("/")[0] not in writers
        for head in heads:
            if head.commit is not None and head.commit not in commits:
                name = text(head.commit)
                meaning = f"its last commit {name} is not pinned: the next collection takes names and attributes"
                seen.findings.append(Finding("pin", head.writer, meaning, f"`ipfs-cluster-ctl pin add {name}`", name))
        for digest in uses.keys() - held:
            name = text(raw_of_digest(digest))
            meaning = f"block {name} of it is in no segment that is pinned: the next collection takes it"
            seen.findings.append(
                Finding("pin", uses[digest].key, meaning, f"`ipfs-cluster-ctl pin add {name}`, or copy the file", name)
            )

    async def _digests(self, seen: Seen, pin: Pin) -> set[bytes]:
        """What a pinned segment links."""
        try:
            body = await self._blocks.get(pin.cid, timeout_s=self._timeout_s)
            check(pin.cid, body)
            return {digest_of(cid) for cid in _links(body)}
        except (Unavailable, Corrupt) as error:
            seen.findings.append(Finding("pin", pin.name, f"the segment cannot be read: {error}", _AWAY, pin.name))
            return set()


def _links(body: bytes) -> list[Cid]:
    """The blocks of a segment. Raises Corrupt."""
    plain = decode(body)
    links = plain.get("blocks") if isinstance(plain, dict) else None
    if not isinstance(links, list) or not all(isinstance(link, CID) for link in links):
        raise Corrupt(f"a block of {len(body)} bytes is no segment")
    return [known(link.cid_bytes) for link in links]
