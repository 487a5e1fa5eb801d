"""The tables in the SQLite file, and how older files become as new ones are.

Records are rows in the order they were made, so that what is written together lies together: a task's body is found by its
key through an index of short entries, and only those are touched at random places. See docs/adr/0023.
"""

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.errors import Unavailable
from hutch.store.contract import Table
from hutch.store.keys import encode_key
from hutch.store.tables import ALL_TABLES

SCHEMA_VERSION = 3

_SCHEMA = """
CREATE TABLE records (rid INTEGER PRIMARY KEY, tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
                      body BLOB NOT NULL);
CREATE UNIQUE INDEX records_by_key ON records (tbl, key);
CREATE TABLE entries (position TEXT PRIMARY KEY, rid INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tallies (position TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""
_FEED = """
CREATE TABLE changes (seq INTEGER PRIMARY KEY, tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
                      cause BLOB NOT NULL, note BLOB);
"""


def index_start(table: Table[Any], index: str) -> str:
    """What the positions of an index, or a tally, of a table begin with."""
    return encode_key((f"{table.name}.{index}",))


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of an older format forward, whole or not at all. Raises `Unavailable`."""
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        raise Unavailable(
            f"{path} was written by a newer hutch (format {found}, this one reads up to {SCHEMA_VERSION}); run that "
            "version, or choose another --data-dir"
        )
    if found == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if found == 0:
            _create(db, _SCHEMA + _FEED)
        if found == 1:
            db.execute("ALTER TABLE changes ADD COLUMN note BLOB")
        if found in (1, 2):
            _rows_by_age(db)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _create(db: sqlite3.Connection, script: str) -> None:
    # Not `executescript`, which commits what is under way.
    for statement in script.split(";"):
        db.execute(statement)


def _rows_by_age(db: sqlite3.Connection) -> None:
    """From the formats in which records were kept in the order of their keys."""
    db.execute("ALTER TABLE records RENAME TO old_records")
    db.execute("DROP TABLE entries")
    _create(db, _SCHEMA)
    db.execute(
        "INSERT INTO records (tbl, key, version, body) SELECT tbl, key, version, body FROM old_records"
    )
    db.execute("DROP TABLE old_records")
    for table in ALL_TABLES:
        if table.indexes or table.tallies:
            _index_anew(db, table)


def _index_anew(db: sqlite3.Connection, table: Table[Any]) -> None:
    decode = msgspec.msgpack.Decoder(table.record_type).decode
    for rid, key, body in db.execute(
        "SELECT rid, key, body FROM records WHERE tbl=?", (table.name,)
    ).fetchall():
        record = decode(body)
        for name, key_of in table.indexes.items():
            if (ordering := key_of(record)) is not None:
                position = index_start(table, name) + encode_key(ordering) + key
                db.execute("INSERT INTO entries VALUES (?,?)", (position, rid))
        for name, key_of in table.tallies.items():
            if (counted := key_of(record)) is not None:
                db.execute(
                    ADD_TO_TALLY.format(rows="(?,?)"), (index_start(table, name) + encode_key(counted), 1)
                )


ADD_TO_TALLY = (
    "INSERT INTO tallies VALUES {rows} ON CONFLICT (position) DO UPDATE SET count = count + excluded.count"
)
