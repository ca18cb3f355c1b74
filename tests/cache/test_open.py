"""Opening a cache: whose it is, what it brings back, what it refuses to believe."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.cache.base import State
from s3vol.cache.saver import CARRY_BYTES
from s3vol.errors import Conflict, Unavailable, UsageError
from s3vol.types import MIB
from tests.cache.rig import META, VOLUME, Rig, content_of


async def refused(rig: Rig, volume: str = VOLUME) -> str:
    with pytest.raises(UsageError) as error:
        async with rig.cache(serve=False, volume=volume):
            pass
    text = str(error.value)
    assert "\n" not in text
    assert str(rig.directory) in text
    assert "--cache-dir" in text
    return text


async def test_a_second_user_is_told_who_has_it(rig: Rig) -> None:
    async with rig.cache(serve=False):
        assert f"in use by process {os.getpid()}" in await refused(rig)
    async with rig.cache(serve=False):
        pass


async def test_a_cache_of_another_volume_is_refused(rig: Rig) -> None:
    async with rig.cache(serve=False):
        pass
    assert "cache of another volume" in await refused(rig, "s3://another/")


async def test_a_directory_that_holds_something_else_is_refused_and_left_alone(rig: Rig) -> None:
    rig.directory.mkdir()
    (rig.directory / "letters.txt").write_text("private")
    assert "letters.txt" in await refused(rig)
    assert os.listdir(rig.directory) == ["letters.txt"]


async def test_a_symbolic_link_is_not_followed(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    rig.directory.symlink_to(tmp_path / "elsewhere")
    await refused(rig)


@pytest.mark.parametrize("name", ["lock", "journal.db", "journal.db-wal", "data", "quarantine"])
async def test_no_symbolic_link_in_it_is_followed(rig: Rig, tmp_path: Path, name: str) -> None:
    async with rig.cache(serve=False):
        pass
    inside, outside = rig.directory / name, tmp_path / "outside"
    if inside.is_dir():
        inside.rename(outside)
    else:
        outside.write_bytes(inside.read_bytes() if inside.exists() else b"")
        inside.unlink(missing_ok=True)
    inside.symlink_to(outside)
    before = outside.stat()
    assert f"{name} in it is a symbolic link" in await refused(rig)
    assert outside.stat().st_mtime_ns == before.st_mtime_ns


async def test_what_another_user_put_into_it_is_refused(rig: Rig) -> None:
    async with rig.cache(serve=False):
        pass
    os.chown(rig.directory / "journal.db", 12345, 12345)
    assert "journal.db in it is not what s3vol made" in await refused(rig)
    os.chown(rig.directory, 12345, 12345)
    assert "belongs to uid 12345" in await refused(rig)


async def test_a_directory_that_everybody_can_replace_is_refused(rig: Rig) -> None:
    rig.directory.parent.chmod(0o777)
    assert "everybody can replace it" in await refused(rig)
    rig.directory.parent.chmod(0o1777)
    async with rig.cache(serve=False):
        pass


async def test_the_directory_is_private(rig: Rig) -> None:
    rig.directory.mkdir(mode=0o755)
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"x")
        assert rig.directory.stat().st_mode & 0o777 == 0o700


async def test_what_is_no_database_is_refused_with_the_way_out(rig: Rig) -> None:
    async with rig.cache(serve=False):
        pass
    (rig.directory / "journal.db").write_bytes(b"this is not SQLite" * 1000)
    assert "journal.db is damaged" in await refused(rig)


async def test_a_damaged_page_is_refused_with_the_way_out(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        for at in range(300):
            cache.note("kind", f"name {at}", "value" * 20)
    path = rig.directory / "journal.db"
    body = bytearray(path.read_bytes())
    body[4096 * 5 : 4096 * 12] = os.urandom(4096 * 7)
    path.write_bytes(body)
    assert "damaged" in await refused(rig)


async def test_a_journal_of_a_newer_version_is_refused(rig: Rig) -> None:
    async with rig.cache(serve=False):
        pass
    change(rig, "UPDATE meta SET value='99' WHERE name='schema'")
    assert "newer s3vol" in await refused(rig)


def change(rig: Rig, sql: str) -> None:
    connection = sqlite3.connect(rig.directory / "journal.db")
    with connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE content SET size = size + 1 WHERE key='bad'",
        "UPDATE content SET metadata = 'no json' WHERE key='bad'",
        "UPDATE extent SET stop = stop + 1 WHERE content=(SELECT id FROM content WHERE key='bad')",
    ],
)
async def test_a_damaged_record_is_quarantined_with_its_bytes_and_the_others_are_brought_back(
    rig: Rig, damage: str
) -> None:
    async with rig.cache(serve=False) as cache:
        for key in ("good", "bad"):
            content = cache.create(key, META)
            await cache.write(content, 0, key.encode())
            await cache.sync(content)
    change(rig, damage)
    for _ in range(2):
        async with rig.cache(serve=False) as cache:
            assert [content.key for content in cache.pending()] == ["good"]
            assert cache.status().quarantined == 1
    (kept,) = (rig.directory / "quarantine").iterdir()
    assert kept.read_bytes() == b"bad"


async def test_a_lost_data_file_is_quarantined(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data" * CARRY_BYTES)
        await cache.sync(content)
    (rig.directory / "data" / f"{content.id:x}").unlink()
    async with rig.cache(serve=False) as cache:
        assert not list(cache.pending())
        assert cache.status().quarantined == 1


async def test_clean_chunks_survive_a_restart_but_not_a_power_failure(rig: Rig, tmp_path: Path) -> None:
    info = await rig.put("f", b"x" * (3 * MIB))
    async with rig.cache(serve=False) as cache:
        content = cache.attach(info)
        await cache.read(content, MIB, 10)
        cache.parts.writeback.record_filled()
        await cache.sync_notes()
        killed = rig.crashed(tmp_path / "killed")
        unplugged = rig.crashed(tmp_path / "unplugged", power_failure=True)
    for twin, present in ((rig, MIB), (killed, MIB), (unplugged, 0)):
        async with twin.cache(serve=False) as cache:
            assert cache.attach(info).present.total == present
            assert (cache.status().used_bytes > 0) == bool(present)


async def test_a_restart_after_a_clean_end_keeps_clean_chunks_over_a_reboot(rig: Rig) -> None:
    info = await rig.put("f", b"x" * MIB)
    async with rig.cache(serve=False) as cache:
        await cache.read(cache.attach(info), 0, 10)
    change(rig, "UPDATE meta SET value='another boot' WHERE name='boot'")
    async with rig.cache(serve=False) as cache:
        assert cache.attach(info).present.total == MIB


async def test_a_write_that_nobody_synced_does_not_show_in_a_clean_version_after_a_crash(
    rig: Rig, tmp_path: Path
) -> None:
    info = await rig.put("f", b"x" * MIB)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(info)
        await cache.read(content, 0, 10)
        cache.parts.writeback.record_filled()
        await cache.write(content, 10, b"NOT SYNCED")
        twin = rig.crashed(tmp_path / "crashed")
    async with twin.cache(serve=False) as cache:
        assert await content_of(cache, cache.attach(info)) == b"x" * MIB


async def test_an_unsynced_truncate_does_not_show_either(rig: Rig, tmp_path: Path) -> None:
    info = await rig.put("f", b"x" * MIB)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(info)
        await cache.read(content, 0, 10)
        cache.parts.writeback.record_filled()
        await cache.truncate(content, 10)
        await cache.truncate(content, MIB)
        twin = rig.crashed(tmp_path / "crashed")
    async with twin.cache(serve=False) as cache:
        assert await content_of(cache, cache.attach(info)) == b"x" * MIB


async def test_synced_bytes_that_are_cut_and_lost_in_a_crash_are_not_shown_as_zeros(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"synced")
        await cache.sync(content)
        await cache.truncate(content, 0)
        twin = rig.crashed(tmp_path / "crashed")
    async with twin.cache(serve=False) as cache:
        assert await content_of(cache, next(iter(cache.pending()))) == b""


async def test_dirty_contents_are_published_after_a_restart(rig: Rig) -> None:
    rig.faults.down = True
    info = await rig.put("old", b"x" * (3 * MIB))
    async with rig.cache() as cache:
        content = cache.attach(info)
        await cache.write(content, MIB + 7, b"changed")
        new = cache.create("new", {**META, "mode": "33261"}, content_type="text/plain")
        await cache.write(new, 0, b"new file")
    rig.faults.down = False
    async with rig.cache() as cache:
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert not list(cache.pending())
        expected = bytearray(b"x" * (3 * MIB))
        expected[MIB + 7 : MIB + 14] = b"changed"
        assert rig.body("old") == expected
        found = await rig.other.head("new")
        assert rig.body("new") == b"new file"
        assert (found.metadata or {})["mode"] == "33261"
        assert found.content_type == "text/plain"


async def test_uploads_of_a_process_that_died_are_aborted(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("big", META)
        await cache.truncate(content, 40 * MIB)
        rig.faults.fail_next("upload_part")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        assert len(rig.bucket.uploads) == 1
        twin = rig.crashed(tmp_path / "crashed")
    async with twin.cache() as cache:
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert not twin.bucket.uploads


async def test_a_publish_that_the_journal_missed_is_recognised_and_newer_bytes_win(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"journaled")
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "crashed", power_failure=True)
        await cache.write(content, 0, b"published after it")
        await cache.publish(content)
    async with twin.cache(serve=False) as cache:
        (survivor,) = cache.pending()
        cache.refer(survivor)
        await cache.publish(survivor)
        assert survivor.state is State.CLEAN
        assert await content_of(cache, survivor) == b"published after it"
        assert rig.body("f") == b"published after it"
        assert rig.keys() == ["f"]


async def test_synced_bytes_that_are_written_again_during_a_publish_survive_a_crash(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"first")
        await cache.sync(content)
        gate = rig.faults.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.publish, content)
            await gate.entered.wait()
            await cache.write(content, 0, b"AGAIN")
            gate.open()
        assert rig.body("f") == b"first"
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "crashed", power_failure=True)
    async with twin.cache(serve=False) as cache:
        (survivor,) = cache.pending()
        await cache.publish(survivor)
        assert rig.body("f") == b"AGAIN"


async def test_chunks_that_were_evicted_and_fetched_again_survive_a_restart(rig: Rig) -> None:
    info = await rig.put("f", b"x" * MIB)
    async with rig.cache(serve=False) as cache:
        content = cache.attach(info)
        await cache.read(content, 1000, 10)
        cache.parts.writeback.record_filled()
        await cache.parts.space.evict(1 << 40)
        assert content.present.total == 0
        await cache.read(content, 1000, 10)
    async with rig.cache(serve=False) as cache:
        assert cache.attach(info).present.total == MIB


async def test_an_append_that_nobody_synced_does_not_show_up_when_the_file_grows(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"synced")
        await cache.sync(content)
        await cache.write(content, 6, b" and not synced")
        twin = rig.crashed(tmp_path / "crashed")
    async with twin.cache(serve=False) as cache:
        (survivor,) = cache.pending()
        await cache.truncate(survivor, 20)
        assert await content_of(cache, survivor) == b"synced" + bytes(14)


async def test_after_a_power_failure_bytes_that_nobody_vouches_for_are_not_put_into_a_conflict_copy(
    rig: Rig, tmp_path: Path
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.attach(await rig.put("f", b"x" * (2 * MIB)))
        await content_of(cache, content)
        cache.parts.writeback.record_filled()
        await cache.write(content, 0, b"OURS")
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "crashed", power_failure=True)
    await rig.put("f", b"theirs")
    async with twin.cache(serve=False) as cache:
        (survivor,) = cache.pending()
        with pytest.raises(Conflict) as conflict:
            await cache.publish(survivor)
        assert rig.body(conflict.value.copy_key) == b"OURS" + bytes(2 * MIB - 4)
        assert "4-2097152" in twin.write_errors()[0].message


async def test_a_published_file_is_not_pending_after_a_restart(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data")
        await cache.sync(content)
        await cache.publish(content)
    async with rig.cache(serve=False) as cache:
        assert not list(cache.pending())


async def test_an_older_publish_that_the_journal_missed_is_replaced_by_what_was_synced_later(
    rig: Rig, tmp_path: Path
) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"older")
        rig.faults.apply_then_fail("put")
        with pytest.raises(Unavailable):
            await cache.publish(content)
        await cache.write(content, 0, b"newer")
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "crashed")
    async with twin.cache(serve=False) as cache:
        (survivor,) = cache.pending()
        await cache.publish(survivor)
        assert rig.body("f") == b"newer"
        assert rig.keys() == ["f"]


async def test_a_write_after_a_restart_is_on_top_of_what_was_published_last(rig: Rig, tmp_path: Path) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"journaled.")
        await cache.sync(content)
        twin = rig.crashed(tmp_path / "crashed", power_failure=True)
        await cache.write(content, 0, b"published after it")
        await cache.publish(content)
    async with twin.cache(serve=False) as cache:
        (survivor,) = cache.pending()
        cache.refer(survivor)
        await cache.write(survivor, 0, b"P")
        await cache.publish(survivor)
        assert rig.body("f") == b"Published after it"


async def test_notes_are_kept_and_removed(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        cache.note("ino", "a", "17")
        cache.note("ino", "b", "18")
        cache.note("ino", "a", None)
        await cache.sync_notes()
        assert cache.notes("ino") == {"b": "18"}
        assert cache.notes("other") == {}
    async with rig.cache(serve=False) as cache:
        assert cache.notes("ino") == {"b": "18"}


async def test_a_note_that_a_full_disk_refuses_stops_nobody_and_is_kept_for_later(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        await cache.sync_notes()
        connection = cache.parts.journal._connection
        connection.execute("PRAGMA max_page_count=1")  # no more than there are
        cache.note("k", "refused", "1" * 1_000_000)
        await cache.settle_notes()
        assert cache.parts.journal.failures == 1
        connection.execute("PRAGMA max_page_count=1000000")
        cache.note("k", "after", "1")
        await cache.settle_notes()
    async with rig.cache(serve=False) as cache:
        assert set(cache.notes("k")) == {"refused", "after"}


async def test_content_numbers_are_never_used_twice(rig: Rig) -> None:
    numbers = set[int]()
    for _ in range(3):
        async with rig.cache(serve=False) as cache:
            numbers |= {cache.create(f"f{at}", META).id for at in range(3)}
    assert len(numbers) == 9


async def test_a_failed_fdatasync_is_not_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.cache(serve=False) as cache:
        content = cache.create("f", META)
        await cache.write(content, 0, b"data" * CARRY_BYTES)

        def broken(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", broken)
        for _ in range(2):
            with pytest.raises(Exception, match="fdatasync"):
                await cache.sync(content)
            monkeypatch.undo()
        await cache.publish(content)
        await cache.write(content, 0, b"more")
        await cache.sync(content)


async def test_concurrent_syncs_share_commits(rig: Rig) -> None:
    async with rig.cache(serve=False) as cache:
        contents = [cache.create(f"f{at}", META) for at in range(50)]
        for content in contents:
            await cache.write(content, 0, b"x")
        async with trio.open_nursery() as nursery:
            for content in contents:
                for _ in range(3):
                    nursery.start_soon(cache.sync, content)
        assert all(content.saved_generation == content.generation for content in contents)
    commits = sqlite3.connect(rig.directory / "journal.db").execute("SELECT value FROM meta WHERE name='commits'")
    assert int(commits.fetchone()[0]) < 60
    commits.connection.close()
