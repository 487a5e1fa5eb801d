"""The file of the log events: its format, its connections, and what its errors mean.

One connection writes, on a thread of its own (`log_writer`); another reads.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hutch.base.errors import HutchError, StorageFull, Unavailable
from hutch.store.log_writer import LogWriter

SCHEMA_VERSION = 2
T = TypeVar("T")
_SCHEMA = """
CREATE TABLE log_groups (name TEXT PRIMARY KEY, created_ms INTEGER NOT NULL, retention_days INTEGER,
                         class TEXT NOT NULL, tags TEXT NOT NULL, bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE streams (id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, name TEXT NOT NULL,
                      created_ms INTEGER NOT NULL, first_ms INTEGER, last_ms INTEGER, ingested_ms INTEGER,
                      UNIQUE (grp, name));
CREATE TABLE events (stream INTEGER NOT NULL, ts INTEGER NOT NULL, seq INTEGER NOT NULL, ingested_ms INTEGER NOT NULL,
                     message TEXT NOT NULL, PRIMARY KEY (stream, ts, seq)) WITHOUT ROWID;
"""
_FROM_1_TO_2 = "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"


class LogFile:
    """Opened and closed by its owner. Reads never wait for writes."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._writer: LogWriter | None = None

    async def open(self) -> int:
        """Make the file, or bring it to the newest format; the last sequence number that was given to an event. Raises
        `Unavailable` if it is damaged or of a newer release, `StorageFull` if it can't be written."""
        try:
            db = self._connect()
            self._migrate(db)
            counter = db.execute("SELECT value FROM counters WHERE name='seq'").fetchone()
            self._db = self._connect()
        except sqlite3.Error as error:
            raise self._storage_error(error) from None
        self._writer = LogWriter(db, self._storage_error)
        return int(counter[0])

    async def close(self) -> None:
        """Once what waits to be written is durable."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()
        if self._db is not None:
            self._db.close()
            self._db = None

    def read(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        """The rows of one query. Raises as `snapshot`."""
        with self.snapshot() as db:
            return db.execute(sql, parameters).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """The reading connection; what it sees does not change meanwhile. Raises `Unavailable` if the file is closed or
        damaged."""
        if self._db is None:
            raise Unavailable("the log store is closed")
        db = self._db
        try:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._storage_error(error) from None

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job on the writing connection (again, if a commit that it shared fails); its result, after it is durable."""
        if self._writer is None:
            raise Unavailable("the log store is closed")
        result: T = await self._writer.write(work)
        return result

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-8000", "busy_timeout=10000"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        Path(self._path).chmod(0o600)
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise Unavailable(f"{self._path} was written by a newer hutch (format {found}); run that version")
        if found == SCHEMA_VERSION:
            return
        newest = db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0] if found else 0
        db.executescript(
            f"BEGIN; {'' if found else _SCHEMA} {_FROM_1_TO_2} INSERT INTO counters VALUES ('seq', {newest:d}); "
            f"PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )

    def _storage_error(self, error: sqlite3.Error) -> HutchError:
        text = str(error)
        if "malformed" in text or "not a database" in text:
            return Unavailable(
                f"{self._path} is damaged ({text}): move it away to begin with empty logs, or restore a copy"
            )
        return StorageFull(f"can't write {self._path}: {text}; free space on that file system")
