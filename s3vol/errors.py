"""The few kinds of error, named by what the caller must do about them.

Theory of operation. Libraries' exceptions are translated at the edge that calls them, by a table
(`store/edge.py` for clients of object stores); none crosses a room's border. Each kind carries the errno that a
program sees and whether trying again can help. `errno` leaves in one function only (`s3vol_fuse/reply.py`), and
an error on the data path is logged once, there. Nothing on the data path is logged and then swallowed.

Rejected: one class per errno (callers then have to know thirty), and bare OSError (says nothing of retrying).
"""

from __future__ import annotations

import errno as _errno
import os


class S3volError(Exception):
    """Base of all. `errno` is what the program sees; `retryable` says whether the same call may work later.

    `request_id` is what the store called the request that failed; empty when it said nothing.
    """

    errno: int = _errno.EIO
    retryable: bool = False
    request_id: str = ""


class NotFound(S3volError):
    """The store said 404 for this key. Nothing else may be turned into this."""

    errno = _errno.ENOENT


class PreconditionFailed(S3volError):
    """If-Match or If-None-Match did not hold: read the object again, then decide.

    After a retry this may be our own write whose reply was lost; compare the nonce before calling it a conflict.
    """

    errno = _errno.ESTALE


class Conflict(S3volError):
    """Another writer was first. Our content is kept at `copy_key`; the program must read again."""

    errno = _errno.ESTALE

    def __init__(self, key: str, copy_key: str) -> None:
        super().__init__(f"{key}: changed in the bucket since it was opened; our content is kept as {copy_key}")
        self.key = key
        self.copy_key = copy_key


class Unavailable(S3volError):
    """Time-out, broken connection, 5xx, throttled: the outcome of a change is unknown. Retry."""

    errno = _errno.EIO
    retryable = True


class Denied(S3volError):
    """401, 403: credentials or policy. Retrying does not help."""

    errno = _errno.EACCES


class Rejected(S3volError):
    """The store refuses this request and always will: bad name, argument, or an unsupported call."""

    errno = _errno.EINVAL


class NameTooLong(Rejected):
    """A component over 255 bytes, or a key over 1,024 bytes."""

    errno = _errno.ENAMETOOLONG


class MetadataTooLarge(Rejected):
    """User metadata over the 2,048 bytes that S3 allows."""

    errno = _errno.E2BIG


class NoSpace(S3volError):
    """The local cache disk, or the store, is full. Nothing was accepted."""

    errno = _errno.ENOSPC


class QuotaExceeded(S3volError):
    """The bucket's quota is used up."""

    errno = _errno.EDQUOT


class Corrupt(S3volError):
    """What we read is provably not what was written. Retrying does not help; nothing may be guessed."""

    errno = _errno.EIO


class PosixError(S3volError):
    """A plain POSIX refusal that the file system itself decides (ENOTDIR, ENOTEMPTY, ...)."""

    def __init__(self, errno: int, what: str = "") -> None:
        super().__init__(f"{what}: {os.strerror(errno)}" if what else os.strerror(errno))
        self.errno = errno


class UsageError(S3volError):
    """Bad input from the user: one line that names the input and the way out. Exit status 2."""

    errno = _errno.EINVAL


def request_of(error: BaseException | None) -> str:
    """The store's id of the request behind an error, through all that was raised from it; empty when there is none."""
    while error is not None:
        if isinstance(error, S3volError) and error.request_id:
            return error.request_id
        error = error.__cause__
    return ""
