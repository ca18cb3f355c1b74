"""What is true now: when memory may answer, when the bucket is asked, and what a changed version means.

Theory of operation. For a name with unpublished changes this node is the truth, and no request is sent. Else
attributes may be believed for `attr_ttl_s` after the request that brought them began, and an open believes nothing: it
sends a HEAD of its own (a conditional GET would hide changed attributes behind a 304). An answer is taken over only
when no local change came in between (`Learned.asking`); if one did, the question is asked again.

A version that changed means another content. Handles keep the one they hold; `Opened.changed` makes the frontend drop
attributes, and pages are kept only when they are of exactly the version that is opened (fs/pagecache.py).

A name that vanished, or became something of another type, takes the inode's name away: ESTALE, on which the kernel
walks the path again.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import trio

from s3vol import layout
from s3vol.cache.base import Content, State
from s3vol.errors import Corrupt, MetadataTooLarge, PosixError, Unavailable
from s3vol.fs import attributes
from s3vol.fs.base import Entry
from s3vol.fs.context import Mount
from s3vol.fs.inodes import Inode
from s3vol.fs.linkrecord import Count, count_of
from s3vol.fs.links import Links
from s3vol.fs.markers import Markers
from s3vol.fs.objects import Objects
from s3vol.store.base import FILE_TYPE, Buffer
from s3vol.types import Invalidation, ObjectInfo, Version

NOTHING = Version("")  # no object has it: whatever the bucket has is another version
OPEN_WAIT_S = 1.0  # a HEAD takes 1 ms; a reader of an open file is not kept waiting longer for attributes it has
OPEN_BELIEVED_S = 10.0  # after a silence, so that a reader pauses for a tenth of the time at most


@dataclass(frozen=True, slots=True)
class _Told:
    """What the bucket said of a file: attributes, what `adopt` made of them, and the first bytes if they came along."""

    info: ObjectInfo
    changed: bool
    body: Buffer


@dataclass(frozen=True, slots=True)
class Acquired:
    """A content to open, with a reference; what `adopt` returned; and its first bytes if they came along."""

    content: Content
    changed: bool = False
    body: Buffer = b""


class Coherence:
    """Between the inodes of one mount and the bucket. Methods that are not async have no await."""

    def __init__(self, mount: Mount, objects: Objects, links: Links, markers: Markers) -> None:
        self._mount = mount
        self._objects = objects
        self._markers = markers
        self._links = links

    # What may be told to the kernel

    def settled(self, inode: Inode) -> bool:
        """True while memory may answer for the attributes."""
        mount = self._mount
        if inode.key is None or mount.learned.fresh(inode.asked_s):
            return True
        return not inode.is_dir and (self.is_local(inode) or any(h.writable for h in mount.handles.of(inode)))

    def is_local(self, inode: Inode) -> bool:
        """True while this node has changes of the file that are not published: it is the truth."""
        return inode.unpushed or (inode.key is not None and self._mount.cache.dirty(inode.key) is not None)

    def entry(self, inode: Inode, named_s: float = inf) -> Entry:
        """The reply for a name that was seen at `named_s` (by default: just now)."""
        inode.told = inode.version
        return self.shown(inode, named_s)

    def shown(self, inode: Inode, named_s: float = inf) -> Entry:
        """`entry` for a row of a listing, which the kernel may not take."""
        learned = self._mount.learned
        ttl_s = self._mount.settings.attr_ttl_s
        attr_ttl_s = ttl_s if not inode.is_dir and self.is_local(inode) else learned.left_s(inode.asked_s)
        return Entry(inode.attr(), attr_ttl_s, ttl_s if named_s == inf else learned.left_s(named_s))

    # Taking over what was learned

    def adopt(self, inode: Inode, info: ObjectInfo, asked_s: float) -> bool:
        """Take over the bucket's attributes of a file; returns whether the kernel was told of another version."""
        if asked_s < inode.asked_s or self.is_local(inode):
            return False
        inode.set_posix(layout.decode_attr(info, self._mount.owner, is_dir=False))
        if inode.version != info.version:
            inode.target = None
        inode.size, inode.version, inode.metadata = info.size, info.version, info.metadata or {}
        inode.asked_s = asked_s
        inode.explicit_times = inode.atime_set = False
        return inode.told is not None and inode.told != info.version

    def adopt_count(self, inode: Inode, count: Count) -> None:
        """Take over how many names a file has."""
        inode.nlink, inode.linked_ns = max(count.names, 1), count.changed_ns

    def relocate(self, path: str, link_id: str) -> None:
        """The file at `path` is the body of a link now: its inode goes with it, if that has none. No await."""
        inodes = self._mount.inodes
        inode = inodes.at(path)
        if inode is None or inode.is_dir:
            return
        if inodes.at(layout.body_key(link_id)) is None:
            inodes.move(inode, layout.body_key(link_id))
            inode.asked_s, inode.name = -inf, path
        else:
            self.vanish(inode)

    def adopt_content(self, inode: Inode, content: Content) -> None:
        """Take over the attributes of pending content, for an inode that is new here."""
        now_ns = self._mount.now_ns()
        info = ObjectInfo(content.key, content.size, "", now_ns, content.metadata)
        inode.set_posix(layout.decode_attr(info, self._mount.owner, is_dir=False))
        inode.size, inode.version, inode.metadata = content.size, content.base, content.metadata

    def adopt_directory(self, inode: Inode, marker: ObjectInfo | None, asked_s: float) -> None:
        """Take over a directory's attributes; None: it exists, and has no marker."""
        if asked_s < inode.asked_s:
            return
        mount = self._mount
        if marker is None:
            inode.set_posix(attributes.default_directory(mount.owner, mount.started_ns))
        else:
            inode.set_posix(layout.decode_attr(marker, mount.owner, is_dir=True))
        inode.marker = marker is not None
        inode.version = marker.version if marker is not None else None
        inode.metadata = (marker.metadata or {}) if marker is not None else {}
        inode.asked_s = asked_s

    def adopt_published(self, inode: Inode, content: Content, asked_s: float) -> None:
        """After a publish that began at `asked_s`: memory is what the bucket has, unless it was changed again."""
        if inode.key != content.key or content.state is not State.CLEAN or inode.unpushed:
            return
        inode.version = inode.told = content.base
        inode.size, inode.metadata = content.size, content.metadata
        # Streamed uploads carry no mtime: it is Last-Modified, which only the bucket knows (docs/rfcs/0003).
        inode.asked_s = asked_s if "mtime" in content.metadata else -inf

    def changed(self, inode: Inode) -> None:
        """A local change of the file begins: what was learned is no longer true."""
        if inode.key is not None:
            self._mount.learned.changed(inode.key)
        inode.asked_s = -inf

    def forget(self, inode: Inode) -> None:
        """After a conflict: local attributes are void, the bucket is asked next time."""
        self.changed(inode)
        inode.unpushed = False
        inode.version = None  # `pages` stays: those of what lost are to be dropped
        inode.told = NOTHING  # the kernel has the length of what lost
        self._mount.say(Invalidation(inode.ino))

    def vanish(self, inode: Inode) -> None:
        """The bucket has nothing (or something else) at this name: the inode has no name any more."""
        mount = self._mount
        if inode.key is None or inode is mount.inodes.root:
            return
        mount.learned.forget(inode.key)
        mount.learned.suspect(inode.key.removesuffix("/"))
        parent = mount.parent_of(inode.key)
        if parent is not None:
            mount.say(Invalidation(parent.ino, layout.name_of(inode.key).encode()))
        mount.inodes.unname(inode)

    async def follow(self, content: Content) -> bool:
        """True when the object that a handle reads has become the body of a hard link: it reads on from there.

        The caller holds a claim on the inode.
        """
        cache, key = self._mount.cache, content.key
        await cache.publish(content)  # one that has changes is followed by its publisher
        if content.key != key:
            return True
        info = await self._objects.head(key)
        link = layout.link_of(info) if info is not None else None
        body = await self._links.look(link.id, now=True) if link is not None else None
        if body is None or content.state is not State.CLEAN or content.base is None or content.key != key:
            return content.key != key
        if not layout.is_body_of(body.info, content.base):
            return False
        cache.rekey(content, body.info)
        return True

    # Local changes on their way to the bucket

    def push(self, inode: Inode, content: Content) -> None:
        """Put changed attributes into the content's metadata, for the next publish."""
        if inode.unpushed and content.state in (State.CLEAN, State.DIRTY):
            try:
                metadata = self.encode(inode, content.metadata)
            except MetadataTooLarge:
                # Others' headers fill the 2,048 bytes. A setattr says so (E2BIG); a write must not fail for it:
                # without times of its own the object shows Last-Modified, which is right.
                self._mount.health.count("attributes_that_did_not_fit")
                metadata = {n: v for n, v in content.metadata.items() if n not in ("mtime", "ctime")}
            self._mount.cache.set_metadata(content, metadata, explicit_times=inode.explicit_times)
            inode.metadata = metadata
        inode.unpushed = False

    def encode(self, inode: Inode, kept: Mapping[str, str]) -> dict[str, str]:
        """Metadata for the inode as it is now. Raises MetadataTooLarge."""
        kept = layout.without_link(layout.without_nonce(kept))
        metadata = layout.encode_attr(inode.posix(), kept, with_atime=inode.atime_set)
        layout.check_metadata(metadata)
        if inode.key is not None and layout.body_id(inode.key) is not None:
            metadata = layout.with_path(metadata, inode.name)
        return metadata

    # Asking

    async def refresh(self, inode: Inode) -> None:
        """Make the attributes believable. PosixError(ESTALE): the name is gone."""
        if inode.key is None and inode.pins == 0:
            raise PosixError(errno.ESTALE, inode.was)
        if not inode.is_dir and self._mount.handles.contents_of(inode):
            await self._refresh_open(inode)
            return
        answered = self.settled(inode)
        while not answered:
            answered = await self._ask_directory(inode) if inode.is_dir else await self._ask_file(inode) is not None

    async def _refresh_open(self, inode: Inode) -> None:
        """The same for a file that is open here, with what is in memory instead of an endpoint that does not answer.

        The kernel asks for attributes before it reads on, and reads of cached data go on without the endpoint. What
        an open handle reads is the version it was opened with; only stat() by path may be behind.
        """
        mount = self._mount
        with trio.move_on_after(OPEN_WAIT_S):
            while not self.settled(inode) and trio.current_time() >= mount.believed_until_s:
                try:
                    await self._ask_file(inode)
                except Unavailable:
                    break
        if not self.settled(inode) and trio.current_time() >= mount.believed_until_s:
            mount.believed_until_s = trio.current_time() + OPEN_BELIEVED_S
            mount.health.count("attributes_believed_offline")

    async def acquire(self, inode: Inode, *, fetch_bytes: int = 0) -> Acquired:
        """The content to open, as of a HEAD sent after this call; so many of its first bytes may come along.

        The caller holds a claim on the inode. PosixError(ESTALE): the name is gone.
        """
        mount = self._mount
        while True:
            if inode.key is None:
                contents = mount.handles.contents_of(inode)  # by /proc/self/fd: what the other handles read
                if not contents:
                    raise PosixError(errno.ESTALE, inode.was)
                mount.cache.refer(contents[-1])
                return Acquired(contents[-1])
            pending = mount.cache.dirty(inode.key)
            if pending is not None:
                mount.cache.refer(pending)
                return Acquired(pending)
            found = await self._ask_file(inode, fetch_bytes=fetch_bytes)
            if found is not None:
                # No await since the answer was found to be newer than every local change.
                content = mount.cache.attach(found.info, content_type=found.info.content_type or FILE_TYPE)
                return Acquired(content, found.changed, found.body)

    async def _ask_file(self, inode: Inode, *, fetch_bytes: int = 0) -> _Told | None:
        """HEAD and adopt. None: a local change came in between. PosixError(ESTALE): gone, or of another type.

        So many of its first bytes come along.
        """
        key = inode.key
        if key is None:
            raise PosixError(errno.ESTALE, inode.was)
        link_id = layout.body_id(key)
        count: Count | None = None
        body: Buffer = b""
        with self._mount.learned.asking() as ask:
            if link_id is None and fetch_bytes:
                info, body = await self._objects.fetch(key, fetch_bytes)
            elif link_id is None:
                info = await self._objects.head(key)
            else:
                info, record = await self._links.ask(link_id)
                count = count_of(record)
        if ask.stale(key) or inode.key != key or (link_id is not None and ask.stale(layout.record_key(link_id))):
            return None
        link = layout.link_of(info) if info is not None and link_id is None else None
        if link is not None:
            await self._follow(inode, key, link.id)
            return None
        if info is None or layout.is_tombstone(info) or self.kind(info) != stat.S_IFMT(inode.mode):
            self.vanish(inode)
            raise PosixError(errno.ESTALE, key)
        if ask.at_s < inode.asked_s and info.version != inode.version:
            return None  # a later question was answered first: the kernel may have been told of what that said
        if count is not None:
            self.adopt_count(inode, count)
        return _Told(info, self.adopt(inode, info, ask.at_s), body)

    async def _follow(self, inode: Inode, key: str, link_id: str) -> None:
        """The object at `key` has become the stub of a link. Corrupt: of one that has no body."""
        body = await self._links.look(link_id)
        if inode.key != key:
            return
        if body is None:
            raise Corrupt(f"{key}: the content of this hard link, {layout.body_key(link_id)}, is gone from the bucket")
        if self.kind(body.info) != stat.S_IFMT(inode.mode):
            self.vanish(inode)
            raise PosixError(errno.ESTALE, key)
        self.relocate(key, link_id)
        if inode.key is None:
            raise PosixError(errno.ESTALE, key)

    async def _ask_directory(self, inode: Inode) -> bool:
        key = inode.key
        if key is None:
            raise PosixError(errno.ESTALE, inode.was)
        early = await self._markers.early(key)
        if early is not None and inode.key == key:
            marker, ask = early
            self.adopt_directory(inode, marker, ask.at_s)
            return self.settled(inode)
        with self._mount.learned.asking() as ask:
            if inode is self._mount.inodes.root:
                marker, exists = await self._objects.head(layout.ROOT_ATTRIBUTES), True
            else:
                marker, exists = await self._markers.look(key, marked=bool(inode.marker))
        if ask.stale(key) or inode.key != key:
            return False
        if not exists:
            self.vanish(inode)
            raise PosixError(errno.ESTALE, key)
        self.adopt_directory(inode, marker, ask.at_s)
        return True

    def kind(self, info: ObjectInfo) -> int:
        """The type bits of a file's object."""
        return stat.S_IFMT(layout.decode_attr(info, self._mount.owner, is_dir=False).mode)

    async def save_directory(self, inode: Inode, metadata: dict[str, str], known: Mapping[str, str]) -> None:
        """Write a directory's attributes to its marker. PreconditionFailed: that has not the `known` ones any more."""
        assert inode.key is not None, "only a directory with a name is saved"
        self.changed(inode)
        asked_s = self._mount.learned.now_s()
        key, posix = layout.marker_key(inode.key), inode.posix()
        info = await self._objects.put_marker(key, metadata, known if inode.marker else None)
        self._mount.learned.changed(inode.key)
        inode.set_posix(posix)  # a listing that was answered meanwhile has shown the former ones
        inode.marker, inode.version, inode.metadata = True, info.version, info.metadata or {}
        inode.told = inode.version
        inode.asked_s = asked_s
