"""Hard links through the kernel: the programs that make them, two nodes, and what other S3 clients see of them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket, S3fs
from tests.support.minio import wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.minio]


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(a) for a in argv], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{argv}: {done.stdout}\n{done.stderr}"
    return done.stdout


def _tree(root: Path) -> None:
    """Files with one, two and three names, across directories, a linked symlink and a linked empty file."""
    for folder in ("x", "y/z"):
        (root / folder).mkdir(parents=True)
    for i in range(20):
        (root / f"x/f{i}").write_bytes(os.urandom(i * 997))
        if i % 2:
            os.link(root / f"x/f{i}", root / f"y/f{i}")
        if i % 4 == 3:
            os.link(root / f"x/f{i}", root / f"y/z/g{i}")
    os.symlink("f1", root / "x/s")
    os.link(root / "x/s", root / "y/s", follow_symlinks=False)
    (root / "empty").touch()
    os.link(root / "empty", root / "y/empty")


def _groups(root: Path) -> tuple[set[frozenset[str]], dict[str, tuple[int, int, bytes]]]:
    """Which names are one file, and of each name: mode, number of links, content."""
    inodes: dict[int, set[str]] = {}
    facts = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        name = str(path.relative_to(root))
        inodes.setdefault(status.st_ino, set()).add(name)
        body = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        facts[name] = (status.st_mode, status.st_nlink, body)
    return {frozenset(names) for names in inodes.values()}, facts


def _no_links_left(bucket: Bucket) -> bool:
    return "Contents" not in bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=".s3vol/links/")


def test_a_tree_with_links_looks_as_on_a_local_disk_also_after_a_remount_and_on_another_node(
    mount: MountFactory, tmp_path: Path, bucket: Bucket
) -> None:
    (tmp_path / "local").mkdir()
    _tree(tmp_path / "local")
    first = mount("a")
    _run("cp", "-a", f"{tmp_path}/local/.", first.path)
    wanted = _groups(tmp_path / "local")
    assert _groups(first.path) == wanted
    numbers = {path: path.lstat().st_ino for path in first.path.rglob("*")}
    first.umount()
    again = mount("a")
    assert {path: path.lstat().st_ino for path in again.path.rglob("*")} == numbers
    other = mount("b")
    assert _groups(other.path) == wanted
    shutil.rmtree(other.path / "x")
    shutil.rmtree(other.path / "y")
    (other.path / "empty").unlink()
    assert _no_links_left(bucket)
    assert bucket.all_keys() == []


@pytest.mark.parametrize("how", ["cp -al", "rsync -aH", "rsync --link-dest", "tar"])
def test_programs_keep_links(mount: MountFactory, tmp_path: Path, how: str) -> None:
    here = mount("a").path
    source, copy = here / "source", here / "copy"
    source.mkdir()
    _tree(source)
    groups, facts = _groups(source)
    if how == "cp -al":
        _run("cp", "-al", source, copy)
        assert (copy / "x/f2").stat().st_ino == (source / "x/f2").stat().st_ino
        assert (source / "x/f3").stat().st_nlink == 6
        shutil.rmtree(source)
    elif how == "rsync -aH":
        _run("rsync", "-aH", f"{source}/", copy)
        assert _run("rsync", "-aHi", f"{source}/", copy) == ""
    elif how == "rsync --link-dest":
        _run("rsync", "-aH", f"--link-dest={source}", f"{source}/", copy)
        assert (copy / "x/f2").stat().st_ino == (source / "x/f2").stat().st_ino
        shutil.rmtree(source)
    else:
        _run("tar", "-C", source, "-cf", tmp_path / "t.tar", ".")
        copy.mkdir()
        _run("tar", "-C", copy, "-xpf", tmp_path / "t.tar")
    assert _groups(copy) == (groups, facts)


def test_git_clones_by_links(mount: MountFactory) -> None:
    here = mount("a").path
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main")
    (here / "origin").mkdir()
    _run("git", *identity, "init", "-q", cwd=here / "origin")
    for i in range(10):
        (here / f"origin/f{i}").write_text(f"{i}\n" * 100)
    _run("git", "add", ".", cwd=here / "origin")
    _run("git", *identity, "commit", "-qm", "one", cwd=here / "origin")
    _run("git", "clone", "-q", "--local", here / "origin", here / "clone")
    objects = [path for path in (here / "clone/.git/objects").rglob("*") if path.is_file()]
    assert {path.stat().st_nlink for path in objects} == {2}
    shutil.rmtree(here / "origin")
    _run("git", "fsck", "--strict", cwd=here / "clone")
    assert {path.stat().st_nlink for path in objects} == {1}


def test_two_nodes_write_and_read_through_different_names(mount: MountFactory) -> None:
    a, b = mount("a").path, mount("b").path
    (a / "f").write_bytes(b"one")
    _run("ln", a / "f", a / "g")
    assert (b / "g").read_bytes() == b"one"
    with open(b / "g", "ab") as file:
        file.write(b" two")
    assert (a / "f").read_bytes() == b"one two"
    os.chmod(a / "f", 0o600)
    wait_for(lambda: stat.S_IMODE((b / "g").stat().st_mode) == 0o600, 10, "the mode on the other node")
    os.unlink(b / "f")
    wait_for(lambda: (a / "g").stat().st_nlink == 1, 10, "the number of links on the other node")
    assert (a / "g").read_bytes() == b"one two"


def test_a_link_is_a_lock_between_nodes(mount: MountFactory) -> None:
    nodes = [mount(name).path for name in ("a", "b")]
    for i, here in enumerate(nodes):
        (here / f"pid{i}").write_text(str(i))
    for _ in range(5):
        commands = [
            subprocess.Popen(["ln", f"pid{i}", "lock"], cwd=here, stderr=subprocess.DEVNULL)
            for i, here in enumerate(nodes)
        ]
        assert sorted(command.wait(60) for command in commands) == [0, 1]
        (nodes[0] / "lock").unlink()


def test_readers_of_an_unlinked_link_read_on_and_nothing_stays_behind(mount: MountFactory, bucket: Bucket) -> None:
    body = os.urandom(3 << 20)
    bucket.client.put_object(Bucket=bucket.name, Key="f", Body=body)
    here = mount("a").path
    os.link(here / "f", here / "g")
    fd = os.open(here / "g", os.O_RDWR)
    try:
        os.unlink(here / "f")
        assert os.fstat(fd).st_nlink == 1
        os.unlink(here / "g")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 1 << 20, 2 << 20) == body[2 << 20 :]
        os.pwrite(fd, b"still here", 0)
        assert os.pread(fd, 10, 0) == b"still here"
    finally:
        os.close(fd)
    assert bucket.all_keys() == []
    assert _no_links_left(bucket)


def test_boto3_sees_stubs_that_name_the_body(mount: MountFactory, bucket: Bucket) -> None:
    here = mount("a").path
    (here / "f").write_bytes(b"content")
    os.chmod(here / "f", 0o640)
    os.link(here / "f", here / "g")
    stubs = [bucket.client.get_object(Bucket=bucket.name, Key=name) for name in ("f", "g")]
    ids = {answer["Metadata"]["s3vol-link"] for answer in stubs}
    (link_id,) = ids
    assert all(answer["Body"].read().startswith(f"s3vol hard link {link_id}".encode()) for answer in stubs)
    body = bucket.client.get_object(Bucket=bucket.name, Key=f".s3vol/links/{link_id}")
    assert body["Body"].read() == b"content"
    assert body["Metadata"]["mode"] == str(stat.S_IFREG | 0o640)
    record = bucket.client.head_object(Bucket=bucket.name, Key=f".s3vol/links/{link_id}.names")
    assert record["Metadata"]["s3vol-link-count"] == "2"


def test_a_mounted_s3fs_sees_the_stub_and_what_it_writes_there_is_a_file_of_its_own(
    mount: MountFactory, s3fs: S3fs
) -> None:
    ours = mount("a").path
    (ours / "f").write_bytes(b"content")
    os.link(ours / "f", ours / "g")
    theirs = s3fs.mount()
    assert (theirs / "g").read_bytes().startswith(b"s3vol hard link ")
    (theirs / "g").write_bytes(b"written by s3fs")
    wait_for(lambda: (ours / "g").read_bytes() == b"written by s3fs", 10, "the file of s3fs")
    assert (ours / "f").read_bytes() == b"content"
    assert (ours / "g").stat().st_ino != (ours / "f").stat().st_ino
