"""A store that is opened by the first call that needs it, and opened anew when its credentials are refused.

The daemon must answer dockerd while the bucket cannot be reached, also from its first moment on: opening a store asks
the bucket. A failure to open is Unavailable here whatever it is, with its own line: a server that is still starting and
a key that is not there yet look alike, and the next call tries again.

Named credentials are files that an administrator may replace while the daemon runs. A call that is refused makes the
next one read them again; so does `renew`. A store that was replaced is closed at the end, for calls may be under way in
it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

import trio

from s3vol.errors import Denied, S3volError, Unavailable, UsageError
from s3vol.store.base import Store
from s3vol.store.decorator import Call, Decorator
from s3vol.store.memory import MemoryStore

T = TypeVar("T")


class LateStore(Decorator):
    """See the module's docstring. `url` is that of the store to be; `opening` opens it."""

    def __init__(self, url: str, opening: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
        super().__init__(MemoryStore())  # in the place of the store until it is open; no call reaches it
        self._url = url
        self._opening = opening
        self._is_open = False
        self._lock = trio.Lock()  # guards opening: one task does, the others wait, or do it when that one gives up
        self._opened = AsyncExitStack()

    @property
    def url(self) -> str:
        """Of the store, open or not."""
        return self._url

    def renew(self) -> None:
        """Open the store anew before the next call."""
        self._is_open = False

    async def around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform the call on the open store. Raises Unavailable when it cannot be opened."""
        await self._open()
        try:
            return await perform()
        except Denied:
            self.renew()
            raise

    async def _open(self) -> None:
        async with self._lock:
            if self._is_open:
                return
            try:
                self.inner = await self._opened.enter_async_context(self._opening())
            except UsageError as error:
                raise Unavailable(str(error)) from None
            self._is_open = True

    async def aclose(self) -> None:
        """Close what was opened. Raises nothing."""
        try:
            await self._opened.aclose()
        except S3volError:
            return
