"""Deleting what nobody needs any more from the registry, beside nodes that need it in that very moment."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3vol.errors import Unavailable, UsageError
from s3vol.store.base import Store
from s3vol.store.decorator import Call, Decorator, T
from s3vol_plugin import holders, records, tombstones
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.volume import Volume
from tests.plugin.backends import KINDS, backend

Hook = Callable[[], Awaitable[object]]


class Interrupted(Decorator):
    """Runs a hook before the first call of one kind; of those for the clocks, or of the others."""

    def __init__(self, inner: Store, operation: str, hook: Hook | None, *, clocks: bool = False) -> None:
        super().__init__(inner)
        self._operation = operation
        self.hook = hook
        self._clocks = clocks

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        wanted = call.operation == self._operation and ("/clock/" in call.key) == self._clocks
        if wanted and self.hook is not None:
            hook, self.hook = self.hook, None
            await hook()
        return await perform()


@dataclasses.dataclass
class Site:
    """One bucket."""

    url: str
    store: Store

    async def node(self, name: str, operation: str = "", hook: Hook | None = None) -> BucketRegistry:
        """A node; with a hook that runs before its first such call."""
        return BucketRegistry(self.store if hook is None else Interrupted(self.store, operation, hook), name, None)

    def volume(self, name: str = "web", **changes: object) -> Volume:
        """A new volume."""
        made = Volume(name, uuid.uuid4().hex, f"{self.url}/{name}", "2026-01-01T00:00:00Z", "n1")
        return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # names of fields

    async def keys(self, folder: str) -> list[str]:
        """What is in a folder of the registry, the clocks aside."""
        page = await self.store.list(folder, delimiter=False)
        return [info.key.removeprefix(folder) for info in page.objects if "/clock/" not in info.key]


@pytest.fixture(params=KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """An empty bucket."""
    async with backend(request.param, tmp_path, request) as (url, open_one):
        yield Site(url, await open_one(""))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened is longer ago than anything that is waited for."""
    monkeypatch.setattr(tombstones, "UNDELETE_S", -1.0)
    monkeypatch.setattr(holders, "SILENT_S", -1.0)


async def removed(site: Site, name: str = "web") -> Volume:
    """A volume that was made and removed."""
    node = await site.node("n1")
    volume = await node.create(site.volume(name))
    await node.remove(volume)
    return volume


async def test_nothing_goes_before_its_time(site: Site) -> None:
    volume = await removed(site)
    one, two = await site.node("n1"), await site.node("n2")
    await one.hold(volume)
    await two.refresh()
    await two.clear()
    assert await site.keys(records.FOLDER) == ["web.json"]
    assert await site.keys(holders.FOLDER) == [f"{volume.uuid}/n1.json"]
    assert await one.undelete("web") == volume


async def test_tombstones_go_when_their_time_is_over_and_nothing_else_does(site: Site, late: None) -> None:
    await removed(site, "gone")
    node = await site.node("n1")
    await node.create(site.volume("there"))
    await node.remove(await node.create(site.volume("going", on_remove="delete")))
    others = [await site.node(f"n{number}") for number in range(2, 6)]
    for other in others:
        await other.refresh()
    async with trio.open_nursery() as nursery:
        for other in others:
            nursery.start_soon(other.clear)
    assert await site.keys(records.FOLDER) == ["going.json", "there.json"]
    await node.refresh()
    assert [volume.name for volume in (*node.all(), *node.removed())] == ["there", "going"]
    with pytest.raises(UsageError, match="no such volume"):
        await node.undelete("gone")
    made = await node.create(site.volume("gone"))
    await others[0].clear()
    assert await others[1].find("gone") == made


async def test_who_creates_while_a_tombstone_is_about_to_be_marked_keeps_the_volume(site: Site, late: None) -> None:
    await removed(site)
    made: list[Volume] = []

    async def create() -> None:
        made.append(await (await site.node("n2")).create(site.volume()))

    clearing = await site.node("n1", "put", create)
    await clearing.refresh()
    await clearing.clear()
    assert [await (await site.node("n3")).find("web")] == made


async def test_nobody_takes_the_place_of_a_tombstone_that_is_being_deleted(site: Site, late: None) -> None:
    volume = await removed(site)
    other = await site.node("n2")

    async def others() -> None:
        with pytest.raises(Unavailable, match="try again in 2m"):
            await other.create(site.volume())
        with pytest.raises(UsageError):
            await other.undelete("web")
        with pytest.raises(UsageError, match="no such volume"):
            await other.begin_deletion(volume)
        await other.clear()  # what somebody else has marked is his

    clearing = await site.node("n1", "delete", others)
    await clearing.refresh()
    await clearing.clear()
    assert await site.keys(records.FOLDER) == []
    await other.create(site.volume())
    assert await site.keys(records.FOLDER) == ["web.json"]


async def test_what_a_crash_leaves_marked_is_cleared_and_replaced_after_a_while(
    site: Site, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash() -> None:
        raise Unavailable("the machine is gone")

    for name in ("web", "other"):
        await removed(site, name)
        crashing = await site.node("n1", "delete", crash)
        await crashing.refresh()
        with pytest.raises(Unavailable):
            await crashing.clear()
    assert await site.keys(records.FOLDER) == ["other.json", "web.json"]
    monkeypatch.setattr(tombstones, "CLEAR_GUARD_S", -1.0)
    node = await site.node("n2")
    made = await node.create(site.volume())
    await node.clear()
    assert await site.keys(records.FOLDER) == ["web.json"]
    assert await node.find("web") == made


async def test_words_of_nodes_that_are_long_silent_go(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await site.node("n1"), await site.node("n2")
    volume = await one.create(site.volume())
    await one.hold(volume)
    monkeypatch.setattr(holders, "SILENT_S", -1.0)
    await two.clear()
    assert await site.keys(holders.FOLDER) == []
    await two.hold(volume)
    assert [holder.node for holder in await one.holders(volume)] == ["n2"]


async def test_a_clock_that_is_cleared_while_it_is_read_is_set_again(site: Site) -> None:
    clock = f"{holders.FOLDER}clock/n1.json"
    store = Interrupted(site.store, "head", None, clocks=True)
    asking = holders.Holders(store, "n1")
    before_ns = await asking.now_ns()
    store.hook = lambda: site.store.delete(clock)  # between its word and its look
    assert await asking.now_ns() >= before_ns
    assert store.hook is None
    assert (await site.store.head(clock)).modified_ns >= before_ns


async def test_a_node_that_is_back_before_its_word_is_marked_keeps_it(site: Site, late: None) -> None:
    volume = await (await site.node("n2")).create(site.volume())
    await (await site.node("n1")).hold(volume)

    async def come_back() -> None:
        await (await site.node("n1")).hold(volume)

    await (await site.node("n2", "put", come_back)).clear()
    assert [holder.node for holder in await (await site.node("n3")).holders(volume)] == ["n1"]


async def test_a_node_that_is_back_while_its_word_is_deleted_waits_and_then_speaks(site: Site, late: None) -> None:
    volume = await (await site.node("n2")).create(site.volume())
    await (await site.node("n1")).hold(volume)
    back = await site.node("n1")
    said = trio.Event()

    async def speak() -> None:
        await back.hold(volume)
        said.set()

    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            nursery.start_soon(speak)
            with trio.move_on_after(0.2):
                await said.wait()
            assert not said.is_set()

        await (await site.node("n2", "delete", come_back)).clear()
    assert [holder.node for holder in await (await site.node("n3")).holders(volume)] == ["n1"]


async def test_a_word_that_a_crash_left_marked_stops_nobody_for_ever(
    site: Site, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await (await site.node("n2")).create(site.volume())
    await (await site.node("n1")).hold(volume)

    async def crash() -> None:
        raise Unavailable("the machine is gone")

    with pytest.raises(Unavailable):
        await (await site.node("n2", "delete", crash)).clear()
    monkeypatch.setattr(holders, "GUARD_S", 0.1)
    await (await site.node("n1")).hold(volume)
    assert [holder.node for holder in await (await site.node("n3")).holders(volume)] == ["n1"]
