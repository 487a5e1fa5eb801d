"""The store in one SQLite file: what a single host uses.

One thread owns the writing connection. It drains a queue of units of work, gathers what they write, and commits it
together with one fsync (WAL, synchronous=FULL): the answer to each comes after that. Reads use a connection of their
own, in the caller's thread, on a snapshot. See docs/adr/0002 and 0023.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hutch.base.errors import HutchError, StorageFull, Unavailable
from hutch.base.log import get_logger
from hutch.model.record import Cause, Record
from hutch.store.checkpointer import Checkpointer
from hutch.store.contract import Change, Reader, Tx
from hutch.store.feed import FeedSignal
from hutch.store.keys import decode_key
from hutch.store.lockfile import LockFile
from hutch.store.sqlite_batch import Batch
from hutch.store.sqlite_handle import Kept, ReadHandle, WriteHandle
from hutch.store.sqlite_schema import migrate

log = get_logger(__name__)

R = TypeVar("R", bound=Record)
T = TypeVar("T")

MAX_BATCH = 128
FEED_LENGTH = 100_000
_TRIM_EVERY = 2_000

_decode_cause = msgspec.msgpack.Decoder(Cause).decode


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
        self._kept = Kept(next_rid=1)
        self._newest = 0
        """The writer's own count of changes."""
        self._checkpointer: Checkpointer | None = None

    async def open(self) -> None:
        self._lock.acquire()
        try:
            db = self._connect()
            migrate(db, self._path)
            self._newest = db.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()[0]
            self._kept = Kept(1 + db.execute("SELECT coalesce(max(rid), 0) FROM records").fetchone()[0])
            self._reader = self._connect()
        except sqlite3.Error as error:
            self._lock.release()
            raise _storage_error(error, self._path) from None
        except HutchError:
            self._lock.release()
            raise
        self._signal.advance(self._newest)
        self._checkpointer = Checkpointer(self._connect)
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
            yield ReadHandle(self._reader)
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
            "SELECT seq, tbl, key, version, cause, note FROM changes WHERE seq>? ORDER BY seq LIMIT ?",
            (after, limit),
        ).fetchall()
        if after < self._signal.newest and (not rows or rows[0][0] != after + 1):
            return None
        return [
            Change(seq=s, table=t, key=decode_key(k), version=v, cause=_decode_cause(c), note=n or b"")
            for s, t, k, v, c, n in rows
        ]

    async def wait_for_change(self, after: int, tables: Set[str] | None = None) -> int:
        return await self._signal.wait_beyond(after, tables)

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "wal_autocheckpoint=0",
                "busy_timeout=10000",
                # Each commit looks through all of it.
                "cache_size=-8000",
            ):
                db.execute(f"PRAGMA {pragma}").fetchall()
        except sqlite3.Error as error:
            raise _storage_error(error, self._path) from None
        self._path.chmod(0o600)
        return db

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
        if self._checkpointer is not None:
            self._checkpointer.close()
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
        except Exception as error:  # noqa: BLE001 (a record that can't be encoded, for one: this thread must live on)
            newest = 0
            if len(batch) > 1:
                for job in batch:
                    job.error = None
                    job.changes = []
                    self._run_batch(db, [job])
                return
            batch[0].error = _storage_error(error, self._path) if isinstance(error, sqlite3.Error) else error
        for loop in {job.loop for job in batch}:
            # A loop that was closed meanwhile has nobody waiting any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._answer, [j for j in batch if j.loop is loop], newest)

    def _commit(self, db: sqlite3.Connection, jobs: list[_Job]) -> int:
        """All jobs in one transaction; the newest change after it (0: none). All or nothing."""
        before, batch = self._newest, Batch()
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                self._run_job(db, job, batch)
            batch.flush(db)
            self._trim(db, self._newest - before, len(batch.rows))
            db.execute("COMMIT")
        except Exception:
            self._newest = before
            self._kept.clear()
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self._kept.take(batch.rows)
        return self._newest if self._newest > before else 0

    def _run_job(self, db: sqlite3.Connection, job: _Job, batch: Batch) -> None:
        handle = WriteHandle(db, batch, self._kept)
        try:
            job.result = job.work(handle)
        except BaseException as error:  # whatever a unit of work raises belongs to its caller
            if not db.in_transaction:
                # SQLite itself took the transaction back (disk full, I/O error): the others must run again.
                raise sqlite3.OperationalError(str(error)) from error
            job.error = _storage_error(error, self._path) if isinstance(error, sqlite3.Error) else error
            if handle.told:
                self._kept.clear()
                db.execute("ROLLBACK TO job")
                db.execute("RELEASE job")
            return
        if handle.told:
            db.execute("RELEASE job")
        job.changes = batch.take(handle.work, handle.changes, job.cause, self._newest)
        self._newest += len(job.changes)

    def _trim(self, db: sqlite3.Connection, changed: int, written: int) -> None:
        """`changed`: entries of the feed; `written`: records, also those of tables that nobody follows."""
        if self._checkpointer is not None:
            self._checkpointer.changed(written)
        self._writes_since_trim += changed
        if self._writes_since_trim >= _TRIM_EVERY:
            self._writes_since_trim = 0
            db.execute("DELETE FROM changes WHERE seq <= ?", (self._newest - FEED_LENGTH,))

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
    if "malformed" in text or "not a database" in text:
        return Unavailable(
            f"{path} is damaged ({text}): restore a copy of it, or choose another place with --data-dir"
        )
    return Unavailable(f"{path}: {text}")
