"""What an agent knows of its tasks, for the next agent: one SQLite file for all of them.

A save returns when it is in the kernel's hands: it survives the death of every process, whenever that comes. It is not
fsynced (WAL, synchronous=NORMAL keeps the file whole): what takes the kernel down takes every sandbox with it, and what
the next agent finds then, an older record or a directory without one, says rightly that the sandbox is gone. What was
told to the control plane is durable there.

Without an fsync a save is some 30 microseconds, less than a thread's turn: all saves of one round of the event loop are
one transaction, made right there. Only the checkpoint, which does fsync, has a thread.
"""

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path

import msgspec

from hutch.base.errors import StorageFull
from hutch.base.log import get_logger
from hutch.host.agent.taskfile import FORMAT, TaskFile

log = get_logger(__name__)

CHECKPOINT_AFTER_SAVES = 1_000
_SCHEMA = "CREATE TABLE IF NOT EXISTS tasks (task_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID"


class TaskBook:
    """The tasks of one host, by id. Opened by one agent at a time, used from one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._pending: dict[str, bytes | None] = {}
        """Task ids to what shall be kept of them; None: nothing."""
        self._flushed: asyncio.Future[None] | None = None
        self._saves = 0
        self._checkpoint: asyncio.Task[None] | None = None

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
        self._db = db
        return {task_id: content for task_id, body in rows if (content := _decode(task_id, body)) is not None}

    async def save(self, content: TaskFile) -> None:
        """Keep it, whoever is killed next. Raises `StorageFull`."""
        await self._keep(content.spec.task_id, msgspec.json.encode(content))

    async def remove(self, task_id: str) -> None:
        """Forget a task; no error if it is not there. Raises `StorageFull`."""
        await self._keep(task_id, None)

    async def close(self) -> None:
        """Write what is under way and let go of the file."""
        self._flush()
        if self._checkpoint is not None:
            await self._checkpoint
        db, self._db = self._db, None
        if db is not None:
            db.close()

    async def _keep(self, task_id: str, body: bytes | None) -> None:
        if self._db is None:
            raise StorageFull(f"{self._path} is closed")
        self._pending[task_id] = body
        if self._flushed is None:
            loop = asyncio.get_running_loop()
            self._flushed = loop.create_future()
            loop.call_soon(self._flush)
        await asyncio.shield(self._flushed)

    def _flush(self) -> None:
        flushed, self._flushed = self._flushed, None
        pending, self._pending = self._pending, {}
        if flushed is None or self._db is None:
            return
        try:
            self._write(self._db, pending)
        except sqlite3.Error as error:
            flushed.set_exception(StorageFull(f"can't write {self._path}: {error}; free space there"))
            flushed.exception()  # who waited may have been cancelled
            return
        flushed.set_result(None)
        self._saves += len(pending)
        if self._saves >= CHECKPOINT_AFTER_SAVES and (self._checkpoint is None or self._checkpoint.done()):
            self._saves = 0
            self._checkpoint = asyncio.create_task(asyncio.to_thread(self._do_checkpoint))

    @staticmethod
    def _write(db: sqlite3.Connection, pending: dict[str, bytes | None]) -> None:
        try:
            db.execute("BEGIN IMMEDIATE")
            for task_id, body in pending.items():
                if body is None:
                    db.execute("DELETE FROM tasks WHERE task_id=?", (task_id,))
                else:
                    db.execute("INSERT OR REPLACE INTO tasks VALUES (?,?)", (task_id, body))
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _do_checkpoint(self) -> None:
        """Bring the write-ahead log's content into the file, so that the log can begin anew."""
        try:
            db = self._connect()
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            db.close()
        except sqlite3.Error as error:
            log.warning("task file not checkpointed", file=str(self._path), reason=str(error))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.execute(_SCHEMA)
        return db


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
