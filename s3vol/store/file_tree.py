"""Objects as plain files below one directory: `a/b` is the file `DIR/a/b`, and `a/` a directory that carries a marker.

Theory of operation. An object's file is never changed in place. A new one is built in the control area, made durable,
and renamed over the old one under the key's lock, after the condition was checked there; then the directory is
synced. Readers take no lock: an open descriptor is one version, bytes and record.

Directories are made when a key needs them and removed when their last key is gone, unless they carry a marker: a prefix
exists through its keys, as in S3. A directory is removed under the lock of its marker key, so a marker cannot be set
in between; rmdir itself refuses when a key came in between; and a writer whose directory was removed before
its rename makes it again. Locks are taken one after the other, never one inside another.

Every path is opened component by component without following links. Symbolic links, fifos and devices in DIR are not
objects: they are not listed, and never overwritten. A key `a` and a key `a/b` cannot both exist here: Rejected.

What somebody changes in DIR by hand is seen at the next call. A change by hand in the very moment between a check
and a rename can be lost; a file system has no call that would prevent it.

Rejected: O_TMPFILE (linkat cannot replace), and syncing the directory under the lock (others may see what is not yet
durable, but nobody was told that it is).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from s3vol.errors import NotFound, PreconditionFailed, Rejected, Unavailable
from s3vol.store import rules
from s3vol.store.base import Condition
from s3vol.store.file_control import CONTROL, FOLDER_FLAGS, Control, Temp
from s3vol.store.file_io import read_range
from s3vol.store.file_record import Record, Records, marker_record
from s3vol.types import ObjectInfo

_S_NS = 1_000_000_000
_TRIES = 100  # a directory removed again and again just before our rename: each time another key was deleted
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
EMPTY_ETAG = rules.md5_etag(b"")


@dataclass(frozen=True, slots=True)
class Opened:
    """One version of an object, held open. For a marker, `fd` is the directory."""

    key: str
    fd: int
    stat: os.stat_result
    record: Record
    size: int

    def info(self, cut: int, *, metadata: bool = True) -> ObjectInfo:
        """As a store shows it, without the first `cut` characters of the key."""
        return ObjectInfo(
            key=self.key[cut:],
            size=self.size,
            etag=self.record.etag,
            modified_ns=self.record.mtime_ns // _S_NS * _S_NS,
            metadata=dict(self.record.metadata) if metadata else None,
            content_type=self.record.content_type if metadata else "",
        )


class Tree:
    """The objects below one directory. Synchronous and thread-safe: what threads share is on the disk."""

    def __init__(self, root_fd: int, control: Control, records: Records) -> None:
        self.root_fd = root_fd
        self.control = control
        self.records = records

    def close(self) -> None:
        """Give back the directory and the control area."""
        self.control.close()
        os.close(self.root_fd)

    # -- reading

    @contextmanager
    def opened(self, key: str) -> Iterator[Opened]:
        """The object, held open. Raises NotFound."""
        found = self._find(key)
        if found is None:
            raise NotFound(f"{key}: no such object")
        try:
            yield found
        finally:
            os.close(found.fd)

    def read(self, key: str, start: int, length: int, if_match: str | None) -> bytes:
        """Bytes of one version of the object. Raises NotFound, PreconditionFailed."""
        with self.opened(key) as found:
            rules.decide_read(key, if_match, found.record.etag)
            wanted = min(length, found.size - start)
            body = read_range(found.fd, start, wanted) if wanted > 0 else b""
            check_unchanged(found, if_match)
            return body

    def _find(self, key: str) -> Opened | None:
        folder, name = split(key)
        fd = self.open_folder(folder)
        if fd is None:
            return None
        try:
            return self.open_marker(fd, key) if not name else self.open_at(fd, name, key)
        finally:
            os.close(fd)

    def open_at(self, folder_fd: int, name: str, key: str) -> Opened | None:
        """The object of a file in an open directory, or None when that is no regular file."""
        while True:
            try:
                fd = os.open(name, _FILE_FLAGS, dir_fd=folder_fd)
            except OSError as error:
                if error.errno in (*_NO_FOLDER, errno.ENXIO):  # ENXIO: a socket
                    return None
                raise
            try:
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode):
                    record, recorded = self.records.read(fd, found, key)
                    if recorded or os.fstat(fd).st_nlink > 0:
                        return Opened(key, fd, found, record, found.st_size)
                    # replaced, and its record removed, since we opened it: look again
                elif found.st_nlink > 0:
                    os.close(fd)
                    return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def open_marker(self, folder_fd: int, key: str) -> Opened | None:
        """The object that an open directory itself is, or None."""
        record = self.records.marker(folder_fd, key)
        if record is None:
            return None
        return Opened(key, os.dup(folder_fd), os.fstat(folder_fd), record, 0)

    def open_folder(self, parts: Sequence[str]) -> int | None:
        """A descriptor of the directory, or None when there is no such directory. The caller closes it."""
        fd = os.open(".", FOLDER_FLAGS, dir_fd=self.root_fd)  # no dup: threads that read the root would share an offset
        for part in parts:
            try:
                below = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            except OSError as error:
                if error.errno in _NO_FOLDER:
                    return None
                raise
            finally:
                os.close(fd)
            fd = below
        return fd

    # -- changing

    def publish(
        self, key: str, temp: Temp, etag: str, content_type: str, metadata: Mapping[str, str], condition: Condition
    ) -> str:
        """Make a temporary file the object `key`, if the condition holds; returns the ETag."""
        written = os.fstat(temp.fd)
        self.records.attach(temp.fd, Record(etag, written.st_size, written.st_mtime_ns, content_type, metadata))
        try:
            os.fsync(temp.fd)
            self._replace(key, temp, condition)
        except BaseException:
            if self.control.has(temp):  # else it was renamed: the object is visible, only the last sync failed
                self.records.detach(written)
            raise
        return etag

    def check(self, key: str, condition: Condition) -> None:
        """Raise when the condition does not hold now, before work is done in vain; `publish` decides."""
        current = self._find(key)
        if current is not None:
            os.close(current.fd)
        rules.decide(key, condition, current.record.etag if current else None)

    def mark(self, key: str, content_type: str, metadata: Mapping[str, str], condition: Condition) -> str:
        """Make the directory `key` an object, if the condition holds; returns the ETag."""
        folder, _ = split(key)
        record = marker_record(EMPTY_ETAG, time.time_ns(), content_type, metadata)
        with self.control.locked(key):
            self.check(key, condition)
            fd = self._make_folder(folder, key)
            try:
                self.records.mark(fd, key, record)
            except BaseException:
                os.close(fd)
                raise
        _sync_and_close(fd)
        return EMPTY_ETAG

    def remove(self, key: str) -> None:
        """Remove the object if it is there, and the directories that existed through it alone."""
        folder, name = split(key)
        fd = self.open_folder(folder)
        if fd is None:
            return
        try:
            with self.control.locked(key):
                self._unlink(fd, name, key) if name else self.records.unmark(fd)
        finally:
            _sync_and_close(fd)
        self.prune(folder)

    def _unlink(self, folder_fd: int, name: str, key: str) -> None:
        found = self.open_at(folder_fd, name, key)
        if found is None:
            return
        try:
            os.unlink(name, dir_fd=folder_fd)
            self._forget(found)
        finally:
            os.close(found.fd)

    def _replace(self, key: str, temp: Temp, condition: Condition) -> None:
        """Rename `temp` to the key, when the condition holds."""
        for _ in range(_TRIES):
            with self.control.locked(key):
                fd = self._replace_locked(key, temp, condition)
            if fd is not None:
                _sync_and_close(fd)
                return
            if not self._clear(key.split("/")):
                raise Rejected(f"{key}: this store keeps keys as files, and {key}/... exists")
        raise Unavailable(f"{key}: its directory is being removed again and again")

    def _replace_locked(self, key: str, temp: Temp, condition: Condition) -> int | None:
        """Check and rename; returns the directory, or None when another one, perhaps empty, has the key's name."""
        folder, name = split(key)
        current = self._find(key)  # held open until its record is gone, so that its inode is not used again
        try:
            rules.decide(key, condition, current.record.etag if current else None)
            fd = self._place(temp, folder, name, key)
            if current is not None and fd is not None:
                self._forget(current)
        finally:
            if current is not None:
                os.close(current.fd)
        return fd

    def _forget(self, gone: Opened) -> None:
        """Drop the record of a file that lost its name; one that has another name, by a hard link, keeps it."""
        if os.fstat(gone.fd).st_nlink == 0:
            self.records.detach(gone.stat)

    def _place(self, temp: Temp, folder: Sequence[str], name: str, key: str) -> int | None:
        for _ in range(_TRIES):
            fd = self._make_folder(folder, key)
            try:
                if _kind(fd, name, key) == stat.S_IFDIR:
                    os.close(fd)
                    return None
                os.rename(temp.name, name, src_dir_fd=self.control.session_fd, dst_dir_fd=fd)
            except FileNotFoundError:  # the directory was pruned after we opened it
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise
            else:
                return fd
        raise Unavailable(f"{key}: its directory is being removed again and again")

    # -- directories

    def _make_folder(self, parts: Sequence[str], key: str) -> int:
        """A descriptor of the directory, which is made if need be."""
        for _ in range(_TRIES):
            fd = os.dup(self.root_fd)
            try:
                for part in parts:
                    below = _enter(fd, part)
                    os.close(fd)
                    fd = below
            except FileNotFoundError:  # pruned between two steps
                os.close(fd)
            except OSError as error:
                os.close(fd)
                if error.errno in _NO_FOLDER:
                    raise Rejected(f"{key}: this store keeps keys as files, and a part of this path is one") from None
                raise
            else:
                return fd
        raise Unavailable(f"{key}: its directory is being removed again and again")

    def prune(self, parts: Sequence[str]) -> None:
        """Remove this directory and those above it, as far as they are empty and carry no marker."""
        while parts and self._remove_folder(parts):
            parts = parts[:-1]

    def _clear(self, parts: Sequence[str]) -> bool:
        """Remove a directory in which there is nothing but empty directories, as a crash may leave it."""
        fd = self.open_folder(parts)
        if fd is not None:
            try:
                with os.scandir(fd) as entries:
                    names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            finally:
                os.close(fd)
            for name in names:
                if not self._clear([*parts, name]):
                    return False
        return self._remove_folder(parts)

    def _remove_folder(self, parts: Sequence[str]) -> bool:
        """Remove one directory. False when it is not empty or carries a marker; True when it is gone."""
        key = "/".join(parts) + "/"
        with self.control.locked(key):
            fd = self.open_folder(parts)
            if fd is None:
                return True
            try:
                if self.records.marker(fd, key) is not None:
                    return False
            finally:
                os.close(fd)
            above = self.open_folder(parts[:-1])
            if above is None:
                return True
            try:
                with suppress(FileNotFoundError):
                    os.rmdir(parts[-1], dir_fd=above)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY, errno.EACCES):
                    return False
                raise
            finally:
                os.close(above)
        return True


def split(key: str) -> tuple[list[str], str]:
    """The directory's components and the file's name; the name is "" for a marker. Raises Rejected."""
    *folder, name = key.split("/")
    if (folder[0] if folder else name) == CONTROL:
        raise Rejected(f"{key}: {CONTROL}/ is where this store keeps its own files")
    return folder, name


def check_unchanged(found: Opened, if_match: str | None) -> None:
    """Raise when somebody wrote into the file by hand while it was being read: what was read may be a mixture."""
    if not stat.S_ISREG(found.stat.st_mode):
        return
    now = os.fstat(found.fd)
    if (now.st_size, now.st_mtime_ns) != (found.stat.st_size, found.stat.st_mtime_ns):
        kind = Unavailable if if_match is None else PreconditionFailed
        raise kind(f"{found.key}: was changed by hand while it was being read")


def _enter(folder_fd: int, name: str) -> int:
    """Open a directory in a directory; make it, durably, when it is missing."""
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=folder_fd)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder_fd)
        os.fsync(folder_fd)  # also when another one made it in between, and has not synced it yet
        return os.open(name, FOLDER_FLAGS, dir_fd=folder_fd)


def _sync_and_close(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _kind(folder_fd: int, name: str, key: str) -> int:
    """File type of what has this name, 0 for nothing. Raises Rejected for what is no object and no directory."""
    try:
        kind = stat.S_IFMT(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise Rejected(f"{key}: a symbolic link or a special file has this name; it is not an object and is kept")
    return kind
