"""Repeats what may work the next time, until a deadline: the only place of s3vol where a store's call is repeated.

Theory of operation. A retryable error (time-out, broken connection, 5xx) is followed by a pause that doubles from
`first_pause_s` to `longest_pause_s`, with the upper half drawn at random so that the nodes of a swarm do not come back
in step. No attempt begins after `timeout_s`, and no attempt hangs: it is cut after `attempt_timeout_s`, or at the
deadline if that is nearer. What takes long by nature gets more: a body the time it needs on a slow line, and what the
server does alone (copies, completing an upload) ten minutes.

An attempt with an unknown outcome is simply repeated. Under a condition the repetition may meet our own write and
raise PreconditionFailed; that is the contract (store/base.py), and the caller's nonce tells.

Rejected: the clients' own retries (they hide the ambiguous outcome and know no deadline of ours), and a circuit
breaker (the deadline bounds the wait, the pauses bound the load, and recovery is seen at once).
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable

import trio

from s3vol.errors import S3volError, Unavailable
from s3vol.store.base import Store
from s3vol.store.decorator import Call, Decorator, Operation, T
from s3vol.types import KIB, Health

SLOWEST_BYTES_PER_S = 64 * KIB
"""A line slower than this is a broken one: half of a 1 Mbit/s uplink."""

SERVER_SIDE_S = 600.0
"""For what moves bytes without us: MinIO copied 1 GiB in 5 s on a busy disk, so this is over 100 GiB."""

_SERVER_SIDE: frozenset[Operation] = frozenset({"copy", "copy_part", "complete_upload", "sync"})


class _Cut(Unavailable):
    """An attempt that we ended because it took too long."""


class RetryStore(Decorator):
    """Raises what the store raised, except retryable errors: those as Unavailable after `timeout_s` seconds.

    Counts `store.retries` and `store.gave_up` into `health`; an attempt that was cut is its last error.
    """

    def __init__(
        self,
        inner: Store,
        *,
        timeout_s: float = 60.0,
        attempt_timeout_s: float = 30.0,
        first_pause_s: float = 0.05,
        longest_pause_s: float = 5.0,
        rng: random.Random | None = None,
        health: Health | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(inner)
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._rng = rng or random.Random()
        self._health = health or Health()
        self._now_s = now_s

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call until it succeeds, fails for good, or the deadline is near."""
        began_s = trio.current_time()
        attempts = 0
        while True:
            left_s = max(began_s + self._timeout_s - trio.current_time(), 0.0)
            attempts += 1
            try:
                return await _bounded(perform, min(self._attempt_timeout_s, left_s) + allowance_s(call))
            except S3volError as error:
                if not error.retryable:
                    raise
                if isinstance(error, _Cut):
                    self._note(call, error)
                pause_s = self._pause_s(attempts)
                waited_s = trio.current_time() - began_s
                if waited_s + pause_s >= self._timeout_s:
                    self._health.count("store.gave_up")
                    raise Unavailable(f"{call}: gave up after {waited_s:.1f} s, attempt {attempts}: {error}") from error
            self._health.count("store.retries")
            await trio.sleep(pause_s)

    def _note(self, call: Call, error: _Cut) -> None:
        """A store that says nothing is trouble too; a trace below sees only that its call was cancelled."""
        self._health.count("store.errors")
        self._health.last_error = f"{call}: {error}"
        self._health.last_error_at_s = self._now_s()

    def _pause_s(self, attempts: int) -> float:
        whole_s = min(self._longest_pause_s, self._first_pause_s * 2.0 ** min(attempts - 1, 30))
        return whole_s * self._rng.uniform(0.5, 1.0)


def allowance_s(call: Call) -> float:
    """Seconds that this call may take beyond those of one that answers at once."""
    return SERVER_SIDE_S if call.operation in _SERVER_SIDE else call.body_bytes / SLOWEST_BYTES_PER_S


async def _bounded(perform: Callable[[], Awaitable[T]], bound_s: float) -> T:
    with trio.move_on_after(bound_s):
        return await perform()
    raise _Cut(f"no answer within {bound_s:.1f} s")
