"""Results made by hand, for tests of what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from s3vol_bench.result import Contestant, Result, Sample
from s3vol_bench.rows import Promise

CONTESTANTS = (
    Contestant("plain", "the endpoint", "", "", False),
    Contestant("s3vol", "s3vol", Promise.BUCKET, "1", True),
    Contestant("fast", "fast", Promise.BUCKET, "1", False),
    Contestant("slow", "slow", Promise.BUCKET, "1", False),
    Contestant("lazy", "lazy", Promise.SOON, "1", False),
    Contestant("disk", "the disk", "", "", False),
)
ABOUT = {"date": "2026-11-21", "sizes": "tiny", "repeats": 5, "machine": "2 cores", "absent": ["goofys (goofys)"]}


def result(row: str, values: Mapping[str, Sequence[float]], errors: Mapping[str, str] | None = None) -> Result:
    """A result of one row; a target in `errors` failed in its last repeat."""
    samples = []
    for target, figures in values.items():
        for repeat, value in enumerate(figures):
            error = (errors or {}).get(target, "") if repeat == len(figures) - 1 else ""
            samples.append(Sample(row, target, repeat, value, error, 1.0, 10, 0.2, 0.1, 1 << 20))
    return Result(ABOUT, CONTESTANTS, tuple(samples))
