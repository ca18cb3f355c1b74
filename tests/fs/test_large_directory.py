"""A directory of ten thousand, and as a soak (half a minute) of a hundred thousand names, while others change it."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from s3vol.errors import PosixError
from s3vol.store.base import ANY, FILE_TYPE
from s3vol.store.memory import MemoryBucket
from tests.fs.rig import Foreign, Node


@pytest.mark.parametrize("names", [10_000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_who_stays_is_listed_once_and_in_its_place_while_others_come_and_go(
    a: Node, bucket: MemoryBucket, foreign: Foreign, names: int, autojump_clock: trio.testing.MockClock
) -> None:
    draw = random.Random(names)
    stay = [f"n{number:06}" for number in range(names)]
    for name in stay:
        bucket.commit(f"d/{name}", b"", "etag", {}, FILE_TYPE, ANY)
    goes = draw.sample(stay, 500)
    fh = await a.fs.opendir((await a.stat("d")).ino)
    found: list[str] = []
    cursors = [0]
    while rows := await a.fs.readdir(fh, cursors[-1]):
        found += [row.name.decode() for row in rows]
        cursors.append(rows[-1].cursor)
        if len(cursors) % 5 == 0:  # between the calls of a reader: before, at and behind where it is
            await foreign.put(f"d/n{draw.randrange(names):06}-new")
            if goes:
                await foreign.store.delete(f"d/{goes.pop()}")
            await a.write(f"d/n{draw.randrange(names):06}-ours", b"")
    assert len(found) == len(set(found))
    there = {key.removeprefix("d/") for key in foreign.objects()}
    assert {name for name in stay if name in there} <= set(found)
    assert cursors == sorted(set(cursors))
    again = [row.name.decode() for row in await a.fs.readdir(fh, cursors[20])]
    assert again[0] == found[cursors[20]]  # a cursor means the same place for ever
    await a.fs.releasedir(fh)
    assert set(await a.names("d")) == there


async def _large(a: Node, bucket: MemoryBucket) -> list[str]:
    """A directory of which a listing shows the beginning only, long after the node has seen it."""
    names = [f"d/n{number:05}" for number in range(3000)]
    for name in names:
        bucket.commit(name, b"x", "etag", {}, FILE_TYPE, ANY)
    await a.stat("d/n00000")
    await trio.sleep(60)
    return names


async def test_a_walk_through_a_large_directory_is_answered_by_a_few_listings(
    a: Node, bucket: MemoryBucket, autojump_clock: trio.testing.MockClock
) -> None:
    names = await _large(a, bucket)
    parent = (await a.stat("d")).ino
    before = a.controls.calls.copy()
    for name in names[500:2500]:
        assert (await a.fs.lookup(parent, name.encode()[2:])).attr.size == 1
    asked = (a.controls.calls - before).total()
    assert asked < 60
    for name in random.Random(1).sample(names, 100):
        before = a.controls.calls.copy()
        await trio.sleep(2)
        await a.fs.lookup(parent, name.encode()[2:])
        assert (a.controls.calls - before).total() == 2


async def test_a_walk_misses_nothing_that_others_did_before_it_came_there(
    a: Node, bucket: MemoryBucket, foreign: Foreign, autojump_clock: trio.testing.MockClock
) -> None:
    names = await _large(a, bucket)
    parent = (await a.stat("d")).ino
    for at, name in enumerate(names[:2000]):
        if at % 100 == 50:
            await foreign.put(f"{name}-new")
            await trio.sleep(1.5)
            assert (await a.stat(f"{name}-new")).is_dir is False
        if at % 100 == 70:
            await foreign.store.delete(name)
            await trio.sleep(1.5)
            with pytest.raises(PosixError):
                await a.stat(name)
        else:
            await a.fs.lookup(parent, name.encode()[2:])
