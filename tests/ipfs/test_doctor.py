"""What doctor finds on real daemons."""

from __future__ import annotations

import pytest

from s3vol.commands.doctor_ipfs import Facts, examine, judge
from s3vol.store.ipfs.base import PinOptions
from s3vol.store.ipfs.cid import raw_cid
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.kubo import Kubo
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER

pytestmark = pytest.mark.ipfs


async def look(swarm: Swarm, volume: str, *, kubo: int = 0) -> Facts:
    node = swarm.nodes[0]
    blocks = Kubo(swarm.nodes[kubo].kubo_url)
    cluster, anonymous = ClusterPeer(node.cluster_url, login=(USER, PASSWORD)), ClusterPeer(node.cluster_url)
    try:
        environment = {"IPFS_CLUSTER_PATH": str(node.folder / "cluster")}
        return await examine(volume, blocks, cluster, anonymous, environment)
    finally:
        await blocks.aclose()
        await cluster.aclose()
        await anonymous.aclose()


async def test_the_daemons_of_the_tests_are_as_docs_ask(swarm: Swarm) -> None:
    facts = await look(swarm, "nothing")
    assert facts.datastore == "leveldb"
    assert not facts.open_rest
    assert {peer.name for peer in facts.peers} == {"node0", "node1", "node2"}
    assert judge(facts) == ([], [])


async def test_the_kubo_of_another_node_and_a_pin_without_copies_are_found(swarm: Swarm) -> None:
    cluster = ClusterPeer(swarm.nodes[0].cluster_url, login=(USER, PASSWORD))
    missing = raw_cid(b"nobody has this")
    await cluster.pin(missing, PinOptions("s3vol/doctor/commit/w/1"), timeout_s=30.0)
    try:
        facts = await look(swarm, "doctor", kubo=1)
    finally:
        await cluster.unpin(missing, timeout_s=30.0)
        await cluster.aclose()
    problems, _ = judge(facts)
    assert facts.under_replicated == ["s3vol/doctor/commit/w/1"]
    assert any("pins on another Kubo" in line for line in problems)
    assert any("1 pins have fewer copies" in line for line in problems)
