"""The mount process stays within its memory budget, whatever streams through it."""

from __future__ import annotations

import hashlib

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket, memory_cgroup

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

LIMIT_BYTES = 512 << 20


def _stream(mount: MountFactory, bucket: Bucket, size: int, cache_size: str) -> None:
    """Write and read back `size` bytes through a mount that the kernel kills beyond LIMIT_BYTES."""
    block = hashlib.shake_256(b"s3vol").digest(1 << 20)
    with memory_cgroup(LIMIT_BYTES) as group:
        here = mount("a", "--cache-size", cache_size, "--dirty-max", "512M")
        group.add(here.pid)
        written = hashlib.sha256()
        with open(here.path / "stream", "wb", buffering=0) as file:
            for i in range(size >> 20):
                part = i.to_bytes(8, "big") + block[8:]
                assert file.write(part) == len(part)
                written.update(part)
        read = hashlib.sha256()
        with open(here.path / "stream", "rb", buffering=0) as file:
            while part := file.read(1 << 20):
                read.update(part)
        assert read.digest() == written.digest()
        assert here.alive(), "the mount process was killed for its memory"
        assert group.kills() == 0
        assert bucket.client.head_object(Bucket=bucket.name, Key="stream")["ContentLength"] == size
        here.umount()


@pytest.mark.timeout(900)
def test_4_gib_stream_through_a_512_mib_cgroup(mount: MountFactory, bucket: Bucket) -> None:
    _stream(mount, bucket, 4 << 30, cache_size="1G")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_20_gib_stream_through_a_512_mib_cgroup(mount: MountFactory, bucket: Bucket) -> None:
    """The file fits into the cache: else it is published piece by piece, each time with a copy of all before it, and
    the server would need ten times the file's size on its disk."""
    _stream(mount, bucket, 20 << 30, cache_size="24G")
