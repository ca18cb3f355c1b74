"""S3 stores on the tests' own servers, always with explicit credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

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


@asynccontextmanager
async def s3_store(
    endpoint: str,
    bucket: str,
    prefix: str = "",
    *,
    capabilities: Capabilities = MINIO_CAPABILITIES,
    **changes: object,
) -> AsyncIterator[S3Store]:
    """A bare S3 backend (no retry), closed at the end."""
    source = Source("s3", bucket=bucket, prefix=prefix)
    store = S3Store(await connect(source, settings_for(endpoint, **changes)), source, capabilities)
    try:
        yield store
    finally:
        await store.aclose()
