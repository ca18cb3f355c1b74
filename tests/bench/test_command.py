"""What `s3vol bench` refuses, each in one line, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3vol.cli import main
from s3vol_bench.command import traffic_bytes
from s3vol_bench.rows import QUICK, ROWS


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints."""
    assert main(["bench", *words]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which source, for example s3://bucket"),
        (["memory:"], "needs an S3 endpoint to compare with"),
        (["file:///data"], "needs an S3 endpoint to compare with"),
        (["s3://bucket", "--size", "huge"], "--size huge: must be one of tiny, quick, normal, long"),
        (["s3://bucket", "--repeats", "0"], "--repeats 0: must be a number from 1 to 100"),
        (["s3://bucket", "--repeats", "many"], "--repeats many: must be a number from 1 to 100"),
        (["s3://bucket", "--time", "long"], "--time long: not a duration"),
        (["s3://bucket", "--rows", "create-9"], "no row 'create-9'; `s3vol bench --list` shows them"),
        (["s3://bucket", "--scratch", "/nowhere"], "scratch directory /nowhere: is not a directory"),
        (["s3://bucket", "--write-back"], "option write-back: is what the benchmark compares"),
        (["s3://bucket", "-o", "ro"], "option ro: is what the benchmark compares"),
        (["s3://bucket", "--cache-dir", "/x"], "option cache-dir: every mount of a benchmark has a fresh one"),
        (["s3://bucket", "--anonymous"], "a benchmark has to write, and needs credentials"),
        (["s3://bucket", "--rowz", "x"], "--rowz: unknown option; did you mean rows?"),
        (["--compare", "/nowhere", "/nowhere"], "/nowhere: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(words, capsys)


def test_an_output_that_exists_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").write_text("x")
    assert f"output {tmp_path}: is there already" in said(["s3://bucket", "--out", str(tmp_path)], capsys)


def test_a_missing_program_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "fio is missing: install it (`apt-get install fio`)" in said(["s3://bucket"], capsys)


def test_the_list_shows_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [row.name for row in ROWS]


def test_the_traffic_is_told_before_it_is_made() -> None:
    assert traffic_bytes(frozenset({"create-1"}), QUICK, 10) == 0
    assert traffic_bytes(frozenset({"create-1", "write-1"}), QUICK, 10) > 10 * QUICK.large_bytes
