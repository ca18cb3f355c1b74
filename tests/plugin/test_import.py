"""Importing a directory: attributes, running again, and whose content wins; on a directory and a real MinIO."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol import layout
from s3vol.errors import NoSpace, Unavailable
from s3vol.store.base import Store
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MemoryStore
from s3vol.types import MIB, NONCE, ObjectInfo
from s3vol_plugin import import_source, importing
from s3vol_plugin.import_check import Report
from s3vol_plugin.import_plan import Action, decide, scan
from s3vol_plugin.importing import Import, part_size
from tests.plugin.backends import KINDS, backend

LARGE = 2 * importing.SINGLE_MAX_BYTES + 12345


@dataclass
class Case:
    """A source directory, and the store that it goes into."""

    root: Path
    store: Store

    async def run(self, **options: Any) -> Report:
        return await Import(self.store, str(self.root), **options).run()

    async def body(self, key: str) -> bytes:
        info = await self.store.head(key)
        return bytes(await self.store.get(key, 0, info.size))

    async def posix(self, key: str) -> layout.Posix:
        return layout.decode_attr(await self.store.head(key), layout.Owner(1, 1, 0), is_dir=key.endswith("/"))


@pytest.fixture(params=KINDS)
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    """An empty source, and an empty volume."""
    (tmp_path / "source").mkdir()
    async with backend(request.param, tmp_path, request) as (_, open_one):
        yield Case(tmp_path / "source", await open_one("web/"))


def fill(root: Path) -> None:
    """A tree with everything that a volume of a container may have."""
    (root / "a/b").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a/b/file").write_bytes(b"hello")
    (root / "a/b/nothing").write_bytes(b"")
    (root / "ünï cödé %41+&").write_bytes(b"x")
    (root / "large").write_bytes(os.urandom(LARGE))
    (root / "link").symlink_to("a/b/file")
    (root / "dangling").symlink_to("/no/such/thing")
    os.mkfifo(root / "fifo", 0o600)
    os.link(root / "a/b/file", root / "hard")
    (root / "a/b/file").chmod(0o4750)
    (root / "a").chmod(0o1770)
    root.chmod(0o750)
    if os.geteuid() == 0:
        os.chown(root / "a/b/file", 33, 34)
        os.chown(root / "link", 35, 36, follow_symlinks=False)
    os.utime(root / "a/b/file", ns=(1, 1_234_567_890_123_456_789))
    os.setxattr(root / "a/b/file", "user.colour", b"\x00blue")


async def test_everything_arrives_with_its_attributes_and_is_verified(case: Case) -> None:
    fill(case.root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(case.root / "socket"))
        report = await case.run()
    assert (report.problems, report.kept, report.same) == ([], [], 0)
    assert report.complete
    assert report.verified == len(report.scanned.items) == len(report.copied) == 12
    assert (report.scanned.sockets, report.scanned.linked) == (1, 2)
    assert await case.body("a/b/file") == await case.body("hard") == b"hello"
    assert await case.body("large") == (case.root / "large").read_bytes()
    assert await case.body("dangling") == b"/no/such/thing"
    for path, key in (
        ("a/b/file", "a/b/file"),
        ("a", "a/"),
        ("empty", "empty/"),
        ("link", "link"),
        ("fifo", "fifo"),
        ("large", "large"),
        ("ünï cödé %41+&", "ünï cödé %41+&"),
        (".", layout.ROOT_ATTRIBUTES),
    ):
        wanted, found = os.lstat(case.root / path), await case.posix(key)
        kind = stat.S_IFREG | stat.S_IMODE(wanted.st_mode) if key == layout.ROOT_ATTRIBUTES else wanted.st_mode
        assert (found.mode, found.uid, found.gid, found.mtime_ns) == (
            kind,
            wanted.st_uid,
            wanted.st_gid,
            wanted.st_mtime_ns,
        ), path
    assert layout.decode_xattr((await case.store.head("a/b/file")).metadata or {}) == {b"user.colour": b"\x00blue"}


async def test_a_second_run_copies_nothing_and_reads_all_back_when_asked(case: Case) -> None:
    fill(case.root)
    await case.run()
    again = await case.run(reread=True)
    assert (again.copied, again.replaced, again.bytes_copied) == ([], [], 0)
    assert again.same == again.verified == len(again.scanned.items)
    assert again.complete


async def test_a_second_run_copies_what_is_missing_or_has_changed_and_nothing_else(case: Case) -> None:
    fill(case.root)
    await case.run()
    await case.store.delete("hard")
    (case.root / "new").write_bytes(b"new")
    (case.root / "a/b/nothing").write_bytes(b"grown")
    (case.root / "empty").chmod(0o700)
    os.utime(case.root / "fifo", ns=(5, 5))  # older than before: what an import wrote follows the source
    again = await case.run()
    assert sorted(again.copied) == ["hard", "new"]
    assert sorted(again.replaced) == ["a/b/nothing", "empty/", "fifo"]
    assert await case.body("a/b/nothing") == b"grown"
    assert again.complete


async def test_what_somebody_else_wrote_later_is_kept_and_said_and_what_he_wrote_before_is_replaced(case: Case) -> None:
    (case.root / "newer").write_bytes(b"of the source")
    (case.root / "older").write_bytes(b"of the source")
    now_ns = time.time_ns()
    for key, at_ns in (("newer", now_ns + 10**12), ("older", now_ns - 10**12)):
        posix = layout.Posix(stat.S_IFREG | 0o644, 0, 0, at_ns, at_ns, at_ns)
        meta = {**layout.encode_attr(posix, {}), NONCE: "n1.abc"}
        await case.store.put(key, b"of a container", metadata=meta)
    report = await case.run()
    assert (report.kept, report.replaced, report.problems) == (["newer"], ["older"], [])
    assert not report.complete
    assert await case.body("newer") == b"of a container"
    assert await case.body("older") == b"of the source"
    forced = await case.run(overwrite=True)
    assert (forced.replaced, forced.complete) == (["newer"], True)
    assert await case.body("newer") == b"of the source"


async def test_an_object_without_attributes_is_as_old_as_the_store_says(case: Case) -> None:
    (case.root / "f").write_bytes(b"of the source")
    os.utime(case.root / "f", (1, 1))
    await trio.sleep(1.1)  # Last-Modified has whole seconds, and ctime cannot be set
    await case.store.put("f", b"by hand", metadata={})
    assert (await case.run()).kept == ["f"]


async def test_a_file_where_the_volume_has_a_directory_is_a_problem_of_its_own(case: Case) -> None:
    (case.root / "a").mkdir()
    (case.root / "a/x").write_bytes(b"1")
    (case.root / "d").write_bytes(b"2")
    (case.root / "ok").write_bytes(b"3")
    await case.store.put("d/inner", b"", metadata={})
    await case.store.put("a", b"", metadata={})
    report = await case.run()
    assert any(line.startswith("d: the volume has d/ there") for line in report.problems)
    assert any(line.startswith("a/: the volume has a there") for line in report.problems)
    assert await case.body("ok") == b"3"
    assert await case.body("a") == b""
    assert not report.complete


async def test_what_no_object_can_be_is_named_and_the_rest_is_copied(case: Case) -> None:
    (case.root / "ok").write_bytes(b"")
    (case.root / os.fsdecode(b"not-\xff-utf8")).write_bytes(b"")
    (case.root / "x__XLDIR__").write_bytes(b"")
    (case.root / ".s3vol").mkdir()
    (case.root / "heavy").write_bytes(b"")
    os.setxattr(case.root / "heavy", "user.big", b"x" * 3000)
    report = await case.run()
    assert sorted(report.copied) == [layout.ROOT_ATTRIBUTES, "ok"]
    said = "\n".join(report.problems)
    assert len(report.problems) == 4
    for words in ("is not UTF-8", "__XLDIR__", "s3vol's own", "attributes take"):
        assert words in said


async def test_files_that_are_written_while_they_are_read_are_read_again_or_given_up(case: Case) -> None:
    (case.root / "once").write_bytes(b"first")
    (case.root / "ever").write_bytes(b"first")
    real = import_source.read

    def read(file: int, start: int, wanted: int) -> bytes:
        body = real(file, start, wanted)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        if name == "ever" or body == b"first":
            with open(case.root / name, "wb" if name == "once" else "ab") as writer:
                writer.write(b"changed")
        return body

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("s3vol_plugin.importing.read", read)
        found = await case.run()
    assert await case.body("once") == b"changed"
    assert ["ever: changes while it is being read" in line for line in found.problems] == [True]
    with pytest.raises(Exception, match="ever"):
        await case.store.head("ever")


# The store fails.


async def test_an_import_that_is_interrupted_goes_on_where_it_was(case: Case) -> None:
    for number in range(60):
        (case.root / f"f{number:02}").write_bytes(b"%d" % number)
    faults = FaultControls()
    broken = FaultStore(case.store, faults)

    def after_twenty(report: Report) -> None:
        if report.entries_done >= 20:
            faults.down = True

    with pytest.raises(Unavailable):
        await Import(broken, str(case.root), on_progress=after_twenty).run()
    there = len((await case.store.list("", delimiter=False)).objects)
    assert 20 <= there < 61
    report = await case.run()
    assert (report.same, len(report.copied)) == (there, 61 - there)
    assert report.complete


async def test_a_large_file_that_fails_half_way_leaves_nothing_behind(case: Case) -> None:
    (case.root / "large").write_bytes(os.urandom(LARGE))
    faults = FaultControls()
    faults.fail_next("complete_upload", NoSpace("full"))
    with pytest.raises(NoSpace):
        await Import(FaultStore(case.store, faults), str(case.root)).run()
    assert faults.calls["abort_upload"] == 1
    assert (await case.run()).complete
    assert await case.body("large") == (case.root / "large").read_bytes()


async def test_a_reply_that_was_lost_is_no_conflict(case: Case) -> None:
    (case.root / "small").write_bytes(b"small")
    faults = FaultControls()

    class Twice(FaultStore):
        async def put(self, *args: Any, **options: Any) -> str:
            await super().put(*args, **options)
            return await super().put(*args, **options)  # as a retry after a lost reply does

        async def complete_upload(self, *args: Any, **options: Any) -> str:
            await super().complete_upload(*args, **options)
            return await super().complete_upload(*args, **options)

    (case.root / "large").write_bytes(os.urandom(LARGE))
    report = await Import(Twice(case.store, faults), str(case.root)).run()
    assert (len(report.copied), report.complete) == (3, True)


async def test_what_a_container_writes_meanwhile_is_seen_and_not_overwritten(case: Case) -> None:
    (case.root / "f").write_bytes(b"of the source")
    faults = FaultControls()
    gate = faults.hold("put")
    reports: list[Report] = []

    async def run() -> None:
        reports.append(await Import(FaultStore(case.store, faults), str(case.root)).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await gate.entered.wait()
        at_ns = time.time_ns() + 10**12
        meta = layout.encode_attr(layout.Posix(stat.S_IFREG | 0o644, 0, 0, at_ns, at_ns, at_ns), {})
        for key in ("f", layout.ROOT_ATTRIBUTES):  # either may be the one at the gate
            await case.store.put(key, b"of a container" if key == "f" else b"", metadata=meta)
        gate.open()
    assert await case.body("f") == b"of a container"
    assert reports[0].kept == ["f"] or any("was changed in the volume" in line for line in reports[0].problems)
    assert not reports[0].complete


async def test_content_that_differs_is_found_by_reading_back(case: Case) -> None:
    (case.root / "f").write_bytes(b"right")
    await case.run()
    meta = (await case.store.head("f")).metadata or {}
    await case.store.put("f", b"wrong", metadata=meta)
    assert (await case.run()).complete  # size and time say that it is the same
    report = await case.run(reread=True)
    assert ["f: differs from the file" in line for line in report.problems] == [True]


# Decisions.


def test_parts_are_whole_mebibytes_and_never_too_many() -> None:
    for size in (1, 10 * MIB, 100 << 30, 5 << 40):
        part = part_size(size, 5 * MIB)
        assert part % MIB == 0
        assert part >= importing.SINGLE_MAX_BYTES
        assert -(-size // part) <= 9000


def test_an_object_that_is_being_renamed_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    item = next(item for item in scan(os.fsencode(tmp_path)).items if item.key == "f")
    tombstone = ObjectInfo("f", 1, "e", 0, {layout.TOMBSTONE: "x"})
    assert decide(item, tombstone, overwrite=True) is Action.BUSY
    stub = ObjectInfo("f", 0, "e", 0, {**item.metadata, layout.LINK: "x"})
    assert decide(item, stub, overwrite=False) is not Action.SAME


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(os.fsencode(tmp_path / "none"))


async def test_an_import_puts_nothing_below_a_name_that_is_a_file_in_the_volume(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"of the source")
    (tmp_path / "beside").write_bytes(b"x")
    store = MemoryStore()
    posix = layout.Posix(stat.S_IFREG | 0o644, 0, 0, 1, 1, 1)
    await store.put("a", b"of a container", metadata={**layout.encode_attr(posix, {}), NONCE: "n1.abc"})
    report = await Import(store, str(tmp_path)).run()
    assert (await store.list("a/", delimiter=False)).objects == ()  # it would hide the file
    assert sorted(line.partition(":")[0] for line in report.problems) == ["a/", "a/b/", "a/b/file"]
    assert "beside" in report.copied


def test_attributes_that_cannot_be_listed_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    listed = os.listxattr

    def fails(path: Any, *, follow_symlinks: bool = True) -> list[str]:
        if os.fsencode(path).endswith(b"file"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return listed(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "listxattr", fails)
    assert scan(os.fsencode(tmp_path)).problems == ["file: Input/output error"]


def test_the_attributes_of_a_source_that_is_a_symbolic_link_are_those_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.setxattr(tmp_path / "real", "user.colour", b"blue")
    (tmp_path / "link").symlink_to("real")
    (root,) = scan(os.fsencode(tmp_path / "link")).items
    assert layout.decode_xattr(root.metadata) == {b"user.colour": b"blue"}
