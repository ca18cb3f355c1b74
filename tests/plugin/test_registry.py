"""The registry of volumes on a bucket in memory, a directory and a real MinIO: two nodes and more."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3vol.errors import Corrupt, UsageError
from s3vol.store.base import Store
from s3vol_plugin import records
from s3vol_plugin import volume as volumes
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.volume import Volume
from tests.plugin.backends import REGISTRY_KINDS, Open, backend

MakeNode = Callable[..., Awaitable[BucketRegistry]]


@dataclasses.dataclass
class Site:
    """One bucket, and what the tests need to make nodes and volumes in it."""

    url: str
    open: Open
    directory: Path

    async def node(self, name: str, store: Store | None = None) -> BucketRegistry:
        """A node with a copy of its own."""
        return BucketRegistry(store or await self.open(""), name, self.directory / f"{name}.json")

    def volume(self, name: str = "web", *, by: str = "n1", prefix: str | None = None, **changes: object) -> Volume:
        """A new volume below the registry's source."""
        made = Volume(name, uuid.uuid4().hex, f"{self.url}/{prefix or name}", "2026-01-01T00:00:00Z", by)
        return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # names of fields


@pytest.fixture(params=REGISTRY_KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """An empty bucket."""
    async with backend(request.param, tmp_path, request) as (url, open_one):
        yield Site(url, open_one, tmp_path)


async def test_what_one_node_creates_the_other_finds(site: Site) -> None:
    one, two = await site.node("n1"), await site.node("n2")
    await two.refresh()
    volume = site.volume(options={"cache-size": "2G"}, credentials="prod", share=True)
    assert await one.create(volume) == volume
    assert one.get("web") == volume
    assert two.get("web") is None  # its copy is of before
    assert await two.find("web") == volume
    assert two.get("web") == volume
    assert await two.find("nosuch") is None
    assert [v.name for v in two.all()] == ["web"]


async def test_of_eight_creators_of_one_name_with_different_options_exactly_one_wins(site: Site) -> None:
    nodes = [await site.node(f"n{number}") for number in range(8)]
    wanted = [site.volume(by=f"n{number}", options={"cache-size": f"{number + 1}G"}) for number in range(8)]
    made: list[Volume] = []

    async def create(node: BucketRegistry, volume: Volume) -> None:
        made.append(await node.create(volume))

    async with trio.open_nursery() as nursery:
        for node, volume in zip(nodes, wanted, strict=True):
            nursery.start_soon(create, node, volume)
    assert len(made) == 8
    assert len({volume.uuid for volume in made}) == 1
    assert made[0] in wanted
    for node in nodes:
        await node.refresh()
        assert node.get("web") == made[0]


async def test_a_removed_volume_comes_back_as_it_was_and_only_by_undelete(site: Site) -> None:
    one, two = await site.node("n1"), await site.node("n2")
    volume = await one.create(site.volume(options={"mode": "readonly"}))
    await two.find("web")
    await two.remove(volume)
    await one.refresh()
    assert (one.get("web"), one.all(), await one.find("web")) == (None, [], None)
    assert [gone.removed_by for gone in one.removed()] == ["n2"]
    with pytest.raises(UsageError, match="s3vol volume undelete web"):
        await one.create(site.volume())
    assert await one.undelete("web") == volume
    assert await two.find("web") == volume
    with pytest.raises(UsageError, match="is there, it was not removed"):
        await two.undelete("web")
    with pytest.raises(UsageError, match="no such volume"):
        await two.undelete("never")


async def test_a_volume_with_another_source_takes_the_name_of_a_removed_one(site: Site) -> None:
    node = await site.node("n1")
    await node.remove(await node.create(site.volume()))
    made = await node.create(site.volume(prefix="elsewhere"))
    assert await node.find("web") == made
    with pytest.raises(UsageError, match="is there"):
        await node.undelete("web")


async def test_removing_twice_is_one_removal_and_another_volume_of_the_name_is_safe(site: Site) -> None:
    one, two = await site.node("n1"), await site.node("n2")
    old = await one.create(site.volume())
    await one.remove(old)
    await two.remove(old)
    assert [gone.removed_by for gone in two.removed()] == ["n1"]
    new = await two.create(site.volume(prefix="new"))
    with pytest.raises(UsageError, match="is another volume by now"):
        await one.remove(old)
    assert await one.find("web") == new


async def test_objects_that_are_being_deleted_belong_to_nobody(site: Site) -> None:
    one, two = await site.node("n1"), await site.node("n2")
    volume = await one.create(site.volume(on_remove="delete"))
    await one.remove(volume)
    with pytest.raises(UsageError, match="being deleted"):
        await two.create(site.volume())
    with pytest.raises(UsageError, match="being deleted"):
        await two.create(site.volume("other", prefix="web"))
    await one.begin_deletion(volume)
    with pytest.raises(UsageError, match="its data was deleted"):
        await two.undelete("web")
    with pytest.raises(UsageError, match="being deleted"):
        await two.create(site.volume(prefix="elsewhere"))
    await one.finish_deletion(volume)
    assert (await two.create(site.volume())).uuid != volume.uuid


async def test_what_is_to_be_deleted_can_be_undeleted_until_the_deletion_begins(site: Site) -> None:
    node = await site.node("n1")
    volume = await node.create(site.volume(on_remove="delete"))
    await node.remove(volume)
    assert await node.undelete("web") == volume
    with pytest.raises(UsageError, match="is not removed"):
        await node.begin_deletion(volume)


async def test_writable_volumes_never_overlap_unless_they_are_equal_and_say_so(site: Site) -> None:
    node = await site.node("n1")
    await node.create(site.volume("web", prefix="a/b"))
    for name, prefix, says in (
        ("same", "a/b", "same source"),
        ("inner", "a/b/c", "inside that of"),
        ("outer", "a", "around"),
    ):
        with pytest.raises(UsageError, match=says):
            await node.create(site.volume(name, prefix=prefix))
        assert await node.find(name) is None
        made = await node.create(site.volume(name, prefix=prefix, options={"mode": "readonly"}))
        await node.remove(made)
    await node.create(site.volume("beside", prefix="a/bc"))
    await node.create(site.volume("shared", prefix="a/b", share=True))
    with pytest.raises(UsageError, match="inside that of"):
        await node.create(site.volume("deeper", prefix="a/b/c", share=True))


async def test_two_names_for_one_source_at_once_are_never_both_there(site: Site) -> None:
    nodes = [await site.node(f"n{number}") for number in range(4)]
    won, lost = [], []

    async def create(node: BucketRegistry, name: str) -> None:
        try:
            won.append(await node.create(site.volume(name, prefix="one")))
        except UsageError as error:
            lost.append(str(error))

    async with trio.open_nursery() as nursery:
        for number, node in enumerate(nodes):
            nursery.start_soon(create, node, f"v{number}")
    await nodes[0].refresh()
    assert [volume.name for volume in nodes[0].all()] == [volume.name for volume in won]
    assert len(won) <= 1
    assert all("same source" in error for error in lost)


async def test_no_writable_volume_is_around_the_registry(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with backend("file", tmp_path, request) as (url, open_one):
        node = BucketRegistry(await open_one("registry"), "n1", None)
        volume = Volume("all", uuid.uuid4().hex, url, "2026-01-01T00:00:00Z", "n1")
        with pytest.raises(UsageError, match="around the registry of volumes"):
            await node.create(volume)
        await node.create(dataclasses.replace(volume, options={"mode": "readonly"}))


async def test_a_damaged_record_harms_no_other_and_is_said_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    store = await site.open("")
    node = await site.node("n1", store)
    whole = await node.create(site.volume("whole"))
    hurt = await node.create(site.volume("hurt"))
    for name in ("hurt", "new"):
        await store.put(f".s3vol/volumes/{name}.json", b"{not json", metadata={})
    await store.put(".s3vol/volumes/copied.json", volumes.encode(whole), metadata={})
    await store.put(".s3vol/volumes/..%2Fx.txt", b"", metadata={})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await node.refresh()
    assert node.get("whole") == whole
    assert node.get("hurt") == hurt  # as it was last known
    for name in ("new", "copied"):
        with pytest.raises(Corrupt, match=rf"record \.s3vol/volumes/{name}\.json.*repair it, or delete"):
            node.get(name)
        with pytest.raises(Corrupt):
            await node.create(site.volume(name))
    assert [damaged.name for damaged in node.damaged] == ["copied", "hurt", "new"]
    said = [row.getMessage() for row in caplog.records]
    assert sum("hurt.json" in line for line in said) == sum("new.json" in line for line in said) == 1
    assert sum("is no record" in line for line in said) == 1
    assert [v.name for v in node.all()] == ["hurt", "whole"]
    await store.put(".s3vol/volumes/hurt.json", volumes.encode(hurt), metadata={})
    await store.delete(".s3vol/volumes/new.json")
    await store.delete(".s3vol/volumes/copied.json")
    await node.refresh()
    assert (node.damaged, node.get("new"), node.get("hurt")) == ([], None, hurt)


async def test_a_record_that_takes_the_uuid_of_another_volume_is_refused(site: Site) -> None:
    store = await site.open("")
    node = await site.node("n1", store)
    first = await node.create(site.volume("first"))
    # Records that are equally old are told apart by name.
    await store.put(
        ".s3vol/volumes/second.json", volumes.encode(dataclasses.replace(first, name="second")), metadata={}
    )
    await node.refresh()
    assert node.get("first") == first
    with pytest.raises(Corrupt, match="has the uuid of volume first"):
        node.get("second")


async def test_a_name_that_is_none_never_becomes_a_key(site: Site) -> None:
    node = await site.node("n1")
    for name in ("../../x", "/abs", ".", "..", "", "a\nb", "x" * 300, "a/b", "ü", "-x"):
        assert await node.find(name) is None
        assert node.get(name) is None
        with pytest.raises(UsageError, match="a name is") as caught:
            await node.create(dataclasses.replace(site.volume(), name=name))
        assert "\n" not in str(caught.value)
    assert (await (await site.open("")).list("", delimiter=False)).objects == ()


async def test_a_node_that_holds_a_volume_is_seen_by_the_others_until_it_lets_go(site: Site) -> None:
    one, two = await site.node("n1"), await site.node("n2")
    volume, other = await one.create(site.volume()), await one.create(site.volume("other"))
    assert list(await two.holders(volume)) == []
    await one.hold(volume)
    await one.hold(volume)
    await two.hold(volume)
    found = await two.holders(volume)
    assert sorted(holder.node for holder in found) == ["n1", "n2"]
    assert all(0 <= holder.age_s < 60 for holder in found)
    assert list(await two.holders(other)) == []
    assert set(await two.all_holders()) == {volume.uuid}
    await one.release(volume)
    await one.release(volume)
    assert [holder.node for holder in await one.holders(volume)] == ["n2"]


def test_the_key_of_a_record_names_the_volume() -> None:
    assert records.key_of("a.b_c-D") == ".s3vol/volumes/a.b_c-D.json"
    assert records.key_of("f" * 64).endswith("f.json")
