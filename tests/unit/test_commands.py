"""What the commands decide before and after they talk to anybody."""

from __future__ import annotations

import dataclasses
import errno
import logging
from pathlib import Path
from typing import Any

import pytest

from s3vol.cli import main, mount_helper, parse
from s3vol.commands.doctor import Facts, beside, gather, judge, report
from s3vol.commands.flush import inner_path
from s3vol.commands.plan import volume_name
from s3vol.errors import Conflict, NotFound, PosixError, Unavailable, UsageError
from s3vol.runtime import Record
from s3vol.status import endpoint_values, record_values, render
from s3vol.store import edge
from s3vol.store.base import Capabilities, Page
from s3vol.store.memory import MemoryStore
from s3vol.types import Health, ObjectInfo
from s3vol_fuse import reply

# The command line.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["mount"], "the following arguments are required: source, mountpoint"),
        (["mount", "b", "/mnt", "--cache-sise", "1G"], "--cache-sise: unknown option; did you mean cache-size?"),
        (["mount", "b", "/mnt", "--cache-sise=1G"], "--cache-sise: unknown option; did you mean cache-size?"),
        (["mount", "b", "/mnt", "--write"], "--write: unknown option; did you mean write-back?"),
        (["umount", "/mnt", "--forc"], "--forc: unknown option; did you mean force?"),
        (["status", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_a_command_line_that_is_wrong_is_answered_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_flags_are_given_as_text_and_only_those_that_were_written() -> None:
    args = parse(["mount", "-o", "ro", "--cache-size", "1G", "--no-allow-other", "b", "/mnt", "-o", "uploads=2"])
    assert args.given == {"cache-size": "1G", "allow-other": "no"}
    assert args.lists == ["ro", "uploads=2"]


def test_a_mount_helper_says_what_it_does_not_support(capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper(["bucket", "/mnt", "-N", "/proc/1/ns/mnt"]) == 2
    assert mount_helper(["bucket", "/mnt", "-o", "uplods=2,_netdev"]) == 2
    assert mount_helper(["b"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "-N is not supported" in lines[0]
    assert "-o uplods: unknown option; did you mean uploads?" in lines[1]
    assert "mountpoint" in lines[2]


# Paths and names.


@pytest.mark.parametrize(
    ("path", "inner"),
    [(None, None), (".", None), ("/mnt", None), ("a/b", "a/b"), ("/mnt/a/../b", "b"), ("a//b/", "a/b")],
)
def test_a_path_to_flush_is_relative_to_the_mount(path: str | None, inner: str | None) -> None:
    assert inner_path("/mnt", path) == inner


@pytest.mark.parametrize("path", ["..", "../x", "/etc/passwd", "/mnt2/x", "a/../../x"])
def test_a_path_outside_of_the_mount_cannot_be_flushed(path: str) -> None:
    with pytest.raises(UsageError, match="is not in the mount /mnt"):
        inner_path("/mnt", path)


def test_the_way_to_a_mount_may_have_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    assert inner_path(str(tmp_path / "mnt"), str(tmp_path / "link" / "f")) == "f"


def test_a_volume_s_name_differs_by_url_and_by_endpoint_and_by_nothing_else() -> None:
    name = volume_name("s3://bucket/data", "http://a:9000")
    assert name == volume_name("s3://bucket/data", "http://a:9000")
    assert name.startswith("bucket-data-")
    others = {
        volume_name("s3://bucket/data", "http://b:9000"),
        volume_name("s3://bucket-data", "http://a:9000"),
        volume_name("file:///bucket/data", "http://a:9000"),
        volume_name("s3://bucket/" + "x" * 500, "http://a:9000"),
        volume_name("memory:", "this machine"),
    }
    assert len({name, *others}) == 6
    assert all(len(other) < 100 and "/" not in other for other in others)


# Doctor.

FACTS = Facts(
    source="s3://b",
    endpoint="http://m:9000",
    server="MinIO",
    region="us-east-1",
    clock_skew_s=0.2,
    round_trip_ms=1.5,
    read_only=False,
    capabilities=Capabilities(),
    keys_scanned=3,
    scan_complete=True,
    foreign_keys=0,
    foreign_examples=(),
    hidden_files=0,
    format_present=False,
)


def judged(**changes: Any) -> tuple[str, str]:
    problems, advice = judge(dataclasses.replace(FACTS, **changes))
    return "\n".join(problems), "\n".join(advice)


def test_a_healthy_endpoint_has_neither_problems_nor_advice() -> None:
    assert judged() == ("", "")
    assert report(FACTS, [], [])[-1] == "result       ok"


def test_what_makes_a_promise_impossible_is_a_problem() -> None:
    assert "conditional PUT" in judged(capabilities=Capabilities(conditional_replace=False))[0]
    assert "refused: use NTP" in judged(clock_skew_s=-1200.0)[0]
    assert "3 keys are no path" in judged(foreign_keys=3, foreign_examples=("a//b",))[0]
    assert "2 objects are named like a directory" in judged(hidden_files=2)[0]


def test_what_only_costs_time_is_advice() -> None:
    for changes, words in (
        ({"read_only": True}, "--read-only"),
        ({"capabilities": Capabilities(copy_part=False)}, "UploadPartCopy"),
        ({"capabilities": Capabilities(list_metadata=False)}, "listings bring no attributes"),
        ({"round_trip_ms": 250.0}, "--write-back"),
        ({"clock_skew_s": 400.0}, "clocks differ"),
    ):
        problems, advice = judged(**changes)
        assert problems == ""
        assert words in advice


class Listed(MemoryStore):
    """A store that lists keys which s3vol would never make, two a page."""

    keys = (".s3vol/format.json", "a/../b", "a//b", "a/b", "x", "x/y", "z/")

    async def list(self, prefix: str, *, cursor: str | None = None, **options: Any) -> Page:
        at = int(cursor or 0)
        objects = tuple(ObjectInfo(key, 0, "", 0) for key in self.keys[at : at + 2])
        return Page(objects, (), str(at + 2) if at + 2 < len(self.keys) else None)


async def test_a_bounded_listing_counts_keys_that_are_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Listed()
    values = {name: getattr(FACTS, name) for name in ("endpoint", "server", "region", "clock_skew_s", "round_trip_ms")}
    values |= {"read_only": False, "capabilities": store.capabilities}
    facts = await gather(store, values)
    assert (facts.keys_scanned, facts.scan_complete, facts.format_present) == (6, True, False)
    assert (facts.foreign_keys, facts.foreign_examples, facts.hidden_files) == (2, ("a/../b", "a//b"), 1)
    monkeypatch.setattr("s3vol.commands.doctor.SCAN_MAX_KEYS", 1)
    facts = await gather(store, values)
    assert (facts.keys_scanned, facts.scan_complete) == (1, False)


def test_an_object_beside_a_directory_of_its_name_is_counted() -> None:
    assert beside(["a", "a/b", "ab", "b/", "b/c"], "") == 1
    assert beside(["a/b"], "a") == 1
    assert beside(["x"], "") == 0


# Status.


def test_an_endpoint_is_troubled_until_a_call_works_again() -> None:
    health = Health()
    assert endpoint_values(health, "u", 100.0)["ok"] is True
    health.last_error, health.last_error_at_s = "put: timed out", 95.0
    values = endpoint_values(health, "u", 100.0)
    assert (values["ok"], values["last_error_s"], values["last_ok_s"]) == (False, 5.0, None)
    health.gauges["store.ok_at_s"] = 96.0
    values = endpoint_values(health, "u", 100.0)
    assert (values["ok"], values["last_ok_s"]) == (True, 4.0)


def test_a_dead_mount_is_shown_with_the_way_out() -> None:
    record = Record("/mnt", "s3://b", 7, 1, "1.0", "/log", "/run/s3vol")
    text = render([record_values(record, "dead")])
    assert "s3://b on /mnt" in text
    assert "dead (pid 7, s3vol 1.0)" in text
    assert "umount --force" in text
    assert render([]) == "no mounts\n"


def test_a_mount_says_what_is_in_trouble() -> None:
    record = Record("/mnt", "s3://b", 7, 1, "1.0", "/log", "/run/s3vol")
    health = Health(counts={"store.retries": 4}, last_error="put 'a': Unavailable: timed out", last_error_at_s=70.0)
    cache = {"directory": "/c", "used_bytes": 1, "size_bytes": 2, "in_flight_bytes": 0}
    more = {"cache": cache, "mode": "shared", "close": "remote", "fsync": "remote", "capabilities": {}}
    found: dict[str, Any] = {
        "conflicts": 2,
        "quarantined": 1,
        "dirty_files": 3,
        "dirty_bytes": 5000,
        "oldest_dirty_s": 65.0,
    }
    found["warnings"] = ["the head of n1 cannot be read"]
    values = record_values(record, "serving") | more | found | {"endpoint": endpoint_values(health, "u", 100.0)}
    text = render([values])
    assert "trouble   2 conflicts, 1 quarantined" in text
    assert "warning   the head of n1 cannot be read" in text
    assert "dirty     3 files, 4.9 KiB, the oldest for 1m05s" in text
    assert "4 retries; last error 30s ago: put 'a': Unavailable: timed out" in text


# Errors that reach a program.


@pytest.mark.parametrize(
    ("error", "number", "level"),
    [
        (NotFound("x"), errno.ENOENT, logging.DEBUG),
        (PosixError(errno.ENOTEMPTY), errno.ENOTEMPTY, logging.DEBUG),
        (Unavailable("timed out"), errno.EIO, logging.WARNING),
        (Conflict("a", "a.copy"), errno.ESTALE, logging.DEBUG),
        (ExceptionGroup("of one", [Unavailable("timed out")]), errno.EIO, logging.WARNING),
        (ZeroDivisionError("a fault"), errno.EIO, logging.ERROR),
    ],
)
def test_an_error_becomes_an_errno_and_is_logged_once(
    error: Exception, number: int, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert reply.failure(error, "write", "a").errno == number
    assert [(row.levelno, getattr(row, "op", None)) for row in caplog.records] == [(level, "write")]
    assert bool(caplog.records[0].exc_info) == (level == logging.ERROR)


def test_the_line_of_an_error_has_the_path_and_the_store_s_name_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = edge.answer_of_body(503, "<Error><Code>SlowDown</Code><RequestId>18EA263B0FC9DF09</RequestId></Error>")
    try:
        try:
            raise edge.judge(answer, "put a/b")
        except Unavailable as error:
            raise Unavailable("gave up") from error
    except Unavailable as error:
        reply.failure(error, "flush", "a/b")
    (row,) = caplog.records
    fields = {"op": "flush", "path": "a/b", "request_id": "18EA263B0FC9DF09"}
    assert {name: getattr(row, name) for name in fields} == fields
