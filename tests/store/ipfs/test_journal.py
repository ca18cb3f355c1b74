"""The journal of a writer: what it brings back, who may open it, and what a full disk does."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from s3vol.errors import NoSpace, UsageError
from s3vol.store.ipfs import journal as notes
from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import node_cid, raw_cid
from s3vol.store.ipfs.entry import Piece
from s3vol.store.ipfs.journal import LOADED, Journal, Loaded, OldCommit, Published, Segment, Upload, new_writer
from tests.store.ipfs.make import entry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


def reopen(path: Path) -> tuple[Journal, Loaded]:
    return Journal.open(path, "volume", "node")


@pytest.fixture
async def journal(path: Path) -> Journal:
    opened, _ = reopen(path)
    return opened


async def test_all_that_was_written_comes_back(path: Path, journal: Journal) -> None:
    block = Block(raw_cid(b"body"), b"body")
    commit = node_cid(b"commit")
    published = Published(7, commit, node_cid(b"tree"), {"w": 3}, 1)
    segment = Segment(node_cid(b"segment"), 4, frozenset({b"d" * 32, b"e" * 32}), LOADED, 17, {"w": 2})
    upload = Upload("key", "type", {"a": "b"}, 99)
    part = (Piece(b"p" * 32, 5),)
    await journal.write(
        notes.put_block(block),
        notes.put_change(2, "name", entry("x")),
        notes.put_merge(3, commit),
        notes.put_change(4, "gone", None),
        notes.put_fact("published", published),
        notes.put_fact("number", b"12"),
        notes.put_fact("segments", b"4"),
        notes.put_owed(b"o" * 32),
        notes.put_segment(segment),
        notes.put_commit(OldCommit(commit, 6, 100)),
        notes.put_upload("id", upload),
        notes.put_part("id", 1, "etag", part),
    )
    await journal.aclose()
    again, loaded = reopen(path)
    assert loaded.blocks == [block]
    assert loaded.changes == [(2, "name", entry("x")), (3, "", commit), (4, "gone", None)]
    assert loaded.published == loaded.base == published
    assert (loaded.number, loaded.segments_made, loaded.owed) == (12, 4, {b"o" * 32})
    assert loaded.segments == [segment]
    assert loaded.commits == [OldCommit(commit, 6, 100)]
    assert loaded.uploads["id"].parts == {1: ("etag", part)}
    await again.aclose()


async def test_the_writer_keeps_its_name_and_a_new_one_has_another(path: Path, journal: Journal) -> None:
    await journal.aclose()
    again, loaded = reopen(path)
    await again.aclose()
    third, same = reopen(path)
    await third.aclose()
    assert loaded.writer == same.writer
    assert loaded.writer.startswith("node-")
    assert new_writer("node") != new_writer("node")
    assert new_writer("strange/näme" + "x" * 100).isascii()


async def test_tasks_that_write_at_the_same_time_share_transactions_and_keep_their_order(
    path: Path, journal: Journal
) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(1, 101):
            nursery.start_soon(journal.write, notes.put_change(number, f"f{number}", None))
    await journal.aclose()
    again, loaded = reopen(path)
    assert len(loaded.changes) == 100
    await again.aclose()


async def test_a_cancelled_writer_has_written(path: Path, journal: Journal) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await journal.write(notes.put_change(1, "f", None))
    assert scope.cancelled_caught
    await journal.aclose()
    again, loaded = reopen(path)
    assert loaded.changes == [(1, "f", None)]
    await again.aclose()


async def test_a_full_disk_is_told_and_what_was_not_written_is_written_later(path: Path) -> None:
    journal, _ = reopen(path)
    connection = sqlite3.connect(path.with_name("other"), isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE changes(id INTEGER PRIMARY KEY, name TEXT, entry BLOB)")
    connection.execute("PRAGMA max_page_count=3")
    small = Journal(connection, path)
    with pytest.raises(NoSpace):
        await small.write(("INSERT INTO changes VALUES (1, 'f', zeroblob(100000))", ()))
    connection.execute("PRAGMA max_page_count=1000")
    await small.write(notes.put_change(2, "g", None))
    assert [row[0] for row in connection.execute("SELECT id FROM changes")] == [1, 2]
    await small.aclose()
    await journal.aclose()


async def test_a_journal_of_another_volume_is_refused(path: Path, journal: Journal) -> None:
    await journal.aclose()
    with pytest.raises(UsageError, match="another volume"):
        Journal.open(path, "other", "node")


def test_a_file_that_is_no_journal_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database " * 100)
    with pytest.raises(UsageError, match="damaged"):
        reopen(path)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cache-dir"):
        Journal.open(tmp_path / "file" / "journal", "volume", "node")
