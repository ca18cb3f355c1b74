"""A store that is opened by the first call that needs it, and opened anew when its credentials are refused.

The daemon must answer dockerd while the bucket cannot be reached, also from its first moment on: opening a store asks
the bucket. A failure to open is Unavailable here whatever it is, with its own line: a server that is still starting and
a key that is not there yet look alike, and the next call tries again.

Named credentials are files that an administrator may replace while the daemon runs. A call that is refused makes the
next one read them again; so does `renew`. A store that was replaced is closed when the last call that is under way in
it has ended: keys that lack one permission are refused for ever, and each store has connections of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import trio

from s3vol.errors import Denied, S3volError, Unavailable, UsageError
from s3vol.store.base import Store
from s3vol.store.decorator import Call, Decorator
from s3vol.store.memory import MemoryStore

_CLOSE_S = 5.0  # connections are closed at once, or not at all

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Opened:
    """An open store: what closes it, and how many calls are under way in it."""

    closing: AsyncExitStack
    calls: int = 0


class LateStore(Decorator):
    """See the module's docstring. `url` is that of the store to be; `opening` opens it."""

    def __init__(self, url: str, opening: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
        super().__init__(MemoryStore())  # in the place of the store until it is open; no call reaches it
        self._url = url
        self._opening = opening
        self._current: _Opened | None = None
        self._replaced: list[_Opened] = []
        self._lock = trio.Lock()  # guards opening: one task does, the others wait, or do it when that one gives up

    @property
    def url(self) -> str:
        """Of the store, open or not."""
        return self._url

    def renew(self) -> None:
        """Open the store anew before the next call."""
        if self._current is not None:
            self._replaced.append(self._current)
            self._current = None

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call on the open store. Raises Unavailable when it cannot be opened."""
        opened = await self._open()
        opened.calls += 1  # no await since it was opened: it is the store that `perform` uses, and nobody closes it
        try:
            return await perform()
        except Denied:
            if opened is self._current:  # else another call was refused meanwhile, and the keys have been read again
                self.renew()
            raise
        finally:
            opened.calls -= 1
            await self._close_replaced()

    async def _open(self) -> _Opened:
        async with self._lock:
            if self._current is None:
                closing = AsyncExitStack()
                try:
                    self.inner = await closing.enter_async_context(self._opening())
                except UsageError as error:
                    raise Unavailable(str(error)) from None
                self._current = _Opened(closing)
            return self._current

    async def _close_replaced(self) -> None:
        """Close what was replaced and is not used any more."""
        idle = [opened for opened in self._replaced if not opened.calls]
        self._replaced = [opened for opened in self._replaced if opened.calls]
        for opened in idle:
            await _close(opened)

    async def aclose(self) -> None:
        """Close what was opened. Raises nothing."""
        self.renew()
        for opened in self._replaced:
            await _close(opened)
        self._replaced = []


async def _close(opened: _Opened) -> None:
    with trio.move_on_after(_CLOSE_S, shield=True):
        try:
            await opened.closing.aclose()
        except S3volError:
            return
