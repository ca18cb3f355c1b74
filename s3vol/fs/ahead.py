"""Ahead: answers about directories that are asked for before anybody needs them.

Theory of operation. An answer that was asked for ahead counts like any other: it may be as old as `attr-ttl` when it
is taken, and never older than a change made here. So its question runs as an `Ask` until it is taken, by one taker:
what is changed after that is told to nobody. One that nobody came for within `attr-ttl` is dropped: it was for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from s3vol.errors import S3volError
from s3vol.fs.context import Mount
from s3vol.fs.learned import Ask

T = TypeVar("T")

PIECES = 16  # asked for ahead at most, for all walkers

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Piece(Generic[T]):
    """A question. `ask` lives until the answer is taken."""

    ask: Ask | None = None
    answer: T | None = None
    error: S3volError | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    taken: trio.Event = field(default_factory=trio.Event)


class Ahead(Generic[T]):
    """Answers of one kind, by the key of a directory. Without `run` nothing is asked ahead.

    `fetch` gives the answer, or None where there is none to be kept; its question begins when it is called. `late` is
    called for each answer that was for nothing.
    """

    def __init__(self, mount: Mount, fetch: Callable[[str], Awaitable[T | None]], late: Callable[[], None]) -> None:
        self._mount = mount
        self._fetch = fetch
        self._late = late
        self._pieces: dict[str, _Piece[T]] = {}  # wanted, and neither taken nor too old
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """For as long as the mount lives."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def want(self, keys: Iterable[str]) -> None:
        """Begin to ask for these, unless it is done already or there are too many."""
        if self._nursery is None or not self._mount.settings.attr_ttl_s:
            return
        for key in keys:
            if key not in self._pieces and len(self._pieces) < PIECES:
                piece = self._pieces[key] = _Piece[T]()
                self._nursery.start_soon(self._ask, key, piece)

    async def take(self, key: str) -> tuple[T, Ask] | None:
        """The answer, if one was asked for ahead and may be believed by its age; its `Ask` says what was changed here.

        No await after the answer has come. Raises what the question met while it was waited for: asked again, it
        would take the time-out twice.
        """
        piece = self._pieces.get(key)
        if piece is None:
            return None
        waited = not piece.answered.is_set()
        await piece.answered.wait()
        if waited and piece.error is not None:
            raise piece.error
        if piece.taken.is_set():
            return None
        piece.taken.set()
        ask, answer = piece.ask, piece.answer
        if ask is None or answer is None or not self._mount.learned.fresh(ask.at_s):
            return None
        return answer, ask

    async def _ask(self, key: str, piece: _Piece[T]) -> None:
        """Ask for it, and keep the answer for as long as it may be believed."""
        learned = self._mount.learned
        try:
            with learned.asking() as ask:
                try:
                    piece.answer = await self._fetch(key)
                    piece.ask = ask
                except S3volError as error:
                    piece.error = error
                except Exception:  # a fault of ours: the walker meets it again, and it must not end the mount
                    log.exception("%s could not be looked at ahead", key)
                piece.answered.set()
                if piece.answer is not None:
                    with trio.move_on_after(learned.left_s(ask.at_s)):
                        await piece.taken.wait()
                    if not piece.taken.is_set():
                        self._late()
        finally:
            piece.answered.set()
            del self._pieces[key]
