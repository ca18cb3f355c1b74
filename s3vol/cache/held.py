"""Held: first bytes that came along with opens, in memory until the last close. Pure.

Theory of operation. The kernel was given these bytes and may drop them while the file is open; another version may be
in the bucket by then, and who has the file open goes on to read the one that it opened. Most files are read once and
closed, so nothing is written to the disk for them unless too much is held: then the oldest are for the disk.

A body is right as long as it is there, like every other (cache/bodies.py). Before some of its bytes are changed, and
when a publish needs them, it goes to the disk: the old version may be gone from the bucket, and a conflict copy has to
have the rest. One that was cut all the same still counts until its content is closed.

Rejected: the shelf of the readahead, which gives up what was served once or is in the way; the disk at once, which
costs more than the request when files are small: an inode, a block and a directory entry each.
"""

from __future__ import annotations

from collections import OrderedDict

from s3vol.cache.bodies import Body
from s3vol.cache.content import CachedContent


class Held:
    """At most one body a content. `capacity_bytes` is exceeded by what `take_excess` has not yet taken out."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._bodies: OrderedDict[CachedContent, tuple[Body, int]] = OrderedDict()
        self._used_bytes = 0

    def put(self, content: CachedContent, data: memoryview) -> None:
        """Serve the first bytes of the content's base from `data` until `let_go`, unless some are held."""
        known = self._bodies.get(content)
        if known is not None and known[0].bytes:
            return
        self.let_go(content)
        body = Body(0, data, stays=True)
        self._bodies[content] = body, len(data)
        self._used_bytes += len(data)
        content.bodies.add(body)

    def has(self, content: CachedContent, length: int = 1) -> bool:
        """True when so many first bytes of a content are held."""
        found = self._bodies.get(content)
        return found is not None and len(found[0].bytes) >= length

    def take(self, content: CachedContent) -> Body | None:
        """What is held of a content, no longer held but served until it is given up."""
        found = self._bodies.pop(content, None)
        if found is None:
            return None
        self._used_bytes -= found[1]
        return found[0]

    def take_excess(self) -> tuple[CachedContent, Body] | None:
        """The oldest when there is too much, no longer held but served until it is given up."""
        if self._used_bytes <= self._capacity_bytes:
            return None
        content, (body, length) = self._bodies.popitem(last=False)
        self._used_bytes -= length
        return content, body

    def let_go(self, content: CachedContent) -> None:
        """Give up what is held of a content: nobody has it open."""
        body = self.take(content)
        if body is not None:
            body.give_up()
