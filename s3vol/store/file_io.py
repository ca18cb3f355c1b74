"""Bytes between descriptors, in trio worker threads: in blocks, so that a cancelled call ends soon.

Where the file system can share blocks (XFS, Btrfs), copy_file_range appends without copying; elsewhere the kernel
copies.
"""

from __future__ import annotations

import errno
import hashlib
import os

import trio

from s3vol.errors import Unavailable
from s3vol.store.base import Buffer
from s3vol.types import MIB

BLOCK_BYTES = 8 * MIB
"""Between two looks at whether the caller still wants it: 10 ms of a fast disk, 0.1 s of a slow one."""

_NO_SHARING = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything at the file's position."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_hashed(fd: int, body: Buffer) -> str:
    """Append a body to a file; returns its MD5."""
    md5 = hashlib.md5(usedforsecurity=False)
    view = memoryview(body).cast("B")
    for start in range(0, len(view), BLOCK_BYTES):
        trio.from_thread.check_cancelled()
        block = view[start : start + BLOCK_BYTES]
        md5.update(block)
        write_all(fd, block)
    return md5.hexdigest()


def read_range(fd: int, start: int, length: int) -> bytes:
    """Exactly `length` bytes, fewer only at the end of the file."""
    body = os.pread(fd, length, start)
    if len(body) == length:
        return body
    blocks = [body]  # Linux reads at most 2 GiB at once
    while blocks[-1]:
        read = sum(map(len, blocks))
        blocks.append(os.pread(fd, length - read, start + read))
    return b"".join(blocks)


def copy_hashed(source_fd: int, start: int, length: int, target_fd: int) -> str:
    """Append a range of one file to another; returns its MD5. Raises Unavailable when there are fewer bytes."""
    md5 = hashlib.md5(usedforsecurity=False)
    done = 0
    while done < length:
        trio.from_thread.check_cancelled()
        block = read_range(source_fd, start + done, min(BLOCK_BYTES, length - done))
        if not block:
            raise Unavailable("a file became shorter while it was being copied")
        md5.update(block)
        write_all(target_fd, block)
        done += len(block)
    return md5.hexdigest()


def append_file(folder_fd: int, name: str, target_fd: int) -> None:
    """Append a whole file of an open directory to another file."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        while _append_block(fd, target_fd):
            trio.from_thread.check_cancelled()
    finally:
        os.close(fd)


def _append_block(source_fd: int, target_fd: int) -> int:
    """Copy a block from the position of one file to that of the other; 0 at the end."""
    try:
        return os.copy_file_range(source_fd, target_fd, BLOCK_BYTES)
    except OSError as error:
        if error.errno not in _NO_SHARING:
            raise
    block = os.read(source_fd, BLOCK_BYTES)
    write_all(target_fd, block)
    return len(block)
