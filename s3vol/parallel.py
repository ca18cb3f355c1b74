"""Work side by side, with plain errors: the first one is raised, not an exception group.

Theory of operation. A nursery wraps errors in groups, which `except NotFound` does not see. Here each task
keeps its own error; the first that happens cancels the other tasks, and is raised after all have ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
Job = Callable[[], Awaitable[None]]


async def run_all(jobs: Sequence[Job]) -> None:
    """All jobs at once."""
    if len(jobs) == 1:
        await jobs[0]()
        return
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def run(job: Job) -> None:
            try:
                await job()
            except Exception as failure:
                failures.append(failure)
                nursery.cancel_scope.cancel()

        for job in jobs:
            nursery.start_soon(run, job)
    if failures:
        raise failures[0]


async def both(first: Callable[[], Awaitable[A]], second: Callable[[], Awaitable[B]]) -> tuple[A, B]:
    """Both results."""
    a: list[A] = []
    b: list[B] = []

    async def run_first() -> None:
        a.append(await first())

    async def run_second() -> None:
        b.append(await second())

    await run_all((run_first, run_second))
    return a[0], b[0]


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, limit: int) -> None:
    """`work` for every item, at most `limit` at a time."""
    todo = list(items)
    left = iter(todo)

    async def worker() -> None:
        for item in left:
            await work(item)

    await run_all([worker] * min(limit, len(todo)))


async def alongside(work: Job, side: Job) -> None:
    """`side` runs until `work` has ended."""
    async with trio.open_nursery() as nursery:
        failures: list[Exception] = []

        async def run(part: Job) -> None:
            try:
                await part()
            except Exception as failure:
                failures.append(failure)
            nursery.cancel_scope.cancel()

        nursery.start_soon(run, work)
        nursery.start_soon(run, side)
    if failures:
        raise failures[0]
