"""The registry in a pinset: how seldom nodes speak there, and what becomes of it in a partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing

from s3vol.store.ipfs.pinset import PinsetStore
from s3vol_plugin import holders
from s3vol_plugin.base import Holder
from s3vol_plugin.holders import HOLD_S, IN_PINSET
from s3vol_plugin.options import parse_options
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume
from tests.support.ipfs_memory import MemoryBlocks, MemoryCluster, Network


def nodes(network: Network, *, now_ns: Callable[[], int] = time.time_ns) -> list[BucketRegistry]:
    """A registry on each node."""
    found = []
    for node in network.nodes:
        clients = MemoryBlocks(network, node), MemoryCluster(network, node)
        store = PinsetStore("volumes", *clients, timeout_s=1.0, spread_s=0.0, now_ns=now_ns)
        found.append(BucketRegistry(store, node.name, None))
    return found


def volume(by: str = "n0", **options: str) -> Volume:
    """What a node makes of `docker volume create -d s3vol docs`."""
    return parse_options("docs", options, Settings(source="ipfs://volumes", node=by))


def names(held: Sequence[Holder]) -> list[str]:
    """Who holds."""
    return [holder.node for holder in held]


async def test_a_volume_that_stays_mounted_is_spoken_of_every_quarter_of_an_hour(
    hurried: trio.testing.MockClock,
) -> None:
    network = Network(2)
    one, two = nodes(network)
    docs = await one.create(volume())
    before = network.calls["cluster.pin"]
    for _ in range(int(4 * IN_PINSET.speak_s / HOLD_S)):
        await one.hold(docs)
        await one.holders(docs)
        await trio.sleep(HOLD_S)
    assert network.calls["cluster.pin"] - before == 4
    assert names(await two.holders(docs)) == ["n0"]
    await one.release(docs)
    assert names(await two.holders(docs)) == []
    await one.hold(docs)
    assert names(await two.holders(docs)) == ["n0"], "who mounts again says so at once"


async def test_a_node_that_fell_silent_counts_for_three_quarters_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes(Network(2))
    docs = await one.create(volume())
    await one.hold(docs)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + IN_PINSET.fresh_s - 5.0)
    assert names(await two.holders(docs)) == ["n0"]
    monkeypatch.setattr(time, "time", lambda: now_s + IN_PINSET.fresh_s + 5.0)
    assert names(await two.holders(docs)) == []


async def test_words_of_nodes_that_are_gone_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(2)
    one, two = nodes(network)
    docs = await one.create(volume())
    await one.hold(docs)
    await two.clear()
    assert names(await two.holders(docs)) == ["n0"]
    monkeypatch.setattr(holders, "SILENT_S", -1.0)
    await two.clear()
    assert names(await two.holders(docs)) == []


async def test_halves_that_made_the_same_volume_have_one_when_they_meet() -> None:
    network = Network(2)
    network.nodes[1].side = 1
    one, two = nodes(network)
    here, there = await one.create(volume(uid="33")), await two.create(volume("n1", uid="33"))
    assert here.uuid == there.uuid
    network.nodes[1].side = 0
    network.settle()
    assert await one.find("docs") == await two.find("docs")
    assert await one.create(volume(uid="33")) == await one.find("docs"), "made once more, it is the same"


async def test_making_a_volume_again_never_withdraws_it() -> None:
    one, two = nodes(Network(2), now_ns=lambda: 1_700_000_000_000_000_000)
    docs = await one.create(volume())
    shared = {"bucket": "docs", "backend": "ipfs", "share": "yes"}
    await two.create(parse_options("also", shared, Settings(source="ipfs://volumes", node="n1")))  # not younger
    assert await two.create(volume("n1")) == docs
    assert await one.find("docs") == docs


async def test_halves_that_made_different_volumes_agree_on_one_of_them() -> None:
    network = Network(2)
    network.nodes[1].side = 1
    one, two = nodes(network)
    made = [await one.create(volume(uid="33")), await two.create(volume("n1", uid="34"))]
    network.nodes[1].side = 0
    network.settle()
    await one.refresh()
    await two.refresh()
    assert one.get("docs") == two.get("docs")
    assert one.get("docs") in made
