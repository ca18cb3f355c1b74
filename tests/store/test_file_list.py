"""The file store's listings at size: what is kept between pages, and that it is never stale."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3vol.store.file import FileStore

LONG_AGO_S = 1_000_000_000


def fill(folder: Path, count: int) -> list[str]:
    """Files made by hand, in a directory whose last change is long ago."""
    folder.mkdir()
    names = [f"{number:06}" for number in range(count)]
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    settle(folder)
    return names


def settle(folder: Path) -> None:
    os.utime(folder, (LONG_AGO_S, LONG_AGO_S))


async def keys(store: FileStore, prefix: str) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list(prefix, cursor=cursor)
        found += [info.key.removeprefix(prefix) for info in page.objects]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_a_large_directory_is_read_once_for_all_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fill(tmp_path / "d", 5000)
    scans: list[int] = []
    scandir = os.scandir

    def counting(fd: int) -> object:
        scans.append(fd)
        return scandir(fd)

    store = await FileStore.open(tmp_path)
    monkeypatch.setattr(os, "scandir", counting)
    assert await keys(store, "d/") == names
    assert len(scans) == 1
    await store.aclose()


async def test_a_change_after_the_directory_was_kept_is_seen(tmp_path: Path) -> None:
    names = fill(tmp_path / "d", 2000)
    store = await FileStore.open(tmp_path)
    assert await keys(store, "d/") == names
    await store.put("d/new", b"", metadata={})
    assert await keys(store, "d/") == [*names, "new"]
    await store.delete("d/000000")
    assert await keys(store, "d/") == [*names[1:], "new"]
    (tmp_path / "d/by hand").touch()
    assert "by hand" in await keys(store, "d/")
    await store.aclose()


async def test_a_directory_that_changed_just_now_is_not_kept(tmp_path: Path) -> None:
    fill(tmp_path / "d", 2000)
    (tmp_path / "d/one more").touch()  # mtime is now
    store = await FileStore.open(tmp_path)
    first = await store.list("d/")
    stamp = (tmp_path / "d").stat().st_mtime_ns
    (tmp_path / "d/zzz").touch()
    os.utime(tmp_path / "d", ns=(stamp, stamp))  # as if within one tick of the clock
    second = await store.list("d/", cursor=first.next_cursor)
    third = await store.list("d/", cursor=second.next_cursor)
    assert [info.key for info in third.objects] == ["d/one more", "d/zzz"]
    await store.aclose()


async def test_deep_trees_are_paged_in_order_without_entering_what_is_before(tmp_path: Path) -> None:
    store = await FileStore.open(tmp_path)
    expected = []
    for a in "abc":
        for b in ("x", "x-y", "x.y", "x0"):
            for c in range(3):
                (tmp_path / a / b).mkdir(parents=True, exist_ok=True)
                (tmp_path / a / b / str(c)).touch()
                expected.append(f"{a}/{b}/{c}")
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list("", delimiter=False, limit=5, cursor=cursor)
        found += [info.key for info in page.objects]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == sorted(expected)
    await store.aclose()
