"""Records of the journal: the schema, whose comments are the specification, and the statements that change it. Pure.

A record carries a check value (CRC-32 of its columns): SQLite does not notice a flipped bit in a page. Statements are
values, so that whoever changes a content can say what the journal must learn, and the journal alone decides when it
is written.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3vol.cache.extents import Range
from s3vol.store.base import Buffer
from s3vol.types import Version

SCHEMA_VERSION = 2

CARRIED = """\
-- Bytes of small writes, which the data file may not have after a power failure. At the next start they are written to
-- it in the order of `id`, where they are in an extent. Removed with the next fdatasync of the file, or its publish.
CREATE TABLE carried (
  id INTEGER PRIMARY KEY, content INTEGER NOT NULL, start INTEGER NOT NULL, bytes BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX carried_content ON carried (content);"""

SCHEMA = f"""
-- One fact per name: schema, volume (URL), cache (random id, in every nonce), opened (how often), boot (kernel boot id
-- of the last open), shutdown ('clean' or 'running'), commits (touched by each durable commit, so that it writes).
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- One row per content that is worth remembering: DIRTY ones as of their last sync, CLEAN ones that have clean chunks.
-- base_limit: bytes from here on are not in the base object. derived: the content began as a version of this object.
-- attempt: the last number used in a nonce when this row was made. attempts: JSON, number to ETag where known.
-- crc: CRC-32 of the other columns, see `check_value`.
CREATE TABLE content (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, base_etag TEXT, base_nonce TEXT, derived INTEGER NOT NULL,
  base_limit INTEGER NOT NULL, size INTEGER NOT NULL, metadata TEXT NOT NULL, content_type TEXT NOT NULL,
  state TEXT NOT NULL, attempt INTEGER NOT NULL, attempts TEXT NOT NULL, explicit_times INTEGER NOT NULL,
  crc INTEGER NOT NULL);
-- Dirty bytes that are in the data file, fdatasync'ed before the row was committed, or in `carried`. Append-only
-- between publishes; the union counts. Bytes beyond the content's size count for nothing.
CREATE TABLE extent (content INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX extent_content ON extent (content);
-- Chunks of 1 MiB whose bytes in the data file are those of the base. Removed before the first write or punch. Believed
-- after SIGKILL (the page cache survives) and after a clean shutdown (syncfs), not after a power failure (boot id).
CREATE TABLE clean (content INTEGER NOT NULL, chunk INTEGER NOT NULL, PRIMARY KEY (content, chunk)) WITHOUT ROWID;
-- Multipart uploads that were begun and neither completed nor aborted; aborted at the next start.
CREATE TABLE upload (id TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID;
-- Small tables of the file system.
CREATE TABLE note (kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
{CARRIED}
-- Records that could not be believed, as JSON; the data file is in the directory of the same name.
CREATE TABLE quarantine (content INTEGER NOT NULL, reason TEXT NOT NULL, record TEXT NOT NULL, at TEXT NOT NULL);
"""

Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Row:
    """A content as the journal remembers it."""

    id: int
    key: str
    base: Version | None
    derived: bool
    base_limit: int
    size: int
    metadata: Mapping[str, str]
    content_type: str
    state: str
    attempt: int
    attempts: Mapping[int, str]
    explicit_times: bool


def check_value(*values: object) -> int:
    """CRC-32 of the columns as Python shows them."""
    return zlib.crc32(repr(values).encode())


def now() -> str:
    """The time as text, for records that people read."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _values(row: Row) -> tuple[Any, ...]:
    return (
        row.id, row.key, row.base.etag if row.base else None, row.base.nonce if row.base else None, int(row.derived),
        row.base_limit, row.size, json.dumps(dict(row.metadata)), row.content_type, row.state, row.attempt,
        json.dumps({str(number): etag for number, etag in row.attempts.items()}), int(row.explicit_times),
    )  # fmt: skip


def save_content(row: Row) -> list[Statement]:
    """Write or replace a content's row."""
    values = _values(row)
    return [("INSERT OR REPLACE INTO content VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", (*values, check_value(*values)))]


def add_extents(content_id: int, ranges: Iterable[Range]) -> list[Statement]:
    """These bytes are dirty and on the disk."""
    return [
        ("INSERT INTO extent VALUES (?,?,?,?)", (content_id, low, high, check_value(content_id, low, high)))
        for low, high in ranges
    ]


def replace_extents(content_id: int, ranges: Iterable[Range]) -> list[Statement]:
    """Exactly these bytes are dirty and on the disk."""
    return [("DELETE FROM extent WHERE content=?", (content_id,)), *add_extents(content_id, ranges)]


def carried_check_value(content_id: int, start: int, data: Buffer) -> int:
    """CRC-32 of the bytes and of where they belong."""
    return zlib.crc32(data, check_value(content_id, start))


def carry(content_id: int, pieces: Iterable[tuple[int, Buffer]]) -> list[Statement]:
    """These bytes, by offset, are dirty and not on the disk but for here."""
    sql = "INSERT INTO carried (content, start, bytes, crc) VALUES (?,?,?,?)"
    return [(sql, (content_id, at, data, carried_check_value(content_id, at, data))) for at, data in pieces]


def drop_carried(content_id: int) -> list[Statement]:
    """The bytes that were carried for a content are on the disk, or published."""
    return [("DELETE FROM carried WHERE content=?", (content_id,))]


def drop_content(content_id: int) -> list[Statement]:
    """Forget all about a content."""
    return [(f"DELETE FROM {table} WHERE {name}=?", (content_id,)) for table, name in OF_CONTENT]


OF_CONTENT = (("content", "id"), ("extent", "content"), ("carried", "content"), ("clean", "content"))


def quarantine_content(content_id: int, reason: str) -> list[Statement]:
    """Remember that a content's record was given up, and why."""
    sql = "INSERT INTO quarantine SELECT id, ?, json_array(key, base_etag, size, metadata), ? FROM content WHERE id=?"
    return [(sql, (reason, now(), content_id))]


def add_clean(content_id: int, chunks: Iterable[int]) -> list[Statement]:
    """These chunks are as in the base."""
    return [("INSERT OR IGNORE INTO clean VALUES (?,?)", (content_id, chunk)) for chunk in chunks]


def drop_clean(content_id: int, chunks: Iterable[int]) -> list[Statement]:
    """These chunks are going to be changed or punched."""
    return [("DELETE FROM clean WHERE content=? AND chunk=?", (content_id, chunk)) for chunk in chunks]


def add_upload(upload_id: str, key: str) -> list[Statement]:
    """A multipart upload was begun."""
    return [("INSERT OR REPLACE INTO upload VALUES (?,?)", (upload_id, key))]


def drop_upload(upload_id: str) -> list[Statement]:
    """A multipart upload is completed or aborted."""
    return [("DELETE FROM upload WHERE id=?", (upload_id,))]


def set_note(kind: str, name: str, value: str | None) -> list[Statement]:
    """Set or (None) remove a note."""
    if value is None:
        return [("DELETE FROM note WHERE kind=? AND name=?", (kind, name))]
    return [("INSERT OR REPLACE INTO note VALUES (?,?,?)", (kind, name, value))]


def parse_row(record: Sequence[Any]) -> Row:
    """A row of `content`. Raises ValueError, TypeError, AttributeError or KeyError for one that cannot be believed."""
    *values, crc = record
    if crc != check_value(*values):
        raise ValueError("wrong check value")
    attempts = {int(number): str(etag) for number, etag in json.loads(values[11]).items()}
    base = Version(values[2], values[3]) if values[2] is not None else None
    return Row(
        id=values[0], key=values[1], base=base, derived=bool(values[4]), base_limit=values[5], size=values[6],
        metadata=dict(json.loads(values[7])), content_type=values[8], state=values[9], attempt=values[10],
        attempts=attempts, explicit_times=bool(values[12]),
    )  # fmt: skip
