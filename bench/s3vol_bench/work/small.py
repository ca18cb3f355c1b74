"""Many small files: what object stores are worst at, and programs do most.

The first mount creates, the second one, with an empty cache, looks, reads, renames and deletes. One thread and eight:
latency, and what the file system makes of concurrency.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from pathlib import Path

from s3vol_bench.errors import BenchError
from s3vol_bench.promise import Expected
from s3vol_bench.work.place import SMALL_BYTES, Outcome, Place, body, spread

ONE_BYTES = 8  # files of one byte; the figure is their median


def names(folder: str, count: int) -> list[str]:
    """Paths of small files below a directory."""
    return [f"{folder}/f{number:05}" for number in range(count)]


def _write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(content)


def _create(place: Place, folder: str, threads: int) -> Outcome:
    bodies = {name: body(name) for name in names(folder, place.sizes.small_files)}
    (place.path / folder).mkdir()
    _, timed = place.clock(
        lambda: spread(lambda name: _write(place.path / name, bodies[name]), list(bodies), threads), len(bodies)
    )
    return Outcome(len(bodies) / timed.seconds, timed, Expected(bodies))


def create_1(place: Place) -> Outcome:
    """Open, write 4 KiB, close; one after the other."""
    return _create(place, "one", 1)


def create_8(place: Place) -> Outcome:
    """From eight threads, in one directory."""
    return _create(place, "eight", 8)


def one_byte(place: Place) -> Outcome:
    """The latency of the smallest write there is; open and close count."""
    took_s: list[float] = []

    def work() -> None:
        for number in range(ONE_BYTES):
            began_s = time.perf_counter()
            _write(place.path / f"byte.{number}", b"x")
            took_s.append(time.perf_counter() - began_s)

    _, timed = place.clock(work, ONE_BYTES)
    expected = Expected({f"byte.{number}": b"x" for number in range(ONE_BYTES)})
    return Outcome(statistics.median(took_s) * 1000, timed, expected)


def create_empty(place: Place, count: int) -> Outcome:
    """fio's filecreate engine."""
    (place.path / f"empty-{count}").mkdir()
    inner = dataclasses.replace(place, path=place.path / f"empty-{count}")
    said, timed = inner.fio("create", name="e", files=count)
    seconds = said["job_runtime"] / 1000
    expected = Expected({f"empty-{count}/e.{number}": b"" for number in range(count)})
    return Outcome(count / max(seconds, 0.001), timed, expected)


def stat_warm(place: Place) -> Outcome:
    """Files that this mount has just made."""
    paths = [place.path / name for name in names("one", place.sizes.small_files)]

    def look() -> None:
        for path in paths:
            os.stat(path)

    look()
    _, timed = place.clock(look, len(paths))
    return Outcome(len(paths) / timed.seconds, timed)


def stat_cold(place: Place) -> Outcome:
    """What `ls -lR` does: read the directories and look at every entry."""

    def look() -> int:
        found = 0
        for folder in ("one", "eight"):
            with os.scandir(place.path / folder) as entries:
                found += sum(entry.stat().st_size == SMALL_BYTES for entry in entries)
        return found

    wanted = 2 * place.sizes.small_files
    place.drop_caches()
    found, timed = place.clock(look, wanted)
    if found != wanted:
        raise BenchError(f"stat-cold: {found} of {wanted} files have the right size")
    return Outcome(wanted / timed.seconds, timed)


def _read(place: Place, folder: str, threads: int) -> Outcome:
    wanted = names(folder, place.sizes.small_files)
    place.drop_caches()
    got, timed = place.clock(
        lambda: spread(lambda name: (place.path / name).read_bytes(), wanted, threads), len(wanted)
    )
    wrong = next((name for name, content in zip(wanted, got, strict=True) if content != body(name)), None)
    if wrong:
        raise BenchError(f"{wrong}: other bytes were read than written")
    return Outcome(len(wanted) / timed.seconds, timed)


def read_cold_1(place: Place) -> Outcome:
    """In the order of the directory."""
    return _read(place, "one", 1)


def read_cold_8(place: Place) -> Outcome:
    """From eight threads."""
    return _read(place, "eight", 8)


def rename(place: Place) -> Outcome:
    """Half of the files, within their directory."""
    half = names("one", place.sizes.small_files // 2)

    def work() -> None:
        for name in half:
            os.rename(place.path / name, place.path / f"{name}.renamed")

    _, timed = place.clock(work, len(half))
    expected = Expected({f"{name}.renamed": body(name) for name in half}, tuple(half), written_bytes=0)
    return Outcome(len(half) / timed.seconds, timed, expected)


def rename_directory(place: Place) -> Outcome:
    """All small files in it are other objects afterwards."""
    _, timed = place.clock(lambda: os.rename(place.path / "eight", place.path / "moved"))
    moved = names("moved", place.sizes.small_files)
    bodies = {name: body(name.replace("moved", "eight", 1)) for name in moved}
    expected = Expected(bodies, ("eight",), written_bytes=0)
    return Outcome(timed.seconds, timed, expected)


def _delete(place: Place, folder: str, threads: int) -> Outcome:
    paths = [str(path) for path in sorted((place.path / folder).iterdir())]
    _, timed = place.clock(lambda: spread(os.unlink, paths, threads), len(paths))
    return Outcome(len(paths) / timed.seconds, timed, Expected({}, tuple(f"{folder}/{Path(p).name}" for p in paths)))


def delete_1(place: Place) -> Outcome:
    """One after the other."""
    return _delete(place, "one", 1)


def delete_8(place: Place) -> Outcome:
    """From eight threads; what the step before has renamed, where that could be done."""
    return _delete(place, "moved" if (place.path / "moved").is_dir() else "eight", 8)
