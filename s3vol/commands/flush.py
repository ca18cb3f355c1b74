"""`s3vol flush`: return when everything, or one path, is published."""

from __future__ import annotations

import argparse
import os

from s3vol.commands import reach
from s3vol.control import Client
from s3vol.errors import UsageError

_CONNECT_S = 5.0
_SILENCE_S = 600.0  # a publish that fails says so after --timeout; this is for a large file on a slow link


def run(args: argparse.Namespace) -> int:
    """Wait for the publish. Raises S3volError with what could not be published."""
    record = reach.find(args.mountpoint)
    line = reach.ProgressLine("flushing")
    with Client(record.socket, timeout_s=_CONNECT_S) as client:
        client.send("flush", path=inner_path(record.mountpoint, args.path))
        try:
            for values in client.events(timeout_s=_SILENCE_S):
                line.show(values)
        finally:
            line.end()
    return 0


def inner_path(mountpoint: str, path: str | None) -> str | None:
    """A path as the mount knows it: relative, without `.` and `..`; None for everything. Raises UsageError."""
    if path is None:
        return None
    whole = os.path.normpath(os.path.join(mountpoint, path))
    if os.path.isabs(path) and not whole.startswith(mountpoint + "/") and whole != mountpoint:
        parent = os.path.realpath(os.path.dirname(whole))  # the user's way to the mount may have symbolic links
        whole = os.path.join(parent, os.path.basename(whole))
    inner = os.path.relpath(whole, mountpoint)
    if inner == ".." or inner.startswith("../"):
        raise UsageError(f"{path}: is not in the mount {mountpoint}")
    return None if inner == "." else inner
