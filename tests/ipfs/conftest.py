"""Fixtures of tests on real IPFS daemons: three nodes beside the test process, shared by the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ipfs import Swarm
from tests.support.ipfs_binaries import IpfsMissing, required


@pytest.fixture(scope="session")
def _swarm() -> Iterator[Swarm]:
    try:
        three = Swarm(3)
    except IpfsMissing as error:
        if required():
            pytest.fail(str(error))
        pytest.skip(f"NO TEST ON REAL IPFS DAEMONS: {error}")
    with three:
        yield three


@pytest.fixture
def swarm(_swarm: Swarm) -> Iterator[Swarm]:
    """Three running nodes beside this process, shared by the session. What a test kills is started again after it."""
    yield _swarm
    dead = [node for node in _swarm.nodes if not (node.kubo.running and node.cluster.running)]
    for node in dead:
        node.start()
    if dead:
        _swarm.await_ready()


@pytest.fixture(scope="module")
def lone() -> Iterator[Swarm]:
    """One node, for tests that kill it and start it again."""
    with Swarm(1) as one:
        yield one
