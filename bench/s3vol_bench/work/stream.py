"""Long files from start to end, by fio: the figures that are published for file systems of this kind.

The first mount writes, the second one, with an empty cache, reads what the first has written: each cold row its own
files, none of which was touched before. `read-cached` comes last, on a file that was read cold before.
"""

from __future__ import annotations

from s3vol_bench import fio
from s3vol_bench.promise import Expected
from s3vol_bench.work.place import Outcome, Place, touch_memory

_5M_BYTES = 5 << 20
_JOBS = 4


def _write(place: Place, name: str, jobs: int, size: int, block: str, direct: int = 0) -> Outcome:
    touch_memory(2 * jobs * size)
    said, timed = place.fio("write", "write", name=name, jobs=jobs, size=size, bs=block, direct=direct)
    expected = Expected({f"{name}.{job}": place.content(size) for job in range(jobs)})
    return Outcome(fio.megabytes_per_s(said, "write"), timed, expected)


def _read(place: Place, name: str, jobs: int, size: int, block: str, direct: int = 0) -> Outcome:
    touch_memory(2 * jobs * size)
    place.drop_caches()
    said, timed = place.fio("read", "read", name=name, jobs=jobs, size=size, bs=block, direct=direct)
    place.check_read(f"{name}.0", size)
    return Outcome(fio.megabytes_per_s(said, "read"), timed)


def write_1(place: Place) -> Outcome:
    """One large file."""
    return _write(place, "large", 1, place.sizes.large_bytes, "1m")


def write_4(place: Place) -> Outcome:
    """Four files at once."""
    return _write(place, "four", _JOBS, place.sizes.medium_bytes, "1m")


def write_direct(place: Place) -> Outcome:
    """Past the page cache."""
    return _write(place, "direct", 1, place.sizes.medium_bytes, "256k", direct=1)


def write_5m(place: Place) -> Outcome:
    """Files of 5 MiB."""
    files = place.sizes.files_5m
    said, timed = place.fio("write-files", "write", name="five", files=files, size=_5M_BYTES)
    expected = Expected({f"five.{number}": place.content(_5M_BYTES) for number in range(files)})
    return Outcome(fio.megabytes_per_s(said, "write"), timed, expected)


def read_cold_1(place: Place) -> Outcome:
    """What `write_1` wrote."""
    return _read(place, "large", 1, place.sizes.large_bytes, "1m")


def read_cold_4(place: Place) -> Outcome:
    """What `write_4` wrote."""
    return _read(place, "four", _JOBS, place.sizes.medium_bytes, "256k")


def read_direct(place: Place) -> Outcome:
    """What `write_direct` wrote."""
    return _read(place, "direct", 1, place.sizes.medium_bytes, "256k", direct=1)


def read_5m(place: Place) -> Outcome:
    """What `write_5m` wrote."""
    files = place.sizes.files_5m
    place.drop_caches()
    said, timed = place.fio("read-files", "read", name="five", files=files, size=_5M_BYTES)
    for number in range(files):
        place.check_read(f"five.{number}", _5M_BYTES)
    return Outcome(fio.megabytes_per_s(said, "read"), timed)


def matrix_write(place: Place, jobs: int, direct: int, block: str) -> Outcome:
    """One of the combinations of --long; half a gigabyte in all."""
    size = max(place.sizes.large_bytes // 2 // jobs, 1 << 20)
    return _write(place, f"m-{jobs}-{direct}-{block}", jobs, size, block, direct)


def matrix_read(place: Place, jobs: int, direct: int, block: str) -> Outcome:
    """What `matrix_write` of the same combination wrote."""
    size = max(place.sizes.large_bytes // 2 // jobs, 1 << 20)
    return _read(place, f"m-{jobs}-{direct}-{block}", jobs, size, block, direct)
