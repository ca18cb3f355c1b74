"""Files through mounts: a large one and small ones, written on one machine, read on another one and on the same.

Every file is read back and compared. A volume is new for each repeat, and its first publication, which waits until all
nodes must know the new writer (4 s), is done before the clock runs. Local reads come from a mount with an empty cache,
so from this machine's Kubo; those of another machine come right after close(), while the cluster has only begun to
copy. `s3vol flush` is a process of its own, which is in its row for both kinds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_bench.places import IPFS, MINIO, Places, Volume
from ipfs_bench.report import Figure
from s3vol_bench.errors import BenchError

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 4096
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Amount:
    """How much a repeat is."""

    large_bytes: int
    small_files: int  # one publication each
    back_files: int  # with --write-back: published together
    repeats: int


def figures() -> dict[str, Figure]:
    """The rows, empty."""
    per_s = "/s"
    return {
        "write": Figure("sequential write, 1 MiB blocks, close() = published", "MB/s"),
        "read-local": Figure("sequential read, empty cache, same machine", "MB/s"),
        "read-other": Figure("sequential read right after close(), other machine", "MB/s"),
        "create": Figure("files of 4 KiB created, close() = published", per_s),
        "create-back": Figure("the same with --write-back, until `s3vol flush` returned", per_s),
        "small-local": Figure("files of 4 KiB read, empty cache, same machine", per_s),
        "small-other": Figure("files of 4 KiB read, empty cache, other machine", per_s),
    }


def measure(places: Places, amount: Amount, say: Callable[[str], None]) -> list[Figure]:
    """All rows on both kinds, in turn. Raises BenchError for bytes that are not what was written."""
    rows = figures()
    for repeat in range(amount.repeats):
        for kind in (IPFS, MINIO) if repeat % 2 == 0 else (MINIO, IPFS):
            say(f"files, repeat {repeat + 1} of {amount.repeats}: {kind}")
            volume = places.volume(kind)
            try:
                for name, value in _repeat(volume, amount).items():
                    rows[name].add(kind, value)
            finally:
                volume.close()
    return list(rows.values())


def _repeat(volume: Volume, amount: Amount) -> dict[str, float]:
    large = [random.randbytes(_BLOCK_BYTES) for _ in range(amount.large_bytes // _BLOCK_BYTES)]
    small = _bodies(amount.small_files)
    one, two = volume.mount(0), volume.mount(1)
    (one.path / "first").write_bytes(b"x")
    found = {"write": _rate(amount.large_bytes / _MB, lambda: _write(one.path / "large", large))}
    found["read-other"] = _rate(amount.large_bytes / _MB, lambda: _read(two.path / "large", large))
    found["create"] = _rate(len(small), lambda: _create(one.path, small))
    found["small-other"] = _rate(len(small), lambda: _compare(two.path, small))
    two.umount()
    one.umount()
    fresh = volume.mount(0, "--read-only", cache="-empty")
    found["read-local"] = _rate(amount.large_bytes / _MB, lambda: _read(fresh.path / "large", large))
    found["small-local"] = _rate(len(small), lambda: _compare(fresh.path, small))
    fresh.umount()
    back, many = volume.mount(0, "--write-back"), _bodies(amount.back_files)

    def create_and_flush() -> None:
        _create(back.path, many)
        back.flush()

    (back.path / "first").write_bytes(b"y")
    back.flush()
    found["create-back"] = _rate(len(many), create_and_flush)
    back.umount()
    return found


def _rate(amount: float, work: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    work()
    return amount / (time.perf_counter() - began_s)


def _bodies(count: int) -> list[bytes]:
    return [random.randbytes(_SMALL_BYTES) for _ in range(count)]


def _write(path: Path, blocks: Sequence[bytes]) -> None:
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block)


def _read(path: Path, blocks: Sequence[bytes]) -> None:
    with path.open("rb", buffering=0) as file:
        for number, block in enumerate(blocks):
            _check(path, number, file.read(_BLOCK_BYTES), block)
        _check(path, len(blocks), file.read(1), b"")


def _create(folder: Path, bodies: Sequence[bytes]) -> None:
    (folder / f"d{len(bodies)}").mkdir()
    for number, body in enumerate(bodies):
        (folder / f"d{len(bodies)}" / f"f{number}").write_bytes(body)


def _compare(folder: Path, bodies: Sequence[bytes]) -> None:
    for number, body in enumerate(bodies):
        path = folder / f"d{len(bodies)}" / f"f{number}"
        _check(path, 0, path.read_bytes(), body)


def _check(path: Path, number: int, found: bytes, expected: bytes) -> None:
    if found != expected:
        raise BenchError(f"{path}: block {number} is not what was written")
