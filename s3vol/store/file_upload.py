"""Multipart uploads of a file store: a directory per upload in the control area, a file per part.

Theory of operation. `uploads/<id>/` appears by a rename with its `upload.json` inside, and vanishes by a rename into a
session: it is there whole or not at all. A part is the file `<number>-<md5>`, synced before it gets that name, so that
after a crash a name proves its bytes. Completing puts the parts together in a temporary file and publishes that like
any other object; afterwards the upload is removed. A crash in between leaves both: the object is complete, and
the upload can be aborted. Whoever completes, aborts or names a part holds flock on the upload's directory.

Rejected: parts written at their offset of one file (sizes of the parts before are not known yet).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from s3vol.errors import NotFound, Rejected
from s3vol.store import rules
from s3vol.store.base import Buffer, Capabilities, Condition, Part, Upload
from s3vol.store.file_control import FOLDER_FLAGS, Control, Temp, wait_for_flock
from s3vol.store.file_io import append_file, copy_hashed, write_hashed
from s3vol.store.file_tree import Tree, check_unchanged

_UPLOAD = "upload.json"


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload, held open."""

    fd: int
    content_type: str
    metadata: Mapping[str, str]


class Uploads:
    """The uploads of one store. Synchronous and thread-safe, as Tree."""

    def __init__(self, tree: Tree, control: Control, capabilities: Capabilities) -> None:
        self._tree = tree
        self._control = control
        self._caps = capabilities

    def create(self, key: str, content_type: str, metadata: Mapping[str, str]) -> str:
        """Begin an upload; returns its id."""
        upload_id = uuid.uuid4().hex
        text = json.dumps({"key": key, "type": content_type, "meta": dict(metadata)}).encode()
        building = f"tmp/{self._control.session}/{upload_id}"
        self._control.write_small(f"{building}/{_UPLOAD}", text)
        os.rename(building, f"uploads/{upload_id}", src_dir_fd=self._control.fd, dst_dir_fd=self._control.fd)
        self._control.sync_folder("uploads")
        return upload_id

    def put_part(self, key: str, upload_id: str, number: int, body: Buffer) -> Part:
        """Keep a part. Raises NotFound."""
        with self._opened(key, upload_id) as upload, self._control.temp() as temp:
            return self._keep(key, upload_id, upload, temp, Part(number, write_hashed(temp.fd, body)))

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, length: int, if_match: str
    ) -> Part:
        """Keep a part made of a range of an object. Raises NotFound, PreconditionFailed, Rejected (no such range)."""
        with self._opened(key, upload_id) as upload, self._tree.opened(source) as found:
            rules.decide_read(source, if_match, found.record.etag)
            if start + length > found.size:
                raise Rejected(f"{source}: has no {length} bytes from {start}")
            with self._control.temp() as temp:
                part = Part(number, copy_hashed(found.fd, start, length, temp.fd))
                check_unchanged(found, if_match)
                return self._keep(key, upload_id, upload, temp, part)

    def complete(self, key: str, upload_id: str, parts: Sequence[Part], condition: Condition) -> str:
        """Publish the parts as one object; returns its ETag."""
        with self._opened(key, upload_id) as upload:
            self._hold(key, upload_id, upload)
            rules.check_parts(parts, _sizes(upload.fd), self._caps)
            self._tree.check(key, condition)
            etag = rules.multipart_etag(part.etag for part in parts)
            with self._control.temp() as temp:
                for part in parts:
                    append_file(upload.fd, f"{part.number}-{part.etag}", temp.fd)
                self._tree.publish(key, temp, etag, upload.content_type, upload.metadata, condition)
            self._remove(upload_id)
            return etag

    def abort(self, key: str, upload_id: str) -> None:
        """Drop the upload if it is there."""
        try:
            with self._opened(key, upload_id) as upload:
                self._hold(key, upload_id, upload)
                self._remove(upload_id)
        except NotFound:
            return

    def all(self) -> list[Upload]:
        """Those that are neither completed nor aborted."""
        found: list[Upload] = []
        for upload_id in self._control.names("uploads"):
            path = f"uploads/{upload_id}/{_UPLOAD}"
            text = self._control.read_small(path)
            if text is None:
                continue
            try:
                begun_ns = os.stat(path, dir_fd=self._control.fd).st_mtime_ns
            except FileNotFoundError:  # ended in between
                continue
            found.append(Upload(json.loads(text)["key"], upload_id, begun_ns))
        return found

    @contextmanager
    def _opened(self, key: str, upload_id: str) -> Iterator[_Upload]:
        if not (upload_id.isascii() and upload_id.isalnum()):
            raise _unknown(key, upload_id)
        text = self._control.read_small(f"uploads/{upload_id}/{_UPLOAD}")
        table = {} if text is None else json.loads(text)
        if table.get("key") != key:
            raise _unknown(key, upload_id)
        try:
            fd = os.open(f"uploads/{upload_id}", FOLDER_FLAGS, dir_fd=self._control.fd)
        except FileNotFoundError:
            raise _unknown(key, upload_id) from None
        try:
            yield _Upload(fd, table["type"], table["meta"])
        finally:
            os.close(fd)

    def _hold(self, key: str, upload_id: str, upload: _Upload) -> None:
        """Wait until nobody else completes or aborts this upload. Raises NotFound when they did."""
        wait_for_flock(upload.fd)
        try:
            os.stat(f"uploads/{upload_id}", dir_fd=self._control.fd)
        except FileNotFoundError:
            raise _unknown(key, upload_id) from None

    def _keep(self, key: str, upload_id: str, upload: _Upload, temp: Temp, part: Part) -> Part:
        """Name a finished part, and drop those that it replaces."""
        os.fsync(temp.fd)
        wait_for_flock(upload.fd)  # two bodies for one number would each drop the other
        name = f"{part.number}-{part.etag}"
        try:
            path = f"uploads/{upload_id}/{name}"
            os.rename(temp.name, path, src_dir_fd=self._control.session_fd, dst_dir_fd=self._control.fd)
        except FileNotFoundError:
            raise _unknown(key, upload_id) from None
        for other in os.listdir(upload.fd):
            if other.startswith(f"{part.number}-") and other != name:
                self._control.remove_small(f"uploads/{upload_id}/{other}")
        os.fsync(upload.fd)
        return part

    def _remove(self, upload_id: str) -> None:
        """The rename is what ends the upload; what a crash leaves after it, the next sweep removes."""
        gone = f"tmp/{self._control.session}/{upload_id}-ended"
        os.rename(f"uploads/{upload_id}", gone, src_dir_fd=self._control.fd, dst_dir_fd=self._control.fd)
        shutil.rmtree(gone, dir_fd=self._control.fd)


def _unknown(key: str, upload_id: str) -> NotFound:
    return NotFound(f"{key}: no upload {upload_id}")


def _sizes(upload_fd: int) -> dict[tuple[int, str], int]:
    """Bytes of the parts by (number, ETag)."""
    sizes: dict[tuple[int, str], int] = {}
    with os.scandir(upload_fd) as entries:
        for entry in entries:
            number, _, etag = entry.name.partition("-")
            if number.isdecimal():
                sizes[int(number), etag] = entry.stat(follow_symlinks=False).st_size
    return sizes
