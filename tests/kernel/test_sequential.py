"""Sequential readers whose bytes are on the own disk, and in no page cache: right, whoever writes meanwhile."""

from __future__ import annotations

import os
import random
import struct
import threading
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Mounted

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

PAGE = 4096
PAGES = 6000  # 23 MiB: three runs of readahead
STEP = 75  # pages a read; neither a chunk nor a run is a multiple of it
WALKS = 8


def _page(version: int, index: int) -> bytes:
    return struct.pack("<QQ", version, index) * (PAGE // 16)


def _forget_pages(here: Mounted, path: Path) -> None:
    """No page cache has anything of the file: neither the mount's, nor that of the disk where the cache is."""
    data = Path(here.status()["cache"]["directory"]) / "data"
    for file in (path, *data.iterdir()):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_a_walk_through_a_file_that_the_page_cache_has_forgotten_sees_each_write_of_this_node(
    mount: MountFactory,
) -> None:
    here = mount("a", "--write-back", "--publish-delay", "60s")
    path = here.path / "f"
    path.write_bytes(b"".join(_page(1, index) for index in range(PAGES)))
    here.flush()
    least = [1] * PAGES
    stop, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        draw, version = random.Random(5), 1
        try:
            with open(path, "r+b", buffering=0) as file:
                while not stop.wait(0.001):
                    version, index = version + 1, draw.randrange(PAGES)
                    os.pwrite(file.fileno(), _page(version, index), index * PAGE)
                    least[index] = version
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    for walk in range(WALKS):
        _forget_pages(here, path)
        if walk == 2:
            writer.start()
        with open(path, "rb", buffering=0) as file:
            for first in range(0, PAGES, STEP):
                known = least[first : first + STEP]
                data = os.pread(file.fileno(), STEP * PAGE, first * PAGE)
                assert len(data) == len(known) * PAGE
                for at, version in enumerate(known):
                    seen = set(struct.iter_unpack("<QQ", data[at * PAGE : (at + 1) * PAGE]))
                    assert {place for _, place in seen} == {first + at}
                    assert min(found for found, _ in seen) >= version
    stop.set()
    writer.join()
    assert not failures
    here.flush()
    assert path.read_bytes() == b"".join(_page(version, index) for index, version in enumerate(least))
