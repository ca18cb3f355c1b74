"""A store of small objects in the pinset of a cluster: what all nodes must know although there is no bucket.

Theory of operation. The pinset is the one thing that all peers of a cluster share, sooner or later. An object is a pin
of a block in which only the store's name and the key are, so that everybody can name it; the pin's metadata carry the
body. Reading one is a question for one record, listing is a scan of the whole pinset.

What a condition is worth. Cluster cannot hold one: it is checked at this node's peer, then the record is written, and
SPREAD_S later it is read again, when the peers that see each other agree on one of two that were written in the same
moment. Whoever finds another's says that the condition did not hold. So of two nodes that create one key at once, one
is told, as long as their peers see each other. Between the halves of a partition nobody is told: when they meet again
the pinset has one of the two objects, whole, on all nodes.

The block goes to Kubo before the condition is checked, so that hardly any time passes between the check and the write.
Last-Modified is by the clock of the node that wrote: there is no other one.

Rejected: a volume in IPFS for this (each node would be a writer whose silence keeps all others from collecting, and two
records of one name would become a conflict file), and names of pins instead of metadata (found by a scan only).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NoReturn

import trio

from s3vol.errors import NotFound, PreconditionFailed, Rejected
from s3vol.store import rules
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Capabilities, Change, Condition, Page, Part, Unpublished, Upload
from s3vol.store.ipfs.base import Block, Blocks, Cluster, Pin, PinOptions
from s3vol.store.ipfs.cid import node_cid
from s3vol.store.ipfs.entry import encode
from s3vol.store.ipfs.state import FORMAT
from s3vol.store.memory import fold
from s3vol.types import ObjectInfo

SPREAD_S = 0.5
"""A record reaches all peers of a LAN within 62 ms, three of them writing at once (120 updates); on two processors with
six times their work to do, some took longer than 250 ms."""

BODY_MAX_BYTES = 16 << 10
"""A request to Cluster carries the body in its address, which HTTP clients end at 64 KiB; a byte may become three."""

PINSET_CAPABILITIES = Capabilities(
    conditional_complete=False,
    copy_part=False,
    conditions_span_nodes=False,
    max_put_bytes=BODY_MAX_BYTES,
    max_parts=0,
)
_S_NS = 1_000_000_000


def object_block(name: str, key: str) -> Block:
    """The block whose pin is an object."""
    body = encode({"s3vol": FORMAT, "pinset": name, "key": key})
    return Block(node_cid(body), body)


def object_prefix(name: str) -> str:
    """What the names of a store's pins begin with. Not `s3vol/`: those are volumes'."""
    return f"s3vol-pinset/{name}/"


class PinsetStore:
    """See the module's docstring; implements `Store` for whole objects of up to BODY_MAX_BYTES of text."""

    def __init__(
        self,
        name: str,
        blocks: Blocks,
        cluster: Cluster,
        *,
        timeout_s: float,
        spread_s: float = SPREAD_S,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`name` is the store's, the same on all nodes. Closing the store closes both clients."""
        self._name = name
        self._blocks = blocks
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._spread_s = spread_s
        self._now_ns = now_ns
        self._changing = trio.Lock()  # guards a condition, from its check to the second look

    @property
    def capabilities(self) -> Capabilities:
        """Whole objects only; conditions hold on this node, and mostly between nodes."""
        return PINSET_CAPABILITIES

    @property
    def url(self) -> str:
        """`ipfs://NAME`."""
        return f"ipfs://{self._name}"

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        return (await self._find(key))[0]

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo, Buffer]:
        """See Store.fetch."""
        info, body = await self._find(key)
        return info, body[:length]

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """See Store.get."""
        rules.check_range(start, length)
        info, body = await self._find(key)
        rules.decide_read(key, if_match, info.etag)
        return body[start : start + length]

    async def _find(self, key: str) -> tuple[ObjectInfo, bytes]:
        found = await self._read(key)
        if found is None:
            raise NotFound(f"{self.url}/{key}: no such object")
        return found

    async def _read(self, key: str) -> tuple[ObjectInfo, bytes] | None:
        pin = await self._cluster.record(object_block(self._name, key).cid, timeout_s=self._timeout_s)
        return None if pin is None else _object(key, pin)

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """See Store.put. Raises Rejected for a body that is no text."""
        rules.check_key(key, PINSET_CAPABILITIES)
        rules.check_body(memoryview(body).nbytes, BODY_MAX_BYTES)
        rules.check_condition(condition, PINSET_CAPABILITIES)
        options = PinOptions(
            object_prefix(self._name) + key,
            {
                "body": _text(key, bytes(body)),
                "metadata": json.dumps(rules.check_metadata(metadata, PINSET_CAPABILITIES), sort_keys=True),
                "type": content_type,
                "at": str(self._now_ns()),
            },
        )
        async with self._changing:
            # Each time: since the last one another node may have removed the object, and a collection the block.
            block = object_block(self._name, key)
            await self._blocks.load([block], block.cid, timeout_s=self._timeout_s)
            if condition != ANY:
                found = await self._read(key)
                rules.decide(key, condition, found[0].etag if found else None)
            await self._cluster.pin(block.cid, options, timeout_s=self._timeout_s)
            if condition != ANY:
                await trio.sleep(self._spread_s)
                await self._look_again(key, options)
        return rules.md5_etag(body)

    async def _look_again(self, key: str, written: PinOptions) -> None:
        pin = await self._cluster.record(object_block(self._name, key).cid, timeout_s=self._timeout_s)
        if pin is None or dict(pin.metadata) != dict(written.metadata):
            raise PreconditionFailed(f"{self.url}/{key}: another node wrote it in this moment")

    async def delete(self, key: str) -> None:
        """See Store.delete. A write of another node in the same moment wins."""
        async with self._changing:
            await self._cluster.unpin(object_block(self._name, key).cid, timeout_s=self._timeout_s)

    async def list(
        self,
        prefix: str,
        *,
        delimiter: bool = True,
        cursor: str | None = None,
        start_after: str | None = None,
        limit: int = 1000,
        metadata: bool = True,
    ) -> Page:
        """See Store.list: the whole pinset is read for each page."""
        limit = rules.check_limit(limit)
        top = object_prefix(self._name)
        pins = {
            pin.name.removeprefix(top): pin
            for pin in await self._cluster.records(top + prefix, timeout_s=self._timeout_s)
            if pin.cid == object_block(self._name, pin.name.removeprefix(top)).cid  # anybody may pin under any name
        }
        objects = {key: found[0] for key, pin in pins.items() if (found := _object(key, pin))}
        entries = fold(sorted(objects), prefix, delimiter, cursor or start_after or "", limit + 1)
        page = entries[:limit]
        return Page(
            objects=tuple(objects[entry] for entry, folded in page if not folded),
            prefixes=tuple(entry for entry, folded in page if folded),
            next_cursor=page[-1][0] if len(entries) > limit else None,
        )

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """See Store.copy."""
        body = await self.get(source, 0, BODY_MAX_BYTES, if_match=if_match)
        return await self.put(target, body, metadata=metadata, content_type=content_type, condition=condition)

    async def create_upload(self, key: str, *, metadata: Mapping[str, str], content_type: str = FILE_TYPE) -> str:
        """Raises Rejected."""
        _refuse_parts(key)

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """Raises Rejected."""
        _refuse_parts(key)

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """Raises Rejected."""
        _refuse_parts(key)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Part], *, condition: Condition = ANY
    ) -> str:
        """Raises Rejected."""
        _refuse_parts(key)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """There are no uploads: success."""
        await trio.lowlevel.checkpoint()

    async def uploads(self) -> Sequence[Upload]:
        """None."""
        await trio.lowlevel.checkpoint()
        return ()

    @property
    def unpublished(self) -> Unpublished:
        """See Store.unpublished. Nothing: a change that returned is there."""
        return Unpublished()

    async def sync(self) -> None:
        """What was written is in this peer's database when `put` returns."""
        await trio.lowlevel.checkpoint()

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Raises Rejected."""
        raise Rejected(f"{self.url}: the pinset does not tell of changes")

    async def aclose(self) -> None:
        """Close both clients."""
        closing: Sequence[Callable[[], Awaitable[None]]] = (self._blocks.aclose, self._cluster.aclose)
        for close in closing:
            await close()


def _refuse_parts(key: str) -> NoReturn:
    raise Rejected(f"{key}: objects in a pinset are written whole")


def _text(key: str, body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Rejected(f"{key}: objects in a pinset are text") from None


def _object(key: str, pin: Pin) -> tuple[ObjectInfo, bytes] | None:
    """What a record says; None for one that is not of this form: anybody may write to the pinset."""
    try:
        body = pin.metadata["body"].encode()
        kept = json.loads(pin.metadata["metadata"])
        at_ns = int(pin.metadata["at"])
    except (KeyError, ValueError):
        return None
    if not isinstance(kept, dict) or not all(isinstance(value, str) for value in kept.values()):
        return None
    info = ObjectInfo(
        key=key,
        size=len(body),
        etag=rules.md5_etag(body),
        modified_ns=at_ns // _S_NS * _S_NS,
        metadata=kept,
        content_type=pin.metadata.get("type", ""),
    )
    return info, body
