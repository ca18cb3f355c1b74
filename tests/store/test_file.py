"""The file store: what is in the directory, what hands may change in it, and what a crash leaves."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from s3vol.errors import Corrupt, NotFound, PreconditionFailed, Rejected, UsageError
from s3vol.store.base import ABSENT, matches
from s3vol.store.file import FILE_CAPABILITIES, FileStore
from s3vol.store.file_control import CONTROL
from s3vol.store.file_record import OBJECT_XATTR, Record, Records
from s3vol.types import NONCE

CAPABILITIES = replace(FILE_CAPABILITIES, min_part_bytes=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture(params=[True, False], ids=["xattr", "sidecar"])
async def store(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[FileStore]:
    opened = await FileStore.open(directory, capabilities=CAPABILITIES, use_xattrs=request.param)
    yield opened
    await opened.aclose()


def user_files(directory: Path) -> list[str]:
    """What somebody sees who looks into the directory."""
    paths = (path.relative_to(directory) for path in directory.rglob("*"))
    return sorted(str(path) for path in paths if path.parts[0] != CONTROL)


def private_files(directory: Path) -> list[str]:
    """Files of the control area that are there for an object, an upload or a call."""
    control = directory / CONTROL
    return sorted(
        str(path.relative_to(control))
        for path in control.rglob("*")
        if path.is_file() and path.relative_to(control).parts[0] != "locks"
    )


# -- the directory is readable by any tool


async def test_objects_are_plain_files_at_their_keys(store: FileStore, directory: Path) -> None:
    await store.put("a/b/c.txt", b"content", metadata={"mode": "33188"})
    await store.put("top", b"", metadata={})
    assert user_files(directory) == ["a", "a/b", "a/b/c.txt", "top"]
    assert (directory / "a/b/c.txt").read_bytes() == b"content"


async def test_a_completed_upload_is_one_plain_file(store: FileStore, directory: Path) -> None:
    upload_id = await store.create_upload("a/k", metadata={})
    parts = [await store.upload_part("a/k", upload_id, number, b"%d" % number * 5) for number in (1, 2)]
    assert user_files(directory) == []
    await store.complete_upload("a/k", upload_id, parts)
    assert (directory / "a/k").read_bytes() == b"1111122222"


async def test_a_marker_is_a_plain_directory(store: FileStore, directory: Path) -> None:
    await store.put("d/", b"", metadata={"mode": "16877"})
    assert user_files(directory) == ["d"]
    assert list((directory / "d").iterdir()) == []


async def test_directories_vanish_with_their_last_key_and_stay_with_a_marker(store: FileStore, directory: Path) -> None:
    await store.put("a/b/c/k", b"", metadata={})
    await store.put("a/b/", b"", metadata={})
    await store.delete("a/b/c/k")
    assert user_files(directory) == ["a", "a/b"]
    await store.delete("a/b/")
    assert user_files(directory) == []


async def test_only_what_is_needed_is_left_in_the_control_area(store: FileStore, directory: Path) -> None:
    etag = await store.put("a/k", b"1", metadata={"v": "x" * 1900})
    await store.put("a/k", b"2", metadata={}, condition=matches(etag))
    with pytest.raises(PreconditionFailed):
        await store.put("a/k", b"3", metadata={}, condition=matches(etag))
    with pytest.raises(PreconditionFailed):
        await store.copy("a/k", "b", if_match=etag, metadata={})
    await store.put("d/", b"", metadata={})
    upload_id = await store.create_upload("u", metadata={})
    await store.upload_part("u", upload_id, 1, b"x")
    await store.abort_upload("u", upload_id)
    await store.delete("a/k")
    await store.delete("d/")
    assert private_files(directory) == []


# -- what others put there, and change, by hand


async def test_a_file_put_there_by_hand_is_an_object(store: FileStore, directory: Path) -> None:
    (directory / "by").mkdir()
    path = directory / "by/hand"
    path.write_bytes(b"hello")
    info = await store.head("by/hand")
    assert (info.size, info.metadata, info.modified_ns) == (5, {}, path.stat().st_mtime_ns // 10**9 * 10**9)
    assert bytes(await store.get("by/hand", 1, 3, if_match=info.etag)) == b"ell"
    assert [found.key for found in (await store.list("by/")).objects] == ["by/hand"]
    await store.put("by/hand", b"ours", metadata={NONCE: "1"}, condition=matches(info.etag))
    assert path.read_bytes() == b"ours"


async def test_the_etag_of_a_file_by_hand_is_stable_and_no_md5(store: FileStore, directory: Path) -> None:
    (directory / "k").write_bytes(b"hello")
    etag = (await store.head("k")).etag
    assert etag == (await store.head("k")).etag == (await store.list("")).objects[0].etag
    assert etag.endswith("-0")
    other = await FileStore.open(directory)
    assert (await other.head("k")).etag == etag
    await other.aclose()


async def test_an_edit_by_hand_is_another_version_even_with_the_same_size_and_mtime(
    store: FileStore, directory: Path
) -> None:
    path = directory / "k"
    path.write_bytes(b"one")
    before = path.stat()
    etag = (await store.head("k")).etag
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await store.head("k")).etag != etag
    with pytest.raises(PreconditionFailed):
        await store.get("k", 0, 3, if_match=etag)
    with pytest.raises(PreconditionFailed):
        await store.put("k", b"x", metadata={}, condition=matches(etag))


async def test_an_edit_by_hand_of_our_object_is_another_version(store: FileStore, directory: Path) -> None:
    etag = await store.put("k", b"ours", metadata={NONCE: "1", "mode": "33152", "mtime": "1.0", "uid": "5"})
    with (directory / "k").open("ab") as file:
        file.write(b" and theirs")
    info = await store.head("k")
    assert info.etag != etag
    assert info.size == 15
    assert NONCE not in (info.metadata or {}), "the nonce was that of other bytes"
    assert "mtime" not in (info.metadata or {})
    with pytest.raises(PreconditionFailed):
        await store.put("k", b"lost update", metadata={}, condition=matches(etag))
    assert (directory / "k").read_bytes() == b"ours and theirs"


async def test_mode_and_owner_survive_an_edit_by_hand(directory: Path) -> None:
    store = await FileStore.open(directory)
    await store.put("k", b"secret", metadata={"mode": "33152", "uid": "5"})
    (directory / "k").write_bytes(b"still secret")
    assert (await store.head("k")).metadata == {"mode": "33152", "uid": "5"}
    await store.aclose()


async def test_a_file_replaced_by_hand_does_not_inherit_metadata(store: FileStore, directory: Path) -> None:
    await store.put("k", b"ours", metadata={"mode": "33152"})
    (directory / "new").write_bytes(b"theirs")
    (directory / "new").rename(directory / "k")
    assert (await store.head("k")).metadata == {}


async def test_a_file_moved_by_hand_takes_its_metadata_along(store: FileStore, directory: Path) -> None:
    etag = await store.put("a", b"x", metadata={"mode": "33152"})
    (directory / "a").rename(directory / "b")
    info = await store.head("b")
    assert (info.etag, info.metadata) == (etag, {"mode": "33152"})
    with pytest.raises(NotFound):
        await store.head("a")


async def test_a_directory_made_by_hand_is_seen_when_it_holds_a_file(store: FileStore, directory: Path) -> None:
    (directory / "a/b").mkdir(parents=True)
    assert (await store.list("")).prefixes == ()
    (directory / "a/b/k").write_bytes(b"")
    assert (await store.list("")).prefixes == ("a/",)


async def test_a_directory_removed_by_hand_takes_its_marker_along(store: FileStore, directory: Path) -> None:
    await store.put("d/", b"", metadata={NONCE: "1"})
    (directory / "d").rmdir()
    with pytest.raises(NotFound):
        await store.head("d/")
    await store.put("d/", b"", metadata={NONCE: "2"}, condition=ABSENT)


async def test_empty_directories_are_not_in_the_way_of_an_object(store: FileStore, directory: Path) -> None:
    (directory / "a/b/c").mkdir(parents=True)
    await store.put("a", b"x", metadata={}, condition=ABSENT)
    assert (directory / "a").read_bytes() == b"x"


async def test_an_object_and_its_children_cannot_both_be_files(store: FileStore, directory: Path) -> None:
    await store.put("a/b", b"child", metadata={})
    with pytest.raises(Rejected, match=r"a/\.\.\. exists"):
        await store.put("a", b"x", metadata={})
    await store.put("k", b"x", metadata={})
    for key in ("k/child", "k/"):
        with pytest.raises(Rejected, match="part of this path"):
            await store.put(key, b"", metadata={})
    assert user_files(directory) == ["a", "a/b", "k"]
    await store.put("d/", b"", metadata={})
    with pytest.raises(Rejected):
        await store.put("d", b"x", metadata={})


async def test_links_and_special_files_are_neither_followed_nor_replaced(
    store: FileStore, directory: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (directory / "link").symlink_to(outside / "secret")
    (directory / "folder").symlink_to(outside)
    os.mkfifo(directory / "fifo")
    assert not (await store.list("", delimiter=False)).objects
    assert not (await store.list("")).prefixes
    for key in ("link", "folder/secret", "fifo", "folder/"):
        with pytest.raises(NotFound):
            await store.head(key)
        await store.delete(key)
        with pytest.raises(Rejected):
            await store.put(key, b"", metadata={})
    with pytest.raises(Rejected):
        await store.put("folder/new", b"", metadata={})
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert user_files(directory) == ["fifo", "folder", "link"]


async def test_listings_at_the_same_time_see_everything(store: FileStore, directory: Path) -> None:
    wanted = {f"f{number}" for number in range(900)}
    for name in wanted:
        (directory / name).touch()
    seen: list[set[str]] = []

    async def look() -> None:
        pages = [await store.list("", metadata=False) for _ in range(5)]
        seen.extend({info.key for info in page.objects} for page in pages)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(look)
    assert [len(wanted - found) for found in seen] == [0] * 40


async def test_a_name_that_is_not_utf8_is_said_once_and_not_listed(
    store: FileStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = b"latin-\xe9-" + os.urandom(4).hex().encode()
    os.close(os.open(os.path.join(os.fsencode(directory), name), os.O_CREAT | os.O_WRONLY))
    for _ in range(2):
        assert not (await store.list("")).objects
    assert len([record for record in caplog.records if repr(name) in record.getMessage()]) == 1


async def test_the_control_area_is_no_part_of_the_bucket(store: FileStore, directory: Path) -> None:
    await store.put("a/.s3vol-store", b"only the first component is special", metadata={})
    assert [info.key for info in (await store.list("", delimiter=False)).objects] == ["a/.s3vol-store"]
    assert not (await store.list(f"{CONTROL}/", delimiter=False)).objects
    for key in (CONTROL, f"{CONTROL}/locks/00", f"{CONTROL}/"):
        with pytest.raises(Rejected):
            await store.put(key, b"", metadata={})
        with pytest.raises(Rejected):
            await store.delete(key)


async def test_the_volumes_own_prefix_is_listed_like_any_other(store: FileStore) -> None:
    await store.put(".s3vol/format.json", b"{}", metadata={})
    assert (await store.list("")).prefixes == (".s3vol/",)


# -- records


async def test_metadata_too_big_for_an_attribute_is_kept_elsewhere(store: FileStore, directory: Path) -> None:
    metadata = {"v": '"' * 2000}  # 4,000 bytes as JSON: over one block of ext4
    etag = await store.put("k", b"x", metadata=metadata)
    await store.put("d/", b"", metadata=metadata)
    assert (await store.head("k")).metadata == metadata
    assert (await store.head("d/")).metadata == metadata
    assert (await store.list("")).objects[0].metadata == metadata
    await store.put("k", b"x", metadata={"v": "small"}, condition=matches(etag))
    await store.put("d/", b"", metadata={"v": "small"})
    assert (await store.head("k")).metadata == {"v": "small"}
    assert (await store.head("d/")).metadata == {"v": "small"}


async def test_a_reader_whose_file_is_replaced_after_it_opened_it_sees_one_version(
    store: FileStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"old", metadata={NONCE: "old"})
    read = Records.read

    def replaced_first(records: Records, fd: int, stat: os.stat_result, key: str) -> tuple[Record, bool]:
        monkeypatch.setattr(Records, "read", read)
        trio.from_thread.run(partial(store.put, "k", b"newer", metadata={NONCE: "new"}))
        return read(records, fd, stat, key)

    monkeypatch.setattr(Records, "read", replaced_first)
    info = await store.head("k")
    assert (info.size, info.metadata) in ((3, {NONCE: "old"}), (5, {NONCE: "new"}))


async def test_a_damaged_record_is_corrupt_and_not_guessed(directory: Path) -> None:
    store = await FileStore.open(directory)
    await store.put("k", b"x", metadata={})
    os.setxattr(directory / "k", OBJECT_XATTR, b"{broken")
    with pytest.raises(Corrupt, match="setfattr -x"):
        await store.head("k")
    os.removexattr(directory / "k", OBJECT_XATTR)
    assert (await store.head("k")).metadata == {}
    await store.aclose()


async def test_a_copy_of_the_directory_keeps_everything(directory: Path, tmp_path: Path) -> None:
    store = await FileStore.open(directory)
    etag = await store.put("a/k", b"x", metadata={NONCE: "1"})
    await store.put("d/", b"", metadata={"mode": "16877"})
    await store.aclose()
    shutil.copytree(directory, tmp_path / "copy")  # copies times and extended attributes, as `cp -a`
    copy = await FileStore.open(tmp_path / "copy")
    info = await copy.head("a/k")
    assert (info.etag, info.metadata) == (etag, {NONCE: "1"})
    assert (await copy.head("d/")).metadata == {"mode": "16877"}
    await copy.aclose()


# -- opening and closing


async def test_everything_is_there_after_opening_again(directory: Path) -> None:
    first = await FileStore.open(directory, capabilities=CAPABILITIES)
    await first.put("a/k", b"x", metadata={NONCE: "1"})
    upload_id = await first.create_upload("u", metadata={NONCE: "u"})
    parts = [await first.upload_part("u", upload_id, 1, b"part")]
    await first.aclose()
    await first.aclose()
    second = await FileStore.open(directory, capabilities=CAPABILITIES)
    assert (await second.head("a/k")).metadata == {NONCE: "1"}
    await second.complete_upload("u", upload_id, parts)
    assert (await second.head("u")).metadata == {NONCE: "u"}
    await second.aclose()
    assert private_files(directory) == []


async def test_opening_sweeps_what_a_crash_left_and_nothing_that_is_in_use(directory: Path) -> None:
    living = await FileStore.open(directory)
    sessions = directory / CONTROL / "tmp"
    (held,) = sessions.iterdir()
    (sessions / "crashed").mkdir()
    (sessions / "crashed" / "7").write_bytes(b"half")
    second = await FileStore.open(directory)
    assert held.exists()
    assert not (sessions / "crashed").exists()
    await second.aclose()
    await living.put("k", b"x", metadata={})
    await living.aclose()
    assert list(sessions.iterdir()) == []


async def test_a_directory_that_is_missing_or_none_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory; make it first"):
        await FileStore.open(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a directory"):
        await FileStore.open(tmp_path / "file")


async def test_no_descriptor_stays_open(directory: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    store = await FileStore.open(directory, capabilities=CAPABILITIES)
    await store.put("warm/up", b"x", metadata={})
    before = descriptors()
    for number in range(3):
        etag = await store.put(f"a/{number}", b"content", metadata={})
        await store.get(f"a/{number}", 0, 3)
        with pytest.raises(PreconditionFailed):
            await store.put(f"a/{number}", b"content", metadata={}, condition=ABSENT)
        with pytest.raises(Rejected):
            await store.put("a", b"", metadata={})
        with pytest.raises(Rejected):
            await store.put(f"a/{number}/b", b"", metadata={})
        with pytest.raises(NotFound):
            await store.head("a/b/c")
        await store.put("d/e/", b"", metadata={})
        await store.list("")
        await store.list("", delimiter=False, limit=1)
        await store.copy(f"a/{number}", "copy", if_match=etag, metadata={})
        upload_id = await store.create_upload("u", metadata={})
        part = await store.copy_part("u", upload_id, 1, source=f"a/{number}", start=0, length=3, if_match=etag)
        await store.complete_upload("u", upload_id, [part])
        await store.delete("d/e/")
    assert descriptors() == before
    await store.aclose()
    assert descriptors() < before
