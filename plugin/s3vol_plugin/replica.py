"""This node's copy of the registry: in memory for answers that may not wait, on disk for a start without a backend.

Theory of operation. Nothing in it awaits, so the loop's tasks see it whole. A listing takes a while, and what this node
itself changed meanwhile is newer than what the listing says: `begin` hands out a mark, every change is stamped, and
`commit` leaves alone what was changed after the mark.

A record that turns out damaged keeps its last good form, if there was one: the volume did not change, only what
describes it was hurt, and "no such volume" would make dockerd forget it. Each damage is logged once.

The file is one JSON document, replaced as a whole (temporary file, fsync, rename, fsync of the directory). Its mtime is
the time at which it last was true, so a copy that stays the same costs a utimensat(2) and not a rewrite. A file of
another registry is not used; one that cannot be read is put aside as `*.corrupt`.

Rejected: one file a record (a start would read hundreds), and an mtime inside the document (a write a refresh).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from s3vol.errors import Corrupt
from s3vol_plugin import records
from s3vol_plugin import volume as volumes
from s3vol_plugin.records import Damaged, Entry

SCHEMA = 1

log = logging.getLogger(__name__)


class Replica:
    """Records by volume name. Used on the loop only; `write` is for a thread."""

    def __init__(self, path: Path | None, source: str, *, now_s: Callable[[], float] = time.time) -> None:
        """Read the file, if there is one of this `source`. None: no file is kept."""
        self._path = path
        self._source = source
        self._now_s = now_s
        self.entries: dict[str, Entry] = {}
        self.damaged: dict[str, Damaged] = {}
        self._true_at_s: float | None = None
        self._changes = 0
        self._changed: dict[str, int] = {}
        self._load()

    @property
    def age_s(self) -> float | None:
        """Seconds since this was last true; None when it never was."""
        return None if self._true_at_s is None else max(self._now_s() - self._true_at_s, 0.0)

    def begin(self) -> tuple[int, float]:
        """The mark of a listing that begins now."""
        return self._changes, self._now_s()

    def note(self, name: str, entry: Entry | None) -> None:
        """One record as the bucket has it now; None: there is none."""
        self._changes += 1
        self._changed[name] = self._changes
        self.damaged.pop(name, None)
        if entry is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = entry

    def note_damaged(self, damaged: Damaged, *, keep: bool = True) -> None:
        """One record that cannot be read. Its last good form stays, unless `keep` is False."""
        before = self.damaged.get(damaged.name)
        if before is None or before.error != damaged.error:
            log.error("%s", damaged.error)
        self.damaged[damaged.name] = damaged
        if not keep:
            self.entries.pop(damaged.name, None)

    def commit(self, mark: tuple[int, float], read: Iterable[Entry], gone: Iterable[str]) -> None:
        """What a listing found: records that are new or changed, and names that are gone."""
        since, at_s = mark
        for name in gone:
            if self._changed.get(name, 0) <= since:
                self.entries.pop(name, None)
                self.damaged.pop(name, None)
        for entry in read:
            if self._changed.get(entry.volume.name, 0) <= since:
                self.entries[entry.volume.name] = entry
                self.damaged.pop(entry.volume.name, None)
        for name, owner in records.doubled(self.entries.values()).items():
            error = (
                f"record {records.key_of(name)}: has the uuid of volume {owner}; delete it and create the volume anew"
            )
            self.note_damaged(Damaged(name, self.entries[name].etag, error), keep=False)
        self._changed.clear()  # one listing runs at a time: nobody holds an older mark
        self._true_at_s = at_s

    def document(self) -> bytes:
        """What the file holds."""
        table = {
            name: {
                "etag": entry.etag,
                "modified_ns": entry.modified_ns,
                "volume": json.loads(volumes.encode(entry.volume)),
            }
            for name, entry in sorted(self.entries.items())
        }
        return json.dumps({"schema": SCHEMA, "source": self._source, "records": table}).encode()

    def write(self, document: bytes | None) -> None:
        """Make the file this document (None: the one it is), true as of the last commit. Raises OSError."""
        at_s = self._true_at_s
        if self._path is None:
            return
        if document is not None:
            write_durably(self._path, document, at_s)
        elif at_s is not None:
            os.utime(self._path, (at_s, at_s))

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            with open(self._path, "rb") as file:
                at_s, data = os.fstat(file.fileno()).st_mtime, file.read()
        except FileNotFoundError:
            return
        except OSError as error:  # a copy only: the bucket has what is true
            log.error("%s: cannot be read (%s); not used", self._path, error.strerror)
            return
        try:
            content: Mapping[str, Any] = json.loads(data)
            if content["schema"] != SCHEMA or content["source"] != self._source:
                log.warning("%s: is of another registry or version; not used", self._path)
                return
            self.entries = {name: _entry(name, item) for name, item in content["records"].items()}
            self._true_at_s = at_s if at_s > 1 else None
        except (ValueError, KeyError, TypeError, AttributeError, Corrupt) as error:
            aside = self._path.with_suffix(".corrupt")
            os.replace(self._path, aside)
            self.entries = {}
            log.error("%s: cannot be read (%s); put aside as %s", self._path, error, aside)


def _entry(name: str, item: Mapping[str, Any]) -> Entry:
    volume = volumes.decode(json.dumps(item["volume"]).encode(), name)
    if volume.name != name:
        raise Corrupt(f"{name}: says that it is {volume.name}")
    return Entry(volume, str(item["etag"]), int(item["modified_ns"]))


def write_durably(path: Path, data: bytes, at_s: float | None) -> None:
    """Replace a file by one that is on the disk, with this mtime (None: never true). Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.utime(file.fileno(), (at_s or 0.0, at_s or 0.0))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
