"""Claims: which paths an operation holds, so that two local operations do not interleave on one name.

Theory of operation. An operation claims all its paths in one step and waits until none of them overlaps with a claim
that is held, or that somebody asked for earlier. Because all is claimed at once there is no order of locks to keep
and no deadlock, provided that nobody asks for claims while holding some: that is the one rule, and no room below
`fs` knows of claims. Shared claims (file I/O, attribute changes) do not overlap with each other; exclusive ones
(create, unlink, rename) overlap with everything on the same path. A tree claim covers the path and all below it.

Waiters are served in the order in which they came, so a rename is not starved by writers.

Rejected: one lock per directory (parallel unlinks in one directory would queue up behind each other's round trips),
and a lock per key taken in key order (a rename of a directory would have to lock keys that it does not know yet).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import trio


@dataclass(frozen=True, slots=True)
class Claim:
    """One path without a trailing `/`; the root is ""."""

    path: str
    shared: bool = False
    tree: bool = False


def overlaps(a: Claim, b: Claim) -> bool:
    """True when the two must not be held at the same time by different operations."""
    if a.shared and b.shared:
        return False
    return a.path == b.path or (a.tree and _below(b.path, a.path)) or (b.tree and _below(a.path, b.path))


def _below(path: str, root: str) -> bool:
    return not root or path.startswith(f"{root}/")


class Hold:
    """Async context manager of `Claims.hold`."""

    __slots__ = ("_claims", "_event", "_owner")

    def __init__(self, owner: Claims, claims: tuple[Claim, ...]) -> None:
        self._owner = owner
        self._claims = claims
        self._event: trio.Event | None = None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What is claimed."""
        return self._claims

    def conflicts(self, other: Hold) -> bool:
        """True when the two overlap."""
        return any(overlaps(a, b) for a in self._claims for b in other.claims)

    def grant(self) -> None:
        """Wake the waiter: it holds its claims from now on."""
        if self._event is not None:
            self._event.set()

    async def __aenter__(self) -> None:
        if self._owner.take(self):
            return
        self._event = trio.Event()
        try:
            await self._event.wait()
        except BaseException:
            self._owner.give_back(self)  # granted in the meantime or not
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._owner.give_back(self)


class Claims:
    """All claims of one mount. Used on the event loop only; no method awaits."""

    def __init__(self) -> None:
        self._held: list[Hold] = []
        self._waiting: list[Hold] = []  # in order of arrival

    def hold(self, *claims: Claim) -> Hold:
        """`async with claims.hold(...)`: waits until none of these overlaps with others' claims."""
        return Hold(self, claims)

    def take(self, hold: Hold) -> bool:
        """Hold it at once, or queue it and return False."""
        if any(hold.conflicts(other) for other in self._held) or any(hold.conflicts(other) for other in self._waiting):
            self._waiting.append(hold)
            return False
        self._held.append(hold)
        return True

    def give_back(self, hold: Hold) -> None:
        """End a claim, held or still waiting, and let those go on that waited for it only."""
        if hold in self._held:
            self._held.remove(hold)
        else:
            self._waiting.remove(hold)
        still: list[Hold] = []
        for waiter in self._waiting:
            if any(waiter.conflicts(other) for other in self._held) or any(waiter.conflicts(other) for other in still):
                still.append(waiter)
            else:
                self._held.append(waiter)
                waiter.grant()
        self._waiting = still
