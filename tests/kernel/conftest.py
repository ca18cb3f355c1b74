"""Fixtures of kernel tests: a MinIO that may be killed, a bucket, and mounts that always go away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.harness import Mounted, Node
from tests.kernel.kills import summary
from tests.kernel.rig import Bucket, S3fs
from tests.support.minio import Minio, MinioMissing, required


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many crash points there are and how many kills ran."""
    if line := summary():
        terminalreporter.write_line(line)


MountFactory = Callable[..., Mounted]


@pytest.fixture(scope="module")
def minio() -> Iterator[Minio]:
    """A MinIO of this module's own: a test may kill, pause and restart it, and leaves it running."""
    try:
        server = Minio()
    except MinioMissing as error:
        if required():
            pytest.fail(str(error))
        pytest.skip(f"NO TEST ON A REAL S3 SERVER: {error}")
    with server:
        yield server


@pytest.fixture
def bucket(minio: Minio) -> Bucket:
    """A fresh bucket, as another client sees it."""
    return Bucket(minio.new_bucket(), minio.client())


@pytest.fixture
def mount(minio: Minio, bucket: Bucket, tmp_path: Path) -> Iterator[MountFactory]:
    """`mount(node, *options)`: the bucket, mounted on a node of that name with a cache of its own.

    The same name again (after umount or kill) is the same node, cache directory included.
    """
    nodes: dict[str, Node] = {}

    def make(name: str, *options: str, source: str | None = None, **environment: str) -> Mounted:
        if name not in nodes:
            nodes[name] = Node(tmp_path / name, minio.environment)
        return nodes[name].mount(source or f"s3://{bucket.name}", *options, environment=environment)

    try:
        yield make
    finally:
        for node in nodes.values():
            node.close()


@pytest.fixture
def s3fs(minio: Minio, bucket: Bucket, tmp_path: Path) -> Iterator[S3fs]:
    """Debian's s3fs on the same bucket."""
    with_s3fs = S3fs(bucket.name, minio, tmp_path)
    try:
        yield with_s3fs
    finally:
        with_s3fs.close()
