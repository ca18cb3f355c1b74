"""The drawings of a report: horizontal bars on a logarithmic or a linear axis, and lines over either.

Own SVG and no plotting library: the report has to come out of an installed wheel on a user's machine, where a plotting
library (30 MB with what it brings) would be installed for two kinds of drawing. SVG is text; each drawing is some
rectangles, lines and words, with colours from the page's variables, so that it follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_LABEL, _PLOT, _VALUE, _ROW, _TOP = 290, 460, 150, 22, 26  # pixels
_DOTTED = 40  # more points than this are a line only


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with the least and the greatest of what it is the median of; `kind` is a class of the style sheet."""

    label: str
    value: float
    low: float
    high: float
    text: str
    kind: str
    goal: float | None = None  # a mark on the axis


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar of several parts, by name."""

    label: str
    parts: Sequence[tuple[str, float]]
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) with a name."""

    name: str
    points: Sequence[tuple[float, float]]


def ratios(bars: Sequence[Bar]) -> str:
    """Bars from 1 to the left (worse) and to the right (better), on a logarithmic axis from 1/32 to 32."""
    widest = 5.0

    def place(value: float) -> float:
        return _LABEL + (max(-widest, min(widest, math.log2(max(value, 1e-9)))) + widest) / (2 * widest) * _PLOT

    parts = [
        _grid(place, [2.0**power for power in range(-4, 5)], lambda v: f"{v:g}×" if v >= 1 else f"1/{1 / v:g}", bars)
    ]
    for number, bar in enumerate(bars):
        y, one, at = _TOP + number * _ROW, place(1.0), place(bar.value)
        parts.append(_words(bar.label, y))
        left, width = min(one, at), max(1.0, abs(at - one))
        parts.append(f'<rect class="{bar.kind}" x="{left:.1f}" y="{y + 5}" width="{width:.1f}" height="12"/>')
        parts.append(_whisker(place(bar.low), place(bar.high), y))
        if bar.goal is not None:
            parts.append(
                f'<line class="goal" x1="{place(bar.goal):.1f}" x2="{place(bar.goal):.1f}" y1="{y + 2}" y2="{y + 20}"/>'
            )
        parts.append(_value(bar.text, y))
    return _drawing(parts, len(bars))


def stacks(rows: Sequence[Stack], kinds: Sequence[str]) -> str:
    """Bars of parts, each scaled to the whole width: where the time of each goes."""
    parts = []
    for number, row in enumerate(rows):
        y, x, whole = _TOP + number * _ROW, float(_LABEL), sum(value for _, value in row.parts) or 1.0
        parts.append(_words(row.label, y))
        for (name, value), kind in zip(row.parts, kinds, strict=False):
            width = value / whole * _PLOT
            title = f"<title>{escape(name)}: {value:.1f} µs</title>"
            parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y + 5}" width="{width:.1f}" height="12">{title}</rect>')
            x += width
        parts.append(_value(row.text, y))
    return _drawing(parts, len(rows))


def curves(lines: Sequence[Line], unit: str, x_name: str, *, logarithmic: bool = True) -> str:
    """Lines from zero upwards, over a logarithmic axis with a mark for each x, or over a linear one."""
    xs = sorted({x for line in lines for x, _ in line.points})
    top = max((y for line in lines for _, y in line.points), default=1.0) * 1.1 or 1.0
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = scale(xs[0]), scale(xs[-1])
    width, height, left = 620, 240, 80

    def spot(x: float, y: float) -> tuple[float, float]:
        share = (scale(x) - low) / (high - low) if high > low else 0.5
        return left + share * width, 20 + height - y / top * height

    parts = []
    for step in range(5):
        y = spot(xs[0], top * step / 4)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="axis" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{top * step / 4:.3g} {unit}</text>'
        )
    for x in xs if logarithmic else [xs[0] + (xs[-1] - xs[0]) * step / 4 for step in range(5)]:
        at = spot(x, 0)[0]
        parts.append(f'<text class="axis" x="{at:.1f}" y="{height + 38}" text-anchor="middle">{x:,.0f}</text>')
    for number, line in enumerate(lines):
        parts += _curve(line.name, [spot(x, y) for x, y in line.points], number, left + width + 14)
    parts.append(
        f'<text class="axis" x="{left + width / 2}" y="{height + 56}" text-anchor="middle">{escape(x_name)}</text>'
    )
    return f'<svg viewBox="0 0 900 {height + 66}" role="img">{"".join(parts)}</svg>'


def _curve(name: str, spots: Sequence[tuple[float, float]], number: int, legend_x: int) -> list[str]:
    """A line, its points where there are few, and its name."""
    kind, y = f"c{number % 4}", 24 + 20 * number
    joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
    dots = spots if len(spots) <= _DOTTED else ()
    return [
        f'<polyline class="line {kind}" points="{joined}"/>',
        *(f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in dots),
        f'<rect class="dot {kind}" x="{legend_x}" y="{y}" width="10" height="10"/>',
        f'<text class="axis" x="{legend_x + 16}" y="{y + 9}">{escape(name)}</text>',
    ]


def _grid(
    place: Callable[[float], float], values: Sequence[float], name: Callable[[float], str], rows: Sequence[object]
) -> str:
    bottom = _TOP + len(rows) * _ROW
    return "".join(
        f'<line class="{"one" if value == 1 else "grid"}" x1="{place(value):.1f}" x2="{place(value):.1f}" '
        f'y1="{_TOP - 4}" y2="{bottom}"/><text class="axis" x="{place(value):.1f}" y="14" '
        f'text-anchor="middle">{name(value)}</text>'
        for value in values
    )


def _whisker(low: float, high: float, y: float) -> str:
    return f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}"/>'


def _words(text: str, y: float) -> str:
    return f'<text class="label" x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(text)}</text>'


def _value(text: str, y: float) -> str:
    return f'<text class="value" x="{_LABEL + _PLOT + 8}" y="{y + 15}">{escape(text)}</text>'


def _drawing(parts: Sequence[str], rows: int) -> str:
    height = _TOP + rows * _ROW + 6
    return f'<svg viewBox="0 0 {_LABEL + _PLOT + _VALUE} {height}" role="img">{"".join(parts)}</svg>'
