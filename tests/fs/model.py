"""What two nodes and a foreign client must see: a tree in a dictionary. The judge of test_model.py.

Paths have no slash at either end; the root is "". A directory without a marker (`marked` false) vanishes with its last
entry when a foreign client takes that away, as in any bucket.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass
class Entry:
    """One name: a file or symlink with its bytes, or a directory."""

    kind: str  # file | link | dir
    body: bytes = b""
    marked: bool = True
    linked: bool = False  # it has, or had, several names: the object at each of them is a stub
    lost: int = 0  # names that a foreign client took away: they are counted for ever
    mode: int | None = None  # permission bits, once a node has set them
    xattr: bytes | None = None  # value of `user.x`


class Refused(Exception):
    """The operation must fail with this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.errno = code


class Tree:
    """POSIX on a dictionary."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {"": Entry("dir")}
        self.lost = False  # a foreign client took away names of links: their bodies stay

    def at(self, path: str) -> Entry | None:
        return self.entries.get(path)

    def need(self, path: str) -> Entry:
        """The entry, after its parents."""
        if path:
            self.folder(parent(path))
        found = self.at(path)
        if found is None:
            raise Refused(errno.ENOENT)
        return found

    def folder(self, path: str) -> Entry:
        found = self.need(path)
        if found.kind != "dir":
            raise Refused(errno.ENOTDIR)
        return found

    def children(self, path: str) -> list[str]:
        prefix = f"{path}/" if path else ""
        return sorted(p[len(prefix) :] for p in self.entries if p and parent(p) == path)

    def keys(self) -> list[str]:
        """The keys of the bucket."""
        found = []
        for path, entry in self.entries.items():
            if path and (entry.kind != "dir" or entry.marked):
                found.append(path if entry.kind != "dir" else f"{path}/")
        return sorted(found)

    # Operations of a node

    def write(self, path: str, body: bytes) -> None:
        self.folder(parent(path))
        found = self.at(path)
        if found is not None and found.kind != "file":
            raise Refused(errno.EISDIR if found.kind == "dir" else errno.EEXIST)
        if found is not None:
            found.body = body  # through whichever name
        else:
            self.entries[path] = Entry("file", body)

    def make(self, path: str, kind: str, body: bytes = b"") -> None:
        self.folder(parent(path))
        if self.at(path) is not None:
            raise Refused(errno.EEXIST)
        self.entries[path] = Entry(kind, body)

    def link(self, old: str, new: str) -> None:
        """Another name for the same entry."""
        source = self.need(old)
        self.folder(parent(new))
        if source.kind == "dir":
            raise Refused(errno.EPERM)
        if self.at(new) is not None:
            raise Refused(errno.EEXIST)
        source.linked = True
        self.entries[new] = source

    def names(self, entry: Entry) -> int:
        """How many names it is said to have."""
        return sum(it is entry for it in self.entries.values()) + entry.lost

    def truncate(self, path: str, size: int) -> None:
        found = self.need(path)
        if found.kind != "file":
            raise Refused(errno.EISDIR if found.kind == "dir" else errno.EINVAL)
        found.body = found.body[:size].ljust(size, b"\0")

    def chmod(self, path: str, mode: int) -> None:
        found = self.need(path)
        found.mode = mode
        found.marked = True

    def setxattr(self, path: str, value: bytes) -> None:
        found = self.need(path)
        found.xattr = value
        found.marked = True

    def unlink(self, path: str) -> None:
        if self.need(path).kind == "dir":
            raise Refused(errno.EISDIR)
        del self.entries[path]
        self.entries[parent(path)].marked = True

    def rmdir(self, path: str) -> None:
        if self.need(path).kind != "dir":
            raise Refused(errno.ENOTDIR)
        if self.children(path):
            raise Refused(errno.ENOTEMPTY)
        del self.entries[path]
        self.entries[parent(path)].marked = True

    def rename(self, old: str, new: str) -> None:
        self.folder(parent(old))
        self.folder(parent(new))
        if new.startswith(f"{old}/"):
            raise Refused(errno.EINVAL)
        source, target = self.need(old), self.at(new)
        if source is target:
            return
        if source.kind != "dir" and target is not None and target.kind == "dir":
            raise Refused(errno.EISDIR)
        if source.kind == "dir" and target is not None:
            if target.kind != "dir":
                raise Refused(errno.ENOTDIR)
            if self.children(new):
                raise Refused(errno.ENOTEMPTY)
        self.entries.pop(new, None)
        for path in [p for p in self.entries if p == old or p.startswith(f"{old}/")]:
            self.entries[new + path[len(old) :]] = self.entries.pop(path)
        if source.kind == "dir":
            source.marked = True
        self.entries[parent(old)].marked = True

    # Operations of a foreign client

    def foreign_put(self, path: str, body: bytes) -> bool:
        """False when the key would lie beside a file or directory of its name: nobody is promised anything then."""
        above = parents(path)
        found = self.at(path)
        if any((e := self.at(p)) is not None and e.kind != "dir" for p in above) or (found and found.kind == "dir"):
            return False
        for folder in above:
            self.entries.setdefault(folder, Entry("dir", marked=False))
        if found is not None and found.linked:
            self.lose(found)
        self.entries[path] = Entry("file", body)
        return True

    def lose(self, entry: Entry) -> None:
        """A name of it goes without its record being told."""
        entry.lost += 1
        self.lost = True

    def foreign_delete(self, path: str) -> bool:
        """False when there is no such object."""
        found = self.at(path)
        if found is None or found.kind == "dir":
            return False
        if found.linked:
            self.lose(found)
        del self.entries[path]
        for folder in reversed(parents(path)):
            if folder and not self.entries[folder].marked and not self.children(folder):
                del self.entries[folder]
        return True


def parent(path: str) -> str:
    """The directory of a path."""
    return path.rpartition("/")[0]


def parents(path: str) -> list[str]:
    """All directories above, from the root down."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts) + 1)]
