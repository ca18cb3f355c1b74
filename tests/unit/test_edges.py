"""Values of files and names of places, at their edges."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NoReturn

import pytest

from s3vol.commands import plan
from s3vol.config import MountOptions
from s3vol.errors import UsageError
from s3vol.layers import file_layers, resolve
from s3vol.logs import TextFormatter
from s3vol.store.settings import parse_source
from s3vol_fuse.session import MountPoint


@pytest.mark.parametrize("written", ["0o077", "63", "22", "0"])
def test_a_mask_that_toml_reads_as_a_number_is_refused(tmp_path: Path, written: str) -> None:
    """TOML has told its base by then: 0o077 arrives as 63, and 063 would let others read."""
    file = tmp_path / "config.toml"
    file.write_text(f"[default]\numask = {written}\n")
    with pytest.raises(UsageError, match=r'\[default\] umask: .*umask = "022"'):
        file_layers(file, [], required=True)
    file.write_text('[default]\numask = "077"\n')
    assert resolve(file_layers(file, [], required=True)).umask == 0o077


def test_a_line_of_the_log_holds_nothing_that_a_terminal_obeys() -> None:
    """Who may make files could clear the screen of who reads the log otherwise."""
    record = logging.makeLogRecord({"msg": "%s", "args": ("d/x\ny: no credentials",), "path": "d/x\n\x1b[2Jy"})
    said = TextFormatter().format(record)
    assert said.isprintable()
    assert r"d/x\ny: no credentials path=d/x\n\x1b[2Jy" in said


def test_a_mount_point_that_may_be_written_and_not_listed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode 0300 for its owner: fusermount3 wants no more."""

    def refused(path: str) -> NoReturn:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    point = MountPoint(path=str(tmp_path), source="memory:")
    said = plan.warnings(plan.Plan(parse_source("memory:"), MountOptions(), point))
    assert said == ["memory: forgets everything when it is unmounted"]


def test_without_a_home_directory_the_cache_directory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may run as a number that has no entry in /etc/passwd."""

    def nowhere() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UsageError, match="cache-dir"):
        plan.cache_root(MountOptions())
