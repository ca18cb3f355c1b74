"""Attributes of directories, asked for ahead of a walker: once each, and never older than allowed."""

from __future__ import annotations

import errno
import random
import stat

import pytest
import trio
import trio.testing

from s3vol.errors import Unavailable
from tests.fs.conftest import Nodes
from tests.fs.rig import Foreign, Node, fails

DIRECTORIES = [f"t/d{number}" for number in range(8)]
FIRST = 0o755


async def _mode(node: Node, path: str) -> int:
    return stat.S_IMODE((await node.stat(path)).mode)


async def _make(b: Node) -> None:
    await b.mkdir("t")
    for path in DIRECTORIES:
        await b.mkdir(path, FIRST)


async def _come(node: Node) -> None:
    """`node` has listed t/d0 ... t/d7, and looked at the first four."""
    assert len(await node.names("t")) == len(DIRECTORIES)
    for path in DIRECTORIES[:4]:
        assert await _mode(node, path) == FIRST
    await trio.testing.wait_all_tasks_blocked()


async def test_each_directory_is_asked_for_once_and_before_the_walker_comes(
    walker: Node, b: Node, nodes: Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    plain: Node = await nodes("c")
    await _make(b)
    asked: dict[Node, list[int]] = {}
    for node in (walker, plain):
        await _come(node)
        asked[node] = [sum(node.controls.calls.values())]
        for path in DIRECTORIES[4:]:
            assert await _mode(node, path) == FIRST
        asked[node].append(sum(node.controls.calls.values()))
    assert asked[walker][0] == asked[plain][0] + 2  # after four of them, the next two
    assert asked[walker][1] == asked[plain][1]


async def test_who_looks_at_them_in_another_order_asks_for_one_at_a_time(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock
) -> None:
    await _make(b)
    await walker.names("t")
    for path in DIRECTORIES[::-1]:
        before = sum(walker.controls.calls.values())
        await walker.stat(path)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(walker.controls.calls.values()) == before + 1


async def test_what_this_node_changes_meanwhile_is_seen_and_stays(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock
) -> None:
    await _make(b)
    await _come(walker)
    await walker.setattr("t/d4", mode=0o700)
    await walker.rmdir("t/d5")
    await walker.rename("t/d6", "other")
    assert await _mode(walker, "t/d4") == 0o700
    await fails(errno.ENOENT, walker.stat("t/d5"))
    await fails(errno.ENOENT, walker.stat("t/d6"))
    assert await _mode(walker, "other") == FIRST
    await trio.sleep(1.1)
    assert await _mode(walker, "t/d4") == 0o700
    assert await _mode(b, "t/d4") == 0o700


async def test_what_came_to_this_name_meanwhile_has_its_own_attributes(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock
) -> None:
    await _make(b)
    await b.mkdir("other")
    await b.mkdir("other/d4", 0o700)
    await _come(walker)  # and t/d4 is asked for ahead
    await walker.rename("t", "was")
    await walker.rename("other", "t")
    assert await _mode(walker, "t/d4") == 0o700


async def test_what_others_changed_or_removed_is_seen_after_attr_ttl(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock
) -> None:
    await _make(b)
    await _come(walker)
    await b.setattr("t/d4", mode=0o700)
    await b.rmdir("t/d5")
    await trio.sleep(walker.settings.attr_ttl_s)
    assert await _mode(walker, "t/d4") == 0o700
    await fails(errno.ENOENT, walker.stat("t/d5"))


async def test_a_change_on_top_of_what_was_asked_for_ahead_keeps_what_another_node_changed(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock
) -> None:
    await _make(b)
    await _come(walker)
    await b.setattr("t/d4", mode=0o700)
    await walker.setattr("t/d4", uid=7)
    await trio.sleep(1.1)
    attr = await b.stat("t/d4")
    assert (stat.S_IMODE(attr.mode), attr.uid) == (0o700, 7)


@pytest.mark.parametrize("error", [Unavailable("no answer"), ValueError("a fault of ours")])
async def test_an_error_of_a_question_ahead_is_nobodys(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    await _make(b)
    await _come(walker)
    look = walker.fs._markers.look
    tried: list[str] = []

    async def fail(key: str, *, marked: bool) -> object:
        tried.append(key)
        raise error

    await trio.sleep(1.1)
    walker.fs._markers.look = fail  # type: ignore[method-assign,assignment]
    walker.fs._markers.answers.want(["t/d5/"])
    await trio.testing.wait_all_tasks_blocked()
    walker.fs._markers.look = look  # type: ignore[method-assign]
    assert tried == ["t/d5/"]
    assert await _mode(walker, "t/d5") == FIRST


async def test_a_directory_without_a_marker_is_one_all_the_same(
    walker: Node, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    for path in DIRECTORIES:
        await foreign.put(f"{path}/f", b"x")
    await walker.names("t")
    for path in DIRECTORIES:
        assert stat.S_ISDIR((await walker.stat(path)).mode)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("seed", range(20))
async def test_no_order_of_events_shows_a_walker_attributes_that_are_too_old(
    walker: Node, b: Node, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Modes of the even ones are this node's and exact; those of the odd ones are b's and may be `attr-ttl` behind."""
    draw = random.Random(seed)
    await _make(b)
    await _come(walker)
    until_s = dict.fromkeys(((path, FIRST) for path in DIRECTORIES), float("inf"))
    now = dict.fromkeys(DIRECTORIES, FIRST)
    at = 0
    for mode in range(0o100, 0o100 + 150):
        what = draw.random()
        if what < 0.6:
            path = DIRECTORIES[at]
            began_s = trio.current_time()
            seen = await _mode(walker, path)
            if path in DIRECTORIES[::2]:
                assert seen == now[path]
            else:
                assert began_s - until_s[path, seen] <= walker.settings.attr_ttl_s
            at = (at + 1) % len(DIRECTORIES)
        elif what < 0.7:
            await walker.names("t")
        elif what < 0.9:
            path = draw.choice(DIRECTORIES)
            node = walker if path in DIRECTORIES[::2] else b
            until_s[path, now[path]] = trio.current_time()
            now[path] = mode
            until_s[path, mode] = float("inf")
            await node.setattr(path, mode=mode)
        else:
            await trio.sleep(draw.choice([0.01, 0.3, 1.1]))
    await trio.sleep(1.1)
    for path in DIRECTORIES:
        assert await _mode(walker, path) == now[path]
        assert await _mode(b, path) == now[path]
