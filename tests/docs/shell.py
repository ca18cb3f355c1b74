"""The little shell of the examples in docs/SEMANTICS.md: two nodes and another S3 client, without a kernel.

A line `a$ …` or `b$ …` is a command on a node, `s3$ …` one of a client that knows nothing of s3vol; what stands below
it is its output, where `…` is any text. A command that fails prints the name of its errno. The commands are those
of a shell as far as the examples need them; descriptors are numbers, as in sh.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shlex
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from s3vol.errors import S3volError
from s3vol.fs.base import FsSettings
from s3vol.store.fault import FaultStore
from s3vol.store.memory import MemoryBucket, MemoryStore
from s3vol.types import Fh
from tests.fs.memory_cache import MemoryCache
from tests.fs.rig import Foreign, Node

_PROMPT = re.compile(r"(a|b|s3)\$ (.*)")
_ELLIPSIS = "…"

Command = Callable[[list[str]], Awaitable[Sequence[str]]]


@dataclass
class Step:
    """One command, and what it must print."""

    who: str
    command: str
    wanted: list[str]

    def fits(self, found: Sequence[str]) -> bool:
        """True when every line is as written."""
        pattern = "\n".join(self.wanted)
        parts = [re.escape(part) for part in pattern.split(_ELLIPSIS)]
        return re.fullmatch(".*".join(parts), "\n".join(found)) is not None


def parse(block: str) -> list[Step]:
    """The steps of one example."""
    steps: list[Step] = []
    for line in block.splitlines():
        found = _PROMPT.fullmatch(line)
        if found:
            steps.append(Step(found[1], found[2], []))
        else:
            assert steps, f"output without a command: {line!r}"
            steps[-1].wanted.append(line)
    return steps


class NodeShell:
    """Commands on one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._open: dict[str, Fh] = {}

    async def run(self, words: list[str]) -> Sequence[str]:
        """Run one command; its lines."""
        if words[0] == "exec":
            return await self._exec(words[1:])
        if words[0] == "echo":
            return await self._echo(words[1:])
        if words[0] == "cat" and words[1].startswith("<&"):
            return _lines(await self.node.read_handle(self._open[words[1][2:]]))
        command: Command = getattr(self, words[0].replace("-", "_"))
        return await command(await self._expand(words[1:]))

    async def _expand(self, words: list[str]) -> list[str]:
        found: list[str] = []
        for word in words:
            folder, _, pattern = word.rpartition("/")
            names = await self.node.names(folder) if "*" in word else []
            matches = sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))
            found += [f"{folder}/{name}".removeprefix("/") for name in matches] or [word]
        return found

    async def _exec(self, words: list[str]) -> Sequence[str]:
        number, sign = words[0][0], words[0][1:]
        if sign == ">&-":
            await self.node.close(self._open.pop(number))
        else:
            flags = os.O_RDONLY if sign == "<" else os.O_RDWR
            self._open[number] = await self._open_file(words[1], flags)
        return ()

    async def _open_file(self, path: str, flags: int) -> Fh:
        try:
            return (await self.node.open(path, flags)).fh
        except S3volError as error:
            if error.errno != errno.ESTALE:
                raise
            # The name has come to mean something else: the kernel looks it up again, once.
            return (await self.node.open(path, flags)).fh

    async def _echo(self, words: list[str]) -> Sequence[str]:
        *text, sign = words if words[-1].startswith(">&") else words[:-1]
        body = (" ".join(text) + "\n").encode()
        if sign.startswith(">&"):
            await self.node.fs.write(self._open[sign[2:]], 0, body)
            return ()
        assert sign == ">"
        await self.node.write(words[-1], body)
        return ()

    async def cat(self, words: list[str]) -> Sequence[str]:
        """Open, read, close."""
        fh = await self._open_file(words[0], os.O_RDONLY)
        try:
            return _lines(await self.node.read_handle(fh))
        finally:
            await self.node.close(fh)

    async def ls(self, words: list[str]) -> Sequence[str]:
        """Names of a directory."""
        return sorted(await self.node.names(words[0] if words else ""))

    async def stat(self, words: list[str]) -> Sequence[str]:
        """`stat -c FORMAT PATH` with %a, %h, %i, %s and %u."""
        option, form, path = words
        assert option == "-c"
        attr = await self.node.stat(path)
        values = {"%a": f"{stat.S_IMODE(attr.mode):o}", "%h": attr.nlink, "%i": attr.ino, "%s": attr.size}
        for name, value in {**values, "%u": attr.uid}.items():
            form = form.replace(name, str(value))
        return [form]

    async def chmod(self, words: list[str]) -> Sequence[str]:
        """An octal mode."""
        await self.node.setattr(words[1], mode=int(words[0], 8))
        return ()

    async def mkdir(self, words: list[str]) -> Sequence[str]:
        """One directory."""
        await self.node.mkdir(words[0])
        return ()

    async def mv(self, words: list[str]) -> Sequence[str]:
        """rename(2)."""
        old, new = words
        await self.node.rename(old, new)
        return ()

    async def ln(self, words: list[str]) -> Sequence[str]:
        """A hard link, or with -s a symbolic one."""
        if words[0] == "-s":
            await self.node.symlink(words[2], words[1].encode())
        else:
            await self.node.link(*words)
        return ()

    async def readlink(self, words: list[str]) -> Sequence[str]:
        """Where a symbolic link leads."""
        return [(await self.node.fs.readlink((await self.node.stat(words[0])).ino)).decode()]

    async def rm(self, words: list[str]) -> Sequence[str]:
        """unlink(2)."""
        await self.node.unlink(words[0])
        return ()

    async def rmdir(self, words: list[str]) -> Sequence[str]:
        """rmdir(2)."""
        await self.node.rmdir(words[0])
        return ()

    async def sync(self, words: list[str]) -> Sequence[str]:
        """fsync(2) of a descriptor, or `s3vol flush`."""
        if words:
            await self.node.fs.fsync(self._open[words[0]])
        else:
            await self.node.fs.flush_path(None, lambda _: None)
        return ()

    async def sleep(self, words: list[str]) -> Sequence[str]:
        """Seconds."""
        await trio.sleep(float(words[0]))
        return ()


class Client:
    """Commands of the other S3 client, and of the server itself (`stop`, `start`)."""

    def __init__(self, foreign: Foreign, nodes: Sequence[Node]) -> None:
        self._foreign = foreign
        self._nodes = nodes

    async def run(self, words: list[str]) -> Sequence[str]:
        """Run one command; its lines."""
        command: Command = getattr(self, words[0])
        return await command(words[1:])

    async def put(self, words: list[str]) -> Sequence[str]:
        """KEY TEXT, and metadata as NAME=VALUE."""
        metadata = dict(word.split("=", 1) for word in words[2:])
        if "//" in words[0]:  # our own stores refuse it, as MinIO does; AWS does not
            self._foreign.put_any(words[0])
        else:
            await self._foreign.put(words[0], (words[1] + "\n").encode(), **metadata)
        return ()

    async def get(self, words: list[str]) -> Sequence[str]:
        """The body."""
        return _lines(await self._foreign.body(words[0]))

    async def head(self, words: list[str]) -> Sequence[str]:
        """KEY NAME: one entry of the metadata."""
        return [((await self._foreign.store.head(words[0])).metadata or {}).get(words[1], "")]

    async def rm(self, words: list[str]) -> Sequence[str]:
        """DELETE."""
        await self._foreign.store.delete(words[0])
        return ()

    async def ls(self, words: list[str]) -> Sequence[str]:
        """All keys but s3vol's own."""
        return sorted(self._foreign.objects())

    async def stop(self, words: list[str]) -> Sequence[str]:
        """The server answers nobody."""
        for node in self._nodes:
            node.controls.down = True
        return ()

    async def start(self, words: list[str]) -> Sequence[str]:
        """It is back."""
        for node in self._nodes:
            node.controls.down = False
        return ()


async def run(block: str, *, close_remote: bool = True) -> None:
    """Run one example on an empty bucket; AssertionError names the command that printed something else."""
    bucket = MemoryBucket()
    nodes = []
    for name in ("a", "b"):
        store = FaultStore(MemoryStore(bucket))
        nodes.append(Node(store, MemoryCache(store, name), FsSettings(node=name, close_remote=close_remote)))
    shells: dict[str, NodeShell | Client] = {
        "a": NodeShell(nodes[0]),
        "b": NodeShell(nodes[1]),
        "s3": Client(Foreign(bucket), nodes),
    }
    for step in parse(block):
        try:
            found = await shells[step.who].run(shlex.split(step.command))
        except S3volError as error:
            found = [errno.errorcode[error.errno]]
        assert step.fits(found), f"{step.who}$ {step.command}\nprinted {list(found)}, written is {step.wanted}"


def _lines(body: bytes) -> list[str]:
    return body.decode().splitlines()
