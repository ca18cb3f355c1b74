"""What this node remembers of the volumes that it uses: one JSON file a volume, named by uuid.

Theory of operation. A record is there from before a volume is mounted until it is unmounted, nobody uses it and its
journal is known to be empty. It is a hint and never the proof of anything: who uses a volume is asked of the
kernel, and which volumes there are of the registry. What it must not be is half-written: a record goes to a
temporary file, fsync, rename, fsync of the directory, and what memory holds is what the disk holds. A save that
fails changes neither.

References are of one boot: a record of another one loads without them. `dirty` outlives it, for the journal does.

A file that is not a record is renamed to `*.corrupt`, with one line in the log, and the others load: one flipped
bit must not keep every volume of a node from starting. The mount that it was about is still found by its process
and by the kernel.

Rejected: one file for all (one corrupt byte loses all, and writers wait for each other), and SQLite (needs more care
than a rename, for some dozens of records).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from s3vol.errors import Corrupt, NoSpace, S3volError, UsageError
from s3vol_plugin import volume as volumes
from s3vol_plugin.volume import Volume

SCHEMA = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RECORD_MAX_BYTES = 1 << 20  # a record has some hundred; more than this is not one of ours

log = logging.getLogger(__name__)


def boot_id() -> str:
    """Names this boot of the machine (random(4))."""
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Record:
    """A volume that is used here.

    `refs` are counts by dockerd's ID, `dirty` says that its journal may hold data that is not published, `heals`
    counts mounts that were put back into containers.
    """

    volume: Volume
    refs: Mapping[str, int] = field(default_factory=dict)
    dirty: bool = False
    heals: int = 0


class State:
    """The records of one node.

    Who changes a record holds the lock of that volume (s3vol_plugin.node); here nothing is locked, because two records
    share no file.
    """

    def __init__(self, directory: Path, boot: str) -> None:
        """Load the records of `directory`, making it when it is missing. Raises UsageError when it cannot be used."""
        self._directory = directory
        self._boot = boot
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._records = self._load()
        except OSError as error:
            raise UsageError(f"state directory {directory}: {error.strerror}; set `state-directory`") from None

    def get(self, uuid: str) -> Record | None:
        """The record of a volume."""
        return self._records.get(uuid)

    def named(self, name: str) -> Sequence[Record]:
        """Records of a name: more than one when a volume was removed elsewhere and made anew while it is used here."""
        return [record for record in self._records.values() if record.volume.name == name]

    def all(self) -> Sequence[Record]:
        """All records, by name."""
        return sorted(self._records.values(), key=lambda record: record.volume.name)

    async def save(self, record: Record) -> None:
        """Put a record on disk, then into memory. Raises NoSpace or S3volError; then neither has changed."""
        if self._records.get(record.volume.uuid) == record:
            return
        with _translated(self._directory):
            # Not cancelled half-way: what a thread still writes would be newer than what memory says.
            await trio.to_thread.run_sync(self._write, record)
        self._records[record.volume.uuid] = record

    def remember(self, record: Record) -> None:
        """Change memory only: for what is true although it cannot be saved (a container is gone)."""
        self._records[record.volume.uuid] = record

    async def forget(self, uuid: str) -> None:
        """Remove a record; missing is success. Raises S3volError."""
        with _translated(self._directory):
            await trio.to_thread.run_sync(self._unlink, uuid)
        self._records.pop(uuid, None)

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"

    def _write(self, record: Record) -> None:
        path = self._path(record.volume.uuid)
        temporary = path.with_suffix(".new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_encode(record, self._boot))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        self._sync()

    def _unlink(self, uuid: str) -> None:
        self._path(uuid).unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _load(self) -> dict[str, Record]:
        for left in self._directory.glob("*.new"):  # a crash came before the rename: nobody was told of it
            with contextlib.suppress(IsADirectoryError):  # not ours; it is in the way of one volume at most
                left.unlink()
        records = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                record = _decode(_read(path), self._boot, path)
            except Corrupt as error:
                kept = _quarantine(path)
                log.error("%s; kept as %s, and not used", error, kept)
                continue
            records[record.volume.uuid] = record
        return records


@contextlib.contextmanager
def _translated(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"state directory {directory}: {error.strerror}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (NoSpace(f"{text}; free some space there") if full else S3volError(text)) from None


def _read(path: Path) -> bytes:
    """At most a record's worth. A directory or a socket of that name is not a record."""
    if not path.is_file() or path.is_symlink():
        raise Corrupt(f"{path}: is not a regular file")
    try:
        with path.open("rb") as file:
            return file.read(_RECORD_MAX_BYTES)
    except OSError as error:  # a bad block of the disk
        raise Corrupt(f"{path}: cannot be read: {error.strerror}") from None


def _quarantine(path: Path) -> Path:
    """Rename to a name that is free: what was kept earlier stays."""
    names = (path.with_name(f"{path.name}{number}.corrupt") for number in ("", *(f".{n}" for n in range(1, 1000))))
    kept = next(name for name in names if not name.exists())
    os.rename(path, kept)
    return kept


def _encode(record: Record, boot: str) -> bytes:
    values = {
        "schema": SCHEMA,
        "volume": json.loads(volumes.encode(record.volume)),
        "boot_id": boot,
        "refs": dict(record.refs),
        "dirty": record.dirty,
        "heals": record.heals,
    }
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"


def _decode(data: bytes, boot: str, path: Path) -> Record:
    what = f"state record {path}"
    try:
        values: dict[str, Any] = json.loads(data)
        if values["schema"] != SCHEMA:
            raise Corrupt(f"{what}: schema {values['schema']!r}; this version of s3vol reads {SCHEMA}")
        volume = volumes.decode(json.dumps(values["volume"]).encode(), what)
        refs, dirty, heals = (values[name] for name in ("refs", "dirty", "heals"))
        same = values["boot_id"] == boot
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{what}: is not a record: {error}") from None
    valid = (
        volume.uuid == path.stem
        and isinstance(refs, dict)
        and all(type(count) is int and count > 0 for count in refs.values())
        and type(dirty) is bool
        and type(heals) is int
    )
    if not valid:
        raise Corrupt(f"{what}: is not a record: a value has the wrong form")
    return Record(volume, refs if same else {}, dirty, heals)
