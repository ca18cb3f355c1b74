"""fsx: random reads, writes, truncations and memory maps of one file against its own model of the bytes.

Theory of operation. A `Course` is a seed and the weights of operations; the same course is the same sequence of
operations always. It can be cut: fsx begins at any operation, and brings the file to the state of its model first. What
lies between two pieces (an unmount, another machine, an emptied cache) is checked by us: `expected` makes the same
file on the local disk, where fsx only simulates the operations before, and the bytes have to be equal.

fsx has no option for direct I/O, so a library of a few lines is preloaded into it (direct.c); the program's memory maps
then meet its direct reads and writes on one descriptor.

Left out of the operations: punching holes, which the kernel refuses here (docs/SEMANTICS.md), and copy_file_range where
a course is cut, because fsx carries that out even when it only simulates.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from s3vol.types import MIB
from tests.judges.base import Done, Judge, Verdict, run
from tests.kernel.rig import tool

_SOURCE = Path(__file__).with_name("direct.c")
_PIECE_BYTES = 37_000  # of a comparison: odd, so that reads begin and end anywhere in a page and in a chunk


@dataclass(frozen=True, slots=True)
class Course:
    """One sequence of operations.

    Files of up to `flen_bytes`; operations of up to `opsize_bytes`. `msync`: each write to a map is followed by one.
    """

    seed: int
    operations: int
    flen_bytes: int = 256 * 1024
    opsize_bytes: int = 65536
    truncate: float = 2.0
    sync: float = 0.2
    copy_file_range: float = 0.0
    msync: bool = True

    def config(self) -> str:
        """The configuration file of fsx."""
        return f"""\
flen = {self.flen_bytes}
nomsyncafterwrite = {str(not self.msync).lower()}
[opsize]
max = {self.opsize_bytes}
min = 0
align = 1
[weights]
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = {self.truncate}
close_open = {self.sync}
fsync = {self.sync}
fdatasync = {self.sync}
invalidate = 1
sendfile = 2
posix_fadvise = 2
posix_fallocate = 1
copy_file_range = {self.copy_file_range}
"""


def whole(seed: int, operations: int) -> Course:
    """A course on a small file with every operation that the kernel offers on FUSE, as a user of fsx would run it."""
    return Course(seed, operations, copy_file_range=1.0)


def across_borders(seed: int, operations: int) -> Course:
    """A course on a file of up to 24 MiB: chunks of 1 MiB, one PUT up to 16 MiB, parts of 8 MiB beyond."""
    return Course(seed, operations, flen_bytes=24 * MIB, truncate=0.4, sync=0.1, msync=False)


def exercise(
    file: Path,
    course: Course,
    first: int = 1,
    last: int | None = None,
    *,
    preload: Path | None = None,
    timeout_s: float,
) -> Done:
    """Operations `first` to `last` of a course on `file`; what went before them is written as one image."""
    last = last or course.operations
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "fsx.toml")
        config.write_text(course.config())
        numbers = ["-S", str(course.seed), "-b", str(first), "-N", str(last)]
        extra = {} if preload is None else {"LD_PRELOAD": str(preload)}
        return run([tool("fsx"), "-f", config, "-P", folder, *numbers, file], timeout_s=timeout_s, extra=extra)


def expected(course: Course, last: int, file: Path) -> bytes:
    """What the file holds after operation `last`. `file` is a place on a local disk to make it in."""
    done = exercise(file, course, last, last, timeout_s=300)
    assert done.status == 0, done.said
    try:
        return file.read_bytes()
    finally:
        file.unlink()


def first_difference(file: Path, wanted: bytes, seed: int) -> str | None:
    """Read `file` in pieces in random order; says what is different, None when nothing is."""
    if file.stat().st_size != len(wanted):
        return f"the length is {file.stat().st_size} and not {len(wanted)}"
    offsets = list(range(0, len(wanted), _PIECE_BYTES))
    random.Random(seed).shuffle(offsets)
    with file.open("rb", buffering=0) as opened:
        for offset in offsets:
            opened.seek(offset)
            piece = wanted[offset : offset + _PIECE_BYTES]
            if opened.read(len(piece)) != piece:
                return f"the bytes from {offset} to {offset + len(piece)} are others"
    return None


def build_direct(folder: Path) -> Path:
    """Compile the library that opens with O_DIRECT."""
    library = folder / "direct.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True, timeout=60)
    return library


def fsx(*seeds: int, operations: int, timeout_s: float = 240.0) -> Judge:
    """A judge: whole courses, one after the other."""

    def judge(folder: Path) -> Verdict:
        said, failed = "", set()
        for seed in seeds:
            done = exercise(folder / f"fsx-{seed}", whole(seed, operations), timeout_s=timeout_s)
            if done.status != 0:
                failed.add(f"seed {seed}")
                said += done.said[-4000:]
        return Verdict(frozenset(f"seed {seed}" for seed in seeds), frozenset(failed), said)

    return judge
