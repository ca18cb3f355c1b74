"""Deadlines that end in one line for the user instead of a time-out that nobody understands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from s3vol.errors import S3volError


@contextlib.contextmanager
def until(deadline: float, message: str) -> Iterator[None]:
    """Raise S3volError with `message` when the block is not done at `deadline` (time of the event loop)."""
    with trio.CancelScope(deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise S3volError(message)
