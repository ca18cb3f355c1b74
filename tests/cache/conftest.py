"""Fixtures of the cache's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from tests.cache.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An empty cache on an empty bucket."""
    return Rig(tmp_path / "cache")


@pytest.fixture
def jumping_clock() -> trio.testing.MockClock:
    """Time passes when nothing happens for a moment: journal and disk work in threads that trio does not see."""
    return trio.testing.MockClock(autojump_threshold=0.1)
