"""SIGKILL at every named crash point, under a workload that passes all of them; then mount again and look.

The workload keeps a ledger of what the kernel acknowledged. At the point the process dies, the operation in progress
gets an error and may have happened or not; everything before it must be there, nothing may be half there, and after a
flush the bucket holds what the mount shows.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from s3vol import mounts
from s3vol.failpoints import Point
from s3vol.fs.fsck import Finding
from s3vol.fs.mending import look
from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Failed, Mounted
from tests.kernel.kills import KILLS
from tests.kernel.rig import Bucket
from tests.support.minio import Minio, wait_for
from tests.support.s3 import s3_store

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

SMALL_CACHE = ("--cache-size", "96M", "--dirty-max", "80M")  # so that eviction happens
NOT_BY_THE_WORKLOAD = {  # each has a test of its own below
    Point.CONFLICT_AFTER_COPY,
    Point.REPLAY_AFTER_LOAD,
}
NTH = {Point.JOURNAL_BEFORE_COMMIT: 12}  # the first ones are of the start
BIG = os.urandom(1 << 20) * 70  # beyond 64 MiB: sent while it is being written


class Ledger:
    """Names and contents that were acknowledged, and those that the last operation may have left."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.sure: dict[str, bytes] = {}
        self.perhaps: dict[str, bytes] = {}
        self.modes: dict[str, set[int]] = {}  # those that a name may have

    def _do(self, operation: Callable[[], None], after: dict[str, bytes]) -> None:
        self.perhaps = after
        operation()
        self.sure = after

    def write(self, name: str, body: bytes) -> None:
        """Write the whole file and close it."""
        self._do(lambda: _store(self._root / name, body), {**self.sure, name: body})

    def chmod(self, name: str, mode: int) -> None:
        """Change the mode of a file or folder."""
        before = stat.S_IMODE((self._root / name).stat().st_mode)
        self.modes[name] = {before, mode}
        os.chmod(self._root / name, mode)
        self.modes[name] = {mode}

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
    for i, size in enumerate((5000, 100_000, 5000)):  # the second is more than the journal carries: it is flushed
        ledger.write(f"d/f{i}", b"%d" % i * size)
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


def _work_on_what_is_published(root: Path, ledger: Ledger) -> None:
    # The folder first: a kill there must not meet the upload of `big` between its beginning and the note of its id.
    for name, mode in (("e", 0o700), ("last", 0o600), ("big", 0o640)):
        ledger.chmod(name, mode)
    os.setxattr(root / "last", "user.x", b"y")


def _killed(mounted: Mounted, point: Point) -> None:
    """The process has died at this point; take its dead mount away."""
    assert mounted.wait() == -9, f"{point.value} was not passed"
    KILLS[point] += 1
    mounted.kill()


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("point", [point for point in Point if point not in NOT_BY_THE_WORKLOAD], ids=str)
def test_a_kill_at_this_point_loses_nothing_that_was_acknowledged(
    bucket: Bucket, mount: MountFactory, minio: Minio, point: Point
) -> None:
    armed = f"{point.value}:{NTH.get(point, 1)}"
    local = ("--fsync", "local", "--close", "local", "--publish-delay", "0")  # what is renamed is in the bucket by then
    first = mount("a", *local, *SMALL_CACHE, S3VOL_FAILPOINT=armed)
    ledger = Ledger(first.path)
    with contextlib.suppress(OSError, Failed):  # ENOTCONN, ECONNABORTED: the process has died under the workload
        _work(first.path, ledger)
        first.flush()
        _work_on_what_is_published(first.path, ledger)
        first.flush()
    _killed(first, point)
    second = mount("a", *SMALL_CACHE)
    if point.value.startswith("rename-dir-"):  # the mount finishes it in the background; names move meanwhile
        wait_for(lambda: all(it.kind != "rename" for it in _left_in(bucket, minio)), 60, "the rename to be finished")
    shown = _tree(second.path)
    for name, body in ledger.sure.items():
        if ledger.perhaps.get(name) == body:
            assert shown.get(name) == body, name
    for name, body in shown.items():
        assert body in (ledger.sure.get(name), ledger.perhaps.get(name)) or _unfinished(name, ledger), name
    for name, modes in ledger.modes.items():
        if name in shown or (second.path / name).is_dir():
            assert stat.S_IMODE((second.path / name).stat().st_mode) in modes, name
    second.flush()
    assert second.status()["dirty_files"] == 0
    links = {key: bucket.link(key) for key in bucket.all_keys() if not key.endswith("/")}
    assert {key: bucket.read(body or key) for key, body in links.items()} == shown
    assert set(bucket.bodies()) == {body for body in links.values() if body}
    _nothing_is_left(bucket, minio, point)


def _nothing_is_left(bucket: Bucket, minio: Minio, point: Point) -> None:
    """No half of anything, and no upload but one whose id was in the very transaction that was not committed."""
    left, uploads = _left_in(bucket, minio), [upload for name in ("big", "big2") for upload in bucket.uploads(name)]
    if point is Point.JOURNAL_BEFORE_COMMIT:
        left = [finding for finding in left if finding.kind != "upload"]
        del uploads[:1]
    assert (left, uploads) == ([], [])


def _left_in(bucket: Bucket, minio: Minio) -> list[Finding]:
    """What `s3vol fsck` would say a month later, when nothing is in progress any more."""

    async def check() -> list[Finding]:
        async with s3_store(minio.endpoint, bucket.name) as store:
            return await look(store, lambda: time.time_ns() + 30 * 86_400 * 10**9)

    return trio.run(check)


def _unfinished(name: str, ledger: Ledger) -> bool:
    """A file that was being written when the process died may have any beginning of its content, or none."""
    return name in ledger.perhaps and name not in ledger.sure


def _mount_that_dies(mount: MountFactory, path: Path, point: Point) -> None:
    """Mount again with this point armed: what the last crash left makes the process pass it, maybe before it serves."""
    try:
        again = mount("a", S3VOL_FAILPOINT=point.value)
    except Failed as failed:
        if failed.status != -9:
            raise
        KILLS[point] += 1
        if mounts.find_mount(str(path)):
            mounts.unmount(str(path), lazy=True)
    else:
        _killed(again, point)


@pytest.mark.parametrize(
    "point",
    [
        Point.REPLAY_AFTER_LOAD,
        Point.PUBLISH_AFTER_PUT,
        Point.UPLOAD_BEFORE_COMPLETE,
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in (
                Point.JOURNAL_BEFORE_COMMIT,
                Point.PUBLISH_BEFORE_PUT,
                Point.UPLOAD_AFTER_CREATE,
                Point.UPLOAD_AFTER_PART,
                Point.UPLOAD_AFTER_COMPLETE,
            )
        ),
    ],
    ids=str,
)
def test_a_second_crash_during_the_replay_loses_nothing_either(
    bucket: Bucket, mount: MountFactory, minio: Minio, point: Point
) -> None:
    first = mount("a", "--write-back", "--fsync", "local")
    bodies = {**{f"f{i}": f"f{i}".encode() * 1000 for i in range(20)}, "big": BIG[: 24 << 20]}
    fds = {name: os.open(first.path / name, os.O_WRONLY | os.O_CREAT) for name in bodies}
    for name, fd in fds.items():  # not closed: what is journaled is not published yet
        os.write(fd, bodies[name])
        os.fsync(fd)
    first.kill()
    for fd in fds.values():
        with contextlib.suppress(OSError):
            os.close(fd)
    _mount_that_dies(mount, first.path, point)
    third = mount("a")
    third.flush()
    _nothing_is_left(bucket, minio, point)
    assert {name: bucket.read(name) for name in fds} == bodies


@pytest.mark.parametrize(
    "point",
    [
        Point.RENAME_DIR_AFTER_TOMBSTONE,
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in (Point.RENAME_DIR_AFTER_COPY, Point.RENAME_DIR_AFTER_COPIES, Point.RENAME_DIR_AFTER_MOVES)
        ),
    ],
    ids=str,
)
def test_a_second_crash_while_a_rename_is_finished_loses_no_name(
    bucket: Bucket, mount: MountFactory, minio: Minio, point: Point
) -> None:
    first = mount("a", S3VOL_FAILPOINT=Point.RENAME_DIR_AFTER_INTENT.value)
    (first.path / "old").mkdir()
    for i in range(5):
        (first.path / "old" / f"f{i}").write_text(str(i))
    with pytest.raises(OSError):  # noqa: PT011  # ENOTCONN, or ECONNABORTED
        (first.path / "old").rename(first.path / "new")
    _killed(first, Point.RENAME_DIR_AFTER_INTENT)
    _mount_that_dies(mount, first.path, point)
    third = mount("a")
    wait_for(lambda: not (third.path / "old").exists(), 30, "the rename to be finished")
    assert _tree(third.path) == {f"new/f{i}": str(i).encode() for i in range(5)}
    wait_for(lambda: _left_in(bucket, minio) == [], 30, "the intent to go")


def test_a_kill_after_a_conflict_copy_was_made_leaves_one_copy(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    first = mount("a", S3VOL_FAILPOINT=Point.CONFLICT_AFTER_COPY.value)
    (first.path / "f").write_bytes(b"first")
    fd = os.open(first.path / "f", os.O_WRONLY)
    bucket.client.put_object(Bucket=bucket.name, Key="f", Body=b"theirs")
    os.write(fd, b"ours!")
    with pytest.raises(OSError):  # noqa: PT011  # ENOTCONN, or ECONNABORTED
        os.fsync(fd)
    _killed(first, Point.CONFLICT_AFTER_COPY)
    with contextlib.suppress(OSError):
        os.close(fd)
    second = mount("a")
    second.flush()
    bodies = {name: body for name, body in _tree(second.path).items() if name != "f"}
    assert list(bodies.values()) == [b"ours!"]
    assert bucket.read("f") == b"theirs"
    assert _left_in(bucket, minio) == []
