"""A result as one page of HTML that needs nothing else: no script, no network, drawings inside (svg).

What is drawn: each of s3vol's modes against the limit and against the best peer of the same promise, with the whole
spread of the repeats and the goal as a mark; and where the time of one operation of each row goes. Tables hold every
figure that is drawn, so that the page can be read without colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from s3vol_bench import svg
from s3vol_bench.report import cell, number
from s3vol_bench.result import PLAIN, Contestant, Result
from s3vol_bench.rows import Against, Row

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --dim: #777; --paper: #fff; --good: #2a7f62; --bad: #b4532a;
  --a: #3b6ea5; --b: #c28e2c; --c: #8a8a8a; --d: #7a4e9c; --rule: #ddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --dim: #999; --paper: #161616; --rule: #333; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 2px 9px; text-align: right;
  border-bottom: 1px solid var(--rule); } td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; } .dim { color: var(--dim); } svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .axis { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--rule); } .one { stroke: var(--dim); } .whisker { stroke: var(--ink); stroke-width: 1.4; }
.goal { stroke: var(--d); stroke-width: 2.5; } .good, .c0 { fill: var(--good); } .bad, .c1 { fill: var(--bad); }
.user, .c2 { fill: var(--a); } .system { fill: var(--b); } .rest { fill: var(--c); } .c3 { fill: var(--d); }
.line { fill: none; stroke-width: 2; } .line.c0 { stroke: var(--good); } .line.c1 { stroke: var(--bad); }
.line.c2 { stroke: var(--a); } .line.c3 { stroke: var(--d); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; } .key.user { background: var(--a); }
.key.system { background: var(--b); } .key.rest { background: var(--c); }
"""
_LEGEND = (
    "Right of the line: better. The thin line is the whole spread of the repeats, the upright mark the goal. "
    "Ratios are taken repeat by repeat; nothing is drawn where a promise was not kept."
)


def html(result: Result) -> str:
    """The page."""
    parts = [f"<h1>s3vol benchmark, {escape(str(result.about['date']))}</h1>", _about(result)]
    for one in (one for one in result.contestants if one.ours):
        for against, title in (
            (Against.PEER, f"{one.label} against the best peer with this promise ({one.promise})"),
            (Against.LIMIT, f"{one.label} against the limit, the endpoint without a file system"),
        ):
            bars = _bars(result, one, against)
            if bars:
                parts.append(f"<h2>{escape(title)}</h2><p class=dim>{_LEGEND}</p>{svg.ratios(bars)}")
    parts += [_costs(result), _table(result), _failures(result)]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>s3vol benchmark</title><style>{_STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def drawn(title: str, drawings: Sequence[tuple[str, str]]) -> str:
    """A page of drawings with their titles."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    body = "".join(f"<h2>{escape(name)}</h2>{drawing}" for name, drawing in drawings)
    return f"{head}<h1>{escape(title)}</h1>{body}</html>\n"


def _about(result: Result) -> str:
    words = [f"{escape(k)}: {escape(str(v))}" for k, v in result.about.items() if k not in ("date", "absent") and v]
    words += [
        f"{escape(one.name)}: {escape(one.label)}, {escape(one.version)}" for one in result.contestants if one.version
    ]
    absent = result.about.get("absent")
    if absent:
        words.append(f"not on PATH, so not measured: {escape(', '.join(absent))}")
    return "<p class=dim>" + "<br>".join(words) + "</p>"


def _bars(result: Result, one: Contestant, against: Against) -> list[svg.Bar]:
    bars = []
    for row in result.rows():
        other = PLAIN if against is Against.LIMIT else result.best_peer(row, one.promise)
        if other and (pairs := _pairs(result, row, one.name, other)):
            ratio = result.ratio(row, one.name, other)
            goal = next((g.ratio for g in row.goals if g.against is against and g.promise.value == one.promise), None)
            if ratio is not None:
                kind = "good" if ratio >= (goal if goal is not None else 1.0) else "bad"
                text = f"{ratio:.2f}× " + (other if against is Against.PEER else "")
                bars.append(svg.Bar(row.title[:44], ratio, min(pairs), max(pairs), text, kind, goal))
    return bars


def _pairs(result: Result, row: Row, one: str, other: str) -> list[float]:
    ours, theirs = result.figure(row.name, one), result.figure(row.name, other)
    if ours is None or theirs is None:
        return []
    return [row.better_by(a, b) for a, b in zip(ours.values, theirs.values, strict=False) if a > 0 and b > 0]


def _costs(result: Result) -> str:
    parts = []
    for one in (one for one in result.contestants if one.ours):
        rows = []
        for row in result.rows():
            figure = result.figure(row.name, one.name)
            if figure and row.name != "mount":
                user, system, rest = figure.us
                named = [
                    ("mount process", user),
                    ("the kernel for it", system),
                    ("program, kernel, endpoint, waiting", rest),
                ]
                rows.append(svg.Stack(row.title[:44], named, f"{number(user + system + rest)} µs"))
        if rows:
            keys = (
                ("user", "mount process"),
                ("system", "the kernel for it"),
                ("rest", "the rest: program, endpoint, waiting"),
            )
            legend = "".join(f'<i class="key {kind}"></i>{name}' for kind, name in keys)
            parts.append(f"<h2>Cost of one operation by stage, {escape(one.label)}</h2><p class=dim>{legend}</p>")
            parts.append(svg.stacks(rows, [kind for kind, _ in keys]))
    if result.stages:
        lines = [[stage.operation, stage.stage, f"{stage.us:.1f}"] for stage in result.stages]
        parts.append("<h2>Where the time of one operation goes</h2>" + _rows(["operation", "stage", "µs"], lines))
    return "".join(parts)


def _table(result: Result) -> str:
    names = [one.name for one in result.contestants]
    lines = [[row.title, row.unit, *(cell(result, row, name) for name in names)] for row in result.rows()]
    note = "Medians ± half the spread. In parentheses: seen, but the promise was not kept."
    return f"<h2>Every figure</h2><p class=dim>{note}</p>" + _rows(["", "unit", *names], lines)


def _failures(result: Result) -> str:
    lines = [
        [one.name, row.title, error[:300]]
        for row in result.rows()
        for one in result.contestants
        if (error := result.error(row.name, one.name))
    ]
    return "<h2>What has no figure, and why</h2>" + _rows(["", "row", "reason"], lines) if lines else ""


def _rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in cells) + "</tr>"

    body = "".join(line("td", cells) for cells in lines)
    return f"<div class=wide><table>{line('th', head)}{body}</table></div>"
