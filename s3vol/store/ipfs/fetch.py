"""Reading blocks: from what is not imported yet, from memory, from Kubo; and never without hashing them.

Theory of operation. At most FETCHES calls are in flight: eight read five times as fast from another node as one,
more gain nothing. Bytes are believed when their hash is the block's name. A few blocks stay in memory, for readers that
take less than a block at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

import trio

from s3vol.errors import Corrupt
from s3vol.store.ipfs.base import Blocks
from s3vol.store.ipfs.cid import Cid, check, is_node, text
from s3vol.store.ipfs.content import row_links
from s3vol.store.ipfs.entry import decode
from s3vol.store.ipfs.nodes import Nodes, below, parse
from s3vol.types import MIB

FETCHES = 8
_KEPT_BYTES = 32 * MIB


class Fetcher:
    """Of one store. `staged` knows blocks that are not in Kubo yet."""

    def __init__(self, blocks: Blocks, staged: Callable[[Cid], bytes | None], *, timeout_s: float) -> None:
        self._blocks = blocks
        self._staged = staged
        self._timeout_s = timeout_s
        self._slots = trio.CapacityLimiter(FETCHES)
        self._kept: OrderedDict[Cid, bytes] = OrderedDict()
        self._kept_bytes = 0

    async def get(self, cid: Cid) -> bytes:
        """The verified block. Raises Unavailable, Corrupt."""
        if (staged := self._staged(cid)) is not None:
            await trio.lowlevel.checkpoint()
            return staged
        if (kept := self._kept.get(cid)) is not None:
            self._kept.move_to_end(cid)
            await trio.lowlevel.checkpoint()
            return kept
        async with self._slots:
            body = await self._blocks.get(cid, timeout_s=self._timeout_s)
        check(cid, body)
        self._keep(cid, body)
        return body

    def _keep(self, cid: Cid, body: bytes) -> None:
        if cid not in self._kept:
            self._kept[cid] = body
            self._kept_bytes += len(body)
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    async def many(self, cids: Collection[Cid]) -> dict[Cid, bytes]:
        """Several blocks side by side. Raises as `get`, one of the errors."""
        found: dict[Cid, bytes] = {}
        errors: list[Exception] = []

        async def one(cid: Cid) -> None:
            try:
                found[cid] = await self.get(cid)
            except Exception as error:  # raised below, alone: a group would hide its kind
                errors.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for cid in cids:
                nursery.start_soon(one, cid)
        if errors:
            raise errors[0]
        return found

    async def tree(self, root: Cid, nodes: Nodes) -> dict[Cid, bytes]:
        """The blocks of a tree that `nodes` lacks, checked for order. Raises Unavailable, Corrupt."""
        found: dict[Cid, bytes] = {}
        waiting = {root}
        while waiting := {cid for cid in waiting if cid not in nodes and cid not in found}:
            if not all(map(is_node, waiting)):
                raise Corrupt(f"tree {text(root)}: bytes of a file are linked where a node should be")
            came = await self.many(waiting)
            for cid, body in came.items():
                _check_order(cid, body)
            found |= came
            waiting = {link for body in came.values() for link in below(body)}
        return found


def _check_order(cid: Cid, body: bytes) -> None:
    if isinstance(decode(body), dict):
        row_links(body)
        return
    keys = [key for key, _ in parse(body)[1]]
    if keys != sorted(set(keys)):
        raise Corrupt(f"block {text(cid)}: its keys are not in order; it was not made by s3vol")
