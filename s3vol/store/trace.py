"""Says what was asked of a store: one log event per call at DEBUG, and counters for `s3vol status`.

Theory of operation. The event has the fields `operation`, `key`, `body_bytes`, `duration_ms` and `outcome` ("ok", the
kind of error, or "cancelled"), as attributes of the log record and in its text. Placed under retry it shows every
attempt. NotFound and PreconditionFailed are answers and not failures: they are counted, but `last_error` keeps what
would alarm somebody. Nothing that travels is logged but the key: no body, no metadata, no URL, no credential.

Rejected: logging errors here at a higher level (an error is logged once, where it leaves s3vol).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from s3vol.errors import NotFound, PreconditionFailed, S3volError
from s3vol.store.base import Store
from s3vol.store.decorator import Call, Decorator, T
from s3vol.types import Health

logger = logging.getLogger(__name__)


class TraceStore(Decorator):
    """Counts into `health`: `store.calls`, `store.<operation>`, `store.errors`, `store.bytes_read`, `..._written`.

    The gauge `store.ok_at_s` is when the store last answered, on the clock `now_s` (seconds since 1970).
    """

    def __init__(self, inner: Store, health: Health, *, now_s: Callable[[], float] = time.time) -> None:
        super().__init__(inner)
        self._health = health
        self._now_s = now_s

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call and say how it went."""
        began_s = trio.current_time()
        outcome = "cancelled"
        try:
            result = await perform()
            outcome = "ok"
            self._answered()
            self._count_bytes(call)
        except S3volError as error:
            outcome = type(error).__name__
            self._note(call, error)
            raise
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            self._health.count("store.calls")
            self._health.count(f"store.{call.operation}")
            _log(call, outcome, (trio.current_time() - began_s) * 1000)
        return result

    def _answered(self) -> None:
        self._health.gauges["store.ok_at_s"] = self._now_s()

    def _count_bytes(self, call: Call) -> None:
        if call.body_bytes:
            self._health.count(
                "store.bytes_read" if call.operation in ("get", "fetch") else "store.bytes_written", call.body_bytes
            )

    def _note(self, call: Call, error: S3volError) -> None:
        if isinstance(error, NotFound | PreconditionFailed):
            self._answered()
            self._health.count(f"store.{type(error).__name__}")
            return
        self._health.count("store.errors")
        request = f" (request {error.request_id})" if error.request_id else ""
        self._health.last_error = f"{call}: {type(error).__name__}: {error}{request}"
        self._health.last_error_at_s = self._now_s()


def _log(call: Call, outcome: str, duration_ms: float) -> None:
    logger.debug(
        "%s key=%r body_bytes=%d duration_ms=%.2f outcome=%s",
        call.operation,
        call.key,
        call.body_bytes,
        duration_ms,
        outcome,
        extra={
            "operation": call.operation,
            "key": call.key,
            "body_bytes": call.body_bytes,
            "duration_ms": duration_ms,
            "outcome": outcome,
        },
    )
