"""Calls that never reach the mount, or that it refuses: what a program sees, as docs/SEMANTICS.md says it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.harness import Node

pytestmark = pytest.mark.kernel

BODY = os.urandom(300_000)
PUNCH_HOLE_KEEP_SIZE = 3  # linux/falloc.h
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4  # linux/fs.h
FICLONE, FS_IOC_GETFLAGS, FS_IOC_FIEMAP = 0x40049409, 0x80086601, 0xC020660B  # linux/fs.h
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount that needs no server: none of these calls gets that far."""
    with Node(tmp_path_factory.mktemp("node")) as node:
        yield node.mount("memory:").path


@pytest.fixture
def file(point: Path) -> Iterator[int]:
    """An open file with BODY."""
    (point / "f").write_bytes(BODY)
    fd = os.open(point / "f", os.O_RDWR)
    yield fd
    os.close(fd)


def refusal(call: Callable[[], object]) -> int:
    """The errno of a call that must fail."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is returned to be checked
        call()
    assert caught.value.errno is not None
    return caught.value.errno


def checked(result: int) -> int:
    """The result of a C function; OSError as errno says."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def fallocate(fd: int, mode: int, length: int) -> int:
    """fallocate(2) from offset 0."""
    return checked(_libc.fallocate(fd, mode, ctypes.c_int64(0), ctypes.c_int64(length)))


def renameat2(old: Path, new: Path, flags: int) -> int:
    """renameat2(2)."""
    return checked(_libc.renameat2(AT_FDCWD, bytes(old), AT_FDCWD, bytes(new), flags))


@pytest.mark.parametrize("mode", [0, PUNCH_HOLE_KEEP_SIZE])
def test_space_is_not_reserved_and_holes_are_not_punched(file: int, mode: int) -> None:
    assert refusal(lambda: fallocate(file, mode, 400_000)) == errno.EOPNOTSUPP
    assert os.pread(file, 400_000, 0) == BODY


def test_posix_fallocate_makes_the_file_longer(file: int) -> None:
    os.posix_fallocate(file, 0, 400_000)
    assert os.pread(file, 500_000, 0) == BODY + bytes(100_000)


def test_a_file_is_data_up_to_its_end_whatever_holes_it_has(file: int) -> None:
    os.ftruncate(file, 10 << 20)
    assert os.lseek(file, 5, os.SEEK_DATA) == 5
    assert os.lseek(file, 5, os.SEEK_HOLE) == 10 << 20
    assert refusal(lambda: os.lseek(file, 10 << 20, os.SEEK_DATA)) == errno.ENXIO


def test_copy_file_range_copies_within_the_mount_and_not_out_of_it(point: Path, file: int, tmp_path: Path) -> None:
    target = os.open(point / "copy", os.O_RDWR | os.O_CREAT)
    outside = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    try:
        copied = 0
        while copied < len(BODY):
            copied += os.copy_file_range(file, target, len(BODY), copied, copied)
        assert os.pread(target, len(BODY), 0) == BODY
        assert refusal(lambda: os.copy_file_range(file, outside, 10, 0, 0)) == errno.EXDEV
        assert refusal(lambda: fcntl.ioctl(target, FICLONE, file)) == errno.EOPNOTSUPP
    finally:
        os.close(target)
        os.close(outside)


@pytest.mark.parametrize("lock", ["fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "fcntl.lockf(fd, 6, 10, 20)"])
def test_locks_hold_between_processes_of_this_machine(point: Path, file: int, lock: str) -> None:
    exec(lock, {"fcntl": fcntl, "fd": file})
    program = f"import fcntl, os\nfd = os.open({str(point / 'f')!r}, os.O_RDWR)\n{lock}"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "BlockingIOError" in other.stderr


def test_an_ioctl_is_not_known(file: int) -> None:
    assert refusal(lambda: fcntl.ioctl(file, FS_IOC_GETFLAGS, bytearray(8))) == errno.ENOTTY
    assert refusal(lambda: fcntl.ioctl(file, 0x1234, bytearray(8))) == errno.ENOTTY
    assert refusal(lambda: fcntl.ioctl(file, FS_IOC_FIEMAP, bytearray(32))) == errno.EOPNOTSUPP


def test_sync_does_not_publish_what_is_still_open(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    with Node(tmp_path / "node") as node:
        path = node.mount(f"file://{tmp_path / 'objects'}").path / "f"
        with path.open("wb", buffering=0) as file:
            file.write(BODY)
            assert _libc.syncfs(file.fileno()) == 0
            os.sync()
            assert not (tmp_path / "objects/f").exists()
            os.fsync(file.fileno())
            assert (tmp_path / "objects/f").exists()


def test_poll_says_that_a_file_is_always_ready(file: int) -> None:
    poll = select.poll()
    poll.register(file)
    assert poll.poll(0) == [(file, select.POLLIN | select.POLLOUT)]


def test_a_file_without_a_name_cannot_be_made(point: Path) -> None:
    assert refusal(lambda: os.open(point, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP


def test_a_rename_may_refuse_to_replace_and_not_exchange(point: Path, file: int) -> None:
    (point / "g").write_bytes(b"g")
    assert refusal(lambda: renameat2(point / "f", point / "g", RENAME_NOREPLACE)) == errno.EEXIST
    assert refusal(lambda: renameat2(point / "f", point / "g", RENAME_EXCHANGE)) == errno.EINVAL
    assert refusal(lambda: renameat2(point / "f", point / "g", RENAME_WHITEOUT)) == errno.EINVAL
    assert (point / "g").read_bytes() == b"g"


def test_access_control_lists_are_not_stored(point: Path, file: int) -> None:
    assert refusal(lambda: os.getxattr(file, "system.posix_acl_access")) == errno.EOPNOTSUPP
    assert refusal(lambda: os.setxattr(file, "system.posix_acl_access", b"\2\0\0\0")) == errno.EOPNOTSUPP


def test_a_path_over_1024_bytes_is_too_long_and_a_directory_has_one_link(point: Path) -> None:
    deep = point
    for at in range(5):
        deep /= f"{at}" + "d" * 199
    deep.mkdir(parents=True)
    assert refusal(lambda: (deep / ("f" * 100)).touch()) == errno.ENAMETOOLONG
    assert deep.parent.stat().st_nlink == 1
