"""Where log lines go and what they look like: text for people, JSON for machines.

One line is one event: time in UTC, level, the module, the message, and the fields that the caller gave in `extra`
(`op`, `path`, `request_id`, `key`). Tracebacks are folded into the line, so that a line stays an event.

The AWS libraries write signatures and session tokens at level debug; they are never let below info. A log file is
bounded: a mount runs for months, and its log must not fill the disk that the cache is on.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Any

MAX_LOG_BYTES = 8 << 20  # about 60,000 lines; one older file of the same size is kept
_TALKATIVE = {
    **dict.fromkeys(("boto3", "botocore", "s3transfer", "urllib3", "pyfuse3", "obstore", "asyncio"), logging.INFO),
    "httpx": logging.WARNING,  # tells each request: a volume in IPFS asks its cluster all the time
}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z warning s3vol.cache.x: message op=write path=a/b request_id=18EA263B0FC9DF09`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, with the traceback (if any) folded in."""
        parts = [f"{_time(record)} {record.levelname.lower()} {record.name}: {record.getMessage()}"]
        parts += [f"{name}={_plain(value)}" for name, value in _fields(record).items()]
        if record.exc_info:
            parts.append(" | ".join(self.formatException(record.exc_info).splitlines()))
        line = " ".join(parts)
        if line.isprintable():
            return line
        # A name may hold ends of lines, what a terminal obeys, and bytes that are no text.
        return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The object; values that JSON does not know are written as text."""
        event: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=_plain)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _plain(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """A log that only its owner reads: it names files, also of directories that others may not look into."""

    def _open(self) -> TextIOWrapper:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return open(fd, "a", encoding=self.encoding)  # the handler closes it


def configure(level: str, style: str, file: Path | None) -> None:
    """Send everything to `file`, or to stderr when it is None. `style` is `text` or `json`. Raises OSError."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFile(file, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, least in _TALKATIVE.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.captureWarnings(True)
