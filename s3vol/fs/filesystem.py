"""The file system of one mounted volume: the face that `fs/base.py` describes, over the rooms beside this file.

    lookup, create, mkdir, mknod, symlink   namespace.py   find by lookup.py, listing.py
    unlink, rmdir                           removal.py     open files that lose their name: orphans.py
    rename                                  rename.py      directories: tree.py, intents.py; bytes: copying.py
    link, and linked names that go          linking.py     rename: linkrename.py; records: links.py, linkrecord.py
    open, read, write, flush, fsync         fileio.py
    getattr, setattr, xattrs                changes.py     rules: attributes.py
    opendir, readdir                        directory.py
    flush_path, drain, cleaning up          upkeep.py

What they share: context.py (state), coherence.py (what is true now), objects.py (conditional changes), learned.py,
inodes.py, numbers.py, handles.py, claims.py. Imports among them go one way, and none of them imports this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from s3vol import layout
from s3vol.cache.base import ContentCache
from s3vol.fs import attributes
from s3vol.fs.base import DirEntry, Entry, FsSettings, Opened, Pages, Progress, Range, StatFs
from s3vol.fs.changes import Changes
from s3vol.fs.coherence import Coherence
from s3vol.fs.context import Mount
from s3vol.fs.directory import Directories
from s3vol.fs.fileio import FileIO
from s3vol.fs.inodes import Inode, Inodes
from s3vol.fs.learned import Learned
from s3vol.fs.linking import Linking
from s3vol.fs.linkrename import LinkRename
from s3vol.fs.links import Links
from s3vol.fs.listing import Lister
from s3vol.fs.looks import Looks
from s3vol.fs.lookup import Finder
from s3vol.fs.markers import Markers
from s3vol.fs.namespace import Namespace
from s3vol.fs.numbers import Numbers
from s3vol.fs.objects import Objects
from s3vol.fs.orphans import Orphans
from s3vol.fs.removal import Removal
from s3vol.fs.rename import Rename
from s3vol.fs.tree import TreeRename
from s3vol.fs.upkeep import Upkeep
from s3vol.fs.walkahead import WalkAhead
from s3vol.store.base import Buffer, Store
from s3vol.types import ROOT_INO, AttrChange, Caller, Event, Fh, Health, Ino

INO_NOTES = "ino"
_BLOCK_BYTES = 4096
_BLOCKS = (1 << 50) // _BLOCK_BYTES  # 1 PiB: large, and far from overflowing what programs compute with it
_FILES = 1 << 40


class S3Fs:
    """A mounted volume; implements `s3vol.fs.base.FileSystem`.

    Call `start` before the first request and keep `run` running beside the frontend. All methods run on one event loop.
    """

    def __init__(
        self,
        store: Store,
        cache: ContentCache,
        settings: FsSettings,
        events: trio.MemorySendChannel[Event] | None = None,
        health: Health | None = None,
    ) -> None:
        mount = self._mount = _mount(store, cache, settings, events, health or Health())
        objects = Objects(store, settings, mount.health)
        links = Links(mount, objects)
        markers = self._markers = Markers(mount, objects)
        coherence = Coherence(mount, objects, links, markers)
        lister = Lister(mount, objects, coherence)
        finder = Finder(mount, objects, coherence, lister, links)
        orphans = Orphans(mount, objects)
        self._files = FileIO(mount, coherence, orphans)
        self._linking = linking = Linking(mount, objects, coherence, finder, self._files, orphans, links)
        removal = Removal(mount, objects, coherence, finder, orphans, linking, Looks(mount, objects, lister))
        tree = TreeRename(mount, objects, coherence, removal, links)
        renaming = LinkRename(mount, objects, links, linking)
        self._namespace = Namespace(mount, objects, coherence, finder, self._files)
        self._removal = removal
        self._rename = Rename(mount, objects, coherence, finder, self._files, orphans, removal, renaming, tree)
        self._changes = Changes(mount, coherence, self._files)
        self._ahead = WalkAhead(mount, lister, markers)
        self._directories = Directories(mount, coherence, finder, lister, links, self._ahead)
        self._upkeep = Upkeep(mount, self._files, orphans, self._rename, tree, links)

    # The life of the mount

    async def start(self) -> None:
        """Clear what a crash left behind."""
        await self._upkeep.start()

    async def run(self) -> None:
        """List ahead, and sweep, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ahead.run)
            nursery.start_soon(self._markers.run)
            nursery.start_soon(self._upkeep.run)

    # Names

    async def lookup(self, parent: Ino, name: bytes) -> Entry:
        """See FileSystem."""
        return await self._namespace.lookup(parent, name)

    def forget(self, counts: Sequence[tuple[Ino, int]]) -> None:
        """See FileSystem."""
        self._mount.inodes.forget(counts)

    def remember(self, ino: Ino) -> None:
        """See FileSystem."""
        self._directories.remember(ino)

    async def mknod(self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """See FileSystem."""
        return await self._namespace.mknod(parent, name, mode, rdev, caller)

    async def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Entry:
        """See FileSystem."""
        return await self._namespace.mkdir(parent, name, mode, caller)

    async def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Entry:
        """See FileSystem."""
        return await self._namespace.symlink(parent, name, target, caller)

    async def link(self, ino: Ino, parent: Ino, name: bytes, caller: Caller) -> Entry:
        """See FileSystem."""
        return await self._linking.link(ino, parent, name)

    async def readlink(self, ino: Ino) -> bytes:
        """See FileSystem."""
        return await self._namespace.readlink(ino)

    async def unlink(self, parent: Ino, name: bytes) -> None:
        """See FileSystem."""
        await self._removal.unlink(parent, name)

    async def rmdir(self, parent: Ino, name: bytes) -> None:
        """See FileSystem."""
        await self._removal.rmdir(parent, name)

    async def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> None:
        """See FileSystem."""
        await self._rename.rename(parent, name, new_parent, new_name, flags)

    # Files

    async def create(self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Opened, Entry]:
        """See FileSystem."""
        return await self._namespace.create(parent, name, mode, flags, caller)

    async def open(self, ino: Ino, flags: int) -> Opened:
        """See FileSystem."""
        return await self._files.open(self._mount.inodes.get(ino), flags)

    async def read(self, fh: Fh, offset: int, length: int) -> Buffer:
        """See FileSystem."""
        return await self._files.read(fh, offset, length)

    def beside(self, fh: Fh, offset: int, length: int) -> Range | None:
        """See FileSystem."""
        return self._files.beside(fh, offset, length)

    def pages(self, fh: Fh, start: int, end: int) -> Pages | None:
        """See FileSystem."""
        return self._files.pages(fh, start, end)

    def entry(self, ino: Ino, entry: Entry) -> Entry:
        """See FileSystem."""
        return self._changes.entry(ino, entry)

    async def write(self, fh: Fh, offset: int, data: Buffer) -> int:
        """See FileSystem."""
        return await self._files.write(fh, offset, data)

    async def flush(self, fh: Fh) -> None:
        """See FileSystem."""
        await self._files.flush(fh)

    async def fsync(self, fh: Fh) -> None:
        """See FileSystem."""
        await self._files.fsync(fh)

    async def release(self, fh: Fh) -> None:
        """See FileSystem."""
        await self._files.release(fh)

    # Attributes

    async def getattr(self, ino: Ino, fh: Fh | None = None) -> Entry:
        """See FileSystem. The handle does not matter: an inode has one set of attributes."""
        return await self._changes.getattr(ino)

    async def setattr(self, ino: Ino, change: AttrChange, fh: Fh | None, caller: Caller) -> Entry:
        """See FileSystem."""
        return await self._changes.setattr(ino, change, fh, caller)

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """See FileSystem."""
        return await self._changes.getxattr(ino, name)

    async def setxattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        """See FileSystem."""
        await self._changes.setxattr(ino, name, value)

    async def listxattr(self, ino: Ino) -> Sequence[bytes]:
        """See FileSystem."""
        return await self._changes.listxattr(ino)

    async def removexattr(self, ino: Ino, name: bytes) -> None:
        """See FileSystem."""
        await self._changes.removexattr(ino, name)

    # Directories

    async def opendir(self, ino: Ino) -> Fh:
        """See FileSystem."""
        return await self._directories.open(ino)

    async def readdir(self, fh: Fh, cursor: int) -> Sequence[DirEntry]:
        """See FileSystem."""
        return await self._directories.read(fh, cursor)

    async def releasedir(self, fh: Fh) -> None:
        """See FileSystem."""
        await self._directories.close(fh)

    async def fsyncdir(self, fh: Fh) -> None:
        """Names are in the store before the call that made them returns; a new file's with its own fsync or close."""
        self._mount.handles.directory(fh)
        await self._mount.cache.sync_notes()
        if self._mount.settings.fsync_remote:
            await self._mount.published()

    async def statfs(self) -> StatFs:
        """See StatFs."""
        return StatFs(_BLOCK_BYTES, _BLOCKS, _BLOCKS, _FILES, _FILES, layout.NAME_MAX_BYTES)

    # Messages

    def path_of(self, ino: Ino) -> str:
        """See FileSystem."""
        inode = self._mount.inodes.find(ino)
        return "" if inode is None else inode.said_path

    def path_of_handle(self, fh: Fh) -> str:
        """See FileSystem."""
        inode = self._mount.handles.inode_of(fh)
        return "" if inode is None else inode.said_path

    # The control socket

    async def flush_path(self, path: str | None, progress: Callable[[Progress], None]) -> None:
        """See FileSystem."""
        await self._upkeep.flush_path(path, progress)

    async def drain(self, deadline_s: float, progress: Callable[[Progress], None]) -> Progress:
        """See FileSystem."""
        return await self._upkeep.drain(deadline_s, progress)

    def status(self) -> Mapping[str, Any]:
        """Inodes, open handles, what was learned, what is pending, and the counters of this mount."""
        mount = self._mount
        return {
            "mode": mount.settings.mode,
            "inodes": len(mount.inodes),
            "handles": len(mount.handles),
            "learned": len(mount.learned),
            "pending": sum(1 for _ in mount.cache.pending()),
            "counts": dict(mount.health.counts),
        }


def _mount(
    store: Store,
    cache: ContentCache,
    settings: FsSettings,
    events: trio.MemorySendChannel[Event] | None,
    health: Health,
) -> Mount:
    owner = layout.Owner(settings.uid, settings.gid, settings.umask)
    numbers = Numbers(cache.notes(INO_NOTES), lambda key, value: cache.note(INO_NOTES, key, value))
    mount = Mount(
        store=store,
        cache=cache,
        settings=settings,
        inodes=Inodes(numbers, Inode(ROOT_INO, "", 0o40755, lookups=1)),
        learned=Learned(settings.attr_ttl_s, trio.current_time),
        events=events,
        health=health,
        owner=owner,
        started_ns=0,
    )
    mount.started_ns = mount.now_ns()
    mount.inodes.root.set_posix(attributes.default_directory(owner, mount.started_ns))
    return mount
