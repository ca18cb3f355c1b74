"""SIGKILL at every named crash point, under a workload that passes all of them; then mount again and look.

The workload keeps a ledger of what the kernel acknowledged. At the point the process dies, the operation in progress
gets an error and may have happened or not; everything before it must be there, nothing may be half there, and after a
flush the bucket holds what the mount shows.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from s3vol.failpoints import Point
from s3vol.fs.fsck import Finding
from s3vol.fs.mending import look
from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Failed
from tests.kernel.rig import Bucket
from tests.support.minio import Minio, paused
from tests.support.s3 import s3_store

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

SMALL_CACHE = ("--cache-size", "96M", "--dirty-max", "80M")  # so that eviction happens
NEVER_PASSED = {
    Point.CONFLICT_AFTER_COPY,  # needs another writer: tests/cache
    Point.REPLAY_AFTER_LOAD,  # a second crash, during the replay of a first one: its own test below
}
BIG = os.urandom(1 << 20) * 70  # beyond 64 MiB: sent while it is being written


class Ledger:
    """Names and contents that were acknowledged, and those that the last operation may have left."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.sure: dict[str, bytes] = {}
        self.perhaps: dict[str, bytes] = {}

    def _do(self, operation: Callable[[], None], after: dict[str, bytes]) -> None:
        self.perhaps = after
        operation()
        self.sure = after

    def write(self, name: str, body: bytes) -> None:
        """Write the whole file and close it."""
        self._do(lambda: _store(self._root / name, body), {**self.sure, name: body})

    def rename(self, old: str, new: str) -> None:
        """Rename a file or everything below a folder."""
        after = {
            new + name[len(old) :] if name == old or name.startswith(f"{old}/") else name: body
            for name, body in self.sure.items()
        }
        self._do(lambda: os.rename(self._root / old, self._root / new), after)

    def link(self, old: str, new: str) -> None:
        """Another name for a file."""
        self._do(lambda: os.link(self._root / old, self._root / new), {**self.sure, new: self.sure[old]})

    def unlink(self, name: str) -> None:
        """Remove a file."""
        after = {other: body for other, body in self.sure.items() if other != name}
        self._do(lambda: os.unlink(self._root / name), after)


def _store(path: Path, body: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for at in range(0, len(body), 1 << 20):
            os.write(fd, body[at : at + (1 << 20)])
        os.fsync(fd)
    finally:
        os.close(fd)


def _work(root: Path, ledger: Ledger) -> None:
    os.mkdir(root / "d")
    for i in range(3):
        ledger.write(f"d/f{i}", b"%d" % i * 5000)
    ledger.write("big", BIG)
    ledger.rename("d/f0", "d/g0")
    ledger.rename("d", "e")
    ledger.unlink("e/f1")
    ledger.write("h", b"several names" * 500)
    ledger.link("h", "h2")
    ledger.link("h", "e/h3")
    ledger.rename("h2", "h4")
    for name in ("h", "h4", "e/h3"):
        ledger.unlink(name)
    ledger.write("big2", BIG[::-1])
    (root / "big").read_bytes()
    ledger.write("last", b"last")


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("point", [point for point in Point if point not in NEVER_PASSED], ids=str)
def test_a_kill_at_this_point_loses_nothing_that_was_acknowledged(
    bucket: Bucket, mount: MountFactory, minio: Minio, point: Point
) -> None:
    first = mount("a", "--fsync", "local", "--close", "local", *SMALL_CACHE, S3VOL_FAILPOINT=point.value)
    ledger = Ledger(first.path)
    with contextlib.suppress(OSError, Failed):  # ENOTCONN, ECONNABORTED: the process has died under the workload
        _work(first.path, ledger)
        first.flush()
    assert first.wait() == -9, f"the workload does not pass {point.value}"
    first.kill()
    second = mount("a", *SMALL_CACHE)
    shown = _tree(second.path)
    for name, body in ledger.sure.items():
        if ledger.perhaps.get(name) == body:
            assert shown.get(name) == body, name
    for name, body in shown.items():
        assert body in (ledger.sure.get(name), ledger.perhaps.get(name)) or _unfinished(name, ledger), name
    second.flush()
    assert second.status()["dirty_files"] == 0
    links = {key: bucket.link(key) for key in bucket.all_keys() if not key.endswith("/")}
    assert {key: bucket.read(body or key) for key, body in links.items()} == shown
    assert set(bucket.bodies()) == {body for body in links.values() if body}
    assert [upload for name in ("big", "big2") for upload in bucket.uploads(name)] == []
    assert _left_in(bucket, minio) == []


def _left_in(bucket: Bucket, minio: Minio) -> list[Finding]:
    """What `s3vol fsck` would say a month later, when nothing is in progress any more."""

    async def check() -> list[Finding]:
        async with s3_store(minio.endpoint, bucket.name) as store:
            return await look(store, lambda: time.time_ns() + 30 * 86_400 * 10**9)

    return trio.run(check)


def _unfinished(name: str, ledger: Ledger) -> bool:
    """A file that was being written when the process died may have any beginning of its content, or none."""
    return name in ledger.perhaps and name not in ledger.sure


def test_a_second_crash_during_the_replay_loses_nothing_either(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    first = mount("a", "--write-back")
    fds = {f"f{i}": os.open(first.path / f"f{i}", os.O_WRONLY | os.O_CREAT) for i in range(20)}
    with paused(minio):  # so that all of it is pending
        for name, fd in fds.items():
            os.write(fd, name.encode() * 1000)
            os.close(fd)
        first.kill()
    with pytest.raises(Failed):
        mount("a", S3VOL_FAILPOINT=Point.REPLAY_AFTER_LOAD.value)
    third = mount("a")
    third.flush()
    assert _left_in(bucket, minio) == []
    assert {name: bucket.read(name) for name in fds} == {name: name.encode() * 1000 for name in fds}
