"""Named crash points: a test arms one, and the process dies there as by SIGKILL.

`S3VOL_FAILPOINT=NAME` kills at the first hit of NAME, `NAME:3` at the third. Unarmed, a hit costs one comparison.
Every name is listed here, so that a test can walk through all of them and a typing error cannot arm nothing.
"""

from __future__ import annotations

import enum
import os
import signal


class Point(enum.Enum):
    """One per step at which a crash leaves another state behind."""

    WRITE_AFTER_DATA = "write-after-data"
    SYNC_AFTER_DATA = "sync-after-data"
    SYNC_AFTER_COMMIT = "sync-after-commit"
    JOURNAL_BEFORE_COMMIT = "journal-before-commit"
    PUBLISH_BEFORE_PUT = "publish-before-put"
    PUBLISH_AFTER_PUT = "publish-after-put"
    UPLOAD_AFTER_CREATE = "upload-after-create"
    UPLOAD_AFTER_PART = "upload-after-part"
    UPLOAD_BEFORE_COMPLETE = "upload-before-complete"
    UPLOAD_AFTER_COMPLETE = "upload-after-complete"
    CONFLICT_AFTER_COPY = "conflict-after-copy"
    EVICT_AFTER_RECORD = "evict-after-record"
    REPLAY_AFTER_LOAD = "replay-after-load"
    RENAME_AFTER_COPY = "rename-after-copy"
    RENAME_AFTER_TOMBSTONE = "rename-after-tombstone"
    RENAME_AFTER_DELETE = "rename-after-delete"
    RENAME_DIR_AFTER_INTENT = "rename-dir-after-intent"
    RENAME_DIR_AFTER_COPY = "rename-dir-after-copy"
    RENAME_DIR_AFTER_COPIES = "rename-dir-after-copies"
    RENAME_DIR_AFTER_TOMBSTONE = "rename-dir-after-tombstone"
    RENAME_DIR_AFTER_MOVES = "rename-dir-after-moves"
    UNLINK_BEFORE_DELETE = "unlink-before-delete"
    UNLINK_AFTER_DELETE = "unlink-after-delete"
    ATTRIBUTES_BEFORE_COMMIT = "attributes-before-commit"
    ATTRIBUTES_AFTER_COMMIT = "attributes-after-commit"
    DIRECTORY_ATTRIBUTES_AFTER_PUT = "directory-attributes-after-put"
    LINK_AFTER_RECORD = "link-after-record"
    LINK_AFTER_BODY = "link-after-body"
    LINK_AFTER_CONVERSION = "link-after-conversion"
    LINK_AFTER_STUB = "link-after-stub"
    LINK_RENAME_AFTER_RECORD = "link-rename-after-record"
    LINK_RENAME_AFTER_STUB = "link-rename-after-stub"
    LINK_RENAME_AFTER_TOMBSTONE = "link-rename-after-tombstone"
    UNLINK_NAME_AFTER_RECORD = "unlink-name-after-record"
    UNLINK_NAME_AFTER_STUB = "unlink-name-after-stub"
    UNLINK_NAME_AFTER_BODY = "unlink-name-after-body"


def _parse(text: str) -> tuple[Point | None, int]:
    name, _, nth = text.partition(":")
    return (Point(name), int(nth or "1")) if name else (None, 0)


_armed, _left = _parse(os.environ.get("S3VOL_FAILPOINT", ""))


def hit(point: Point) -> None:
    """Die here if this point is armed and its count is reached."""
    global _left
    if point is _armed:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
