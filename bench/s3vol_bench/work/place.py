"""Where a step works, its clock, and what it hands back."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from s3vol_bench import fio, usage
from s3vol_bench.errors import BenchError
from s3vol_bench.promise import Expected, Pattern
from s3vol_bench.rows import Sizes

S = TypeVar("S")
T = TypeVar("T")

SMALL_BYTES = 4096
_TOUCHED_PIECE = bytes(1 << 20)
_PIECES = 4
_PIECE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Timed:
    """What a timed part took: seconds of this clock, what the mount process used, and operations it was made of."""

    seconds: float
    usage: usage.Usage
    operations: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure, and what has to be true for it to count. `release` is called after that was checked."""

    value: float
    timed: Timed
    expected: Expected = field(default_factory=Expected)
    release: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of a target. `pid` is the process whose use counts; None on the local disk."""

    path: Path
    scratch: Path  # on the local disk, for what is no part of the figure
    sizes: Sizes
    pattern: Path  # a file of PATTERN_BYTES
    pid: int | None = None
    drop_caches: Callable[[], None] = lambda: None
    mount_s: float = 0.0

    def clock(self, work: Callable[[], T], operations: int = 1) -> tuple[T, Timed]:
        """Run the timed part."""
        usage.reset_peak(self.pid)
        before, began_s = usage.of(self.pid), time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began_s
        return result, Timed(seconds, usage.of(self.pid).since(before), operations)

    def fio(self, job: str, *directions: str, **variables: object) -> tuple[dict[str, Any], Timed]:
        """Run a job file here. The seconds are fio's, which leave out its start."""
        said, timed = self.clock(lambda: fio.run(job, self.path, self.pattern, **variables))
        seconds = max(said[direction]["runtime"] for direction in directions) / 1000 if directions else timed.seconds
        return said, Timed(seconds, timed.usage, max(1, fio.operations(said, *directions)))

    def content(self, size: int) -> Pattern:
        """What fio has written into a file of this size."""
        return Pattern(self.pattern.read_bytes(), size)

    def check_read(self, name: str, size: int) -> None:
        """What the mount shows is what fio wrote. Raises BenchError."""
        content = self.content(size)
        with (self.path / name).open("rb", buffering=0) as file:
            for start in [0, *(random.randrange(size) for _ in range(_PIECES))]:
                file.seek(start)
                got = file.read(_PIECE_BYTES)
                if not got or got != content.piece(start, len(got)):
                    raise BenchError(f"{name}: other bytes were read than written, at {start}")


def body(name: str) -> bytes:
    """Content of a small file: 4 KiB that belong to its name."""
    return random.Random(name).randbytes(SMALL_BYTES)


def spread(work: Callable[[S], T], names: Sequence[S], threads: int) -> list[T]:
    """`work` on each name, from this many threads at once; the results in the order of the names."""
    if threads == 1:
        return [work(name) for name in names]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, names))


def touch_memory(size: int) -> None:
    """Have the machine back this much page cache with real memory, just before what is timed.

    A hypervisor takes back what a virtual machine does not use, after about two seconds, and gives it again page by
    page: seen, 256 MiB into the page cache at 0.3 GB/s then, and at 1.1 to 5 GB/s right after. That is a cost of the
    hypervisor; which of two measurements pays it is chance. Memory only: the disk stays idle.
    """
    folder = Path("/dev/shm")
    if not folder.is_dir() or shutil.disk_usage(folder).free < 2 * size:
        return
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(size // len(_TOUCHED_PIECE)):
            file.write(_TOUCHED_PIECE)
