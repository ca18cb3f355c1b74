"""A result as Markdown, for people and for `git diff`, and as a table for the terminal.

Three tables: how s3vol stands (ratios, goals), every figure of every target, and what the mount processes used. A
figure whose promise was not kept is shown as it was seen, in parentheses, and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from s3vol_bench.result import DISK, PLAIN, Contestant, Result, Stage
from s3vol_bench.rows import Row


def number(value: float | None) -> str:
    """Three digits that count: `0.0123`, `1.23`, `12.3`, `1234`."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def cell(result: Result, row: Row, target: str) -> str:
    """Median and spread; or what was seen although it does not count; or a dash."""
    figure = result.figure(row.name, target)
    if figure:
        spread = f" ±{figure.spread * 50:.0f}%" if len(figure.values) > 1 else ""
        return number(figure.median) + spread
    seen = [sample.value for sample in result.of(row.name, target) if sample.value is not None]
    return f"({number(seen[0])})" if seen else "–"


def markdown(result: Result) -> str:
    """The whole report."""
    parts = [_head(result), "## How s3vol stands", _standing(result), *_goals(result)]
    parts += ["## Every figure", _FIGURES, _figures(result), "## What the mount processes used", _USED, _usage(result)]
    if result.stages:
        parts += ["## Where the time of one operation goes", stage_table(result.stages)]
    failed = _failures(result)
    if failed:
        parts += ["## What has no figure, and why", failed]
    return "\n\n".join(parts) + "\n"


_FIGURES = (
    "Medians, and half the way from the least to the greatest in percent. In parentheses: the promise was not kept, so "
    "it counts nowhere. `plain` is the endpoint without a file system, `disk` the local disk."
)
_USED = "Processor seconds and peak of resident memory (MiB) of the mount process in the timed part, medians."


def _head(result: Result) -> str:
    about = result.about
    lines = [f"# s3vol benchmark, {about['date']}", ""]
    lines += [f"* {name}: {value}" for name, value in about.items() if name not in ("date", "absent")]
    lines += [f"* {one.name}: {one.label}, {one.version}" for one in result.contestants if one.version]
    if about.get("absent"):
        lines.append(f"* not on PATH, so not measured: {', '.join(about['absent'])}")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _ours(result: Result) -> list[Contestant]:
    return [one for one in result.contestants if one.ours]


def _standing(result: Result) -> str:
    head = ["row", "unit", "limit"]
    for one in _ours(result):
        head += [one.name, "÷ limit", "best peer", "÷ peer"]
    rows = []
    for row in result.rows():
        line = [f"{row.title} (`{row.name}`)", row.unit, cell(result, row, PLAIN)]
        for one in _ours(result):
            peer = result.best_peer(row, one.promise)
            shown = f"{peer} {number(result.figure(row.name, peer).median)}" if peer else "–"  # type: ignore[union-attr]  # a best peer has a figure
            ratio = result.ratio(row, one.name, peer) if peer else None
            line += [cell(result, row, one.name), number(result.ratio(row, one.name, PLAIN)), shown, number(ratio)]
        rows.append(line)
    return _table(head, rows)


def _goals(result: Result) -> list[str]:
    missed = result.missed()
    return ["Goals that were not reached: " + "; ".join(missed) + "."] if missed else ["Every goal was reached."]


def _figures(result: Result) -> str:
    names = [one.name for one in result.contestants]
    return _table(
        ["row", "unit", *names],
        ([f"`{row.name}`", row.unit, *(cell(result, row, name) for name in names)] for row in result.rows()),
    )


def _usage(result: Result) -> str:
    names = [one.name for one in result.contestants if one.promise]

    def used(row: Row, name: str) -> str:
        figure = result.figure(row.name, name)
        return f"{figure.cpu_s:.2f} s, {figure.peak_bytes / (1 << 20):.0f}" if figure else "–"

    rows = ([f"`{row.name}`", *(used(row, name) for name in names)] for row in result.rows() if row.name != "mount")
    return _table(["row", *names], rows)


def stage_table(stages: Sequence[Stage]) -> str:
    """Microseconds of each stage, a column for each operation."""
    operations, names = (
        list(dict.fromkeys(part)) for part in ([s.operation for s in stages], [s.stage for s in stages])
    )
    cost = {(s.stage, s.operation): f"{s.us:,.1f}" for s in stages}
    lines = ([name, *(cost.get((name, operation), "–") for operation in operations)] for name in names)
    return _table(["µs", *operations], lines)


def _failures(result: Result) -> str:
    return "\n".join(
        f"* {one.name}, `{row.name}`: {error[:300]}"
        for row in result.rows()
        for one in result.contestants
        if (error := result.error(row.name, one.name))
    )


def terminal(result: Result) -> str:
    """A table that fits a terminal: s3vol's figures and ratios."""
    ours = [one.name for one in _ours(result)]
    lines = [
        f"{'':24}{'unit':>6}{'limit':>9}{'disk':>9}" + "".join(f"{n[:16]:>17}{'÷lim':>8}{'÷peer':>8}" for n in ours)
    ]
    for row in result.rows():
        line = f"{row.name:24}{row.unit:>6}{_short(result, row, PLAIN):>9}{_short(result, row, DISK):>9}"
        for name in ours:
            peer = result.best_peer(row, result.contestant(name).promise)
            line += f"{cell(result, row, name):>17}{number(result.ratio(row, name, PLAIN)):>8}"
            line += f"{number(result.ratio(row, name, peer) if peer else None):>8}"
        lines.append(line)
    return "\n".join(lines)


def _short(result: Result, row: Row, name: str) -> str:
    figure = result.figure(row.name, name)
    return number(figure.median) if figure else "–"
