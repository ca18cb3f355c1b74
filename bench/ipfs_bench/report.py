"""What was measured, as JSON, Markdown and one page of HTML. Values and arithmetic; the only I/O is at the end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from s3vol_bench import page, svg
from s3vol_bench.growth import Chart
from s3vol_bench.report import number

_TABLE_ROWS = 21  # of a chart: a line of 200 commits is drawn whole, and every tenth point is in the table


@dataclass(slots=True)
class Figure:
    """One row of the table. `values` are the repeats of each contestant."""

    title: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contestant: str, value: float) -> None:
        """One more repeat."""
        self.values.setdefault(contestant, []).append(value)

    def cell(self, contestant: str) -> str:
        """Median, and half the way from the least to the greatest in percent."""
        values = self.values.get(contestant)
        if not values:
            return "–"
        median = statistics.median(values)
        spread = f" ±{(max(values) - min(values)) / median * 50:.0f}%" if len(values) > 1 and median else ""
        return number(median) + spread


@dataclass(slots=True)
class Report:
    """All of a run. `about` says where and when, `facts` what is no figure."""

    about: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Of the page."""
        return f"s3vol: volumes in IPFS, {self.about['date']}"

    def markdown(self) -> str:
        """For people and for `git diff`."""
        parts = [f"# {self.title}", "\n".join(f"* {name}: {value}" for name, value in self.about.items())]
        if self.figures:
            parts += ["## Beside MinIO", self._table()]
        for chart in self.charts:
            parts += [f"## {chart.title}", _chart_table(chart)]
        if self.facts:
            parts += ["## Seen", "\n".join(f"* {fact}" for fact in self.facts)]
        return "\n\n".join(parts) + "\n"

    def _table(self) -> str:
        names = list(dict.fromkeys(name for figure in self.figures for name in figure.values))
        head = [f"| | unit | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        rows = (f"| {one.title} | {one.unit} | {' | '.join(map(one.cell, names))} |" for one in self.figures)
        return "\n".join([*head, *rows])

    def html(self) -> str:
        """The page: the charts, then all figures. Bars of IPFS against MinIO would say that both promise the same."""
        drawings = [(chart.title, _drawing(chart)) for chart in self.charts]
        text = f"<pre>{escape(self.markdown())}</pre>"
        return page.drawn(self.title, [*drawings, ("All figures", text)])

    def save(self, folder: Path) -> None:
        """ipfs.json, ipfs.md and ipfs.html."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ipfs.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "ipfs.md").write_text(self.markdown())
        (folder / "ipfs.html").write_text(self.html())


def _drawing(chart: Chart) -> str:
    lines = [svg.Line(name, points) for name, points in chart.lines.items()]
    xs = [x for line in lines for x, _ in line.points]
    return svg.curves(lines, chart.unit, chart.x_name, logarithmic=len(set(xs)) <= _TABLE_ROWS and min(xs) > 0)


def _chart_table(chart: Chart) -> str:
    names = list(chart.lines)
    head = [f"| {chart.x_name} | {' | '.join(f'{name}, {chart.unit}' for name in names)} |"]
    head.append("|---" * (len(names) + 1) + "|")
    values = [dict(points) for points in chart.lines.values()]
    xs = _thinned(sorted({x for points in values for x in points}))
    return "\n".join([*head, *(f"| {x:,} | {' | '.join(number(value.get(x)) for value in values)} |" for x in xs)])


def _thinned(xs: Sequence[int]) -> list[int]:
    """At most so many of them, the last one always."""
    step = -(-len(xs) // _TABLE_ROWS)
    return sorted({*xs[::step], *xs[-1:]})
