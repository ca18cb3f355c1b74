"""`s3vol fsck` as users call it: lines, JSON, exit statuses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from s3vol.cli import main
from s3vol.commands.fsck import Result, report
from s3vol.fs.fsck import Finding, Repair
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY, Minio

DAYS_S = 86_400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory as a source, with one file."""
    made = tmp_path / "bucket"
    made.mkdir()
    (made / "file").write_bytes(b"abc")
    return made


def leave_orphan(folder: Path) -> Path:
    """What a node left behind a month ago."""
    orphan = folder / ".s3vol/orphans/node/0123"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"removed")
    os.utime(orphan, (time.time() - 30 * DAYS_S,) * 2)
    return orphan


def test_a_directory_without_anything_of_ours_is_clean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fsck", f"file://{folder}"]) == 0
    assert capsys.readouterr().out == "result       clean\n"


def test_findings_are_one_line_each_and_repair_removes_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orphan = leave_orphan(folder)
    assert main(["fsck", f"file://{folder}"]) == 1
    line, result = capsys.readouterr().out.splitlines()
    assert line.startswith("problem      .s3vol/orphans/node/0123: bytes of a removed file")
    assert line.endswith("; --repair removes it")
    assert result == "result       findings left: 1 to look at"
    assert orphan.read_bytes() == b"removed"
    assert main(["fsck", "--repair", f"file://{folder}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("repaired     .s3vol/orphans/node/0123: ")
    assert out.endswith("result       clean: 1 repaired\n")
    assert not orphan.exists()
    assert (folder / "file").read_bytes() == b"abc"
    assert main(["fsck", f"file://{folder}"]) == 0


def test_programs_get_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_orphan(folder)
    assert main(["fsck", "--json", f"file://{folder}"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["clean"] is False
    assert [(row["state"], row["kind"], row["key"]) for row in found["findings"]] == [
        ("problem", "orphan", ".s3vol/orphans/node/0123")
    ]


@pytest.mark.parametrize("words", [["fsck"], ["fsck", "file:///no/such/directory"], ["fsck", "--repairs", "memory:"]])
def test_bad_input_is_status_2(words: list[str]) -> None:
    assert main(words) == 2


def test_a_key_cannot_break_its_line() -> None:
    finding = Finding("tombstone", "a\nresult  clean", "left", Repair.REAP)
    assert len(report(Result([finding]))) == 2


@pytest.mark.minio
def test_on_a_server_ages_are_by_its_clock_and_looking_writes_nothing(
    minio: Minio, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    client = minio.client()
    client.put_object(Bucket=bucket, Key="v/gone", Body=b"n", Metadata={"s3vol-tombstone": "n"})
    client.put_object(Bucket=bucket, Key="v/.s3vol/surprise", Body=b"n")
    words = ["--endpoint", minio.endpoint, "--region", REGION, f"s3://{bucket}/v"]
    local_ns = time.time_ns
    monkeypatch.setattr("s3vol.commands.fsck.time.time_ns", lambda: local_ns() + 30 * DAYS_S * 10**9)
    client.put_object(Bucket=bucket, Key="other/.s3vol/surprise", Body=b"n")  # another volume's
    keys = [row["Key"] for row in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert main(["fsck", *words]) == 0
    assert main(["fsck", "--repair", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12].strip() for line in lines] == ["in progress", "in progress", "result"] * 2
    assert [row["Key"] for row in client.list_objects_v2(Bucket=bucket)["Contents"]] == keys
