"""S3 stores on the tests' own servers, always with explicit credentials."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest import mock

from s3vol.store.base import Capabilities
from s3vol.store.s3 import S3Store
from s3vol.store.s3_client import connect
from s3vol.store.settings import Source, StoreSettings
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY

MINIO_CAPABILITIES = Capabilities(hides_children=True)
"""What the probe finds on MinIO; tests/store/test_probe.py holds it."""


def settings_for(endpoint: str, **changes: object) -> StoreSettings:
    """Settings for a test server."""
    settings = StoreSettings(
        endpoint=endpoint,
        region=REGION,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        timeout_s=10.0,
        attempt_timeout_s=5.0,
        connect_timeout_s=2.0,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]  # field names are the tests' responsibility


@contextlib.contextmanager
def proxied(endpoint: str) -> Iterator[None]:
    """A client made in this block talks to the endpoint as to a proxy, which every HTTP/1.1 server understands."""
    with mock.patch.dict(os.environ, {"http_proxy": endpoint, "no_proxy": ""}):
        yield


@asynccontextmanager
async def s3_store(
    endpoint: str,
    bucket: str,
    prefix: str = "",
    *,
    capabilities: Capabilities = MINIO_CAPABILITIES,
    behind_proxy: bool = False,
    **changes: object,
) -> AsyncIterator[S3Store]:
    """A bare S3 backend (no retry), closed at the end. With `behind_proxy` no request goes the light way."""
    source = Source("s3", bucket=bucket, prefix=prefix)
    with proxied(endpoint) if behind_proxy else contextlib.nullcontext():
        client = await connect(source, settings_for(endpoint, **changes))
    assert (client.light is None) == behind_proxy
    store = S3Store(client, source, capabilities)
    try:
        yield store
    finally:
        await store.aclose()
