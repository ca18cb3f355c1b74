"""Small objects in the pinset: what all nodes read, what a condition is worth, and what strangers may pin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from s3vol.errors import NotFound, PreconditionFailed, Rejected
from s3vol.store.base import ABSENT, matches
from s3vol.store.ipfs.base import PinOptions
from s3vol.store.ipfs.pinset import BODY_MAX_BYTES, PinsetStore, object_block, object_prefix
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network

S_NS = 1_000_000_000


def stores(network: Network, **settings: float) -> list[PinsetStore]:
    """A store on each node."""
    clocks: list[Callable[[], int]] = [lambda: 1_700_000_000_500_000_000 for _ in network.nodes]
    return [
        PinsetStore(
            "volumes",
            MemoryBlocks(network, node),
            MemoryCluster(network, node),
            timeout_s=1.0,
            now_ns=clock,
            spread_s=settings.get("spread_s", 0.0),
        )
        for node, clock in zip(network.nodes, clocks, strict=True)
    ]


async def test_what_one_node_writes_all_nodes_read() -> None:
    one, two = stores(Network(2))
    body = '{"name": "düne",\n "x": [1]}\n'.encode()
    etag = await one.put("a/b.json", body, metadata={"Mark": "n1"}, content_type="application/json", condition=ABSENT)
    info = await two.head("a/b.json")
    assert (info.key, info.size, info.etag, info.metadata) == ("a/b.json", len(body), etag, {"mark": "n1"})
    assert (info.modified_ns, info.content_type) == (1_700_000_000 * S_NS, "application/json")
    assert bytes(await two.get("a/b.json", 0, 1000, if_match=etag)) == body
    assert bytes(await two.get("a/b.json", 1, 4)) == body[1:5]
    assert await two.fetch("a/b.json", 3) == (info, body[:3])
    await two.delete("a/b.json")
    await two.delete("a/b.json")
    with pytest.raises(NotFound):
        await one.head("a/b.json")


async def test_a_condition_that_does_not_hold_changes_nothing() -> None:
    one, two = stores(Network(2))
    etag = await one.put("k", b"1", metadata={}, condition=ABSENT)
    for condition in (ABSENT, matches("another")):
        with pytest.raises(PreconditionFailed):
            await two.put("k", b"2", metadata={}, condition=condition)
    with pytest.raises(NotFound):
        await two.put("nothing", b"2", metadata={}, condition=matches(etag))
    assert bytes(await two.get("k", 0, 9)) == b"1"
    await two.put("k", b"2", metadata={}, condition=matches(etag))
    with pytest.raises(PreconditionFailed):
        await one.get("k", 0, 9, if_match=etag)


async def test_of_two_nodes_that_write_in_one_moment_one_is_told(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(2)
    network.nodes[1].side = 1  # records are on their way: neither sees the other's when it looks
    one, two = stores(network, spread_s=0.25)
    told: list[bool] = []

    async def write(store: PinsetStore, body: bytes) -> None:
        try:
            await store.put("k", body, metadata={}, condition=ABSENT)
            told.append(True)
        except PreconditionFailed:
            told.append(False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, one, b"1")
        nursery.start_soon(write, two, b"2")
        await trio.sleep(0.1)
        network.nodes[1].side = 0
        network.settle()
    assert sorted(told) == [False, True]
    assert bytes(await one.get("k", 0, 9)) == bytes(await two.get("k", 0, 9))


async def test_halves_that_meet_again_have_one_whole_object() -> None:
    network = Network(2)
    network.nodes[1].side = 1
    one, two = stores(network)
    for store, body in ((one, b"1"), (two, b"22")):
        await store.put("k", body, metadata={"by": body.decode()}, condition=ABSENT)
    network.nodes[1].side = 0
    network.settle()
    seen = [await store.head("k") for store in (one, two)]
    assert seen[0] == seen[1]
    assert (seen[0].size, (seen[0].metadata or {})["by"]) in [(1, "1"), (2, "22")]


async def test_a_listing_has_pages_and_folders_and_only_this_store_s_objects() -> None:
    network = Network(1)
    (store,) = stores(network)
    other = PinsetStore(
        "volume", MemoryBlocks(network, network.nodes[0]), MemoryCluster(network, network.nodes[0]), timeout_s=1.0
    )
    await other.put("s/x", b"", metadata={})
    for key in ("a", "b/1", "b/2", "c"):
        await store.put(key, b"x", metadata={})
    page = await store.list("", limit=2)
    assert ([info.key for info in page.objects], page.prefixes, page.next_cursor) == (["a"], ("b/",), "b/")
    page = await store.list("", limit=2, cursor=page.next_cursor)
    assert ([info.key for info in page.objects], page.prefixes, page.next_cursor) == (["c"], (), None)
    assert [info.key for info in (await store.list("b/", delimiter=False)).objects] == ["b/1", "b/2"]
    assert [info.key for info in (await store.list("", start_after="b/1", delimiter=False)).objects] == ["b/2", "c"]


@pytest.mark.parametrize(
    "metadata",
    [{}, {"body": "x", "metadata": "[]", "at": "1"}, {"body": "x", "metadata": "{", "at": "1"}, {"body": "x"}],
)
async def test_a_pin_of_a_stranger_is_no_object(metadata: dict[str, str]) -> None:
    network = Network(1)
    (store,) = stores(network)
    cluster = MemoryCluster(network, network.nodes[0])
    whole = {"body": "x", "metadata": "{}", "at": "1"}
    await cluster.pin(
        object_block("volumes", "k").cid, PinOptions(f"{object_prefix('volumes')}k", metadata), timeout_s=1
    )
    await cluster.pin(object_block("volumes", "z").cid, PinOptions(f"{object_prefix('volumes')}y", whole), timeout_s=1)
    assert (await store.list("")).objects == ()
    with pytest.raises(NotFound):
        await store.head("k")


async def test_what_a_request_cannot_carry_is_refused() -> None:
    (store,) = stores(Network(1))
    await store.put("k", b"x" * BODY_MAX_BYTES, metadata={})
    for key, body in (("k", b"x" * (BODY_MAX_BYTES + 1)), ("k", b"\xff"), ("a//b", b"")):
        with pytest.raises(Rejected):
            await store.put(key, body, metadata={})
    with pytest.raises(Rejected):
        await store.create_upload("k", metadata={})
