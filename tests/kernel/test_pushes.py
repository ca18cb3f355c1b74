"""Pages pushed to random readers are never old, whoever changes the file meanwhile, and never make it longer."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Mounted

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

PAGE = 4096
READERS = 2
ROUNDS = 20
SOAK_ROUNDS = 2500
READS_PER_ROUND = 200
TAIL = 777  # a file ends within a page, so that pages that were pushed too far would show in its length


def _page(version: int, index: int) -> bytes:
    return struct.pack("<QQ", version, index) * (PAGE // 16)


def _body(version: int, size: int) -> bytes:
    return b"".join(_page(version, index) for index in range(size // PAGE + 1))[:size]


def _version(data: bytes, index: int) -> int:
    """Of one whole page, or of the beginning of one. All of it must be of that version, and of that page."""
    version = int(struct.unpack_from("<Q", data)[0])
    assert data == (_page(version, index) if version else bytes(PAGE))[: len(data)]
    return version


def _pushed_bytes(mounted: Mounted) -> int:
    counters: dict[str, int] = mounted.status()["counters"]
    return counters.get("pushed_bytes", 0)


class Readers:
    """Threads that run until the block ends; what one of them raises is raised there."""

    def __init__(self, work: Callable[[random.Random], None]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._turn = threading.Condition()
        self._reads = 0
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(READERS)]

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        try:
            while not self._stop.is_set():
                self._work(draw)
                with self._turn:
                    self._reads += 1
                    self._turn.notify_all()
        except BaseException as error:
            with self._turn:
                self._failures.append(error)
                self._turn.notify_all()

    def go_on(self, count: int) -> None:
        """Return when they did their work `count` times more, or one has failed."""
        with self._turn:
            until = self._reads + count
            assert self._turn.wait_for(lambda: self._failures or self._reads >= until, 120)
        self.check()

    def check(self) -> None:
        """Raise what a reader raised."""
        if self._failures:
            raise self._failures[0]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        yield fd
    finally:
        os.close(fd)


def _rounds(rounds: int, one: Callable[[Readers, int], None], work: Callable[[random.Random], None]) -> None:
    with Readers(work) as readers:
        for version in range(2, rounds + 2):
            one(readers, version)
            readers.check()


class Shared:
    """One file that this node reads at random and writes: what each page may hold at least."""

    def __init__(self, path: Path, pages: int) -> None:
        self.path = path
        self.pages = pages
        self.size = pages * PAGE + TAIL
        self.least = [1] * pages
        self.cuts = 0  # odd while the file is cut and has not got its pages back
        path.write_bytes(_body(1, self.size))

    def read_one(self, fd: int, draw: random.Random) -> None:
        """Read a page and check it. Now and then what the kernel has is dropped, so that reads come to the mount."""
        if draw.random() < 0.01:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        index = draw.randrange(self.pages)
        least, cuts = self.least[index], self.cuts
        data = os.pread(fd, PAGE, index * PAGE)
        words = set(struct.iter_unpack("<QQ", data[: len(data) // 16 * 16]))
        if cuts == self.cuts and not cuts % 2:
            assert len(data) == PAGE
        else:
            words.discard((0, 0))  # where the file was cut
        assert {place for _, place in words} <= {index}
        assert all(version >= least for version, _ in words), f"page {index}: {words} after {least} was written"
        assert os.fstat(fd).st_size <= self.size

    def write(self, version: int, draw: random.Random) -> None:
        """Some pages anew, and some of them through a mapping."""
        with _opened(self.path, os.O_RDWR) as fd:
            for index in draw.sample(range(self.pages), 8):
                os.pwrite(fd, _page(version, index), index * PAGE)
                self.least[index] = version
            with mmap.mmap(fd, self.size) as mapped:
                for index in draw.sample(range(self.pages), 4):
                    mapped[index * PAGE : (index + 1) * PAGE] = _page(version, index)
                    self.least[index] = version

    def cut(self, version: int, draw: random.Random, readers: Readers) -> None:
        """Make it shorter by its path or by O_TRUNC, look at its length while all read, and give it its pages back."""
        kept = draw.choice([0, 0, draw.randrange(self.pages)])
        length = kept * PAGE + (TAIL if kept else 0)
        self.cuts += 1
        if length:
            os.truncate(self.path, length)
        else:
            os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        for index in range(kept + bool(length), self.pages):
            self.least[index] = version
        assert self.path.stat().st_size == length
        readers.go_on(READS_PER_ROUND // 4)
        assert self.path.stat().st_size == length
        with _opened(self.path, os.O_RDWR) as fd:
            os.pwrite(fd, _body(version, self.size)[kept * PAGE :], kept * PAGE)
        self.least[kept] = version
        self.cuts += 1


def _a_writer_and_readers_on_one_node(here: Mounted, rounds: int) -> None:
    shared, draw = Shared(here.path / "f", 300), random.Random(0)
    with contextlib.ExitStack() as held:
        fd = held.enter_context(_opened(shared.path))

        def work(draw: random.Random) -> None:
            if draw.random() < 0.9:
                shared.read_one(fd, draw)
                return
            with _opened(shared.path) as own:
                for _ in range(20):
                    shared.read_one(own, draw)

        def one(readers: Readers, version: int) -> None:
            if version % 3:
                shared.write(version, draw)
            else:
                shared.cut(version, draw, readers)
            readers.go_on(READS_PER_ROUND)
            assert shared.path.stat().st_size == shared.size

        _rounds(rounds, one, work)
    assert _pushed_bytes(here) > rounds * PAGE
    body = shared.path.read_bytes()
    for index in range(shared.pages):
        assert _version(body[index * PAGE : (index + 1) * PAGE], index) >= shared.least[index]


class Published:
    """One file that one node reads at random while another publishes whole versions of different lengths."""

    def __init__(self, reader: Path, writer: Path) -> None:
        self.reader, self.writer = reader, writer
        self.closed = 0  # the newest version that was closed
        self.sizes: dict[int, int] = {}

    def publish(self, version: int) -> None:
        """A version longer or shorter than the last one; they have no length in common with whole pages."""
        size = (40 + version * 37 % 200) * PAGE + TAIL + version
        self.sizes[version] = size
        self.writer.write_bytes(_body(version, size))
        self.closed = version

    def read_some(self, draw: random.Random) -> None:
        """Open, and read pages: all of one version, and of none that was replaced before the open."""
        least = self.closed
        seen = set()
        with _opened(self.reader) as fd:
            if draw.random() < 0.3:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(draw.choice([5, 200])):
                index = draw.randrange(45)
                try:
                    data = os.pread(fd, PAGE, index * PAGE)
                except OSError as error:
                    if error.errno != errno.ESTALE:  # bytes that were not here yet went with their version
                        raise
                    continue
                if data:  # of a handle whose file is shorter by now, the kernel reads no further
                    seen.add(_version(data, index))
                assert os.fstat(fd).st_size in self.sizes.values()
        assert len(seen) <= 1
        assert not seen or seen.pop() >= least


def _a_node_that_reads_and_one_that_publishes(here: Mounted, there: Mounted, rounds: int) -> None:
    published = Published(here.path / "f", there.path / "f")
    published.publish(1)

    def one(readers: Readers, version: int) -> None:
        published.publish(version)
        readers.go_on(4)

    _rounds(rounds, one, published.read_some)
    assert published.reader.read_bytes() == _body(published.closed, published.sizes[published.closed])
    assert _pushed_bytes(here) > 0


def test_random_readers_see_each_write_and_cut_of_this_node(mount: MountFactory) -> None:
    _a_writer_and_readers_on_one_node(mount("a"), ROUNDS)


def test_random_readers_see_each_write_and_cut_of_this_node_with_write_back(mount: MountFactory) -> None:
    _a_writer_and_readers_on_one_node(mount("a", "--write-back", "--publish-delay", "0s"), ROUNDS)


def test_random_readers_see_one_version_and_each_that_another_node_publishes(mount: MountFactory) -> None:
    _a_node_that_reads_and_one_that_publishes(mount("a"), mount("b"), ROUNDS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_rounds_of_random_readers_and_a_writer_on_one_node(mount: MountFactory) -> None:
    _a_writer_and_readers_on_one_node(mount("a"), SOAK_ROUNDS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_rounds_of_random_readers_and_a_node_that_publishes(mount: MountFactory) -> None:
    _a_node_that_reads_and_one_that_publishes(mount("a"), mount("b"), SOAK_ROUNDS)


def test_random_reads_of_a_file_soon_come_to_the_mount_no_more(mount: MountFactory) -> None:
    here = mount("a")
    size = 64 * PAGE + TAIL
    (here.path / "f").write_bytes(_body(1, size))
    draw = random.Random(3)
    with _opened(here.path / "f") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        while _pushed_bytes(here) < 64 * PAGE:
            for _ in range(10):
                index = draw.randrange(65)
                _version(os.pread(fd, PAGE, index * PAGE), index)
        assert os.fstat(fd).st_size == size
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == _body(1, size)
    assert _pushed_bytes(here) == 64 * PAGE
