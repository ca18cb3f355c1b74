"""Hard links in the bucket: looking at them, changing their records, and finishing what a crash left.

Theory of operation. A body `.s3vol/links/<id>` holds content and attributes, as any file's object; its record
`<id>.names` says how many names there are (fs/linkrecord.py). They are two objects, so that making a name never writes
the body: it may be large, and another node may have it open for writing. Every change of a record is conditional on
the record that was read, and means the same when it is repeated.

A record in which something is under way is finished by whoever comes first: the mount that began; at its next start
the node that crashed, which knows the ids of its earlier mounts from its journal; and everybody, when nobody has been
at it for ten minutes. All of them decide alike, by looking at the path, so it does no harm if two do it.

Rejected: the number of links in the body's metadata (each `ln` would publish the file again, and conflict with its
writers), one object for each name (nobody could tell the last name from one that is just being added), and a bare
counter (after a crash nobody could tell whether it counts a name that was never made).
"""

from __future__ import annotations

import random
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from s3vol import layout
from s3vol.errors import PosixError, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.fs import linkrecord
from s3vol.fs.claims import Claim
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE
from s3vol.fs.learned import Ask
from s3vol.fs.linkrecord import Count, Doing, Record, count_of
from s3vol.fs.objects import Objects
from s3vol.parallel import both, for_each
from s3vol.store.base import ABSENT, Condition, matches
from s3vol.types import ObjectInfo

MOUNTS = "linker"  # notes: mounts of this cache that have changed records
LEFT_BEHIND_S = 600.0  # as for renames of directories: also enough for clocks that differ by minutes
YOUNG_S = 86_400.0  # where a listing brings no metadata, older records are not looked at again and again
ATTEMPTS = 20  # changes of one record by other nodes in between
PAUSE_S = 0.01  # about what a change takes; doubles with each attempt
PARALLEL = 32
KNOWN = 4096  # records kept in memory, so that a change costs one request
SINGLES_OF_A_PAGE = 30  # a full page of a listing costs MinIO about as much as 30 HEADs (60 ms against 2 ms)


@dataclass(frozen=True, slots=True)
class Body:
    """What a stub stands for, as of `at_s`."""

    info: ObjectInfo
    count: Count
    at_s: float


@dataclass(frozen=True, slots=True)
class _Known:
    record: Record
    etag: str


def _moves(step: Callable[[Record], Record], record: Record) -> bool:
    """True when `step` would change the record; False also when it refuses."""
    try:
        return step(record) != record
    except PosixError:
        return False


class Links:
    """All links of one mount. Concurrent calls are independent."""

    def __init__(self, mount: Mount, objects: Objects) -> None:
        self._mount = mount
        self._objects = objects
        self._by = secrets.token_hex(8)  # this mount, in what it is doing
        self._crashed = set(mount.cache.notes(MOUNTS))
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._at_work: dict[str, int] = {}
        self._in_doubt: dict[str, float] = {}  # from when on it may be decided

    # Looking

    async def look(self, link_id: str, *, now: bool = False) -> Body | None:
        """Body and number of names, with `now` as of a request that began after this call. None: there is no body."""
        learned, key = self._mount.learned, layout.body_key(link_id)
        while True:
            known = None if now else self._learned(link_id)
            if known is not None:
                return known
            with learned.asking() as ask:
                info, record = await self.ask(link_id)
            if ask.stale(key) or ask.stale(layout.record_key(link_id)):
                continue
            if info is None:
                return None
            self._learn(ask, info, record)
            return Body(info, count_of(record), ask.at_s)

    async def ask(self, link_id: str) -> tuple[ObjectInfo | None, ObjectInfo | None]:
        """Body and record, side by side."""
        head = self._objects.head
        return await both(lambda: head(layout.body_key(link_id)), lambda: head(layout.record_key(link_id)))

    async def look_all(self, link_ids: Iterable[str]) -> dict[str, Body]:
        """`look` for the rows of a listing: page by page while that is cheaper, the rest one by one."""
        found: dict[str, Body] = {}

        def missing() -> list[str]:
            for link_id in wanted - found.keys():
                body = self._learned(link_id)
                if body is not None:
                    found[link_id] = body
            return sorted(wanted - found.keys())

        async def one(link_id: str) -> None:
            body = await self.look(link_id)
            if body is not None:
                found[link_id] = body

        wanted = set(link_ids)
        cursor: str | None = None
        while self._mount.store.capabilities.list_metadata and len(missing()) > SINGLES_OF_A_PAGE:
            cursor = await self._page(cursor)
            if cursor is None:
                break
        await for_each(missing(), one, limit=PARALLEL)
        return found

    async def _page(self, cursor: str | None) -> str | None:
        with self._mount.learned.asking() as ask:
            page = await self._mount.store.list(layout.LINKS, delimiter=False, cursor=cursor, metadata=True)
        infos = {info.key: info for info in page.objects if info.metadata is not None}
        for info in infos.values():
            link_id = layout.body_id(info.key)
            record = infos.get(layout.record_key(link_id)) if link_id is not None else None
            if record is not None:
                self._learn(ask, info, record)
        return page.next_cursor

    def _learned(self, link_id: str) -> Body | None:
        learned = self._mount.learned
        body, record = learned.get(layout.body_key(link_id)), learned.get(layout.record_key(link_id))
        if body is None or body.info is None or record is None:
            return None
        return Body(body.info, count_of(record.info), min(body.at_s, record.at_s))

    def _learn(self, ask: Ask, info: ObjectInfo, record: ObjectInfo | None) -> None:
        self._mount.learned.put(info.key, info, ask)
        link_id = layout.body_id(info.key)
        assert link_id is not None, "only bodies are learned here"
        self._mount.learned.put(layout.record_key(link_id), record, ask)

    # Changing

    @contextmanager
    def working(self, link_id: str) -> Iterator[None]:
        """Around everything that changes a link: our own sweep does not take it for left behind."""
        self._at_work[link_id] = self._at_work.get(link_id, 0) + 1
        done = False
        try:
            yield
            done = True
        except PosixError:  # a refusal, decided before anything was changed, or settled
            done = True
            raise
        finally:
            self._at_work[link_id] -= 1
            if not self._at_work[link_id]:
                del self._at_work[link_id]
            if not done:
                self._in_doubt[link_id] = trio.current_time() + LEFT_BEHIND_S

    async def create(self, link_id: str, names: Mapping[str, str]) -> None:
        """The record of a new link, whose names (token to path) are all to be made."""
        await self._note()
        record = Record(frozenset(names), self._doing(names))
        await self._write(link_id, record, ABSENT)

    async def begin(self, link_id: str, made: Mapping[str, str], left: Mapping[str, str]) -> bool:
        """Names (token to path) will be made and left; False: there is no record. PosixError: EMLINK, ENOENT."""
        await self._note()
        step = partial(linkrecord.begin, made=self._doing(made), left=self._doing(left))
        return await self._change(link_id, step) is not None

    async def settle(self, link_id: str, here: Iterable[str] = (), gone: Iterable[str] = ()) -> Record | None:
        """These tokens have a stub, those have none any more."""
        return await self._change(link_id, partial(linkrecord.settle, here=here, gone=gone))

    async def beat(self, link_id: str, names: Mapping[str, str]) -> None:
        """Still at it."""
        await self._change(link_id, partial(linkrecord.begin, made=self._doing(names), left={}))

    async def remove(self, link_id: str) -> None:
        """The body and the record of a link without names."""
        await self._mount.store.delete(layout.body_key(link_id))
        hit(Point.UNLINK_NAME_AFTER_BODY)
        await self.forget(link_id)

    async def forget(self, link_id: str) -> None:
        """The record of a link without a body."""
        await self._mount.store.delete(layout.record_key(link_id))
        self._known.pop(link_id, None)
        self._changed(link_id)

    async def _change(self, link_id: str, step: Callable[[Record], Record]) -> Record | None:
        """Apply `step`, again if somebody else was first. None: there is no record."""
        for attempt in range(ATTEMPTS):
            seen = self._known.get(link_id)
            if seen is None or not _moves(step, seen.record):  # what is not so any more may refuse it
                seen = await self._read(link_id)
            if seen is None:
                return None
            record = step(seen.record)
            if record == seen.record:
                return record
            self._known.pop(link_id, None)  # until the outcome is known
            try:
                await self._write(link_id, record, matches(seen.etag))
                return record
            except GONE:
                await trio.sleep(random.uniform(0, PAUSE_S * 2 ** min(attempt, 6)))
        raise Unavailable(f"{layout.record_key(link_id)}: other nodes changed it {ATTEMPTS} times in between")

    async def _read(self, link_id: str) -> _Known | None:
        key = layout.record_key(link_id)
        while True:
            info = await self._objects.head(key)
            if info is None:
                return None
            try:
                body = await self._mount.store.get(key, 0, info.size, if_match=info.etag)
            except GONE:
                continue
            seen = _Known(linkrecord.parse(bytes(body), key), info.etag)
            self._keep(link_id, seen)
            return seen

    async def _write(self, link_id: str, record: Record, condition: Condition) -> None:
        key, metadata = layout.record_key(link_id), linkrecord.metadata(record, self._mount.now_ns())
        self._changed(link_id)
        info = await self._objects.put(key, linkrecord.encode(record), metadata, condition=condition)
        self._changed(link_id)
        self._keep(link_id, _Known(record, info.etag))

    def _keep(self, link_id: str, seen: _Known) -> None:
        self._known[link_id] = seen
        self._known.move_to_end(link_id)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _changed(self, link_id: str) -> None:
        self._mount.learned.changed(layout.record_key(link_id))

    def _doing(self, names: Mapping[str, str]) -> dict[str, Doing]:
        at_s = int(self._mount.now_ns() / 1e9)
        return {token: Doing(path, self._by, at_s) for token, path in names.items()}

    async def _note(self) -> None:
        """Before the first change by this mount: its next start has to look for what was left."""
        if self._by not in self._mount.cache.notes(MOUNTS):
            self._mount.cache.note(MOUNTS, self._by, "1")
            await self._mount.cache.sync_notes()

    def rest(self) -> None:
        """Before an orderly end: if nothing is in doubt, the next start need not look."""
        if not self._at_work and not self._in_doubt:
            self._mount.cache.note(MOUNTS, self._by, None)

    # Finishing

    @property
    def crashed(self) -> bool:
        """True while an earlier mount of this node may have left something."""
        return bool(self._crashed)

    async def finish_in_doubt(self) -> None:
        """What failed on this mount is tried again.

        Not at once: a stub whose PUT got no answer may arrive later, when its name was taken for one that was never
        made. Then it would stand where the content was, and lead to a body that is gone.
        """
        now_s = trio.current_time()
        for link_id in [link_id for link_id, from_s in self._in_doubt.items() if from_s <= now_s]:
            async with self._mount.claims.hold(Claim(layout.body_key(link_id))):  # as all do that change it here
                if link_id not in self._at_work:
                    self._in_doubt.pop(link_id, None)
                    with self.working(link_id):
                        await self.resolve_own(link_id)

    async def resolve_own(self, link_id: str) -> None:
        """Decide what this mount was doing. The caller claims the body, or has not told anybody of it."""
        await self.resolve(link_id, lambda it: it.by == self._by)

    async def sweep(self) -> int:
        """Look through all records; returns how many were finished."""
        crashed, finished = set(self._crashed), 0
        now_s = self._mount.now_ns() / 1e9

        async def one(link_id: str) -> None:
            nonlocal finished
            left = await self.resolve(link_id, lambda it: it.by in crashed or now_s - it.at_s > LEFT_BEHIND_S)
            finished += left

        cursor: str | None = None
        while True:
            page = await self._mount.store.list(layout.LINKS, delimiter=False, cursor=cursor, metadata=True)
            ids = [layout.record_id(info.key) for info in page.objects if self._is_suspect(info, now_s)]
            await for_each([it for it in ids if it and it not in self._at_work], one, limit=PARALLEL)
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        for mount in crashed:
            self._mount.cache.note(MOUNTS, mount, None)
        self._crashed -= crashed
        return finished

    def _is_suspect(self, info: ObjectInfo, now_s: float) -> bool:
        if info.metadata is not None:
            return layout.LINK_BUSY in info.metadata
        return bool(self._crashed) or now_s - info.modified_ns / 1e9 < YOUNG_S

    async def resolve(self, link_id: str, left_behind: Callable[[Doing], bool]) -> bool:
        """Finish what is under way in one record, as far as it was left behind; True if there was something."""
        seen = await self._read(link_id)
        if seen is None:
            return False
        doubts = {token: it for token, it in seen.record.doing.items() if left_behind(it)}
        if not doubts and not (seen.record.dead and not seen.record.doing):
            return False
        here = {token for token, it in doubts.items() if await self._is_at(it.path, layout.Link(link_id, token))}

        def step(record: Record) -> Record:
            sure = {token for token, it in doubts.items() if record.doing.get(token) == it}
            return linkrecord.settle(record, here & sure, sure - here)

        record = await self._change(link_id, step)
        if record is not None and record.dead and all(left_behind(it) for it in record.doing.values()):
            await self.remove(link_id)
        return True

    async def _is_at(self, path: str, link: layout.Link) -> bool:
        info = await self._objects.head(path)
        return info is not None and layout.link_of(info) == link
