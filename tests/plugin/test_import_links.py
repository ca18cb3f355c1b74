"""Importing files with several names: as hard links where the volume can be mounted, else as files of their own."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol import layout, mounts
from s3vol.errors import PosixError, S3volError
from s3vol.failpoints import Point
from s3vol.store.base import Store, matches
from s3vol.store.memory import MemoryBucket
from s3vol.types import NONCE
from s3vol_plugin import access, import_mount, importing
from s3vol_plugin.import_check import Report
from s3vol_plugin.import_mount import mounted
from s3vol_plugin.import_plan import NAMES_MAX, scan, together
from s3vol_plugin.importing import Import
from s3vol_plugin.process import mounting
from s3vol_plugin.volume import Volume
from tests.plugin.backends import NamedMemoryStore
from tests.plugin.rig import Rig, rig_in
from tests.support.minio import Minio

LARGE = 2 * importing.SINGLE_MAX_BYTES + 12345


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One file with three names, a link with two, and a file of its own."""
    root = tmp_path / "source"
    (root / "d").mkdir(parents=True)
    (root / "a").write_bytes(b"content")
    os.link(root / "a", root / "b")
    os.link(root / "a", root / "d/c")
    (root / "s").symlink_to("a")
    os.link(root / "s", root / "d/s", follow_symlinks=False)
    (root / "single").write_bytes(b"content")
    return root


# Without a kernel: a fake of the mount that writes what a mount would.


@dataclass
class FakeTree:
    """Links as link(2) through a mount leaves them in the bucket."""

    store: Store
    made: list[bytes] = field(default_factory=list)
    failing: dict[bytes, Exception] = field(default_factory=dict)

    async def link(self, first: bytes, name: bytes) -> None:
        if name in self.failing:
            raise self.failing[name]
        source = await self.store.head(first.decode())
        link = layout.link_of(source)
        if link is None:
            link = layout.Link(os.urandom(8).hex(), os.urandom(8).hex())
            body = bytes(await self.store.get(source.key, 0, source.size))
            meta = layout.with_origin(layout.without_nonce(source.metadata or {}), source.version)
            await self.store.put(link.key, body, metadata={**meta, NONCE: "n1.copy"})
            stub, headers = layout.stub(link)
            await self.store.put(source.key, stub, metadata=headers, condition=matches(source.etag))
        stub, headers = layout.stub(layout.Link(link.id, os.urandom(8).hex()))
        await self.store.put(name.decode(), stub, metadata=headers)
        self.made.append(name)

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[FakeTree]:
        yield self


@dataclass
class Case:
    """A source, a volume in memory, and the fake of its mount."""

    root: Path
    store: Store
    tree: FakeTree

    async def run(self, **options: Any) -> Report:
        return await Import(self.store, str(self.root), **{"linker": self.tree.mounted, **options}).run()

    async def link(self, key: str) -> str:
        """The id of the link that `key` is a name of; "" for a file of its own."""
        link = layout.link_of(await self.store.head(key))
        return link.id if link is not None else ""

    async def body(self, key: str) -> bytes:
        link_id = await self.link(key)
        info = await self.store.head(layout.body_key(link_id) if link_id else key)
        return bytes(await self.store.get(info.key, 0, info.size))


@pytest.fixture
def case(source: Path) -> Case:
    store = NamedMemoryStore(MemoryBucket(), "web/")
    return Case(source, store, FakeTree(store))


async def test_further_names_are_linked_and_all_are_verified(case: Case) -> None:
    report = await case.run()
    assert (sorted(report.linked), report.apart, report.no_links) == (["b", "d/c", "d/s"], 0, "")
    assert report.complete
    assert report.entries_done == report.verified == len(report.scanned.items) == 8
    assert await case.link("a") == await case.link("b") == await case.link("d/c") != ""
    assert await case.link("s") == await case.link("d/s") not in ("", await case.link("a"))
    assert await case.link("single") == ""
    assert await case.body("d/c") == b"content"


async def test_a_second_run_knows_the_links_and_mounts_nothing(case: Case) -> None:
    await case.run()
    for options in ({}, {"reread": True}, {"linker": None}):
        again = await case.run(**options)
        assert (again.copied, again.replaced, again.kept, again.linked, again.apart) == ([], [], [], [], 0)
        assert again.same == again.verified == 8
        assert again.complete
    assert len(case.tree.made) == 3


async def test_a_name_that_is_missing_is_linked_to_the_others_and_not_copied(case: Case) -> None:
    await case.run()
    for missing in ("a", "d/c"):
        await case.store.delete(missing)
        again = await case.run()
        assert (again.copied, again.linked, again.complete) == ([], [missing], True)
        assert await case.link("a") == await case.link("b") == await case.link("d/c") != ""


async def test_a_file_that_has_changed_is_replaced_behind_all_its_names(case: Case) -> None:
    await case.run()
    link_id = await case.link("a")
    (case.root / "a").write_bytes(b"changed")
    again = await case.run()
    assert (again.replaced, again.copied, again.linked, again.kept) == (["a"], [], [], [])
    assert (again.complete, again.verified) == (True, 8)
    assert await case.link("a") == await case.link("b") == link_id
    assert await case.body("b") == b"changed"
    (case.root / "b").chmod(0o600)
    assert (await case.run()).replaced == ["a"]
    body = await case.store.head(layout.body_key(link_id))
    assert layout.decode_attr(body, layout.Owner(1, 1, 0), is_dir=False).mode == stat.S_IFREG | 0o600


async def test_what_somebody_changed_behind_a_link_later_is_kept(case: Case) -> None:
    await case.run()
    key = layout.body_key(await case.link("a"))
    later_ns = os.stat(case.root / "a").st_ctime_ns + 10**12
    meta = layout.encode_attr(layout.Posix(stat.S_IFREG | 0o644, 0, 0, later_ns, later_ns, later_ns), {})
    await case.store.put(key, b"of a container", metadata={**meta, NONCE: "n1.abc"})
    again = await case.run()
    assert sorted(again.kept) == ["a", "b", "d/c"]
    assert await case.body("a") == b"of a container"
    assert (await case.run(overwrite=True)).complete
    assert await case.body("b") == b"content"


async def test_names_that_have_become_two_files_in_the_directory_become_two_in_the_volume(case: Case) -> None:
    await case.run()
    await trio.sleep(1.1)  # a stub is as old as the store says, in whole seconds
    (case.root / "new").write_bytes(b"another")
    os.rename(case.root / "new", case.root / "a")
    await case.run()
    assert (await case.run()).complete
    assert await case.body("a") == b"another"
    assert await case.body("b") == await case.body("d/c") == b"content"


async def test_names_that_the_volume_has_as_files_of_their_own_stay_so(case: Case) -> None:
    first = await case.run(linker=None)
    assert (first.apart, first.complete, first.linked) == (5, True, [])
    await case.store.delete("d/c")
    again = await case.run()
    assert (again.linked, again.apart, again.complete) == (["d/c"], 3, True)
    assert await case.link("a") == await case.link("d/c") != ""
    assert await case.link("b") == ""


async def test_without_a_mount_each_name_becomes_a_file_and_why_is_said(case: Case) -> None:
    @asynccontextmanager
    async def refused() -> AsyncIterator[FakeTree]:
        raise S3volError("no device")
        yield case.tree

    report = await case.run(linker=refused)
    assert (report.no_links, report.apart, report.linked) == ("no device", 5, [])
    assert (report.complete, report.verified, report.entries_done) == (True, 8, 8)
    assert await case.body("d/c") == b"content"


async def test_a_name_that_somebody_makes_meanwhile_is_a_file_of_its_own_and_others_errors_are_named(
    case: Case,
) -> None:
    case.tree.failing = {b"b": PosixError(errno.EEXIST), b"d/c": PosixError(errno.ENOENT)}
    report = await case.run()
    assert (report.copied.count("b"), report.linked) == (1, ["d/s"])
    assert ["d/c: cannot be linked to a" in line for line in report.problems] == [True]


async def test_an_interrupted_linking_goes_on(case: Case) -> None:
    case.tree.failing = {b"d/c": S3volError("the mount is gone")}
    with pytest.raises(S3volError, match="the mount is gone"):
        await case.run()
    case.tree.failing = {}
    report = await case.run()
    assert "d/c" in report.linked
    assert (report.copied, report.kept, report.complete) == ([], [], True)
    assert await case.link("a") == await case.link("b") == await case.link("d/c") != ""


async def test_content_that_changes_while_names_are_linked_is_found(case: Case) -> None:
    class Changing(FakeTree):
        async def link(self, first: bytes, name: bytes) -> None:
            await super().link(first, name)
            if first == b"a":
                link = layout.link_of(await self.store.head("a"))
                assert link is not None
                await self.store.put(link.key, b"changed", metadata={NONCE: "n1.abc"})

    report = await case.run(linker=Changing(case.store).mounted)
    assert ["a: differs from the file" in line for line in report.problems] == [True]


def test_a_file_with_more_names_than_a_link_may_have_becomes_several(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    item = next(item for item in scan(os.fsencode(tmp_path)).items if item.key == "f")
    values = list(item.stat)
    values[stat.ST_NLINK] = NAMES_MAX + 1
    many = replace(item, stat=os.stat_result(values))
    names = [replace(many, key=f"f{number}") for number in range(NAMES_MAX + 1)]
    assert [len(one) for one in together([item, *names], {})] == [1, NAMES_MAX, 1]


# Through the kernel.


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path) as made:
        yield made
        imports = tmp_path / "state/imports"
        for mount in mounts.mount_table():
            if Path(mount.path).parent == imports:
                for process in mounting(Path(mount.path)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                mounts.unmount(mount.path, lazy=True)


async def imported(rig: Rig, volume: Volume, root: Path, **options: Any) -> Report:
    """One run of an import, as the command does it."""
    async with access.open_volume(volume, rig.settings) as store:
        linker = partial(mounted, volume, rig.settings, rig.environment)
        return await Import(store, str(root), linker=linker, **options).run()


def nothing_left(rig: Rig) -> bool:
    """No mount, no mount directory, no cache of an import; and nobody else may go where they were."""
    places = (rig.settings.state_directory / "imports", rig.settings.cache_directory / "imports")
    found = [name for place in places for name in os.listdir(place)]
    return not found and stat.S_IMODE(places[0].stat().st_mode) == 0o700


@pytest.mark.kernel
async def test_a_mount_shows_one_file_behind_the_names_and_nothing_is_left_of_the_import(
    rig: Rig, source: Path
) -> None:
    (source / "large").write_bytes(os.urandom(LARGE))
    os.link(source / "large", source / "d/large")
    volume = rig.volume(mode="readonly")
    report = await imported(rig, volume, source)
    assert (len(report.linked), report.apart, report.problems) == (4, 0, [])
    assert (report.no_links, report.verified) == ("", 10)
    assert nothing_left(rig)
    await rig.start(volume)
    point = rig.point(volume)
    a, b, c = (os.stat(point / name) for name in ("a", "b", "d/c"))
    assert (a.st_ino, b.st_ino, a.st_nlink) == (c.st_ino, c.st_ino, 3)
    assert (a.st_mode, a.st_mtime_ns) == ((source / "a").stat().st_mode, (source / "a").stat().st_mtime_ns)
    assert (point / "d/large").read_bytes() == (source / "large").read_bytes()
    assert os.readlink(point / "d/s") == "a"
    again = await imported(rig, volume, source, reread=True)
    assert (again.same, again.verified, again.complete) == (10, 10, True)


@pytest.mark.kernel
async def test_an_import_that_was_killed_while_it_linked_is_finished_by_the_next_one(rig: Rig, source: Path) -> None:
    volume = rig.volume()
    async with access.open_volume(volume, rig.settings) as store:
        await Import(store, str(source)).run()
        for name in ("b", "d/c", "d/s"):
            await store.delete(name)
    with pytest.MonkeyPatch.context() as patched:

        async def killed(*_: object) -> None:
            """A process that is killed does not come to this."""

        patched.setattr(import_mount, "_end", killed)
        async with mounted(volume, rig.settings, rig.environment) as tree:
            await tree.link(b"a", b"b")
    point = rig.settings.state_directory / "imports" / volume.uuid
    assert mounts.find_mount(str(point)) is not None
    for process in mounting(point):
        os.kill(process.pid, signal.SIGKILL)
        await process.ended()
    report = await imported(rig, volume, source)
    assert (sorted(report.linked), report.copied, report.kept, report.problems) == (["d/c", "d/s"], [], [], [])
    assert nothing_left(rig)


@pytest.mark.kernel
@pytest.mark.parametrize("step", [name for name in Point if name.value.startswith("link-after")])
async def test_a_mount_that_dies_at_any_step_of_a_link_ends_the_import_and_the_next_one_finishes(
    rig: Rig, source: Path, step: Point
) -> None:
    volume, environment = rig.volume(), rig.environment
    rig.environment = {**environment, "S3VOL_FAILPOINT": step.value}
    with pytest.raises(S3volError, match="cannot be linked"):
        await imported(rig, volume, source)
    assert os.listdir(rig.settings.state_directory / "imports") == []
    rig.environment = environment
    report = await imported(rig, volume, source)
    assert (report.copied, report.replaced, report.kept, report.problems) == ([], [], [], [])
    assert (report.verified, report.apart) == (8, 0)
    assert nothing_left(rig)
    await rig.start(volume)
    assert {os.stat(rig.point(volume) / name).st_nlink for name in ("a", "b", "d/c")} == {3}
    assert os.stat(rig.point(volume) / "d/s", follow_symlinks=False).st_nlink == 2


@pytest.mark.kernel
@pytest.mark.minio
async def test_a_large_file_in_a_real_bucket_is_linked_and_recognised_after_the_store_has_copied_it(
    rig: Rig, source: Path, minio: Minio, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in minio.environment.items():
        monkeypatch.setenv(name, text)
    rig.environment |= minio.environment
    (source / "large").write_bytes(os.urandom(LARGE))
    os.link(source / "large", source / "d/large")
    volume = rig.volume(source=f"s3://{bucket}/web")
    report = await imported(rig, volume, source)
    assert (len(report.linked), report.problems, report.verified) == (4, [], 10)
    for options in ({}, {"reread": True}):
        again = await imported(rig, volume, source, **options)
        assert (again.same, again.verified, again.complete) == (10, 10, True)
    (source / "large").write_bytes(os.urandom(LARGE + 1))
    again = await imported(rig, volume, source)
    assert (len(again.replaced), again.copied, again.complete) == (1, [], True)  # whichever of both names came first
    assert nothing_left(rig)
    await rig.start(volume)
    assert (rig.point(volume) / "large").read_bytes() == (source / "large").read_bytes()


@pytest.mark.kernel
async def test_two_imports_at_once_make_the_links_of_one(rig: Rig, source: Path) -> None:
    volume, reports = rig.volume(), list[Report]()

    async def run() -> None:
        reports.append(await imported(rig, volume, source))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(run)
    assert [(report.problems, report.kept, report.verified, report.apart) for report in reports] == [([], [], 8, 0)] * 2
    assert nothing_left(rig)
    again = await imported(rig, volume, source)
    assert (again.same, again.complete, again.apart) == (8, True, 0)


@pytest.mark.kernel
async def test_a_symbolic_link_in_the_place_of_a_directory_is_not_followed(rig: Rig, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"of this machine")
    volume = rig.volume()
    async with mounted(volume, rig.settings, rig.environment) as tree:
        (rig.settings.state_directory / "imports" / volume.uuid / "d").symlink_to(outside)
        with pytest.raises(PosixError) as caught:
            await tree.link(b"d/f", b"d/g")
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert os.listdir(outside) == ["f"]
    assert nothing_left(rig)


async def test_who_is_not_root_and_a_machine_without_the_device_are_told_why(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_mount, "_DEVICE", "/dev/no-such-device")
    with pytest.raises(S3volError, match="root" if os.geteuid() else "there is no /dev/no-such-device"):
        async with mounted(rig.volume(), rig.settings, rig.environment):
            pass
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(S3volError, match="only root"):
        async with mounted(rig.volume(), rig.settings, rig.environment):
            pass
