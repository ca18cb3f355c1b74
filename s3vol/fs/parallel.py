"""Requests side by side, with plain errors: the first one is raised, not an exception group.

Theory of operation. A nursery wraps errors in groups, which `except NotFound` does not see. Here each task
keeps its own error; the first in order of the work is raised after all have ended (the rest are cancelled).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from s3vol.errors import S3volError

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


async def both(first: Callable[[], Awaitable[A]], second: Callable[[], Awaitable[B]]) -> tuple[A, B]:
    """Both results; the first error cancels the other."""
    a: list[A] = []
    b: list[B] = []

    async def run(which: int) -> None:
        if which == 0:
            a.append(await first())
        else:
            b.append(await second())

    await for_each((0, 1), run, limit=2)
    return a[0], b[0]


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, limit: int) -> None:
    """`work` for every item, at most `limit` at a time. The first error stops the rest and is raised."""
    pending = iter(items)
    errors: list[S3volError] = []

    async def worker() -> None:
        for item in pending:
            try:
                await work(item)
            except S3volError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(limit):
            nursery.start_soon(worker)
    if errors:
        raise errors[0]


async def alongside(work: Callable[[], Awaitable[None]], side: Callable[[], Awaitable[None]]) -> None:
    """`side` runs until `work` has ended; whichever fails first ends the other, and its error is raised."""
    errors: list[S3volError] = []

    async def run(part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except S3volError as error:
            errors.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, work)
        nursery.start_soon(run, side)
    if errors:
        raise errors[0]
