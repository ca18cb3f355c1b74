"""Values of s3vol to what pyfuse3 sends, and the one place where an error becomes an errno.

A refusal that POSIX programs expect (no such file, not empty, exists) is no event: it is logged at debug only. What a
program could not have expected, because the disk or the endpoint is behind it, is logged once, here, with the
operation, the path and the store's id of the request. A conflict was logged where the copy was made, and later calls
that meet it say nothing new. Whatever is not an S3volError is a fault of ours: it is logged with its traceback
and answered with EIO.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import stat
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from s3vol.errors import Conflict, NotFound, PosixError, Rejected, S3volError, request_of
from s3vol.fs.base import Entry, FileSystem, Opened, StatFs
from s3vol.types import AttrChange, Caller, Fh, Ino

BLOCK_BYTES = 512  # unit of st_blocks, stat(2)
IO_BYTES = 128 * 1024
"""st_blksize: the buffer that stdio, Python and older cp take for one call.

4,096 makes each of them cross the kernel 32 times as often; the 1 MiB of a chunk makes every fopen() of a small file
allocate 1 MiB. 128 KiB is what coreutils measured as the knee of its own curve (their ioblksize.h) and uses anyway.
"""

log = logging.getLogger("s3vol.fuse")

P = ParamSpec("P")
T = TypeVar("T")


def entry_attributes(entry: Entry) -> pyfuse3.EntryAttributes:
    """`struct stat` and the times that the kernel may believe it."""
    attr, made = entry.attr, pyfuse3.EntryAttributes()
    made.st_ino = attr.ino
    made.generation = 0
    made.entry_timeout = entry.entry_ttl_s
    made.attr_timeout = entry.attr_ttl_s
    made.st_mode = attr.mode
    made.st_nlink = attr.nlink
    made.st_uid = attr.uid
    made.st_gid = attr.gid
    made.st_rdev = attr.rdev
    made.st_size = attr.size
    made.st_blksize = IO_BYTES
    made.st_blocks = -(-attr.size // BLOCK_BYTES)
    made.st_atime_ns = attr.atime_ns
    made.st_mtime_ns = attr.mtime_ns
    made.st_ctime_ns = attr.ctime_ns
    return made


def attr_change(attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> AttrChange:
    """What a setattr asks for. The mode is permission bits: the type of a file never changes."""
    return AttrChange(
        mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
    )


def caller(context: pyfuse3.RequestContext) -> Caller:
    """Who asks."""
    return Caller(uid=context.uid, gid=context.gid, pid=context.pid)


def file_info(opened: Opened, *, direct: bool) -> pyfuse3.FileInfo:
    """Handle and cache flags of an open."""
    return pyfuse3.FileInfo(fh=opened.fh, direct_io=direct, keep_cache=opened.keep_cache and not direct)


def statvfs_data(figures: StatFs) -> pyfuse3.StatvfsData:
    """`struct statvfs`."""
    made = pyfuse3.StatvfsData()
    made.f_bsize = made.f_frsize = figures.block_bytes
    made.f_blocks = figures.blocks
    made.f_bfree = made.f_bavail = figures.blocks_free
    made.f_files = figures.files
    made.f_ffree = made.f_favail = figures.files_free
    made.f_namemax = figures.name_max
    return made


def failure(error: Exception, operation: str, path: str) -> pyfuse3.FUSEError:
    """The errno that a program sees for `error`; logs it. `path` is what the request is about."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a nursery wraps the one error of its child
    where = {"op": operation, "path": path}
    if request_id := request_of(error):
        where["request_id"] = request_id
    if not isinstance(error, S3volError):
        log.error("unexpected %s: %s", type(error).__name__, error, exc_info=error, extra=where)
        return pyfuse3.FUSEError(errno.EIO)
    expected = isinstance(error, NotFound | PosixError | Rejected | Conflict)
    log.log(logging.DEBUG if expected else logging.WARNING, "%s", error, extra=where)
    return pyfuse3.FUSEError(error.errno)


def answers(
    handler: Callable[Concatenate[Any, int, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, int, P], Coroutine[Any, Any, T]]:
    """Decorator of handlers: every exception leaves as an errno. The handlers' object has the `file_system`.

    What a handler is about is told by its signature: a handle (`fh`), or an inode, and a name in it if one comes next.
    """
    about = list(inspect.signature(handler).parameters)[1:3]
    by_handle = about[0] == "fh"
    named = about[1:] in (["name"], ["name_old"], ["new_name"]) and about[0].startswith("parent")

    def path(fs: FileSystem, subject: int, name: object) -> str:
        found = fs.path_of_handle(Fh(subject)) if by_handle else fs.path_of(Ino(subject))
        if not named or not isinstance(name, bytes):
            return found
        return f"{found}/{name.decode(errors='backslashreplace')}".removeprefix("/")

    @functools.wraps(handler)
    async def answering(self: Any, subject: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, subject, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            where = path(self.file_system, subject, args[0] if args else None)
            raise failure(error, handler.__name__, where) from None

    return answering
