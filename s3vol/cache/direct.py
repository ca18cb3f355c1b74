"""DirectWriter and DirectReader: long runs of bytes to and from the disk, past the page cache. Blocking; for threads.

Theory of operation. O_DIRECT wants memory, offsets and lengths aligned; the kernel then hands the pages to the device.
Some stores receive large bodies in aligned memory (store/aligned.py); the bytes of others are copied into a buffer that
is mapped once and used again. Where the file system has no O_DIRECT (tmpfs of older kernels, some network disks), the
same bytes take the ordinary way, in the same thread.

Measured on a machine of two cores with a virtual disk: filling 1 GB at 1.3 to 1.6 GB/s past the page cache, at 0.4 to
0.7 through it.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

import trio

from s3vol.store.aligned import AlignedBuffers, is_aligned
from s3vol.types import MIB

PAGE_BYTES = max(4096, mmap.PAGESIZE)  # 4,096: the largest logical block of disks in use
_BUFFER_BYTES = 8 * MIB  # one run of the fetcher
_THREADS = 2  # one copies while the other waits for the device
_HAS_NONE = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT}  # ENOENT: no /proc here


class DirectWriter:
    """Of one cache directory. `threads` bounds how many write at a time, and so the buffers."""

    def __init__(self) -> None:
        self.threads = trio.CapacityLimiter(_THREADS)
        self._buffers: list[mmap.mmap] = []
        self._has_direct = True

    def write(self, fd: int, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Write (offset, bytes), both in whole pages, to the open file. Raises OSError."""
        if self._has_direct:
            try:
                self._write_directly(fd, pieces)
                return
            except OSError as error:
                if error.errno not in _HAS_NONE:
                    raise
                self._has_direct = False
        for offset, data in pieces:
            _write_fully(fd, data, offset)

    def _write_directly(self, fd: int, pieces: Sequence[tuple[int, memoryview]]) -> None:
        direct_fd = _open_direct(fd, os.O_WRONLY)
        try:
            for offset, data in pieces:
                if is_aligned(data, PAGE_BYTES):
                    _write_fully(direct_fd, data, offset)
                else:
                    self._write_copy(direct_fd, data, offset)
        finally:
            os.close(direct_fd)

    def _write_copy(self, direct_fd: int, data: memoryview, offset: int) -> None:
        buffer = self._buffers.pop() if self._buffers else mmap.mmap(-1, _BUFFER_BYTES)
        with memoryview(buffer) as aligned:
            for at in range(0, len(data), _BUFFER_BYTES):
                part = data[at : at + _BUFFER_BYTES]
                aligned[: len(part)] = part
                with aligned[: len(part)] as filled:
                    _write_fully(direct_fd, filled, offset + at)
        self._buffers.append(buffer)


class DirectReader:
    """Of one cache directory."""

    def __init__(self) -> None:
        self._memory = AlignedBuffers()
        self._has_direct = True

    def take(self, length: int) -> memoryview | None:
        """Memory for `read`; None where there are no direct reads. ValueError for more than a block of it."""
        return self._memory.take(length) if self._has_direct else None

    def read(self, fd: int, place: memoryview, offset: int) -> bool:
        """Fill `place` from `offset`, a multiple of PAGE_BYTES; zeros beyond the end of the file. Raises OSError.

        False: this file system has no direct reads.
        """
        try:
            direct_fd = _open_direct(fd, os.O_RDONLY)
            try:
                got = _read_pages(direct_fd, place, offset)
            finally:
                os.close(direct_fd)
        except OSError as error:
            if error.errno not in _HAS_NONE:
                raise
            self._has_direct = False
            return False
        place[got:] = bytes(len(place) - got)
        return True


def _open_direct(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)


def _read_pages(direct_fd: int, place: memoryview, offset: int) -> int:
    """How many bytes were read: fewer than there is place for only at the end of the file."""
    done = 0
    while done < len(place):
        got = os.preadv(direct_fd, [place[done:]], offset + done)
        done += got
        if not got or done % PAGE_BYTES:
            break
    return done


def _write_fully(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
