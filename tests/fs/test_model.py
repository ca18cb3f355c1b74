"""Two nodes and a foreign client do random things in turn; each must see what a tree in a dictionary says.

A node may believe what it has learned for `attr_ttl_s`, so time passes before a node looks at what somebody else has
changed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from s3vol.errors import S3volError
from s3vol.fs.base import FsSettings
from s3vol.store.base import Capabilities
from s3vol.store.fault import FaultStore
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.types import Fh
from tests.fs.memory_cache import MemoryCache
from tests.fs.model import Entry, Refused, Tree
from tests.fs.rig import Foreign, Node, fails, links

PATHS = st.sampled_from(["a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "ab"])
NODE = st.integers(0, 1)
BODY = st.binary(max_size=4)
STEP = st.one_of(
    st.tuples(st.just("write"), NODE, PATHS, BODY),
    st.tuples(st.just("mkdir"), NODE, PATHS),
    st.tuples(st.just("symlink"), NODE, PATHS, BODY.filter(bool)),
    st.tuples(st.just("truncate"), NODE, PATHS, st.integers(0, 6)),
    st.tuples(st.just("chmod"), NODE, PATHS, st.sampled_from([0o600, 0o755])),
    st.tuples(st.just("setxattr"), NODE, PATHS, BODY),
    st.tuples(st.just("race"), NODE, PATHS, BODY.filter(bool), BODY),
    st.tuples(st.just("unlink"), NODE, PATHS),
    st.tuples(st.just("rmdir"), NODE, PATHS),
    st.tuples(st.just("rename"), NODE, PATHS, PATHS),
    st.tuples(st.just("link"), NODE, PATHS, PATHS),
    st.tuples(st.just("read"), NODE, PATHS),
    st.tuples(st.just("list"), NODE, PATHS),
    st.tuples(st.just("hold"), NODE, PATHS),
    st.tuples(st.just("reread"), NODE),
    st.tuples(st.just("remount"), NODE),
    st.tuples(st.just("put"), st.just(2), PATHS, BODY),
    st.tuples(st.just("delete"), st.just(2), PATHS),
)
START: list[tuple[Any, ...]] = [
    ("mkdir", 0, "a"),
    ("write", 0, "a/b", b"1234"),
    ("write", 0, "b", b"567"),
    ("link", 0, "b", "ab"),
    ("write", 0, "a/a", b"89"),
]
"""Most steps need something that is there."""

HISTORY = st.one_of(
    st.lists(STEP, max_size=10),  # what shrinks ends here
    st.lists(STEP, min_size=20, max_size=60),  # without a least size Hypothesis draws five steps on the average
).flatmap(lambda steps: st.sampled_from([steps, START + steps]))


class World:
    """Both nodes, the foreign client, and the model."""

    def __init__(self, capabilities: Capabilities, *, close_remote: bool) -> None:
        self.bucket = MemoryBucket()
        self.foreign = Foreign(self.bucket)
        self.nodes: list[Node] = []
        for name in ("a", "b"):
            store = FaultStore(MemoryStore(self.bucket, capabilities=capabilities))
            made = FsSettings(node=name, close_remote=close_remote)
            self.nodes.append(Node(store, MemoryCache(store, name), made))
        self.tree = Tree()
        self.held: list[list[tuple[Fh, bytes]]] = [[], []]
        self.last = 0

    async def step(self, name: str, who: int, *arguments: Any) -> None:
        """One operation by `who` (2: the foreign client), against the model."""
        if who != self.last:
            for node in self.nodes:
                await node.fs.flush_path(None, lambda _: None)
            await trio.sleep(1.1)
            self.last = who
        if who == 2:
            await self.by_others(name, *arguments)
        else:
            await getattr(self, name)(who, *arguments)

    async def by_others(self, name: str, path: str, body: bytes = b"") -> None:
        if name == "put" and self.tree.foreign_put(path, body):
            await self.foreign.put(path, body)
        if name == "delete" and self.tree.foreign_delete(path):
            await self.foreign.store.delete(path)

    async def agree(self, wanted: Callable[[], Any], work: Awaitable[Any]) -> Any:
        """Both succeed, or both fail with the same errno."""
        try:
            wanted()
            expected = None
        except Refused as refused:
            expected = refused.errno
        try:
            result = await work
            found = None
        except S3volError as error:
            result, found = None, error.errno
        assert _name(found) == _name(expected)
        return result

    async def write(self, who: int, path: str, body: bytes) -> None:
        await self.reread(who)  # readers on the same node see what is written, as POSIX wants it
        await self.agree(lambda: self.tree.write(path, body), self.nodes[who].write(path, body))

    async def mkdir(self, who: int, path: str) -> None:
        await self.agree(lambda: self.tree.make(path, "dir"), self.nodes[who].mkdir(path))

    async def symlink(self, who: int, path: str, target: bytes) -> None:
        await self.agree(lambda: self.tree.make(path, "link", target), self.nodes[who].symlink(path, target))

    async def truncate(self, who: int, path: str, size: int) -> None:
        found = self.tree.at(path)
        if found is None or found.kind == "file":
            await self.reread(who)
            await self.agree(lambda: self.tree.truncate(path, size), self.nodes[who].setattr(path, size=size))

    async def chmod(self, who: int, path: str, mode: int) -> None:
        attr = await self.agree(lambda: self.tree.chmod(path, mode), self.nodes[who].setattr(path, mode=mode))
        if attr is not None:
            assert stat.S_IMODE(attr.mode) == mode

    async def setxattr(self, who: int, path: str, value: bytes) -> None:
        async def work() -> None:
            await self.nodes[who].fs.setxattr((await self.nodes[who].stat(path)).ino, b"user.x", value)

        found = self.tree.at(path)
        if found is None or found.kind != "link":  # a symlink has none, and Linux does not even ask
            await self.agree(lambda: self.tree.setxattr(path, value), work())

    async def race(self, who: int, path: str, ours: bytes, theirs: bytes) -> None:
        """The foreign client replaces a file that a node is writing: ESTALE, and what it wrote is kept beside it."""
        found, node = self.tree.at(path), self.nodes[who]
        if found is None or found.kind != "file" or found.linked or found.body == theirs:
            return
        await self.reread(who)
        await node.fs.flush_path(None, lambda _: None)
        opened = await node.open(path, os.O_RDWR)
        await node.fs.write(opened.fh, 0, ours)
        before = set(self.foreign.objects())
        assert self.tree.foreign_put(path, theirs)
        await self.foreign.put(path, theirs)
        await fails(errno.ESTALE, node.fs.fsync(opened.fh))
        await node.fs.release(opened.fh)
        (copy,) = set(self.foreign.objects()) - before
        assert copy.startswith(f"{path}.s3vol-conflict-{node.settings.node}-")
        kept = Entry("file", ours + found.body[len(ours) :], mode=found.mode, xattr=found.xattr)
        self.tree.entries[copy] = kept
        await trio.sleep(1.1)

    async def unlink(self, who: int, path: str) -> None:
        await self.agree(lambda: self.tree.unlink(path), self.nodes[who].unlink(path))

    async def rmdir(self, who: int, path: str) -> None:
        await self.agree(lambda: self.tree.rmdir(path), self.nodes[who].rmdir(path))

    async def rename(self, who: int, old: str, new: str) -> None:
        await self.agree(lambda: self.tree.rename(old, new), self.nodes[who].rename(old, new))

    async def link(self, who: int, old: str, new: str) -> None:
        await self.agree(lambda: self.tree.link(old, new), self.nodes[who].link(old, new))

    async def read(self, who: int, path: str) -> None:
        attr = await self.agree(lambda: self.tree.need(path), self.nodes[who].stat(path))
        if attr is not None:
            await self.check(self.nodes[who], path)

    async def list(self, who: int, path: str) -> None:
        names = await self.agree(lambda: self.tree.folder(path), self.nodes[who].names(path))
        if names is not None:
            assert sorted(names) == self.tree.children(path)

    async def hold(self, who: int, path: str) -> None:
        """Open for reading, and keep it."""
        found = self.tree.at(path)
        if found is not None and found.kind == "file":
            opened = await self.nodes[who].open(path)
            self.held[who].append((opened.fh, found.body))

    async def reread(self, who: int) -> None:
        """Who has a file open reads the version that was opened, or ESTALE; never anything else."""
        for fh, body in self.held[who]:
            await self.check_held(self.nodes[who].read_handle(fh), body)
            await self.nodes[who].fs.release(fh)
        self.held[who].clear()

    async def check_held(self, work: Awaitable[bytes], body: bytes) -> None:
        try:
            found = await work
        except S3volError as error:
            found = body
            code = error.errno
        else:
            code = errno.ESTALE
        assert (found, code) == (body, errno.ESTALE)

    async def remount(self, who: int) -> None:
        self.held[who].clear()
        await self.nodes[who].remount()

    async def check(self, node: Node, path: str) -> None:
        """One name in full."""
        entry, attr = self.tree.entries[path], await node.stat(path)
        kind = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "dir"}[stat.S_IFMT(attr.mode)]
        assert kind == entry.kind
        if entry.mode is not None:
            assert stat.S_IMODE(attr.mode) == entry.mode
        if entry.xattr is not None:
            assert await node.fs.getxattr(attr.ino, b"user.x") == entry.xattr
        if kind != "dir" and entry.linked:
            assert attr.nlink == self.tree.names(entry)
        if kind == "file":
            assert (attr.size, await node.read(path)) == (len(entry.body), entry.body)
        elif kind == "link":
            assert await node.fs.readlink(attr.ino) == entry.body

    async def settle(self) -> None:
        """In the end all agree, and nothing of ours is left in the bucket."""
        for who in (0, 1):
            for fh, _ in self.held[who]:
                await self.nodes[who].fs.release(fh)
            await self.nodes[who].fs.flush_path(None, lambda _: None)
        await trio.sleep(1.1)
        assert self.foreign.objects() == self.tree.keys()
        linked = {id(entry) for entry in self.tree.entries.values() if entry.linked}
        assert self.tree.lost or len(links(self.foreign)) == 2 * len(linked)  # body and record of each
        for node in self.nodes:
            for path, entry in self.tree.entries.items():
                await self.check(node, path)
                if entry.kind == "dir":
                    assert sorted(await node.names(path)) == self.tree.children(path)


def _name(code: int | None) -> str:
    return "success" if code is None else errno.errorcode[code]


def run(steps: list[tuple[Any, ...]], capabilities: Capabilities, *, close_remote: bool) -> None:
    async def main() -> None:
        world = World(capabilities, close_remote=close_remote)
        for step in steps:
            await world.step(*step)
        await world.settle()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=150)
@given(HISTORY)
def test_all_see_the_same_tree_when_close_publishes(steps: list[tuple[Any, ...]]) -> None:
    run(steps, Capabilities(), close_remote=True)


@settings(max_examples=80)
@given(HISTORY)
def test_all_see_the_same_tree_when_close_is_local(steps: list[tuple[Any, ...]]) -> None:
    run(steps, Capabilities(), close_remote=False)


@settings(max_examples=60)
@given(HISTORY)
def test_all_see_the_same_tree_on_a_store_that_lists_no_metadata(steps: list[tuple[Any, ...]]) -> None:
    run(steps, Capabilities(list_metadata=False, hides_children=True), close_remote=True)


SOAK_S = 600.0


@pytest.mark.soak
def test_all_see_the_same_tree_for_ten_minutes() -> None:
    """Long histories on all kinds of stores. A failure prints its seed and the shortest history that fails."""
    end_s = time.monotonic() + SOAK_S
    number = examples = 0
    while time.monotonic() < end_s:
        number += 1

        @seed(number)
        @settings(max_examples=100, database=None, suppress_health_check=list(HealthCheck))
        @given(
            st.lists(STEP, min_size=20, max_size=120).map(lambda steps: START + steps),
            st.sampled_from([Capabilities(), Capabilities(list_metadata=False, hides_children=True)]),
            st.booleans(),
        )
        def explore(steps: list[tuple[Any, ...]], capabilities: Capabilities, close_remote: bool) -> None:
            nonlocal examples
            examples += 1
            run(steps, capabilities, close_remote=close_remote)

        explore()
    print(f"{examples} histories from {number} seeds")
