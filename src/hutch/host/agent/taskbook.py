"""What an agent knows of its tasks, for the next agent: one SQLite file for all of them.

A save returns when it is in the kernel's hands: it survives the death of every process, whenever that comes. It is not
fsynced (WAL, synchronous=NORMAL keeps the file whole): what takes the kernel down takes every sandbox with it, and what
the next agent finds then, an older record or a directory without one, says rightly that the sandbox is gone. What was
told to the control plane is durable there.

Without an fsync a save is some 30 microseconds, less than a thread's turn: all saves of one round of the event loop, or
of a few milliseconds when there are many, are one transaction, made right there. Only the checkpoint, which does fsync,
has a thread.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from hutch.base.errors import StorageFull
from hutch.base.log import get_logger
from hutch.host.agent.taskfile import FORMAT, TaskFile, TaskState
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)

CHECKPOINT_AFTER_SAVES = 1_000
MAX_LOG_PAGES = 8_000
"""Beyond it (32 MB) saves are held up for a moment, so that the write-ahead log can begin anew."""
MIN_INTERVAL_S = 0.004
"""Between two transactions: saves that come sooner wait, and share one."""
FILE_FORMAT = 1
_SCHEMA = """
CREATE TABLE specs (number INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE states (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
"""A task's specification is written once, its state again and again: small, and beside those of its neighbours."""


class _Pending(NamedTuple):
    """What is to be done for a task with the next transaction: keep what `content` gives, or (None) forget it."""

    content: Callable[[], TaskFile | None] | None
    done: asyncio.Future[None]


class _Bodies(NamedTuple):
    """A task's two rows; without a specification if that is in the file already."""

    spec: bytes
    state: bytes


class TaskBook:
    """The tasks of one host, by id. Opened by one agent at a time, used from one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._pending: dict[str, _Pending] = {}
        self._flushed_at = 0.0
        self._saves = 0
        self._checkpoint: asyncio.Task[None] | None = None

    def open(self) -> dict[str, TaskFile]:
        """All tasks that are known. A file that can't be read is put aside and said in the log."""
        try:
            db = self._connect()
            rows = db.execute(
                "SELECT task_id, specs.number, specs.body, states.body FROM specs JOIN states USING (number)"
            ).fetchall()
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
        self._next_number = 1 + max((number for _, number, _, _ in rows), default=0)
        found = {t: content for t, _, *bodies in rows if (content := _decode(t, *bodies)) is not None}
        self._numbers = {task_id: number for task_id, number, _, _ in rows if task_id in found}
        return found

    def save(self, task_id: str, content: Callable[[], TaskFile | None]) -> asyncio.Future[None]:
        """Keep what `content` gives when its turn comes (none: nothing new), whoever is killed next, and whether or not it is
        waited for. Saves of a task that come before that are one. The future, which they share, raises `StorageFull`."""
        return self._keep(task_id, content)

    def remove(self, task_id: str) -> asyncio.Future[None]:
        """Forget a task, as `save`; no error if it is not there."""
        return self._keep(task_id, None)

    async def close(self) -> None:
        """Write what is under way and let go of the file."""
        self._flush()
        if self._checkpoint is not None:
            await self._checkpoint
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _keep(self, task_id: str, content: Callable[[], TaskFile | None] | None) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if self._db is None:
            refused: asyncio.Future[None] = loop.create_future()
            refused.set_exception(StorageFull(f"{self._path} is closed"))
            return refused
        if not self._pending:
            loop.call_at(self._flushed_at + MIN_INTERVAL_S, self._flush)
        known = self._pending.get(task_id)
        done = known.done if known is not None else loop.create_future()
        self._pending[task_id] = _Pending(content, done)
        return done

    def _flush(self) -> None:
        self._flushed_at = asyncio.get_running_loop().time()
        pending, self._pending = self._pending, {}
        if not pending or self._db is None:
            return
        gone = [task_id for task_id, p in pending.items() if p.content is None]
        there, refusals = _compose(pending, self._numbers)
        try:
            self._write(self._db, there, gone)
        except sqlite3.Error as error:
            refusal = StorageFull(f"can't write {self._path}: {error}; free space there")
            refusals = dict.fromkeys(pending, refusal)
        for task_id, each in pending.items():
            if each.done.done():
                continue  # given up meanwhile
            if (why := refusals.get(task_id)) is None:
                each.done.set_result(None)
            else:
                each.done.set_exception(why)
        self._saves += len(pending)
        if self._saves >= CHECKPOINT_AFTER_SAVES and (self._checkpoint is None or self._checkpoint.done()):
            self._saves = 0
            self._checkpoint = asyncio.create_task(asyncio.to_thread(self._do_checkpoint))

    def _write(self, db: sqlite3.Connection, there: dict[str, _Bodies], gone: list[str]) -> None:
        """All or nothing."""
        numbers, next_number = dict[str, int](), self._next_number
        try:
            db.execute("BEGIN IMMEDIATE")
            for task_id, (spec, state) in there.items():
                number = self._numbers.get(task_id)
                if number is None:
                    number = numbers[task_id] = next_number
                    next_number += 1
                    db.execute("INSERT OR REPLACE INTO specs VALUES (?,?,?)", (number, task_id, spec))
                db.execute("INSERT OR REPLACE INTO states VALUES (?,?)", (number, state))
            for number in (self._numbers.get(task_id) for task_id in gone):
                db.execute("DELETE FROM specs WHERE number=?", (number,))
                db.execute("DELETE FROM states WHERE number=?", (number,))
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self._numbers |= numbers
        self._next_number = next_number
        for task_id in gone:
            self._numbers.pop(task_id, None)

    def _do_checkpoint(self) -> None:
        """Bring the write-ahead log's content into the file, so that the log can begin anew."""
        try:
            db = self._connect()
            _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > MAX_LOG_PAGES:
                db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            db.close()
        except sqlite3.Error as error:
            log.warning("task file not checkpointed", file=str(self._path), reason=str(error))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        _migrate(db)
        return db


def _compose(
    pending: dict[str, _Pending], known: Container[str]
) -> tuple[dict[str, _Bodies], dict[str, StorageFull]]:
    """What is to be written, and why what can't be put in writing is not: that task's fault, not its neighbours'. `known`:
    tasks whose specification is in the file."""
    there, refusals = dict[str, _Bodies](), dict[str, StorageFull]()
    for task_id, each in pending.items():
        try:
            if each.content is not None and (content := each.content()) is not None:
                spec = b"" if task_id in known else msgspec.json.encode(content.spec)
                there[task_id] = _Bodies(spec, msgspec.json.encode(content.state()))
        except Exception as error:
            log.exception("task's state can't be put in writing", task=task_id)
            refusals[task_id] = StorageFull(f"what is known of task {task_id} can't be kept: {error!r}")
    return there, refusals


def _migrate(db: sqlite3.Connection) -> None:
    """Make the tables; what an earlier hutch kept, a document for each task, is taken over."""
    if db.execute("PRAGMA user_version").fetchone()[0] >= FILE_FORMAT:
        return
    db.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    if db.execute("SELECT 1 FROM sqlite_master WHERE name='tasks'").fetchone():
        rows = db.execute("SELECT task_id, body FROM tasks").fetchall()
        for number, (task_id, body) in enumerate(_readable(rows), 1):
            db.execute("INSERT INTO specs VALUES (?,?,?)", (number, task_id, msgspec.json.encode(body.spec)))
            db.execute("INSERT INTO states VALUES (?,?)", (number, msgspec.json.encode(body.state())))
        db.execute("DROP TABLE tasks")
    db.execute(f"PRAGMA user_version={FILE_FORMAT}")
    db.execute("COMMIT")


def _readable(rows: list[tuple[str, bytes]]) -> Iterator[tuple[str, TaskFile]]:
    for task_id, body in rows:
        try:
            yield task_id, msgspec.json.decode(body, type=TaskFile)
        except msgspec.DecodeError as error:
            log.error("task record unreadable", task=task_id, reason=str(error))


def _decode(task_id: str, spec: bytes, state: bytes) -> TaskFile | None:
    try:
        found = msgspec.json.decode(state, type=TaskState)
        whole = msgspec.structs.asdict(found) | {"spec": msgspec.json.decode(spec, type=TaskSpec)}
    except msgspec.DecodeError as error:
        log.error("task record unreadable", task=task_id, reason=str(error))
        return None
    if found.format > FORMAT:
        log.error("task record of a newer hutch", task=task_id, format=found.format)
        return None
    return TaskFile(**whole)
