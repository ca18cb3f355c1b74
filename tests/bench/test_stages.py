"""To which stage a sample of a profile belongs."""

from __future__ import annotations

import pytest

from s3vol_bench.stages import OTHER, shares, stage_of

LOOP = "run (/x/trio/_core/_run.py:2535)"
READ = "read (/x/fuse/s3vol_fuse/ops.py:10)"
BYTES = "read (/x/s3vol/cache/reader.py:40)"


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (LOOP, "trio and pyfuse3: tasks, /dev/fuse"),
        (f"{LOOP};{READ}", "s3vol_fuse: decode, encode"),
        (f"{LOOP};{READ};{BYTES}", "s3vol/cache: bytes, journal, their I/O"),
        (
            f"{LOOP};{READ};{BYTES};execute (/usr/lib/python3.11/sqlite3/x.py:1)",
            "s3vol/cache: bytes, journal, their I/O",
        ),
        ("put (/x/obstore/_put.py)", "s3vol/store: requests"),
        ("<module> (<frozen runpy>:88)", OTHER),
        ("", OTHER),
    ],
)
def test_a_sample_belongs_to_the_innermost_frame_that_is_known(stack: str, stage: str) -> None:
    assert stage_of(stack) == stage


def test_shares_are_of_what_does_not_wait() -> None:
    waiting = (
        "EpollIOManager.get_events (/x/trio/_core/_io_epoll.py:243)",
        "WorkerThread._work (/x/trio/_core/_thread_cache.py:211)",
        "Journal._run (/x/s3vol/cache/journal.py:237)",
        "_get_fast (/x/s3vol/store/s3_calls.py:134)",
    )
    raw = f"{LOOP};{READ};{BYTES} 3\n{LOOP} 1\n" + "".join(f"{LOOP};{frame} 96\n" for frame in waiting)
    assert shares(raw) == {"s3vol/cache: bytes, journal, their I/O": 0.75, "trio and pyfuse3: tasks, /dev/fuse": 0.25}
    assert shares("") == {}
