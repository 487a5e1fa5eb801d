"""Log groups, streams and events, in a SQLite file of their own: their volume must not slow the rest down.

`write_events` returns after the events are durable; side-by-side writers share a commit. See docs/adr/0003.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.errors import AlreadyExists, NotFound, StorageFull, Unavailable

MAX_BATCH = 256
MAX_SUBSCRIBER_EVENTS = 5000
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE log_groups (name TEXT PRIMARY KEY, created_ms INTEGER NOT NULL, retention_days INTEGER,
                         class TEXT NOT NULL, tags TEXT NOT NULL, bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE streams (id INTEGER PRIMARY KEY, grp TEXT NOT NULL, name TEXT NOT NULL, created_ms INTEGER NOT NULL,
                      first_ms INTEGER, last_ms INTEGER, ingested_ms INTEGER, UNIQUE (grp, name));
CREATE TABLE events (stream INTEGER NOT NULL, ts INTEGER NOT NULL, seq INTEGER NOT NULL, ingested_ms INTEGER NOT NULL,
                     message TEXT NOT NULL, PRIMARY KEY (stream, ts, seq)) WITHOUT ROWID;
"""


class LogGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group; times in milliseconds since the epoch."""

    name: str
    created_ms: int
    retention_days: int | None
    log_class: str
    tags: dict[str, str]
    stored_bytes: int


class LogStream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of a group."""

    stream_id: int
    group: str
    name: str
    created_ms: int
    first_ms: int | None
    last_ms: int | None
    ingested_ms: int | None


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event; (timestamp_ms, seq) orders the events of a stream."""

    stream: str
    timestamp_ms: int
    seq: int
    ingested_ms: int
    message: str
    group: str = ""


class _Write:
    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: Any) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None


class LogStore:
    """Opened and closed by a composition root; ":memory:" as path is for tests."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._guard = threading.Lock()
        self._jobs: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._next_seq = 1
        self._subscribers: set[Subscription] = set()

    async def open(self) -> None:
        try:
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-8000"):
                db.execute(f"PRAGMA {pragma}").fetchall()
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA_VERSION:
                raise Unavailable(
                    f"{self._path} was written by a newer hutch (format {found}); run that version"
                )
            if found == 0:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            newest = db.execute("SELECT max(m) FROM (SELECT max(seq) AS m FROM events)").fetchone()[0]
        except sqlite3.Error as error:
            raise StorageFull(f"can't write {self._path}: {error}") from None
        self._next_seq = (newest or 0) + 1
        self._db = db
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        if self._db is not None:
            self._db.close()
            self._db = None

    # -- groups and streams

    async def create_group(self, group: LogGroup) -> None:
        def work(db: sqlite3.Connection) -> None:
            if db.execute("SELECT 1 FROM log_groups WHERE name=?", (group.name,)).fetchone():
                raise AlreadyExists("The specified log group already exists")
            db.execute(
                "INSERT INTO log_groups VALUES (?,?,?,?,?,0)",
                (
                    group.name,
                    group.created_ms,
                    group.retention_days,
                    group.log_class,
                    msgspec.json.encode(group.tags).decode(),
                ),
            )

        await self._write(work)

    async def delete_group(self, name: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, name)
            db.execute("DELETE FROM events WHERE stream IN (SELECT id FROM streams WHERE grp=?)", (name,))
            db.execute("DELETE FROM streams WHERE grp=?", (name,))
            db.execute("DELETE FROM log_groups WHERE name=?", (name,))

        await self._write(work)

    async def set_retention(self, name: str, days: int | None) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, name)
            db.execute("UPDATE log_groups SET retention_days=? WHERE name=?", (days, name))

        await self._write(work)

    async def set_tags(self, name: str, tags: dict[str, str]) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, name)
            db.execute(
                "UPDATE log_groups SET tags=? WHERE name=?", (msgspec.json.encode(tags).decode(), name)
            )

        await self._write(work)

    async def create_stream(self, group: str, name: str, now_ms: int) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, group)
            if db.execute("SELECT 1 FROM streams WHERE grp=? AND name=?", (group, name)).fetchone():
                raise AlreadyExists("The specified log stream already exists")
            db.execute("INSERT INTO streams (grp, name, created_ms) VALUES (?,?,?)", (group, name, now_ms))

        await self._write(work)

    async def delete_stream(self, group: str, name: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            stream = _require_stream(db, group, name)
            db.execute("DELETE FROM events WHERE stream=?", (stream,))
            db.execute("DELETE FROM streams WHERE id=?", (stream,))

        await self._write(work)

    def group(self, name: str) -> LogGroup:
        """Raises `NotFound`."""
        found = self.groups(name, after="", limit=1, exact=True)
        if not found:
            raise NotFound("The specified log group does not exist.")
        return found[0]

    def groups(
        self, prefix: str, *, after: str, limit: int, exact: bool = False, pattern: str = ""
    ) -> list[LogGroup]:
        """Groups in order of name, by prefix (or exact name, or a substring)."""
        with self._guard:
            rows = self._reader.execute(
                "SELECT name, created_ms, retention_days, class, tags, bytes FROM log_groups WHERE name>? AND "
                "((? AND name=?) OR (NOT ? AND substr(name,1,?)=?)) AND (?='' OR instr(lower(name),lower(?))) "
                "ORDER BY name LIMIT ?",
                (after, exact, prefix, exact, len(prefix), prefix, pattern, pattern, limit),
            ).fetchall()
        return [
            LogGroup(
                name=n,
                created_ms=c,
                retention_days=r,
                log_class=k,
                tags=msgspec.json.decode(t),
                stored_bytes=b,
            )
            for n, c, r, k, t, b in rows
        ]

    def stream(self, group: str, name: str) -> LogStream:
        """Raises `NotFound`."""
        self.group(group)
        found = [s for s in self.streams(group, prefix=name) if s.name == name]
        if not found:
            raise NotFound("The specified log stream does not exist.")
        return found[0]

    def streams(self, group: str, *, prefix: str = "") -> list[LogStream]:
        """Streams of a group in order of name."""
        with self._guard:
            rows = self._reader.execute(
                "SELECT id, name, created_ms, first_ms, last_ms, ingested_ms FROM streams WHERE grp=? AND "
                "substr(name,1,?)=? ORDER BY name",
                (group, len(prefix), prefix),
            ).fetchall()
        return [
            LogStream(stream_id=i, group=group, name=n, created_ms=c, first_ms=f, last_ms=la, ingested_ms=g)
            for i, n, c, f, la, g in rows
        ]

    # -- events

    async def write_events(
        self, group: str, name: str, events: Sequence[tuple[int, str]], now_ms: int, *, create_stream: bool
    ) -> None:
        """Append (timestamp in ms, message) pairs; durable on return. Raises `NotFound`."""

        def work(db: sqlite3.Connection) -> list[StoredEvent]:
            _require_group(db, group)
            if create_stream:
                db.execute(
                    "INSERT OR IGNORE INTO streams (grp, name, created_ms) VALUES (?,?,?)",
                    (group, name, now_ms),
                )
            stream = _require_stream(db, group, name)
            stored = []
            for timestamp, message in events:
                stored.append(
                    StoredEvent(
                        stream=name,
                        timestamp_ms=timestamp,
                        seq=self._next_seq,
                        ingested_ms=now_ms,
                        message=message,
                        group=group,
                    )
                )
                self._next_seq += 1
            db.executemany(
                "INSERT INTO events VALUES (?,?,?,?,?)",
                [(stream, e.timestamp_ms, e.seq, e.ingested_ms, e.message) for e in stored],
            )
            if stored:
                first, last = min(e.timestamp_ms for e in stored), max(e.timestamp_ms for e in stored)
                db.execute(
                    "UPDATE streams SET first_ms=min(coalesce(first_ms,?),?), last_ms=max(coalesce(last_ms,?),?), "
                    "ingested_ms=? WHERE id=?",
                    (first, first, last, last, now_ms, stream),
                )
                size = sum(len(e.message) + 26 for e in stored)
                db.execute("UPDATE log_groups SET bytes=bytes+? WHERE name=?", (size, group))
            return stored

        for event in await self._write(work):
            for subscription in self._subscribers:
                subscription.offer(event)

    def read_events(
        self,
        streams: Sequence[LogStream],
        *,
        start_ms: int,
        end_ms: int,
        after: tuple[int, int] | None,
        limit: int,
        reverse: bool = False,
    ) -> list[StoredEvent]:
        """Events of streams with start <= timestamp < end, by (timestamp, seq), after (reverse: before) a position."""
        if not streams:
            return []
        names = {s.stream_id: s.name for s in streams}
        marks = ",".join("?" * len(names))
        compare, order = ("<", "DESC") if reverse else (">", "ASC")
        position = after or ((2**62, 2**62) if reverse else (-1, -1))
        with self._guard:
            rows = self._reader.execute(
                f"SELECT stream, ts, seq, ingested_ms, message FROM events WHERE stream IN ({marks}) AND ts>=? AND "
                f"ts<? AND (ts{compare}? OR (ts=? AND seq{compare}?)) ORDER BY ts {order}, seq {order} LIMIT ?",
                (*names, start_ms, end_ms, position[0], position[0], position[1], limit),
            ).fetchall()
        return [
            StoredEvent(stream=names[s], timestamp_ms=t, seq=q, ingested_ms=i, message=m)
            for s, t, q, i, m in rows
        ]

    async def drop_expired(self, now_ms: int) -> int:
        """Delete events that outlived their group's retention; how many."""

        def work(db: sqlite3.Connection) -> int:
            dropped = 0
            for name, days in db.execute(
                "SELECT name, retention_days FROM log_groups WHERE retention_days IS NOT NULL"
            ).fetchall():
                dropped += db.execute(
                    "DELETE FROM events WHERE ts<? AND stream IN (SELECT id FROM streams WHERE grp=?)",
                    (now_ms - days * 86_400_000, name),
                ).rowcount
            return dropped

        result: int = await self._write(work)
        return result

    def subscribe(self, groups: frozenset[str]) -> "Subscription":
        """New events of these groups from now on. Close it when done."""
        subscription = Subscription(groups, self._subscribers)
        self._subscribers.add(subscription)
        return subscription

    # -- the writer thread

    @property
    def _reader(self) -> sqlite3.Connection:
        if self._db is None:
            raise Unavailable("the log store is closed")
        return self._db

    async def _write(self, work: Any) -> Any:
        if self._thread is None:
            raise Unavailable("the log store is closed")
        job = _Write(work)
        self._jobs.put(job)
        return await job.future

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    self._jobs.put(None)
                    break
                batch.append(more)
            with self._guard:
                self._commit(batch)
            for loop in {j.loop for j in batch}:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(_answer, [j for j in batch if j.loop is loop])

    def _commit(self, batch: list[_Write]) -> None:
        db = self._reader
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in batch:
                db.execute("SAVEPOINT job")
                try:
                    job.result = job.work(db)
                except (NotFound, AlreadyExists) as refusal:
                    job.error = refusal
                    db.execute("ROLLBACK TO job")
                db.execute("RELEASE job")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            for job in batch:
                job.error = StorageFull(f"can't write {self._path}: {error}; free space on that file system")


def _answer(jobs: list[_Write]) -> None:
    for job in jobs:
        if not job.future.done():
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)


def _require_group(db: sqlite3.Connection, name: str) -> None:
    if not db.execute("SELECT 1 FROM log_groups WHERE name=?", (name,)).fetchone():
        raise NotFound("The specified log group does not exist.")


def _require_stream(db: sqlite3.Connection, group: str, name: str) -> int:
    row = db.execute("SELECT id FROM streams WHERE grp=? AND name=?", (group, name)).fetchone()
    if row is None:
        raise NotFound("The specified log stream does not exist.")
    return int(row[0])


class Subscription:
    """New events for one reader; the oldest are dropped (and counted) if it is too slow."""

    def __init__(self, groups: frozenset[str], registry: set["Subscription"]) -> None:
        self._groups = groups
        self._registry = registry
        self._events: asyncio.Queue[StoredEvent] = asyncio.Queue(MAX_SUBSCRIBER_EVENTS)
        self.dropped = 0

    def offer(self, event: StoredEvent) -> None:
        if event.group not in self._groups:
            return
        if self._events.full():
            self._events.get_nowait()
            self.dropped += 1
        self._events.put_nowait(event)

    def take(self, most: int) -> list[StoredEvent]:
        """What is there now, at most so many."""
        taken: list[StoredEvent] = []
        while len(taken) < most and not self._events.empty():
            taken.append(self._events.get_nowait())
        return taken

    def close(self) -> None:
        self._registry.discard(self)
