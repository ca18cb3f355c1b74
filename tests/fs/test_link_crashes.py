"""Hard links: what crashes, failures and other tools leave, and the record of the names."""

from __future__ import annotations

import contextlib
import errno
import json

import pytest
import trio

from s3vol import layout
from s3vol.errors import Corrupt, S3volError
from s3vol.failpoints import Point
from s3vol.fs import linkrecord
from s3vol.fs.linkrecord import Doing, Record
from s3vol.store.base import matches
from s3vol.store.decorator import Operation
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.types import ObjectInfo
from tests.fs.crashes import crash_at, crashing
from tests.fs.rig import Foreign, Node, fails, link_record, links, stub

STEPS = [Point.LINK_AFTER_RECORD, Point.LINK_AFTER_BODY, Point.LINK_AFTER_CONVERSION, Point.LINK_AFTER_STUB]
RENAME_STEPS = [Point.LINK_RENAME_AFTER_RECORD, Point.LINK_RENAME_AFTER_STUB, Point.LINK_RENAME_AFTER_TOMBSTONE]
UNLINK_STEPS = [Point.UNLINK_NAME_AFTER_RECORD, Point.UNLINK_NAME_AFTER_STUB, Point.UNLINK_NAME_AFTER_BODY]


async def check_tidy(node: Node, foreign: Foreign, wanted: dict[str, bytes]) -> None:
    """These names and contents, each with the right count, and nothing left of anything else."""
    found = {name: await node.read(name) for name in await node.names()}
    assert found == wanted
    ids: dict[str, set[str]] = {}
    for name in found:
        link = layout.link_of(await foreign.store.head(name))
        if link is not None:
            ids.setdefault(link.id, set()).add(link.token)
    for link_id, tokens in ids.items():
        assert await link_record(foreign, link_id) == Record(frozenset(tokens))
    assert links(foreign) == sorted(
        key for link_id in ids for key in (layout.body_key(link_id), layout.record_key(link_id))
    )


@pytest.mark.parametrize("who", ["itself", "another node"])
@pytest.mark.parametrize("point", STEPS)
async def test_a_crash_in_a_first_link_leaves_the_file_whole_and_nothing_else(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point, who: str
) -> None:
    await a.write("f", b"abc")
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.link("f", "g"))
    assert await b.read("f") == b"abc"
    await finish(a, b, monkeypatch, who)
    done = point is Point.LINK_AFTER_STUB
    await check_tidy(b, foreign, {"f": b"abc", "g": b"abc"} if done else {"f": b"abc"})


async def finish(a: Node, b: Node, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Whoever finds it: the node at its next start, or another one after ten minutes."""
    if who == "itself":
        await a.remount()
        return
    monkeypatch.setattr("s3vol.fs.links.LEFT_BEHIND_S", -5.0)
    monkeypatch.setattr("s3vol.fs.upkeep.SWEEP_S", 0.05)
    b.cache.note("linker", "somebody", "1")  # so that its start looks
    await b.remount()


@pytest.mark.parametrize("point", [Point.LINK_AFTER_RECORD, Point.LINK_AFTER_STUB])
async def test_a_crash_in_a_further_link_leaves_the_names_there_are(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.link("f", "h"))
    await a.remount()
    names = "fgh" if point is Point.LINK_AFTER_STUB else "fg"
    await check_tidy(b, foreign, dict.fromkeys(names, b"abc"))
    assert a.health.counts["links_finished"] == 1


@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("point", UNLINK_STEPS)
async def test_a_crash_in_an_unlink_leaves_the_name_or_not_and_no_body_without_a_name(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point, names: int
) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    if names == 1:
        await a.unlink("g")
    if point is Point.UNLINK_NAME_AFTER_BODY and names == 2:
        return
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.unlink("f"))
    await a.remount()
    left = ["g"] if names == 2 else []
    if point is Point.UNLINK_NAME_AFTER_RECORD:
        left.append("f")
    await check_tidy(b, foreign, dict.fromkeys(left, b"abc"))


@pytest.mark.parametrize("over", [None, "plain", "link"])
@pytest.mark.parametrize("point", RENAME_STEPS)
async def test_a_crash_in_a_rename_leaves_one_of_the_names(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point, over: str | None
) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    wanted = {"f": b"abc", "g": b"abc"}
    if over:
        await a.write("h", b"other")
        wanted["h"] = b"other"
    if over == "link":
        await a.link("h", "i")
        wanted["i"] = b"other"
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.rename("f", "h"))
    await a.remount()
    if point is not Point.LINK_RENAME_AFTER_RECORD:
        wanted["h"] = b"abc"
    if point is Point.LINK_RENAME_AFTER_TOMBSTONE:
        del wanted["f"]
    await check_tidy(b, foreign, wanted)


@pytest.mark.parametrize("point", [Point.RENAME_DIR_AFTER_INTENT, Point.RENAME_DIR_AFTER_COPIES])
async def test_a_crash_in_the_rename_of_a_directory_with_links_is_finished(
    a: Node, b: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    await a.mkdir("d")
    await a.write("d/f", b"abc")
    await a.link("d/f", "g")
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        await crashing(lambda: a.rename("d", "n"))
    await a.remount()
    await a.remount()
    assert foreign.objects() == ["g", "n/", "n/f"]
    assert [((await b.stat(name)).nlink, await b.read(name)) for name in ("g", "n/f")] == [(2, b"abc")] * 2
    link = await stub(foreign, "g")
    assert (await link_record(foreign, link.id)).doing == {}


@pytest.mark.parametrize("operation", ["put", "delete", "head", "get"])
@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("lost", [False, True], ids=["refused", "reply lost"])
async def test_a_request_that_fails_costs_no_file_and_the_sweep_tidies_up(
    a: Node, b: Node, foreign: Foreign, operation: Operation, at: int, lost: bool, autojump_clock: object
) -> None:
    assert isinstance(a.store, FaultStore)
    await a.write("f", b"abc")
    await a.write("over", b"over")
    await a.link("over", "over2")
    for step in (
        lambda: a.link("f", "g"),
        lambda: a.rename("g", "h"),
        lambda: a.rename("h", "over2"),
        lambda: a.unlink("over2"),
    ):
        a.store.controls = FaultControls()
        for _ in range(at):
            a.controls.hold(operation).open()
        (a.controls.apply_then_fail if lost else a.controls.fail_next)(operation)
        with contextlib.suppress(S3volError):
            await step()
    a.store.controls = FaultControls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fs.run)
        await trio.sleep(4000)
        nursery.cancel_scope.cancel()
    found = {name: await b.read(name) for name in await b.names()}
    assert found["f"] == b"abc"
    assert all(body in (b"abc", b"over") for body in found.values())
    await check_tidy(b, foreign, found)


async def test_a_stub_that_arrives_long_after_its_link_has_failed_costs_no_file(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object
) -> None:
    assert isinstance(a.store, FaultStore)
    await a.write("f", b"abc")
    source = await foreign.store.head("f")
    for _ in ("the record", "the body"):
        a.controls.hold("put").open()
    a.controls.fail_next("put")  # the stub in the place of the file, as far as this node knows
    await fails(errno.EIO, a.link("f", "g"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fs.run)
        await trio.sleep(300)
        (link_id,) = {key for key in map(layout.record_id, links(foreign)) if key}
        doing = (await link_record(foreign, link_id)).doing
        body, metadata = layout.stub(layout.Link(link_id, next(token for token in doing if doing[token].path == "f")))
        await foreign.store.put("f", body, metadata=metadata, condition=matches(source.etag))
        assert await b.read("f") == b"abc"
        await trio.sleep(4000)
        nursery.cancel_scope.cancel()
    await check_tidy(b, foreign, {"f": b"abc"})


async def test_a_stub_whose_body_is_gone_says_so_and_can_be_removed(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    link = await stub(foreign, "f")
    foreign.store.bucket.remove(link.key)
    await fails(errno.EIO, b.open("f"))
    assert await b.names() == ["f", "g"]
    await b.unlink("f")
    assert foreign.objects() == ["g"]


async def test_without_its_record_a_link_keeps_its_body(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    link = await stub(foreign, "f")
    foreign.store.bucket.remove(layout.record_key(link.id))
    await b.unlink("f")
    assert await b.read("g") == b"abc"
    await fails(errno.EIO, b.rename("g", "h"))


async def test_a_stub_that_another_tool_has_written_to_is_an_ordinary_file(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("f", b"abc")
    await a.link("f", "g")
    info = await foreign.store.head("f")
    await foreign.put("f", b"written by s3fs", **dict(info.metadata or {}))
    assert await b.read("f") == b"written by s3fs"
    await b.write("f", b"")
    assert (await a.read("g"), (await foreign.store.head("f")).size) == (b"abc", 0)
    assert layout.LINK not in ((await foreign.store.head("f")).metadata or {})


# The record


def test_a_record_is_what_was_written() -> None:
    record = Record(frozenset({"b", "a"}), {"a": Doing("x/y", "node", 5)})
    assert linkrecord.parse(linkrecord.encode(record), "k") == record
    assert json.loads(linkrecord.encode(record))["names"] == ["a", "b"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"names": 3, "doing": {}}', b'{"names": [], "doing": {"a": 1}}'])
def test_a_damaged_record_is_said_to_be_damaged(body: bytes) -> None:
    with pytest.raises(Corrupt, match="k: not the record of a hard link"):
        linkrecord.parse(body, "k")


def test_steps_of_a_record_mean_the_same_when_repeated() -> None:
    doing = {"b": Doing("p", "n", 1)}
    one = Record(frozenset({"a"}))
    two = linkrecord.begin(one, doing, {})
    assert linkrecord.begin(two, doing, {}) == two
    assert linkrecord.settle(two, {"b"}, ()) == linkrecord.settle(linkrecord.settle(two, {"b"}, ()), {"b"}, ())
    assert linkrecord.settle(two, (), {"b"}) == one
    last = linkrecord.settle(linkrecord.begin(one, {}, {"a": Doing("p", "n", 1)}), (), {"a"})
    assert last.dead
    assert last.doing  # somebody is at it


def test_what_is_a_stub() -> None:
    link = layout.Link("0123456789abcdef", "fedcba9876543210")
    body, metadata = layout.stub(link)
    assert layout.link_of(ObjectInfo("f", len(body), "e", 0, metadata)) == link
    assert layout.link_of(ObjectInfo("f", len(body) + 1, "e", 0, metadata)) is None
    assert layout.link_of(ObjectInfo("f", len(body), "e", 0, {layout.LINK: "../../x"})) is None
    assert layout.body_id(link.key) == layout.record_id(layout.record_key(link.id)) == link.id
    assert layout.body_id(layout.record_key(link.id)) is None
