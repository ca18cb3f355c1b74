"""fsx on a mount: through the page cache and past it, in caches so small that chunks go all the time, over remounts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.judges.fsx import Course, across_borders, build_direct, exercise, expected, first_difference, whole
from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Mounted

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

TINY = ("--cache-size", "8M", "--dirty-max", "4M")
SEEDS = range(1, 13)
PIECES = 4


@pytest.fixture(params=["page-cache", "direct"])
def preload(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """What makes fsx use direct I/O, or nothing."""
    return build_direct(tmp_path) if request.param == "direct" else None


def _in_pieces(mount: MountFactory, course: Course, pieces: int, preload: Path | None, scratch: Path) -> int:
    """The course on a mount that is new, with an empty cache, for each piece. Returns the bytes that were evicted."""
    evicted_bytes = 0
    length = course.operations // pieces
    for first in range(1, course.operations, length):
        last = first + length - 1
        here = mount("a", "--write-back", "--fsync", "local", *TINY)
        done = exercise(here.path / "f", course, first, last, preload=preload, timeout_s=1800)
        assert done.status == 0, f"operations {first} to {last}: {done.said[-4000:]}"
        evicted_bytes += _evicted_bytes(here)
        _leave(here)
        wanted = expected(course, last, scratch / "expected")
        again = mount("a", "--write-back", *TINY)
        assert first_difference(again.path / "f", wanted, course.seed) is None, f"after operation {last}"
        evicted_bytes += _evicted_bytes(again)
        _leave(again)
    return evicted_bytes


def _evicted_bytes(mounted: Mounted) -> int:
    counters: dict[str, int] = mounted.status()["counters"]
    return counters.get("evicted_bytes", 0)


def _leave(mounted: Mounted) -> None:
    """Unmount, and lose all that this machine knows of the bucket."""
    mounted.umount()
    shutil.rmtree(mounted.node.folder / "cache")


@pytest.mark.parametrize("options", [(), TINY], ids=["default", "tiny-cache"])
def test_fsx_finds_no_difference(mount: MountFactory, options: tuple[str, ...]) -> None:
    here = mount("a", "--write-back", *options)
    done = exercise(here.path / "f", whole(7, 3000), timeout_s=280)
    assert done.status == 0, done.said[-4000:]


def test_fsx_finds_no_difference_across_borders_and_remounts(
    mount: MountFactory, preload: Path | None, tmp_path: Path
) -> None:
    evicted_bytes = _in_pieces(mount, across_borders(1, 500), 2, preload, tmp_path)
    assert evicted_bytes > 0, "nothing was evicted: the cache is not small enough to prove anything"


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", SEEDS)
def test_20000_operations_of_fsx_find_no_difference(
    mount: MountFactory, preload: Path | None, tmp_path: Path, seed: int
) -> None:
    course = across_borders(seed, 20_000)
    evicted_bytes = _in_pieces(mount, course, PIECES, preload, tmp_path)
    assert evicted_bytes > course.flen_bytes
