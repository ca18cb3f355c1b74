"""The inode table: what the kernel knows of, by number and by key, with its lookup counts.

Theory of operation. An inode is here while the kernel has looked it up (and not forgotten it) or a handle is open on
it; the bucket is never mirrored. `key` is where its object is: `a/b` for a file, `a/b/` for a directory, "" for the
root, `.s3vol/links/<id>` for a file with several names (all of them lead to one inode), None when its name is gone
(unlinked, or replaced by something of another type) while somebody still uses it.

A name that comes back while the kernel still holds the dead inode gets that inode again, when the type is the same and
no handle is open: programs that rewrite a file by unlink and create would else leave one exception of inode numbers
behind for each cycle.

Everything here is synchronous and touched on the event loop only.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from s3vol.cache.base import Content
from s3vol.errors import PosixError
from s3vol.fs.numbers import Numbers
from s3vol.layout import Posix
from s3vol.types import ROOT_INO, Attr, Ino, Version


@dataclass(eq=False, slots=True)
class Inode:
    """One file, directory, symlink or special file. Times are in nanoseconds since the epoch."""

    ino: Ino
    key: str | None
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    atime_ns: int = 0

    # What the bucket said, and when we asked: the attributes above are as of `asked_s` unless content is pending.
    version: Version | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    asked_s: float = -inf

    # Local changes of attributes that the content's metadata does not carry yet (pushed before each publish).
    unpushed: bool = False
    explicit_times: bool = False
    atime_set: bool = False

    committing: int = 0  # publishes under way: what changes now does not go with them

    # Use by the kernel.
    lookups: int = 0
    pins: int = 0  # open handles
    told: Version | None = None  # the version whose attributes the kernel was given last
    pages: Content | None = None  # whose bytes the kernel's page cache may hold
    was: str = ""  # the key it had before its name went

    # Of a hard link, whose key is its body's.
    nlink: int = 1
    linked_ns: int = 0  # when the number of its names changed last
    name: str = ""  # the path by which it was found last

    # Of a symlink, of a directory, of an unlinked file.
    target: bytes | None = None
    marker: bool | None = None  # the directory has a marker object; None: not known
    touched_ns: int = 0  # newest change of entries made here; kept in memory only
    changed_s: float = -inf  # when this node made or removed an entry last
    listed_s: float = -inf  # when a listing of it began last
    names: int = 0  # on the first page of that
    singles: int = 0  # names found one by one since then
    misses: int = 0  # names asked for one by one that were not there, since then
    huge: bool = False  # its first page did not cover all of it
    ascending: int = 0  # of a huge one: names found in a row, each behind the one before
    last_found: str = ""  # the last of them
    orphans: list[str] = field(default_factory=list)  # objects that keep its bytes for open handles

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def path(self) -> str:
        """The key without a trailing `/`, as claims have it; a private one for an inode without a name."""
        return f"\0{self.ino}" if self.key is None else self.key.removesuffix("/")

    @property
    def said_path(self) -> str:
        """The path that a person knows it by: of a hard link the name, of an unlinked file the former one."""
        return self.name or (self.was if self.key is None else self.key).removesuffix("/")

    def posix(self) -> Posix:
        """Attributes as they are stored with the object."""
        return Posix(self.mode, self.uid, self.gid, self.mtime_ns, self.ctime_ns, self.atime_ns, self.rdev)

    def set_posix(self, posix: Posix) -> None:
        """Take over all stored attributes. The root's inode stays a directory, as every inode keeps its type."""
        self.mode = stat.S_IFMT(self.mode) | stat.S_IMODE(posix.mode)
        self.uid, self.gid, self.rdev = posix.uid, posix.gid, posix.rdev
        self.mtime_ns, self.ctime_ns, self.atime_ns = posix.mtime_ns, posix.ctime_ns, posix.atime_ns

    def attr(self) -> Attr:
        """`struct stat`. A directory says 1 link, as on btrfs: "not counted", so that nobody derives subdirectories."""
        return Attr(
            ino=self.ino,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            size=self.size,
            mtime_ns=max(self.mtime_ns, self.touched_ns) if self.touched_ns else self.mtime_ns,  # may be before 1970
            ctime_ns=max(self.ctime_ns, self.touched_ns, self.linked_ns),
            atime_ns=self.atime_ns,
            nlink=0 if self.key is None else self.nlink,
            rdev=self.rdev,
        )


class Inodes:
    """All live inodes of one mount."""

    def __init__(self, numbers: Numbers, root: Inode) -> None:
        self._numbers = numbers
        self._by_ino: dict[Ino, Inode] = {ROOT_INO: root}
        self._by_key: dict[str, Inode] = {"": root}
        self.root = root

    def __len__(self) -> int:
        return len(self._by_ino)

    def get(self, ino: Ino) -> Inode:
        """The inode, PosixError(ESTALE) when it is not here any more."""
        try:
            return self._by_ino[ino]
        except KeyError:
            raise PosixError(errno.ESTALE, f"inode {ino}") from None

    def find(self, ino: Ino) -> Inode | None:
        """The inode, if it is here."""
        return self._by_ino.get(ino)

    def at(self, key: str) -> Inode | None:
        """The live inode whose name is `key`."""
        return self._by_key.get(key)

    def number(self, key: str, mode: int) -> Ino:
        """The number that `ensure` would give."""
        found = self._by_key.get(key)
        if found is not None and stat.S_IFMT(found.mode) == stat.S_IFMT(mode):
            return found.ino
        return self._numbers.assign(key, lambda ino: self._taken(ino, key, mode))

    def ensure(self, key: str, mode: int) -> tuple[Inode, bool]:
        """The inode at `key` with the type of `mode`, and whether it is new here (its attributes unknown).

        A live one of another type loses the name: its number answers ESTALE, and the new one has another.
        """
        found = self._by_key.get(key)
        if found is not None:
            if stat.S_IFMT(found.mode) == stat.S_IFMT(mode):
                return found, False
            self.unname(found)
            found.was = ""
        number = self.number(key, mode)
        revived = self._by_ino.get(number)
        inode = Inode(number, key, mode)
        if revived is not None:
            inode.lookups, inode.pages = revived.lookups, revived.pages  # the kernel has both under this number
        self._by_ino[number] = self._by_key[key] = inode
        return inode, True

    def unname(self, inode: Inode) -> None:
        """The name is gone. The inode lives on while it is in use."""
        if inode.key is None or inode.key == "":
            return
        del self._by_key[inode.key]
        self._numbers.drop(inode.key)
        inode.was, inode.key = inode.key, None
        self.let_go(inode)

    def move(self, inode: Inode, key: str) -> None:
        """The name is `key` now; the number stays. What had that name must have lost it before."""
        assert inode.key is not None, "an inode without a name cannot be renamed"
        del self._by_key[inode.key]
        self._numbers.drop(inode.key)
        inode.key = key
        self._by_key[key] = inode
        self._numbers.move(key, inode.ino)

    def move_below(self, old: str, new: str) -> None:
        """A directory's key (ending in `/`) changed: move it, all below it, and the exceptions of their numbers."""
        for inode in [i for i in self.below(old) if i.key is not None]:
            assert inode.key is not None
            self.move(inode, new + inode.key[len(old) :])
        for key, number in self._numbers.below(old):
            self._numbers.drop(key)
            self._numbers.move(new + key[len(old) :], number)

    def below(self, prefix: str) -> Iterator[Inode]:
        """Live inodes whose key begins with `prefix`, the directory itself included."""
        return (inode for key, inode in list(self._by_key.items()) if key.startswith(prefix))

    def remember(self, inode: Inode) -> None:
        """The kernel has one reference more."""
        inode.lookups += 1

    def forget(self, counts: Iterable[tuple[Ino, int]]) -> None:
        """The kernel has `count` references fewer to each of these."""
        for ino, count in counts:
            inode = self._by_ino.get(ino)
            if inode is not None:
                inode.lookups = max(0, inode.lookups - count)
                self.let_go(inode)

    def let_go(self, inode: Inode) -> None:
        """Drop the inode if neither the kernel nor a handle uses it."""
        if inode.lookups > 0 or inode.pins > 0 or inode is self.root or self._by_ino.get(inode.ino) is not inode:
            return
        del self._by_ino[inode.ino]
        if inode.key is not None:
            del self._by_key[inode.key]

    def all(self) -> Sequence[Inode]:
        """Snapshot of all live inodes."""
        return list(self._by_ino.values())

    def _taken(self, ino: Ino, key: str, mode: int) -> bool:
        found = self._by_ino.get(ino)
        if found is None:
            return False
        dead_same = found.key is None and found.was == key and found.pins == 0
        return not (dead_same and stat.S_IFMT(found.mode) == stat.S_IFMT(mode))
