"""Small files whose bytes the kernel gets with the open: read without the mount, and never older than the open."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Mounted
from tests.kernel.rig import Bucket

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

SIZES = (1, 4095, 4096, 4097, 20_000, 65_536)
NAMES = 4
READERS = 3
ROUNDS = 60


def _body(version: int, size: int) -> bytes:
    """Every four bytes say which version this is."""
    return (version.to_bytes(4, "little") * (size // 4 + 1))[:size]


def _put(bucket: Bucket, key: str, body: bytes) -> None:
    """Another client makes or replaces an object."""
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=body)


def _check(data: bytes, least: int, most: int) -> None:
    """All of one version, which was there at some time since the open began."""
    found = [version for version in range(least, most + 1) if data == _body(version, len(data))]
    assert found, f"{data[:12]!r} in {len(data)} bytes is none of the versions {least} to {most}"
    assert len(data) in SIZES


@contextlib.contextmanager
def _stopped(mounted: Mounted) -> Iterator[threading.Event]:
    """The mount process answers nothing in this block. The event is set if it had to, for the block not to hang."""
    late = threading.Event()

    def go_on() -> None:
        late.set()
        os.kill(mounted.pid, signal.SIGCONT)

    timer = threading.Timer(20, go_on)
    os.kill(mounted.pid, signal.SIGSTOP)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        os.kill(mounted.pid, signal.SIGCONT)


def test_an_opened_small_file_is_read_without_the_mount(mount: MountFactory, bucket: Bucket) -> None:
    for size in SIZES:
        _put(bucket, f"f{size}", _body(7, size))
    here = mount("a", "--attr-ttl", "60s")
    with contextlib.ExitStack() as held:
        files = [(held.enter_context((here.path / f"f{size}").open("rb", buffering=0)), size) for size in SIZES]
        with _stopped(here) as late:
            for file, size in files:
                assert file.read() == _body(7, size)
                mapped = held.enter_context(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
                assert mapped[:] == _body(7, size)  # not closed here: of a close the mount is told
            assert not late.is_set()
    assert here.status()["counters"]["pushed_bytes"] == sum(SIZES)


class _Names:
    """Files that somebody replaces while others read them: the newest version that was closed, and that was begun."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / f"n{number}" for number in range(NAMES)]
        self.closed = [1] * NAMES
        self.begun = [1] * NAMES

    def read_one(self, draw: random.Random) -> None:
        """Open, read all of it, and perhaps again a moment later."""
        number = draw.randrange(NAMES)
        least = self.closed[number]
        try:
            with self.paths[number].open("rb", buffering=0) as file:
                data = file.read()
                _check(data, least, self.begun[number])
                if draw.random() < 0.3:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                again = os.pread(file.fileno(), 1 << 20, 0)
                shorter = min(len(again), len(data))  # of another version's length the kernel may know by now
                assert again[:shorter] == data[:shorter]
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise


def _readers(names: _Names, rounds: Iterator[None]) -> None:
    """Read in threads until the rounds are over; raise what went wrong in one."""
    stop, failures = threading.Event(), []

    def run(seed: int) -> None:
        draw = random.Random(seed)
        try:
            while not stop.is_set():
                names.read_one(draw)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        for _ in rounds:
            if failures:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    if failures:
        raise failures[0]


def _replaced_by_another_client(names: _Names, bucket: Bucket, draw: random.Random) -> Iterator[None]:
    for version in range(2, ROUNDS):
        number = draw.randrange(NAMES)
        names.begun[number] = version
        _put(bucket, f"n{number}", _body(version, draw.choice(SIZES)))
        names.closed[number] = version
        yield


def _replaced_by_programs(names: _Names, folder: Path, draw: random.Random) -> Iterator[None]:
    """By a rename over them: nobody sees a file in the middle of being written."""
    for version in range(2, ROUNDS):
        number = draw.randrange(NAMES)
        names.begun[number] = version
        body = _body(version, draw.choice(SIZES))
        new = folder / "new"
        new.write_bytes(body)
        new.replace(folder / f"n{number}")
        names.closed[number] = version
        yield


def _made(bucket: Bucket) -> None:
    for number in range(NAMES):
        _put(bucket, f"n{number}", _body(1, SIZES[number]))


def test_readers_see_each_version_that_another_client_puts(mount: MountFactory, bucket: Bucket) -> None:
    _made(bucket)
    here = mount("a")
    names = _Names(here.path)
    _readers(names, _replaced_by_another_client(names, bucket, random.Random(1)))
    assert here.status()["counters"]["pushed_bytes"] > 0


def test_readers_see_each_version_that_another_node_renames_into_place(mount: MountFactory, bucket: Bucket) -> None:
    _made(bucket)
    here, there = mount("a"), mount("b")
    names = _Names(here.path)
    _readers(names, _replaced_by_programs(names, there.path, random.Random(2)))


def test_readers_see_each_version_that_is_renamed_into_place_beside_them(mount: MountFactory, bucket: Bucket) -> None:
    _made(bucket)
    here = mount("a")
    names = _Names(here.path)
    _readers(names, _replaced_by_programs(names, here.path, random.Random(3)))


def test_a_reader_keeps_its_version_when_another_open_made_the_kernel_drop_it(
    mount: MountFactory, bucket: Bucket
) -> None:
    _put(bucket, "f", _body(1, 20_000))
    here = mount("a")
    with (here.path / "f").open("rb", buffering=0) as former:
        _put(bucket, "f", _body(2, 20_000))
        assert (here.path / "f").read_bytes() == _body(2, 20_000)
        assert former.read() == _body(1, 20_000)


def test_bytes_that_a_program_changes_after_an_open_brought_them_are_published_whole(
    mount: MountFactory, bucket: Bucket
) -> None:
    _put(bucket, "f", _body(1, 20_000))
    here = mount("a")
    with (here.path / "f").open("rb", buffering=0) as reader:
        with (here.path / "f").open("r+b", buffering=0) as writer:
            os.pwrite(writer.fileno(), b"changed", 10_001)
        expected = _body(1, 20_000)[:10_001] + b"changed" + _body(1, 20_000)[10_008:]
        assert reader.read() == expected
    assert bucket.read("f") == expected
