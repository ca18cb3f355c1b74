"""What a refused condition means: our own write, a change that can be ignored, or a conflict. Pure.

After PreconditionFailed (or NotFound for If-Match) the object is read (HEAD) and compared with what we know:

* our nonce, of an attempt after `base`, and the ETag of that attempt where it can be known: the write was applied and
  the reply lost. The same nonce over another ETag is foreign content whose writer kept our header.
* `base` itself, or nothing where we expect nothing: a race that is over; try again.
* a tombstone where we expect nothing, or nothing where we were to replace something of no interest: try again, with
  the condition that fits.
* everything else is somebody's change that we have not seen: a conflict.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3vol.cache.content import Attempt, CachedContent
from s3vol.cache.nonce import parse_attempt
from s3vol.layout import TOMBSTONE
from s3vol.types import ObjectInfo, Version


@dataclass(frozen=True, slots=True)
class Retry:
    """Publish again."""


@dataclass(frozen=True, slots=True)
class Rebase:
    """Publish again, replacing this version (None: the key must not exist)."""

    base: Version | None


@dataclass(frozen=True, slots=True)
class Applied:
    """The object is what attempt `number` sent. `whole`: it holds all that is known here, or more."""

    number: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Foreign:
    """Another writer was first."""


Verdict = Retry | Rebase | Applied | Foreign


def judge(content: CachedContent, info: ObjectInfo | None, cache_id: str, *, etag_is_md5: bool) -> Verdict:
    """What the object `info` (None: there is none) means for `content`, whose condition was refused."""
    base = content.base
    if info is None:
        return Retry() if base is None else Foreign() if content.derived else Rebase(None)
    if base is not None and info.version == base:
        return Retry()
    number = _own_attempt(content, info, cache_id)
    if number is not None:
        known = content.attempts.get(number)
        if known is None:
            return Applied(number, whole=content.unresolved and number > content.loaded_attempt)
        generation = _generation(known, info.etag, etag_is_md5)
        if known.broken or generation is not None:
            return Applied(number, whole=not known.broken and generation == content.generation)
    if TOMBSTONE in (info.metadata or {}) and (base is None or not content.derived):
        return Rebase(info.version)
    return Foreign()


def _own_attempt(content: CachedContent, info: ObjectInfo, cache_id: str) -> int | None:
    """The number of the attempt whose nonce the object carries, if it is one of ours since `base`."""
    number = parse_attempt(info.version.nonce, cache_id, content.id)
    if number is None:
        return None
    if content.base is not None and number <= (parse_attempt(content.base.nonce, cache_id, content.id) or 0):
        return None
    return number if number in content.attempts or content.unresolved else None


def _generation(attempt: Attempt, etag: str, etag_is_md5: bool) -> int | None:
    """Which generation of ours the object is; None: it is none, only our nonce was kept."""
    if etag_is_md5 and etag in attempt.sent:
        return attempt.sent[etag]
    return attempt.sent.get("") if etag_is_md5 else min(attempt.sent.values(), default=None)
