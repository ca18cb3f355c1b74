"""Exports: what IPFS tools read is what the volume has, over the same blocks."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from s3vol.errors import NotFound, Rejected
from s3vol.store.base import DIRECTORY_TYPE
from s3vol.store.ipfs import unixfs
from s3vol.store.ipfs.cid import text
from s3vol.store.ipfs.entry import Piece
from s3vol.store.ipfs.export import Reader, read_volume
from s3vol.store.ipfs.opening import OpenVolume
from s3vol.store.ipfs.unixfs import Builder, Stat
from tests.store.ipfs.rig import NAME, Swarm, write

BIG = 3 << 20


async def reader(opened: OpenVolume) -> Reader:
    return await read_volume(opened.blocks, opened.cluster, NAME, connect=None, timeout_s=5)


# As `ipfs add --cid-version=1 --raw-leaves` names them.
EMPTY_DIRECTORY = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
TREE = "bafybeicviqalx4zdtyfagjyosfl2agriizv2dxcw4nbyrsivuj37nop674"  # --chunker=size-1048576
HELLO = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"


def test_an_empty_directory_has_the_name_that_all_ipfs_tools_know() -> None:
    assert text(Builder().directory({}, Stat()).cid) == EMPTY_DIRECTORY


async def test_an_export_without_modes_is_the_very_tree_that_ipfs_add_makes(tmp_path: Path) -> None:
    async with Swarm(tmp_path, 1).opened() as (one,):
        view = one.view()
        await view.put("a", b"hello", metadata={})
        await view.put("e", b"", metadata={})
        await view.put("sub/big", b"x" * BIG + b"y", metadata={})
        await view.sync()
        builder = Builder()
        names = {name: builder.symlink(b"a", Stat()) for name in ("l",)}
        found = await reader(one)
        for name in ("a", "e", "sub"):
            made = await found.make(builder, name)
            assert made is not None
            names[name] = made
        assert text(builder.directory(names, Stat()).cid) == TREE


async def test_a_tree_is_exported_with_its_shape(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, 1)
    async with swarm.opened() as (one,):
        view = one.view()
        mode = {"mode": str(stat.S_IFREG | 0o644), "mtime": "1700000000.5"}
        await view.put("d/f", b"x" * BIG, metadata=mode)
        await view.put("d/e/", b"", metadata={"mode": str(stat.S_IFDIR | 0o755)}, content_type=DIRECTORY_TYPE)
        await view.put("d/l", b"f", metadata={"mode": str(stat.S_IFLNK | 0o777)})
        await view.put("d/pipe", b"", metadata={"mode": str(stat.S_IFIFO | 0o600)})
        await view.put(".s3vol/links/0123456789abcdef", b"linked", metadata=mode)
        await view.put("d/hard", b"", metadata={"s3vol-link": "0123456789abcdef"})
        await write(view, "hello", "hello")
        await view.sync()
        found = await reader(one)
        blocks = swarm.network.nodes[0].blocks
        before = sum(map(len, blocks.values()))
        root = await found.export("")
        assert sum(map(len, blocks.values())) - before < 2000, "nodes only"
        assert root in swarm.network.nodes[0].pins
        assert b"hello" in blocks[root]
        assert b".s3vol" not in blocks[root]
        folder = blocks[await found.export("d")]
        assert all(name in folder for name in (b"f", b"e", b"l", b"hard"))
        assert b"pipe" not in folder
        assert text(await found.export("/hello/")) == HELLO
        with pytest.raises(NotFound):
            await found.export("nothing")


async def test_a_volume_that_nobody_published_is_not_found(tmp_path: Path) -> None:
    async with Swarm(tmp_path, 1).opened() as (one,):
        with pytest.raises(NotFound):
            await read_volume(one.blocks, one.cluster, "other", connect=None, timeout_s=5)


def test_a_file_of_many_blocks_has_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixfs, "FANOUT", 3)
    builder = Builder()
    pieces = [Piece(bytes([number]) * 32, 10) for number in range(10)]
    made = builder.file(pieces, Stat())
    assert (made.size, len(builder.blocks)) == (100, 4 + 2 + 1)


def test_a_directory_that_does_not_fit_is_refused() -> None:
    builder = Builder()
    made = builder.file([], Stat())
    with pytest.raises(Rejected, match="split it"):
        builder.directory({f"{number:0200}": made for number in range(5000)}, Stat())
