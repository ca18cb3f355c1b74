"""Names of blocks: a CID is the codec and the SHA-256 of the bytes that it names.

Theory of operation. Only two forms are made and believed, both version 1 with SHA-256: `raw` for the bytes of files,
`dag-cbor` for everything that links. Inside the program a CID is its 36 bytes; text exists where people and HTTP see
it. Whoever gives us bytes for a CID is not trusted: `check` hashes them.
"""

from __future__ import annotations

import hashlib
from typing import NewType

from cbrrr import CID

from s3vol.errors import Corrupt

Cid = NewType("Cid", bytes)
"""A binary CIDv1, raw or dag-cbor, SHA-256: 36 bytes."""

DIGEST_BYTES = 32
_RAW = CID.CIDV1_RAW_SHA256_32_PFX
_NODE = CID.CIDV1_DAG_CBOR_SHA256_32_PFX
CID_BYTES = len(_RAW) + DIGEST_BYTES


def raw_cid(body: bytes | memoryview) -> Cid:
    """The name of a block that is part of a file."""
    return Cid(_RAW + hashlib.sha256(body).digest())


def node_cid(body: bytes) -> Cid:
    """The name of an encoded dag-cbor node."""
    return Cid(_NODE + hashlib.sha256(body).digest())


def raw_of_digest(digest: bytes) -> Cid:
    """The raw block with this SHA-256."""
    return Cid(_RAW + digest)


def digest_of(cid: Cid) -> bytes:
    """The SHA-256 in a CID."""
    return cid[-DIGEST_BYTES:]


def is_node(cid: Cid) -> bool:
    """True for dag-cbor, False for raw bytes."""
    return cid.startswith(_NODE)


def check(cid: Cid, body: bytes | memoryview) -> None:
    """Raise Corrupt unless these are the bytes that the CID names."""
    if hashlib.sha256(body).digest() != digest_of(cid):
        raise Corrupt(f"block {text(cid)}: {len(body)} bytes came that are not its content; run `ipfs repo verify`")


def known(cid: bytes) -> Cid:
    """The CID, if it has one of the two forms. Raises Corrupt."""
    if len(cid) != CID_BYTES or not cid.startswith((_RAW, _NODE)):
        raise Corrupt(f"{cid.hex()} is no CID that s3vol makes (version 1, raw or dag-cbor, SHA-256)")
    return Cid(cid)


def text(cid: Cid) -> str:
    """The CID in base32, as ipfs(1) and Cluster show it."""
    return CID(cid).encode()


def of_text(word: str) -> Cid:
    """The CID that was written in base32. Raises Corrupt."""
    try:
        return known(CID.decode(word).cid_bytes)
    except ValueError:
        raise Corrupt(f"{word!r} is no CID in base32") from None
