"""What the bucket told us lately: attributes by key, believed for `ttl_s` and never longer.

Theory of operation. A listing tells the attributes of a thousand files; the lookups that follow are answered from
here. Only positive knowledge is kept: a file that another node has just closed must be found, so "absent" is never an
answer (close-to-open). One exception: `create` may rely on the lookup that the kernel sent immediately before it.
That a name was once seen to be nothing is also a reason to look twice when a listing shows it (`seemed_absent`).

Age counts from the moment the request *began*. An answer to a request that began before a change made on this node
must not overwrite what we know better: each request runs as an `Ask`, and every local change is told to the asks that
are in flight. A stale answer is asked for again, or not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

from s3vol.types import ObjectInfo

LIMIT = 50_000
"""Entries kept at most, about 1 KB each with their headers; those that have expired go as new ones come."""


@dataclass(frozen=True, slots=True)
class Fact:
    """An object (or, with None, a directory known by a name below it) as of `at_s`."""

    info: ObjectInfo | None
    at_s: float


@dataclass(eq=False, slots=True)
class Ask:
    """A request to the bucket that is under way."""

    at_s: float
    keys: set[str] = field(default_factory=set)
    trees: list[str] = field(default_factory=list)

    def stale(self, key: str) -> bool:
        """True when this node changed `key` since the request began."""
        return key in self.keys or any(key.startswith(tree) for tree in self.trees)

    def concerns(self, prefix: str) -> bool:
        """True when this node changed anything below `prefix` (which ends in `/`) since the request began."""
        if any(key.startswith(prefix) for key in self.keys):
            return True
        return any(tree.startswith(prefix) or prefix.startswith(tree) for tree in self.trees)


class Learned:
    """Facts by key (directories end in `/`). Used on the event loop only; no method awaits."""

    def __init__(self, ttl_s: float, clock: Callable[[], float], limit: int = LIMIT) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._limit = limit
        self._facts: dict[str, Fact] = {}
        self._absent: dict[str, float] = {}
        self._asks: set[Ask] = set()

    def __len__(self) -> int:
        return len(self._facts)

    @contextmanager
    def asking(self) -> Iterator[Ask]:
        """Around every request whose answer is to be kept."""
        ask = Ask(self._clock())
        self._asks.add(ask)
        try:
            yield ask
        finally:
            self._asks.discard(ask)

    def now_s(self) -> float:
        """The clock that ages are counted on, in seconds."""
        return self._clock()

    def fresh(self, at_s: float) -> bool:
        """True while something learned at `at_s` may be believed."""
        return self._clock() - at_s < self._ttl_s

    def left_s(self, at_s: float) -> float:
        """For how long something learned at `at_s` may still be believed."""
        return max(0.0, min(self._ttl_s, at_s + self._ttl_s - self._clock()))

    def put(self, key: str, info: ObjectInfo | None, ask: Ask) -> None:
        """Keep an answer, unless it is older than a change of our own."""
        if ask.stale(key):
            return
        self._facts.pop(key, None)  # so that the dictionary is in order of age
        self._facts[key] = Fact(info, ask.at_s)
        self._prune()

    def get(self, key: str) -> Fact | None:
        """What is known of `key` and still believed."""
        fact = self._facts.get(key)
        return fact if fact is not None and self.fresh(fact.at_s) else None

    def put_absent(self, path: str, ask: Ask) -> None:
        """A lookup found nothing at all at `path`: no file, no directory, no tombstone."""
        if ask.stale(path):
            return
        self._absent[path] = ask.at_s
        self._bound_absent()

    def is_absent(self, path: str) -> bool:
        """What `take_absent` would answer; the question does not count."""
        at_s = self._absent.get(path)
        return at_s is not None and self.fresh(at_s)

    def take_absent(self, path: str) -> bool:
        """True once after a lookup that found nothing at `path`, and began less than `ttl_s` ago."""
        at_s = self._absent.pop(path, None)
        return at_s is not None and self.fresh(at_s)

    def seemed_absent(self, path: str) -> bool:
        """True when nothing was at `path` once, however long ago, and this node put nothing there since."""
        return path in self._absent

    def suspect(self, path: str) -> None:
        """Nothing should be at `path`: who sees it in a listing is to look twice."""
        self._absent.setdefault(path, -inf)
        self._bound_absent()

    def trust(self, path: str) -> None:
        """Something is at `path` after all."""
        self._absent.pop(path, None)

    def forget(self, key: str) -> None:
        """The bucket said that this is no longer so."""
        self._facts.pop(key, None)

    def changed(self, key: str) -> None:
        """This node changes `key`: forget it, and mark the requests in flight as older than that."""
        for ask in self._asks:
            ask.keys.add(key)
        self._facts.pop(key, None)
        self._absent.pop(key.removesuffix("/"), None)

    def changed_below(self, prefix: str) -> None:
        """This node changes everything below `prefix` (which ends in `/`)."""
        for ask in self._asks:
            ask.trees.append(prefix)
        for key in [key for key in self._facts if key.startswith(prefix)]:
            del self._facts[key]
        self._absent.clear()

    def _bound_absent(self) -> None:
        if len(self._absent) > self._limit:
            self._absent.clear()

    def _prune(self) -> None:
        # Two for each that comes: what has expired is gone soon, and no insertion has to pay for a sweep.
        for _ in range(2):
            key = next(iter(self._facts), None)
            if key is None:  # what has just come was too old itself: its answer took longer than it may be believed
                return
            if len(self._facts) <= self._limit and self.fresh(self._facts[key].at_s):
                return
            del self._facts[key]
