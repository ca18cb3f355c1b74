"""A log line is one event, in text and in JSON; and it never holds what the AWS libraries say when they debug."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3vol import logs


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("botocore", "pyfuse3", "httpx"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def fail(log: logging.Logger) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed", extra={"op": "write", "path": b"a\xff"})


def test_a_traceback_and_a_newline_stay_in_one_line_of_text(root: logging.Logger, tmp_path: Path) -> None:
    logs.configure("info", "text", tmp_path / "new" / "log")
    fail(logging.getLogger("s3vol.test"))
    logging.getLogger("s3vol.test").info("name with\r\nnewline")
    lines = (tmp_path / "new" / "log").read_text().splitlines()
    assert len(lines) == 2
    assert " error s3vol.test: it failed op=write path=a\\xff Traceback" in lines[0]
    assert "ValueError: two" in lines[0]
    assert lines[1].endswith("name with\\r\\nnewline")


def test_json_is_one_object_a_line_with_the_fields(root: logging.Logger, tmp_path: Path) -> None:
    logs.configure("info", "json", tmp_path / "log")
    fail(logging.getLogger("s3vol.test"))
    (line,) = (tmp_path / "log").read_text().splitlines()
    event = json.loads(line)
    assert {"level": "error", "logger": "s3vol.test", "message": "it failed", "op": "write"}.items() <= event.items()
    assert event["time"].endswith("Z")
    assert "ValueError" in event["traceback"]


def test_debug_does_not_make_the_aws_libraries_talk(root: logging.Logger, tmp_path: Path) -> None:
    logs.configure("debug", "text", tmp_path / "log")
    logging.getLogger("botocore.auth").debug("StringToSign and a session token")
    logging.getLogger("s3vol.test").debug("ours")
    text = (tmp_path / "log").read_text()
    assert "token" not in text
    assert "ours" in text


def test_requests_to_a_cluster_are_no_lines_of_the_log(root: logging.Logger, tmp_path: Path) -> None:
    logs.configure("info", "text", tmp_path / "log")
    logging.getLogger("httpx").info("HTTP Request: GET")
    logging.getLogger("httpx").warning("trouble")
    text = (tmp_path / "log").read_text()
    assert "GET" not in text
    assert "trouble" in text


def test_warnings_of_python_are_log_lines(root: logging.Logger, tmp_path: Path) -> None:
    logs.configure("warning", "text", tmp_path / "log")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("something is deprecated", stacklevel=1)
    assert "something is deprecated" in (tmp_path / "log").read_text()


def test_a_log_file_is_its_owner_s_also_after_it_was_rotated(
    root: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 100)
    logs.configure("info", "text", tmp_path / "log")
    for _ in range(3):
        logging.getLogger("s3vol.test").info("a line of some length, so that three of them are too many")
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"log": 0o600, "log.1": 0o600}


def test_a_traceback_holds_no_values(root: logging.Logger, tmp_path: Path) -> None:
    def connect(secret: str) -> None:
        raise RuntimeError(f"no answer to {len(secret)} characters")

    logs.configure("debug", "json", tmp_path / "log")
    try:
        connect("top-secret-key".upper())
    except RuntimeError:
        logging.getLogger("s3vol.test").exception("it failed")
    text = (tmp_path / "log").read_text()
    assert "no answer to 14 characters" in text
    assert "TOP-SECRET-KEY" not in text


def test_a_log_file_is_bounded(root: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 1000)
    logs.configure("info", "text", tmp_path / "log")
    for i in range(100):
        logging.getLogger("s3vol.test").info("line %d", i)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert (tmp_path / "log").stat().st_size <= 1000
