"""Fixtures of tests on real IPFS daemons: three nodes beside the test process, shared by the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from tests.support.ipfs import ApiError, Node, Swarm
from tests.support.ipfs_binaries import IpfsMissing, required
from tests.support.minio import wait_for

GOSSIP_S = 20.0  # takes a second; in one run of a busy machine a peer heard nothing of the others for minutes


@pytest.fixture(scope="session")
def _swarm() -> Iterator[Swarm]:
    for last in (False, False, True):
        try:
            three = Swarm(3)
        except IpfsMissing as error:
            if required():
                pytest.fail(str(error))
            pytest.skip(f"NO TEST ON REAL IPFS DAEMONS: {error}")
        with three:
            try:
                _await_gossip(three)
            except TimeoutError:
                if last:
                    raise
                continue
            yield three
            return


def _await_gossip(swarm: Swarm) -> None:
    """Return when what each node pins, and what it unpins, has come to all. Raises TimeoutError."""
    cids = [node.add_block(os.urandom(32)) for node in swarm.nodes]
    for node, cid in zip(swarm.nodes, cids, strict=True):
        node.rest("POST", f"/pins/{cid}")
    wait_for(lambda: all(_has(node, cid) for node in swarm.nodes for cid in cids), GOSSIP_S, "pins at all peers")
    for node, cid in zip(swarm.nodes, cids, strict=True):
        node.rest("DELETE", f"/pins/{cid}")
    wait_for(lambda: not any(_has(node, cid) for node in swarm.nodes for cid in cids), GOSSIP_S, "no pins left")


def _has(node: Node, cid: str) -> bool:
    try:
        node.rest("GET", f"/allocations/{cid}")
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


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
