"""What is asked of a mount process over its control socket, from the event loop.

The client of s3vol.control is a blocking one, so each question runs in a thread; one that is cancelled is interrupted
and waited for, so that no thread and no socket is left behind. These threads do not count against trio's limit of
40: so many processes that drain or hang would keep the state of all other volumes from being saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from s3vol.control import Client, NotServing
from s3vol.errors import S3volError
from s3vol_plugin.base import Left

CONNECT_S = 3.0  # a healthy process answers in a millisecond; one that hangs is to be found out soon
_SLACK_S = 45.0  # beyond a deadline: a request on its way (25 s at most), and 5 s for each of two steps of the end

Result = TypeVar("Result")


class Conversation:
    """A connection to one mount process. Raises control.NotServing when it does not answer."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def status(self) -> Mapping[str, Any]:
        """The values of `s3vol status --json`."""
        values = await self._wait(partial(self._client.ask, "status", timeout_s=CONNECT_S))
        return {name: value for name, value in values.items() if name != "event"}

    async def drain(self, deadline_s: float) -> Left:
        """Publish for so long; what is left is journaled. The mount goes on."""
        return await self._wait(
            lambda: _left(self._client.ask("drain", deadline_s=deadline_s, timeout_s=deadline_s + _SLACK_S))
        )

    async def announce_end(self, deadline_s: float) -> None:
        """Say that an unmount follows, whose drain is to end within `deadline_s`."""

        def announce() -> None:
            self._client.send("end", deadline_s=deadline_s)
            next(self._client.events(timeout_s=CONNECT_S))  # from here on the process knows that we wait for its end

        await self._wait(announce)

    async def await_end(self, deadline_s: float) -> Left:
        """After `announce_end` and the unmount: what the process has left when it is done."""

        def follow() -> Left:
            *_, last = self._client.events(timeout_s=deadline_s + _SLACK_S)
            return _left(last)

        return await self._wait(follow)

    async def _wait(self, ask: Callable[[], Result]) -> Result:
        """Run `ask` in a thread; cancelled, it is interrupted, and this returns when the thread has."""
        answers: list[Result] = []
        errors: list[S3volError] = []

        async def run() -> None:
            with trio.CancelScope(shield=True):
                try:
                    answers.append(await trio.to_thread.run_sync(ask, limiter=trio.CapacityLimiter(1)))
                except S3volError as error:
                    errors.append(error)
                except ValueError:  # a line that ends in its middle
                    errors.append(NotServing("the mount process ended before it answered"))
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await trio.sleep_forever()
            finally:
                if not (answers or errors):
                    self._client.interrupt()
        await trio.lowlevel.checkpoint_if_cancelled()
        if errors:
            raise errors[0]
        return answers[0]


def _left(values: Mapping[str, Any]) -> Left:
    return Left(files=int(values["files"]), bytes=int(values["bytes"]))


@contextlib.asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[Conversation]:
    """A connection to the process behind a control socket. Raises control.NotServing."""
    connect = partial(Client, socket, timeout_s=CONNECT_S)
    client = await trio.to_thread.run_sync(connect, limiter=trio.CapacityLimiter(1))
    try:
        yield Conversation(client)
    finally:
        client.close()
