"""What an import has to do, decided before anything is sent: the entries of a directory, and what each one becomes.

Theory of operation. `scan` walks a directory without following links and turns each entry into the key and the metadata
that a mount of the volume would have written (`s3vol.layout`). `decide` compares it with the object of that key: it is
the same when type, size, mtime, owner, mode and extended attributes are. That makes a second run cheap and an
interrupted one resumable, for an object appears whole, attributes included, or not at all.

When both differ, who wins depends on who wrote the object. An import leaves its mark in the nonce; what carries it
nobody has touched since, so the source wins. What anybody else wrote is replaced when the source changed after it, and
kept, and said, when it did not.

The names of one file, as far as they are in the directory, stay together (`together`): they become one link. A name
that is a link in the volume already is compared by the link's body, and that is what is replaced. A body tells whose
it is by its own nonce, or by that of the object it was made from.

Rejected: comparing by checksum (reads everything again on each run; `--reread` does that when it is asked for), and
following what cp calls newer, mtime alone (an attribute changed in the volume would be taken back without a word).
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from s3vol import layout
from s3vol.errors import Rejected, S3volError
from s3vol.types import ObjectInfo

MARK = "import-"
"""How a nonce of an import begins."""

NAMES_MAX = 4096
"""Names of one link (docs/format.md). A file that has more becomes several links."""

_STUB_BYTES = len(layout.stub(layout.Link("0" * 16, "0" * 16))[0])

NAMESPACES = ("user.", "trusted.", "security.")  # those that a mount of the volume shows (docs/SEMANTICS.md)


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the source. `path` is relative to it; `key` ends in `/` for a directory."""

    path: bytes
    key: str
    stat: os.stat_result
    metadata: Mapping[str, str]
    target: bytes = b""  # of a symbolic link

    @property
    def is_file(self) -> bool:
        """True for a regular file: the only kind with content of its own on the disk."""
        return stat.S_ISREG(self.stat.st_mode)

    @property
    def inode(self) -> tuple[int, int]:
        """Which file it is a name of: device and number."""
        return self.stat.st_dev, self.stat.st_ino

    @property
    def has_names(self) -> bool:
        """True when the file has other names, in the directory or elsewhere."""
        return self.stat.st_nlink > 1 and not stat.S_ISDIR(self.stat.st_mode)

    @property
    def size_bytes(self) -> int:
        """Bytes that the object will have."""
        return self.stat.st_size if self.is_file else len(self.target)


@dataclass(slots=True)
class Scanned:
    """A source directory. `problems` are entries that cannot be copied, one line each."""

    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sockets: int = 0
    linked: int = 0  # names of files that have more than one
    lists: int = 0  # access control lists, which no object carries

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(item.size_bytes for item in self.items)


class Action(enum.Enum):
    """What becomes of an item whose key is free of others."""

    SAME = "same"
    CREATE = "create"
    REPLACE = "replace"
    KEEP = "keep"  # the object is newer, and somebody else's
    BUSY = "busy"  # being renamed in this moment


def scan(root: bytes) -> Scanned:
    """Walk a directory, itself included. Raises OSError when it cannot be read at all. In a thread."""
    found = Scanned()
    _add(found, root, b"", os.stat(root))
    with os.scandir(root):  # what cannot be read at all is an error, not a problem of one entry
        pass
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            found.problems.append(f"{_shown(folder)}: {error.strerror}")
            continue
        below = []
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(os.path.join(root, path))
                if stat.S_ISSOCK(status.st_mode):
                    found.sockets += 1
                elif _add(found, root, path, status):
                    below.append(path)
            except FileNotFoundError:  # removed since it was listed
                continue
            except OSError as error:
                found.problems.append(f"{_shown(path)}: {error.strerror}")
            except S3volError as error:
                found.problems.append(f"{_shown(path)}: {error}")
        folders += reversed(below)
    return found


def again(root: bytes, item: Item) -> Item:
    """The same entry as it is now. Raises OSError, and Rejected when it is no regular file any more."""
    found = Scanned()
    status = os.lstat(os.path.join(root, item.path))
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("is no file any more")
    _add(found, root, item.path, status)
    return found.items[0]


def _add(found: Scanned, root: bytes, path: bytes, status: os.stat_result) -> bool:
    """Take one entry; True for a directory to go into. Raises OSError, and S3volError for what no object can be."""
    whole = os.path.join(root, path) if path else root
    is_dir = stat.S_ISDIR(status.st_mode)
    key = _key(path, is_dir=is_dir)
    xattrs = _xattrs(found, whole, follow=not path)  # the source itself may be named by a symbolic link
    target = os.readlink(whole) if stat.S_ISLNK(status.st_mode) else b""
    found.items.append(Item(path, key, status, _metadata(status, xattrs), target))
    if status.st_nlink > 1 and not is_dir:
        found.linked += 1
    return is_dir


def _key(path: bytes, *, is_dir: bool) -> str:
    if not path:
        return layout.ROOT_ATTRIBUTES
    key = layout.check_key("/".join(layout.check_name(part) for part in path.split(b"/")) + ("/" if is_dir else ""))
    if layout.is_reserved(f"{key.removesuffix('/')}/"):
        raise Rejected(f"{layout.RESERVED} is s3vol's own; rename it")
    return key


def _metadata(status: os.stat_result, xattrs: Mapping[bytes, bytes]) -> dict[str, str]:
    posix = layout.Posix(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        atime_ns=status.st_atime_ns,
        rdev=status.st_rdev,
    )
    meta = layout.encode_attr(posix, {"xattr": layout.encode_xattr(xattrs)} if xattrs else {})
    layout.check_metadata(meta)
    return meta


def _xattrs(found: Scanned, path: bytes, *, follow: bool) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # a file system without them
            return {}
        raise
    found.lists += any(name.startswith("system.posix_acl_") for name in names)
    values = {}
    for name in names:
        if name.startswith(NAMESPACES) and not name.startswith("user.s3vol."):  # a directory that was a store
            values[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=follow)
    return values


def folders_of(keys: Iterable[str]) -> set[str]:
    """The keys of all directories that these keys are in, each ending in `/`."""
    found: set[str] = set()
    for key in keys:
        folder = layout.parent_key(key)
        while folder and folder not in found:
            found.add(folder)
            folder = layout.parent_key(folder)
    return found


def together(items: Iterable[Item], remote: Mapping[str, ObjectInfo]) -> list[list[Item]]:
    """Items by the file that they are names of, in the order of the first ones.

    Names that are links in the volume already come first, then others that it has, then those that it does not have:
    the first one is what the last ones are to be linked to. No list is longer than a link may be.
    """
    found: dict[tuple[int, int], list[Item]] = {}
    lists: list[list[Item]] = []
    for item in items:
        names = found.get(item.inode) if item.has_names else None
        if names is None or len(names) == NAMES_MAX:
            names = []
            lists.append(names)
            if item.has_names:
                found[item.inode] = names
        names.append(item)

    def rank(item: Item) -> int:
        info = remote.get(item.key)
        return 2 if info is None else int(info.size != _STUB_BYTES)

    for names in lists:
        names.sort(key=rank)
    return lists


def decide(item: Item, info: ObjectInfo | None, *, overwrite: bool) -> Action:
    """What becomes of an item, by the object that has its key, or is the body of its link (with metadata)."""
    if info is None:
        return Action.CREATE
    if layout.is_tombstone(info):
        return Action.BUSY
    if same(item, info):
        return Action.SAME
    if overwrite or imported(info):
        return Action.REPLACE
    return Action.REPLACE if changed_ns(item) > object_changed_ns(item, info) else Action.KEEP


def imported(info: ObjectInfo) -> bool:
    """True when an import wrote it, and nobody has changed it since."""
    origin = (info.metadata or {}).get(layout.LINK_FROM, "").partition(" ")[2]
    return info.version.nonce.startswith(MARK) or origin.startswith(MARK)


def is_body(taken_etag: str, info: ObjectInfo) -> bool | None:
    """Is the body of a link the object that had this ETag? None: neither its ETag nor its headers say so."""
    origin = (info.metadata or {}).get(layout.LINK_FROM, "").partition(" ")[0]
    return True if taken_etag in (info.etag, origin) else (False if origin else None)


def same(item: Item, info: ObjectInfo) -> bool:
    """True when the object is what an import of this item would make, as far as a listing tells."""
    meta = info.metadata or {}
    if layout.LINK in meta:
        return False
    # A directory's mtime changes with every name in it, those of this import included.
    names = ("mode", "uid", "gid", "rdev", "xattr", *(() if stat.S_ISDIR(item.stat.st_mode) else ("mtime",)))
    return info.size == item.size_bytes and all(meta.get(name) == item.metadata.get(name) for name in names)


def changed_ns(item: Item) -> int:
    """When the source last changed, content or attributes."""
    return max(item.stat.st_mtime_ns, item.stat.st_ctime_ns)


def object_changed_ns(item: Item, info: ObjectInfo) -> int:
    """When the object last changed, as its writer or else the store says."""
    posix = layout.decode_attr(info, layout.Owner(0, 0, 0), is_dir=item.key.endswith("/"))
    return max(posix.mtime_ns, posix.ctime_ns)


def clashes(items: Iterable[Item], remote: Mapping[str, ObjectInfo]) -> Iterator[tuple[Item, str]]:
    """Items that are a file where the volume has a directory, or the reverse, and the key that is in the way.

    What is below a file is among them: its objects would be a directory, which hides the file.
    """
    folders = folders_of(remote)
    for item in items:
        if item.key == layout.ROOT_ATTRIBUTES:
            continue
        bare = item.key.removesuffix("/")
        if item.key.endswith("/") and bare in remote:
            yield item, bare
        elif not item.key.endswith("/") and (f"{bare}/" in folders or f"{bare}/" in remote):
            yield item, f"{bare}/"
        else:
            above = (folder.removesuffix("/") for folder in folders_of([item.key]))
            if (file := next((key for key in above if key in remote), None)) is not None:
                yield item, file


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace") or "."
