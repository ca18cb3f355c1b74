"""What a writer knows for certain on this machine: its name, its last publication, and all that it has not published
yet.

Theory of operation. A change that a caller was told of is either published or here, in SQLite with synchronous=FULL;
the next run takes it from here. Small blocks stay here until they are gathered into a segment (segments.py), so that a
thousand small files are one import and not a thousand. Callers that wait at the same time share one transaction:
whoever gets the lock writes what all have queued, in the order in which it was queued.

Everything is read once, when the journal is opened; afterwards it is only written. Nobody else may have it open: it is
locked, and a second user gets a UsageError. A journal belongs to one volume and one writer for ever. It is not a copy
of the cluster: `sequence` is what this writer may have published, and a cluster that knows a lower one has lost
something.

Rejected: taking the register for the truth (a peer that was killed may have forgotten its last pins), and one
transaction per change (an fsync each).
"""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import trio

from s3vol.errors import NoSpace, S3volError, UsageError
from s3vol.store.ipfs.base import Block
from s3vol.store.ipfs.cid import DIGEST_BYTES, Cid, known
from s3vol.store.ipfs.entry import Entry, Piece, decode, encode, from_plain, pack, to_plain, unpack

Statement: TypeAlias = tuple[str, Sequence[Any]]

SCHEMA_VERSION = 1
_LABEL_MAX = 40  # of a writer's name, which becomes part of file names of at most 255 bytes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes(id INTEGER PRIMARY KEY, name TEXT NOT NULL, entry BLOB);
CREATE TABLE IF NOT EXISTS blocks(cid BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owed(digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments(
  cid BLOB PRIMARY KEY, number INTEGER NOT NULL, digests BLOB NOT NULL, step INTEGER NOT NULL,
  dead_at_s INTEGER, dead_clock BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS commits(cid BLOB PRIMARY KEY, sequence INTEGER NOT NULL, replaced_at_s INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS uploads(
  id TEXT PRIMARY KEY, key TEXT NOT NULL, type TEXT NOT NULL, metadata BLOB NOT NULL, begun_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parts(
  upload TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL, pieces BLOB NOT NULL,
  PRIMARY KEY (upload, number));
"""


@dataclass(slots=True)
class Upload:
    """A multipart upload: parts by number."""

    key: str
    content_type: str
    metadata: Mapping[str, str]
    begun_ns: int
    parts: dict[int, tuple[str, tuple[Piece, ...]]] = field(default_factory=dict)


INTENDED: Final = 0
LOADED: Final = 1
PINNED: Final = 2
"""How far a segment is: it may be in Kubo; it is, pinned; it is in the cluster's pinset as well."""


@dataclass(slots=True)
class Segment:
    """A node of ours that links blocks, and is pinned for them. `dead_at_s`: since when nothing refers to it."""

    cid: Cid
    number: int
    digests: frozenset[bytes]
    step: Literal[0, 1, 2] = INTENDED
    dead_at_s: int | None = None
    dead_clock: Mapping[str, int] = field(default_factory=dict)  # of the state in which it was dead


@dataclass(frozen=True, slots=True)
class OldCommit:
    """A commit of ours that a later one replaced."""

    cid: Cid
    sequence: int
    replaced_at_s: int


@dataclass(frozen=True, slots=True)
class Published:
    """What this writer's register says, or (as an intent) may say. `upto` is the last change in it."""

    sequence: int
    commit: Cid
    tree: Cid
    clock: Mapping[str, int]
    upto: int = 0


@dataclass(slots=True)
class Loaded:
    """What the journal brought back."""

    writer: str
    published: Published | None = None
    intent: Published | None = None
    number: int = 0  # the greatest number of a change that may have been published
    segments_made: int = 0
    segments_proven: int = 0  # up to this number they had the replicas that were asked for
    register_lost: bool = False  # the cluster knows less than was published
    base: Published | None = None  # what the changes were made on top of
    changes: list[tuple[int, str, Entry | Cid | None]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    owed: set[bytes] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)
    commits: list[OldCommit] = field(default_factory=list)
    uploads: dict[str, Upload] = field(default_factory=dict)


class Journal:
    """One open journal. `write` may be called by any number of tasks of one event loop."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._queue: list[Statement] = []
        self._taken = 0  # statements that left the queue
        self._queued = 0
        self._lock = trio.Lock()  # one transaction at a time

    @classmethod
    def open(cls, path: Path, volume: str, node: str) -> tuple[Journal, Loaded]:
        """Open or make it, and load it. Blocks. Raises UsageError with the way out."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
            try:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(_SCHEMA)
                loaded = _load(connection, path, volume, node)
            except BaseException:
                connection.close()
                raise
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UsageError(f"{path}: another s3vol uses this volume's journal; unmount it first") from None
            raise UsageError(f"{path}: {error}; is the directory there and writable?") from None
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path} is damaged ({error}); move it aside to go on as a new writer") from None
        except OSError as error:
            raise UsageError(f"{path.parent}: {error.strerror}; set --cache-dir") from None
        return cls(connection, path), loaded

    def queue(self, *statements: Statement) -> int:
        """Hand over statements; returns a ticket for `written`. Synchronous: the order of calls is the order kept."""
        self._queue += statements
        self._queued += len(statements)
        return self._queued

    async def written(self, ticket: int) -> None:
        """Return when what was queued up to the ticket is on the disk. Raises NoSpace, S3volError.

        Cancelled or not, everything queued is written by whoever comes first: memory and disk do not part.
        """
        with trio.CancelScope(shield=True):
            async with self._lock:
                if self._taken < ticket:
                    await self._flush()
        await trio.lowlevel.checkpoint()

    async def write(self, *statements: Statement) -> None:
        """Queue, and wait until it is on the disk. Raises as `written`."""
        await self.written(self.queue(*statements))

    async def _flush(self) -> None:
        """`_lock` is held. What could not be written stays first in the queue."""
        batch = self._queue
        self._queue = []
        try:
            await trio.to_thread.run_sync(self._commit, batch)
        except BaseException:
            self._queue = batch + self._queue
            raise
        self._taken += len(batch)

    def _commit(self, batch: Sequence[Statement]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in batch:
                    self._connection.execute(sql, values)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            kind = NoSpace if "full" in str(error) else S3volError
            raise kind(f"{self._path}: {error}; the change is kept in memory and written with the next one") from None

    async def aclose(self) -> None:
        """Write what is queued and close."""
        with trio.CancelScope(shield=True):
            try:
                await self.written(self._queued)
            finally:
                async with self._lock:
                    await trio.to_thread.run_sync(self._connection.close)


def new_writer(node: str) -> str:
    """A name that no writer has had: for people, and four random bytes for uniqueness."""
    return f"{re.sub('[^A-Za-z0-9-]', '', node)[:_LABEL_MAX] or 'node'}-{uuid.uuid4().hex[:8]}"


def _load(connection: sqlite3.Connection, path: Path, volume: str, node: str) -> Loaded:
    rows = connection.execute
    facts = {str(name): bytes(value) for name, value in rows("SELECT name, value FROM facts")}
    if not facts:
        facts = {"volume": volume.encode(), "schema": b"%d" % SCHEMA_VERSION, "writer": new_writer(node).encode()}
        connection.execute("BEGIN")  # all or none: a journal without a writer is nobody's
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        connection.execute("COMMIT")
    if facts.get("volume") != volume.encode() or facts.get("schema") != b"%d" % SCHEMA_VERSION:
        raise UsageError(f"{path}: belongs to another volume or another version of s3vol; use another --cache-dir")
    loaded = Loaded(facts["writer"].decode())
    loaded.published = loaded.base = _published(facts.get("published"))
    loaded.intent = _published(facts.get("intent"))
    loaded.number = int(facts.get("number", b"0"))
    loaded.segments_made = int(facts.get("segments", b"0"))
    loaded.segments_proven = int(facts.get("proven", b"0"))
    for id, name, entry in rows("SELECT id, name, entry FROM changes ORDER BY id"):
        loaded.changes.append((id, name, _change(name, entry)))
    loaded.blocks = [Block(known(cid), body) for cid, body in rows("SELECT cid, body FROM blocks")]
    loaded.owed = {bytes(digest) for (digest,) in rows("SELECT digest FROM owed")}
    for cid, number, digests, step, dead, clock in rows("SELECT * FROM segments"):
        loaded.segments.append(Segment(known(cid), number, unpack_digests(digests), step, dead, decode(clock)))
    loaded.commits = [OldCommit(known(cid), *rest) for cid, *rest in rows("SELECT * FROM commits")]
    for id, key, content_type, metadata, begun_ns in rows("SELECT id, key, type, metadata, begun_ns FROM uploads"):
        loaded.uploads[id] = Upload(key, content_type, decode(metadata), begun_ns)
    for upload, number, etag, pieces in rows("SELECT upload, number, etag, pieces FROM parts"):
        loaded.uploads[upload].parts[number] = (etag, tuple(unpack(pieces)))
    return loaded


def _change(name: str, value: bytes | None) -> Entry | Cid | None:
    if value is None:
        return None
    return from_plain(decode(value)) if name else known(value)


def _published(value: bytes | None) -> Published | None:
    if not value:
        return None
    sequence, commit, tree, clock, upto = decode(value)
    return Published(sequence, known(commit), known(tree), clock, upto)


def pack_digests(digests: Iterable[bytes]) -> bytes:
    """Digests as one value of a row."""
    return b"".join(sorted(digests))


def unpack_digests(packed: bytes) -> frozenset[bytes]:
    """The digests of a row."""
    return frozenset(packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES))


def new_identity(writer: str) -> list[Statement]:
    """Go on as another writer: what the old one published is somebody else's."""
    return [
        put_fact("writer", writer.encode()),
        ("DELETE FROM facts WHERE name IN ('published', 'intent', 'segments', 'proven')", ()),
        ("DELETE FROM segments", ()),
        ("DELETE FROM commits", ()),
    ]


# Statements


def put_fact(name: str, value: Published | bytes) -> Statement:
    """Remember a fact."""
    if isinstance(value, Published):
        value = encode([value.sequence, bytes(value.commit), bytes(value.tree), dict(value.clock), value.upto])
    return "INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value)


def put_change(id: int, name: str, entry: Entry | None) -> Statement:
    """Remember a change of a name; None: it was removed."""
    return "INSERT INTO changes VALUES (?, ?, ?)", (id, name, None if entry is None else encode(to_plain(entry)))


def put_merge(id: int, commit: Cid) -> Statement:
    """Remember that a commit was merged between two changes: the later one was made in knowledge of it."""
    return "INSERT INTO changes VALUES (?, '', ?)", (id, commit)


def drop_changes(upto: int) -> Statement:
    """Forget changes that are published."""
    return "DELETE FROM changes WHERE id <= ?", (upto,)


def put_block(block: Block) -> Statement:
    """Keep a block until it is imported."""
    return "INSERT OR IGNORE INTO blocks VALUES (?, ?)", (block.cid, block.body)


def drop_block(cid: Cid) -> Statement:
    """Forget a block that was imported."""
    return "DELETE FROM blocks WHERE cid = ?", (cid,)


def put_owed(digest: bytes) -> Statement:
    """Remember that a block which exists already must be in a segment of ours."""
    return "INSERT OR IGNORE INTO owed VALUES (?)", (digest,)


def drop_owed(digest: bytes) -> Statement:
    """A block is in a segment of ours now."""
    return "DELETE FROM owed WHERE digest = ?", (digest,)


def put_segment(segment: Segment) -> Statement:
    """Remember a segment."""
    digests, clock = pack_digests(segment.digests), encode(dict(segment.dead_clock))
    row = (segment.cid, segment.number, digests, segment.step, segment.dead_at_s, clock)
    return "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)", row


def mark_segment(segment: Segment) -> Statement:
    """Remember how far a segment is, and since when it is dead."""
    values = (segment.step, segment.dead_at_s, encode(dict(segment.dead_clock)), segment.cid)
    return "UPDATE segments SET step = ?, dead_at_s = ?, dead_clock = ? WHERE cid = ?", values


def drop_segment(cid: Cid) -> Statement:
    """Forget a segment that was unpinned."""
    return "DELETE FROM segments WHERE cid = ?", (cid,)


def put_commit(commit: OldCommit) -> Statement:
    """Remember a commit whose pin is to be removed some day."""
    return "INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", (commit.cid, commit.sequence, commit.replaced_at_s)


def drop_commit(cid: Cid) -> Statement:
    """Forget a commit that was unpinned."""
    return "DELETE FROM commits WHERE cid = ?", (cid,)


def put_upload(id: str, upload: Upload) -> Statement:
    """Remember an upload."""
    row = (id, upload.key, upload.content_type, encode(dict(upload.metadata)), upload.begun_ns)
    return "INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", row


def put_part(id: str, number: int, etag: str, pieces: Sequence[Piece]) -> Statement:
    """Remember a part."""
    return "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", (id, number, etag, pack(pieces))


def drop_upload(id: str) -> list[Statement]:
    """Forget an upload and its parts."""
    return [("DELETE FROM parts WHERE upload = ?", (id,)), ("DELETE FROM uploads WHERE id = ?", (id,))]
