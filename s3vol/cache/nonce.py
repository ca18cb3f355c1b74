"""The nonce of a publish, and how to tell our own write from another's. Pure.

A nonce is `<cache>.<content>.<attempt>`: the random id of the cache directory, the number of the content in it, and
the number of the attempt, the last two in hexadecimal. A cache directory never uses a content number twice, and a
content never an attempt number, so a nonce names one request body. About 25 characters of the 2,048 bytes of
metadata.

A foreign tool that rewrites an object may keep headers that it does not know (s3fs does), our nonce among them. So
the nonce alone is no proof: where the ETag of an attempt can be computed, it must be the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from s3vol.store.base import Buffer


def format_nonce(cache_id: str, content_id: int, attempt: int) -> str:
    """The nonce of one attempt to publish."""
    return f"{cache_id}.{content_id:x}.{attempt:x}"


def parse_attempt(nonce: str, cache_id: str, content_id: int) -> int | None:
    """The attempt number if `nonce` is one of this content's, else None."""
    prefix = f"{cache_id}.{content_id:x}."
    if not nonce.startswith(prefix):
        return None
    try:
        return int(nonce[len(prefix) :], 16)
    except ValueError:
        return None


def whole_etag(body: Buffer) -> str:
    """ETag of a single PUT where `etag_is_md5`."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def parts_etag(etags: Sequence[str]) -> str | None:
    """ETag of a multipart object where `etag_is_md5`: md5 of the binary md5s, and the count (docs/minio.md)."""
    try:
        joined = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"
