"""The persistence contract. Backends: `sqlite`, `memory` (and `postgres`); one test suite runs against all.

The unit of work *is* the handle: whoever writes passes a function to `Store.write`; it is called with a `Tx` and
everything it does through that handle is applied as a whole, or not at all if it raises. The function must be
repeatable (a backend may run it again after a serialisation failure) and must not await, block, or keep the handle.

`write` returns after the change is durable (fsync). A backend may make several units of work durable together
(group commit): each still sees the ones before it, and one that raises takes only itself back.

Records are `hutch.model.record.Record`s. `put` is optimistic: it is refused with `StaleWrite` unless the stored
version is the one the record carries (0: must not exist yet).
"""

from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from hutch.model.record import Cause, Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")

IndexKey = tuple[str, ...]


class Table(Generic[R]):
    """A kind of record: its name, type, primary key and secondary indexes. Declared once, in `store.tables`.

    Keys are tuples of strings, ordered element by element by code point, so that prefixes can be scanned.
    An index function gives the record's key in that index, or None to leave it out. `tallies` are indexes that can only be
    counted (`count` with their name), which costs a backend one number for each key. `read_mostly`: a backend may keep
    decoded records of it in memory. `journal`: what the change feed keeps of a change besides its key, made from the
    record before (None: new) and after (None: deleted); `b""` for nothing. So a follower of the feed sees every state
    of the record, not only the newest one. `append_only`: records are written once, and hardly read: a backend keeps
    none of them in memory. Not `followed`: the change feed has nothing of it.
    """

    def __init__(
        self,
        name: str,
        record_type: type[R],
        key: Callable[[R], IndexKey],
        indexes: dict[str, Callable[[R], IndexKey | None]] | None = None,
        *,
        tallies: dict[str, Callable[[R], IndexKey | None]] | None = None,
        read_mostly: bool = False,
        journal: Callable[[R | None, R | None], bytes] | None = None,
        append_only: bool = False,
        followed: bool = True,
    ) -> None:
        self.name = name
        self.record_type = record_type
        self.key = key
        self.indexes = indexes or {}
        self.tallies = tallies or {}
        self.read_mostly = read_mostly
        self.journal = journal
        self.append_only = append_only
        self.followed = followed


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the change feed: which record changed, to which version, and because of what."""

    seq: int
    table: str
    key: IndexKey
    version: int
    """The version after the change; 0 means deleted."""
    cause: Cause
    note: bytes = b""
    """What the table's journal says of the change."""
    record: Record | None = None
    """The record after it, if that is at hand: it is for a while."""


class Reader(Protocol):
    """Reads one consistent state."""

    def get(self, table: Table[R], *key: str) -> R | None:
        """The record with this primary key, or None."""
        ...

    def scan(
        self,
        table: Table[R],
        *prefix: str,
        index: str | None = None,
        after: IndexKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        """Records whose key (in `index`, else the primary key) starts with `prefix`, in key order.

        `after`: only those whose *ordering key* comes after (with `reverse`: before) this one. The ordering key is
        the primary key, or for an index scan the index key followed by the primary key: `ordering_key` makes it.
        """
        ...

    def count(
        self, table: Table[R], *prefix: str, index: str | None = None, before: IndexKey | None = None
    ) -> int:
        """How many records `scan` would give; with `before` only those whose ordering key comes before this one.

        `index` can be one of the table's tallies (without `before`)."""
        ...


class Tx(Reader, Protocol):
    """A unit of work: reads see its own writes."""

    def put(self, table: Table[R], record: R) -> R:
        """Insert (version 0) or replace; returns the record with its new version. Raises `StaleWrite`."""
        ...

    def delete(self, table: Table[R], *key: str) -> bool:
        """Remove a record; says whether it was there."""
        ...


class Store(Protocol):
    """A place where records live. Opened and closed by a composition root; `StorageFull` when it can't write."""

    async def open(self) -> None:
        """Make it ready, migrating older formats forward. Refuses newer ones."""
        ...

    async def close(self) -> None: ...

    async def write(self, cause: Cause, work: Callable[[Tx], T]) -> T:
        """Run a unit of work; its result, after it is durable. What it raises is raised here, nothing applied."""
        ...

    def read(self) -> AbstractContextManager[Reader]:
        """A consistent snapshot that includes every write that has returned. Short-lived: do not await inside."""
        ...

    def last_seq(self) -> int:
        """The sequence number of the newest durable change (0 if none)."""
        ...

    def changes(self, after: int, limit: int = 1000) -> Sequence[Change] | None:
        """Changes after a sequence number, oldest first; None if the feed was trimmed past it (read it all anew)."""
        ...

    async def wait_for_change(self, after: int, tables: Set[str] | None = None) -> int:
        """Return the newest sequence number as soon as it is greater than `after`; with `tables` (names), as soon as a
        record of one of them has changed since, or where that can't be told any more."""
        ...


def ordering_key(table: Table[Any], record: Record, index: str | None = None) -> IndexKey:
    """Where a record stands in a scan; pass it as `after` to go on from there."""
    key: IndexKey = table.key(record)
    if index is None:
        return key
    index_key = table.indexes[index](record)
    if index_key is None:
        raise ValueError(f"record {key} is not in index {index} of {table.name}")
    return tuple(index_key) + tuple(key)
