"""What a measurement of growth writes."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

from s3vol_bench import growth, page
from s3vol_bench.growth import Chart, Pair


def test_a_pair_of_charts_gets_a_point_each() -> None:
    pair = Pair.of("A sparse file", "GiB")
    pair.measure("write", 10, os.getpid(), lambda: None, 100)
    assert [x for x, _ in pair.time.lines["write"]] == [x for x, _ in pair.processor.lines["write"]] == [10]


def test_charts_become_tables_and_drawings() -> None:
    chart = Chart("One directory", "files", "µs")
    for x, value in ((1000, 10.0), (100_000, 20.0)):
        chart.add("stat", x, value)
        chart.add("create", x, 5 * value)
    text = growth.markdown([chart], "today")
    assert "| files | stat µs | create µs |" in text
    assert "| 100,000 | 20.0 | 100.0 |" in text
    ((title, drawing),) = growth.drawings([chart])
    assert title == "One directory"
    assert len(ElementTree.fromstring(drawing).findall("polyline")) == 2
    assert drawing in page.drawn("growth", [(title, drawing)])


def test_a_result_of_growth_is_json(tmp_path: Path) -> None:
    growth.save([Chart("t", "x", "µs", {"a": [(1, 2.0)]})], {"date": "today"}, tmp_path / "growth.json")
    assert '"charts"' in (tmp_path / "growth.json").read_text()
