"""The client of IPFS-Cluster on real peers: what is promised beyond one peer, and how it fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from s3vol.errors import Denied, Rejected, Unavailable
from s3vol.store.ipfs.acquaintance import Acquaintance
from s3vol.store.ipfs.base import Block, PinOptions
from s3vol.store.ipfs.cid import text
from s3vol.store.ipfs.cluster import PACE_S, ClusterPeer
from s3vol.store.ipfs.kubo import Kubo
from tests.ipfs.blocks import raw
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER
from tests.support.minio import free_port

pytestmark = pytest.mark.ipfs
WAIT_S = 30.0  # long enough for a machine under load
LOGIN = (USER, PASSWORD)


@pytest.fixture
async def peers(swarm: Swarm) -> AsyncIterator[list[ClusterPeer]]:
    clients = [ClusterPeer(node.cluster_url, login=LOGIN) for node in swarm.nodes]
    yield clients
    for client in clients:
        await client.aclose()


async def stored(swarm: Swarm, count: int) -> list[Block]:
    """New blocks of the first node."""
    kubo = Kubo(swarm.nodes[0].kubo_url)
    blocks = [raw(os.urandom(100)) for _ in range(count)]
    for block in blocks:
        await kubo.load([block], block.cid, timeout_s=WAIT_S)
    await kubo.aclose()
    return blocks


async def seen(peer: ClusterPeer, block: Block, seq: int) -> None:
    """Return when this peer has the register at `seq` or later."""
    with trio.fail_after(WAIT_S):
        while True:
            record = await peer.record(block.cid, timeout_s=WAIT_S)
            if record is not None and int(record.metadata["seq"]) >= seq:
                return
            await trio.sleep(0.005)


async def test_all_peers_know_each_other(peers: list[ClusterPeer], swarm: Swarm) -> None:
    for client, node in zip(peers, swarm.nodes, strict=True):
        assert (await client.identity(timeout_s=WAIT_S)).name == f"node{node.number}"
        known = await client.peers(timeout_s=WAIT_S)
        assert {(peer.id, peer.kubo_id, peer.error) for peer in known} == {
            (node.peer_id, node.kubo_id, "") for node in swarm.nodes
        }


async def test_the_login_is_shown_to_all_peers_and_to_nobody_else(peers: list[ClusterPeer], swarm: Swarm) -> None:
    others = Acquaintance(peers[0], partial(ClusterPeer, login=LOGIN), has_login=True)
    for node in swarm.nodes[1:]:
        client = await others.meet(node.cluster_url)
        assert client is not None
        assert (await client.identity(timeout_s=WAIT_S)).id == node.peer_id
        await client.aclose()
    assert await others.meet(f"http://127.0.254.254:{free_port()}") is None


async def test_a_register_is_seen_by_all_and_never_goes_backwards(peers: list[ClusterPeer], swarm: Swarm) -> None:
    (register,) = await stored(swarm, 1)
    history: list[int] = []

    async def watch(finished: trio.Event) -> None:
        while not finished.is_set():
            record = await peers[1].record(register.cid, timeout_s=WAIT_S)
            history.append(int(record.metadata["seq"]) if record else -1)
            await trio.sleep(0.01)

    finished = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, finished)
        for seq in range(30):
            await peers[0].pin(register.cid, PinOptions("head", {"seq": str(seq)}), timeout_s=WAIT_S)
        await seen(peers[1], register, 29)
        await seen(peers[2], register, 29)
        finished.set()
    assert history == sorted(history)


async def test_changes_of_many_tasks_go_out_one_by_one(peers: list[ClusterPeer], swarm: Swarm) -> None:
    blocks = await stored(swarm, 10)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(partial(peers[0].pin, block.cid, PinOptions("burst"), timeout_s=WAIT_S))
    assert trio.current_time() - began >= (len(blocks) - 1) * PACE_S  # a lower bound: no machine is too slow for it
    names = {record.cid for record in await peers[0].records("burst", timeout_s=WAIT_S)}
    assert names == {block.cid for block in blocks}


async def test_copies_are_made_where_they_were_asked_for(peers: list[ClusterPeer], swarm: Swarm) -> None:
    (block,) = await stored(swarm, 1)
    two = PinOptions("two", replication_min=2, replication_max=2, allocations=[swarm.nodes[0].peer_id])
    await peers[0].pin(block.cid, two, timeout_s=WAIT_S)
    record = await peers[0].record(block.cid, timeout_s=WAIT_S)
    assert record is not None
    assert swarm.nodes[0].peer_id in record.allocations
    assert len(record.allocations) == 2
    with trio.fail_after(WAIT_S):
        while True:
            status = await peers[0].status(block.cid, timeout_s=WAIT_S)
            if {row.peer_id for row in status if row.status == "pinned"} == set(record.allocations):
                break
            await trio.sleep(0.02)
    assert sorted(row.status for row in status) == ["pinned", "pinned", "remote"]


async def test_more_copies_than_peers_are_refused_in_words(peers: list[ClusterPeer], swarm: Swarm) -> None:
    (block,) = await stored(swarm, 1)
    with pytest.raises(Unavailable, match="not enough peers"):
        await peers[0].pin(block.cid, PinOptions("5", replication_min=5, replication_max=5), timeout_s=WAIT_S)


async def test_a_wrong_password_is_denied(swarm: Swarm) -> None:
    for login in (None, (USER, "wrong")):
        client = ClusterPeer(swarm.nodes[0].cluster_url, login=login)
        with pytest.raises(Denied, match="another user and password"):
            await client.identity(timeout_s=WAIT_S)
        with pytest.raises(Denied, match="another user and password"):
            await client.records("", timeout_s=WAIT_S)
        await client.aclose()


async def test_a_peer_that_is_not_there_is_unavailable() -> None:
    client = ClusterPeer(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="is it running, is the option cluster= its REST"):
        await client.identity(timeout_s=WAIT_S)
    with pytest.raises(Unavailable, match="is it running, is the option cluster= its REST"):
        await client.records("", timeout_s=WAIT_S)
    await client.aclose()


async def test_another_service_is_no_cluster(swarm: Swarm) -> None:
    client = ClusterPeer(swarm.nodes[0].kubo_url)
    with pytest.raises(Rejected, match="no REST API of IPFS-Cluster"):
        await client.identity(timeout_s=WAIT_S)
    await client.aclose()


async def test_what_kubo_could_not_pin_is_pinned_when_it_is_back(lone: Swarm) -> None:
    (block,) = await stored(lone, 1)
    (node,) = lone.nodes
    peer = ClusterPeer(node.cluster_url, login=LOGIN)
    node.kubo.kill()
    await peer.pin(block.cid, PinOptions("dead"), timeout_s=WAIT_S)  # the pinset is written; copies are another thing
    me = await peer.identity(timeout_s=WAIT_S)
    assert (me.error, me.kubo_id) == ("", "")
    node.start()
    await trio.to_thread.run_sync(lone.await_ready)
    await peer.recover(timeout_s=WAIT_S)
    with trio.fail_after(WAIT_S):
        while True:
            (status,) = await peer.status(block.cid, timeout_s=WAIT_S)
            if status.status == "pinned":
                break
            await trio.sleep(0.05)
    assert text(block.cid).encode() in node.rpc("pin/ls", type="recursive")
    await peer.aclose()
