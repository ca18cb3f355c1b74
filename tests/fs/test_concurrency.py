"""Many at once: no lost update, no deadlock, no error but those that POSIX has."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio

from s3vol.errors import S3volError
from s3vol.fs.base import Progress
from tests.fs.conftest import Nodes
from tests.fs.rig import Foreign, Node, fails

PATHS = ["a", "b", "d", "d/a", "d/b", "e", "e/a"]
ORDINARY = {
    errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ESTALE, errno.EINVAL
}  # fmt: skip


async def test_increments_by_two_nodes_lose_none(a: Node, b: Node, foreign: Foreign) -> None:
    await a.write("n", b"000")
    done = 0

    async def increment(node: Node) -> None:
        nonlocal done
        for _ in range(15):
            opened = await node.open("n", os.O_RDWR)
            try:
                number = int(await node.read_handle(opened.fh))
                await node.fs.write(opened.fh, 0, b"%03d" % (number + 1))
                await node.fs.flush(opened.fh)
                done += 1
            except S3volError as error:
                if error.errno != errno.ESTALE:
                    raise
            finally:
                await node.fs.release(opened.fh)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(increment, a)
        nursery.start_soon(increment, b)
    assert int(await foreign.body("n")) == done >= 15


async def act(node: Node, chance: random.Random) -> None:
    """One operation, chosen by chance."""
    path, other = chance.choice(PATHS), chance.choice(PATHS)
    match chance.randrange(9):
        case 0 | 1:
            await node.write(path, chance.randbytes(3))
        case 2:
            await node.read(path)
        case 3:
            await node.mkdir(path)
        case 4:
            await node.unlink(path)
        case 5:
            await node.rmdir(path)
        case 6:
            await node.rename(path, other)
        case 7:
            await node.names(path)
        case 8:
            await node.setattr(path, mode=0o640)


@pytest.mark.parametrize("seed", range(12))
async def test_anything_at_once_on_two_nodes_ends_in_one_tree(
    a: Node, b: Node, foreign: Foreign, autojump_clock: object, seed: int
) -> None:
    async def work(node: Node, number: int) -> None:
        chance = random.Random(f"{seed}.{number}")
        for _ in range(60):
            try:
                await act(node, chance)
            except S3volError as error:
                if error.errno not in ORDINARY:
                    raise

    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(work, (a, b)[number % 2], number)
    await trio.sleep(2)
    assert not list(a.cache.pending()) + list(b.cache.pending())
    assert a.fs.status()["handles"] == b.fs.status()["handles"] == 0
    assert await whole_tree(a) == await whole_tree(b)
    assert [key for key in foreign.objects(own=True) if key.startswith(".s3vol/")] == []


async def whole_tree(node: Node, path: str = "") -> dict[str, bytes | None]:
    """Every name below `path`, with the bytes of files."""
    found: dict[str, bytes | None] = {}
    for name, attr in await node.rows(path):
        inner = f"{path}/{name}".lstrip("/")
        found[inner] = None if attr.is_dir else await node.read(inner)
        if attr.is_dir:
            found |= await whole_tree(node, inner)
    return found


async def test_two_local_programs_that_create_one_name_open_one_file(a: Node, foreign: Foreign) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(a.write, "f", b"same")
    assert foreign.objects() == ["f"]
    assert await foreign.body("f") == b"same"


async def test_drain_publishes_what_it_can_and_says_what_is_left(
    nodes: Nodes, foreign: Foreign, autojump_clock: object
) -> None:
    node: Node = await nodes("a", close_remote=False)
    await node.write("f", b"abc")
    await node.write("g", b"abcd")
    node.controls.down = True
    seen: list[Progress] = []
    assert await node.fs.drain(10, seen.append) == Progress(2, 7)
    node.controls.down = False
    assert await node.fs.drain(10, seen.append) == Progress(0, 0)
    assert foreign.objects() == ["f", "g"]
    assert seen[-1] == Progress(0, 0)


async def test_flush_publishes_one_file_or_what_is_below_a_directory(nodes: Nodes, foreign: Foreign) -> None:
    node: Node = await nodes("a", close_remote=False)
    await node.mkdir("d")
    for path in ("f", "d/x", "dx"):
        await node.write(path, b"abc")
    await node.fs.flush_path("d", lambda _: None)
    assert foreign.objects() == ["d/", "d/x"]
    await node.fs.flush_path("f", lambda _: None)
    assert foreign.objects() == ["d/", "d/x", "f"]
    node.controls.fail_next("put")
    await fails(errno.EIO, node.fs.flush_path(None, lambda _: None))
    await node.fs.flush_path(None, lambda _: None)
    assert foreign.objects() == ["d/", "d/x", "dx", "f"]
