"""Blocks for tests of the daemons' clients."""

from __future__ import annotations

import cbrrr

from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import node_cid, raw_cid


def raw(body: bytes) -> Block:
    """A block of a file."""
    return Block(raw_cid(body), body)


def linked(blocks: list[Block]) -> Block:
    """A node that links to these."""
    body = cbrrr.encode_dag_cbor([cbrrr.CID(block.cid) for block in blocks])
    return Block(node_cid(body), body)
