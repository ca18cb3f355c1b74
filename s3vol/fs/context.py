"""What the rooms of the file system share: the rooms below, the settings, and the state in memory of one mount.

Everything here is used on the event loop only. State that several operations change is protected in one of two
ways: tables (inodes, handles, learned) by having no `await` between reading and writing them, names by claims.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import trio

from s3vol import layout
from s3vol.cache.base import ContentCache
from s3vol.errors import PosixError
from s3vol.fs.base import FsSettings
from s3vol.fs.claims import Claim, Claims
from s3vol.fs.handles import Handles
from s3vol.fs.inodes import Inode, Inodes
from s3vol.fs.learned import Learned
from s3vol.store.base import Store
from s3vol.types import Event, Health, Ino


@dataclass(eq=False, slots=True)
class Mount:
    """One mounted volume."""

    store: Store
    cache: ContentCache
    settings: FsSettings
    inodes: Inodes
    learned: Learned
    events: trio.MemorySendChannel[Event] | None
    health: Health
    owner: layout.Owner
    started_ns: int  # what directories without attributes show as their times
    now_ns: Callable[[], int] = time.time_ns
    handles: Handles = field(default_factory=Handles)
    claims: Claims = field(default_factory=Claims)
    believed_until_s: float = -inf  # the endpoint was silent: until then open files' attributes are not asked for
    foreign: set[str] = field(default_factory=set)  # keys counted as no path, so that each counts once

    @property
    def readonly(self) -> bool:
        """True when nothing may be changed through this mount."""
        return self.settings.mode == "readonly"

    def writable(self) -> None:
        """Raise PosixError(EROFS) on a read-only mount."""
        if self.readonly:
            raise PosixError(errno.EROFS, self.store.url)

    def directory(self, ino: Ino) -> Inode:
        """A live directory with a name: ESTALE, ENOTDIR."""
        inode = self.inodes.get(ino)
        if not inode.is_dir:
            raise PosixError(errno.ENOTDIR, inode.key or "")
        if inode.key is None:
            raise PosixError(errno.ESTALE, inode.was)
        return inode

    def child(self, parent: Inode, name: bytes) -> str:
        """The key of `name` in `parent`, without a trailing `/`. Raises NameTooLong, Rejected, PosixError."""
        if parent.key is None:
            raise PosixError(errno.ESTALE, parent.was)
        return self.check_key(parent.key + layout.check_name(name))

    async def published(self) -> None:
        """Return when all that the store acknowledged is visible to all nodes. Raises Unavailable.

        Each close() and fsync() comes here: a store that has nothing to do is not asked, through all its decorators.
        """
        if self.store.capabilities.publishes_later:
            await self.store.sync()

    def check_key(self, key: str) -> str:
        """The key itself. Raises NameTooLong when it has no room below the volume's prefix."""
        return layout.check_key(key, self.store.capabilities.max_key_bytes)

    def new_child(self, parent: Inode, name: bytes) -> str:
        """`child` for a name that is to be made: EROFS, and EACCES for our own `.s3vol`."""
        self.writable()
        path = self.child(parent, name)
        if layout.is_reserved(f"{path}/"):
            raise PosixError(errno.EACCES, f"{path} is s3vol's own")
        return path

    def still(self, parent: Inode, name: bytes, path: str) -> None:
        """Under the claim of `path`: ESTALE when the directory was renamed or removed while it was waited for."""
        if self.child(parent, name) != path:
            raise PosixError(errno.ESTALE, path)

    def say(self, event: Event) -> None:
        """Send an event up. Invalidations are hints: when nobody takes them in time they are dropped and counted."""
        if self.events is None:
            return
        try:
            self.events.send_nowait(event)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.health.count("events_dropped")

    def touch(self, directory: Inode | None) -> None:
        """An entry of this directory was made or removed here: its times, in memory only."""
        if directory is not None:
            directory.touched_ns = self.now_ns()
            directory.changed_s = self.learned.now_s()

    def parent_of(self, key: str) -> Inode | None:
        """The live inode of the directory that holds `key`."""
        return self.inodes.at(layout.parent_key(key))


class HoldInode:
    """`async with HoldInode(mount, inode, shared=...)`: claims the inode's path, whatever it is by then.

    A rename that was under way when the claim was asked for has changed the key: ask again for the new one.
    """

    __slots__ = ("_hold", "_inode", "_mount", "_shared")

    def __init__(self, mount: Mount, inode: Inode, *, shared: bool = True) -> None:
        self._mount = mount
        self._inode = inode
        self._shared = shared

    async def __aenter__(self) -> None:
        while True:
            path = self._inode.path
            self._hold = self._mount.claims.hold(Claim(path, shared=self._shared))
            await self._hold.__aenter__()
            if self._inode.path == path:
                return
            await self._hold.__aexit__(None, None, None)

    async def __aexit__(self, *error: object) -> None:
        await self._hold.__aexit__(None, None, None)
