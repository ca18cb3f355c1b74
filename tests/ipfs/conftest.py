"""Fixtures of tests on real IPFS daemons: three nodes beside the test process, shared by a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ipfs import Swarm
from tests.support.ipfs_binaries import IpfsMissing, required


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    """Three running nodes; a test that kills one starts it again."""
    try:
        three = Swarm(3)
    except IpfsMissing as error:
        if required():
            pytest.fail(str(error))
        pytest.skip(f"NO TEST ON REAL IPFS DAEMONS: {error}")
    with three:
        yield three
