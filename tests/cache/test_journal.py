"""The journal by itself: order, groups, and a disk that refuses."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from s3vol.cache import records
from s3vol.cache.journal import Journal, Loaded
from s3vol.errors import S3volError
from s3vol.types import Version


def opened(path: Path) -> tuple[Journal, Loaded]:
    return Journal.open(path, "volume", "00000000", "boot")


@contextmanager
def no_file_may_grow(path: Path) -> Iterator[None]:
    """Every write beyond the present end of `path` fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_refusing_disk_fails_who_waits_and_keeps_what_nobody_waits_for(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal, _ = opened(path)
    await journal.commit(records.set_note("k", "before", "1"), durable=True)
    with no_file_may_grow(tmp_path / "journal.db-wal"):
        journal.enqueue(records.set_note("k", "lazy", "1"))
        with pytest.raises(S3volError, match=r"journal\.db"):
            await journal.commit(records.set_note("k", "waited", "1"), durable=True)
        assert journal.failures >= 1
    await journal.commit(records.set_note("k", "after", "1"), durable=True)
    journal.close(clean=True)
    journal, loaded = opened(path)
    journal.close(clean=True)
    assert set(loaded.notes["k"]) == {"before", "lazy", "after"}


async def test_statements_are_applied_in_the_order_in_which_they_were_handed_over(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "journal.db")
    for at in range(500):
        journal.enqueue(records.set_note("k", "x", str(at)))
    await journal.commit(records.set_note("k", "y", "1"), durable=False)
    journal.close(clean=True)
    journal, loaded = opened(tmp_path / "journal.db")
    journal.close(clean=True)
    assert loaded.notes["k"] == {"x": "499", "y": "1"}


async def test_what_is_settled_is_there_when_the_process_dies_right_then(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    journal, _ = opened(tmp_path / "run/journal.db")
    for at in range(20):
        journal.enqueue(records.set_note("k", "x", str(at)))
        await journal.settle()
        shutil.copytree(tmp_path / "run", tmp_path / f"killed-{at}")
        await journal.settle()
    journal.close(clean=True)
    for at in range(20):
        found, loaded = opened(tmp_path / f"killed-{at}/journal.db")
        found.close(clean=True)
        assert loaded.notes["k"] == {"x": str(at)}


async def test_what_a_refusing_disk_kept_is_not_settled_before_it_is_applied(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    journal, _ = opened(tmp_path / "run/journal.db")
    await journal.commit(records.set_note("k", "before", "1"), durable=True)
    with no_file_may_grow(tmp_path / "run/journal.db-wal"):
        journal.enqueue(records.set_note("k", "kept", "1"))
        with pytest.raises(S3volError, match=r"journal\.db"):
            await journal.settle()
    await journal.settle()
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    journal.close(clean=True)
    journal, loaded = opened(tmp_path / "killed/journal.db")
    journal.close(clean=True)
    assert set(loaded.notes["k"]) == {"before", "kept"}


async def test_a_hundred_waiters_share_a_few_commits(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "journal.db")
    async with trio.open_nursery() as nursery:
        for at in range(100):
            nursery.start_soon(partial(journal.commit, records.set_note("k", str(at), "1"), durable=True))
    journal.close(clean=False)
    connection = sqlite3.connect(tmp_path / "journal.db")
    (commits,) = connection.execute("SELECT value FROM meta WHERE name='commits'").fetchone()
    (shutdown,) = connection.execute("SELECT value FROM meta WHERE name='shutdown'").fetchone()
    connection.close()
    assert int(commits) < 20
    assert shutdown == "running"


def test_a_row_comes_back_as_it_was_and_a_flipped_bit_is_noticed() -> None:
    row = records.Row(
        id=7,
        key="a/é",
        base=Version("etag", ""),
        derived=True,
        base_limit=5,
        size=9,
        metadata={"mode": "33188"},
        content_type="text/plain",
        state="dirty",
        attempt=3,
        attempts={2: "abc", 3: ""},
        explicit_times=False,
    )
    ((_, values),) = records.save_content(row)
    assert records.parse_row(values) == row
    for at in range(len(values)):
        damaged = list(values)
        damaged[at] = "x" if damaged[at] != "x" else "y"
        with pytest.raises((ValueError, TypeError, AttributeError)):
            records.parse_row(damaged)


async def test_closing_commits_what_is_queued(tmp_path: Path) -> None:
    journal, loaded = opened(tmp_path / "journal.db")
    journal.enqueue(records.add_upload("id", "key"))
    await trio.to_thread.run_sync(lambda: journal.close(clean=True))
    journal, again = opened(tmp_path / "journal.db")
    journal.close(clean=True)
    assert again.uploads == [("id", "key")]
    assert again.cache_id == loaded.cache_id == "00000000"
    assert again.first_content_id > loaded.first_content_id
