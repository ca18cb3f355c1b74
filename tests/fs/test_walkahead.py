"""Walks through trees: which directories are listed ahead, and that nobody sees them older than he should."""

from __future__ import annotations

import errno
import random

import pytest
import trio
import trio.testing

from s3vol.errors import Unavailable
from s3vol.fs.trail import PARENTS, PATIENCE, Trail
from s3vol.fs.walkahead import AHEAD
from tests.fs.conftest import Nodes
from tests.fs.rig import Foreign, Node, fails

DIRECTORIES = [f"t/d{number}" for number in range(8)]
KEYS = [f"{path}/" for path in DIRECTORIES]


async def _grow(node: Node, foreign: Foreign) -> None:
    """t/d0 ... t/d7 with two files each, and `node` has read the first four of them."""
    for path in DIRECTORIES:
        await foreign.put(f"{path}/f", b"x")
        await foreign.put(f"{path}/g", b"x")
    assert len(await node.names("t")) == len(DIRECTORIES)
    for path in DIRECTORIES[:4]:
        assert await node.names(path) == ["f", "g"]
    await trio.testing.wait_all_tasks_blocked()


def test_neighbours_in_a_row_bring_the_next_ones_a_step_at_a_time() -> None:
    trail = Trail(AHEAD)
    assert trail.listed("t/", KEYS) == []
    wanted = [trail.step(key) for key in KEYS]
    assert wanted == [[], [], KEYS[3:4], KEYS[4:6], KEYS[5:8], KEYS[6:8], KEYS[7:8], []]
    assert max(map(len, wanted)) == AHEAD


@pytest.mark.parametrize("order", [KEYS[::-1], KEYS[::2], [KEYS[0]] * 5, ["t/"] * 5, ["elsewhere/"]])
def test_other_orders_bring_nothing(order: list[str]) -> None:
    trail = Trail(AHEAD)
    trail.listed("t/", KEYS)
    assert not any(trail.step(key) for key in order)


def test_a_walk_goes_on_below_the_directory_it_came_to() -> None:
    trail = Trail(AHEAD)
    trail.listed("t/", KEYS)
    for key in KEYS[:4]:
        trail.step(key)
    below = [f"{KEYS[3]}{name}/" for name in "abc"]
    assert trail.listed(KEYS[3], below) == below[:2]
    assert trail.step(below[0]) == below[1:]
    assert trail.listed("elsewhere/", ["elsewhere/a/"]) == []


def test_after_a_page_that_came_too_late_the_walker_is_left_alone_for_a_while() -> None:
    trail = Trail(AHEAD)
    many = [f"t/{number:03}/" for number in range(PATIENCE + 20)]
    trail.listed("t/", many)
    for key in many[:6]:
        trail.step(key)
    trail.late()
    wanted = [trail.step(key) for key in many[6:]]
    assert wanted[:PATIENCE] == [[]] * PATIENCE
    assert wanted[PATIENCE]


def test_only_so_many_directories_are_remembered() -> None:
    trail = Trail(AHEAD)
    trail.listed("t/", KEYS)
    for number in range(PARENTS):
        trail.listed(f"other{number}/", [])
    assert not any(trail.step(key) for key in KEYS)


async def test_each_directory_of_a_walk_is_listed_once_and_before_the_walker_comes(
    walker: Node, b: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    asked: dict[str, list[int]] = {}
    for node in (walker, b):
        await _grow(node, foreign)
        asked[node.settings.node] = [node.controls.calls["list"]]
        for path in DIRECTORIES[4:]:
            assert await node.names(path) == ["f", "g"]
            assert (await node.stat(f"{path}/f")).size == 1
        asked[node.settings.node].append(node.controls.calls["list"])
    assert asked["a"][0] > asked["b"][0]
    assert asked["a"][1] == asked["b"][1]


async def test_what_this_node_does_meanwhile_is_seen(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _grow(walker, foreign)
    await walker.write("t/d4/new", b"abc")
    await walker.unlink("t/d5/f")
    await walker.write("t/d6/f", b"longer")
    assert await walker.names("t/d4") == ["f", "g", "new"]
    assert await walker.names("t/d5") == ["g"]
    assert [attr.size for _, attr in await walker.rows("t/d6")] == [6, 1]


async def test_a_directory_renamed_meanwhile_is_not_shown_as_it_was(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _grow(walker, foreign)
    await foreign.put("other/h", b"x")
    await walker.rename("t/d4", "was")
    await walker.rename("other", "t/d4")
    assert await walker.names("t/d4") == ["h"]
    assert await walker.names("was") == ["f", "g"]


async def test_what_others_did_is_seen_after_attr_ttl(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _grow(walker, foreign)
    await foreign.put("t/d4/new", b"x")
    await trio.sleep(walker.settings.attr_ttl_s)
    assert await walker.names("t/d4") == ["f", "g", "new"]


async def _come_near(walker: Node, foreign: Foreign) -> None:
    """The next directory that is read makes t/d3 be listed ahead."""
    for path in DIRECTORIES:
        await foreign.put(f"{path}/f", b"x")
    await walker.names("t")
    for path in DIRECTORIES[:2]:
        await walker.names(path)


@pytest.mark.parametrize("error", [Unavailable("no answer"), ValueError("a fault of ours")])
async def test_an_error_of_a_listing_ahead_is_nobodys(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    await _come_near(walker, foreign)
    tried: list[str] = []

    async def fail(key: str) -> None:
        tried.append(key)
        raise error

    walker.fs._ahead._lister.ahead = fail  # type: ignore[method-assign,assignment]
    await walker.names("t/d2")
    await trio.testing.wait_all_tasks_blocked()
    assert tried == ["t/d3/"]
    assert await walker.names("t/d3") == ["f"]


async def test_who_waits_for_a_listing_ahead_that_fails_is_told_and_does_not_wait_twice(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _come_near(walker, foreign)

    async def time_out(key: str) -> None:
        await trio.sleep(60)
        raise Unavailable("no answer within 60 s")

    walker.fs._ahead._lister.ahead = time_out  # type: ignore[method-assign,assignment]
    await walker.names("t/d2")
    began_s = trio.current_time()
    await fails(errno.EIO, walker.names("t/d3"))
    assert trio.current_time() - began_s <= 60
    assert await walker.names("t/d3") == ["f"]


async def test_of_two_walkers_at_one_directory_one_gets_what_was_listed_ahead(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    await _come_near(walker, foreign)
    parent = await walker.stat("t/d3")
    gate = walker.controls.hold("list")
    async with trio.open_nursery() as nursery:
        walker.fs._ahead.pages.want(["t/d3/"])
        await gate.entered.wait()
        asked = walker.controls.calls["list"]
        seen: list[int] = []

        async def read() -> None:
            fh = await walker.fs.opendir(parent.ino)
            seen.append(len(await walker.fs.readdir(fh, 0)))

        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert seen == [1, 1]
    assert walker.controls.calls["list"] == asked + 1


async def test_a_file_made_between_wish_and_request_is_not_missed(
    nodes: Nodes, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    a: Node = await nodes("a", close_remote=False)
    await foreign.put("t/d3/f", b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fs.run)
        parent = (await a.stat("t/d3")).ino
        await trio.testing.wait_all_tasks_blocked()
        mount = a.fs._mount
        a.fs._ahead.pages.want(["t/d3/"])
        content = a.cache.create("t/d3/new", {})  # what a create does, in these three steps without an await
        mount.learned.changed("t/d3/new")
        mount.touch(mount.inodes.get(parent))
        autojump_clock.jump(1e-5)  # a real clock goes on until the task begins
        await trio.sleep(0.01)
        await a.cache.publish(content)  # as the background does, which does not tell `learned`
        assert await a.names("t/d3") == ["f", "new"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_no_order_of_events_shows_a_walker_what_is_too_old(
    walker: Node, b: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Names of `a` are this node's and exact; those of `b` are another node's and may be `attr-ttl` behind."""
    draw = random.Random(seed)
    await _grow(walker, foreign)
    mine: dict[str, set[str]] = {path: {"f", "g"} for path in DIRECTORIES}
    theirs: dict[tuple[str, str], tuple[bool, float]] = {}
    at = 0
    for step in range(150):
        path = draw.choice(DIRECTORIES)
        what = draw.random()
        if what < 0.5:
            began_s = trio.current_time()
            seen = set(await walker.names(DIRECTORIES[at]))
            assert {name for name in seen if not name.startswith("b")} == mine[DIRECTORIES[at]]
            for (where, name), (there, since_s) in theirs.items():
                if where == DIRECTORIES[at] and since_s <= began_s - walker.settings.attr_ttl_s:
                    assert (name in seen) == there
            at = (at + 1) % len(DIRECTORIES)
        elif what < 0.6:
            await walker.write(f"{path}/a{step}", b"x")
            mine[path].add(f"a{step}")
        elif what < 0.7 and len(mine[path]) > 1:
            gone = draw.choice(sorted(mine[path]))
            await walker.unlink(f"{path}/{gone}")
            mine[path].discard(gone)
        elif what < 0.85:
            name = f"b{draw.randrange(3)}"
            there = theirs.get((path, name), (False, 0.0))[0]
            await (b.unlink(f"{path}/{name}") if there else b.write(f"{path}/{name}", b"y"))
            theirs[path, name] = (not there, trio.current_time())
        else:
            await trio.sleep(draw.choice([0.01, 0.3, 1.0]))
