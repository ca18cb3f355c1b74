"""Inode numbers: computed from the key, with the few exceptions written down.

Theory of operation. The number of a key is `layout.stable_ino(key)`, so that it is the same at each mount and on each
node without a table. Two things break the rule: a rename on this mount keeps the number (programs compare them), and a
new object under a name whose number is still in use by the renamed one gets a salted number. Such exceptions are
recorded as notes, key to number, and survive a remount. Other nodes do not know them, which is what NFS clients of
different servers are used to.

Rejected: numbers handed out by a counter and stored for every file (a database that must be written for every lookup).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from s3vol.layout import stable_ino
from s3vol.types import Ino

Record = Callable[[str, str | None], None]
"""Write a note down (None: remove it)."""


class Numbers:
    """The exceptions of one mount. Used on the event loop only."""

    def __init__(self, notes: Mapping[str, str], record: Record) -> None:
        self._by_key = {key: Ino(int(text)) for key, text in notes.items() if text.isdecimal()}
        self._owner = {number: key for key, number in self._by_key.items()}
        self._record = record

    def assign(self, key: str, taken: Callable[[Ino], bool]) -> Ino:
        """The number for `key`. `taken` tells whether a live inode other than that of `key` has a number."""
        known = self._by_key.get(key)
        if known is not None and not taken(known):
            return known
        for salt in itertools.count():
            number = Ino(stable_ino(f"{key}\0{salt}" if salt else key))
            if self._owner.get(number, key) == key and not taken(number):
                self._set(key, number)
                return number
        raise AssertionError("unreachable: the count does not end")

    def move(self, key: str, number: Ino) -> None:
        """The inode `number` is at `key` from now on."""
        self._set(key, number)

    def drop(self, key: str) -> None:
        """Nothing is at `key` any more."""
        number = self._by_key.pop(key, None)
        if number is not None:
            self._record(key, None)
            if self._owner.get(number) == key:
                del self._owner[number]

    def below(self, prefix: str) -> list[tuple[str, Ino]]:
        """The exceptions of keys that begin with `prefix`."""
        return [(key, number) for key, number in self._by_key.items() if key.startswith(prefix)]

    def _set(self, key: str, number: Ino) -> None:
        self.drop(key)
        if number != stable_ino(key):
            self._by_key[key] = number
            self._owner[number] = key
            self._record(key, str(number))
