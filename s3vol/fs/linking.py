"""link(2), and names of hard links that go.

Theory of operation. The first link of an ordinary file converts it: a record for two names is written, the object is
copied to `.s3vol/links/<id>`, replaced, If-Match, by a stub, and then the new name gets its stub, if nothing is there.
A further link only adds a token to the record and makes the stub. The record comes first in both, so a crash at any
step is decided by looking (fs/links.py): an unfinished link is a file with the names that it has. A writer on another
node that publishes before the stub is there makes the replacement fail, and the body is copied again.

A name that goes is marked in the record, its stub is deleted, its token taken out. Who takes out the last one
takes the body away, after open handles were provided for (orphans.py).

The inode of a file with several names has the key of its body, so everything that reads, writes or changes it is as
for any file. Who adds or removes names claims the names and the body alone, so that no local writer has the body
half done; between nodes the record decides.
"""

from __future__ import annotations

import contextlib
import errno
import secrets

import trio

from s3vol import layout
from s3vol.cache.base import State
from s3vol.errors import PosixError, S3volError, Unavailable
from s3vol.failpoints import Point, hit
from s3vol.fs.base import Entry
from s3vol.fs.claims import Claim
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.copying import GONE, SMALL_BYTES, Copier
from s3vol.fs.fileio import FileIO
from s3vol.fs.inodes import Inode
from s3vol.fs.intents import BEAT_S
from s3vol.fs.links import Links
from s3vol.fs.lookup import Finder, Found
from s3vol.fs.objects import Objects
from s3vol.fs.orphans import Orphans
from s3vol.layout import Link
from s3vol.parallel import alongside
from s3vol.store.base import ABSENT, FILE_TYPE, matches
from s3vol.types import Ino, ObjectInfo

ATTEMPTS = 10  # versions of other nodes that may come in between


def new_id() -> str:
    """Of a link or of a name: 64 random bits."""
    return secrets.token_hex(8)


def bodies(*found: Found | None) -> tuple[Claim, ...]:
    """What has to be claimed beside the names: the bodies of those that are links."""
    return tuple({Claim(link.key) for it in found if it is not None and (link := it.link) is not None})


class Linking:
    """Names of hard links: made and removed."""

    def __init__(
        self,
        mount: Mount,
        objects: Objects,
        coherence: Coherence,
        finder: Finder,
        files: FileIO,
        orphans: Orphans,
        links: Links,
    ) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence
        self._finder = finder
        self._files = files
        self._orphans = orphans
        self._links = links
        self._copier = Copier(mount, objects)

    async def link(self, ino: Ino, parent: Ino, name: bytes) -> Entry:
        """EEXIST, EMLINK, EPERM for a directory, ENOENT for a file without a name, EROFS."""
        mount = self._mount
        inode, directory = mount.inodes.get(ino), mount.directory(parent)
        path = mount.new_child(directory, name)
        if inode.is_dir:
            raise PosixError(errno.EPERM, f"{inode.path} is a directory")
        for _ in range(ATTEMPTS):
            source = inode.path
            if source == path:
                raise PosixError(errno.EEXIST, path)
            async with mount.claims.hold(Claim(source), Claim(path)):
                if inode.path != source:
                    continue  # renamed, or linked by another node, since
                if inode.key is None:
                    raise PosixError(errno.ENOENT, inode.was)
                mount.still(directory, name, path)
                await self._refuse_existing(directory, path)
                if not await self._link(inode, path):
                    continue
                # No await from here: the reply shows what is true now.
                mount.touch(directory)
                mount.inodes.remember(inode)
                return self._coherence.entry(inode)
        raise Unavailable(f"{path}: other nodes changed the file {ATTEMPTS} times while it was to be linked")

    async def _refuse_existing(self, directory: Inode, path: str) -> None:
        free = self._mount.cache.dirty(path) is None and self._mount.learned.take_absent(path)
        if not free and await self._finder.find(directory, path) is not None:
            raise PosixError(errno.EEXIST, path)

    async def _link(self, inode: Inode, path: str) -> bool:
        """Both are claimed. False: another node has made a link of the file meanwhile."""
        assert inode.key is not None, "only a file with a name gets another"
        link_id = layout.body_id(inode.key)
        if link_id is not None:
            made = Link(link_id, new_id())
            with self._links.working(link_id):
                if not await self._links.begin(link_id, {made.token: path}, {}):
                    self._coherence.vanish(inode)
                    raise PosixError(errno.ENOENT, inode.was)
                hit(Point.LINK_AFTER_RECORD)
                await self._add(inode, made, path)
            return True
        await self._publish(inode)
        source = await self._source(inode)
        if source is None:
            return False
        first = Link(new_id(), new_id())
        second = Link(first.id, new_id())
        names = {first.token: inode.key, second.token: path}
        with self._links.working(first.id):
            await self._links.create(first.id, names)
            hit(Point.LINK_AFTER_RECORD)
            try:
                converted = await self._convert(inode, source, first, names)
            except S3volError as error:
                await self.give_up(first.id, error)
                raise
            if not converted:
                await self.give_up(first.id)
                return False
            hit(Point.LINK_AFTER_CONVERSION)
            await self._add(inode, second, path, (first.token,))
        return True

    async def _publish(self, inode: Inode) -> None:
        """Unpublished changes go with the object. Raises Conflict."""
        content = self._mount.cache.dirty(inode.key or "")
        if content is not None:
            await self._files.commit_held(inode, content, remote=True, schedule=False)

    async def _source(self, inode: Inode) -> ObjectInfo | None:
        """The object of an ordinary file as it is now; None: it is a link by now."""
        assert inode.key is not None, "the path is claimed"
        found = await self._objects.head(inode.key)
        if found is None or layout.is_tombstone(found):
            self._coherence.vanish(inode)
            raise PosixError(errno.ENOENT, inode.was)
        link = layout.link_of(found)
        if link is None:
            return found
        if await self._links.look(link.id) is None:
            raise PosixError(errno.EIO, f"{inode.key}: the content of this hard link is gone from the bucket")
        self._coherence.relocate(inode.key, link.id)
        return None

    # The first link of a file

    async def _convert(self, inode: Inode, source: ObjectInfo, link: Link, names: dict[str, str]) -> bool:
        """Move the object to the link's body and put a stub in its place. False: another node was faster."""
        cache, copied = self._mount.cache, None
        for _ in range(ATTEMPTS):
            content = cache.attach(source, content_type=source.content_type or FILE_TYPE)
            try:
                await cache.publish(content)  # it is clean: waits for a publisher that is just letting go of it
                body = None
                if source.size <= SMALL_BYTES:
                    with contextlib.suppress(*GONE):
                        body = await cache.read(content, 0, source.size)
                fresh = await self._copy(source, link, copied, body, names)
                if fresh is not None:
                    copied = fresh
                    hit(Point.LINK_AFTER_BODY)
                    if await self._replace(source, link):
                        # No await between the stub and the change of names in memory.
                        if content.state is State.CLEAN:
                            cache.rekey(content, copied)
                        self._converted(inode, source.key, copied)
                        return True
            finally:
                cache.release(content)
            found = await self._source(inode)
            if found is None:
                return False
            source = found
        raise Unavailable(f"{source.key}: other nodes changed it {ATTEMPTS} times while it was to be linked")

    async def _copy(
        self, source: ObjectInfo, link: Link, older: ObjectInfo | None, body: object, names: dict[str, str]
    ) -> ObjectInfo | None:
        """The body, over an older copy of ours; None: the source is another by now."""
        payload = body if isinstance(body, bytes | bytearray | memoryview) else None
        condition = ABSENT if older is None else matches(older.etag)
        metadata = layout.with_origin(self._copier.metadata(source), source.version)
        made: list[ObjectInfo] = []

        async def work() -> None:
            made.append(await self._copier.copy(source, link.key, condition, body=payload, metadata=metadata))

        async def beat() -> None:
            while True:
                await trio.sleep(BEAT_S)
                await self._links.beat(link.id, names)

        try:
            await alongside(work, beat)
        except GONE:
            return None
        return made[0]

    async def _replace(self, source: ObjectInfo, link: Link) -> bool:
        """Exactly this version by a stub."""
        body, metadata = layout.stub(link)
        self._mount.learned.changed(source.key)
        try:
            await self._objects.put(source.key, body, metadata, condition=matches(source.etag))
        except GONE:
            return False
        finally:
            self._mount.learned.changed(source.key)
        return True

    def _converted(self, inode: Inode, old: str, copied: ObjectInfo) -> None:
        """The inode, its number and its handles go with the body. No await."""
        mount = self._mount
        mount.learned.changed(copied.key)
        mount.inodes.move(inode, copied.key)
        inode.name = old
        self._coherence.adopt(inode, copied, mount.learned.now_s())
        inode.told = inode.version

    # Each further name

    async def _add(self, inode: Inode, link: Link, path: str, here: tuple[str, ...] = ()) -> None:
        """The stub of a name that is in the record, and the end of the operation."""
        body, metadata = layout.stub(link)
        self._mount.learned.changed(path)
        try:
            await self._objects.create(path, body, metadata)
        except PosixError:
            await self._links.settle(link.id, here, (link.token,))
            raise
        except S3volError as error:
            await self.give_up(link.id, error)
            raise
        finally:
            self._mount.learned.changed(path)
        hit(Point.LINK_AFTER_STUB)
        record = await self._links.settle(link.id, (link.token, *here))
        if record is None or link.token not in record.names:
            # We were taken for dead, and the name for one that was never made.
            await self._objects.discard(ObjectInfo(path, len(body), (await self._etag(path, link)), 0, metadata))
            raise Unavailable(f"{path}: took so long that another node has ended the operation; try again")
        self._counted(inode, len(record.names))

    async def _etag(self, path: str, link: Link) -> str:
        found = await self._objects.head(path)
        return found.etag if found is not None and layout.link_of(found) == link else ""

    def _counted(self, inode: Inode | None, names: int) -> None:
        """The number of names changed, which is a change of the inode. No await."""
        if inode is not None:
            inode.nlink, inode.linked_ns = max(names, 1), self._mount.now_ns()

    async def give_up(self, link_id: str, error: S3volError | None = None) -> None:
        """After a failure: what can be decided now is, the rest later (`Links.finish_in_doubt`)."""
        if isinstance(error, Unavailable):
            return  # what got no answer may still arrive
        with contextlib.suppress(S3volError):
            await self._links.resolve_own(link_id)

    # Names that go

    async def unlink(self, path: str, link: Link) -> None:
        """Remove one name. The path and the body are claimed."""
        with self._links.working(link.id):
            await self.leave(path, link)
            hit(Point.UNLINK_NAME_AFTER_RECORD)
            await self._mount.store.delete(path)
            self._mount.learned.changed(path)
            hit(Point.UNLINK_NAME_AFTER_STUB)
            await self.left(link)

    async def leave(self, path: str, link: Link) -> None:
        """The name at `path` is going to be taken away, or replaced."""
        self._mount.learned.changed(path)
        with contextlib.suppress(PosixError):  # ENOENT: the link is dead, its last stubs may go
            await self._links.begin(link.id, {}, {link.token: path})

    async def left(self, link: Link) -> None:
        """The stub is gone: so is the token, and with the last one the body."""
        record = await self._links.settle(link.id, (), (link.token,))
        inode = self._mount.inodes.at(link.key)
        if record is None or not record.dead:  # without a record nobody knows whether this was the last name
            self._counted(inode, len(record.names) if record is not None else 1)
            return
        if inode is not None:
            await self._orphans.keep(inode)
        self._mount.learned.changed(link.key)
        await self._links.remove(link.id)
        self._mount.learned.changed(link.key)
        if inode is not None and inode.key == link.key:
            inode.unpushed = False
            inode.ctime_ns = self._mount.now_ns()
            self._mount.inodes.unname(inode)
