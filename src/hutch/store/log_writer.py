"""The thread that writes log events: it takes what waits, runs each job in a savepoint, makes all durable with one fsync.

Readers have a connection of their own (WAL), so neither the fsync nor a long deletion ever holds them up.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hutch.base.errors import HutchError, Unavailable

MAX_BATCH = 256
Work = Callable[[sqlite3.Connection], Any]


class _Job:
    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None


class LogWriter:
    """Owns the writing connection. `storage_error` says what an SQLite error means to a caller."""

    def __init__(self, db: sqlite3.Connection, storage_error: Callable[[sqlite3.Error], HutchError]) -> None:
        self._db = db
        self._storage_error = storage_error
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    async def write(self, work: Work) -> Any:
        """Run a job (which may be run again, if its group's commit fails); its result, after it is durable."""
        if self._closed:
            raise Unavailable("the log store is closed")
        job = _Job(work)
        self._jobs.put(job)
        return await job.future

    async def close(self) -> None:
        """Write what waits, then end."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        with suppress(queue.Empty):
            while True:
                late = self._jobs.get_nowait()
                if late is not None:
                    late.error = Unavailable("the log store is closed")
                    self._answer([late])

    def _run(self) -> None:
        ended = False
        while not ended and (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    ended = True
                    break
                batch.append(more)
            self._run_batch(batch)
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    def _run_batch(self, batch: list[_Job]) -> None:
        """One commit for all; if that can't be had, one for each, so that only the guilty fail. Then the answers."""
        try:
            self._commit(batch)
        except sqlite3.Error as error:
            if len(batch) > 1:
                for job in batch:
                    job.error = None
                    self._run_batch([job])
                return
            batch[0].error = self._storage_error(error)
        self._answer(batch)

    def _commit(self, batch: list[_Job]) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in batch:
                db.execute("SAVEPOINT job")
                try:
                    job.result = job.work(db)
                except BaseException as error:  # whatever a job raises belongs to its caller
                    if not db.in_transaction:
                        # SQLite itself took the transaction back (disk full): the others must run again.
                        raise sqlite3.OperationalError(str(error)) from error
                    job.error = self._storage_error(error) if isinstance(error, sqlite3.Error) else error
                    db.execute("ROLLBACK TO job")
                db.execute("RELEASE job")
            db.execute("COMMIT")
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _answer(self, batch: list[_Job]) -> None:
        for loop in {j.loop for j in batch}:
            # A loop that was closed meanwhile has nobody waiting any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_results, [j for j in batch if j.loop is loop])


def _set_results(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
