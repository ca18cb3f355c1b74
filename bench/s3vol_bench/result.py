"""What a run has found: samples, and what follows from them. Values and arithmetic; the only I/O is JSON.

A sample is one row on one target in one repeat. Figures are medians of the repeats that count. A ratio is the median of
the ratios within each repeat: both sides of it were measured within the same minute.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3vol.errors import UsageError
from s3vol_bench.rows import BY_NAME, ROWS, Against, Goal, Promise, Row

FORMAT = 1
DISK, PLAIN = "disk", "plain"


@dataclass(frozen=True, slots=True)
class Sample:
    """One row on one target, once. With an `error` it does not count; `value` may then still say what was seen."""

    row: str
    target: str
    repeat: int
    value: float | None
    error: str = ""
    seconds: float = 0.0
    operations: int = 1
    user_s: float = 0.0  # of the mount process
    system_s: float = 0.0
    peak_bytes: int = 0
    settled_s: float = 0.0  # until the bucket had everything; for targets whose close() means soon


@dataclass(frozen=True, slots=True)
class Contestant:
    """A target of a run, as the report names it."""

    name: str
    label: str
    promise: str  # of Promise; empty for the disk and the plain endpoint
    version: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of an operation costs, in microseconds of an operation."""

    operation: str
    stage: str
    us: float


@dataclass(frozen=True, slots=True)
class Result:
    """A run. `about` says where, when and how."""

    about: dict[str, Any]
    contestants: tuple[Contestant, ...]
    samples: tuple[Sample, ...]
    stages: tuple[Stage, ...] = ()

    def contestant(self, name: str) -> Contestant:
        """By name."""
        return next(one for one in self.contestants if one.name == name)

    def rows(self) -> list[Row]:
        """The rows that were measured, in the order of the table."""
        seen = {sample.row for sample in self.samples}
        return [row for row in ROWS if row.name in seen]

    def of(self, row: str, target: str) -> list[Sample]:
        """All samples of a row on a target."""
        return [sample for sample in self.samples if sample.row == row and sample.target == target]

    def figure(self, row: str, target: str) -> Figure | None:
        """What counts of them; None when a repeat failed, or there is none."""
        samples = self.of(row, target)
        if not samples or any(sample.error or sample.value is None for sample in samples):
            return None
        return Figure(samples)

    def error(self, row: str, target: str) -> str:
        """Why there is no figure."""
        return next((sample.error for sample in self.of(row, target) if sample.error), "")

    def errors_of_ours(self) -> list[str]:
        """What failed on s3vol, the disk or the endpoint: a defect, while a peer's failure is a fact about the peer."""
        peers = {one.name for one in self.contestants if not one.ours and one.promise}
        return [f"{s.target}, {s.row}: {s.error}" for s in self.samples if s.error and s.target not in peers]

    def ratio(self, row: Row, target: str, other: str) -> float | None:
        """How many times better `target` is than `other`, by repeats."""
        ours, theirs = self.figure(row.name, target), self.figure(row.name, other)
        if ours is None or theirs is None:
            return None
        pairs = zip(ours.values, theirs.values, strict=False)
        return statistics.median(row.better_by(a, b) for a, b in pairs if a > 0 and b > 0)

    def best_peer(self, row: Row, promise: str) -> str | None:
        """Of the peers with this promise that have a figure."""
        able = [
            (one.name, figure.median)
            for one in self.contestants
            if one.promise == promise and not one.ours and (figure := self.figure(row.name, one.name))
        ]
        if not able:
            return None
        return (max if row.more_is_better else min)(able, key=lambda pair: pair[1])[0]

    def reached(self, row: Row, target: str, goal: Goal) -> float | None:
        """The ratio that a goal speaks of; None when there is nothing to compare with."""
        one = self.contestant(target)
        if one.promise != goal.promise.value:
            return None
        other = {Against.LIMIT: PLAIN, Against.DISK: DISK}.get(goal.against) or self.best_peer(row, one.promise)
        return None if other is None else self.ratio(row, target, other)

    def missed(self) -> list[str]:
        """The goals that were not reached, a line each."""
        lines = []
        for row in self.rows():
            for one in self.contestants:
                for goal in row.goals if one.ours else ():
                    ratio = self.reached(row, one.name, goal)
                    if ratio is not None and ratio < goal.ratio:
                        lines.append(f"{one.name}, {row.name}: {ratio:.2f} of {goal.against}, goal {goal.ratio:g}")
        return lines

    def save(self, file: Path) -> None:
        """Write JSON."""
        whole = {"format": FORMAT, **dataclasses.asdict(self)}
        file.write_text(json.dumps(whole, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Figure:
    """The repeats of one row on one target."""

    samples: Sequence[Sample]
    values: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        values = tuple(sample.value for sample in self.samples if sample.value is not None)
        object.__setattr__(self, "values", values)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the least to the greatest, as a part of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    @property
    def cpu_s(self) -> float:
        """Processor seconds of the mount process in the timed part."""
        return self._median(sample.user_s + sample.system_s for sample in self.samples)

    @property
    def peak_bytes(self) -> float:
        """Peak of resident memory of the mount process in the timed part."""
        return self._median(sample.peak_bytes for sample in self.samples)

    @property
    def settled_s(self) -> float:
        """Until the bucket had everything."""
        return self._median(sample.settled_s for sample in self.samples)

    @property
    def us(self) -> tuple[float, float, float]:
        """Microseconds of an operation: mount process in user mode, in kernel mode, and all the rest of its time."""
        user = self._median(sample.user_s / sample.operations for sample in self.samples) * 1e6
        system = self._median(sample.system_s / sample.operations for sample in self.samples) * 1e6
        whole = self._median(sample.seconds / sample.operations for sample in self.samples) * 1e6
        return user, system, max(0.0, whole - user - system)

    @staticmethod
    def _median(values: Iterable[float]) -> float:
        return statistics.median(values)


def load(file: Path) -> Result:
    """Read what `save` wrote. Raises UsageError that names the file."""
    try:
        whole = json.loads(file.read_text())
        if whole.pop("format") != FORMAT:
            raise UsageError(f"{file}: a result of another version of the benchmark")
        return Result(
            whole["about"],
            tuple(Contestant(**one) for one in whole["contestants"]),
            tuple(Sample(**one) for one in whole["samples"] if one["row"] in BY_NAME),
            tuple(Stage(**one) for one in whole["stages"]),
        )
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{file}: not a result of `s3vol bench` (the file result.json in its folder)") from None


PROMISES = tuple(promise.value for promise in Promise)
