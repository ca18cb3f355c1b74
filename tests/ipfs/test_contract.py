"""What the store relies on, held by each implementation of `Blocks` and `Cluster` alike."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

from s3vol.errors import NotFound, Unavailable
from s3vol.store.ipfs.base import Blocks, Cluster, PinOptions
from s3vol.store.ipfs.cid import raw_cid
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.kubo import Kubo
from tests.ipfs.blocks import linked, raw
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network

WAIT_S = 30.0  # long enough for a machine under load
SHORT_S = 0.3  # for what never comes


@dataclass(frozen=True, slots=True)
class Pair:
    """The two daemons beside one mount."""

    blocks: Blocks
    cluster: Cluster


def open_pair(kind: str, request: pytest.FixtureRequest) -> Pair:
    """The first of three nodes, real or in memory."""
    if kind == "memory":
        network = Network(3)
        return Pair(MemoryBlocks(network, network.nodes[0]), MemoryCluster(network, network.nodes[0]))
    swarm: Swarm = request.getfixturevalue("swarm")
    node = swarm.nodes[0]
    return Pair(Kubo(node.kubo_url), ClusterPeer(node.cluster_url, login=(USER, PASSWORD)))


@pytest.fixture(params=["memory", pytest.param("daemons", marks=pytest.mark.ipfs)])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    opened = open_pair(request.param, request)
    yield opened
    await opened.blocks.aclose()
    await opened.cluster.aclose()


async def test_what_was_loaded_is_there_and_pinned(pair: Pair) -> None:
    leaves = [raw(os.urandom(size)) for size in (1, 1000, 1 << 20)]
    root = linked(leaves)
    await pair.blocks.load([*leaves, root], root.cid, timeout_s=WAIT_S)
    for block in (*leaves, root):
        assert await pair.blocks.has(block.cid, timeout_s=WAIT_S)
        assert await pair.blocks.get(block.cid, timeout_s=WAIT_S) == block.body
    pins = await pair.blocks.pins(timeout_s=WAIT_S)
    assert root.cid in pins
    assert leaves[0].cid not in pins


@pytest.mark.parametrize("there", [True, False])
async def test_what_is_loaded_as_an_update_is_pinned_and_the_former_pin_stays(pair: Pair, there: bool) -> None:
    leaves = [raw(os.urandom(1000)) for _ in range(3)]
    former, root = linked(leaves[:2]), linked(leaves)
    await pair.blocks.load([*leaves, former], former.cid, timeout_s=WAIT_S)
    if not there:
        await pair.blocks.unpin(former.cid, timeout_s=WAIT_S)
    await pair.blocks.load([leaves[2], root], root.cid, timeout_s=WAIT_S, update=former.cid)
    await pair.blocks.load([leaves[2], root], root.cid, timeout_s=WAIT_S, update=former.cid)
    await pair.blocks.collect(timeout_s=WAIT_S)
    pins = await pair.blocks.pins(timeout_s=WAIT_S)
    assert (root.cid in pins, former.cid in pins) == (True, there)
    for block in (*leaves, root):
        assert await pair.blocks.has(block.cid, timeout_s=WAIT_S)


async def test_an_update_that_is_incomplete_is_unavailable(pair: Pair) -> None:
    here, missing = raw(os.urandom(100)), raw(os.urandom(100))
    former, root = linked([here]), linked([here, missing])
    await pair.blocks.load([here, former], former.cid, timeout_s=WAIT_S)
    with pytest.raises(Unavailable):
        await pair.blocks.load([root], root.cid, timeout_s=SHORT_S, update=former.cid)


async def test_an_empty_block_is_a_block(pair: Pair) -> None:
    block = raw(b"")
    await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    assert await pair.blocks.get(block.cid, timeout_s=WAIT_S) == b""


async def test_loading_again_is_success(pair: Pair) -> None:
    block = raw(os.urandom(100))
    for _ in range(2):
        await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    assert block.cid in await pair.blocks.pins(timeout_s=WAIT_S)


async def test_what_the_daemon_has_need_not_be_sent_again(pair: Pair) -> None:
    leaf = raw(os.urandom(100))
    await pair.blocks.load([leaf], leaf.cid, timeout_s=WAIT_S)
    root = linked([leaf])
    await pair.blocks.load([root], root.cid, timeout_s=WAIT_S)
    assert root.cid in await pair.blocks.pins(timeout_s=WAIT_S)


async def test_an_incomplete_dag_is_refused_in_time(pair: Pair) -> None:
    root = linked([raw(os.urandom(100))])
    with pytest.raises(Unavailable):
        await pair.blocks.load([root], root.cid, timeout_s=SHORT_S)
    assert root.cid not in await pair.blocks.pins(timeout_s=WAIT_S)


async def test_a_block_that_nobody_has_is_unavailable_in_time(pair: Pair) -> None:
    nowhere = raw_cid(os.urandom(100))
    assert not await pair.blocks.has(nowhere, timeout_s=WAIT_S)
    with pytest.raises(Unavailable):
        await pair.blocks.get(nowhere, timeout_s=SHORT_S)
    with pytest.raises(Unavailable):
        await pair.blocks.pin(nowhere, timeout_s=SHORT_S)


async def test_unpinned_blocks_go_with_the_next_collection_and_pinned_ones_stay(pair: Pair) -> None:
    kept, dropped = raw(os.urandom(100)), raw(os.urandom(100))
    for block in (kept, dropped):
        await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    for _ in range(2):
        await pair.blocks.unpin(dropped.cid, timeout_s=WAIT_S)  # the second time it is not there: success
    assert await pair.blocks.collect(timeout_s=WAIT_S) >= 1
    assert await pair.blocks.has(kept.cid, timeout_s=WAIT_S)
    assert not await pair.blocks.has(dropped.cid, timeout_s=WAIT_S)


async def test_the_repository_says_how_much_it_holds(pair: Pair) -> None:
    before = await pair.blocks.stat(timeout_s=WAIT_S)
    block = raw(os.urandom(300_000))
    await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    after = await pair.blocks.stat(timeout_s=WAIT_S)
    assert after.blocks == before.blocks + 1
    assert after.used_bytes - before.used_bytes > 250_000
    assert after.max_bytes == before.max_bytes > 0


async def test_a_record_is_read_back_as_it_was_written(pair: Pair) -> None:
    block = raw(os.urandom(100))
    await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    metadata = {"seq": "17", "parents": "a,b", "odd": "ä &=%2F +"}
    await pair.cluster.pin(block.cid, PinOptions("s3vol/vol/head/node & ä", metadata), timeout_s=WAIT_S)
    record = await pair.cluster.record(block.cid, timeout_s=WAIT_S)
    assert record is not None
    assert (record.cid, record.name, record.metadata) == (block.cid, "s3vol/vol/head/node & ä", metadata)
    assert (record.replication_min, record.replication_max) == (-1, -1)


async def test_a_record_that_is_written_again_is_replaced_whole(pair: Pair) -> None:
    block = raw(os.urandom(100))
    await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    await pair.cluster.pin(block.cid, PinOptions("old", {"a": "1", "b": "2"}), timeout_s=WAIT_S)
    await pair.cluster.pin(block.cid, PinOptions("new", {"a": "3"}), timeout_s=WAIT_S)
    record = await pair.cluster.record(block.cid, timeout_s=WAIT_S)
    assert record is not None
    assert (record.name, record.metadata) == ("new", {"a": "3"})


async def test_a_record_that_is_not_there_is_none_and_its_removal_success(pair: Pair) -> None:
    nowhere = raw_cid(os.urandom(100))
    assert await pair.cluster.record(nowhere, timeout_s=WAIT_S) is None
    await pair.cluster.unpin(nowhere, timeout_s=WAIT_S)


async def test_an_update_of_an_unknown_pin_is_not_found(pair: Pair) -> None:
    block = raw(os.urandom(100))
    await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    with pytest.raises(NotFound):
        await pair.cluster.pin(block.cid, PinOptions("new", update=raw_cid(os.urandom(9))), timeout_s=WAIT_S)


async def test_an_update_carries_the_new_name(pair: Pair) -> None:
    old, new = raw(os.urandom(100)), raw(os.urandom(100))
    for block in (old, new):
        await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    await pair.cluster.pin(old.cid, PinOptions("first"), timeout_s=WAIT_S)
    await pair.cluster.pin(new.cid, PinOptions("second", update=old.cid), timeout_s=WAIT_S)
    record = await pair.cluster.record(new.cid, timeout_s=WAIT_S)
    assert record is not None
    assert record.name == "second"
    assert await pair.cluster.record(old.cid, timeout_s=WAIT_S) is not None


async def test_records_are_found_by_the_beginning_of_their_name(pair: Pair) -> None:
    prefix = os.urandom(8).hex()
    assert await pair.cluster.records(prefix, timeout_s=WAIT_S) == []
    blocks = [raw(os.urandom(100)) for _ in range(3)]
    for block, name in zip(blocks, ("a", "b", "a/c"), strict=True):
        await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
        await pair.cluster.pin(block.cid, PinOptions(f"{prefix}/{name}"), timeout_s=WAIT_S)
    found = await pair.cluster.records(f"{prefix}/a", timeout_s=WAIT_S)
    assert {record.cid for record in found} == {blocks[0].cid, blocks[2].cid}
    await pair.cluster.unpin(blocks[0].cid, timeout_s=WAIT_S)
    assert [record.cid for record in await pair.cluster.records(f"{prefix}/a", timeout_s=WAIT_S)] == [blocks[2].cid]


async def test_the_peer_that_is_asked_is_among_its_peers(pair: Pair) -> None:
    me = await pair.cluster.identity(timeout_s=WAIT_S)
    assert me.id in {peer.id for peer in await pair.cluster.peers(timeout_s=WAIT_S)}
    assert me.kubo_id == (await pair.blocks.info(timeout_s=WAIT_S)).peer_id


async def test_a_pin_is_pinned_sooner_or_later(pair: Pair) -> None:
    block = raw(os.urandom(100))
    await pair.blocks.load([block], block.cid, timeout_s=WAIT_S)
    await pair.cluster.pin(block.cid, PinOptions("status"), timeout_s=WAIT_S)
    me = await pair.cluster.identity(timeout_s=WAIT_S)
    with trio.fail_after(WAIT_S):
        while True:
            rows = {row.peer_id: row.status for row in await pair.cluster.status(block.cid, timeout_s=WAIT_S)}
            if rows[me.id] == "pinned":
                break
            await trio.sleep(0.02)
