"""Random access, readers beside writers, appends that must be durable, and the first byte.

The files that are read and written at random are written by the first mount, so that they are in the file system's own
cache; `randread-4k-cold` reads after a new mount. First bytes and appends are timed here and not by fio, whose clock
starts after open() has returned.
"""

from __future__ import annotations

import os
import statistics
import time

from s3vol_bench import fio
from s3vol_bench.promise import Expected
from s3vol_bench.work.place import Outcome, Place, touch_memory

FIRST_BYTES = 8  # files; the figure is their median
FIRST_SIZE = 1 << 20
APPENDED = b"x" * 199 + b"\n"


def prepare(place: Place) -> Outcome:
    """The file for random access and those for first bytes; no figure."""
    size = place.sizes.medium_bytes
    touch_memory(2 * size)
    _, timed = place.fio("write", "write", name="random", jobs=2, size=size, bs="1m", direct=0)
    place.fio("write-files", "write", name="first", files=FIRST_BYTES, size=FIRST_SIZE)
    firsts = {f"first.{number}": place.content(FIRST_SIZE) for number in range(FIRST_BYTES)}
    return Outcome(0.0, timed, Expected({f"random.{job}": place.content(size) for job in range(2)} | firsts))


def _randread(place: Place, block: str) -> Outcome:
    size = place.sizes.medium_bytes
    place.drop_caches()
    said, timed = place.fio("randread", "read", name="random.0", size=size, bs=block, runtime=place.sizes.random_s)
    place.check_read("random.0", size)
    return Outcome(fio.operations_per_s(said, "read"), timed)


def randread_4k(place: Place) -> Outcome:
    """4 KiB at a time, until the time is over."""
    return _randread(place, "4k")


def randread_256k(place: Place) -> Outcome:
    """256 KiB at a time."""
    return _randread(place, "256k")


def _randwrite(place: Place, block: str, writes: int) -> Outcome:
    size = place.sizes.medium_bytes
    said, timed = place.fio("randwrite", "write", name="random.1", size=size, bs=block, writes=writes)
    shown = (place.path / "random.1").read_bytes()
    written_bytes = int(said["write"]["io_bytes"]) // 2  # some blocks are hit more than once
    return Outcome(fio.operations_per_s(said, "write"), timed, Expected({"random.1": shown}, (), written_bytes))


def randwrite_4k(place: Place) -> Outcome:
    """The fsync at the end counts."""
    return _randwrite(place, "4k", place.sizes.random_writes)


def randwrite_256k(place: Place) -> Outcome:
    """As many bytes as a sixteenth of the writes of 4 KiB, and more than one."""
    return _randwrite(place, "256k", max(4, place.sizes.random_writes // 16))


def _mix(place: Place, readers: int, writers: int) -> Outcome:
    size, name = place.sizes.medium_bytes // 2, f"mix-{readers}-{writers}"
    place.fio("write", "write", name=f"{name}.r", jobs=readers, size=size, bs="1m", direct=0)
    place.drop_caches()
    said, timed = place.fio("mix", "read", "write", name=name, readers=readers, writers=writers, size=size)
    expected = Expected({f"{name}.w.{job}": place.content(size) for job in range(writers)})
    return Outcome(fio.megabytes_per_s(said, "read", "write"), timed, expected)


def mix_4r1w(place: Place) -> Outcome:
    """Mostly readers."""
    return _mix(place, 4, 1)


def mix_2r2w(place: Place) -> Outcome:
    """Half and half."""
    return _mix(place, 2, 2)


def mix_1r4w(place: Place) -> Outcome:
    """Mostly writers."""
    return _mix(place, 1, 4)


def append_fsync(place: Place) -> Outcome:
    """The bucket is looked at while the file is still open: what counts is the fsync."""
    appends = place.sizes.appends
    file = os.open(place.path / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def work() -> None:
        for _ in range(appends):
            os.write(file, APPENDED)
            os.fsync(file)

    try:
        _, timed = place.clock(work, appends)
    except BaseException:
        os.close(file)
        raise
    return Outcome(appends / timed.seconds, timed, Expected({"appended": APPENDED * appends}), lambda: os.close(file))


def first_byte(place: Place) -> Outcome:
    """open() and a read of one byte, of files that this mount has not seen."""
    took_s: list[float] = []

    def work() -> None:
        for number in range(FIRST_BYTES):
            began_s = time.perf_counter()
            file = os.open(place.path / f"first.{number}", os.O_RDONLY)
            os.pread(file, 1, 0)
            took_s.append(time.perf_counter() - began_s)
            os.close(file)

    place.drop_caches()
    _, timed = place.clock(work, FIRST_BYTES)
    return Outcome(statistics.median(took_s) * 1000, timed)
