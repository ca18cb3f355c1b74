"""Nothing hangs for ever, nothing accepted is dropped: endpoint gone, disk full, dirty cap reached."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket, small_disk
from tests.support.minio import Minio

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

TIMEOUT_S = 4
ATTR_TTL_S = 1.0  # the default of --attr-ttl


def _states(pid: int) -> set[str]:
    """Process states of the mount's threads and of this test's threads (D would be a hang in the kernel)."""
    states = set()
    for who in (pid, os.getpid()):
        for task in Path(f"/proc/{who}/task").iterdir():
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def test_with_the_endpoint_down_cached_reads_and_writes_go_on_and_the_rest_ends_with_eio(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    here = mount("a", "--timeout", f"{TIMEOUT_S}s")
    cached = os.urandom(3 << 20)
    (here.path / "cached").write_bytes(cached)
    (here.path / "other").write_bytes(b"other")
    reader = os.open(here.path / "cached", os.O_RDONLY)
    assert os.pread(reader, 3 << 20, 0) == cached
    writer = os.open(here.path / "written", os.O_WRONLY | os.O_CREAT)
    minio.kill()
    try:
        attributes_are_old_at = time.monotonic() + 2 * ATTR_TTL_S
        while time.monotonic() < attributes_are_old_at:
            assert os.pread(reader, 1 << 20, 1 << 20) == cached[1 << 20 : 2 << 20]
        body = os.urandom(2 << 20)
        assert os.write(writer, body) == len(body)
        for call in (lambda: os.listdir(here.path), lambda: os.open(here.path / "new", os.O_WRONLY | os.O_CREAT)):
            began = time.monotonic()
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is the point, checked below
                call()
            assert caught.value.errno == errno.EIO
            assert time.monotonic() - began < TIMEOUT_S * 3
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is the point, checked below
            os.close(writer)
        assert caught.value.errno == errno.EIO
        assert "D" not in _states(here.pid)
        assert here.status()["dirty_files"] == 1
    finally:
        minio.restart()
    here.flush()
    assert bucket.read("written") == body
    assert (here.path / "written").read_bytes() == body
    os.close(reader)


def _list_in_vain(folder: Path) -> None:
    with contextlib.suppress(OSError):
        os.listdir(folder)


def test_umount_force_ends_a_mount_whose_endpoint_is_gone(mount: MountFactory, minio: Minio) -> None:
    here = mount("a", "--write-back", "--timeout", "60s")
    fd = os.open(here.path / "pending", os.O_WRONLY | os.O_CREAT)
    minio.kill()
    try:
        os.write(fd, b"p" * 100_000)
        os.close(fd)
        blocked = threading.Thread(target=_list_in_vain, args=(here.path,), daemon=True)
        blocked.start()
        began = time.monotonic()
        here.umount("--force", status=3)  # what is left is said, and stays in the journal
        assert time.monotonic() - began < 30
        blocked.join(10)
        assert not blocked.is_alive()
        assert not os.path.ismount(here.path)
    finally:
        minio.restart()
    again = mount("a", "--write-back")
    assert (again.path / "pending").read_bytes() == b"p" * 100_000


def _write_until_refused(fd: int) -> tuple[bytes, int]:
    """What was accepted, and the errno that ended it."""
    accepted = b""
    for i in range(256):
        block = bytes([i]) * (1 << 20)
        try:
            accepted += block[: os.write(fd, block)]
        except OSError as error:
            return accepted, error.errno or 0
    return accepted, 0


def test_a_full_cache_disk_refuses_before_it_accepts_and_keeps_what_it_accepted(
    bucket: Bucket, mount: MountFactory, minio: Minio, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        here = mount(
            "a",
            "--cache-dir",
            str(disk),
            "--cache-free",
            "8M",
            "--timeout",
            "5s",
            "--close",
            "local",
            "--fsync",
            "local",
        )
        fd = os.open(here.path / "big", os.O_RDWR | os.O_CREAT)
        minio.pause()  # nothing can be published, so nothing can be evicted
        try:
            accepted, refused = _write_until_refused(fd)
            assert refused == errno.ENOSPC
            assert len(accepted) >= 8 << 20
            assert os.fstat(fd).st_size == len(accepted)
            assert os.pread(fd, len(accepted), 0) == accepted
            os.close(fd)
        finally:
            minio.resume()
        here.flush()
        assert bucket.read("big") == accepted
        here.umount()


def test_at_the_dirty_cap_writers_wait_and_nothing_is_dropped(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    here = mount("a", "--write-back", "--dirty-max", "16M", "--timeout", "60s")
    names = [f"f{i}" for i in range(8)]
    fds = [os.open(here.path / name, os.O_WRONLY | os.O_CREAT) for name in names]
    minio.pause()
    written: list[int] = []

    def write_all() -> None:
        for i, fd in enumerate(fds):
            os.write(fd, bytes([i]) * (4 << 20))
            os.close(fd)
            written.append(i)

    writer = threading.Thread(target=write_all)
    writer.start()
    try:
        writer.join(3)  # long enough for 32 MiB of local writes, were there no cap
        assert writer.is_alive(), "the writer did not wait at the cap"
        assert len(written) <= 4
    finally:
        minio.resume()
    writer.join(60)
    assert written == list(range(8))
    here.flush()
    for i, name in enumerate(names):
        assert bucket.read(name) == bytes([i]) * (4 << 20)
