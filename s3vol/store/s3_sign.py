"""Signature Version 4 of S3 requests, as headers. Pure.

Theory of operation. A request is reduced to a canonical text (method, path, query, headers, hash of the body); its hash
is signed with a key that holds for one day, one region and S3. Every header that is sent is signed but `Host`'s
neighbours that proxies may change, of which we send none. The body is hashed always: the store then refuses what was
damaged on its way. The path is signed as it is sent: S3 neither normalises it nor encodes it twice.

Source: AWS, "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)".

Rejected: botocore's signer for small requests. It is right, and the tests compare with it, but it works on a request
object that takes longer to build (0.2 ms) than everything else that a small request costs here.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Keys:
    """Whose request it is."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """What is signed: `path` and `query` as sent, encoded, `query` sorted by name; header names in lower case."""

    method: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    body_sha256: str  # hex


def sign(request: Request, keys: Keys, region: str, at_s: float) -> dict[str, str]:
    """All headers of the request, with those that authenticate it. `at_s`: seconds since the epoch."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s))
    headers = {
        **request.headers,
        "host": request.host,
        "x-amz-content-sha256": request.body_sha256,
        "x-amz-date": stamp,
    }
    if keys.token is not None:
        headers["x-amz-security-token"] = keys.token
    names = sorted(headers)
    signed = ";".join(names)
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    canonical = f"{request.method}\n{request.path}\n{request.query}\n{lines}\n{signed}\n{request.body_sha256}"
    day = stamp[:8]
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = _mac(_day_key(keys.secret_key, day, region), text).hex()
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
    return headers


@functools.lru_cache(maxsize=4)
def _day_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = _mac(key, word)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
