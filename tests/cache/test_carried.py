"""Small writes whose bytes are in the journal: a power failure leaves what was synced, whatever the data files lost."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from s3vol.cache.base import State
from s3vol.cache.chunkcache import ChunkCache
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.journal import Journal
from s3vol.cache.records import Statement
from s3vol.cache.saver import CARRY_BYTES
from s3vol.errors import Unavailable
from tests.cache.rig import META, Rig, content_of


class Disk:
    """What a power failure leaves of the data files: each as of its last flush."""

    def __init__(self, rig: Rig, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._data = rig.directory / "data"
        self._folder = folder
        folder.mkdir()
        self.flushes = 0
        flush = DataFiles.flush

        async def flush_and_keep(files: DataFiles, content_id: int) -> None:
            await flush(files, content_id)
            self.flushes += 1
            shutil.copyfile(self._data / f"{content_id:x}", folder / f"{content_id:x}")

        patch.setattr(DataFiles, "flush", flush_and_keep)

    def fail(self, rig: Rig, to: Path) -> Rig:
        """A rig on what is left when the power fails now."""
        twin = rig.crashed(to, power_failure=True)
        shutil.rmtree(to / "data")
        shutil.copytree(self._folder, to / "data")
        return twin


@pytest.fixture
def disk(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(rig, tmp_path / "platters", monkeypatch)


async def left(rig: Rig, key: str) -> bytes:
    """What comes back, as a reader and as the bucket sees it."""
    async with rig.cache(serve=False) as cache:
        content = cache.dirty(key)
        assert content is not None
        cache.refer(content)
        await cache.publish(content)
        body = await content_of(cache, content)
    assert rig.body(key) == body
    return body


async def test_a_small_file_is_safe_after_one_flush_which_is_the_journals(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"begin, ")
        await cache.sync(content)
        await cache.write(content, 7, b"go on, ")
        await cache.write(content, 0, b"BEGIN")
        await cache.sync(content)
        await cache.write(content, 7, b"never promised")
        assert disk.flushes == 0
        twin = disk.fail(rig, tmp_path / "after")
    assert await left(twin, "f") == b"BEGIN, go on, "


async def test_bytes_that_were_flushed_are_not_overwritten_by_older_ones(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"older")
        await cache.sync(content)
        await cache.write(content, 0, b"n" * (CARRY_BYTES + 1))
        await cache.sync(content)
        assert disk.flushes == 1
        await cache.write(content, 2, b"EW")
        await cache.sync(content)
        twin = disk.fail(rig, tmp_path / "after")
    assert await left(twin, "f") == b"nnEW" + b"n" * (CARRY_BYTES - 3)


async def test_a_hole_where_a_file_was_cut_stays_a_hole(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"x" * (CARRY_BYTES + 1))
        await cache.sync(content)
        await cache.truncate(content, 10)
        await cache.write(content, 1000, b"end")
        await cache.sync(content)
        twin = disk.fail(rig, tmp_path / "after")
    assert await left(twin, "f") == b"x" * 10 + bytes(990) + b"end"


async def test_what_was_published_later_is_not_undone_by_older_bytes(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"synced")
        await cache.sync(content)
        await cache.write(content, 0, b"public")
        gate = rig.faults.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            await cache.write(content, 0, b"unsafe")
            gate.open()
        assert content.state is State.DIRTY
        await cache.sync_notes()
        twin = disk.fail(rig, tmp_path / "after")
    assert await left(twin, "f") == b"public"


async def test_what_was_synced_during_a_publish_is_not_forgotten_with_it(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"public")
        gate = rig.faults.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            await cache.write(content, 0, b"synced")
            await cache.sync(content)
            gate.open()
        await cache.sync_notes()
        twin = disk.fail(rig, tmp_path / "after")
    assert await left(twin, "f") == b"synced"


async def test_a_file_that_lost_more_than_was_carried_is_put_aside(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"x" * (CARRY_BYTES + 1))
        await cache.sync(content)
        await cache.write(content, content.size, b"carried")
        await cache.sync(content)
        twin = disk.fail(rig, tmp_path / "after")
    (tmp_path / "after" / "data" / f"{content.id:x}").unlink()
    async with twin.cache(serve=False) as cache:
        assert cache.dirty("f") is None
        assert cache.status().quarantined == 1


async def test_a_damaged_piece_is_put_aside_with_its_file(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"carried")
        await cache.sync(content)
        twin = disk.fail(rig, tmp_path / "after")
    with sqlite3.connect(tmp_path / "after" / "journal.db") as connection:
        connection.execute("UPDATE carried SET bytes=?", (b"CARRIED",))
    connection.close()
    async with twin.cache(serve=False) as cache:
        assert cache.dirty("f") is None
        assert cache.status().quarantined == 1


async def test_what_is_published_or_gone_leaves_nothing_in_the_journal(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        for name in ("published", "gone"):
            content = cache.create(name, META)
            await cache.write(content, 0, b"data")
            await cache.sync(content)
            await (cache.publish(content) if name == "published" else cache.discard(content))
        await cache.sync_notes()
    with sqlite3.connect(rig.directory / "journal.db") as connection:
        assert connection.execute("SELECT count(*) FROM carried").fetchone() == (0,)
    connection.close()


async def test_a_journal_of_the_former_schema_is_read_on(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"x" * (CARRY_BYTES + 1))
        await cache.sync(content)
    with sqlite3.connect(rig.directory / "journal.db") as connection:
        connection.execute("DROP TABLE carried")
        connection.execute("UPDATE meta SET value='1' WHERE name='schema'")
    connection.close()
    async with rig.cache(serve=False) as cache:
        revived = cache.dirty("f")
        assert revived is not None
        await cache.write(revived, 0, b"carried")
        await cache.sync(revived)
    assert await left(rig, "f") == b"carried" + b"x" * (CARRY_BYTES - 6)


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_was_done_before_the_power_failed_what_was_synced_last_is_there(
    rig: Rig, disk: Disk, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        model = bytearray()
        for number in range(60):
            await _step(chance, cache, content, model, number)
        cache.set_metadata(content, {**META, "mtime": "1"})
        await cache.sync(content)
        await cache.sync_notes()
        twin = disk.fail(rig, tmp_path / "after")
    assert await left(twin, "f") == model


async def _step(
    chance: random.Random, cache: ChunkCache, content: CachedContent, model: bytearray, number: int
) -> None:
    """One change, sync or publish."""
    match chance.choices(("small", "large", "cut", "sync", "publish"), (8, 1, 2, 6, 1))[0]:
        case "sync":
            await cache.sync(content)
        case "publish":
            await cache.publish(content)
        case "cut":
            size = chance.randrange(len(model) + 2000)
            await cache.truncate(content, size)
            model[size:] = bytes(max(0, size - len(model)))
        case kind:
            start = chance.randrange(len(model) + 3000)
            data = bytes([number]) * (CARRY_BYTES + 1 if kind == "large" else chance.randrange(1, 5000))
            await cache.write(content, start, data)
            model.extend(bytes(max(0, start - len(model))))
            model[start : start + len(data)] = data


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each commit that somebody waits for, whether it is durable."""
    commit, found = Journal.commit, list[bool]()

    async def watched(journal: Journal, statements: Sequence[Statement], *, durable: bool) -> None:
        found.append(durable)
        await commit(journal, statements, durable=durable)

    monkeypatch.setattr(Journal, "commit", watched)
    return found


async def test_a_file_that_was_never_published_is_forgotten_without_a_flush(
    rig: Rig, tmp_path: Path, commits: list[bool]
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await cache.sync(content)
        await cache.discard(content, durable=False)
        assert commits == [True, False]
        twin = rig.crashed(tmp_path / "killed")
    async with twin.cache(serve=False) as cache:
        assert cache.dirty("f") is None, "SIGKILL does not bring it back"


async def test_a_file_that_may_be_in_the_bucket_is_forgotten_durably(rig: Rig, commits: list[bool]) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await cache.sync(content)
        rig.faults.apply_then_fail("put")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        await cache.discard(content, durable=False)
        assert commits == [True, True]
