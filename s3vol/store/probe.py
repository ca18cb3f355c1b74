"""What an endpoint really can do, found out by trying; and the facts that `s3vol doctor` shows.

Theory of operation. Documentation promises what servers do not hold (MinIO ignores If-Match on DELETE, others on PUT),
and an ignored condition loses updates silently, so each capability is believed only after a request that must fail has
failed. Everything happens on keys of one run under `.s3vol/probe/`, four lines of requests side by side, and is
removed afterwards. With credentials that may not write, nothing can be tried and nothing is assumed.

Never tried: RenameObject. MinIO does not know it and answers 200 by creating an empty object.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import trio

from s3vol.errors import Denied, NotFound, PreconditionFailed, Rejected, S3volError
from s3vol.layout import RESERVED
from s3vol.store import edge, rules
from s3vol.store.base import ABSENT, ANY, Capabilities, Condition, matches
from s3vol.store.s3 import S3Store
from s3vol.store.s3_copy import Copier

_FIRST = b"first"
_SECOND = b"second"
_NO_ETAG = "0" * 32
_MARK = {"probe": "yes"}
_CLEAN_UP_S = 10.0
_ROUND_TRIPS = 5

_REFUSALS = (PreconditionFailed, NotFound, Rejected)

NOTHING = Capabilities(
    conditional_create=False,
    conditional_replace=False,
    conditional_complete=False,
    copy_part=False,
    list_metadata=False,
    etag_is_md5=False,
    hides_children=True,  # the careful assumption
)


@dataclass(frozen=True, slots=True)
class Report:
    """Facts about an endpoint, as values. `clock_skew_s` is positive when this machine is ahead."""

    url: str
    endpoint: str
    region: str
    server: str
    clock_skew_s: float
    round_trip_ms: float  # median of a listing of one key
    round_trips_ms: tuple[float, ...]
    read_only: bool
    capabilities: Capabilities


class Candidate(Copier, Protocol):
    """A store that can be made to believe in capabilities, and is then found out."""

    def with_capabilities(self, capabilities: Capabilities) -> Candidate:
        """The same store, believed to be able to do this."""
        ...


class _Run:
    """One run of the probe, on keys of its own. Everything is False until it was seen."""

    def __init__(self, store: Candidate) -> None:
        self.store = store.with_capabilities(Capabilities(etag_is_md5=False))  # as if it could do everything
        self.base = f"{RESERVED}probe/{uuid.uuid4().hex}/"
        self.create = self.replace = self.complete = self.copy_part = False
        self.md5 = self.hides = self.listed = False
        self._uploads: list[tuple[str, str]] = []

    async def all(self) -> None:
        """Four lines of requests that share no key, side by side: a mount waits for the longest."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._puts)
            nursery.start_soon(self._copies)
            nursery.start_soon(self._completes)
            nursery.start_soon(self._listings)

    async def _put(self, name: str, body: bytes, condition: Condition = ANY) -> str:
        return await self.store.put(self.base + name, body, metadata=_MARK, condition=condition)

    async def _puts(self) -> None:
        conditional = not await _refused(lambda: self._put("object", _FIRST, ABSENT))
        etag = (await self.store.head(self.base + "object")).etag if conditional else await self._put("object", _FIRST)
        self.md5 = etag == rules.md5_etag(_FIRST)
        # One after the other: S3 may answer 409 to conditional writes that meet.
        self.create = conditional and await _refused(lambda: self._put("object", _SECOND, ABSENT))
        wrong = matches(_NO_ETAG)
        held = await _refused(lambda: self._put("object", _SECOND, wrong))
        held &= await _refused(lambda: self._put("missing", _SECOND, wrong))
        self.replace = held and not await _refused(lambda: self._put("object", _SECOND, matches(etag)))

    async def _copies(self) -> None:
        etag = await self._put("source", _FIRST)
        key = self.base + "source"
        target = self.base + "copied"
        with contextlib.suppress(*_REFUSALS):
            upload_id = await self._begin(target)
            guarded = await _refused(lambda: self.store.copy_whole(target, upload_id, 1, source=key, if_match=_NO_ETAG))
            part = await self.store.copy_whole(target, upload_id, 1, source=key, if_match=etag)
            await self.store.complete_upload(target, upload_id, [part])
            self.copy_part = guarded

    async def _completes(self) -> None:
        etag = await self._put("completed", _FIRST)
        key = self.base + "completed"
        with contextlib.suppress(*_REFUSALS):
            # Each attempt must fail, and the last one, which is right, must not: the parts are still there.
            upload_id = await self._begin(key)
            parts = [await self.store.upload_part(key, upload_id, 1, _SECOND)]
            complete = partial(self.store.complete_upload, key, upload_id, parts)
            refused = await _refused(lambda: complete(condition=ABSENT))
            refused &= await _refused(lambda: complete(condition=matches(_NO_ETAG)))
            await complete(condition=matches(etag))
            self.complete = refused

    async def _begin(self, key: str) -> str:
        upload_id = await self.store.create_upload(key, metadata=_MARK)
        self._uploads.append((key, upload_id))
        return upload_id

    async def _listings(self) -> None:
        await self._put("parent", _FIRST)
        both = not await _refused(lambda: self._put("parent/child", _FIRST))
        page = await self.store.list(self.base + "parent", delimiter=False, metadata=False)
        self.hides = both and len(page.objects) < 2
        with contextlib.suppress(Rejected):
            page = await self.store.list(self.base + "parent", delimiter=False)
            self.listed = any((info.metadata or {}).items() >= _MARK.items() for info in page.objects)

    async def clean_up(self) -> None:
        """Remove everything; what cannot be removed stays, in a folder that is ours."""
        with trio.move_on_after(_CLEAN_UP_S, shield=True):
            async with trio.open_nursery() as nursery:
                for name in ("object", "missing", "source", "copied", "completed", "parent", "parent/child"):
                    nursery.start_soon(_quietly, partial(self.store.delete, self.base + name))
                for key, upload_id in self._uploads:
                    nursery.start_soon(_quietly, partial(self.store.abort_upload, key, upload_id))


async def _refused(attempt: Callable[[], Awaitable[object]]) -> bool:
    try:
        await attempt()
    except _REFUSALS:
        return True
    return False


async def _quietly(attempt: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(S3volError):
        await attempt()


async def probe(store: Candidate) -> Capabilities:
    """What the endpoint can do. `Denied` while trying means read-only: NOTHING, but for listings.

    Raises Unavailable when the store does not answer: an outage says nothing about what it can do.
    """
    capabilities, _ = await _probe(store)
    return capabilities


async def _probe(store: Candidate) -> tuple[Capabilities, bool]:
    run = _Run(store)
    try:
        await run.all()
    except BaseExceptionGroup as group:
        if group.subgroup(Denied) is None:
            raise edge.first_error(group) from None
        return replace(NOTHING, list_metadata=await _lists_metadata(store)), True
    finally:
        await run.clean_up()
    found = Capabilities(
        conditional_create=run.create,
        conditional_replace=run.replace,
        conditional_complete=run.complete,
        copy_part=run.copy_part,
        list_metadata=run.listed,
        etag_is_md5=run.md5,
        hides_children=run.hides,
    )
    return found, False


async def _lists_metadata(store: Candidate) -> bool:
    page = await store.with_capabilities(Capabilities()).list("", delimiter=False, limit=2)
    return any(info.metadata is not None for info in page.objects)


async def examine(store: S3Store) -> Report:
    """The facts about the endpoint that `store` is opened on. Raises as the store does."""
    client = store.client
    took_ms: list[float] = []
    server = ""
    skew_s = 0.0
    for _ in range(_ROUND_TRIPS):
        began_s = time.perf_counter()
        reply = await client.read("examine", client.signed_get, "list-type=2&max-keys=1")
        took_ms.append((time.perf_counter() - began_s) * 1000)
        if reply.status != 200:
            raise reply.error("examine")
        server = reply.headers.get("server", "")
        # The header has whole seconds: the middle of its second is the best guess.
        skew_s = time.time() - (edge.parse_date(reply.date) + 0.5) if reply.date else 0.0
    capabilities, read_only = await _probe(store)
    return Report(
        url=store.url,
        endpoint=client.endpoint,
        region=client.region,
        server=server,
        clock_skew_s=skew_s,
        round_trip_ms=statistics.median(took_ms),
        round_trips_ms=tuple(took_ms),
        read_only=read_only,
        capabilities=capabilities,
    )
