"""Head registers: what each writer of a volume has published last, as far as it can be learned now.

Theory of operation. A register is a pin of a block that everybody can name, since only volume and writer are in it.
Its metadata say which commit is the writer's head. Only its writer posts it, through its own peer, so it rises,
whoever looks. (A register that two write loses updates: of twenty rounds, twenty.)

Another writer's register is read at the local peer (`local`), which learns of a change within some 20 ms while the
peers see each other; or (`peers`) at that writer's own peer, which has it at once, under the URL that the register
names, with the local one as the way out. A peer that does not answer is not asked again for a while: it would cost
each open a time-out.

A register whose metadata cannot be read (somebody pinned its block by hand) is still that writer's: what it said last
stays known, and a writer of which nothing else is known has not published. Only a register that is gone is forgotten.

Registers are found by a scan of the pinset, at most once in `scan_s`: nothing in Cluster finds a pin by its name. So
that nobody's first publication is missed, a new writer puts its register down when it opens the volume, and publishes
no earlier than every other node must have scanned (`seen_s`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from s3vol.errors import S3volError
from s3vol.store.ipfs.base import Block, Blocks, Cluster, Pin, PinOptions
from s3vol.store.ipfs.cid import Cid, node_cid, of_text, text
from s3vol.store.ipfs.entry import encode
from s3vol.store.ipfs.state import FORMAT

SCAN_S = 3.0
"""How late the first file of a new node may be seen, and how long that node waits before it publishes at all. A scan
reads 0.4 KiB for each pin: some 10 ms for a thousand segments."""

_SPREAD_S = 1.0  # a record reaches the peers within 20 ms
PEER_TIMEOUT_S = 2.0  # a register is read in 1 ms on a LAN
_SILENT_S = 15.0
_UNREADABLE = -1  # below every sequence that a writer posts

Connect = Callable[[str], Awaitable[Cluster | None]]
"""Makes a client for another writer's peer, by its URL; None when that one is not to be asked. Raises nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a register says."""

    writer: str
    sequence: int
    commit: Cid | None  # None: has not published yet
    url: str = ""  # of the writer's Cluster peer, as other nodes reach it


def register_block(volume: str, writer: str) -> Block:
    """The block whose pin is the register."""
    body = encode({"s3vol": FORMAT, "volume": volume, "head": writer})
    return Block(node_cid(body), body)


def head_prefix(volume: str) -> str:
    """What the names of a volume's registers begin with."""
    return f"s3vol/{volume}/head/"


def parse_head(pin: Pin, volume: str) -> Head | None:
    """What a record says; None when it is no register of this volume: anybody may pin under any name."""
    writer = pin.name.removeprefix(head_prefix(volume))
    if pin.cid != register_block(volume, writer).cid:
        return None
    try:
        sequence, named = int(pin.metadata["sequence"]), pin.metadata.get("commit", "")
        commit = of_text(named) if named else None
    except (KeyError, ValueError, S3volError):
        return Head(writer, _UNREADABLE, None)
    return Head(writer, sequence, commit, pin.metadata.get("url", ""))


class Heads:
    """The registers of one volume. `connect` is None for `heads=local`."""

    def __init__(
        self,
        blocks: Blocks,
        cluster: Cluster,
        volume: str,
        *,
        connect: Connect | None,
        url: str,
        timeout_s: float,
        scan_s: float = SCAN_S,
    ) -> None:
        self._blocks = blocks
        self._cluster = cluster
        self._volume = volume
        self._connect = connect
        self._url = url
        self._timeout_s = timeout_s
        self._known: dict[str, Head] = {}
        self._wrong: dict[str, Cid] = {}
        self._clients: dict[str, Cluster] = {}
        self._silent_until_s: dict[str, float] = {}
        self._scan_s = scan_s
        self._scanned_at_s = -math.inf

    @property
    def known(self) -> Mapping[str, Head]:
        """Every register that was seen, by writer."""
        return self._known

    @property
    def seen_s(self) -> float:
        """How long after it was put down a new register is known to every node that can be reached."""
        return self._scan_s + _SPREAD_S if self._scan_s else 0.0

    async def post(self, writer: str, sequence: int, commit: Cid | None) -> None:
        """Say what our head is. Everything that it links must be pinned."""
        block = register_block(self._volume, writer)
        if not await self._blocks.has(block.cid, timeout_s=self._timeout_s):  # or no more: the register was removed
            await self._blocks.load([block], block.cid, timeout_s=self._timeout_s)
        told = {"commit": text(commit) if commit else "", "sequence": str(sequence), "url": self._url}
        metadata = {name: value for name, value in told.items() if value}
        options = PinOptions(head_prefix(self._volume) + writer, metadata)
        await self._cluster.pin(block.cid, options, timeout_s=self._timeout_s)

    async def own(self, writer: str) -> Head | None:
        """What our own peer has for a register."""
        pin = await self._cluster.record(register_block(self._volume, writer).cid, timeout_s=self._timeout_s)
        return None if pin is None else parse_head(pin, self._volume)

    async def scan(self) -> None:
        """Find the writers, and forget those whose register was removed."""
        began_s = trio.current_time()
        found: set[str] = set()
        for pin in await self._cluster.records(head_prefix(self._volume), timeout_s=self._timeout_s):
            if head := parse_head(pin, self._volume):
                self._note(head)
                found.add(head.writer)
        for writer in self._known.keys() - found:
            if await self.own(writer) is None:
                self._known.pop(writer, None)
        self._scanned_at_s = began_s

    async def read(self, without: str) -> list[Head]:
        """The heads of all writers but one, as of requests that begin now. Raises Unavailable when our peer is
        silent."""
        if trio.current_time() >= self._scanned_at_s + self._scan_s:
            await self.scan()
        writers = [writer for writer in self._known if writer != without]
        errors: list[S3volError] = []

        async def one(writer: str) -> None:
            try:
                await self._read_one(writer)
            except S3volError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for writer in writers:
                nursery.start_soon(one, writer)
        if errors:
            raise errors[0]
        return [self._known[writer] for writer in writers if writer in self._known]  # one may be retired meanwhile

    async def _read_one(self, writer: str) -> None:
        if self._connect is not None and (known := self._known.get(writer)) and await self._ask_peer(known):
            return
        pin = await self._cluster.record(register_block(self._volume, writer).cid, timeout_s=self._timeout_s)
        if pin is not None and (head := parse_head(pin, self._volume)):
            self._note(head)

    async def _ask_peer(self, head: Head) -> bool:
        url = head.url
        if self._connect is None or not url or url == self._url:
            return False
        if trio.current_time() < self._silent_until_s.get(url, 0.0):
            return False
        client = await self._client(url)
        if client is None:
            self._silent_until_s[url] = trio.current_time() + _SILENT_S
            return False
        cid = register_block(self._volume, head.writer).cid
        try:
            pin = await client.record(cid, timeout_s=PEER_TIMEOUT_S)
        except S3volError:  # the way out is the local peer; `doctor` names those that cannot be reached
            self._silent_until_s[url] = trio.current_time() + _SILENT_S
            return False
        found = None if pin is None else parse_head(pin, self._volume)
        if found is not None:
            self._note(found)
        return found is not None

    async def _client(self, url: str) -> Cluster | None:
        """One for each URL, although several writers may name the same."""
        if self._connect is None or url in self._clients:
            return self._clients.get(url)
        made = await self._connect(url)
        if made is None:
            return None
        kept = self._clients.setdefault(url, made)
        if kept is not made:
            await made.aclose()
        return kept

    def _note(self, head: Head) -> None:
        """Registers only rise: what is lower comes from somebody who does not know better.

        Not so below one that leads to something wrong: nobody knows who wrote its number.
        """
        known = self._known.get(head.writer)
        if known is None or known.sequence <= head.sequence or known.commit == self._wrong.get(head.writer):
            self._known[head.writer] = head

    def distrust(self, writer: str, commit: Cid) -> None:
        """This commit was looked at and is wrong: any other register of the writer is better."""
        self._wrong[writer] = commit

    def trust(self, writer: str) -> None:
        """What the register leads to can be read, or the register is gone."""
        self._wrong.pop(writer, None)

    async def aclose(self) -> None:
        """Close the clients that were made here."""
        for client in self._clients.values():
            await client.aclose()
