"""Copies of objects for renames: by bytes or by the server, under conditions on both sides.

Theory of operation. Small objects are read and put (one or two requests); large ones are copied by the server, which
takes three requests and moves no bytes here: on a local MinIO 19 ms against 12 ms for 4 KiB, and even at some MiB. The
copy carries all headers of the source, its times written out (a foreign object's mtime is its Last-Modified, which the
copy would change), a new ctime and a new nonce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from s3vol import layout
from s3vol.errors import MetadataTooLarge, NotFound, PreconditionFailed
from s3vol.fs.context import Mount
from s3vol.fs.objects import Objects
from s3vol.store.base import FILE_TYPE, Buffer, Condition
from s3vol.types import MIB, ObjectInfo

SMALL_BYTES = 8 * MIB


class Copier:
    """Stateless; calls may be cancelled at any time, then the copy is there or not."""

    def __init__(self, mount: Mount, objects: Objects) -> None:
        self._mount = mount
        self._objects = objects

    async def copy(
        self,
        source: ObjectInfo,
        target: str,
        condition: Condition,
        *,
        body: Buffer | None = None,
        nonce: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Copy exactly this version. PreconditionFailed or NotFound: source or target is another by now.

        `body`: the bytes, when they are at hand. `metadata`: other headers than those of `metadata(source)`.
        """
        metadata = self.metadata(source) if metadata is None else dict(metadata)
        if source.size > SMALL_BYTES:
            return await self._objects.copy(source, target, metadata, condition, nonce)
        if body is None:
            body = await self._mount.store.get(source.key, 0, source.size, if_match=source.etag) if source.size else b""
        content_type = source.content_type or FILE_TYPE
        return await self._objects.put(
            target, body, metadata, content_type=content_type, condition=condition, nonce=nonce
        )

    def metadata(self, source: ObjectInfo) -> dict[str, str]:
        """Headers of a copy."""
        kept = layout.without_nonce(source.metadata or {})
        is_dir = source.key.endswith("/")
        posix = replace(layout.decode_attr(source, self._mount.owner, is_dir=is_dir), ctime_ns=self._mount.now_ns())
        metadata = layout.encode_attr(posix, kept)
        try:
            layout.check_metadata(metadata)
        except MetadataTooLarge:
            return kept  # others' headers fill the object: they are kept rather than our times
        return metadata

    async def is_changed(self, source: ObjectInfo) -> bool:
        """True when the source is not this version any more."""
        found = await self._objects.head(source.key)
        return found is None or found.version != source.version


GONE = (PreconditionFailed, NotFound)
"""What a conditional change raises when an object is another, or none, by now."""
