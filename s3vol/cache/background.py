"""A place for jobs that nobody waits for."""

from __future__ import annotations

import trio


class Background:
    """Where jobs run that outlive the call that began them. Empty (`nursery` is None) while the cache is not served."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
