"""Whether the pages that the kernel holds of an inode are the bytes that a handle reads. Pure.

Theory of operation. The page cache belongs to the inode, a content to a handle: two handles may read two versions of
one file. `Inode.pages` remembers the content whose bytes the kernel was given last, for as long as the kernel knows the
inode. An open keeps these pages, has them dropped, or, beside handles that read other bytes, goes past them.
"""

from __future__ import annotations

from s3vol.cache.base import Content, State
from s3vol.fs.handles import FileHandle, Handles
from s3vol.fs.inodes import Inode


def keeps(inode: Inode, content: Content) -> bool:
    """True when the kernel's pages of this inode are this content's bytes."""
    pages = inode.pages
    if pages is None or pages is content:
        return pages is content
    clean = pages.state is State.CLEAN and content.state is State.CLEAN
    return clean and pages.base is not None and pages.base == content.base


def mixed(handles: Handles, inode: Inode, content: Content) -> bool:
    """True when other handles of this inode read other bytes: the page cache cannot serve both."""

    def same_bytes(other: Content) -> bool:
        if other is content:
            return True
        if other.base is None or content.base is None or other.base.etag != content.base.etag:
            return False
        return other.state is State.CLEAN and content.state is State.CLEAN

    return not all(same_bytes(other) for other in handles.contents_of(inode))


def may_push(handles: Handles, handle: FileHandle) -> bool:
    """True while the kernel's page cache may be given bytes that this handle reads.

    * The handle reads through the page cache, whose pages are those of its content.
    * The content is clean, and nobody has the file open for writing: the bytes do not change.
    * The kernel was told of exactly this version, so that it knows its length.

    Whatever makes one of these untrue waits, before it answers the kernel, for pushes that have begun.
    """
    inode, content = handle.inode, handle.content
    return (
        handle.paged
        and inode.pages is content
        and content.state is State.CLEAN
        and content.base is not None
        and inode.told == content.base
        and inode.size == content.size
        and not inode.unpushed
        and not any(other.writable for other in handles.of(inode))
    )
