"""PageCost: whether memory is dear on this machine at this moment. Pure.

Theory of operation. A virtual machine whose hypervisor takes idle memory back pays for each page that was not used for
some seconds: what is written into the page cache goes at 1.1 to 1.9 GiB/s then, and at 3 to 5 where the memory is at
hand (docs/rfcs/0005). Who writes much notices by the time of his own writes. What has been dear is taken to be so for a
while, since nothing is seen of it as long as the same pages are used again.
"""

from __future__ import annotations

from s3vol.types import GIB, KIB, MIB

COUNTED_BYTES = 128 * KIB  # of smaller writes the call is the cost
WINDOW_BYTES = 32 * MIB
DEAR_BYTES_S = 2 * GIB
BELIEVED_S = 60.0


class PageCost:
    """Of one cache disk's page cache."""

    def __init__(self) -> None:
        self._bytes = 0
        self._took_s = 0.0
        self._dear_until_s = float("-inf")

    def note(self, length: int, took_s: float, now_s: float) -> None:
        """So many bytes were written in one call."""
        if length < COUNTED_BYTES:
            return
        self._bytes += length
        self._took_s += took_s
        if self._bytes < WINDOW_BYTES:
            return
        if self._bytes < DEAR_BYTES_S * self._took_s:
            self._dear_until_s = now_s + BELIEVED_S
        self._bytes, self._took_s = 0, 0.0

    def is_high(self, now_s: float) -> bool:
        """True while pages that are there should be used again rather than others touched."""
        return now_s < self._dear_until_s
