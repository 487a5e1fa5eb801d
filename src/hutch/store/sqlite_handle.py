"""Reading and writing records on one SQLite connection; the transaction around it is its maker's."""

import sqlite3
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from hutch.base.errors import StaleWrite
from hutch.model.record import Cause, Record
from hutch.store.contract import Change, IndexKey, Table
from hutch.store.keys import after_prefix, encode_key
from hutch.store.tables import ALL_TABLES

R = TypeVar("R", bound=Record)

_encode = msgspec.msgpack.Encoder().encode
MAX_KEPT_RECORDS = 256
"""Decoded records kept for each table that is read mostly, found again by their bytes (records are frozen)."""

MAX_WRITTEN_RECORDS = 4096


def _decoder(table: Table[Any]) -> Callable[[bytes], Any]:
    decode = msgspec.msgpack.Decoder(table.record_type).decode
    return lru_cache(MAX_KEPT_RECORDS)(decode) if table.read_mostly else decode


_decoders = {t.name: _decoder(t) for t in ALL_TABLES}


class ReadHandle:
    """`hutch.store.contract.Reader` on a connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, table: Table[R], *key: str) -> R | None:
        return self._read(table, encode_key(key))

    def _read(self, table: Table[R], primary: str) -> R | None:
        row = self._db.execute(
            "SELECT body FROM records WHERE tbl=? AND key=?", (table.name, primary)
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


class WrittenRecords:
    """What the one writing connection wrote last, decoded: it is most often what is read and written next.

    Right because nobody else writes to the file; emptied whenever a unit of work is taken back.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Record] = {}

    def put(self, table: str, primary: str, record: Record) -> None:
        if len(self.records) >= MAX_WRITTEN_RECORDS:
            self.records.clear()
        self.records[table, primary] = record

    def clear(self) -> None:
        self.records.clear()


class WriteHandle(ReadHandle):
    """`hutch.store.contract.Tx` on the writing connection; `changes` are those it made."""

    def __init__(self, db: sqlite3.Connection, cause: Cause, written: WrittenRecords) -> None:
        super().__init__(db)
        self._cause = cause
        self._cause_bytes = _encode(cause)
        self._written = written
        self.changes: list[Change] = []

    def get(self, table: Table[R], *key: str) -> R | None:
        return self._current(table, encode_key(key))

    def put(self, table: Table[R], record: R) -> R:
        key = table.key(record)
        primary = encode_key(key)
        before = self._current(table, primary)
        if (before.version if before else 0) != record.version:
            raise StaleWrite(f"{table.name} {'/'.join(key)} changed since it was read")
        fresh = replace(record, version=record.version + 1)
        self._db.execute(
            "INSERT OR REPLACE INTO records VALUES (?,?,?,?)",
            (table.name, primary, fresh.version, _encode(fresh)),
        )
        self._reindex(table, primary, before, fresh)
        note = table.journal(before, fresh) if table.journal else b""
        self._note(table.name, key, primary, fresh.version, note)
        if not table.append_only:
            self._written.put(table.name, primary, fresh)
        return fresh

    def delete(self, table: Table[R], *key: str) -> bool:
        primary = encode_key(key)
        before = self._current(table, primary)
        if before is None:
            return False
        self._db.execute("DELETE FROM records WHERE tbl=? AND key=?", (table.name, primary))
        self._reindex(table, primary, before, None)
        note = table.journal(before, None) if table.journal else b""
        self._note(table.name, key, primary, 0, note)
        self._written.records.pop((table.name, primary), None)
        return True

    def _current(self, table: Table[R], primary: str) -> R | None:
        known = self._written.records.get((table.name, primary))
        return known if known is not None else self._read(table, primary)  # type: ignore[return-value]

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

    def _note(self, table: str, key: IndexKey, primary: str, version: int, note: bytes) -> None:
        cursor = self._db.execute(
            "INSERT INTO changes (tbl, key, version, cause, note) VALUES (?,?,?,?,?)",
            (table, primary, version, self._cause_bytes, note or None),
        )
        seq = cursor.lastrowid or 0
        self.changes.append(
            Change(seq=seq, table=table, key=key, version=version, cause=self._cause, note=note)
        )


def _index_name(table: Table[Any], index: str) -> str:
    return f"{table.name}.{index}"
