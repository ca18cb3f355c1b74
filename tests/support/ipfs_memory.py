"""Kubo and IPFS-Cluster in memory: any number of nodes, that can be cut off from each other, killed and collected.

What was measured on the real daemons and matters to a store is played: a peer shows its own records at once and those
of others when they reach it; the last write of a record wins, whoever made it; a cluster that copies a pin to some
peers unpins it on the others; blocks come from any node that can be reached; garbage collection removes what no
recursive pin holds. Copying is immediate where it is possible, and tried again by `settle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from cbrrr import CID, decode_dag_cbor

from s3vol.errors import NotFound, Unavailable
from s3vol.store.ipfs.base import EVERYWHERE, Block, KuboInfo, Peer, PeerStatus, Pin, PinOptions, RepoStat
from s3vol.store.ipfs.cid import Cid, check, is_node, known, text


@dataclass
class _Record:
    height: int
    pin: Pin | None  # None: removed


@dataclass
class Node:
    """One machine: a Kubo and a Cluster peer."""

    name: str
    blocks: dict[Cid, bytes] = field(default_factory=dict)
    pins: set[Cid] = field(default_factory=set)
    records: dict[Cid, _Record] = field(default_factory=dict)
    up: bool = True
    side: int = 0  # nodes on different sides do not reach each other


class Network:
    """Nodes that see each other's records and blocks. `calls` counts what was asked."""

    def __init__(self, count: int = 1) -> None:
        self.nodes = [Node(f"n{number}") for number in range(count)]
        self.calls: dict[str, int] = {}

    def peers(self, node: Node) -> list[Node]:
        """Nodes that a node reaches, itself included."""
        return [other for other in self.nodes if other is node or (other.up and other.side == node.side)]

    def find(self, node: Node, cid: Cid) -> bytes | None:
        """A block, from whoever has it."""
        return next((other.blocks[cid] for other in self.peers(node) if cid in other.blocks), None)

    def fetch(self, node: Node, root: Cid) -> bool:
        """Copy a DAG to a node; False when a block is missing everywhere."""
        waiting = [root]
        seen: set[Cid] = set()
        while waiting:
            cid = waiting.pop()
            if cid in seen:
                continue
            seen.add(cid)
            body = self.find(node, cid)
            if body is None:
                return False
            node.blocks[cid] = body
            waiting += links(cid, body)
        return True

    def settle(self) -> None:
        """Let records and blocks arrive wherever they can."""
        for node in self.nodes:
            if node.up:
                for other in self.peers(node):
                    for cid, record in node.records.items():
                        have = other.records.get(cid)
                        if have is None or _rank(have) < _rank(record):
                            other.records[cid] = record
        for node in self.nodes:
            if node.up:
                self.track(node)

    def track(self, node: Node) -> None:
        """Pin and unpin on a node's Kubo what its records say."""
        for cid, record in node.records.items():
            pin = record.pin
            mine = pin is not None and (not pin.allocations or node.name in pin.allocations)
            if not mine:
                node.pins.discard(cid)
            elif cid not in node.pins and self.fetch(node, cid):
                node.pins.add(cid)

    def collect(self, node: Node) -> int:
        """Remove what no pin of the node holds."""
        live: set[Cid] = set()
        waiting = list(node.pins)
        while waiting:
            cid = waiting.pop()
            if cid not in live and cid in node.blocks:
                live.add(cid)
                waiting += links(cid, node.blocks[cid])
        gone = set(node.blocks) - live
        for cid in gone:
            del node.blocks[cid]
        return len(gone)


def _rank(record: _Record) -> tuple[int, str]:
    return record.height, repr(record.pin)


def links(cid: Cid, body: bytes) -> list[Cid]:
    """What a block links."""
    return [] if not is_node(cid) else _links(decode_dag_cbor(body))


def _links(value: Any) -> list[Cid]:
    if isinstance(value, CID):
        return [known(value.cid_bytes)]
    if isinstance(value, dict):
        value = list(value.values())
    return [link for one in value for link in _links(one)] if isinstance(value, list) else []


class _Client:
    def __init__(self, network: Network, node: Node) -> None:
        self.network = network
        self.node = node

    @property
    def url(self) -> str:
        return f"memory:{self.node.name}"

    async def _call(self, name: str) -> None:
        self.network.calls[name] = self.network.calls.get(name, 0) + 1
        await trio.lowlevel.checkpoint()
        if not self.node.up:
            raise Unavailable(f"{self.url}: does not answer")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class MemoryBlocks(_Client):
    """Implements `Blocks`."""

    async def get(self, cid: Cid, *, timeout_s: float) -> bytes:
        await self._call("get")
        body = self.network.find(self.node, cid)
        if body is None:
            raise Unavailable(f"{self.url}: nobody sent block {text(cid)} within {timeout_s:g} s")
        self.node.blocks[cid] = body
        return body

    async def has(self, cid: Cid, *, timeout_s: float) -> bool:
        await self._call("has")
        return cid in self.node.blocks

    async def load(self, blocks: Sequence[Block], root: Cid, *, timeout_s: float, update: Cid | None = None) -> None:
        await self._call("load")
        for block in blocks:
            check(block.cid, block.body)
            self.node.blocks[block.cid] = bytes(block.body)
        if not self.network.fetch(self.node, root):
            raise Unavailable(f"{self.url}: {text(root)} is incomplete")
        self.node.pins.add(root)

    async def pin(self, cid: Cid, *, timeout_s: float) -> None:
        await self._call("pin")
        if not self.network.fetch(self.node, cid):
            raise Unavailable(f"{self.url}: {text(cid)} is incomplete")
        self.node.pins.add(cid)

    async def unpin(self, cid: Cid, *, timeout_s: float) -> None:
        await self._call("unpin")
        self.node.pins.discard(cid)

    async def pins(self, *, timeout_s: float) -> frozenset[Cid]:
        await self._call("pins")
        return frozenset(self.node.pins)

    async def collect(self, *, timeout_s: float) -> int:
        await self._call("collect")
        return self.network.collect(self.node)

    async def stat(self, *, timeout_s: float) -> RepoStat:
        await self._call("stat")
        return RepoStat(len(self.node.blocks), sum(map(len, self.node.blocks.values())), 10**10)

    async def info(self, *, timeout_s: float) -> KuboInfo:
        await self._call("info")
        return KuboInfo(f"kubo-{self.node.name}", "0.43.0", {"sync": "true"})


class MemoryCluster(_Client):
    """Implements `Cluster`, as the peer of one node."""

    def _write(self, cid: Cid, pin: Pin | None) -> None:
        have = self.node.records.get(cid)
        self.node.records[cid] = _Record((have.height if have else 0) + 1, pin)
        self.network.settle()

    async def pin(self, cid: Cid, options: PinOptions, *, timeout_s: float) -> None:
        await self._call("cluster.pin")
        metadata, low, high = options.metadata, options.replication_min, options.replication_max
        if options.update is not None:
            old = self.node.records.get(options.update)
            if old is None or old.pin is None:
                raise NotFound(f"{text(options.update)}: is not part of the pinset")
            metadata, low, high = old.pin.metadata, old.pin.replication_min, old.pin.replication_max
        names = [*options.allocations, *(node.name for node in self.network.peers(self.node))]
        chosen = () if high == EVERYWHERE else tuple(dict.fromkeys(names))[:high]
        self._write(cid, Pin(cid, options.name, dict(metadata), low, high, chosen))

    async def unpin(self, cid: Cid, *, timeout_s: float) -> None:
        await self._call("cluster.unpin")
        if self._pin(cid) is not None:
            self._write(cid, None)

    def _pin(self, cid: Cid) -> Pin | None:
        record = self.node.records.get(cid)
        return record.pin if record else None

    async def record(self, cid: Cid, *, timeout_s: float) -> Pin | None:
        await self._call("cluster.record")
        return self._pin(cid)

    async def records(self, prefix: str, *, timeout_s: float) -> Sequence[Pin]:
        await self._call("cluster.records")
        pins = (record.pin for record in self.node.records.values())
        return [pin for pin in pins if pin is not None and pin.name.startswith(prefix)]

    async def status(self, cid: Cid, *, timeout_s: float) -> Sequence[PeerStatus]:
        await self._call("cluster.status")
        reached = self.network.peers(self.node)
        pin = self._pin(cid)
        return [
            PeerStatus(node.name, node.name, _status(node, node in reached, pin, cid)) for node in self.network.nodes
        ]

    async def recover(self, *, timeout_s: float) -> None:
        await self._call("cluster.recover")
        self.network.settle()

    async def identity(self, *, timeout_s: float) -> Peer:
        await self._call("cluster.identity")
        return Peer(self.node.name, self.node.name, "1.1.6", f"kubo-{self.node.name}")

    async def peers(self, *, timeout_s: float) -> Sequence[Peer]:
        await self._call("cluster.peers")
        return [Peer(node.name, node.name, "1.1.6") for node in self.network.peers(self.node)]


def _status(node: Node, reached: bool, pin: Pin | None, cid: Cid) -> str:
    if not reached:
        return "cluster_error"
    if pin is None:
        return "unpinned"
    if pin.allocations and node.name not in pin.allocations:
        return "remote"
    return "pinned" if cid in node.pins else "pinning"
