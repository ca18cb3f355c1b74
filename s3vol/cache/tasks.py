"""Run jobs at once and get one plain exception, not a group; and a place for jobs that nobody waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")
Job = Callable[[], Awaitable[None]]


async def run_all(jobs: Sequence[Job]) -> None:
    """Run the jobs concurrently. The first Exception cancels the others and is raised as it is."""
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


async def run_each(action: Callable[[T], Awaitable[None]], items: Iterable[T], *, at_once: int) -> None:
    """Run `action` for each item, at most `at_once` at a time. The first Exception ends it and is raised."""
    left = iter(list(items))

    async def work() -> None:
        for item in left:
            await action(item)

    await run_all([work] * at_once)


class Background:
    """Where jobs run that outlive the call that began them. Empty (`nursery` is None) while the cache is not served."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
