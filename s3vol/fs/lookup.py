"""What a name is: pending content, what was learned a moment ago, or the bucket's answer.

Theory of operation. A positive answer may be as old as `attr_ttl_s`; "there is nothing" needs a request that began
after the question was asked, since another node may just have closed a new file. In a directory that was not listed
yet the question is asked by listing its first page, which answers the next thousand as well; after that by one LIST of
the keys that begin with the name: `a` is a file if it is an object, a directory if `a/` or anything below it is. When
both are there the directory is shown and the trouble counted. When single questions in a small directory keep finding
files, it is listed again: a walk by names costs one LIST for each TTL and not one for each file. The fewer names there
are, the sooner: a page of ten costs as much as one question.

A large directory, and a store whose listings do not bring attributes, are asked by a HEAD of `a` and a LIST below `a/`
side by side. MinIO walks through the whole directory for the beginning of a name (1 ms among 1,000 others, 6 ms among
10,000) and through nothing for these two (0.5 ms each, however many others there are). Neighbours of a name that is not
there are not counted by anybody, so as many misses as a page has rows count as a large directory: files are being made.

Who walks through a large directory in its order (tar, rsync) is answered by windows: when names were found one behind
the other, the next one is asked for by a listing that begins at it and answers the names that follow as well.

Rejected: believing a listing of a moment ago that there is no such directory. Another node may have made it and closed
a file in it, which is owed to the next open.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass

from s3vol import layout
from s3vol.cache.base import Content
from s3vol.errors import PosixError
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.inodes import Inode
from s3vol.fs.learned import Ask
from s3vol.fs.linkrecord import Count
from s3vol.fs.links import Links
from s3vol.fs.listing import PAGE_ROWS, Lister, Listing
from s3vol.fs.objects import Objects
from s3vol.parallel import both
from s3vol.types import ObjectInfo

LOOK_ROWS = 3  # of a lookup by LIST, 1.2 ms on a local MinIO; two HEADs and what they cost when they miss take 1.8
SINGLES_MAX = 12  # a full page costs MinIO about as much as 30 HEADs (60 ms against 2 ms)
SINGLE_NAMES = 16  # names on a page that cost as much as one question (0.06 ms each)


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path. A file has `content` (pending) or `info`; a directory has `marker` when that is known."""

    path: str
    is_dir: bool
    asked_s: float
    info: ObjectInfo | None = None
    content: Content | None = None
    looked: bool = True  # a directory's marker was looked for; False: seen as a prefix only
    kind: int = 0  # of a file of which only the type is left
    stub: ObjectInfo | None = None  # one name of a hard link: the object at `path`; `info` and `content` are the body's
    count: Count | None = None

    @property
    def link(self) -> layout.Link | None:
        """What the stub at this name says."""
        return layout.link_of(self.stub) if self.stub is not None else None

    @property
    def key(self) -> str:
        """As in the inode table."""
        link = self.link
        if link is not None:
            return link.key
        return f"{self.path}/" if self.is_dir else self.path


class Finder:
    """Answers by path. Concurrent calls are independent."""

    def __init__(self, mount: Mount, objects: Objects, coherence: Coherence, lister: Lister, links: Links) -> None:
        self._mount = mount
        self._objects = objects
        self._coherence = coherence
        self._lister = lister
        self._links = links

    async def find(self, parent: Inode, path: str, *, now: bool = False) -> Found | None:
        """What is at `path`, a child of `parent`; with `now`, as of a request that began after this call.

        A stub whose body is gone is found as the object that it is.
        """
        found = await self._find(parent, path, now=now)
        followed = await self._follow(found, now=now)
        if followed is None and found is not None:  # it was unlinked since, or its body is gone
            found = await self._find(parent, path, now=True)
            followed = await self._follow(found, now=True)
        return followed or found

    async def _follow(self, found: Found | None, *, now: bool) -> Found | None:
        """From the stub to the body; None: there is no body."""
        link = layout.link_of(found.info) if found is not None and found.info is not None else None
        if found is None or link is None:
            return found
        body = await self._links.look(link.id, now=now)
        if body is None:
            return None
        at_s = min(found.asked_s, body.at_s)
        content = self._mount.cache.dirty(link.key)
        return Found(found.path, False, at_s, body.info, content, stub=found.info, count=body.count)

    async def _find(self, parent: Inode, path: str, *, now: bool) -> Found | None:
        if layout.is_reserved(f"{path}/"):
            return None
        local = self._local(path, learned=not now)
        if local is not None:
            _step(parent, path)
            return local
        walked = self._is_walked(parent, path)
        if not now and (walked or self._lists_first(parent)):
            listing = await (self._lister.window(parent, path) if walked else self._lister.page(parent, None))
            _step(parent, path)
            local = self._local(path, learned=False)  # what this node did meanwhile is newer than the page
            if local is not None:
                return local
            if listing.covers(path) and not listing.ask.stale(path) and not listing.ask.stale(f"{path}/"):
                return self._in_listing(listing, path)
        return await self._ask(parent, path)

    def inode(self, found: Found) -> Inode:
        """The live inode of an answer, with its attributes taken over. No await: the answer is still the newest."""
        link = found.link
        if link is not None:
            self._coherence.relocate(found.path, link.id)
        inode = self._file_or_directory(found)
        if link is not None:
            inode.name = found.path
            if found.count is not None:
                self._coherence.adopt_count(inode, found.count)
        return inode

    def _file_or_directory(self, found: Found) -> Inode:
        mount, coherence = self._mount, self._coherence
        if found.is_dir:
            inode, new = mount.inodes.ensure(found.key, stat.S_IFDIR)
            if found.looked:
                coherence.adopt_directory(inode, found.info, found.asked_s)
            elif new:
                coherence.adopt_directory(inode, None, float("-inf"))
                inode.marker = None
            return inode
        if found.content is not None:
            mode = layout.decode_attr(_pending_info(found.content), mount.owner, is_dir=False).mode
            inode, new = mount.inodes.ensure(found.key, mode)
            if new:
                coherence.adopt_content(inode, found.content)
            return inode
        if found.info is None:
            return mount.inodes.ensure(found.key, found.kind)[0]
        mode = layout.decode_attr(found.info, mount.owner, is_dir=False).mode
        inode, _ = mount.inodes.ensure(found.key, mode)
        coherence.adopt(inode, found.info, found.asked_s)
        return inode

    def _local(self, path: str, *, learned: bool) -> Found | None:
        """An answer without a request. No await."""
        mount = self._mount
        content = mount.cache.dirty(path)
        if content is not None:
            return Found(path, False, mount.learned.now_s(), content=content)
        if not learned:
            return None
        fact = mount.learned.get(f"{path}/")
        if fact is not None:
            return Found(path, True, fact.at_s, looked=False)
        fact = mount.learned.get(path)
        if fact is not None and fact.info is not None:
            return Found(path, False, fact.at_s, fact.info)
        return None

    def _lists_first(self, parent: Inode) -> bool:
        never = parent.listed_s == float("-inf")
        bearable = SINGLES_MAX
        if self._mount.store.capabilities.list_metadata:  # elsewhere each name on the page costs a HEAD
            bearable = min(SINGLES_MAX, 1 + (parent.names + parent.misses) // SINGLE_NAMES)
        again = parent.singles >= bearable and not parent.huge
        return (never or again) and not self._mount.learned.fresh(parent.listed_s)

    def _is_walked(self, parent: Inode, path: str) -> bool:
        """True when the names of a large directory are asked for in their order, and `path` is the next."""
        told = self._mount.store.capabilities.list_metadata
        return told and parent.huge and parent.ascending >= SINGLES_MAX and path > parent.last_found

    def _in_listing(self, listing: Listing, path: str) -> Found | None:
        for row in listing.rows:
            if row.is_dir and row.key == f"{path}/":
                return Found(path, True, row.asked_s, looked=False)
            if row.key == path:
                return Found(path, False, row.asked_s, row.info)
        if path not in listing.buried:
            self._mount.learned.put_absent(path, listing.ask)
        return None

    async def _ask(self, parent: Inode, path: str) -> Found | None:
        """Look in the bucket, again if a local change came in between."""
        mount = self._mount
        while True:
            with mount.learned.asking() as ask:
                if mount.store.capabilities.list_metadata and not _is_large(parent):
                    info, below = await self._look(path)
                else:
                    info, below = await both(
                        lambda: self._objects.head(path), lambda: self._objects.first_below(f"{path}/")
                    )
            content = mount.cache.dirty(path)
            if content is not None:
                return Found(path, False, ask.at_s, content=content)
            if not (ask.stale(path) or ask.stale(f"{path}/")):
                return self._judge(parent, path, info, below, ask)

    async def _look(self, path: str) -> tuple[ObjectInfo | None, ObjectInfo | None]:
        """The object `path`, and the first one below `path/`, by one LIST of the keys that begin with `path`.

        Names like `path-x` sort between the two; when they fill the page, what is below is asked for by itself.
        """
        key = f"{path}/"
        page = await self._mount.store.list(path, delimiter=False, limit=LOOK_ROWS, metadata=True)
        info = next((found for found in page.objects if found.key == path), None)
        below = next((found for found in page.objects if found.key.startswith(key)), None)
        info = info and await self._objects.known(info)
        below = below and await self._objects.known(below)
        seen = page.next_cursor is None or any(found.key >= key for found in page.objects)
        if not seen or (below is not None and layout.is_tombstone(below)):
            below = await self._objects.first_below(key)
        return info, below

    def _judge(
        self, parent: Inode, path: str, info: ObjectInfo | None, below: ObjectInfo | None, ask: Ask
    ) -> Found | None:
        mount = self._mount
        buried = info is not None and layout.is_tombstone(info)
        if buried:
            info = None
        if below is not None:
            if info is not None:
                mount.health.count("shadowed_files")
            mount.learned.put(f"{path}/", None, ask)
            marker = below if below.key == f"{path}/" else None
            return Found(path, True, ask.at_s, marker)
        if info is not None:
            parent.singles += 1
            _step(parent, path)
            mount.learned.put(path, info, ask)
            return Found(path, False, ask.at_s, info)
        parent.misses += 1
        if not buried:
            mount.learned.put_absent(path, ask)
        return None

    def recent_file(self, path: str) -> Found | None:
        """A file with one name, as this node has it or learned it a moment ago; None: it has to be asked. No await."""
        found = self._local(path, learned=True)
        if found is None or found.is_dir or (found.info is not None and layout.link_of(found.info) is not None):
            return None
        return found

    def seems_free(self, path: str) -> bool:
        """What `is_free` would answer; the question does not count. No await."""
        return self._mount.cache.dirty(path) is None and self._mount.learned.is_absent(path)

    def is_free(self, path: str) -> bool:
        """True when the lookup that the kernel has just sent found nothing at `path`; it counts once. No await."""
        return self._mount.cache.dirty(path) is None and self._mount.learned.take_absent(path)

    async def need(self, parent: Inode, path: str, *, now: bool = False) -> Found:
        """`find`, or PosixError(ENOENT)."""
        found = await self.find(parent, path, now=now)
        if found is None:
            raise PosixError(errno.ENOENT, path)
        return found


def _is_large(directory: Inode) -> bool:
    """True when a LIST by the beginning of a name would walk through very many others."""
    return directory.huge or directory.misses >= PAGE_ROWS


def _step(directory: Inode, path: str) -> None:
    """A name in it was found, or its neighbours were."""
    if directory.huge:
        directory.ascending = directory.ascending + 1 if path > directory.last_found else 0
        directory.last_found = path


def _pending_info(content: Content) -> ObjectInfo:
    return ObjectInfo(content.key, content.size, "", 0, content.metadata)
