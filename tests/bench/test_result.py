"""What follows from samples: which figures count, ratios, goals, and what is a change."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from s3vol.errors import UsageError
from s3vol_bench import compare, noise, page, report
from s3vol_bench.result import load
from s3vol_bench.rows import BY_NAME, ROWS, Against, Goal, Promise
from s3vol_bench.work import sessions
from tests.bench.rig import result

CREATE, BYTE = BY_NAME["create-1"], BY_NAME["one-byte"]
FIGURES: dict[str, list[float]] = {
    "plain": [100.0, 100.0, 100.0],
    "s3vol": [80.0, 60.0, 90.0],
    "fast": [40.0, 30.0, 50.0],
    "slow": [1, 1, 1],
    "lazy": [99, 99, 99],
}


def test_a_ratio_is_the_median_of_the_ratios_within_each_repeat() -> None:
    found = result("create-1", FIGURES)
    assert found.ratio(CREATE, "s3vol", "fast") == pytest.approx(2.0)
    assert found.ratio(CREATE, "s3vol", "plain") == pytest.approx(0.8)


def test_for_a_time_a_ratio_is_turned_over() -> None:
    found = result("one-byte", {"plain": [2.0], "s3vol": [4.0]})
    assert found.ratio(BYTE, "s3vol", "plain") == pytest.approx(0.5)


def test_the_best_peer_is_one_with_the_same_promise() -> None:
    assert result("create-1", FIGURES).best_peer(CREATE, Promise.BUCKET) == "fast"
    assert result("one-byte", {"fast": [3.0], "slow": [2.0]}).best_peer(BYTE, Promise.BUCKET) == "slow"


def test_a_figure_counts_only_if_every_repeat_kept_its_promise() -> None:
    found = result("create-1", FIGURES, {"fast": "f00001: not in the bucket when the call had returned"})
    assert found.figure("create-1", "fast") is None
    assert found.best_peer(CREATE, Promise.BUCKET) == "slow"
    assert "(40)" in report.markdown(found)
    assert "f00001: not in the bucket" in page.html(found)


def test_what_fails_on_a_peer_is_no_failure_of_the_run() -> None:
    assert result("create-1", FIGURES, {"fast": "broken"}).errors_of_ours() == []
    assert result("create-1", FIGURES, {"s3vol": "broken"}).errors_of_ours() == ["s3vol, create-1: broken"]
    assert result("create-1", FIGURES, {"plain": "broken"}).errors_of_ours() == ["plain, create-1: broken"]


def test_a_goal_is_missed_only_where_it_can_be_compared() -> None:
    assert CREATE.goals[:2] == (Goal(Against.PEER, 1.5), Goal(Against.LIMIT, 0.7))
    assert result("create-1", FIGURES).missed() == []
    assert result("create-1", {"s3vol": [1.0]}).missed() == []
    slower = FIGURES | {"s3vol": [40.0, 30.0, 50.0]}
    assert [line.split(":")[0] for line in result("create-1", slower).missed()] == ["s3vol, create-1"] * 2


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = result("create-1", FIGURES)
    found.save(tmp_path / "result.json")
    assert load(tmp_path / "result.json") == found
    assert compare.open_result(tmp_path) == found


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', "[]", '{"format": 1, "about": {}, "contestants": [1]}'])
def test_a_file_that_is_no_result_is_named_in_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"x\.json: not a result of"):
        load(file)


def test_the_page_is_whole_and_asks_nobody_for_anything() -> None:
    class Links(HTMLParser):
        open: list[str]
        links: list[str]

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.links += [value or "" for name, value in attributes if name in ("src", "href")]
            if tag == "svg":
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag == "svg":
                self.open.pop()

    text = page.html(result("create-1", FIGURES))
    reader = Links()
    reader.open, reader.links = [], []
    reader.feed(text)
    assert (reader.open, reader.links) == ([], [])
    assert "http" not in text
    assert text.count("<svg") == 3  # against the peer, against the limit, and the cost by stage


# What is a change.


def test_the_rank_test_is_exact() -> None:
    assert noise.p_less([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(1 / 252)
    assert noise.p_less([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) == pytest.approx(1.0)
    assert noise.p_less([1.0, 1.0], [1.0, 1.0]) == pytest.approx(1.0)
    assert noise.least_p(3, 3) == pytest.approx(1 / 20)


def test_a_change_is_beyond_the_noise_when_the_ranks_and_the_size_say_so() -> None:
    old = [100.0, 101.0, 99.0, 100.5, 99.5]
    ratio, beyond = noise.change(old, [80.0, 81.0, 79.0, 80.5, 79.5])
    assert ratio == pytest.approx(0.8)
    assert beyond
    assert noise.change(old, [97.0, 98.0, 96.0, 97.5, 96.5])[1] is False  # all lower, but by 3 %
    assert noise.change(old, [80.0, 120.0, 70.0, 60.0, 130.0])[1] is False  # lower, and within the spread
    assert noise.change(old, [125.0, 126.0, 124.0, 127.0, 123.0])[1] is True


def _five(s3vol: float, plain: float) -> dict[str, list[float]]:
    wobble = [1.0, 1.01, 0.99, 1.02, 0.98]
    return {"s3vol": [s3vol * w for w in wobble], "plain": [plain * w for w in wobble]}


def test_a_slower_machine_is_no_slower_s3vol() -> None:
    said, worse = compare.lines(result("create-1", _five(80, 100)), result("create-1", _five(40, 50)))
    assert (len(said), worse) == (1, False)


def test_what_got_worse_is_named_with_how_much() -> None:
    said, worse = compare.lines(result("create-1", _five(80, 100)), result("create-1", _five(40, 100)))
    assert worse
    assert "create-1" in said[0]
    assert "2.00 times WORSE" in said[0]
    said, worse = compare.lines(result("one-byte", _five(1, 1)), result("one-byte", _five(0.5, 1)))
    assert not worse
    assert "2.00 times better" in said[0]


def test_a_figure_that_is_lost_is_worse() -> None:
    new = result("create-1", _five(80, 100), {"s3vol": "f: not in the bucket"})
    said, worse = compare.lines(result("create-1", _five(80, 100)), new)
    assert worse
    assert any("has no figure any more: f: not in the bucket" in line for line in said)


# The sessions.


def test_a_row_brings_what_it_needs_and_nothing_else() -> None:
    (small,) = sessions.planned(frozenset({"delete-8"}))
    assert [step.row for stage in small.stages for step in stage] == ["create-8", "rename-directory", "delete-8"]
    (random,) = sessions.planned(frozenset({"ttfb"}))
    assert [[step.row for step in stage] for stage in random.stages] == [[sessions.PREPARE], ["ttfb"]]


def test_every_row_is_measured_by_one_session() -> None:
    steps = [step.row for session in sessions.SESSIONS for stage in session.stages for step in stage]
    assert sorted(step for step in steps if step != sessions.PREPARE) == sorted(row.name for row in ROWS)
