"""How often each crash point was the end of a mount process in this run; the summary of the run shows it."""

from __future__ import annotations

from collections import Counter

from s3vol.failpoints import Point

KILLS: Counter[Point] = Counter()


def summary() -> str:
    """One line, or nothing when nobody was killed."""
    if not KILLS:
        return ""
    return f"crash points: {len(KILLS)} of {len(Point)} named ones, {KILLS.total()} kills"
