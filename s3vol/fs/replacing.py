"""An object written at a name where other nodes may be at work: over whatever is there by then.

Theory of operation. Each attempt is conditional on what was seen there last. When the condition fails, the name is
looked at: a tombstone is waited for, a file is replaced if the caller may (rename(2)) or refused if not
(RENAME_NOREPLACE), and a name of a hard link ends the attempt, since its record must say first that the name goes.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from s3vol import layout
from s3vol.errors import PosixError, S3volError, Unavailable
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE
from s3vol.fs.objects import Objects
from s3vol.store.base import ABSENT, Condition, matches
from s3vol.types import ObjectInfo

ATTEMPTS = 10  # lost races against other nodes before giving up

Write = Callable[[Condition], Awaitable[ObjectInfo]]


class Linked(S3volError):
    """What is to be replaced has become a name of a hard link, which has to be marked first."""


async def replace_at(
    mount: Mount, objects: Objects, name: str, seen: ObjectInfo | None, write: Write, *, replace: bool
) -> ObjectInfo:
    """Run `write` until its condition on `name` holds; `seen` is what was there last.

    Raises Linked, PosixError(EEXIST) without `replace`, Unavailable after ATTEMPTS, and what `write` raises but for a
    failed condition.
    """
    for _ in range(ATTEMPTS):
        mount.learned.changed(name)
        try:
            return await write(ABSENT if seen is None else matches(seen.etag))
        except GONE:
            seen = await objects.head(name)
            if seen is not None and layout.is_tombstone(seen):
                await objects.await_absent(name)
                seen = None
            if seen is not None and not replace:
                raise PosixError(errno.EEXIST, name) from None
            if seen is not None and layout.link_of(seen) is not None:
                raise Linked(name) from None
        finally:
            mount.learned.changed(name)
    raise Unavailable(f"{name}: other nodes changed it {ATTEMPTS} times while it was to be replaced")
