"""Two results: what got slower beyond the noise.

Compared is what s3vol reached of the limit, repeat by repeat, where the row has a limit; else its bare figure. So a
machine that is slower today does not look like a slower s3vol. The statistics are those of `noise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3vol.errors import UsageError
from s3vol_bench import noise
from s3vol_bench.report import number
from s3vol_bench.result import PLAIN, Result, load
from s3vol_bench.rows import Row

NAME = "result.json"


@dataclass(frozen=True, slots=True)
class Difference:
    """One row of one target. `better_by` is over 1 when the new result is better."""

    row: Row
    target: str
    old: float
    new: float
    better_by: float
    beyond_noise: bool
    of_limit: bool


def open_result(path: Path) -> Result:
    """A result by its file or its folder. Raises UsageError."""
    return load(path / NAME if path.is_dir() else path)


def differences(old: Result, new: Result) -> list[Difference]:
    """Of all rows and targets of ours that both have. Raises UsageError when the results do not compare."""
    if old.about["sizes"] != new.about["sizes"]:
        raise UsageError(f"the results do not compare: sizes {old.about['sizes']} and {new.about['sizes']}")
    found = []
    for row in new.rows():
        for one in new.contestants:
            if one.ours and one.name in {other.name for other in old.contestants}:
                found += _difference(old, new, row, one.name)
    return found


def _difference(old: Result, new: Result, row: Row, target: str) -> list[Difference]:
    was, now = old.figure(row.name, target), new.figure(row.name, target)
    if was is None or now is None:
        return []
    limits = old.figure(row.name, PLAIN), new.figure(row.name, PLAIN)
    before, after = was.values, now.values
    of_limit = limits[0] is not None and limits[1] is not None
    if limits[0] is not None and limits[1] is not None:
        before = tuple(a / b for a, b in zip(before, limits[0].values, strict=False))
        after = tuple(a / b for a, b in zip(after, limits[1].values, strict=False))
    ratio, beyond = noise.change(before, after)
    return [
        Difference(row, target, was.median, now.median, ratio if row.more_is_better else 1 / ratio, beyond, of_limit)
    ]


def lines(old: Result, new: Result) -> tuple[list[str], bool]:
    """What to tell, and whether something got worse."""
    found = differences(old, new)
    said = [_line(one) for one in sorted(found, key=lambda one: one.better_by) if one.beyond_noise]
    worse = [one for one in found if one.beyond_noise and one.better_by < 1]
    repeats = int(old.about["repeats"]), int(new.about["repeats"])
    least = noise.least_p(*repeats)
    rule = f"exact rank test, one-sided p <= {noise.ALPHA:g}, and medians at least {noise.LEAST:.0%} apart"
    if least > noise.ALPHA:
        said.append(
            f"{repeats[0]} and {repeats[1]} repeats prove nothing: p cannot be under {least:.3f}; run 4 or more"
        )
    if old.about["machine"] != new.about["machine"]:
        said.append(f"different machines: {old.about['machine']} and {new.about['machine']}")
    lost = [
        f"{one.name:18} {row.name:20} has no figure any more: {new.error(row.name, one.name)}"
        for row in new.rows()
        for one in new.contestants
        if one.ours and new.error(row.name, one.name) and old.figure(row.name, one.name)
    ]
    said += lost
    said.append(f"{len(found)} figures compared, {len(worse)} worse beyond the noise ({rule})")
    return said, bool(worse or lost)


def _line(one: Difference) -> str:
    what = "of the limit" if one.of_limit else "in itself"
    verdict = f"{1 / one.better_by:.2f} times WORSE" if one.better_by < 1 else f"{one.better_by:.2f} times better"
    values = f"{number(one.old)} -> {number(one.new)} {one.row.unit}"
    return f"{one.target:18} {one.row.name:20} {verdict} {what} ({values})"
