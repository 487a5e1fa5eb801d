"""Log groups, streams and events, in a SQLite file of their own: their volume must not slow the rest down.

`write_events` returns after the events are durable; side-by-side writers share a commit. See docs/adr/0003.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from hutch.base.errors import AlreadyExists, NotFound
from hutch.store.log_file import LogFile
from hutch.store.log_records import LogGroup, LogStream, Scan, StoredEvent
from hutch.store.log_scan import Position, Row, merged_rows, stream_rows
from hutch.store.log_subscription import Subscription

MAX_SCAN_EVENTS = 10_000
MAX_SCAN_BYTES = 4 * 1024 * 1024
DELETED_AT_ONCE = 5_000
EVENT_OVERHEAD_BYTES = 26
_GARBAGE = ""
"""The group of streams that were deleted and whose events are still to be removed."""


class LogStore:
    """Opened and closed by a composition root. Reads never wait for writes, and are bounded."""

    def __init__(self, path: Path | str) -> None:
        self._file = LogFile(path)
        self._next_seq = 1
        self._subscribers: set[Subscription] = set()

    async def open(self) -> None:
        """Raises `Unavailable` if the file is damaged or of a newer release, `StorageFull` if it can't be written."""
        self._next_seq = await self._file.open() + 1

    async def close(self) -> None:
        """Once what waits to be written is durable."""
        await self._file.close()

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

        await self._file.write(work)

    async def delete_group(self, name: str) -> None:
        """Gone at once; its events are removed a piece at a time (by `drop_expired`, if this is cut off)."""

        def work(db: sqlite3.Connection) -> None:
            _require_group(db, name)
            db.execute("UPDATE streams SET grp=?, name=id WHERE grp=?", (_GARBAGE, name))
            db.execute("DELETE FROM log_groups WHERE name=?", (name,))

        await self._file.write(work)
        await self._drop_garbage()

    async def set_retention(self, name: str, days: int | None) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, name)
            db.execute("UPDATE log_groups SET retention_days=? WHERE name=?", (days, name))

        await self._file.write(work)

    async def set_tags(self, name: str, tags: dict[str, str]) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, name)
            db.execute(
                "UPDATE log_groups SET tags=? WHERE name=?", (msgspec.json.encode(tags).decode(), name)
            )

        await self._file.write(work)

    async def create_stream(self, group: str, name: str, now_ms: int) -> None:
        def work(db: sqlite3.Connection) -> None:
            _require_group(db, group)
            if db.execute("SELECT 1 FROM streams WHERE grp=? AND name=?", (group, name)).fetchone():
                raise AlreadyExists("The specified log stream already exists")
            db.execute("INSERT INTO streams (grp, name, created_ms) VALUES (?,?,?)", (group, name, now_ms))

        await self._file.write(work)

    async def delete_stream(self, group: str, name: str) -> None:
        """Gone at once; its events are removed a piece at a time (by `drop_expired`, if this is cut off)."""

        def work(db: sqlite3.Connection) -> None:
            stream = _require_stream(db, group, name)
            db.execute("UPDATE streams SET grp=?, name=id WHERE id=?", (_GARBAGE, stream))

        await self._file.write(work)
        await self._drop_garbage(group)

    def group(self, name: str) -> LogGroup:
        """Raises `NotFound`."""
        found = self.groups(name, after="", limit=1, exact=True)
        if not found:
            raise NotFound("The specified log group does not exist.")
        return found[0]

    def groups(
        self, prefix: str, *, after: str, limit: int, exact: bool = False, pattern: str = ""
    ) -> list[LogGroup]:
        """Groups in order of name, by prefix (or exact name, or a substring; case counts)."""
        rows = self._file.read(
            "SELECT name, created_ms, retention_days, class, tags, bytes FROM log_groups WHERE name>? AND "
            "((? AND name=?) OR (NOT ? AND substr(name,1,?)=?)) AND (?='' OR instr(name,?)) "
            "ORDER BY name LIMIT ?",
            (after, exact, prefix, exact, len(prefix), prefix, pattern, pattern, limit),
        )
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
        found = self._file.read(
            f"SELECT {_STREAM_COLUMNS} FROM streams WHERE grp=? AND name=?", (group, name)
        )
        if not found or group == _GARBAGE:
            self.group(group)
            raise NotFound("The specified log stream does not exist.")
        return _stream(group, found[0])

    def streams(
        self,
        group: str,
        *,
        prefix: str = "",
        after: tuple[int, str] | None = None,
        limit: int,
        by_last_event: bool = False,
        descending: bool = False,
    ) -> list[LogStream]:
        """At most `limit` streams of a group in order of name, or of (last event, name); `after` that position."""
        compare, order = ("<", "DESC") if descending else (">", "ASC")
        place = "coalesce(last_ms,0)" if by_last_event else "0"
        beyond = f"AND ({place},name){compare}(?,?) " if after is not None else ""
        rows = self._file.read(
            f"SELECT {_STREAM_COLUMNS} FROM streams WHERE grp=? AND name>=? AND substr(name,1,?)=? {beyond}"
            f"ORDER BY {f'{place} {order}, ' if by_last_event else ''}name {order} LIMIT ?",
            (group, prefix, len(prefix), prefix, *(after or ()), limit),
        )
        return [_stream(group, row) for row in rows]

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
                size = sum(len(e.message) + EVENT_OVERHEAD_BYTES for e in stored)
                db.execute("UPDATE log_groups SET bytes=bytes+? WHERE name=?", (size, group))
                db.execute("UPDATE counters SET value=? WHERE name='seq'", (self._next_seq - 1,))
            return stored

        for event in await self._file.write(work):
            for subscription in self._subscribers:
                subscription.offer(event)

    def read_events(
        self,
        stream: LogStream,
        *,
        start_ms: int,
        end_ms: int,
        after: Position | None,
        limit: int,
        max_bytes: int = MAX_SCAN_BYTES,
        reverse: bool = False,
    ) -> list[StoredEvent]:
        """Events of a stream with start <= timestamp < end, by (timestamp, seq), after (reverse: before) a position:
        at most `limit` of them and (but for the first) `max_bytes`."""
        with self._file.snapshot() as db:
            rows = stream_rows(db, stream.stream_id, start_ms, end_ms, after, reverse=reverse)
            taken, _ = _take(rows, limit, max_bytes)
        return [_event(stream.group, stream.name, row) for row in taken]

    def search(
        self,
        group: str,
        *,
        names: Sequence[str],
        prefix: str,
        start_ms: int,
        end_ms: int,
        after: Position | None,
        limit: int = MAX_SCAN_EVENTS,
        max_bytes: int = MAX_SCAN_BYTES,
    ) -> Scan:
        """The next piece of the events of a group's streams (of these names, or all with a prefix), in order of time."""
        since = start_ms if after is None else max(start_ms, after[0])
        sql = (
            "SELECT first_ms, id, name FROM streams WHERE grp=? AND last_ms>=? AND first_ms<? AND "
            f"{'name IN (' + ','.join('?' * len(names)) + ')' if names else 'name>=? AND substr(name,1,?)=?'} "
            "ORDER BY first_ms"
        )
        which = tuple(names) if names else (prefix, len(prefix), prefix)
        with self._file.snapshot() as db:
            named: dict[int, str] = {}

            def streams() -> Iterator[tuple[int, int]]:
                for first_ms, stream, name in db.execute(sql, (group, since, end_ms, *which)):
                    named[stream] = name
                    yield first_ms, stream

            rows = merged_rows(db, streams(), start_ms, end_ms, after)
            taken, ended = _take(rows, limit, max_bytes)
        events = [_event(group, named[row[2]], row) for row in taken]
        return Scan(events=events, next=None if ended else (taken[-1][0], taken[-1][1]))

    async def drop_expired(self, now_ms: int) -> int:
        """Delete events that outlived their group's retention, and what deleted groups left; how many."""
        dropped = await self._drop_garbage()
        found = self._file.read(
            "SELECT s.id, s.grp, g.retention_days FROM streams s JOIN log_groups g ON g.name=s.grp WHERE "
            "g.retention_days IS NOT NULL AND s.first_ms < ? - g.retention_days*86400000",
            (now_ms,),
        )
        for stream, group, days in found:
            dropped += await self._drop_events(stream, group, now_ms - days * 86_400_000)
        return dropped

    async def _drop_garbage(self, group: str = _GARBAGE) -> int:
        """Remove deleted streams; `group`: from whose size to take them."""
        dropped = 0
        for (stream,) in self._file.read("SELECT id FROM streams WHERE grp=?", (_GARBAGE,)):
            dropped += await self._drop_events(stream, group, 2**62)
            await self._file.write(partial(_forget_stream, stream=stream))
        return dropped

    async def _drop_events(self, stream: int, group: str, before_ms: int) -> int:
        """Remove a stream's older events, so few at a time that other writers hardly wait; how many."""

        def work(db: sqlite3.Connection) -> int:
            sizes = db.execute(
                "DELETE FROM events WHERE stream=? AND (ts,seq) IN (SELECT ts, seq FROM events WHERE stream=? AND ts<? "
                "ORDER BY ts, seq LIMIT ?) RETURNING length(message)",
                (stream, stream, before_ms, DELETED_AT_ONCE),
            ).fetchall()
            size = sum(s for (s,) in sizes) + EVENT_OVERHEAD_BYTES * len(sizes)
            db.execute("UPDATE log_groups SET bytes=max(0, bytes-?) WHERE name=?", (size, group))
            first = db.execute("SELECT min(ts) FROM events WHERE stream=?", (stream,)).fetchone()[0]
            db.execute("UPDATE streams SET first_ms=coalesce(?, last_ms) WHERE id=?", (first, stream))
            return len(sizes)

        total = 0
        while True:
            dropped = await self._file.write(work)
            total += dropped
            if dropped < DELETED_AT_ONCE:
                return total

    def subscribe(self, groups: frozenset[str]) -> "Subscription":
        """New events of these groups from now on. Close it when done."""
        subscription = Subscription(groups, self._subscribers)
        self._subscribers.add(subscription)
        return subscription


_STREAM_COLUMNS = "id, name, created_ms, first_ms, last_ms, ingested_ms"


def _stream(group: str, row: tuple[int, str, int, int | None, int | None, int | None]) -> LogStream:
    i, name, created, first, last, ingested = row
    return LogStream(
        stream_id=i,
        group=group,
        name=name,
        created_ms=created,
        first_ms=first,
        last_ms=last,
        ingested_ms=ingested,
    )


def _event(group: str, stream: str, row: Row) -> StoredEvent:
    timestamp, seq, _, ingested, message = row
    return StoredEvent(
        stream=stream, timestamp_ms=timestamp, seq=seq, ingested_ms=ingested, message=message, group=group
    )


def _take(rows: Iterator[Row], limit: int, max_bytes: int) -> tuple[list[Row], bool]:
    """The first rows, at most so many in number and (but for the first) in bytes; and whether that was all."""
    taken: list[Row] = []
    size = 0
    for row in rows:
        size += len(row[4].encode()) + EVENT_OVERHEAD_BYTES
        if taken and (size > max_bytes or len(taken) == limit):
            rows.close()  # type: ignore[attr-defined]
            return taken, False
        taken.append(row)
    return taken, True


def _forget_stream(db: sqlite3.Connection, stream: int) -> None:
    db.execute("DELETE FROM streams WHERE id=? AND grp=?", (stream, _GARBAGE))


def _require_group(db: sqlite3.Connection, name: str) -> None:
    if not db.execute("SELECT 1 FROM log_groups WHERE name=?", (name,)).fetchone():
        raise NotFound("The specified log group does not exist.")


def _require_stream(db: sqlite3.Connection, group: str, name: str) -> int:
    row = db.execute("SELECT id FROM streams WHERE grp=? AND name=?", (group, name)).fetchone()
    if row is None:
        raise NotFound("The specified log stream does not exist.")
    return int(row[0])
