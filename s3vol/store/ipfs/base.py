"""What the IPFS store asks of the two daemons beside it: `Blocks` of Kubo, `Cluster` of IPFS-Cluster.

Contract of both, for the real clients and for the one in memory that tests use:

* **Bounded**: every call ends within its time-out, on the server too (Kubo's `timeout=`): an import of an incomplete
  DAG otherwise hangs for ever and holds the lock of all pins. A time-out raises Unavailable.
* **Idempotent**: every call may be repeated. Backends try once; retry is the caller's.
* **Errors**: only kinds of s3vol.errors leave. NotFound means that the daemon said so of this CID; a listing that
  ends early raises Unavailable, it does not look short.
* **Cancel**: a cancelled call was done or was not. Nothing is left that blocks a later one.
* **Trust**: what `Blocks.get` returns is whatever the daemon sent. The caller hashes it (cid.check).
* **Order**: `Cluster` is one peer. It shows its own writes at once, and those of others late.

Two facts shape these protocols. A record of Cluster is keyed by CID and the last write wins, without any condition; so
a register is written by one writer only. And nothing in Cluster finds a record by name: `records` reads all.

Rejected: one protocol for both (a node may reach other nodes' Cluster peers, but never their Kubo).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from s3vol.store.ipfs.cid import Cid

EVERYWHERE = -1
"""Replication factor: a copy on every peer."""

BLOCK_MAX_BYTES = 1 << 20
"""Kubo takes 1 MiB through version 0.39, 2 MiB since 0.40."""


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes under their name."""

    cid: Cid
    body: bytes


@dataclass(frozen=True, slots=True)
class RepoStat:
    """Kubo's repository. `max_bytes` is the configured StorageMax: a wish, not a limit."""

    blocks: int
    used_bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class KuboInfo:
    """Who answers. `settings` holds what `doctor` judges: see Blocks.info."""

    peer_id: str
    version: str
    settings: Mapping[str, str] = field(default_factory=dict)


class Blocks(Protocol):
    """One Kubo daemon: blocks by name, and the pins that keep them from its garbage collector."""

    @property
    def url(self) -> str:
        """The daemon in the user's words, without credentials."""
        ...

    async def get(self, cid: Cid, *, timeout_s: float) -> bytes:
        """The block, from this daemon or, over the network, from another one. Not yet verified.

        Raises Unavailable when nobody sent it in time: that it exists nowhere cannot be known.
        """
        ...

    async def has(self, cid: Cid, *, timeout_s: float) -> bool:
        """True when this daemon holds the block itself. Asks no other one."""
        ...

    async def load(self, blocks: Sequence[Block], root: Cid, *, timeout_s: float, update: Cid | None = None) -> None:
        """Store blocks and pin `root` recursively; what garbage collection took in between is stored again.

        `update` is a pinned root that this one differs little from: what both have is then not read again, which is
        most of a large DAG. That pin stays. One that is not there does no harm.

        `blocks` holds `root`, and everything below it that this daemon may not have. Afterwards all of it is stored,
        and fsynced where Kubo is so configured. Raises Unavailable when the DAG is incomplete (`PinErrorMsg`); blocks
        may then be left, unpinned.
        """
        ...

    async def pin(self, cid: Cid, *, timeout_s: float) -> None:
        """Pin recursively; fetches what is missing, which is the fastest way to read many blocks of another node."""
        ...

    async def unpin(self, cid: Cid, *, timeout_s: float) -> None:
        """Remove a recursive pin. One that is not there is success."""
        ...

    async def pins(self, *, timeout_s: float) -> frozenset[Cid]:
        """Roots of all recursive pins. CIDs of forms that s3vol does not make are left out."""
        ...

    async def collect(self, *, timeout_s: float) -> int:
        """Garbage collection: remove every block that no pin holds. Returns how many blocks went."""
        ...

    async def stat(self, *, timeout_s: float) -> RepoStat:
        """Size of the repository."""
        ...

    async def info(self, *, timeout_s: float) -> KuboInfo:
        """Peer id, version and, as far as the daemon tells, settings.

        Keys: `datastore` (type of the blocks' store), `sync` ("true" when it is a flatfs that fsyncs, "" when it is
        none), `storage_max`, `gc_period`, `api_authorizations` ("true" when any are set), `routing`, `api` and
        `gateway` (addresses, with commas). A daemon does not tell whether it has a swarm key, nor whether it collects
        by itself.
        """
        ...

    async def aclose(self) -> None:
        """Release connections and threads."""
        ...


@dataclass(frozen=True, slots=True)
class PinOptions:
    """How the cluster is to keep a DAG.

    `update` names a pinned DAG that this one differs little from: peers then walk what differs only. With it, Cluster
    takes metadata and factors from the old pin and drops those given here: the client refuses metadata beside it.
    `allocations` are ids of Cluster peers that must be among the replicas: without the local one, the local Kubo loses
    its only copy's pin at once.
    """

    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    replication_min: int = EVERYWHERE
    replication_max: int = EVERYWHERE
    allocations: Sequence[str] = ()
    update: Cid | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """A record of the pinset, as the peer that was asked knows it."""

    cid: Cid
    name: str
    metadata: Mapping[str, str]
    replication_min: int = EVERYWHERE
    replication_max: int = EVERYWHERE
    allocations: Sequence[str] = ()  # ids of peers; empty: all


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer of the cluster. `error` is empty when it answers."""

    id: str
    name: str
    version: str
    kubo_id: str = ""
    addresses: Sequence[str] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What one peer says of one pin: `pinned`, `pinning`, `pin_error`, `remote`, `cluster_error`, ..."""

    peer_id: str
    peer_name: str
    status: str
    error: str = ""


class Cluster(Protocol):
    """One peer of IPFS-Cluster: the pinset that all peers share, sooner or later.

    `pin` and `unpin` are sent one at a time and at least 50 ms apart, per client: peers lose bursts for minutes.
    """

    @property
    def url(self) -> str:
        """The REST address in the user's words, without credentials."""
        ...

    async def pin(self, cid: Cid, options: PinOptions, *, timeout_s: float) -> None:
        """Write the record of a CID, replacing an older one. Returns when this peer has it, not when blocks are copied.

        Raises NotFound when `options.update` is not in the pinset.
        """
        ...

    async def unpin(self, cid: Cid, *, timeout_s: float) -> None:
        """Remove the record. One that is not there is success."""
        ...

    async def record(self, cid: Cid, *, timeout_s: float) -> Pin | None:
        """The record as this peer has it now, None when it says 404."""
        ...

    async def records(self, prefix: str, *, timeout_s: float) -> Sequence[Pin]:
        """All records whose name begins with `prefix`, in no order: a scan of the whole pinset."""
        ...

    async def status(self, cid: Cid, *, timeout_s: float) -> Sequence[PeerStatus]:
        """What each peer says of a pin. Peers that do not answer say `cluster_error`."""
        ...

    async def recover(self, *, timeout_s: float) -> None:
        """Let this peer try again what its Kubo could not do: else it waits 12 minutes."""
        ...

    async def identity(self, *, timeout_s: float) -> Peer:
        """The peer that is asked."""
        ...

    async def peers(self, *, timeout_s: float) -> Sequence[Peer]:
        """All peers that this one knows, itself included."""
        ...

    async def aclose(self) -> None:
        """Release connections."""
        ...
