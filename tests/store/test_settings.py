"""From a mount's options to the settings of its store."""

from __future__ import annotations

import pytest

from s3vol.config import MountOptions
from s3vol.store.settings import StoreSettings, store_settings


@pytest.mark.parametrize("timeout_s", [3.0, 6.0, 60.0, 600.0])
def test_silence_within_an_attempt_is_bounded_by_the_time_out_of_the_mount(timeout_s: float) -> None:
    """A PUT that was sent is waited for: with an attempt of 20 s a close took 20 s under `--timeout 6s`."""
    settings = store_settings(MountOptions(timeout=timeout_s))
    assert settings.attempt_timeout_s <= timeout_s / 3
    assert settings.connect_timeout_s <= timeout_s / 3


def test_the_time_outs_of_an_attempt_are_the_usual_ones_by_default() -> None:
    settings = store_settings(MountOptions())
    assert settings.attempt_timeout_s == StoreSettings().attempt_timeout_s
    assert settings.connect_timeout_s == StoreSettings().connect_timeout_s
