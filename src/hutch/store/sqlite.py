"""The store in one SQLite file: what a single host uses.

One thread owns the writing connection. It drains a queue of units of work, runs each in a savepoint, and commits them
together with one fsync (WAL, synchronous=FULL): the answer to each comes after that. Reads use a connection of their
own, in the caller's thread, on a snapshot. See docs/adr/0002.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from hutch.base.errors import HutchError, StaleWrite, StorageFull, Unavailable
from hutch.base.log import get_logger
from hutch.model.record import Cause, Record
from hutch.store.contract import Change, IndexKey, Reader, Table, Tx
from hutch.store.feed import FeedSignal
from hutch.store.keys import after_prefix, decode_key, encode_key
from hutch.store.lockfile import LockFile
from hutch.store.tables import ALL_TABLES

log = get_logger(__name__)

R = TypeVar("R", bound=Record)
T = TypeVar("T")

SCHEMA_VERSION = 1
MAX_BATCH = 128
FEED_LENGTH = 100_000
_TRIM_EVERY = 2_000

_SCHEMA = """
CREATE TABLE records (tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
                      PRIMARY KEY (tbl, key)) WITHOUT ROWID;
CREATE TABLE entries (idx TEXT NOT NULL, ordering TEXT NOT NULL, key TEXT NOT NULL,
                      PRIMARY KEY (idx, ordering)) WITHOUT ROWID;
CREATE TABLE changes (seq INTEGER PRIMARY KEY, tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
                      cause BLOB NOT NULL);
"""

_encode = msgspec.msgpack.Encoder().encode
MAX_KEPT_RECORDS = 256
"""Decoded records kept for each table that is read mostly, found again by their bytes (records are frozen)."""


def _decoder(table: Table[Any]) -> Callable[[bytes], Any]:
    decode = msgspec.msgpack.Decoder(table.record_type).decode
    return lru_cache(MAX_KEPT_RECORDS)(decode) if table.read_mostly else decode


_decoders = {t.name: _decoder(t) for t in ALL_TABLES}
_decode_cause = msgspec.msgpack.Decoder(Cause).decode


class _Handle:
    """Reads and writes on one connection; the transaction around it is its maker's."""

    def __init__(self, db: sqlite3.Connection, cause: Cause | None = None) -> None:
        self._db = db
        self._cause = cause
        self._cause_bytes = _encode(cause) if cause else b""
        self.changes: list[Change] = []

    def get(self, table: Table[R], *key: str) -> R | None:
        row = self._db.execute(
            "SELECT body FROM records WHERE tbl=? AND key=?", (table.name, encode_key(key))
        ).fetchone()
        return _decoders[table.name](row[0]) if row else None

    def scan(
        self,
        table: Table[R],
        *prefix: str,
        index: str | None = None,
        after: IndexKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        low, high = encode_key(prefix), after_prefix(encode_key(prefix))
        low_is_open = False
        if after is not None and reverse:
            high = min(high, encode_key(after))
        elif after is not None and encode_key(after) >= low:
            low, low_is_open = encode_key(after), True
        compare, order = (">" if low_is_open else ">="), ("DESC" if reverse else "ASC")
        if index is None:
            sql = f"SELECT body FROM records WHERE tbl=? AND key{compare}? AND key<? ORDER BY key {order} LIMIT ?"
            parameters: tuple[Any, ...] = (table.name, low, high, -1 if limit is None else limit)
        else:
            sql = (
                f"SELECT r.body FROM entries e JOIN records r ON r.tbl=? AND r.key=e.key WHERE e.idx=? AND "
                f"e.ordering{compare}? AND e.ordering<? ORDER BY e.ordering {order} LIMIT ?"
            )
            parameters = (
                table.name,
                _index_name(table, index),
                low,
                high,
                -1 if limit is None else limit,
            )
        decode = _decoders[table.name]
        return [decode(row[0]) for row in self._db.execute(sql, parameters)]

    def count(
        self, table: Table[R], *prefix: str, index: str | None = None, before: IndexKey | None = None
    ) -> int:
        low = encode_key(prefix)
        high = after_prefix(low) if before is None else min(after_prefix(low), encode_key(before))
        if index is None:
            sql, name = "SELECT count(*) FROM records WHERE tbl=? AND key>=? AND key<?", table.name
        else:
            sql, name = (
                "SELECT count(*) FROM entries WHERE idx=? AND ordering>=? AND ordering<?",
                _index_name(table, index),
            )
        return int(self._db.execute(sql, (name, low, high)).fetchone()[0])

    def put(self, table: Table[R], record: R) -> R:
        key = table.key(record)
        primary = encode_key(key)
        row = self._db.execute(
            "SELECT version, body FROM records WHERE tbl=? AND key=?", (table.name, primary)
        ).fetchone()
        if (row[0] if row else 0) != record.version:
            raise StaleWrite(f"{table.name} {'/'.join(key)} changed since it was read")
        fresh = replace(record, version=record.version + 1)
        before = _decoders[table.name](row[1]) if row and table.indexes else None
        self._db.execute(
            "INSERT OR REPLACE INTO records VALUES (?,?,?,?)",
            (table.name, primary, fresh.version, _encode(fresh)),
        )
        self._reindex(table, primary, before, fresh)
        self._note(table.name, key, primary, fresh.version)
        return fresh

    def delete(self, table: Table[R], *key: str) -> bool:
        before = self.get(table, *key)
        if before is None:
            return False
        primary = encode_key(key)
        self._db.execute("DELETE FROM records WHERE tbl=? AND key=?", (table.name, primary))
        self._reindex(table, primary, before, None)
        self._note(table.name, key, primary, 0)
        return True

    def _reindex(self, table: Table[R], primary: str, before: R | None, now: R | None) -> None:
        for name, key_of in table.indexes.items():
            old = key_of(before) if before is not None else None
            new = key_of(now) if now is not None else None
            if old == new:
                continue
            idx = _index_name(table, name)
            if old is not None:
                self._db.execute(
                    "DELETE FROM entries WHERE idx=? AND ordering=?", (idx, encode_key(old) + primary)
                )
            if new is not None:
                self._db.execute(
                    "INSERT INTO entries VALUES (?,?,?)", (idx, encode_key(new) + primary, primary)
                )

    def _note(self, table: str, key: IndexKey, primary: str, version: int) -> None:
        assert self._cause is not None
        cursor = self._db.execute(
            "INSERT INTO changes (tbl, key, version, cause) VALUES (?,?,?,?)",
            (table, primary, version, self._cause_bytes),
        )
        seq = cursor.lastrowid or 0
        self.changes.append(Change(seq=seq, table=table, key=key, version=version, cause=self._cause))


def _index_name(table: Table[Any], index: str) -> str:
    return f"{table.name}.{index}"


class _Job:
    """A unit of work on its way through the writer thread."""

    __slots__ = ("cause", "changes", "error", "future", "loop", "result", "work")

    def __init__(self, cause: Cause, work: Callable[[Tx], Any]) -> None:
        self.cause = cause
        self.changes: list[Change] = []
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None


class SqliteStore:
    """`hutch.store.contract.Store` in a SQLite file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = LockFile(path.with_name(path.name + ".lock"), f"the data in {path.parent}")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._signal = FeedSignal()
        self._reader: sqlite3.Connection | None = None
        self._writes_since_trim = 0

    async def open(self) -> None:
        self._lock.acquire()
        try:
            db = self._connect()
            self._migrate(db)
            newest = db.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()[0]
            self._reader = self._connect()
        except sqlite3.Error as error:
            self._lock.release()
            raise _storage_error(error, self._path) from None
        except HutchError:
            self._lock.release()
            raise
        self._signal.advance(newest)
        self._thread = threading.Thread(target=self._write_loop, args=(db,), name="store-writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)
            self._refuse_late_jobs()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._lock.release()

    async def write(self, cause: Cause, work: Callable[[Tx], T]) -> T:
        if self._thread is None:
            raise Unavailable("the store is closed")
        job = _Job(cause, work)
        self._jobs.put(job)
        result: T = await job.future
        return result

    @contextmanager
    def read(self) -> Iterator[Reader]:
        if self._reader is None:
            raise Unavailable("the store is closed")
        nested = self._reader.in_transaction
        try:
            if not nested:
                self._reader.execute("BEGIN")
            yield _Handle(self._reader)
        except sqlite3.Error as error:
            raise _storage_error(error, self._path) from None
        finally:
            if not nested:
                self._reader.execute("COMMIT")

    def last_seq(self) -> int:
        return self._signal.newest

    def changes(self, after: int, limit: int = 1000) -> Sequence[Change] | None:
        if self._reader is None:
            raise Unavailable("the store is closed")
        recent = self._signal.recent(after, limit)
        if recent is not None:
            return recent
        rows = self._reader.execute(
            "SELECT seq, tbl, key, version, cause FROM changes WHERE seq>? ORDER BY seq LIMIT ?",
            (after, limit),
        ).fetchall()
        if after < self._signal.newest and (not rows or rows[0][0] != after + 1):
            return None
        return [
            Change(seq=s, table=t, key=decode_key(k), version=v, cause=_decode_cause(c))
            for s, t, k, v, c in rows
        ]

    async def wait_for_change(self, after: int) -> int:
        return await self._signal.wait_beyond(after)

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "wal_autocheckpoint=4000",
                "busy_timeout=10000",
                "cache_size=-16000",
            ):
                db.execute(f"PRAGMA {pragma}").fetchall()
        except sqlite3.Error as error:
            raise _storage_error(error, self._path) from None
        self._path.chmod(0o600)
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise Unavailable(
                f"{self._path} was written by a newer hutch (format {found}, this one reads up to "
                f"{SCHEMA_VERSION}); run that version, or choose another --data-dir"
            )
        if found == 0:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    def _write_loop(self, db: sqlite3.Connection) -> None:
        while True:
            first = self._jobs.get()
            if first is None:
                break
            batch, ended = [first], False
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    ended = True
                    break
                batch.append(job)
            self._run_batch(db, batch)
            if ended:
                break
        with suppress(sqlite3.Error):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    def _refuse_late_jobs(self) -> None:
        """Answer what another thread queued while the writer ended."""
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.error = Unavailable("the store is closed")
                    with suppress(RuntimeError):
                        job.loop.call_soon_threadsafe(self._answer, [job], 0)

    def _run_batch(self, db: sqlite3.Connection, batch: list[_Job]) -> None:
        """One commit for all; if that can't be had, one for each, so that only the guilty fail. Then the answers."""
        try:
            newest = self._commit(db, batch)
        except sqlite3.Error as error:
            newest = 0
            if len(batch) > 1:
                for job in batch:
                    job.error = None
                    job.changes = []
                    self._run_batch(db, [job])
                return
            batch[0].error = _storage_error(error, self._path)
        for loop in {job.loop for job in batch}:
            # A loop that was closed meanwhile has nobody waiting any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._answer, [j for j in batch if j.loop is loop], newest)

    def _commit(self, db: sqlite3.Connection, batch: list[_Job]) -> int:
        """Each job in a savepoint of one transaction; the newest change after it (0: none). All or nothing."""
        changed, newest = 0, 0
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in batch:
                changed += self._run_job(db, job)
                if job.changes:
                    newest = job.changes[-1].seq
            self._trim(db, changed)
            db.execute("COMMIT")
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        return newest

    def _run_job(self, db: sqlite3.Connection, job: _Job) -> int:
        handle = _Handle(db, job.cause)
        db.execute("SAVEPOINT job")
        try:
            job.result = job.work(handle)
        except BaseException as error:  # whatever a unit of work raises belongs to its caller
            if not db.in_transaction:
                # SQLite itself took the transaction back (disk full, I/O error): the others must run again.
                raise sqlite3.OperationalError(str(error)) from error
            job.error = _storage_error(error, self._path) if isinstance(error, sqlite3.Error) else error
            db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
            return 0
        db.execute("RELEASE job")
        job.changes = handle.changes
        return len(handle.changes)

    def _trim(self, db: sqlite3.Connection, changed: int) -> None:
        self._writes_since_trim += changed
        if self._writes_since_trim >= _TRIM_EVERY:
            self._writes_since_trim = 0
            db.execute("DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?", (FEED_LENGTH,))

    def _answer(self, jobs: list[_Job], newest: int) -> None:
        self._signal.advance(newest, [c for job in jobs for c in job.changes])
        for job in jobs:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)


def _storage_error(error: sqlite3.Error, path: Path) -> HutchError:
    text = str(error)
    if "full" in text or "readonly" in text or "unable to open" in text or "disk I/O" in text:
        return StorageFull(
            f"can't write {path}: {text}; free space on that file system or mount it read-write"
        )
    return Unavailable(f"{path}: {text}")
