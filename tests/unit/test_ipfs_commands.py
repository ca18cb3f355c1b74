"""What `s3vol gc` and `s3vol export` refuse before they talk to anybody, and what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3vol.cli import main
from s3vol.commands.gc import report
from s3vol.store.ipfs.collect import Outcome


@pytest.mark.parametrize("command", ["gc", "export"])
def test_a_source_of_another_kind_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "s3://bucket"]) == 2
    assert "only a volume in IPFS" in capsys.readouterr().err


def test_a_volume_that_was_never_mounted_here_has_nothing_to_collect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gc", "ipfs://docs", "--cache-dir", str(tmp_path)]) == 2
    assert "ipfs://docs was never mounted here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_round_of_collection_says_for_whom_it_waits() -> None:
    lines = report(Outcome(condemned=1, removed=2, commits=3, blocks=4, waits_for=("node3-0123abcd",)))
    assert "node3-0123abcd" in lines[-1]
    assert "--retire" in lines[-1]
    assert len(report(Outcome())) == 2
