"""The journal: SQLite in WAL mode, written by one thread that groups commits.

Theory of operation. A caller hands over statements, which are applied in the order in which they were handed over.
The thread takes everything that has queued up while the last commit ran and commits it as one transaction. A
*durable* job is answered after a commit with synchronous=FULL (the WAL is fsync'ed, with all that was committed
before it); a lazy one is committed with synchronous=NORMAL: it survives the death of the process at once, and a power
failure with the next durable commit. Waiters share a commit, so a hundred callers of fsync cost about one.

When a commit fails (disk full), those who wait get the error and their statements are dropped; statements nobody
waits for are kept and go first in the next transaction, so that the order of what is applied never has holes.

Safe against: SIGKILL at any moment (WAL), power failure (FULL commits, after fdatasync of the data), a torn or
foreign file (UsageError), a damaged record (its check value is wrong: moved to the table `quarantine`, never skipped
silently).

Rejected: SQLite on the event loop (an fsync takes milliseconds), a connection per caller (one writer anyway, and lock
waits), an own log format (recovery code of one's own is where data gets lost).
"""

from __future__ import annotations

import contextlib
import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from s3vol.cache.extents import Range
from s3vol.cache.records import (
    CARRIED,
    OF_CONTENT,
    SCHEMA,
    SCHEMA_VERSION,
    Row,
    Statement,
    carried_check_value,
    check_value,
    drop_content,
    now,
    parse_row,
)
from s3vol.errors import Corrupt, NoSpace, S3volError, UsageError
from s3vol.failpoints import Point, hit

_GROUP_MAX = 2000
_CHECKPOINT_PAGES = 4000  # 16 MiB: much of what is carried is published and gone by then, and is written once


@dataclass(slots=True)
class Loaded:
    """What the journal brought back."""

    cache_id: str = ""
    first_content_id: int = 0
    opened: int = 1  # how often, this time included
    rows: dict[int, Row] = field(default_factory=dict)
    extents: dict[int, list[Range]] = field(default_factory=dict)
    carried: set[int] = field(default_factory=set)  # contents of which the journal has bytes
    clean: dict[int, list[int]] = field(default_factory=dict)
    uploads: list[tuple[str, str]] = field(default_factory=list)  # id, key
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    quarantined: list[int] = field(default_factory=list)  # content ids found bad now
    quarantined_before: int = 0


@dataclass(slots=True)
class _Job:
    statements: Sequence[Statement]
    durable: bool
    done: Callable[[S3volError | None], None] | None  # called in the thread
    number: int = 0  # in the order of handing over


class Journal:
    """One open journal. `commit` and `enqueue` run on the event loop, `open`, `load` and `close` block."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._kept: list[Statement] = []
        self._durable = False
        self._handed = 0  # number of the last job
        self._settled = 0  # all jobs up to this number are committed; written by the thread
        self.failures = 0  # failed transactions; written by the thread
        self._thread = threading.Thread(target=self._run, name="s3vol-journal", daemon=True)

    @classmethod
    def open(cls, path: Path, volume: str, new_cache_id: str, boot: str) -> tuple[Journal, Loaded]:
        """Open or make it, load everything and start the thread. Raises UsageError with the way out."""
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                journal = cls(connection, path)
                loaded = journal._prepare(volume, new_cache_id, boot)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise UsageError(
                f"journal {path} is damaged ({error}); move its directory aside to keep unpublished data, "
                "or use another --cache-dir"
            ) from None
        journal._thread.start()
        return journal, loaded

    # Opening

    def _prepare(self, volume: str, new_cache_id: str, boot: str) -> Loaded:
        run = self._connection.execute
        run("PRAGMA locking_mode=EXCLUSIVE")  # no -shm file; the directory is locked anyway
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        self._durable = True
        if not run("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
            self._create(volume, new_cache_id)
        (verdict,) = run("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(str(verdict).splitlines()[-1])
        meta = dict(run("SELECT name, value FROM meta").fetchall())
        self._check(meta, volume)
        run("BEGIN IMMEDIATE")
        if meta.get("shutdown") != "clean" and (not boot or meta.get("boot") != boot):
            run("DELETE FROM clean")
        if meta["schema"] == "1":
            for statement in CARRIED.split(";"):
                run(statement)
            run("UPDATE meta SET value=? WHERE name='schema'", (str(SCHEMA_VERSION),))
        opened = int(meta.get("opened", "0")) + 1
        run("UPDATE meta SET value=? WHERE name='opened'", (str(opened),))
        run("UPDATE meta SET value=? WHERE name='boot'", (boot,))
        run("UPDATE meta SET value='running' WHERE name='shutdown'")
        loaded = self._load()
        loaded.cache_id = meta["cache"]
        loaded.opened = opened
        loaded.first_content_id = opened << 32  # numbers are never used twice: 4 billion per opening
        run("COMMIT")
        return loaded

    def _create(self, volume: str, cache_id: str) -> None:
        facts = {
            "schema": str(SCHEMA_VERSION), "volume": volume, "cache": cache_id, "opened": "0", "boot": "",
            "shutdown": "clean", "commits": "0",
        }  # fmt: skip
        self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
        self._connection.executemany("INSERT INTO meta VALUES (?,?)", facts.items())
        self._connection.execute("COMMIT")

    def _check(self, meta: Mapping[str, str], volume: str) -> None:
        schema = meta.get("schema", "")
        if not schema.isdecimal() or "cache" not in meta:
            raise sqlite3.DatabaseError("it does not say what it is")
        if int(schema) > SCHEMA_VERSION:
            raise UsageError(
                f"journal {self._path} was written by a newer s3vol (schema {schema}); "
                "upgrade, or use another --cache-dir"
            )
        if meta.get("volume") != volume:
            raise UsageError(
                f"cache of another volume: {self._path.parent} belongs to {meta.get('volume')}, not {volume}; "
                "use another --cache-dir"
            )

    def _load(self) -> Loaded:
        """Everything; records that do not check are moved to `quarantine`, whole contents at a time."""
        run = self._connection.execute
        loaded = Loaded()
        (loaded.quarantined_before,) = run("SELECT count(DISTINCT content) FROM quarantine").fetchone()
        bad: dict[int, str] = {}
        for record in run("SELECT * FROM content").fetchall():
            try:
                loaded.rows[record[0]] = parse_row(record)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                bad[record[0]] = f"content: {error}"
        for content_id, low, high, crc in run("SELECT content, start, stop, crc FROM extent").fetchall():
            if crc != check_value(content_id, low, high) or not 0 <= low < high or content_id not in loaded.rows:
                bad.setdefault(content_id, "extent: wrong check value or no content")
            else:
                loaded.extents.setdefault(content_id, []).append((low, high))
        for content_id, start, data, crc in run("SELECT content, start, bytes, crc FROM carried"):
            if crc != carried_check_value(content_id, start, data) or content_id not in loaded.rows:
                bad.setdefault(content_id, "carried bytes: wrong check value or no content")
            loaded.carried.add(content_id)
        for content_id, reason in bad.items():
            self._quarantine(content_id, reason)
            loaded.rows.pop(content_id, None)
            loaded.extents.pop(content_id, None)
            loaded.quarantined.append(content_id)
        for content_id, chunk in run("SELECT content, chunk FROM clean").fetchall():
            loaded.clean.setdefault(content_id, []).append(chunk)
        loaded.uploads = run("SELECT id, key FROM upload").fetchall()
        for kind, name, value in run("SELECT kind, name, value FROM note").fetchall():
            loaded.notes.setdefault(kind, {})[name] = value
        return loaded

    def _quarantine(self, content_id: int, reason: str) -> None:
        run = self._connection.execute
        record = {
            table: [list(map(repr, row)) for row in run(f"SELECT * FROM {table} WHERE {name}=?", (content_id,))]
            for table, name in OF_CONTENT
        }
        run("INSERT INTO quarantine VALUES (?,?,?,?)", (content_id, reason, json.dumps(record), now()))
        for sql, values in drop_content(content_id):
            run(sql, values)

    def carried(self, content_id: int) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of what is carried for a content, in order of the writes; before the first commit only."""
        yield from self._connection.execute(
            "SELECT start, bytes FROM carried WHERE content=? ORDER BY id", (content_id,)
        )

    # Writing

    def enqueue(self, statements: Sequence[Statement]) -> None:
        """Apply these after all that was handed over before, soon. No await; failures are retried and counted."""
        if statements:
            self._put(_Job(statements, False, None))

    def _put(self, job: _Job) -> None:
        self._handed += 1
        job.number = self._handed
        self._jobs.put(job)

    async def commit(self, statements: Sequence[Statement], *, durable: bool) -> None:
        """Apply these; return when they survive a SIGKILL or, `durable`, a power failure.

        Raises NoSpace, Corrupt. Cancelled: the statements are applied all the same.
        """
        ended = trio.Event()
        failure: list[S3volError] = []
        token = trio.lowlevel.current_trio_token()

        def wake(error: S3volError | None) -> None:
            if error is not None:
                failure.append(error)
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left to be told
                token.run_sync_soon(ended.set)

        self._put(_Job(statements, durable, wake))
        await ended.wait()
        if failure:
            raise failure[0]

    async def settle(self) -> None:
        """Return when all that was handed over survives a SIGKILL: at once when it does. Raises like `commit`."""
        if self._settled < self._handed:
            await self.commit([], durable=False)

    def close(self, *, clean: bool) -> None:
        """Commit what is queued, say that the data is on the disk (`clean`), and stop the thread. Blocking.

        Raises NoSpace, Corrupt when the last commit failed.
        """
        failure: list[S3volError | None] = []
        last: list[Statement] = [("UPDATE meta SET value='clean' WHERE name='shutdown'", ())] if clean else []
        self._put(_Job(last, True, failure.append))
        self._jobs.put(None)
        self._thread.join()
        self._connection.close()
        for error in failure:
            if error is not None:
                raise error

    def _run(self) -> None:
        while True:
            first = self._jobs.get()
            if first is None:
                return
            group, stop = [first], False
            while len(group) < _GROUP_MAX and not stop:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    stop = True
                else:
                    group.append(job)
            self._commit(group)
            if stop:
                return

    def _commit(self, group: list[_Job]) -> None:
        durable = any(job.durable for job in group)
        error: S3volError | None = None
        try:
            self._transact(group, durable)
            self._kept.clear()
            self._settled = group[-1].number
        except sqlite3.Error as failure:
            error = _translate(failure, self._path)
            self.failures += 1
            with contextlib.suppress(sqlite3.Error):  # there may be no transaction to roll back
                self._connection.execute("ROLLBACK")
            for job in group:
                if job.done is None:
                    self._kept.extend(job.statements)
        for job in group:
            if job.done is not None:
                job.done(error)

    def _transact(self, group: list[_Job], durable: bool) -> None:
        run = self._connection.execute
        if durable != self._durable:
            run(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        run("BEGIN IMMEDIATE")
        for sql, values in self._kept:
            run(sql, values)
        for job in group:
            for sql, values in job.statements:
                run(sql, values)
        if durable:  # a transaction that changes nothing would not fsync what was committed lazily before
            run("UPDATE meta SET value=CAST(value AS INTEGER)+1 WHERE name='commits'")
        hit(Point.JOURNAL_BEFORE_COMMIT)
        run("COMMIT")


def _translate(error: sqlite3.Error, path: Path) -> S3volError:
    if "full" in str(error):  # SQLITE_FULL: "database or disk is full"
        return NoSpace(f"journal {path}: {error}")
    return Corrupt(f"journal {path}: {error}")
