"""Reading and writing records on one SQLite connection; the transaction around it is its maker's."""

import sqlite3
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from hutch.base.errors import StaleWrite
from hutch.model.record import Record
from hutch.store.contract import IndexKey, Table
from hutch.store.keys import after_prefix, encode_key
from hutch.store.sqlite_batch import Batch, NewChange, Row
from hutch.store.sqlite_schema import index_start
from hutch.store.tables import ALL_TABLES

R = TypeVar("R", bound=Record)

MAX_KEPT_RECORDS = 256
"""Decoded records kept for each table that is read mostly, found again by their bytes (records are frozen)."""

MAX_YOUNG_ROWS = 2048
MAX_KEPT_SCANS = 256


def _decoder(table: Table[Any]) -> Callable[[bytes], Any]:
    decode = msgspec.msgpack.Decoder(table.record_type).decode
    return lru_cache(MAX_KEPT_RECORDS)(decode) if table.read_mostly else decode


_APPENDED = {t.name for t in ALL_TABLES if t.append_only}
_decoders = {t.name: _decoder(t) for t in ALL_TABLES}


class ReadHandle:
    """`hutch.store.contract.Reader` on a connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

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
        start = "" if index is None else index_start(table, index)
        low, high = start + encode_key(prefix), after_prefix(start + encode_key(prefix))
        low_is_open = False
        if after is not None and reverse:
            high = min(high, start + encode_key(after))
        elif after is not None and start + encode_key(after) >= low:
            low, low_is_open = start + encode_key(after), True
        compare, order = (">" if low_is_open else ">="), ("DESC" if reverse else "ASC")
        parameters: tuple[Any, ...] = (low, high, -1 if limit is None else limit)
        if index is None:
            sql = f"SELECT body FROM records WHERE tbl=? AND key{compare}? AND key<? ORDER BY key {order} LIMIT ?"
            parameters = (table.name, *parameters)
        else:
            table.indexes[index]  # of a tally there is nothing to scan
            sql = (
                f"SELECT r.body FROM entries e JOIN records r ON r.rid=e.rid WHERE e.position{compare}? AND "
                f"e.position<? ORDER BY e.position {order} LIMIT ?"
            )
        decode = _decoders[table.name]
        return [decode(row[0]) for row in self._db.execute(sql, parameters).fetchall()]

    def count(
        self, table: Table[R], *prefix: str, index: str | None = None, before: IndexKey | None = None
    ) -> int:
        start = "" if index is None else index_start(table, index)
        low = start + encode_key(prefix)
        high = after_prefix(low) if before is None else min(after_prefix(low), start + encode_key(before))
        parameters: tuple[str, ...] = (low, high)
        if index is None:
            sql = "SELECT count(*) FROM records WHERE tbl=? AND key>=? AND key<?"
            parameters = (table.name, *parameters)
        elif index in table.tallies:
            sql = "SELECT coalesce(sum(count), 0) FROM tallies WHERE position>=? AND position<?"
        else:
            sql = "SELECT count(*) FROM entries WHERE position>=? AND position<?"
        return int(self._db.execute(sql, parameters).fetchone()[0])


class Kept:
    """What the one writing connection wrote or found last, decoded: it is most often what is needed next.

    Right because nobody else writes to the file; emptied whenever something that SQLite was told is taken back.
    """

    def __init__(self, next_rid: int) -> None:
        self.next_rid = next_rid
        self._rows: dict[tuple[str, str], Row] = {}
        self._older: dict[tuple[str, str], Row] = {}
        """Forgotten when there are many younger ones."""
        self._scans: dict[str, dict[Any, Any]] = {}

    def row(self, place: tuple[str, str]) -> Row | None:
        """A record's row, by table and key; None: it may be in the file."""
        if (row := self._rows.get(place)) is not None:
            return row
        if (row := self._older.get(place)) is not None:
            self._rows[place] = row
        return row

    def found(self, place: tuple[str, str], row: Row) -> None:
        """A row that is in the file."""
        if place[0] not in _APPENDED:
            self._rows[place] = row

    def take(self, rows: Mapping[tuple[str, str], Row]) -> None:
        """Rows that are committed."""
        if len(self._rows) >= MAX_YOUNG_ROWS:
            self._older, self._rows = self._rows, {}
        for place, row in rows.items():
            if row.record is None:
                self._rows.pop(place, None)
                self._older.pop(place, None)
            elif place[0] not in _APPENDED:
                self._rows[place] = row

    def scan(self, table: Table[Any], question: Any, ask: Callable[[], Any]) -> Any:
        """The answer to a question about a table that is read mostly, asked again only after it was written to."""
        if not table.read_mostly:
            return ask()
        answers = self._scans.setdefault(table.name, {})
        if question not in answers:
            if len(answers) >= MAX_KEPT_SCANS:
                answers.clear()
            answers[question] = ask()
        return answers[question]

    def wrote(self, table: str) -> None:
        """What was found in it may be otherwise now."""
        self._scans.pop(table, None)

    def clear(self) -> None:
        """Nothing is known."""
        self._rows.clear()
        self._older.clear()
        self._scans.clear()


class WriteHandle(ReadHandle):
    """`hutch.store.contract.Tx` on the writing connection. What it writes is gathered in `work`, on top of `batch`: the
    writes of the units of work before it. SQLite is told of both when a scan would miss them: then `told` is set, in a
    savepoint that is the maker's to end."""

    def __init__(self, db: sqlite3.Connection, batch: Batch, kept: Kept) -> None:
        super().__init__(db)
        self._batch = batch
        self._kept = kept
        self.work = Batch()
        self.changes: list[NewChange] = []
        self.told = False
        self._missing: set[tuple[str, str]] = set()
        """Places of no row, until this writes one there."""

    def get(self, table: Table[R], *key: str) -> R | None:
        row = self._row(table, encode_key(key))
        return row.record if row else None  # type: ignore[return-value]

    def scan(
        self,
        table: Table[R],
        *prefix: str,
        index: str | None = None,
        after: IndexKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        def ask() -> list[R]:
            self._tell(table)
            return super(WriteHandle, self).scan(
                table, *prefix, index=index, after=after, limit=limit, reverse=reverse
            )

        return list(self._kept.scan(table, (prefix, index, after, limit, reverse), ask))

    def count(
        self, table: Table[R], *prefix: str, index: str | None = None, before: IndexKey | None = None
    ) -> int:
        def ask() -> int:
            self._tell(table)
            return super(WriteHandle, self).count(table, *prefix, index=index, before=before)

        return int(self._kept.scan(table, ("count", prefix, index, before), ask))

    def put(self, table: Table[R], record: R) -> R:
        key = table.key(record)
        primary = encode_key(key)
        row = self._row(table, primary)
        before: R | None = row.record if row else None  # type: ignore[assignment]
        if (before.version if before else 0) != record.version:
            raise StaleWrite(f"{table.name} {'/'.join(key)} changed since it was read")
        fresh = replace(record, version=record.version + 1)
        if row is None:
            row = Row(self._kept.next_rid, None)
            self._kept.next_rid += 1
        self._write(table, key, primary, Row(row.rid, fresh), before)
        return fresh

    def delete(self, table: Table[R], *key: str) -> bool:
        primary = encode_key(key)
        row = self._row(table, primary)
        if row is None or row.record is None:
            return False
        self._write(table, key, primary, Row(row.rid, None), row.record)
        return True

    def _row(self, table: Table[R], primary: str) -> Row | None:
        """The newest state. None if there is no row; a row without a record was deleted and not yet told of."""
        place = (table.name, primary)
        row = self.work.rows.get(place) or self._batch.rows.get(place) or self._kept.row(place)
        if row is not None or place in self._missing:
            return row
        found = self._db.execute(
            "SELECT rid, body FROM records WHERE tbl=? AND key=?", (table.name, primary)
        ).fetchone()
        if found is None:
            self._missing.add(place)
            return None
        row = Row(found[0], _decoders[table.name](found[1]))
        self._kept.found(place, row)
        return row

    def _write(self, table: Table[R], key: IndexKey, primary: str, row: Row, before: Record | None) -> None:
        now: Any = row.record
        self.work.put(table.name, primary, row)
        self._kept.wrote(table.name)
        for name, key_of in table.indexes.items():
            old, new = _keys(key_of, before, now)
            if old != new:
                start = index_start(table, name)
                if old is not None:
                    self.work.entries[start + encode_key(old) + primary] = None
                if new is not None:
                    self.work.entries[start + encode_key(new) + primary] = row.rid
        for name, key_of in table.tallies.items():
            old, new = _keys(key_of, before, now)
            if old != new:
                start = index_start(table, name)
                if old is not None:
                    self.work.count(start + encode_key(old), -1)
                if new is not None:
                    self.work.count(start + encode_key(new), +1)
        if table.followed:
            note = table.journal(before, now) if table.journal else b""  # type: ignore[arg-type]
            at_hand = None if table.append_only else now
            self.changes.append(NewChange(table.name, key, now.version if now else 0, at_hand, note))

    def _tell(self, table: Table[Any]) -> None:
        """Have SQLite know of all writes to a table."""
        if table.name in self._batch.tables:
            self._batch.flush(self._db)
        if table.name in self.work.tables:
            if not self.told:
                # A failure of this unit of work takes back what comes after.
                self._batch.flush(self._db)
                self._db.execute("SAVEPOINT job")
                self.told = True
            self.work.flush(self._db)


def _keys(key_of: Callable[[Any], IndexKey | None], before: Any, now: Any) -> tuple[Any, Any]:
    return (key_of(before) if before is not None else None), (key_of(now) if now is not None else None)
