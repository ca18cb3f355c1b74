"""Deletion of a volume's objects: interrupted, resumed, done by two, and beside records that nobody can read."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from s3vol.errors import Corrupt, S3volError, Unavailable, UsageError
from s3vol.store.base import Store
from s3vol.store.decorator import Call, Decorator, T
from s3vol.store.memory import MemoryBucket
from s3vol_plugin import holders, records, removal
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume
from tests.plugin.backends import NamedMemoryStore
from tests.plugin.test_volume_commands import Terminal, volume

__all__ = ["volume"]

SETTINGS = Settings("s3://memory", node="n1")


class Hooked(Decorator):
    """Runs a hook before each call of one kind that is on such a key."""

    def __init__(self, inner: Store, operation: str, key: str, hook: Callable[[], Awaitable[object]]) -> None:
        super().__init__(inner)
        self._operation, self._on, self._hook = operation, key, hook

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        if call.operation == self._operation and call.key.startswith(self._on):
            await self._hook()
        return await perform()


@dataclasses.dataclass
class Site:
    """One bucket with a registry, and the volumes below it."""

    bucket: MemoryBucket
    patch: pytest.MonkeyPatch

    def store(self, below: str = "") -> Store:
        return NamedMemoryStore(self.bucket, below)

    def node(self, name: str = "n1", store: Store | None = None) -> BucketRegistry:
        return BucketRegistry(store or self.store(), name, None)

    def volume(self, name: str = "web", prefix: str = "", **changes: object) -> Volume:
        made = Volume(name, uuid.uuid4().hex, f"s3://memory/{prefix or name}", "2026-01-01T00:00:00Z", "n1")
        return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # names of fields

    def serve(self, store: Store) -> None:
        """What `delete_objects` opens from now on."""

        @asynccontextmanager
        async def opened(of: Volume, settings: Settings) -> AsyncIterator[Store]:
            yield store

        self.patch.setattr(removal, "open_volume", opened)

    async def fill(self, prefix: str, *names: str) -> None:
        for name in names:
            await self.store().put(f"{prefix}/{name}", b"data", metadata={})

    async def keys(self, prefix: str) -> list[str]:
        page = await self.store().list(f"{prefix}/", delimiter=False)
        return [info.key for info in page.objects]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """An empty bucket."""
    made = Site(MemoryBucket(), monkeypatch)
    made.serve(made.store("web/"))
    return made


async def fail() -> None:
    raise Unavailable("no answer")


async def test_a_volume_whose_deletion_was_interrupted_half_way_never_comes_back(site: Site) -> None:
    node = site.node()
    made = await node.create(site.volume(on_remove="delete"))
    await site.fill("web", "one", "two")
    await node.remove(made)
    site.patch.setattr(removal, "_PAGE_KEYS", 1)
    site.serve(Hooked(site.store("web/"), "delete", "two", fail))
    with pytest.raises(Unavailable):
        await removal.delete_objects(made, registry=node, settings=SETTINGS)
    assert await site.keys("web") == ["web/two"]
    # The second run cannot even list the registry.
    broken = site.node("n2", Hooked(site.store(), "list", records.FOLDER, fail))
    with pytest.raises(Unavailable):
        await removal.delete_objects(made, registry=broken, settings=SETTINGS)
    with pytest.raises(UsageError, match="its data was deleted"):
        await node.undelete("web")
    site.serve(site.store("web/"))
    await removal.delete_objects(made, registry=node, settings=SETTINGS)
    assert [gone.deletion for gone in node.removed()] == ["done"]


async def test_a_second_deletion_spares_the_volume_that_was_made_when_the_first_was_done(site: Site) -> None:
    one, two, three = (site.node(name) for name in ("n1", "n2", "n3"))
    old = await one.create(site.volume(on_remove="delete"))
    await site.fill("web", "old")
    await one.remove(old)
    new: list[Volume] = []

    async def overtake() -> None:
        if not new:
            site.serve(site.store("web/"))
            await removal.delete_objects(old, registry=one, settings=SETTINGS)
            new.append(await three.create(site.volume()))
            await site.fill("web", "new")

    site.serve(Hooked(site.store("web/"), "list", "", overtake))
    with pytest.raises(UsageError, match="another volume by now"):
        await removal.delete_objects(old, registry=two, settings=SETTINGS)
    assert await site.keys("web") == ["web/new"]
    assert await two.find("web") == new[0]


async def test_what_is_deleted_already_is_not_deleted_again(site: Site) -> None:
    node = site.node()
    old = await node.create(site.volume(on_remove="delete"))
    await node.remove(old)
    await removal.delete_objects(old, registry=node, settings=SETTINGS)
    await site.fill("web", "of-somebody-else")  # the source is free
    with pytest.raises(UsageError, match="its data is deleted already"):
        await removal.delete_objects(old, registry=node, settings=SETTINGS)
    assert await site.keys("web") == ["web/of-somebody-else"]


async def test_data_that_may_be_of_a_volume_whose_record_cannot_be_read_is_not_deleted(site: Site) -> None:
    node = site.node()
    made = await node.create(site.volume())
    other = await node.create(site.volume("other", "web", share=True))
    await site.fill("web", "shared")
    later = json.dumps({**dataclasses.asdict(other), "schema": 2}).encode()  # by a later version of s3vol
    await site.store().put(records.key_of("other"), later, metadata={})
    await node.remove(made)
    two = site.node("n2")  # has never seen it
    with pytest.raises(S3volError, match=r"other\.json"):
        await removal.delete_objects(made, registry=two, settings=SETTINGS)
    assert await site.keys("web") == ["web/shared"]
    await node.refresh()
    assert [(gone.on_remove, gone.deletion) for gone in node.removed()] == [("retain", "")]  # as it was


async def test_volumes_are_made_beside_a_record_that_cannot_be_read(site: Site) -> None:
    node = site.node()
    await site.store().put(records.key_of("hurt"), b"{", metadata={})
    assert await node.create(site.volume()) == node.get("web")


async def test_a_record_of_brackets_harms_no_other(site: Site) -> None:
    node = site.node()
    made = await node.create(site.volume())
    await site.store().put(records.key_of("deep"), b"[" * 60_000, metadata={})
    other = site.node("n2")
    await other.refresh()
    assert other.all() == [made]
    with pytest.raises(Corrupt, match=r"deep\.json"):
        other.get("deep")


@pytest.mark.parametrize("volume", ["file"], indirect=True)
def test_a_removal_with_data_that_comes_to_nothing_leaves_the_volume_as_it_was(volume: Terminal) -> None:
    volume("create", "web")
    before = json.loads(volume("inspect", "web"))
    volume("create", "twin", "-o", "prefix=web", "-o", "share=yes")
    assert "its objects are those of volume twin too" in volume("rm", "--data", "--yes", "web", status=2)
    volume("rm", "twin")
    volume("undelete", "web")
    assert json.loads(volume("inspect", "web")) == before


@pytest.mark.parametrize("volume", ["file"], indirect=True)
def test_a_mount_in_the_moment_of_a_removal_with_data_leaves_the_volume_as_it_was(
    volume: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume("create", "web")
    before = json.loads(volume("inspect", "web"))
    remove = BucketRegistry.remove

    async def mounted_meanwhile(self: BucketRegistry, gone: Volume) -> None:
        await remove(self, gone)
        await holders.Holders(self._store, "n2").hold(gone)

    monkeypatch.setattr(BucketRegistry, "remove", mounted_meanwhile)
    assert "mounted on n2" in volume("rm", "--data", "--yes", "web", status=2)
    assert json.loads(volume("inspect", "web"))["on_remove"] == before["on_remove"] == "retain"


async def test_a_deletion_that_another_node_began_in_the_same_moment_is_not_given_up(site: Site) -> None:
    first = site.node("n1")
    made = await first.create(site.volume(on_remove="delete"))
    await first.remove(made)
    begun: list[str] = []

    async def be_second() -> None:
        if not begun:
            begun.append("n1")
            await first.begin_deletion(made)

    async def fail_then() -> None:
        if begun:
            raise Unavailable("no answer")

    second = site.node("n2", Hooked(Hooked(site.store(), "put", records.FOLDER, be_second), "list", "", fail_then))
    with pytest.raises(Unavailable):
        await removal.delete_objects(made, registry=second, settings=SETTINGS)
    with pytest.raises(UsageError, match="its data was deleted"):  # n1 is deleting it
        await first.undelete("web")
