"""The client of Kubo on real daemons: what `Blocks` promises, and what the daemon does otherwise."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio

from s3vol.errors import Denied, Unavailable
from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import Cid, check, raw_cid
from s3vol.store.ipfs.kubo import Kubo
from tests.ipfs.blocks import linked, raw
from tests.support.ipfs import Swarm
from tests.support.minio import free_port

pytestmark = pytest.mark.ipfs
WAIT_S = 30.0  # long enough for a machine under load
SHORT_S = 0.3  # for what never comes


@pytest.fixture
async def kubo(swarm: Swarm) -> AsyncIterator[Kubo]:
    client = Kubo(swarm.nodes[0].kubo_url)
    yield client
    await client.aclose()


@pytest.fixture
async def other(swarm: Swarm) -> AsyncIterator[Kubo]:
    client = Kubo(swarm.nodes[1].kubo_url)
    yield client
    await client.aclose()


async def test_pins_of_other_forms_are_left_out(kubo: Kubo) -> None:
    body = raw(b"alone")
    await kubo.load([body], body.cid, timeout_s=WAIT_S)
    pins = await kubo.pins(timeout_s=WAIT_S)  # `ipfs init` pins a directory in the old form
    assert body.cid in pins
    assert all(len(cid) == 36 for cid in pins)


async def test_a_block_comes_from_another_node(kubo: Kubo, other: Kubo) -> None:
    body = raw(os.urandom(1 << 20))
    await kubo.load([body], body.cid, timeout_s=WAIT_S)
    assert not await other.has(body.cid, timeout_s=WAIT_S)
    came = await other.get(body.cid, timeout_s=WAIT_S)
    check(body.cid, came)
    assert came == body.body


async def test_pinning_fetches_everything_below(kubo: Kubo, other: Kubo) -> None:
    leaves = [raw(os.urandom(100_000)) for _ in range(30)]
    root = linked(leaves)
    await kubo.load([*leaves, root], root.cid, timeout_s=WAIT_S)
    await other.pin(root.cid, timeout_s=WAIT_S)
    assert all([await other.has(leaf.cid, timeout_s=WAIT_S) for leaf in leaves])


async def test_requests_for_blocks_that_never_come_keep_no_other_waiting(kubo: Kubo) -> None:
    missing = [raw_cid(b"nowhere %d" % number) for number in range(20)]
    body = raw(b"meanwhile")

    async def ask(cid: Cid) -> None:
        with pytest.raises(Unavailable, match=r"no answer|context deadline exceeded"):
            await kubo.get(cid, timeout_s=2.0)

    async with trio.open_nursery() as nursery:
        for cid in missing:
            nursery.start_soon(ask, cid)
        await trio.testing.wait_all_tasks_blocked()
        await kubo.load([body], body.cid, timeout_s=WAIT_S)
        await kubo.unpin(body.cid, timeout_s=WAIT_S)


async def test_a_call_that_waits_can_be_cancelled(kubo: Kubo) -> None:
    with trio.move_on_after(0.05) as scope:
        await kubo.get(raw_cid(b"nowhere"), timeout_s=5.0)
    assert scope.cancelled_caught
    await kubo.stat(timeout_s=WAIT_S)


async def test_an_archive_of_one_request_may_hold_a_whole_segment(kubo: Kubo) -> None:
    seed = os.urandom(1 << 20)
    leaves = [raw(bytes([number]) + seed[1:]) for number in range(64)]
    root = linked(leaves)
    await kubo.load([*leaves, root], root.cid, timeout_s=120.0)
    assert await kubo.get(leaves[-1].cid, timeout_s=WAIT_S) == leaves[-1].body


async def test_what_is_pinned_survives_garbage_collection_at_any_time(kubo: Kubo) -> None:
    kept: list[Block] = []

    async def load(number: int, done: trio.Event) -> None:
        for turn in range(5):
            leaves = [raw(b"%d %d %d" % (number, turn, leaf) * 500) for leaf in range(20)]
            root = linked(leaves)
            await kubo.load([*leaves, root], root.cid, timeout_s=WAIT_S)
            kept.extend([*leaves, root])
        done.set()

    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, 1, done)
        while not done.is_set():
            await kubo.collect(timeout_s=WAIT_S)
    await kubo.collect(timeout_s=WAIT_S)
    assert all([await kubo.has(block.cid, timeout_s=WAIT_S) for block in kept])


async def test_info_shows_what_doctor_judges(kubo: Kubo, swarm: Swarm) -> None:
    info = await kubo.info(timeout_s=WAIT_S)
    assert info.peer_id == swarm.nodes[0].kubo_id
    assert info.version == "0.43.0"
    assert info.settings == {
        "datastore": "flatfs",
        "sync": "true",
        "storage_max": "10GB",
        "gc_period": "1h",
        "api_authorizations": "false",
        "api": f"/ip4/{swarm.nodes[0].address}/tcp/5001",
        "gateway": "",
        "routing": "none",
    }


async def test_a_daemon_that_is_not_there_is_unavailable_in_words() -> None:
    client = Kubo(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match=r"Connection refused.*is the option kubo= its RPC"):
        await client.stat(timeout_s=WAIT_S)
    await client.aclose()


async def test_another_service_is_no_kubo(swarm: Swarm) -> None:
    client = Kubo(swarm.nodes[0].cluster_url)
    with pytest.raises(Denied, match="check the option kubo="):
        await client.stat(timeout_s=WAIT_S)
    await client.aclose()


async def test_a_daemon_that_is_killed_fails_calls_and_a_new_one_serves_the_same_client(lone: Swarm) -> None:
    (node,) = lone.nodes
    client = Kubo(node.kubo_url)
    body = raw(b"before")
    await client.load([body], body.cid, timeout_s=WAIT_S)
    node.kubo.kill()
    with pytest.raises(Unavailable):
        await client.get(body.cid, timeout_s=WAIT_S)
    node.start()
    await trio.to_thread.run_sync(lone.await_ready)
    assert await client.get(body.cid, timeout_s=WAIT_S) == b"before"
    await client.aclose()


async def test_proxies_of_the_environment_are_not_asked(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    client = Kubo(swarm.nodes[0].kubo_url)
    assert (await client.stat(timeout_s=WAIT_S)).max_bytes == 10_000_000_000
    await client.aclose()
