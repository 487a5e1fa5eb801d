"""Keeps what is held in memory as fresh as the store."""

from collections.abc import Sequence
from typing import Any

from hutch.store.contract import Store, Table


class TableWatch:
    """Says whether records of some tables may have changed since it was last asked."""

    def __init__(self, store: Store, tables: Sequence[Table[Any]]) -> None:
        self._store = store
        self._names = frozenset(t.name for t in tables)
        self._seen_seq = 0

    def changed(self) -> bool:
        """True also when the change feed no longer reaches back far enough to tell."""
        seq = self._store.last_seq()
        if seq == self._seen_seq:
            return False
        changes = self._store.changes(self._seen_seq)
        missed = changes is None or len(changes) < seq - self._seen_seq
        self._seen_seq = seq
        return missed or any(c.table in self._names for c in changes or ())
