"""Public judges of file systems on a volume in IPFS: pjdfstest, fsx, git. As on S3, with nothing taken out.

Each runs with `--write-back` and in the default mode, in which every close() is a publication of its own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.judges.fsx import exercise, whole
from tests.judges.pjdfstest import pjdfstest
from tests.kernel.harness import Mounted, Node
from tests.kernel.test_pjdfstest import EXECUTED_AT_LEAST, KNOWN
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER

pytestmark = [pytest.mark.ipfs, pytest.mark.kernel, pytest.mark.soak]  # a quarter of an hour in all

WRITE_BACK = ("--write-back", "--fsync", "local")
modes = pytest.mark.parametrize("mode", [pytest.param(WRITE_BACK, id="write-back"), pytest.param((), id="default")])


@pytest.fixture
def mount(lone: Swarm) -> Iterator[Callable[..., Mounted]]:
    """`mount(*options)`: a new volume, in a folder that every user may search."""
    (daemons,) = lone.nodes
    with tempfile.TemporaryDirectory(prefix="s3vol-judges-") as name:
        folder = Path(name)
        os.chmod(folder, 0o755)
        login = folder / "login"
        login.touch(0o600)
        login.write_text(f"{USER}:{PASSWORD}\n")
        told = {
            "S3VOL_KUBO": daemons.kubo_url,
            "S3VOL_CLUSTER": daemons.cluster_url,
            "S3VOL_CLUSTER_LOGIN": str(login),
        }
        with Node(folder / "node", told) as node:
            yield lambda *options: node.mount(f"ipfs://v{uuid.uuid4().hex[:8]}", *options)


@modes
@pytest.mark.timeout(1800)
def test_pjdfstest_fails_only_where_it_is_known_to(mount: Callable[..., Mounted], mode: Sequence[str]) -> None:
    found = pjdfstest(mount("-o", "allow_other,dev,suid", *mode).path)
    known = {line for line in (line.split("#")[0].strip() for line in KNOWN.read_text().splitlines()) if line}
    assert len(found.executed) >= EXECUTED_AT_LEAST, found.said
    assert found.failed == known


@modes
@pytest.mark.timeout(900)
def test_fsx_finds_no_difference(mount: Callable[..., Mounted], mode: Sequence[str]) -> None:
    here = mount("--cache-size", "8M", "--dirty-max", "4M", *mode)
    done = exercise(here.path / "f", whole(7, 3000), timeout_s=600)
    assert done.status == 0, done.said[-4000:]


@modes
def test_git_clones_and_its_fsck_is_content(mount: Callable[..., Mounted], tmp_path: Path, mode: Sequence[str]) -> None:
    source = tmp_path / "source"
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    git("init", "-q", str(source))
    for number in range(50):
        (source / f"file{number}").write_text(f"{number}\n" * number)
    git("-C", str(source), "add", ".")
    git("-C", str(source), *who, "commit", "-q", "-m", "one")
    here = mount(*mode)
    git("clone", "-q", "--no-local", str(source), str(here.path / "clone"))
    git("-C", str(here.path / "clone"), "fsck", "--full", "--strict")
    assert git("-C", str(here.path / "clone"), "status", "--porcelain") == ""
    here.umount()
