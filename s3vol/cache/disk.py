"""The data files of the cache directory (cache/cachedir.py): the only code that touches them.

Theory of operation. Reads try `preadv(RWF_NOWAIT)` on the event loop: 1 µs when the bytes are in the page cache, and an
honest "would block" otherwise, upon which a thread reads. tmpfs does not know the flag and never blocks. Writes go to
the page cache on the loop in pieces of at most 1 MiB. Only what waits for the device is sent to a thread: fdatasync,
cold reads, and direct writes. Descriptors are kept in a bounded LRU; a pinned one is never closed, so that a number
cannot come to mean another file under a thread.

Long runs of fetched bytes go past the page cache (`write_direct`: O_DIRECT from an aligned buffer into blocks that were
reserved): a tenth of the processor time, and the kernel holds them once, as pages of the mount. The page cache must not
hold older bytes of such a range. The kernel drops what it has of it before and after the write, but not a page that
is dirty then; so no page may reach from bytes that are there into bytes that are not: chunks are whole pages, parts of
pages are written through the page cache, and the kernel's own readahead, which does not know what is a hole, is off
(POSIX_FADV_RANDOM). Who reads says what is around that may be brought along (cache/readaround.py).

Blocks are counted by `st_blocks` of each file (0.8 µs), which is what the cap is about; holes cost nothing.

Rejected: one file per chunk (a rename and a directory entry per MiB, no punching), O_DIRECT for everything (programs
write small and read again), mmap (a full disk is SIGBUS).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trio

from s3vol.cache.cachedir import CacheDirectory, translate
from s3vol.cache.direct import PAGE_BYTES, DirectReader, DirectWriter
from s3vol.cache.extents import Range
from s3vol.cache.pagecost import PageCost
from s3vol.errors import Corrupt
from s3vol.store.base import Buffer
from s3vol.types import MIB

PIECE_BYTES = MIB  # at most this much is copied to the page cache without giving the event loop a turn
_FALLOC_KEEP_SIZE = 1  # linux/falloc.h
_FALLOC_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _fallocate(fd: int, mode: int, start: int, length: int) -> None:
    if _libc.fallocate(fd, mode, start, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@dataclass(slots=True)
class _Open:
    fd: int
    pins: int = 0
    doomed: bool = False  # removed while pinned: closed by the last user


class DataFiles:
    """The data files by content id. Offsets and lengths in bytes. `used_bytes` is what they allocate together."""

    def __init__(self, directory: CacheDirectory, found: dict[int, int]) -> None:
        """`found`: allocated bytes of the files that are there, by id."""
        self._dir = directory
        self._blocks = dict(found)
        self.used_bytes = sum(found.values())
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._limit = max(64, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._nowait: int | None = os.RWF_NOWAIT
        self._threads = trio.CapacityLimiter(16)
        self._unsynced_names: set[int] = set()
        self._page_cost = PageCost()
        self._direct = DirectWriter()
        self._direct_reads = DirectReader()

    def exists(self, content_id: int) -> bool:
        """True when the content has a data file."""
        return content_id in self._blocks

    def allocated_bytes(self, content_id: int) -> int:
        """What the file takes on the disk."""
        return self._blocks.get(content_id, 0)

    @contextlib.contextmanager
    def _pin(self, content_id: int) -> Iterator[int]:
        entry = self._open.get(content_id)
        if entry is None:
            entry = self._open_file(content_id)
        else:
            self._open.move_to_end(content_id)
        entry.pins += 1
        try:
            yield entry.fd
        finally:
            entry.pins -= 1
            if entry.doomed and entry.pins == 0:
                os.close(entry.fd)

    def _open_file(self, content_id: int) -> _Open:
        known = content_id in self._blocks
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if known else os.O_CREAT | os.O_EXCL)
        try:
            entry = _Open(os.open(f"{content_id:x}", flags, 0o600, dir_fd=self._dir.data_fd))
        except FileNotFoundError:
            raise Corrupt(f"{self._dir.path}/data/{content_id:x} is gone: was the cache directory cleaned?") from None
        except OSError as error:
            raise translate(error, f"{self._dir.path}/data/{content_id:x}") from None
        if not known:
            self._blocks[content_id] = 0
            self._unsynced_names.add(content_id)
        os.posix_fadvise(entry.fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._open[content_id] = entry
        if len(self._open) > self._limit:
            self._close_oldest()
        return entry

    def _close_oldest(self) -> None:
        newest = next(reversed(self._open))
        for content_id, entry in self._open.items():
            if entry.pins == 0 and content_id != newest:
                os.close(entry.fd)
                del self._open[content_id]
                return

    def _count(self, content_id: int, fd: int) -> None:
        now = os.fstat(fd).st_blocks * 512
        self.used_bytes += now - self._blocks[content_id]
        self._blocks[content_id] = now

    def read_now(self, content_id: int, start: int, length: int) -> bytearray | None:
        """The bytes, zeros beyond the end of the file, or None when reading would block. No await."""
        data = bytearray(length)
        if content_id not in self._blocks:
            return data
        with self._pin(content_id) as fd:
            try:
                got = os.preadv(fd, [data], start, self._nowait or 0)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP or self._nowait is None:
                    raise translate(error, "cache disk, read") from None
                self._nowait = None
                got = os.preadv(fd, [data], start)
            if got < length and start + got < os.fstat(fd).st_size:
                return None
        return data

    async def read(self, content_id: int, start: int, length: int, around: Range | None = None) -> bytearray:
        """The bytes, zeros beyond the end of the file; in a thread if that would block, or take long.

        `around`: what to bring into the page cache as well, from a caller who has just seen that it would block.
        """
        if around is None and length <= PIECE_BYTES:
            data = self.read_now(content_id, start, length)
            if data is not None:
                return data
        buffer = bytearray(length)
        if content_id not in self._blocks:
            return buffer
        with self._pin(content_id) as fd:
            await trio.to_thread.run_sync(_read_fully, fd, memoryview(buffer), start, around, limiter=self._threads)
        return buffer

    async def read_direct(self, content_id: int, start: int, length: int) -> memoryview | None:
        """The bytes past the page cache, zeros beyond the end of the file; None where the disk has no such reads.

        `start` is a multiple of PAGE_BYTES, `length` at most 8 MiB.
        """
        try:
            place = self._direct_reads.take(-(-length // PAGE_BYTES) * PAGE_BYTES)
            if place is None or content_id not in self._blocks:
                return None
            with self._pin(content_id) as fd:
                read = self._direct_reads.read
                done = await trio.to_thread.run_sync(read, fd, place, start, limiter=self._threads)
        except OSError as error:
            raise translate(error, "cache disk, direct read") from None
        return place[:length] if done else None

    async def let_go(self, content_id: int, start: int, end: int) -> None:
        """Where memory is dear: begin to write the range to the disk, and forget what of it is there. A hint."""
        if content_id not in self._blocks or not self._page_cost.is_high(time.monotonic()):
            return
        with self._pin(content_id) as fd, contextlib.suppress(OSError):
            advise = os.posix_fadvise
            await trio.to_thread.run_sync(advise, fd, start, end - start, os.POSIX_FADV_DONTNEED, limiter=self._threads)

    def write(self, content_id: int, start: int, data: Buffer) -> None:
        """Write all of `data` into the page cache, or raise NoSpace with nothing usable written. No await."""
        view = memoryview(data)
        with self._pin(content_id) as fd:
            done, began_s = 0, time.monotonic()
            try:
                while done < len(view):
                    done += os.pwrite(fd, view[done : done + PIECE_BYTES], start + done)
            except OSError as error:
                raise translate(error, "cache disk, write") from None
            finally:
                now_s = time.monotonic()
                self._page_cost.note(done, now_s - began_s, now_s)
                self._count(content_id, fd)

    async def write_direct(self, content_id: int, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Write (offset, bytes) past the page cache, in a thread; offsets and lengths are multiples of PAGE_BYTES.

        The caller has reserved the blocks, and keeps everybody else off these ranges until this is over.
        """
        try:
            with self._pin(content_id) as fd:
                await trio.to_thread.run_sync(self._direct.write, fd, pieces, limiter=self._direct.threads)
        except OSError as error:
            raise translate(error, "cache disk, direct write") from None

    def reserve(self, content_id: int, start: int, length: int) -> None:
        """Allocate blocks for the range, so that a write to it cannot meet a full disk. Raises NoSpace. No await."""
        with self._pin(content_id) as fd:
            try:
                _fallocate(fd, _FALLOC_KEEP_SIZE, start, length)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise translate(error, "cache disk, reserve") from None
            finally:
                self._count(content_id, fd)

    def punch(self, content_id: int, start: int, end: int) -> None:
        """Make the range a hole: it reads as zeros and takes no blocks. No await."""
        with self._pin(content_id) as fd:
            try:
                _fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, start, end - start)
            except OSError as error:
                raise translate(error, "cache disk, punch") from None
            finally:
                self._count(content_id, fd)

    def cut(self, content_id: int, size: int) -> None:
        """Drop everything beyond `size`. No await."""
        if content_id not in self._blocks:
            return
        with self._pin(content_id) as fd:
            try:
                if os.fstat(fd).st_size > size:
                    os.ftruncate(fd, size)
            except OSError as error:
                raise translate(error, "cache disk, truncate") from None
            finally:
                self._count(content_id, fd)

    async def flush(self, content_id: int) -> None:
        """fdatasync of the file, and fsync of the directory if its name may not be on the disk yet."""
        try:
            with self._pin(content_id) as fd:
                await trio.to_thread.run_sync(os.fdatasync, fd, limiter=self._threads)
            if content_id in self._unsynced_names:
                names = set(self._unsynced_names)  # made before the fsync begins
                await trio.to_thread.run_sync(os.fsync, self._dir.data_fd, limiter=self._threads)
                self._unsynced_names -= names
        except OSError as error:
            raise translate(error, "cache disk, fdatasync") from None

    def remove(self, content_id: int) -> None:
        """Delete the file. A thread that still reads it keeps its descriptor until it is done. No await."""
        if content_id not in self._blocks:
            return
        entry = self._open.pop(content_id, None)
        if entry is not None and entry.pins:
            entry.doomed = True
        elif entry is not None:
            os.close(entry.fd)
        self._unsynced_names.discard(content_id)
        self.used_bytes -= self._blocks.pop(content_id)
        try:
            os.unlink(f"{content_id:x}", dir_fd=self._dir.data_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise translate(error, "cache disk, unlink") from None

    def close(self) -> None:
        """Close all descriptors."""
        for entry in self._open.values():
            os.close(entry.fd)
        self._open.clear()


def _read_fully(fd: int, view: memoryview, start: int, around: Range | None) -> None:
    if around is not None and around[1] - around[0] > len(view):
        os.posix_fadvise(fd, around[0], around[1] - around[0], os.POSIX_FADV_WILLNEED)  # begins, and does not wait
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], start + done)
        if got == 0:
            return
        done += got
