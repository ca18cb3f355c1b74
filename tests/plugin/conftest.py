"""Fixtures of the driver's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Time that jumps to the next deadline when all tasks wait.

    Tasks that wait for a thread look idle to such a clock, so what would run in a thread runs at once instead.
    """

    async def at_once(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        result = work(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    return trio.testing.MockClock(autojump_threshold=0)
