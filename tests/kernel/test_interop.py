"""The bucket stays readable by any S3 tool, and what other tools wrote is here as files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket, S3fs

pytestmark = [pytest.mark.kernel, pytest.mark.minio]


def test_objects_written_by_boto3_are_files(bucket: Bucket, mount: MountFactory) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="docs/a.txt", Body=b"hello\n")
    bucket.client.put_object(Bucket=bucket.name, Key="docs/deep/er/b.bin", Body=bytes(range(256)) * 5000)
    bucket.client.put_object(Bucket=bucket.name, Key="spaces & ümläuts.txt", Body=b"x")
    here = mount("a").path
    assert sorted(os.listdir(here)) == ["docs", "spaces & ümläuts.txt"]
    assert (here / "docs/a.txt").read_bytes() == b"hello\n"
    assert (here / "docs/deep/er/b.bin").read_bytes() == bytes(range(256)) * 5000
    assert (here / "docs/deep").is_dir()
    status = (here / "docs/a.txt").stat()
    modified = bucket.client.head_object(Bucket=bucket.name, Key="docs/a.txt")["LastModified"]
    assert status.st_mtime == modified.timestamp()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.getuid(), 0o644)


def test_files_written_here_are_read_back_by_boto3_byte_for_byte(bucket: Bucket, mount: MountFactory) -> None:
    here = mount("a").path
    bodies = {"empty": b"", "small": b"s" * 4096, "odd": os.urandom(1_234_567), "large": os.urandom(40 << 20)}
    (here / "d").mkdir(mode=0o750)
    for name, body in bodies.items():
        (here / "d" / name).write_bytes(body)
        os.chmod(here / "d" / name, 0o640)
        os.chown(here / "d" / name, 1234, 5678)
        os.utime(here / "d" / name, ns=(1_600_000_000_000_000_001, 1_600_000_000_123_456_789))
    for name, body in bodies.items():
        answer = bucket.client.get_object(Bucket=bucket.name, Key=f"d/{name}")
        assert answer["Body"].read() == body
        meta = answer["Metadata"]
        assert meta["mode"] == str(stat.S_IFREG | 0o640)
        assert (meta["uid"], meta["gid"]) == ("1234", "5678")
        assert meta["mtime"] == "1600000000.123456789"
    marker = bucket.client.head_object(Bucket=bucket.name, Key="d/")
    assert marker["ContentType"] == "application/x-directory"
    assert marker["Metadata"]["mode"] == str(stat.S_IFDIR | 0o750)


def _facts(path: Path) -> tuple[int, int, int, int, int]:
    status = path.lstat()
    return (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime), status.st_size)


def test_a_mounted_s3fs_shows_the_same_mode_owner_and_mtime_as_we_do(
    bucket: Bucket, mount: MountFactory, s3fs: S3fs
) -> None:
    ours = mount("a").path
    (ours / "d").mkdir(mode=0o711)
    os.chown(ours / "d", 12, 34)
    (ours / "d/f").write_bytes(b"from s3vol\n" * 100)
    os.chmod(ours / "d/f", 0o4751)
    os.chown(ours / "d/f", 1000, 1001)
    os.chmod(ours / "d/f", 0o4751)  # chown clears setuid
    os.utime(ours / "d/f", ns=(0, 1_500_000_000_250_000_000))
    os.symlink("f", ours / "d/link")
    os.mkfifo(ours / "d/pipe", 0o600)
    theirs = s3fs.mount()
    for name in ("d/f", "d/link", "d/pipe"):
        assert _facts(theirs / name) == _facts(ours / name), name
    assert _facts(theirs / "d")[:3] == _facts(ours / "d")[:3]
    assert os.readlink(theirs / "d/link") == "f"
    assert (theirs / "d/f").read_bytes() == b"from s3vol\n" * 100


def test_what_a_mounted_s3fs_wrote_has_the_same_mode_owner_and_mtime_here(
    bucket: Bucket, mount: MountFactory, s3fs: S3fs
) -> None:
    theirs = s3fs.mount()
    (theirs / "d").mkdir(mode=0o2770)
    (theirs / "d/f").write_bytes(os.urandom(100_000))
    os.chmod(theirs / "d/f", 0o604)
    os.chown(theirs / "d/f", 2000, 2001)
    os.utime(theirs / "d/f", ns=(1_400_000_000_000_000_000, 1_400_000_001_000_000_000))
    os.symlink("../somewhere/else", theirs / "d/link")
    ours = mount("a").path
    for name in ("d/f", "d/link"):
        assert _facts(ours / name) == _facts(theirs / name), name
    assert _facts(ours / "d")[:3] == _facts(theirs / "d")[:3]
    assert os.readlink(ours / "d/link") == "../somewhere/else"
    assert (ours / "d/f").read_bytes() == (theirs / "d/f").read_bytes()


def test_inode_numbers_are_the_same_after_a_remount_renamed_files_included(mount: MountFactory) -> None:
    first = mount("a")
    for name in ("one", "two"):
        (first.path / name).write_text(name)
    (first.path / "dir").mkdir()
    os.rename(first.path / "one", first.path / "dir/uno")
    (first.path / "one").write_text("another one")
    names = ("one", "two", "dir", "dir/uno")
    before = {name: (first.path / name).stat().st_ino for name in names}
    assert len(set(before.values())) == 4
    first.umount()
    second = mount("a")
    assert {name: (second.path / name).stat().st_ino for name in names} == before


def test_s3vol_s_own_objects_are_invisible(bucket: Bucket, mount: MountFactory) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=".s3vol/format.json", Body=b"{}")
    here = mount("a").path
    assert os.listdir(here) == []
    with pytest.raises(FileNotFoundError):
        (here / ".s3vol").stat()
    with pytest.raises(PermissionError):
        (here / ".s3vol").mkdir()


def test_opening_with_o_direct_reads_and_writes_unaligned(mount: MountFactory) -> None:
    here = mount("a").path
    (here / "f").write_bytes(os.urandom(300_001))
    expected = bytearray((here / "f").read_bytes())
    fd = os.open(here / "f", os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pread(fd, 1000, 77) == expected[77:1077]
        os.pwrite(fd, b"direct", 123_457)
        expected[123_457:123_463] = b"direct"
    finally:
        os.close(fd)
    assert (here / "f").read_bytes() == expected


def test_an_unlinked_file_is_read_and_written_until_it_is_closed(bucket: Bucket, mount: MountFactory) -> None:
    body = os.urandom(3 << 20)
    bucket.client.put_object(Bucket=bucket.name, Key="gone", Body=body)
    here = mount("a").path
    fd = os.open(here / "gone", os.O_RDWR)
    try:
        os.unlink(here / "gone")
        assert not (here / "gone").exists()
        assert os.pread(fd, 1 << 20, 2 << 20) == body[2 << 20 :]
        os.pwrite(fd, b"still here", 0)
        assert os.pread(fd, 10, 0) == b"still here"
    finally:
        os.close(fd)
    assert bucket.all_keys() == []


def test_a_file_replaced_by_rename_keeps_its_content_for_open_handles(mount: MountFactory) -> None:
    here = mount("a").path
    (here / "old").write_bytes(b"old" * 100_000)
    (here / "new").write_bytes(b"new" * 100_000)
    fd = os.open(here / "old", os.O_RDONLY)
    try:
        os.rename(here / "new", here / "old")
        assert os.pread(fd, 300_000, 0) == b"old" * 100_000
    finally:
        os.close(fd)
    assert (here / "old").read_bytes() == b"new" * 100_000
    assert os.listdir(here) == ["old"]
