"""Where the time of one operation goes: the program, each room of the mount process, and waiting.

Theory of operation. An operation is repeated for a second or two, and what it took is split: the time of the clock,
the processor time of the program (its system calls included), and that of the mount process, in kernel mode and in
user mode. py-spy then looks at the mount process while the same goes on again; the share of samples in a room is that
room's share of the time in user mode. A sample belongs to the innermost frame that is ours or one of the libraries'
below; what the standard library does belongs to who called it. pyfuse3 is compiled and shows one frame, which is
counted with trio's, which calls it. Samples of threads that wait for work, for events or for an answer are left out by
the place where they wait: on some systems py-spy takes a waiting thread for a busy one. What obstore computes is among
them; it is little beside its waiting, and is spread over the rooms.

What is left of the clock's time is waiting: for the endpoint, the disk, for a processor that something else uses, and
for the kernel to switch between the two processes. For operations that send a request, the time of the same request
without a file system is shown beside it; it is contained in the waiting.

Rejected: cProfile in the mount process (it slows small functions more than large ones), and py-spy's times (it counts
samples; only their shares are right).
"""

from __future__ import annotations

import mmap
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s3vol_bench import usage
from s3vol_bench.endpoint import Room
from s3vol_bench.errors import BenchError
from s3vol_bench.result import Stage
from s3vol_bench.rows import TINY
from s3vol_bench.targets.base import Ground, Mounted, Target, drop_pages, mounted
from s3vol_bench.targets.plain import Plain

MEASURED_S = 1.5
PROFILED_S = 3
_RATE_HZ = 250  # more costs the process that is looked at
_FILE_BYTES = 64 << 20
_COLD_FILES = 16  # a few seconds of reading
_BLOCK_BYTES, _PIECE_BYTES = 4096, 1 << 20
_IDLE_S = 0.05
_ROOMS = (  # a part of a file's name -> the stage; the first match wins
    ("/s3vol_fuse/", "s3vol_fuse: decode, encode"),
    ("/s3vol/fs/", "s3vol/fs: what it means"),
    ("/s3vol/cache/", "s3vol/cache: bytes, journal, their I/O"),
    ("/s3vol/store/", "s3vol/store: requests"),
    ("/obstore/", "s3vol/store: requests"),
    ("/botocore/", "s3vol/store: requests"),
    ("/urllib3/", "s3vol/store: requests"),
    ("/trio/", "trio and pyfuse3: tasks, /dev/fuse"),
    ("/outcome/", "trio and pyfuse3: tasks, /dev/fuse"),
    ("pyfuse3", "trio and pyfuse3: tasks, /dev/fuse"),
)
_WAITING = re.compile(  # innermost frames: a worker thread without work, epoll, the journal's queue, a request
    r"(^|\.)(_work \(.*/_thread_cache|get_events \(.*/_io_epoll|_run \(.*/cache/journal|\w+ \(.*/store/s3_calls)\.py"
)
OTHER = "mount process, other"
PROGRAM, KERNEL = "the program and its system calls", "system calls of the mount process"
WAITING = "waiting: endpoint, disk, switches"
_FRAME = re.compile(r"\((.*?)(?::\d+)?\)$")


@dataclass(frozen=True, slots=True)
class Operation:
    """What is repeated. `work` does it until its argument (of time.perf_counter) has come; how often it did."""

    name: str
    work: Callable[[float], int]
    plain_us: float | None = None  # of the same request without a file system


def stage_of(stack: str) -> str:
    """The stage that a sample of py-spy (frames from the outermost, separated by `;`) belongs to."""
    for frame in reversed(stack.split(";")):
        found = _FRAME.search(frame)
        for part, stage in _ROOMS if found else ():
            if found and part in found[1]:
                return stage
    return OTHER


def shares(raw: str) -> dict[str, float]:
    """Of each stage, from what py-spy writes with `--format raw`: a line for each stack, with a count at its end."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if not _WAITING.search(stack.rpartition(";")[2]):
            counts[stage_of(stack)] += int(count)
    total = sum(counts.values())
    return {stage: count / total for stage, count in counts.most_common()} if total else {}


def measure(room: Room, target: Target, scratch: Path, say: Callable[[str], None]) -> tuple[Stage, ...]:
    """All operations on a mount of `target`. Raises BenchError."""
    below, found = "stages/", list[Stage]()
    base = scratch / "stages"
    (base / "state").mkdir(parents=True)
    plain = Plain(room.endpoint, "stages-plain/", TINY, random.randbytes(512))
    beside = Plain(room.endpoint, below, TINY, random.randbytes(512))
    try:
        groups: tuple[Callable[[Mounted], list[Operation]], ...] = (
            lambda mount: _writing(mount, plain),
            _reading,
            lambda mount: _reading_cold(mount, beside),
        )
        for number, operations in enumerate(groups):
            ground = Ground(room.endpoint, below, base / str(number), base / "state")
            ground.folder.mkdir()
            with mounted(target, ground) as mount:
                for operation in operations(mount):
                    say(f"stages of {operation.name}")
                    found += _split(operation, mount)
            shutil.rmtree(ground.folder)
    finally:
        room.clean(below)
        room.clean("stages-plain/")
    return tuple(found)


def _split(operation: Operation, mount: Mounted) -> list[Stage]:
    before, cpu_s, began_s = usage.of(mount.pid), time.process_time(), time.perf_counter()
    count = operation.work(began_s + MEASURED_S)
    wall_us = (time.perf_counter() - began_s) / count * 1e6
    program_us = (time.process_time() - cpu_s) / count * 1e6
    used = usage.of(mount.pid).since(before)
    user_us, system_us = used.user_s / count * 1e6, used.system_s / count * 1e6
    parts = {PROGRAM: program_us, KERNEL: system_us}
    parts |= {stage: share * user_us for stage, share in _profile(operation, mount).items()} or {OTHER: user_us}
    parts[WAITING] = max(0.0, wall_us - program_us - user_us - system_us)
    whole = [Stage(operation.name, "the whole", wall_us)]
    request = (
        [] if operation.plain_us is None else [Stage(operation.name, "(the same without s3vol)", operation.plain_us)]
    )
    return [*whole, *(Stage(operation.name, stage, us) for stage, us in parts.items()), *request]


def _profile(operation: Operation, mount: Mounted) -> dict[str, float]:
    """Shares of the stages in the mount process's time; nothing where py-spy is not installed."""
    if not shutil.which("py-spy"):
        return {}
    file = mount.cache.parent / "samples"
    command = [
        "py-spy",
        "record",
        "--pid",
        str(mount.pid),
        "--format",
        "raw",
        "--full-filenames",
        "--output",
        str(file),
    ]
    command += ["--rate", str(_RATE_HZ), "--duration", str(PROFILED_S)]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while spy.poll() is None:
        if not operation.work(time.perf_counter() + 0.25):
            time.sleep(_IDLE_S)  # all cold files are read; what is idle is not counted
    _, said = spy.communicate()
    if not file.exists():
        raise BenchError(f"py-spy: {' '.join(said.split())[-300:]} (it needs the rights of root)")
    return shares(file.read_text())


def _until(end_s: float, one: Callable[[], None]) -> int:
    count = 0
    while time.perf_counter() < end_s or not count:
        one()
        count += 1
    return count


def _writing(mount: Mounted, plain: Plain) -> list[Operation]:
    """Creates; and the file that the others read."""
    content = random.randbytes(_PIECE_BYTES)
    with (mount.path / "cached").open("wb", buffering=0) as file:
        for _ in range(_FILE_BYTES // _PIECE_BYTES):
            file.write(content)
    numbers = iter(range(1 << 30))
    small = content[:_BLOCK_BYTES]

    def create() -> None:
        with (mount.path / f"c{next(numbers)}").open("wb", buffering=0) as file:
            file.write(small)

    def put() -> None:
        plain.put(f"c{next(numbers)}", small)

    began_s = time.perf_counter()
    puts = _until(began_s + MEASURED_S, put)
    plain_us = (time.perf_counter() - began_s) / puts * 1e6
    return [Operation("create a file of 4 KiB", lambda end_s: _until(end_s, create), plain_us)]


def _reading(mount: Mounted) -> list[Operation]:
    """From the mount's own cache: 4 KiB past the page cache, and 1 MiB after another."""
    path = mount.path / "cached"
    with path.open("rb", buffering=0) as file:
        while file.read(_PIECE_BYTES):
            pass
    block = mmap.mmap(-1, _BLOCK_BYTES)  # O_DIRECT wants an aligned buffer

    def random_read(end_s: float) -> int:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            return _until(end_s, lambda: _check(os.preadv(file, [block], random.randrange(_FILE_BYTES >> 12) << 12)))
        finally:
            os.close(file)

    return [
        Operation("read 4 KiB at random, own cache", random_read),
        Operation("read 1 MiB in sequence, own cache", lambda end_s: _sequential(mount, path, end_s)),
    ]


def _reading_cold(mount: Mounted, beside: Plain) -> list[Operation]:
    """In no cache of this machine: files that were put beside the mount, each read once."""
    names = [f"cold{number}" for number in range(_COLD_FILES)]
    content = random.randbytes(_PIECE_BYTES) * (_FILE_BYTES // _PIECE_BYTES)
    for name in names:
        beside.upload(name, content)
    left = iter(names)

    def read(end_s: float) -> int:
        count = 0
        while time.perf_counter() < end_s and (name := next(left, None)):
            count += _read_through(mount.path / name)
        return count

    return [Operation("read 1 MiB in sequence, cold", read)]


def _sequential(mount: Mounted, path: Path, end_s: float) -> int:
    count = 0
    while time.perf_counter() < end_s:
        drop_pages(mount.cache)
        count += _read_through(path)
    return count


def _read_through(path: Path) -> int:
    """Read a file whose pages are dropped first; how many pieces it has."""
    buffer, count = bytearray(_PIECE_BYTES), 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.readinto(buffer):
            count += 1
    return count


def _check(got: int) -> None:
    if got != _BLOCK_BYTES:
        raise BenchError(f"a read of {_BLOCK_BYTES} bytes brought {got}")
