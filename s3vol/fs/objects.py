"""Conditional changes of single objects: put with a nonce, copy, tombstones, and what is left below a prefix.

Theory of operation. Every object that the file system writes itself (markers, symlinks, claimed names, copies) carries
a nonce, so that a 412 after a lost reply is told from a real one by looking.

A tombstone stands for "renamed away". S3's DELETE knows no condition, so the old name of a rename is first replaced,
If-Match, by a tombstone (a body of its own, so that its ETag is like no other) and then deleted. Between the two the
name is absent for readers, but nobody may create over it: the DELETE that is on its way would remove the new file. So
a creator waits until the tombstone is gone. Whoever wrote it deletes only within `DELETE_WITHIN_S`; one that has not
changed for `TAKEOVER_S`, on the clock of the waiting node, was left by a crash: it is replaced by our own, If-Match,
and deleted.

Rejected: creating over a tombstone with If-Match (the race above), comparing Last-Modified with our clock (skew).
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Mapping
from dataclasses import replace

import trio

from s3vol import layout
from s3vol.errors import NotFound, PosixError, PreconditionFailed, Unavailable
from s3vol.fs.base import FsSettings
from s3vol.store.base import ABSENT, ANY, DIRECTORY_TYPE, FILE_TYPE, Buffer, Condition, Store, matches
from s3vol.types import NONCE, Health, ObjectInfo

DELETE_WITHIN_S = 5.0
TAKEOVER_S = 15.0  # three times DELETE_WITHIN_S: room for a DELETE that is slow to arrive
POLL_FIRST_S, POLL_MAX_S = 0.02, 1.0
ATTEMPTS = 10  # each means that somebody else changed the very same object in the same moment


class Objects:
    """See the module's docstring. Stateless but for its settings; all methods may be cancelled at any time."""

    def __init__(self, store: Store, settings: FsSettings, health: Health) -> None:
        self._store = store
        self._settings = settings
        self._health = health

    def nonce(self) -> str:
        """A new one: who wrote, and which write."""
        return f"{self._settings.node[:32]}.{secrets.token_hex(8)}"

    async def head(self, key: str) -> ObjectInfo | None:
        """The object, None when the store says 404. Tombstones are objects here."""
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    async def fetch(self, key: str, length: int) -> tuple[ObjectInfo | None, Buffer]:
        """`head`, with the first bytes of the same version."""
        try:
            return await self._store.fetch(key, length)
        except NotFound:
            return None, b""

    async def known(self, info: ObjectInfo) -> ObjectInfo | None:
        """`info` with its metadata, asked for if the listing did not bring it; None when it has gone since."""
        return info if info.metadata is not None else await self.head(info.key)

    async def put(
        self,
        key: str,
        body: Buffer,
        metadata: Mapping[str, str],
        *,
        content_type: str = FILE_TYPE,
        condition: Condition = ANY,
        nonce: str = "",
    ) -> ObjectInfo:
        """PUT with a nonce. PreconditionFailed and NotFound are real ones: our own write was looked for."""
        meta = {**metadata, NONCE: nonce or self.nonce()}
        try:
            etag = await self._store.put(key, body, metadata=meta, content_type=content_type, condition=condition)
        except PreconditionFailed as error:
            etag = await self._own(key, meta[NONCE], error)
        return ObjectInfo(key, len(body), etag, 0, meta, content_type)

    async def put_marker(self, key: str, metadata: Mapping[str, str], known: Mapping[str, str] | None) -> ObjectInfo:
        """Write a directory's attributes over the marker with `known` headers, None: where there is none.

        PreconditionFailed: it has others by now. The ETag says nothing: all empty markers have the same, and encrypted
        ones a new one for each request. Bytes that another tool has put into the marker stay, unseen.
        """
        found = await self.head(key)
        if found is not None and layout.is_tombstone(found):
            try:
                await self.await_absent(key)
            except PosixError as error:  # EEXIST: somebody has made it anew
                raise PreconditionFailed(f"{key}: it is another by now") from error
            found = None
        if (None if found is None else found.metadata or {}) != known:
            raise PreconditionFailed(f"{key}: the directory has other attributes by now")
        if found is None:
            return await self.put(key, b"", metadata, content_type=DIRECTORY_TYPE, condition=ABSENT)
        if layout.says_the_same(metadata, found.metadata or {}):
            return found
        if not found.size:
            return await self.put(key, b"", metadata, content_type=DIRECTORY_TYPE)
        try:
            body = await self._store.get(key, 0, found.size, if_match=found.etag)
            kind = found.content_type or DIRECTORY_TYPE
            return await self.put(key, body, metadata, content_type=kind, condition=matches(found.etag))
        except NotFound as error:
            raise PreconditionFailed(f"{key}: it has gone") from error

    async def create(
        self, key: str, body: Buffer, metadata: Mapping[str, str], *, content_type: str = FILE_TYPE
    ) -> ObjectInfo:
        """Make an object exclusively among all nodes; PosixError(EEXIST)."""
        while True:
            try:
                return await self.put(key, body, metadata, content_type=content_type, condition=ABSENT)
            except PreconditionFailed:
                await self.await_absent(key)

    async def create_marker(self, key: str, metadata: Mapping[str, str]) -> ObjectInfo:
        """Make the marker of a directory exclusively; PosixError(EEXIST)."""
        return await self.create(key, b"", metadata, content_type=DIRECTORY_TYPE)

    async def copy(
        self, source: ObjectInfo, target: str, metadata: Mapping[str, str], condition: Condition, nonce: str = ""
    ) -> ObjectInfo:
        """Copy on the server, guarded on both sides. PreconditionFailed: source or target is another by now."""
        meta = {**metadata, NONCE: nonce or self.nonce()}
        content_type = source.content_type or FILE_TYPE
        try:
            etag = await self._store.copy(
                source.key, target, if_match=source.etag, metadata=meta, content_type=content_type, condition=condition
            )
        except PreconditionFailed as error:
            etag = await self._own(target, meta[NONCE], error)
        return replace(source, key=target, etag=etag, metadata=meta)

    async def _own(self, key: str, nonce: str, error: PreconditionFailed) -> str:
        """The ETag of our write whose reply was lost. Else raises `error`."""
        found = await self.head(key)
        if found is None or found.version.nonce != nonce:
            raise error
        return found.etag

    async def bury(self, info: ObjectInfo) -> ObjectInfo:
        """Replace exactly this version by a tombstone. PreconditionFailed, NotFound: it is another by now."""
        nonce = self.nonce()
        return await self.put(
            info.key, nonce.encode(), {layout.TOMBSTONE: nonce}, condition=matches(info.etag), nonce=nonce
        )

    async def remove_buried(self, tombstone: ObjectInfo, buried_s: float) -> None:
        """DELETE our tombstone, stamped anew if that took too long since `buried_s`; gone or taken over is success."""
        deadline_s = trio.current_time() + self._settings.timeout_s
        while True:
            # Cut, as it is repeated below: by then others may have taken the tombstone over, and created a file.
            with trio.move_on_at(buried_s + DELETE_WITHIN_S):
                await self._store.delete(tombstone.key)
                return
            buried_s = trio.current_time()
            if buried_s > deadline_s:
                raise Unavailable(f"{tombstone.key}: its tombstone could not be deleted in time")
            try:
                tombstone = await self.bury(tombstone)
            except (PreconditionFailed, NotFound):
                return

    async def reap(self, tombstone: ObjectInfo) -> None:
        """Remove a tombstone that its writer has left; nothing happens when somebody else was faster."""
        buried_s = trio.current_time()
        try:
            ours = await self.bury(tombstone)
        except (PreconditionFailed, NotFound):
            return
        await self.remove_buried(ours, buried_s)
        self._health.count("tombstones_reaped")

    async def discard(self, info: ObjectInfo) -> None:
        """Remove exactly this version; nothing happens when it is another by now.

        A condition knows the ETag only, which another node's copy of the same bytes has as well: the nonce tells.
        """
        found = await self.head(info.key)
        if found is None or found.version != info.version:
            return
        buried_s = trio.current_time()
        try:
            tombstone = await self.bury(info)
        except (PreconditionFailed, NotFound):
            return
        await self.remove_buried(tombstone, buried_s)

    async def await_absent(self, key: str) -> None:
        """Return when nothing is at `key`. Raises PosixError(EEXIST), or Unavailable after the timeout."""
        seen, since_s, pause_s = "", trio.current_time(), POLL_FIRST_S
        deadline_s = since_s + max(self._settings.timeout_s, 2 * TAKEOVER_S)
        while (found := await self.head(key)) is not None:
            if not layout.is_tombstone(found):
                raise PosixError(errno.EEXIST, key)
            now_s = trio.current_time()
            if found.etag != seen:
                seen, since_s = found.etag, now_s
            elif now_s - since_s >= TAKEOVER_S:
                await self.reap(found)
                continue
            if now_s > deadline_s:
                raise Unavailable(f"{key}: renamed away again and again; its name does not become free")
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_MAX_S)

    async def first_below(self, prefix: str, *, marker: bool = True) -> ObjectInfo | None:
        """The first object whose key begins with `prefix`, tombstones aside; without `marker`, aside from that key."""
        cursor: str | None = None
        limit = 2
        while True:
            page = await self._store.list(prefix, delimiter=False, cursor=cursor, limit=limit, metadata=True)
            for info in page.objects:
                if info.key == prefix and not marker:
                    continue
                found = await self.known(info)
                if found is not None and not layout.is_tombstone(found):
                    return found
            if page.next_cursor is None:
                return None
            cursor, limit = page.next_cursor, 1000

    async def ensure_marker(self, key: str, metadata: Mapping[str, str]) -> None:
        """Make a directory's marker if it has none."""
        try:
            await self.create_marker(key, metadata)
        except PosixError as error:
            if error.errno != errno.EEXIST:
                raise
