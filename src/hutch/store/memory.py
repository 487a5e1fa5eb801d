"""The store in memory: for tests and simulations. As strict as the others, but gone with the process."""

import bisect
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec.structs import replace

from hutch.base.errors import StaleWrite
from hutch.model.record import Cause, Record
from hutch.store.contract import Change, IndexKey, Reader, Table, Tx
from hutch.store.feed import FeedSignal
from hutch.store.keys import after_prefix, encode_key
from hutch.store.tables import ALL_TABLES

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class _Index:
    """Ordering keys in order, each with the primary key that it stands for."""

    def __init__(self) -> None:
        self._order: list[str] = []
        self._primary: dict[str, str] = {}

    def add(self, ordering: str, primary: str) -> None:
        bisect.insort(self._order, ordering)
        self._primary[ordering] = primary

    def remove(self, ordering: str) -> None:
        del self._order[bisect.bisect_left(self._order, ordering)]
        del self._primary[ordering]

    def between(self, low: str, high: str) -> list[str]:
        return self._order[bisect.bisect_left(self._order, low) : bisect.bisect_left(self._order, high)]

    def primary(self, ordering: str) -> str:
        return self._primary[ordering]


class _TableData:
    def __init__(self, table: Table[Any]) -> None:
        self.table = table
        self.records: dict[str, Any] = {}
        self.indexes: dict[str | None, _Index] = {
            None: _Index(),
            **{name: _Index() for name in table.indexes},
        }
        self.tallies = {name: _Index() for name in table.tallies}

    def set(self, primary: str, record: Any) -> None:
        self.unset(primary)
        self.records[primary] = record
        for index, ordering in self._places(primary, record):
            index.add(ordering, primary)

    def unset(self, primary: str) -> None:
        old = self.records.pop(primary, None)
        if old is None:
            return
        for index, ordering in self._places(primary, old):
            index.remove(ordering)

    def _places(self, primary: str, record: Any) -> Iterator[tuple[_Index, str]]:
        yield self.indexes[None], primary
        for name, key_of in self.table.indexes.items():
            if (key := key_of(record)) is not None:
                yield self.indexes[name], encode_key(key) + primary
        for name, key_of in self.table.tallies.items():
            if (key := key_of(record)) is not None:
                yield self.tallies[name], encode_key(key) + primary


class _Handle:
    """Reads, and writes that can be taken back."""

    def __init__(self, tables: dict[str, _TableData]) -> None:
        self._tables = tables
        self.undo: list[tuple[_TableData, str, Any]] = []
        self.changes: list[tuple[str, IndexKey, Record | None, bytes]] = []

    def get(self, table: Table[R], *key: str) -> R | None:
        return self._tables[table.name].records.get(encode_key(key))

    def scan(
        self,
        table: Table[R],
        *prefix: str,
        index: str | None = None,
        after: IndexKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        data = self._tables[table.name]
        low, high = encode_key(prefix), after_prefix(encode_key(prefix))
        if after is not None and reverse:
            high = min(high, encode_key(after))
        elif after is not None:
            low = max(low, encode_key(after) + "\x00")
        order = data.indexes[index].between(low, high)
        if reverse:
            order = order[::-1]
        return [data.records[data.indexes[index].primary(o)] for o in order[:limit]]

    def count(
        self, table: Table[R], *prefix: str, index: str | None = None, before: IndexKey | None = None
    ) -> int:
        low = encode_key(prefix)
        high = after_prefix(low) if before is None else min(after_prefix(low), encode_key(before))
        data = self._tables[table.name]
        counted = data.tallies[index] if index in table.tallies else data.indexes[index]
        return len(counted.between(low, high))

    def put(self, table: Table[R], record: R) -> R:
        data = self._tables[table.name]
        primary = encode_key(table.key(record))
        stored = data.records.get(primary)
        if (stored.version if stored else 0) != record.version:
            raise StaleWrite(f"{table.name} {table.key(record)} changed since it was read")
        fresh = replace(record, version=record.version + 1)
        self.undo.append((data, primary, stored))
        data.set(primary, fresh)
        if table.followed:
            note = table.journal(stored, fresh) if table.journal else b""
            self.changes.append((table.name, table.key(record), fresh, note))
        return fresh

    def delete(self, table: Table[R], *key: str) -> bool:
        data = self._tables[table.name]
        primary = encode_key(key)
        stored = data.records.get(primary)
        if stored is None:
            return False
        self.undo.append((data, primary, stored))
        data.unset(primary)
        if table.followed:
            note = table.journal(stored, None) if table.journal else b""
            self.changes.append((table.name, key, None, note))
        return True

    def roll_back(self) -> None:
        for data, primary, stored in reversed(self.undo):
            if stored is None:
                data.unset(primary)
            else:
                data.set(primary, stored)


class MemoryStore:
    """`hutch.store.contract.Store` in memory. `feed_length` bounds the change feed."""

    def __init__(self, feed_length: int = 100_000) -> None:
        self._tables = {t.name: _TableData(t) for t in ALL_TABLES}
        self._feed: list[Change] = []
        self._feed_length = feed_length
        self._signal = FeedSignal()

    async def open(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def write(self, cause: Cause, work: Callable[[Tx], T]) -> T:
        handle = _Handle(self._tables)
        try:
            result = work(handle)
        except BaseException:
            handle.roll_back()
            raise
        seq = self._signal.newest
        fresh = [
            Change(
                seq=n,
                table=name,
                key=key,
                version=record.version if record else 0,
                cause=cause,
                note=note,
                record=record,
            )
            for n, (name, key, record, note) in enumerate(handle.changes, seq + 1)
        ]
        self._feed += fresh
        del self._feed[: -self._feed_length]
        self._signal.advance(seq + len(fresh), fresh)
        return result

    @contextmanager
    def read(self) -> Iterator[Reader]:
        yield _Handle(self._tables)

    def last_seq(self) -> int:
        return self._signal.newest

    def changes(self, after: int, limit: int = 1000) -> Sequence[Change] | None:
        oldest = self._feed[0].seq if self._feed else self._signal.newest + 1
        if after + 1 < oldest and after < self._signal.newest:
            return None
        start = max(0, after + 1 - oldest)
        return self._feed[start : start + limit]

    async def wait_for_change(self, after: int, tables: Set[str] | None = None) -> int:
        return await self._signal.wait_beyond(after, tables)
