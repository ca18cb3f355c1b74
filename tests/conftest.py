"""Fixtures for all tests: one real MinIO for the session, a fresh bucket for each test that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support import netns
from tests.support.minio import Minio, MinioMissing, required

# No test may find this machine's own AWS configuration, nor ask the metadata service of a cloud.
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_CONFIG_FILE"] = os.devnull
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


# How long an example takes depends on what else the machine does; a hang is pytest-timeout's business.
hypothesis.settings.register_profile("s3vol", deadline=None)
hypothesis.settings.load_profile("s3vol")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Daemons of IPFS talk to whom they can: before the first thread there is, this process leaves the network."""
    if any(item.get_closest_marker("ipfs") for item in session.items) and not session.config.option.collectonly:
        try:
            netns.isolate()
        except OSError as error:
            raise pytest.UsageError(f"tests marked `ipfs` cannot run: {error}; leave them out: -m 'not ipfs'") from None


@pytest.fixture(scope="session")
def minio() -> Iterator[Minio]:
    """A running MinIO, shared by the session: do not stop, pause or fill it; start your own `Minio()` for that."""
    try:
        server = Minio()
    except MinioMissing as error:
        if required():
            pytest.fail(str(error))
        pytest.skip(f"NO TEST ON A REAL S3 SERVER: {error}")
    with server:
        yield server


@pytest.fixture
def bucket(minio: Minio) -> str:
    """Name of a new, empty bucket on `minio`."""
    return minio.new_bucket()
