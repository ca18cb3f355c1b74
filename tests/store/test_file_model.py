"""The file store against the reference: the same random calls have the same answers."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from s3vol.errors import NotFound, PreconditionFailed, Rejected, S3volError
from s3vol.store.base import ABSENT, ANY, Condition, Page, Store, matches
from s3vol.store.file import FileStore
from s3vol.store.memory import MemoryStore

NAMES = ["a", "b", "a-b", "a.b", "a0", "é", "b b"]
STEPS = 300


class Pair:
    """Two stores that must agree. The file store may refuse `a` beside `a/b`; then the reference is not asked."""

    def __init__(self, ours: Store, reference: Store, seed: int) -> None:
        self.ours = ours
        self.reference = reference
        self.chance = random.Random(seed)

    def key(self) -> str:
        parts = [self.chance.choice(NAMES) for _ in range(self.chance.randint(1, 3))]
        return "/".join(parts) + self.chance.choice(["", "", "/"])

    async def step(self) -> None:
        kind = self.chance.choice(["put", "put", "put", "delete", "copy", "read", "list", "list"])
        await {"put": self.put, "delete": self.delete, "copy": self.copy, "read": self.read, "list": self.list}[kind]()

    async def condition(self, key: str) -> Condition:
        try:
            info = await self.reference.head(key)
        except NotFound:
            return self.chance.choice([ANY, ABSENT, matches("0" * 32)])
        return self.chance.choice([ANY, ABSENT, matches(info.etag), matches("0" * 32)])

    async def put(self) -> None:
        key = self.key()
        body = b"" if key.endswith("/") else self.chance.randbytes(self.chance.randint(0, 3))
        metadata, condition = {"mode": str(self.chance.randint(0, 9))}, await self.condition(key)
        await self.agree(lambda store: store.put(key, body, metadata=metadata, condition=condition))

    async def copy(self) -> None:
        source, target = self.key(), self.key()
        if target.endswith("/") or source.endswith("/"):
            return
        try:
            etag = (await self.reference.head(source)).etag
        except NotFound:
            etag = "0" * 32
        condition = await self.condition(target)
        await self.agree(
            lambda store: store.copy(source, target, if_match=etag, metadata={"c": "1"}, condition=condition)
        )

    async def delete(self) -> None:
        key = self.key()
        await self.agree(lambda store: store.delete(key))

    async def read(self) -> None:
        key = self.key()
        start, length = self.chance.randint(0, 4), self.chance.randint(1, 4)
        await self.agree(lambda store: store.get(key, start, length))

    async def list(self) -> None:
        prefix = self.chance.choice(["", "", "a", "a/", "a/b", "b/a-b/", self.key()])
        delimiter, limit = self.chance.random() < 0.5, self.chance.choice([1, 2, 3, 1000])
        cursor, start_after = None, self.chance.choice([None, None, self.key()])
        while True:
            pages = [
                await s.list(prefix, delimiter=delimiter, limit=limit, cursor=cursor, start_after=start_after)
                for s in (self.ours, self.reference)
            ]
            assert shown(pages[0]) == shown(pages[1])
            cursor = pages[0].next_cursor
            if cursor is None:
                return

    async def agree(self, call: Callable[[Store], Awaitable[object]]) -> None:
        answer = await outcome(call(self.ours))
        if answer is not Rejected:
            assert answer == await outcome(call(self.reference))


async def outcome(call: Awaitable[object]) -> object:
    """What came back; for a refusal, its kind."""
    try:
        result = await call
    except (NotFound, PreconditionFailed, Rejected) as error:
        kind: type[S3volError] = type(error)
        return kind
    return bytes(result) if isinstance(result, bytes | bytearray | memoryview) else result


def shown(page: Page) -> object:
    objects = [(info.key, info.size, info.etag, info.metadata, info.content_type) for info in page.objects]
    return objects, page.prefixes, page.next_cursor


@pytest.mark.parametrize("use_xattrs", [True, False], ids=["xattr", "sidecar"])
@pytest.mark.parametrize("seed", range(8))
async def test_random_calls_have_the_answers_of_the_reference(tmp_path: Path, seed: int, use_xattrs: bool) -> None:
    store = await FileStore.open(tmp_path, "p/", use_xattrs=use_xattrs)
    pair = Pair(store, MemoryStore(prefix="q/"), seed)
    for _ in range(STEPS):
        await pair.step()
    await store.aclose()
