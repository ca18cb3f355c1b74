"""The table of what is measured: one row a figure, with its unit, its direction and what it is meant to reach.

A goal is a ratio in one run, so that it holds on any machine. It is always written as "how many times better than":
for a time the ratio is turned over, and 1.0 means level. `peer` is the best other file system that keeps the same
promise, `limit` is the endpoint asked without a file system, `disk` is the local disk. Where the three numbers come
from: docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Promise(StrEnum):
    """What the return of close() and fsync() means."""

    BUCKET = "close = in the bucket"
    SOON = "close = soon in the bucket"


class Against(StrEnum):
    """What a row is compared with."""

    LIMIT = "limit"
    PEER = "peer"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Goal:
    """At least `ratio` times as good as what it is compared with, for targets with this promise."""

    against: Against
    ratio: float
    promise: Promise = Promise.BUCKET


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `group` names the session that measures it (work/)."""

    name: str
    group: str
    title: str
    unit: str
    more_is_better: bool
    goals: tuple[Goal, ...]
    long: bool = False  # measured with --size long only

    @property
    def ends_in_fsync(self) -> bool:
        """True when the clock runs until an fsync has returned."""
        return self.name.startswith(("write-", "randwrite-", "mix-")) or self.name in ("append-fsync", "sqlite")

    def better_by(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is than `theirs`."""
        return ours / theirs if self.more_is_better else theirs / ours


_LEVEL = Goal(Against.PEER, 1.0)
_AHEAD = Goal(Against.PEER, 1.5)
_BACK_LEVEL = Goal(Against.PEER, 1.0, Promise.SOON)
_BACK_HALF_DISK = Goal(Against.DISK, 0.5, Promise.SOON)
_MB = "MB/s"
_PER_S = "/s"


def _more(name: str, group: str, title: str, unit: str, *goals: Goal, long: bool = False) -> Row:
    return Row(name, group, title, unit, True, goals or (_LEVEL,), long)


def _less(name: str, group: str, title: str, unit: str, *goals: Goal, long: bool = False) -> Row:
    return Row(name, group, title, unit, False, goals or (_LEVEL,), long)


def _streams() -> list[Row]:
    half_limit, most = Goal(Against.PEER, 1.2), Goal(Against.LIMIT, 0.45)
    rows = [
        _more("write-1", "stream", "sequential write, 1 file, 1 MiB blocks, fsync", _MB, _LEVEL, _BACK_HALF_DISK),
        _more("write-4", "stream", "the same, 4 files at once", _MB),
        _more("write-direct", "stream", "sequential write, O_DIRECT, 256 KiB blocks", _MB),
        _more("write-5m", "stream", "files of 5 MiB written one after the other", _MB),
        _more("read-cold-1", "stream", "sequential read cold, 1 file, 1 MiB blocks", _MB, half_limit, most),
        _more("read-cold-4", "stream", "the same, 4 files at once, 256 KiB blocks", _MB),
        _more("read-direct", "stream", "sequential read cold, O_DIRECT, 256 KiB blocks", _MB),
        _more("read-5m", "stream", "files of 5 MiB read cold, one after the other", _MB),
        _more("read-cached", "stream", "sequential read, own cache, page cache dropped", _MB),
    ]
    for direction in ("write", "read"):
        for jobs in (1, 4):
            for direct in (0, 1):
                for block in ("256k", "1m"):
                    name = f"{direction}-{jobs}j-{'direct' if direct else 'buffered'}-{block}"
                    title = f"sequential {direction}, {jobs} at once, {'O_DIRECT' if direct else 'buffered'}, {block}"
                    rows.append(_more(name, "matrix", title, _MB, long=True))
    return rows


ROWS: tuple[Row, ...] = (
    *_streams(),
    _more("randread-4k", "random", "random read 4 KiB, own cache", _PER_S),
    _more("randread-256k", "random", "random read 256 KiB, own cache", _PER_S, long=True),
    _more("randwrite-4k", "random", "random write 4 KiB, then fsync", _PER_S),
    _more("randwrite-256k", "random", "random write 256 KiB, then fsync", _PER_S, long=True),
    _more("mix-4r1w", "random", "4 readers beside 1 writer, 256 KiB", _MB),
    _more("mix-2r2w", "random", "2 readers beside 2 writers, 256 KiB", _MB, long=True),
    _more("mix-1r4w", "random", "1 reader beside 4 writers, 256 KiB", _MB, long=True),
    _more("append-fsync", "random", "append 200 bytes, fsync", _PER_S, _LEVEL, _BACK_HALF_DISK),
    _less("ttfb", "random", "time to first byte of a file of 1 MiB, cold", "ms"),
    _more("randread-4k-cold", "random", "random read 4 KiB, cold", _PER_S),
    _more(
        "create-1", "small", "files of 4 KiB created, 1 thread", _PER_S, _AHEAD, Goal(Against.LIMIT, 0.7), _BACK_LEVEL
    ),
    _more("create-8", "small", "the same, 8 threads", _PER_S, _AHEAD, Goal(Against.LIMIT, 0.7), _BACK_LEVEL),
    _less("one-byte", "small", "a file of one byte written and closed", "ms"),
    _more("create-empty-100", "small", "100 empty files created", _PER_S),
    _more("create-empty-1000", "small", "1,000 empty files created", _PER_S, long=True),
    _more("create-empty-10000", "small", "10,000 empty files created", _PER_S, long=True),
    _more("stat-warm", "small", "stat of known files", _PER_S),
    _more("stat-cold", "small", "stat of a tree, cold", _PER_S, Goal(Against.PEER, 5.0)),
    _more("read-small-cold-1", "small", "files of 4 KiB read cold, 1 thread", _PER_S, _AHEAD),
    _more("read-small-cold-8", "small", "the same, 8 threads", _PER_S, _AHEAD),
    _more("rename", "small", "files renamed", _PER_S, _AHEAD, _BACK_LEVEL),
    _less("rename-directory", "small", "a directory of small files renamed", "s"),
    _more("delete-1", "small", "files deleted, 1 thread", _PER_S, _LEVEL, _BACK_LEVEL),
    _more("delete-8", "small", "the same, 8 threads", _PER_S, _LEVEL, _BACK_LEVEL),
    _less("untar", "small", "tar -x of a source tree", "s", _AHEAD, _BACK_LEVEL),
    _less("git", "small", "git clone and git status", "s", _LEVEL, _BACK_LEVEL),
    _more("sqlite", "small", "SQLite transactions, rollback journal", _PER_S),
    _less("list", "listing", "ls -lR of many files in 100 directories, cold", "s"),
    _less("mount", "listing", "from the command to a mount that answers", "s"),
)

BY_NAME = {row.name: row for row in ROWS}

QUICK_ROWS = frozenset(
    {
        *("write-1", "read-cold-1", "read-cached", "randread-4k", "append-fsync", "ttfb"),
        *("create-1", "create-8", "stat-cold", "read-small-cold-1", "rename", "delete-8", "untar"),
    }
)
"""What is measured with --quick: the rows that say most about what programs feel."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a row is. Larger is steadier and slower; ratios of runs of different sizes do not compare."""

    name: str
    large_bytes: int
    medium_bytes: int  # of each of 4 files, and for random access
    files_5m: int
    small_files: int
    listed_files: int
    random_s: float
    random_writes: int
    appends: int
    untar_files: int
    transactions: int


_MIB = 1 << 20
TINY = Sizes("tiny", 16 * _MIB, 8 * _MIB, 2, 40, 200, 0.3, 50, 10, 40, 5)
QUICK = Sizes("quick", 128 * _MIB, 32 * _MIB, 4, 100, 1000, 0.5, 200, 30, 100, 10)
NORMAL = Sizes("normal", 512 * _MIB, 64 * _MIB, 8, 200, 10_000, 0.7, 500, 60, 250, 25)
LONG = Sizes("long", 1024 * _MIB, 128 * _MIB, 20, 1000, 10_000, 2.0, 4000, 300, 1193, 100)
SIZES = {sizes.name: sizes for sizes in (TINY, QUICK, NORMAL, LONG)}
