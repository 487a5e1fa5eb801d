"""What units of work have written and SQLite has not been told yet.

Python's SQLite module lets go of the interpreter's lock for each statement and has to wait for it after; a unit of work
makes some twenty small writes. So they are gathered here and written a table at a time, many rows in a statement, once for
all units of work that are committed together.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from hutch.model.record import Cause, Record
from hutch.store.contract import Change, IndexKey
from hutch.store.keys import encode_key
from hutch.store.sqlite_schema import ADD_TO_TALLY

_encode = msgspec.msgpack.Encoder().encode
_ROWS_PER_STATEMENT = (32, 8, 1)
"""A few sizes, so that the prepared statements stay in SQLite's cache."""


class Row(NamedTuple):
    """A record as it is now (None: there is none) and the number of its row."""

    rid: int
    record: Record | None


class NewChange(NamedTuple):
    """A change that has no number yet: those that are taken back get none."""

    table: str
    key: IndexKey
    version: int
    record: Record | None
    note: bytes


class Batch:
    """Writes in their final state: of several to one record the last."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        """All that was written, also what SQLite was told of."""
        self.tables: set[str] = set()
        """In which something was written that SQLite was not told of."""
        self.entries: dict[str, int | None] = {}
        """Positions in indexes to rows; None: no longer there."""
        self.tallies: dict[str, int] = {}
        self._untold: dict[tuple[str, str], Row] = {}
        self._changes: list[Change] = []

    def put(self, table: str, primary: str, row: Row) -> None:
        """A record's new state."""
        self.tables.add(table)
        self.rows[table, primary] = self._untold[table, primary] = row

    def count(self, position: str, change: int) -> None:
        """Add to a tally."""
        self.tallies[position] = self.tallies.get(position, 0) + change

    def take(self, work: "Batch", changes: Sequence[NewChange], cause: Cause, newest: int) -> list[Change]:
        """What a unit of work that succeeded has written is part of this one. Its changes get the numbers after
        `newest`."""
        self.rows |= work.rows
        self._untold |= work._untold
        self.tables |= work.tables
        self.entries |= work.entries
        for position, change in work.tallies.items():
            self.count(position, change)
        made = [
            Change(
                seq=seq,
                table=c.table,
                key=c.key,
                version=c.version,
                cause=cause,
                note=c.note,
                record=c.record,
            )
            for seq, c in enumerate(changes, newest + 1)
        ]
        self._changes += made
        return made

    def flush(self, db: sqlite3.Connection) -> None:
        """Tell SQLite, within its transaction."""
        _write_rows(db, self._untold)
        _write_entries(db, self.entries)
        _run(db, ADD_TO_TALLY, "(?,?)", [(p, c) for p, c in self.tallies.items() if c])
        _run(db, "INSERT INTO changes VALUES {rows}", "(?,?,?,?,?,?)", _feed_rows(self._changes))
        self.tables, self.entries, self.tallies, self._untold, self._changes = set(), {}, {}, {}, []


def _write_rows(db: sqlite3.Connection, rows: dict[tuple[str, str], Row]) -> None:
    gone = [(row.rid,) for row in rows.values() if row.record is None]
    _run(db, "DELETE FROM records WHERE rid IN ({rows})", "?", gone)
    there = [
        (row.rid, table, primary, row.record.version, _encode(row.record))
        for (table, primary), row in rows.items()
        if row.record is not None
    ]
    _run(
        db,
        # Not REPLACE, which would write the row's entry in the index of keys anew as well.
        "INSERT INTO records VALUES {rows} ON CONFLICT (rid) DO UPDATE SET version=excluded.version, body=excluded.body",
        "(?,?,?,?,?)",
        there,
    )


def _write_entries(db: sqlite3.Connection, entries: dict[str, int | None]) -> None:
    gone = [(position,) for position, rid in entries.items() if rid is None]
    _run(db, "DELETE FROM entries WHERE position IN ({rows})", "?", gone)
    there = [(position, rid) for position, rid in entries.items() if rid is not None]
    _run(db, "INSERT OR REPLACE INTO entries VALUES {rows}", "(?,?)", there)


def _feed_rows(changes: Iterable[Change]) -> list[tuple[Any, ...]]:
    causes: dict[int, bytes] = {}
    made = []
    for c in changes:
        cause = causes.get(id(c.cause))
        if cause is None:
            cause = causes[id(c.cause)] = _encode(c.cause)
        made.append((c.seq, c.table, encode_key(c.key), c.version, cause, c.note or None))
    return made


def _run(db: sqlite3.Connection, sql: str, row: str, values: Sequence[tuple[Any, ...]]) -> None:
    """`sql` with as many rows at once as is possible."""
    start = 0
    for size in _ROWS_PER_STATEMENT:
        while len(values) - start >= size:
            part = values[start : start + size]
            db.execute(_for_rows(sql, row, size), [v for each in part for v in each])
            start += size


@lru_cache(64)
def _for_rows(sql: str, row: str, count: int) -> str:
    return sql.format(rows=",".join([row] * count))
