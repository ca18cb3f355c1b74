"""`Store.fetch` by two requests, for stores that cannot do it in one."""

from __future__ import annotations

from s3vol.errors import PreconditionFailed, Unavailable
from s3vol.store.base import Buffer, Store
from s3vol.types import ObjectInfo

_ATTEMPTS = 10  # each means that somebody replaced the very same object between the two requests


async def fetch_in_two(store: Store, key: str, length: int, *, only_whole: bool = False) -> tuple[ObjectInfo, Buffer]:
    """HEAD, then a GET of that version; again when it was replaced in between. Raises NotFound, Unavailable.

    `only_whole`: no bytes of an object that is longer.
    """
    for _ in range(_ATTEMPTS):
        info = await store.head(key)
        if only_whole and info.size > length:
            return info, b""
        try:
            return info, await store.get(key, 0, min(length, info.size), if_match=info.etag)
        except PreconditionFailed:
            continue
    raise Unavailable(f"fetch {key}: others replaced it {_ATTEMPTS} times")
