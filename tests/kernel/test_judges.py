"""Programs that verify their own work, each on a mount and, before, on the machine's own disk.

What fails on the disk is the machine's fault and says nothing about the mount. A judge has to do on the mount all that
it does on the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.judges.base import Judge, Verdict
from tests.judges.postgres import postgres
from tests.judges.programs import SLOW_STRESSORS, STRESSORS, fio, git, ping_pong, pyxattr, sqlite, stress_ng
from tests.kernel.harness import Mounted, Node
from tests.kernel.rig import Bucket
from tests.support.minio import Minio

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

FOR_ALL = ("-o", "allow_other,dev,suid")  # stress-ng and PostgreSQL change owners
LOCAL = ("--write-back", "--fsync", "local")
QUICK_STRESSORS = tuple(name for name in STRESSORS if name not in SLOW_STRESSORS)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may search, up to the root."""
    with tempfile.TemporaryDirectory(prefix="s3vol-judge-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def node(minio: Minio, place: Path) -> Iterator[Node]:
    """A machine whose mounts other users can reach."""
    with Node(place / "node", minio.environment) as made:
        yield made


def _on_disk(judge: Judge, place: Path) -> Verdict:
    (place / "disk").mkdir()
    found = judge(place / "disk")
    assert found.failed == set(), f"the machine's own disk fails; nothing is said about the mount: {found.said}"
    assert found.executed, found.said
    shutil.rmtree(place / "disk")
    return found


def _on_mount(judge: Judge, mounted: Mounted, disk: Verdict, known: frozenset[str] = frozenset()) -> None:
    folder = mounted.path / "judged"
    folder.mkdir(exist_ok=True)
    found = judge(folder)
    assert found.failed == known, found.said
    assert disk.executed - found.executed == set(), f"did not run on the mount: {found.said}"


@pytest.mark.parametrize(
    ("judge", "options"),
    [
        pytest.param(fio("sync", size_mib=4), (), id="fio-sync"),
        pytest.param(fio("mmap", size_mib=4), (), id="fio-mmap"),
        pytest.param(ping_pong, (), id="ping_pong"),
        pytest.param(sqlite("delete", rounds=10), LOCAL, id="sqlite-rollback"),
        pytest.param(sqlite("wal"), LOCAL, id="sqlite-wal"),
        pytest.param(fio("sync"), (), id="fio-sync-16M", marks=pytest.mark.soak),
        pytest.param(fio("mmap"), (), id="fio-mmap-16M", marks=pytest.mark.soak),
        pytest.param(sqlite("delete"), (), id="sqlite-rollback-remote", marks=pytest.mark.soak),
        pytest.param(sqlite("wal", rounds=100), (), id="sqlite-wal-remote", marks=pytest.mark.soak),
        pytest.param(git, (), id="git", marks=pytest.mark.soak),
        pytest.param(git, LOCAL, id="git-write-back", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(600)
def test_nothing_that_a_program_verifies_is_wrong(
    bucket: Bucket, node: Node, place: Path, judge: Judge, options: tuple[str, ...]
) -> None:
    disk = _on_disk(judge, place)
    _on_mount(judge, node.mount(f"s3://{bucket.name}", *FOR_ALL, *options), disk)


def test_stress_ng_finds_nothing(bucket: Bucket, node: Node, place: Path) -> None:
    judge = stress_ng(4, stressors=QUICK_STRESSORS)
    _on_mount(judge, node.mount(f"s3://{bucket.name}", *FOR_ALL, *LOCAL), _on_disk(judge, place))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [(), LOCAL], ids=["default", "write-back"])
def test_stress_ng_finds_nothing_in_a_minute(bucket: Bucket, node: Node, place: Path, options: tuple[str, ...]) -> None:
    judge = stress_ng(60)
    _on_mount(judge, node.mount(f"s3://{bucket.name}", *FOR_ALL, *options), _on_disk(judge, place))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_postgresql_loses_no_transaction_in_a_crash_nor_over_a_remount(bucket: Bucket, node: Node, place: Path) -> None:
    judge = postgres()
    disk = _on_disk(judge, place)
    here = node.mount(f"s3://{bucket.name}", *FOR_ALL, *LOCAL)
    _on_mount(judge, here, disk)
    here.umount()
    shutil.rmtree(node.folder / "cache")
    again = node.mount(f"s3://{bucket.name}", *FOR_ALL, *LOCAL)
    found = judge(again.path / "judged")
    assert found.failed == set(), found.said
    assert "query" in found.executed


def test_pyxattr_fails_only_where_values_are_larger_than_an_object_carries(
    bucket: Bucket, node: Node, place: Path
) -> None:
    disk = _on_disk(pyxattr, place)
    known = frozenset(name for name in disk.executed if name.startswith(("test_large_value[", "test_mixed_access[")))
    assert known  # both set a value of 2,048 bytes: ENOSPC, as setxattr(2) has it
    _on_mount(pyxattr, node.mount(f"s3://{bucket.name}", *FOR_ALL, *LOCAL), disk, known)
