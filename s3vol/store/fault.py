"""A store that fails on demand: the faults that a network and an endpoint have, each at a chosen call.

Theory of operation. A test holds `FaultControls` and tells it what shall happen to the next calls of an operation.
Faults of one operation queue up; each is used once. What can be asked for is what was seen in the wild: the call fails
before it is applied; it is applied and the reply is lost; it hangs until somebody lets it go; a body is cut; an ETag
is wrong; everything is down. Under retry, limit and cache the faults look exactly like real ones.

Rejected: random faults (a failure that cannot be repeated proves nothing; a test draws its own order from a seed).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

from s3vol.errors import S3volError, Unavailable
from s3vol.store.base import ANY, FILE_TYPE, Buffer, Condition, Store
from s3vol.store.decorator import Call, Decorator, Operation, T


class Gate:
    """A call that waits: `entered` is set when it has arrived, and it goes on after `open()`."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._opened = trio.Event()

    def open(self) -> None:
        """Let the call go on."""
        self._opened.set()

    async def pass_through(self) -> None:
        """Arrive, and wait until the gate is open."""
        self.entered.set()
        await self._opened.wait()


@dataclass(slots=True)
class _Fault:
    before: S3volError | None = None
    after: S3volError | None = None
    gate_before: Gate | None = None
    gate_after: Gate | None = None


@dataclass(slots=True)
class FaultControls:
    """What shall go wrong. Fields may be set at any time; `calls` counts what arrived, by operation."""

    down: bool = False  # every call raises Unavailable, nothing is applied
    truncate_get_bytes: int | None = None  # the next get returns only so many bytes
    corrupt_next_etag: bool = False  # the next put is applied and returns another ETag
    calls: Counter[Operation] = field(default_factory=Counter)
    _faults: dict[Operation, deque[_Fault]] = field(default_factory=dict)

    def fail_next(self, operation: Operation, error: S3volError | None = None, *, times: int = 1) -> None:
        """The next `times` calls raise `error` (Unavailable by default) and are not applied."""
        for _ in range(times):
            self._queue(operation).append(_Fault(before=error or Unavailable("injected: connection refused")))

    def apply_then_fail(self, operation: Operation, error: S3volError | None = None, *, times: int = 1) -> None:
        """The next `times` calls are applied, and then the connection breaks."""
        for _ in range(times):
            self._queue(operation).append(_Fault(after=error or Unavailable("injected: applied, then reply lost")))

    def hold(self, operation: Operation) -> Gate:
        """The next call waits at the gate before it is applied."""
        gate = Gate()
        self._queue(operation).append(_Fault(gate_before=gate))
        return gate

    def hold_reply(self, operation: Operation) -> Gate:
        """The next call is applied, and its reply waits at the gate."""
        gate = Gate()
        self._queue(operation).append(_Fault(gate_after=gate))
        return gate

    def next_fault(self, operation: Operation) -> _Fault:
        """Take the fault that is meant for this call; an empty one when there is none."""
        queue = self._faults.get(operation)
        return queue.popleft() if queue else _Fault()

    def _queue(self, operation: Operation) -> deque[_Fault]:
        return self._faults.setdefault(operation, deque())


class FaultStore(Decorator):
    """The store inside, with the faults that `controls` asks for."""

    def __init__(self, inner: Store, controls: FaultControls | None = None) -> None:
        super().__init__(inner)
        self.controls = controls or FaultControls()

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call, with the fault that is next in its queue."""
        self.controls.calls[call.operation] += 1
        if self.controls.down:
            await trio.lowlevel.checkpoint()
            raise Unavailable("injected: endpoint is down")
        fault = self.controls.next_fault(call.operation)
        if fault.gate_before is not None:
            await fault.gate_before.pass_through()
        if fault.before is not None:
            await trio.lowlevel.checkpoint()
            raise fault.before
        result = await perform()
        if fault.gate_after is not None:
            await fault.gate_after.pass_through()
        if fault.after is not None:
            raise fault.after
        return result

    async def get(self, key: str, start: int, length: int, *, if_match: str | None = None) -> Buffer:
        """As the store inside; cut when `truncate_get_bytes` says so."""
        body = await super().get(key, start, length, if_match=if_match)
        kept_bytes, self.controls.truncate_get_bytes = self.controls.truncate_get_bytes, None
        return body if kept_bytes is None else body[:kept_bytes]

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str],
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
    ) -> str:
        """As the store inside; with another ETag when `corrupt_next_etag` says so."""
        etag = await super().put(key, body, metadata=metadata, content_type=content_type, condition=condition)
        corrupt, self.controls.corrupt_next_etag = self.controls.corrupt_next_etag, False
        return etag[::-1] if corrupt else etag
