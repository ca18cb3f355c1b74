"""The other side of each ratio: the same work as plain requests, as many at a time as s3vol may send."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections import Counter
from datetime import timedelta

import obstore
from obstore.store import S3Store

from s3vol.types import MIB
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY, Minio

RANGE_BYTES = 8 * MIB  # what s3vol fetches at a time when it reads ahead
CONCURRENCY = 8  # the default of `downloads`
_REQUESTS = re.compile(r'^minio_api_requests_total\{.*name="(\w+)".*\} (\d+)', re.MULTILINE)


class Plain:
    """Plain requests to one bucket of a MinIO."""

    def __init__(self, server: Minio, bucket: str) -> None:
        self._endpoint = server.endpoint
        self._store = S3Store(
            bucket,
            endpoint=server.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region=REGION,
            client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
        )

    def put(self, key: str, body: bytes) -> None:
        """One PUT, or a parallel multipart upload when the body is over 5 MiB."""
        obstore.put(self._store, key, body)

    def get_ranges(self, key: str, size: int) -> int:
        """The whole object in parallel ranged GETs; returns the bytes received."""
        return asyncio.run(self._get_ranges(key, size))

    async def _get_ranges(self, key: str, size: int) -> int:
        slots = asyncio.Semaphore(CONCURRENCY)

        async def get(start: int) -> int:
            async with slots:
                return len(await obstore.get_range_async(self._store, key, start=start, length=RANGE_BYTES))

        return sum(await asyncio.gather(*(get(start) for start in range(0, size, RANGE_BYTES))))

    def list_all(self, prefix: str) -> int:
        """Every key below a prefix, without attributes; returns how many."""
        return sum(len(page) for page in obstore.list(self._store, prefix=prefix))

    def requests(self) -> Counter[str]:
        """How many requests of each kind the server has counted since it started."""
        with urllib.request.urlopen(f"{self._endpoint}/minio/metrics/v3/api/requests", timeout=10) as answer:
            return Counter({name: int(count) for name, count in _REQUESTS.findall(answer.read().decode())})
