"""A process that dies at a named point, without a process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from s3vol.failpoints import Point


class Crash(BaseException):
    """The process died here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
    """The next hit of `point` kills, as far as this test is concerned."""

    def die(found: Point) -> None:
        if found is point:
            raise Crash

    for module in ("rename", "tree", "removal", "linking", "linkrename", "links"):
        monkeypatch.setattr(f"s3vol.fs.{module}.hit", die)


async def crashing(work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` up to its crash."""
    try:
        await work()
    except Crash:
        return
    except BaseExceptionGroup as group:
        _, others = group.split(Crash)
        if others is not None:
            raise
        return
    raise AssertionError("the crash point was not reached")
