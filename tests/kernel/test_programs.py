"""Programs that people run on a file system, with their own checks as the judge."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory

pytestmark = [pytest.mark.kernel, pytest.mark.minio]


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(a) for a in argv], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{argv}: {done.stdout}\n{done.stderr}"
    return done.stdout


def _git(*argv: str | Path, cwd: Path) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main")
    return _run("git", *identity, *argv, cwd=cwd)


def _tree(root: Path, files: int) -> None:
    """A tree with sizes, modes, times and links as real ones have."""
    rng = random.Random(files)
    for i in range(files):
        folder = root / f"d{i % 20}" / f"e{i % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file {i}.dat"
        path.write_bytes(rng.randbytes(rng.choice((0, 10, 1000, 5000, 30_000))))
        path.chmod(rng.choice((0o644, 0o600, 0o755)))
        os.utime(path, ns=(10**18, 10**18 + rng.randrange(10**9)))
    os.symlink("d0", root / "link")


def test_git_clones_and_its_fsck_is_content(mount: MountFactory, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _git("init", "-q", cwd=source)
    for i in range(5):
        (source / f"a{i}").mkdir()
        for j in range(20):
            (source / f"a{i}" / f"f{j}").write_text(f"{i} {j}\n" * (j * 50 + 1))
        _git("add", ".", cwd=source)
        _git("commit", "-qm", f"commit {i}", cwd=source)
    here = mount("a").path
    _git("clone", "-q", "--no-local", source, here / "clone", cwd=here)
    _git("fsck", "--strict", cwd=here / "clone")
    (here / "clone/new").write_text("new\n")
    _git("add", "new", cwd=here / "clone")
    _git("commit", "-qm", "on the mount", cwd=here / "clone")
    assert _git("status", "--porcelain", cwd=here / "clone") == ""
    _git("gc", "-q", cwd=here / "clone")
    _git("fsck", "--strict", cwd=here / "clone")


def test_a_tree_of_1000_files_untars_and_diffs_clean_after_a_remount(mount: MountFactory, tmp_path: Path) -> None:
    _tree(tmp_path / "tree", 1000)
    _run("tar", "--format=posix", "-C", tmp_path, "-cf", tmp_path / "tree.tar", "tree")
    first = mount("a")
    _run("tar", "-C", first.path, "-xpf", tmp_path / "tree.tar")
    _run("diff", "-r", "--no-dereference", tmp_path / "tree", first.path / "tree")
    first.umount()
    shutil.rmtree(first.node.folder / "cache")
    second = mount("a")
    _run("diff", "-r", "--no-dereference", tmp_path / "tree", second.path / "tree")
    for path in list((tmp_path / "tree").rglob("*.dat"))[::37]:
        twin = second.path / path.relative_to(tmp_path)
        assert (twin.stat().st_mode, twin.stat().st_mtime_ns) == (path.stat().st_mode, path.stat().st_mtime_ns)


def test_the_second_rsync_copies_nothing(mount: MountFactory, tmp_path: Path) -> None:
    _tree(tmp_path / "tree", 200)
    first = mount("a")
    _run("rsync", "-a", f"{tmp_path}/tree/", first.path / "copy/")
    assert _run("rsync", "-ai", f"{tmp_path}/tree/", first.path / "copy/") == ""
    first.umount()
    shutil.rmtree(first.node.folder / "cache")
    second = mount("a")
    assert _run("rsync", "-ai", f"{tmp_path}/tree/", second.path / "copy/") == ""


@pytest.mark.parametrize("journal", ["delete", "truncate"])
def test_sqlite_commits_and_its_integrity_check_is_ok(mount: MountFactory, journal: str) -> None:
    first = mount("a", "--fsync", "local")
    db = sqlite3.connect(first.path / "t.db")
    db.execute(f"pragma journal_mode={journal}")
    db.execute("create table t(id integer primary key, body blob)")
    for i in range(30):
        with db:
            db.executemany("insert into t(body) values (?)", [(os.urandom(i * 37),) for _ in range(20)])
        if i % 10 == 9:
            with db:
                db.execute("delete from t where id % 3 = 0")
    (rows,) = db.execute("select count(*) from t").fetchone()
    db.close()
    first.umount()
    shutil.rmtree(first.node.folder / "cache")
    second = mount("a")
    db = sqlite3.connect(second.path / "t.db")
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select count(*) from t").fetchone() == (rows,)
    db.close()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def test_a_2_gib_file_with_random_rewrites_is_the_same_after_a_remount_on_an_empty_cache(
    mount: MountFactory, tmp_path: Path
) -> None:
    size = 2 << 30
    rng = random.Random(3)
    first = mount("a", "--cache-size", "4G")
    twin = tmp_path / "twin"
    try:
        with open(first.path / "big", "wb", buffering=0) as ours, open(twin, "wb", buffering=0) as theirs:
            for i in range(size >> 20):
                block = rng.randbytes(1 << 16) * 16
                assert ours.write(block) == theirs.write(block) == 1 << 20, i
        with open(first.path / "big", "r+b", buffering=0) as ours, open(twin, "r+b", buffering=0) as theirs:
            for _ in range(200):
                offset, block = rng.randrange(size - 100_000), rng.randbytes(rng.randrange(1, 100_000))
                for file in (ours, theirs):
                    file.seek(offset)
                    file.write(block)
        first.umount()
        shutil.rmtree(first.node.folder / "cache")
        second = mount("a", "--cache-size", "4G")
        assert (second.path / "big").stat().st_size == size
        assert _digest(second.path / "big") == _digest(twin)
    finally:
        twin.unlink(missing_ok=True)
