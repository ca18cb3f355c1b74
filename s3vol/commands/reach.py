"""From a mount point that a user names to the record of who serves it, and progress on the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from s3vol import mounts, runtime
from s3vol.errors import UsageError
from s3vol.units import format_bytes


def find(mountpoint: str) -> runtime.Record:
    """The record of a mount point. Raises UsageError."""
    path = mounts.canonical(mountpoint)
    record = runtime.find_record(path, os.environ)
    if record is None:
        mounted = mounts.find_mount(path)
        what = f"{mounted.type} is mounted there, not s3vol" if mounted else "no s3vol mount"
        if mounted and mounted.type == mounts.TYPE:
            what = "is mounted by another user, or with another S3VOL_RUNTIME_DIR"
        raise UsageError(f"{mountpoint}: {what}")
    return record


class ProgressLine:
    """What is still to do: one line that is rewritten on a terminal, one line a second elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + 0.5  # what takes less than that needs no line
        self._shown = False

    def show(self, values: Mapping[str, Any]) -> None:
        """Show the newest values, if it is time to."""
        if "files" in values:
            self.say(f"{values['files']} files, {format_bytes(values['bytes'])} to go")

    def say(self, progress: str) -> None:
        """Show this text, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self._terminal else 1.0)
        text = f"{self._what}: {progress}"
        print(
            f"\r{text:<70}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )
        self._shown = True

    def end(self) -> None:
        """Leave the line."""
        if self._shown and self._terminal:
            print("\r" + " " * 70 + "\r", end="", file=sys.stderr, flush=True)
