"""The file store where hands, links, other stores and power failures meet it; and servers that ignore what is asked."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3vol import layout
from s3vol.errors import PreconditionFailed, Rejected
from s3vol.store import s3_list
from s3vol.store.base import Part
from s3vol.store.file import FILE_CAPABILITIES, FileStore
from s3vol.types import NONCE
from tests.support.canned import Canned, canned
from tests.support.s3 import s3_store

CAPABILITIES = replace(FILE_CAPABILITIES, min_part_bytes=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture
async def store(directory: Path) -> AsyncIterator[FileStore]:
    """Without extended attributes: records are files of the control area."""
    opened = await FileStore.open(directory, capabilities=CAPABILITIES, use_xattrs=False)
    yield opened
    await opened.aclose()


# -- hands


async def test_files_that_rsync_adds_before_it_sets_the_directorys_time_back_are_listed(
    store: FileStore, directory: Path
) -> None:
    folder = directory / "d"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number:06}").touch()
    os.utime(folder, (1_000_000_000, 1_000_000_000))
    assert (await store.list("d/", start_after="d/000998")).objects[-1].key == "d/000999"
    (folder / "new").write_bytes(b"precious")
    os.utime(folder, (1_000_000_000, 1_000_000_000))  # as `rsync -a` and `tar x` do when they are done
    assert [it.key for it in (await store.list("d/", start_after="d/000999")).objects] == ["d/new"]


@pytest.mark.parametrize("change", ["put", "delete"])
async def test_a_hard_link_made_by_hand_keeps_its_record_when_the_other_name_changes(
    store: FileStore, directory: Path, change: str
) -> None:
    etag = await store.put("k", b"secret", metadata={"mode": "33152", NONCE: "1"})
    os.link(directory / "k", directory / "snapshot")
    if change == "put":
        await store.put("k", b"newer", metadata={})
    else:
        await store.delete("k")
    info = await store.head("snapshot")
    assert (info.etag, info.metadata) == (etag, {"mode": "33152", NONCE: "1"})


# -- uploads


async def test_of_two_bodies_for_one_part_at_the_same_time_one_stays(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await store.create_upload("u", metadata={})
    both_are_named = threading.Barrier(2)
    listdir = os.listdir

    def both_first(path: int) -> list[str]:
        with suppress(threading.BrokenBarrierError):
            both_are_named.wait(timeout=0.5)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", both_first)
    parts: list[Part] = []

    async def send(body: bytes) -> None:
        parts.append(await store.upload_part("u", upload_id, 1, body))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, b"one")
        nursery.start_soon(send, b"two")
    monkeypatch.undo()
    await store.complete_upload("u", upload_id, [parts[-1]])


# -- power failures: names that were not synced are gone


class Journal:
    """Directories, by inode, of which names were changed and not synced since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dirty: dict[tuple[int, int], str] = {}
        mkdir, unlink, fsync = os.mkdir, os.unlink, os.fsync

        def noting_mkdir(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            mkdir(path, mode, dir_fd=dir_fd)
            self._note(path, dir_fd)

        def noting_unlink(path: str, *, dir_fd: int | None = None) -> None:
            unlink(path, dir_fd=dir_fd)
            self._note(path, dir_fd)

        def noting_fsync(fd: int) -> None:
            fsync(fd)
            if stat.S_ISDIR((found := os.fstat(fd)).st_mode):
                self.dirty.pop((found.st_dev, found.st_ino), None)

        monkeypatch.setattr(os, "mkdir", noting_mkdir)
        monkeypatch.setattr(os, "unlink", noting_unlink)
        monkeypatch.setattr(os, "fsync", noting_fsync)

    def _note(self, path: str, dir_fd: int | None) -> None:
        if not path.startswith("tmp/"):
            found = os.stat(os.path.dirname(path) or ".", dir_fd=dir_fd)
            self.dirty[found.st_dev, found.st_ino] = path


async def test_the_control_area_is_durable_once_the_store_is_open(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(monkeypatch)
    store = await FileStore.open(directory)
    assert journal.dirty == {}
    await store.aclose()


async def test_the_record_of_an_acknowledged_object_is_durable_with_its_folder(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(monkeypatch)
    await store.put("k", b"x", metadata={"mode": "33152"})
    assert journal.dirty == {}


async def test_a_marker_whose_removal_was_acknowledged_stays_removed(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("d/", b"", metadata={"mode": "16832"})
    await store.put("d/k", b"x", metadata={})
    journal = Journal(monkeypatch)
    await store.delete("d/")
    assert journal.dirty == {}


async def test_a_marker_whose_large_record_was_replaced_does_not_get_it_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await FileStore.open(directory)
    await store.put("d/", b"", metadata={"v": '"' * 2000})
    journal = Journal(monkeypatch)
    await store.put("d/", b"", metadata={"mode": "16832"})
    assert journal.dirty == {}
    await store.aclose()


# -- what others wrote


@pytest.mark.parametrize("text", ["--5", "--5.1", "-", "5-"])
def test_a_foreign_time_that_is_no_number_is_passed_over(text: str) -> None:
    assert layout.parse_ns(text) is None


@pytest.mark.parametrize("text", ["[" * 2000, '{"\\ud800":"x"}', '{"a":"\\ud800"}'])
def test_a_foreign_xattr_header_that_is_odd_is_passed_over(text: str) -> None:
    assert layout.decode_xattr({"xattr": text}) == {}
    assert layout.unreadable({"xattr": text}) == ["xattr"]


async def test_metadata_that_is_not_utf8_is_rejected(store: FileStore) -> None:
    with pytest.raises(Rejected, match="UTF-8"):
        await store.put("k", b"x", metadata={"v": "\udcff"})


# -- servers that ignore what is asked


@pytest.mark.parametrize(
    ("key", "behind_proxy"),
    [("k", False), ("k/", False), ("k", True), ("k/", True)],
    ids=["light", "light/", "heavy", "heavy/"],
)
async def test_a_server_that_ignores_if_match_mixes_no_versions(key: str, behind_proxy: bool) -> None:
    headers = {"ETag": '"new"', "Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT", "Content-Range": "bytes 0-3/4"}
    with canned(Canned(206, b"body", headers)) as server:
        async with s3_store(server.endpoint, "bucket", behind_proxy=behind_proxy) as store:
            assert bytes(await store.get(key, 0, 4, if_match="new")) == b"body"
            with pytest.raises(PreconditionFailed):
                await store.get(key, 0, 4, if_match="old")


def test_keys_of_a_server_that_does_not_know_encoding_type_are_taken_as_they_are() -> None:
    body = (
        b"<ListBucketResult><Contents><Key>a+b%41</Key><LastModified>2026-11-21T08:06:28.977Z</LastModified>"
        b"<ETag>49f6</ETag><Size>7</Size></Contents><CommonPrefixes><Prefix>c+d/</Prefix></CommonPrefixes>"
        b"</ListBucketResult>"
    )
    page = s3_list.parse(body, "", limit=1000, wanted_metadata=False)
    assert [info.key for info in page.objects] == ["a+b%41"]
    assert page.prefixes == ("c+d/",)
