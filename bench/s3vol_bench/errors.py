"""What can end a measurement. Each message is one line that goes into the report."""

from __future__ import annotations


class BenchError(Exception):
    """A figure could not be made: a program failed, a mount did not come up, bytes that were read are wrong."""


class PromiseBroken(BenchError):
    """The bucket did not hold what it had to hold at that moment; the message names the first object."""
