"""What `make bench-ipfs` writes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from ipfs_bench.report import Figure, Report
from s3vol_bench import svg
from s3vol_bench.growth import Chart


def made() -> Report:
    report = Report({"date": "today", "machine": "2 cores"}, facts=["a < b"])
    figure = Figure("sequential write", "MB/s")
    for value in (20.0, 30.0, 25.0):
        figure.add("ipfs", value)
    figure.add("minio", 100.0)
    report.figures = [figure, Figure("not measured", "s")]
    sizes = Chart("Repositories", "commits", "MiB")
    for commit in range(1, 201):
        sizes.add("writer", commit, 100.0 + commit % 7)
    report.charts = [sizes]
    return report


def test_a_figure_is_a_median_with_its_spread() -> None:
    text = made().markdown()
    assert "| sequential write | MB/s | 25 ±20% | 100 |" in text
    assert "| not measured | s | – | – |" in text


def test_a_long_chart_is_drawn_whole_and_its_table_is_short() -> None:
    report = made()
    rows = [line for line in report.markdown().splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) <= 22
    assert rows[-1].startswith("| 200 |")
    page = report.html()
    (drawing,) = [part.split("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:] for part in ["<svg" + part]]
    root = ElementTree.fromstring(drawing)
    (line,) = root.findall("polyline")
    assert len(line.get("points", "").split()) == 200
    assert not root.findall("circle")
    assert "a &lt; b" in page


def test_the_marks_of_a_linear_axis_are_evenly_spread() -> None:
    drawing = svg.curves([svg.Line("a", [(1, 1.0), (2, 2.0), (101, 3.0)])], "MiB", "commits", logarithmic=False)
    words = [text.text for text in ElementTree.fromstring(drawing).findall("text")]
    assert {"1", "26", "51", "76", "101"} <= set(words)


def test_a_report_is_saved_in_three_forms(tmp_path: Path) -> None:
    made().save(tmp_path / "new")
    assert json.loads((tmp_path / "new/ipfs.json").read_text())["figures"][0]["values"]["minio"] == [100.0]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"ipfs.json", "ipfs.md", "ipfs.html"}
