"""Looking through a bucket, and mending what was found: the acting side of fs/fsck.py.

Theory of operation. `look` lists everything twice, if the first time shows anything to repair or to tell. `Mender` has
the parts of a mount without a kernel, and lets them do what a mount does about what was left behind: every change is
conditional on the version that was judged, and two that mend at once, or a mount that does, come to the same end.
Files of the temporary cache that it needs hold nothing that must survive it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from s3vol import layout
from s3vol.cache.base import ContentCache
from s3vol.errors import Corrupt, Denied, NotFound, PosixError, Rejected, S3volError
from s3vol.fs import attributes, intents, linkrecord
from s3vol.fs.base import FsSettings
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE
from s3vol.fs.fileio import FileIO
from s3vol.fs.fsck import Finding, Repair, Survey, agreed, judge, plan
from s3vol.fs.inodes import Inode, Inodes
from s3vol.fs.intents import Intent
from s3vol.fs.learned import Learned
from s3vol.fs.linking import Linking, new_id
from s3vol.fs.linkrecord import Record
from s3vol.fs.links import Links
from s3vol.fs.listing import Lister
from s3vol.fs.looks import Looks
from s3vol.fs.lookup import Finder
from s3vol.fs.markers import Markers
from s3vol.fs.numbers import Numbers
from s3vol.fs.objects import Objects
from s3vol.fs.orphans import Orphans
from s3vol.fs.removal import Removal
from s3vol.fs.tree import TreeRename
from s3vol.parallel import for_each
from s3vol.store.base import Page, Store, Upload, matches
from s3vol.types import ROOT_INO, Health, ObjectInfo

PARALLEL = 32  # HEADs where a listing brings no metadata

Clock = Callable[[], int]
"""The store's clock, in nanoseconds since the epoch."""


async def look(store: Store, clock: Clock) -> list[Finding]:
    """All findings; those that are not young were seen twice. Changes nothing. Raises S3volError."""
    first = await look_once(store, clock)
    if all(it.young for it in first):
        return first
    return agreed(first, await look_once(store, clock))


async def look_once(store: Store, clock: Clock) -> list[Finding]:
    """What one look through the bucket shows."""
    survey = Survey(clock())
    cursor: str | None = None
    while True:
        page = await store.list("", delimiter=False, cursor=cursor, metadata=True)
        for info in await _known(store, page):
            survey.show(info)
        cursor = page.next_cursor
        if cursor is None:
            break
    read: dict[str, Intent | Record | None] = {}

    async def one(info: ObjectInfo) -> None:
        try:
            body = bytes(await store.get(info.key, 0, info.size, if_match=info.etag))
        except GONE:
            return
        read[info.key] = _parse(info.key, body)

    await for_each(survey.wanted(), one, limit=PARALLEL)
    return judge(survey, read, await _uploads(store))


def _parse(key: str, body: bytes) -> Intent | Record | None:
    if key.startswith(layout.INTENTS):
        return intents.parse(body)
    try:
        return linkrecord.parse(body, key)
    except Corrupt:
        return None


async def _known(store: Store, page: Page) -> list[ObjectInfo]:
    """The objects of a page with their metadata, without those that have gone since; no paths as listed."""
    found = {info.key: info for info in page.objects}

    async def one(info: ObjectInfo) -> None:
        try:
            found[info.key] = await store.head(info.key)
        except NotFound:
            del found[info.key]
        except Rejected:  # a key that we never write, or encrypted with somebody's own key: as it was listed
            return

    unknown = [info for info in page.objects if info.metadata is None and layout.is_path(info.key)]
    await for_each(unknown, one, limit=PARALLEL)
    return [found[info.key] for info in page.objects if info.key in found]


async def _uploads(store: Store) -> Sequence[Upload]:
    """Nothing where the store does not list them, or not for these credentials."""
    try:
        return await store.uploads()
    except (Denied, Rejected):
        return ()


class Mender:
    """Repairs findings, one after the other. The cache serves while it works, and is thrown away after it."""

    def __init__(self, store: Store, cache: ContentCache, settings: FsSettings, clock: Clock) -> None:
        self._store = store
        owner = layout.Owner(settings.uid, settings.gid, settings.umask)
        mount = Mount(
            store=store,
            cache=cache,
            settings=settings,
            inodes=Inodes(Numbers({}, lambda _key, _value: None), Inode(ROOT_INO, "", 0o40755, lookups=1)),
            learned=Learned(settings.attr_ttl_s, trio.current_time),
            events=None,
            health=Health(),
            owner=owner,
            started_ns=clock(),
            now_ns=clock,
        )
        mount.inodes.root.set_posix(attributes.default_directory(owner, mount.started_ns))
        self._objects = objects = Objects(store, settings, mount.health)
        self._links = links = Links(mount, objects)
        coherence = Coherence(mount, objects, links, Markers(mount, objects))
        lister = Lister(mount, objects, coherence)
        finder = Finder(mount, objects, coherence, lister, links)
        orphans = Orphans(mount, objects)
        linking = Linking(mount, objects, coherence, finder, FileIO(mount, coherence, orphans), orphans, links)
        removal = Removal(mount, objects, coherence, finder, orphans, linking, Looks(mount, objects, lister))
        self._tree = TreeRename(mount, objects, coherence, removal, links)

    async def mend(self, findings: Sequence[Finding]) -> list[S3volError]:
        """Everything that `plan` names. What has changed since it was judged is left alone.

        Returns what was refused, after all was tried; raises what is retryable: the store does not answer.
        """
        refused: list[S3volError] = []
        for step in plan(findings):
            try:
                await self._mend(step)
            except S3volError as error:
                if error.retryable:
                    raise
                refused.append(error)
        return refused

    async def _mend(self, step: Finding) -> None:
        info, link_id = step.info, layout.record_id(step.key)
        if step.repair is Repair.ABORT:
            await self._store.abort_upload(step.key, step.upload_id)
        elif step.repair is Repair.RENAME:
            await self._tree.finish_left_behind()  # the first step finishes all, the others find none
        elif step.repair is Repair.LINK and link_id is not None and step.record is not None:
            judged = set(step.record.doing.values())
            await self._links.resolve(link_id, lambda it: it in judged)
        elif info is None:
            return
        elif step.repair is Repair.REAP:
            await self._objects.reap(info)
        elif step.repair is Repair.DISCARD:
            await self._objects.discard(info)
        elif step.repair is Repair.COUNT:
            await self._count(info)

    async def _count(self, info: ObjectInfo) -> None:
        """Give a copied stub a token of its own, in the order of link(2): record, stub, record."""
        copied = layout.link_of(info)
        assert copied is not None, "only stubs are counted"
        made = layout.Link(copied.id, new_id())
        try:
            if not await self._links.begin(made.id, {made.token: info.key}, {}):
                return
        except PosixError:  # the link is dead by now, or has as many names as there may be
            return
        body, metadata = layout.stub(made)
        try:
            await self._objects.put(info.key, body, metadata, condition=matches(info.etag))
        except GONE:
            await self._links.settle(made.id, (), (made.token,))
            return
        await self._links.settle(made.id, (made.token,))
