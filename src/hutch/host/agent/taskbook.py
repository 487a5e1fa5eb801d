"""What an agent knows of its tasks, for the next agent: one SQLite file for all of them.

A save returns when it is in the kernel's hands: it survives the death of every process, whenever that comes. It is not
fsynced (WAL, synchronous=NORMAL keeps the file whole): what takes the kernel down takes every sandbox with it, and what
the next agent finds then, an older record or a directory without one, says rightly that the sandbox is gone. What was
told to the control plane is durable there. One thread owns the file and writes all saves that wait in one transaction.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from hutch.base.errors import StorageFull
from hutch.base.log import get_logger
from hutch.host.agent.taskfile import FORMAT, TaskFile

log = get_logger(__name__)

MAX_BATCH = 256
_SCHEMA = "CREATE TABLE IF NOT EXISTS tasks (task_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID"


class _Job:
    """A save, or (`body` None) a removal."""

    __slots__ = ("body", "done", "loop", "task_id")

    def __init__(self, task_id: str, body: bytes | None) -> None:
        self.task_id = task_id
        self.body = body
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()


class TaskBook:
    """The tasks of one host, by id. Opened by one agent at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self) -> dict[str, TaskFile]:
        """All tasks that are known. A file that can't be read is put aside and said in the log."""
        try:
            db = self._connect()
            rows = db.execute("SELECT task_id, body FROM tasks").fetchall()
        except sqlite3.OperationalError as error:
            raise StorageFull(f"can't open {self._path}: {error}; free space there") from None
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(".damaged")
            log.error("task file unreadable, put aside", file=str(aside), reason=str(error))
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            db, rows = self._connect(), []
        self._thread = threading.Thread(target=self._run, args=(db,), name="task-book", daemon=True)
        self._thread.start()
        return {task_id: content for task_id, body in rows if (content := _decode(task_id, body)) is not None}

    async def save(self, content: TaskFile) -> None:
        """Keep it, whoever is killed next. Raises `StorageFull`."""
        await self._do(_Job(content.spec.task_id, msgspec.json.encode(content)))

    async def remove(self, task_id: str) -> None:
        """Forget a task; no error if it is not there. Raises `StorageFull`."""
        await self._do(_Job(task_id, None))

    async def close(self) -> None:
        """Wait for what is under way and let go of the file."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def _do(self, job: _Job) -> None:
        if self._thread is None:
            raise StorageFull(f"{self._path} is closed")
        self._jobs.put(job)
        await job.done

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        db.execute("PRAGMA journal_mode=WAL").fetchall()
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_SCHEMA)
        return db

    def _run(self, db: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            batch = [self._jobs.get()]
            while len(batch) < MAX_BATCH and batch[-1] is not None and not self._jobs.empty():
                batch.append(self._jobs.get())
            ended = batch[-1] is None
            self._write(db, [job for job in batch if job is not None])
        db.close()

    def _write(self, db: sqlite3.Connection, jobs: list[_Job]) -> None:
        error: StorageFull | None = None
        try:
            with _transaction(db):
                for job in jobs:
                    if job.body is None:
                        db.execute("DELETE FROM tasks WHERE task_id=?", (job.task_id,))
                    else:
                        db.execute("INSERT OR REPLACE INTO tasks VALUES (?,?)", (job.task_id, job.body))
        except sqlite3.Error as reason:
            error = StorageFull(f"can't write {self._path}: {reason}; free space there")
        for loop in {job.loop for job in jobs}:
            # A loop that was closed meanwhile has nobody waiting any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_answer, [j for j in jobs if j.loop is loop], error)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _answer(jobs: list[_Job], error: StorageFull | None) -> None:
    for job in jobs:
        if job.done.done():
            continue
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)


def _decode(task_id: str, body: bytes) -> TaskFile | None:
    try:
        content = msgspec.json.decode(body, type=TaskFile)
    except msgspec.DecodeError as error:
        log.error("task record unreadable", task=task_id, reason=str(error))
        return None
    if content.format > FORMAT:
        log.error("task record of a newer hutch", task=task_id, format=content.format)
        return None
    return content
