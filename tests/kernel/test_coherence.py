"""Close-to-open between two mounts of one bucket, caches apart; and no lost update."""

from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

ROUNDS = 1000
CONFLICT_ROUNDS = 100
RENAME_ROUNDS = 100


def _write(path: Path, body: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        assert os.write(fd, body) == len(body)
    finally:
        os.close(fd)


def test_what_was_closed_on_one_mount_is_opened_on_the_other_in_both_directions(mount: MountFactory) -> None:
    one, two = mount("one").path / "f", mount("two").path / "f"
    stale = []
    for i in range(ROUNDS):
        writer, reader = (one, two) if i % 2 else (two, one)
        body = b"%d " % i * (i % 700 + 1)
        _write(writer, body)
        if reader.read_bytes() != body:
            stale.append(i)
    assert stale == []


def test_equal_size_and_equal_mtime_do_not_hide_a_change(mount: MountFactory) -> None:
    one, two = mount("one").path / "f", mount("two").path / "f"
    stale = []
    for i in range(ROUNDS):
        writer, reader = (one, two) if i % 2 else (two, one)
        body = b"%08d" % i * 600
        fd = os.open(writer, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, body, 0)
            os.utime(fd, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
        finally:
            os.close(fd)
        if reader.read_bytes() != body:
            stale.append(i)
    assert stale == []
    assert two.stat().st_mtime_ns == 1_700_000_000_000_000_000


def test_a_new_name_is_seen_at_once_although_it_was_just_looked_up_in_vain(mount: MountFactory) -> None:
    one, two = mount("one").path, mount("two").path
    for i in range(100):
        assert not (two / f"n{i}").exists()
        (one / f"n{i}").write_text(str(i))
        assert (two / f"n{i}").read_text() == str(i)


def test_a_chmod_of_the_same_content_is_seen_by_the_next_open(mount: MountFactory) -> None:
    one, two = mount("one").path / "f", mount("two").path / "f"
    one.write_bytes(b"content stays")
    for mode in (0o600, 0o640, 0o755, 0o444) * 5:
        os.chmod(one, mode)
        fd = os.open(two, os.O_RDONLY)
        try:
            assert stat.S_IMODE(os.fstat(fd).st_mode) == mode
        finally:
            os.close(fd)


def test_mapped_pages_of_a_reader_follow_the_version_it_opens(mount: MountFactory) -> None:
    one, two = mount("one").path / "f", mount("two").path / "f"
    for i in range(50):
        body = bytes([65 + i % 26]) * (8192 if i % 2 else 5000)
        _write(one, body)
        assert two.read_bytes() == body
        assert two.stat().st_size == len(body)


def test_a_reader_that_holds_a_file_open_sees_one_version(mount: MountFactory) -> None:
    one, two = mount("one").path / "f", mount("two").path / "f"
    size = 6 << 20
    _write(one, b"a" * size)
    fd = os.open(two, os.O_RDONLY)
    try:
        assert os.pread(fd, 4096, 0) == b"a" * 4096
        _write(one, b"b" * size)
        assert two.read_bytes() == b"b" * size  # a second handle on the same node: the new version
        seen = b""
        refused = set()
        for offset in range(0, size, 1 << 20):
            try:
                seen += os.pread(fd, 1 << 20, offset)
            except OSError as error:  # not cached and no longer in the bucket
                refused.add(error.errno)
        assert refused <= {errno.ESTALE}
        assert set(seen) == {ord("a")}
    finally:
        os.close(fd)


def test_o_excl_lets_exactly_one_of_two_nodes_in(mount: MountFactory) -> None:
    one, two = mount("one").path, mount("two").path
    for i in range(50):
        winners = 0
        for place in (one, two) if i % 2 else (two, one):
            try:
                os.close(os.open(place / f"lock{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                winners += 1
            except FileExistsError:
                pass
        assert winners == 1


def test_the_later_of_two_writers_gets_estale_and_its_content_is_kept(bucket: Bucket, mount: MountFactory) -> None:
    a, b = mount("one"), mount("two")
    for i in range(CONFLICT_ROUNDS):
        name = f"shared-{i}"
        (a.path / name).write_text("base")
        first = os.open(a.path / name, os.O_WRONLY)
        second = os.open(b.path / name, os.O_WRONLY)
        os.pwrite(first, b"first %d" % i, 0)
        os.pwrite(second, b"second %d" % i, 0)
        os.close(first)
        with pytest.raises(OSError, match=r"[Ss]tale") as caught:
            os.close(second)
        assert caught.value.errno == errno.ESTALE
        assert bucket.read(name) == b"first %d" % i
        copies = [key for key in bucket.all_keys() if key.startswith(f"{name}.s3vol-conflict-")]
        assert len(copies) == 1
        assert bucket.read(copies[0]) == b"second %d" % i
    assert b.status()["conflicts"] == CONFLICT_ROUNDS
    assert b.log.count("s3vol-conflict-") >= CONFLICT_ROUNDS


def test_a_rename_is_seen_by_the_other_node_and_never_shows_neither_name(mount: MountFactory) -> None:
    one, two = mount("one").path, mount("two").path
    (one / "f").write_text("content")
    for i in range(30):
        os.rename(one / ("f" if i == 0 else f"f{i - 1}"), one / f"f{i}")
        assert (two / f"f{i}").read_text() == "content"
        with pytest.raises(FileNotFoundError):
            (two / ("f" if i == 0 else f"f{i - 1}")).read_text()


def test_a_file_that_two_nodes_rename_to_one_name_at_once_is_there_afterwards(
    bucket: Bucket, mount: MountFactory
) -> None:
    roots = [mount("one").path, mount("two").path]
    start = threading.Barrier(2)

    def rename(root: Path, i: int) -> bool:
        start.wait()
        try:
            os.rename(root / f"f{i}", root / f"g{i}")
        except FileNotFoundError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for i in range(RENAME_ROUNDS):
            (roots[i % 2] / f"f{i}").write_text(str(i))
            for root in roots:
                assert (root / f"f{i}").read_text() == str(i)
            done = list(pool.map(rename, roots, (i, i)))
            assert any(done)
            assert (roots[0] / f"g{i}").read_text() == (roots[1] / f"g{i}").read_text() == str(i)
    assert bucket.all_keys() == sorted(f"g{i}" for i in range(RENAME_ROUNDS))


@pytest.mark.parametrize("size", [20, 5])
@pytest.mark.parametrize("read_first", [False, True])
def test_an_append_goes_behind_what_another_node_wrote(
    bucket: Bucket, mount: MountFactory, size: int, read_first: bool
) -> None:
    """Within the time for which the kernel believes names and attributes, so it has not asked for the length."""
    here, there = mount("a"), mount("b")
    (here.path / "f").write_bytes(b"A" * 10)
    (there.path / "f").write_bytes(b"B" * size)
    if read_first:
        os.close(os.open(here.path / "f", os.O_RDONLY))
    fd = os.open(here.path / "f", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"C")
    os.close(fd)
    assert bucket.read("f") == b"B" * size + b"C"
    assert (here.path / "f").read_bytes() == b"B" * size + b"C"
