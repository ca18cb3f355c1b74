"""What a node remembers: saved whole or not at all, of one boot, and damaged records put aside."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from s3vol.errors import NoSpace, S3volError, UsageError
from s3vol_plugin.state import Record, State, boot_id
from tests.plugin.fakes import volume

BOOT = boot_id()
ERASED = volume("tmp", 2, on_remove="delete")
WEB = volume("web", options={"cache-size": "2G"}, credentials="prod")
USED = Record(WEB, refs={"c1": 2, "c2": 1}, dirty=True, heals=3)


async def test_a_record_is_found_again_by_the_next_process(tmp_path: Path) -> None:
    await State(tmp_path, BOOT).save(USED)
    again = State(tmp_path, BOOT)
    assert (again.all(), again.get(WEB.uuid), again.named("web")) == ([USED], USED, [USED])


async def test_references_are_of_one_boot_and_an_unpublished_journal_is_not(tmp_path: Path) -> None:
    await State(tmp_path, BOOT).save(USED)
    assert State(tmp_path, "another").all() == [Record(WEB, dirty=True, heals=3)]


def files(folder: Path) -> list[Path]:
    """What is in a folder."""
    return sorted(folder.iterdir())


async def test_a_record_that_is_forgotten_is_gone(tmp_path: Path) -> None:
    state = State(tmp_path, BOOT)
    await state.save(USED)
    await state.forget(WEB.uuid)
    await state.forget(WEB.uuid)
    assert (state.all(), State(tmp_path, BOOT).all(), files(tmp_path)) == ([], [], [])


async def test_a_save_that_fails_changes_neither_disk_nor_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, BOOT)
    await state.save(Record(WEB))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="free some space"):
        await state.save(USED)
    assert (state.get(WEB.uuid), State(tmp_path, BOOT).get(WEB.uuid)) == (Record(WEB), Record(WEB))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(S3volError):
        await state.save(USED)


async def test_a_crash_before_the_rename_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(tmp_path, BOOT)
    await state.save(Record(WEB))

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            await state.save(USED)
    assert State(tmp_path, BOOT).all() == [Record(WEB)]
    assert [path.suffix for path in files(tmp_path)] == [".json"]


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"schema": 2}',
    b'{"schema": 1, "volume": {}}',
]


@pytest.mark.parametrize("data", DAMAGED)
async def test_a_damaged_record_is_put_aside_with_one_line_and_the_others_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    await State(tmp_path, BOOT).save(USED)
    other = volume("other", 2)
    (tmp_path / f"{other.uuid}.json").write_bytes(data)
    assert State(tmp_path, BOOT).all() == [USED]
    assert len(caplog.records) == 1
    assert (tmp_path / f"{other.uuid}.json.corrupt").read_bytes() == data
    (tmp_path / f"{other.uuid}.json").write_bytes(data)
    assert State(tmp_path, BOOT).all() == [USED]
    assert len(files(tmp_path)) == 3


def change(path: Path, key: str, value: object) -> None:
    """Another value in a record."""
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("refs", {"c": 0}), ("refs", {"c": True}), ("refs", []), ("dirty", 1), ("heals", "1"), ("schema", 7)],
)
async def test_a_record_with_a_wrong_value_is_put_aside(tmp_path: Path, key: str, value: object) -> None:
    await State(tmp_path, BOOT).save(USED)
    change(tmp_path / f"{WEB.uuid}.json", key, value)
    assert State(tmp_path, BOOT).all() == []


async def test_a_record_under_another_s_name_is_put_aside(tmp_path: Path) -> None:
    await State(tmp_path, BOOT).save(USED)
    os.rename(tmp_path / f"{WEB.uuid}.json", tmp_path / f"{volume('x', 5).uuid}.json")
    assert State(tmp_path, BOOT).all() == []


async def test_what_is_no_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "directory.json").mkdir()
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    assert State(tmp_path, BOOT).all() == []


async def test_records_are_for_this_user_only(tmp_path: Path) -> None:
    await State(tmp_path / "a/b", BOOT).save(USED)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / f"a/b/{WEB.uuid}.json").stat().st_mode) == 0o600


def test_a_directory_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="state-directory"):
        State(tmp_path / "file", BOOT)


async def test_a_record_that_the_disk_cannot_read_is_put_aside_and_the_others_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, BOOT)
    await state.save(Record(WEB))
    await state.save(Record(ERASED))
    opened = Path.open

    def bad_block(path: Path, *args: Any, **named: Any) -> Any:
        if path.name == f"{WEB.uuid}.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *args, **named)

    monkeypatch.setattr(Path, "open", bad_block)
    assert State(tmp_path, BOOT).all() == [Record(ERASED)]


async def test_what_is_called_like_a_record_that_is_being_written_keeps_no_other_from_loading(tmp_path: Path) -> None:
    await State(tmp_path, BOOT).save(Record(WEB))
    (tmp_path / f"{ERASED.uuid}.new").mkdir()
    assert State(tmp_path, BOOT).all() == [Record(WEB)]
