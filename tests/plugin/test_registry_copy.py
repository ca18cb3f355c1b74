"""This node's copy of the registry: what it costs, what it survives, and which clock counts."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from s3vol.errors import Unavailable, UsageError
from s3vol.store.base import Page
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MemoryBucket
from s3vol.store.retry import RetryStore
from s3vol.types import ObjectInfo
from s3vol_plugin import records, replica, tombstones
from s3vol_plugin.holders import FRESH_S, fresh
from s3vol_plugin.records import Entry
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.replica import Replica
from s3vol_plugin.volume import Volume
from tests.plugin.backends import NamedMemoryStore


class Clock:
    """Seconds since the epoch, as one node believes."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def make_volume(name: str = "web", **changes: object) -> Volume:
    made = Volume(name, uuid.uuid4().hex, f"s3://memory/{name}", "2026-01-01T00:00:00Z", "n1")
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # names of fields


class Bench:
    """One bucket; each node has faults and a clock of its own."""

    def __init__(self, directory: Path) -> None:
        self.bucket = MemoryBucket()
        self.directory = directory
        self.clock = Clock()
        self.faults = FaultControls()

    @property
    def file(self) -> Path:
        return self.directory / "n1.json"

    def store(self) -> NamedMemoryStore:
        return NamedMemoryStore(self.bucket, "")

    def node(self) -> BucketRegistry:
        """The node that is looked at; made again, it is the same one after a restart."""
        return BucketRegistry(FaultStore(self.store(), self.faults), "n1", self.file, now_s=self.clock)

    def other(self) -> BucketRegistry:
        return BucketRegistry(self.store(), "n2", None)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_after_a_restart_without_the_backend_the_copy_still_answers_and_says_its_age(bench: Bench) -> None:
    node = bench.node()
    assert node.age_s is None
    volume = await node.create(make_volume())
    await node.remove(await node.create(make_volume("gone")))
    assert node.age_s == 0
    bench.clock.now_s += 90
    bench.faults.down = True
    again = bench.node()
    assert (again.get("web"), again.get("gone"), again.age_s) == (volume, None, 90)
    with pytest.raises(Unavailable):
        await again.refresh()
    assert (again.get("web"), again.age_s) == (volume, 90)
    bench.faults.down = False
    await again.refresh()
    assert again.age_s == 0
    assert bench.node().age_s == 0  # the file knows, although nothing in it has changed


async def test_a_node_that_never_had_a_copy_says_so(bench: Bench) -> None:
    bench.faults.down = True
    node = bench.node()
    with pytest.raises(Unavailable):
        await node.refresh()
    assert (node.age_s, node.get("web"), list(node.all())) == (None, None, [])
    bench.faults.down = False
    assert await node.find("web") is None
    assert node.age_s is None  # one answer is no copy
    assert bench.node().age_s is None


async def test_only_records_that_changed_are_read(bench: Bench) -> None:
    node, other = bench.node(), bench.other()
    made = [await other.create(make_volume(f"v{number}")) for number in range(5)]
    await node.refresh()
    assert bench.faults.calls == {"list": 1, "get": 5}
    await node.refresh()
    assert bench.faults.calls == {"list": 2, "get": 5}
    await other.remove(made[3])
    await node.refresh()
    assert bench.faults.calls == {"list": 3, "get": 6}
    bench.faults.calls.clear()
    again = bench.node()
    await again.refresh()
    assert bench.faults.calls == {"list": 1}
    assert [volume.name for volume in again.all()] == ["v0", "v1", "v2", "v4"]


async def test_a_record_that_a_listing_lacks_is_asked_for_before_it_is_believed_gone(bench: Bench) -> None:
    node = bench.node()
    volume = await node.create(make_volume())

    class Blind(NamedMemoryStore):
        async def list(self, prefix: str, *, cursor: str | None = None, **options: Any) -> Page:
            return await super().list("nothing/is/here/")

    blind = BucketRegistry(Blind(bench.bucket, ""), "n1", bench.file, now_s=bench.clock)
    await blind.refresh()
    assert blind.get("web") == volume
    await bench.store().delete(records.key_of("web"))
    await blind.refresh()
    assert blind.get("web") is None


async def test_one_task_asks_and_the_others_wait_for_its_answer(bench: Bench) -> None:
    await bench.other().create(make_volume())
    node = bench.node()
    gate = bench.faults.hold("list")
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(node.refresh)
        await gate.entered.wait()
        await wait_all_tasks_blocked()
        gate.open()
    assert bench.faults.calls["list"] == 1
    assert node.get("web") is not None


async def test_a_failure_is_everybody_s_and_a_cancelled_question_is_taken_over(bench: Bench) -> None:
    await bench.other().create(make_volume())
    node = bench.node()
    gate = bench.faults.hold("list")
    failed: list[Unavailable] = []

    async def ask() -> None:
        try:
            await node.refresh()
        except Unavailable as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        leader = trio.CancelScope()

        async def lead() -> None:
            with leader:
                await node.refresh()

        nursery.start_soon(lead)
        await gate.entered.wait()
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        bench.faults.fail_next("list")
        leader.cancel()
    assert len(failed) == 2
    assert bench.faults.calls["list"] == 2
    await node.refresh()
    assert node.get("web") is not None


async def test_what_this_node_did_while_a_listing_ran_is_newer_than_the_listing(bench: Bench) -> None:
    node, other = bench.node(), bench.other()
    old = await other.create(make_volume("old"))
    await node.refresh()
    new = await other.create(make_volume("new"))
    gate = bench.faults.hold_reply("list")  # it says: old, new
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.refresh)
        await gate.entered.wait()
        await node.remove(old)
        later = await other.create(make_volume("later"))
        assert await node.find("later") == later
        gate.open()
    assert (node.get("old"), node.get("new"), node.get("later")) == (None, new, later)


@pytest.mark.parametrize("verb", ["create", "remove", "undelete"])
async def test_a_reply_that_was_lost_is_no_conflict(bench: Bench, verb: str, autojump_clock: object) -> None:
    node = BucketRegistry(RetryStore(FaultStore(bench.store(), bench.faults)), "n1", None)
    volume = make_volume()
    if verb != "create":
        await node.create(volume)
    if verb == "undelete":
        await node.remove(volume)
    if verb == "undelete":
        bench.faults.apply_then_fail("put", times=2)  # the first put asks for the store's clock
    else:
        bench.faults.apply_then_fail("put")
    if verb == "create":
        assert await node.create(volume) == volume
    elif verb == "remove":
        await node.remove(volume)
    else:
        assert await node.undelete("web") == volume
    assert (await bench.other().find("web")) == (None if verb == "remove" else volume)


async def test_no_clock_of_a_node_decides_who_holds_a_volume(bench: Bench) -> None:
    wrong = Clock(1.0)
    early = BucketRegistry(bench.store(), "n1", None, now_s=wrong)
    late = BucketRegistry(bench.store(), "n2", None, now_s=Clock(4_000_000_000.0))
    volume = await early.create(make_volume())
    await early.hold(volume)
    assert [holder.node for holder in await late.holders(volume)] == ["n1"]
    await late.hold(volume)
    assert sorted(holder.node for holder in await early.holders(volume)) == ["n1", "n2"]


def test_a_word_counts_for_three_minutes_of_the_store() -> None:
    now_ns = 1_700_000_000 * 10**9

    def word(node: str, age_s: float) -> ObjectInfo:
        return ObjectInfo(f".s3vol/mounts/{'a' * 32}/{node}.json", 1, "e", now_ns - int(age_s * 1e9))

    words = [word("new", 0), word("ahead", -5), word("old", FRESH_S), word("dead", FRESH_S + 1)]
    clock = ObjectInfo(".s3vol/mounts/clock/n1.json", 1, "e", now_ns)
    found = fresh([*words, clock], now_ns)
    assert {holder.node: holder.age_s for holder in found["a" * 32]} == {"new": 0, "ahead": 0, "old": FRESH_S}
    assert list(found) == ["a" * 32]


def test_seven_days_are_those_of_the_store() -> None:
    volume = make_volume(removed_at="2026-01-01T00:00:00Z", removed_by="n1")
    tombstone = Entry(volume, "e", 10**18)
    just, over = int(10**18 + 7 * 86400e9), int(10**18 + 7 * 86400e9 + 1e9)
    assert tombstones.revive(tombstone, just).removed_at == ""
    with pytest.raises(UsageError, match="its objects are still at s3://memory/web: create it again"):
        tombstones.revive(tombstone, over)
    with pytest.raises(UsageError, match="undelete"):
        tombstones.may_replace(tombstone, make_volume(), just)
    tombstones.may_replace(tombstone, make_volume(), over)


async def test_a_file_that_cannot_be_read_is_put_aside_and_does_not_stop_the_start(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.node().create(make_volume())
    for content in (b"", b"{", b"[]", b'{"schema": 1, "source": "s3://memory", "records": {"web": {}}}'):
        bench.file.write_bytes(content)
        node = bench.node()
        assert (node.age_s, list(node.all())) == (None, [])
        assert bench.file.with_suffix(".corrupt").read_bytes() == content
    assert "put aside" in caplog.text
    await node.refresh()
    assert node.get("web") is not None
    assert bench.node().get("web") is not None


async def test_the_copy_of_another_registry_is_not_used(bench: Bench) -> None:
    await bench.node().create(make_volume())
    content = json.loads(bench.file.read_text())
    bench.file.write_text(json.dumps({**content, "source": "s3://another"}))
    assert (bench.node().age_s, bench.node().get("web")) == (None, None)


async def test_a_disk_that_is_full_makes_no_answer_wrong(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = bench.node()
    await node.refresh()

    def full(path: Path, data: bytes, at_s: float | None) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(replica, "write_durably", full)
        volume = await node.create(make_volume())
        await node.refresh()
    assert node.get("web") == volume
    assert caplog.text.count("No space left") == 1
    await node.refresh()
    assert bench.node().get("web") == volume


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "copy.json"
    replica.write_durably(path, b"first", 1_700_000_000.0)
    assert (path.read_bytes(), path.stat().st_mtime) == (b"first", 1_700_000_000.0)

    def broken(fd: int) -> None:
        raise OSError(5, "I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="I/O error"):
            replica.write_durably(path, b"second", None)
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["copy.json"]


def test_a_node_must_have_a_name_that_can_be_in_a_key(bench: Bench) -> None:
    for node in ("", "../x", "a/b", "x" * 64):
        with pytest.raises(UsageError, match="node"):
            BucketRegistry(bench.store(), node, None)


@pytest.mark.parametrize("level", [logging.WARNING])
async def test_a_registry_that_is_well_says_nothing(bench: Bench, level: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(level):
        node = bench.node()
        await node.create(make_volume())
        await node.refresh()
    assert caplog.records == []


def test_a_copy_of_the_registry_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.mkdir()
    assert Replica(path, "s3://bucket/").age_s is None
