"""The change feed's newest end in memory: several loops follow it, and each would decode the same rows."""

import asyncio
from collections.abc import Sequence, Set

from hutch.store.contract import Change

KEPT = 4096


class FeedSignal:
    """The newest durable sequence number, a way to wait for a newer one, and the latest changes. Used from one event
    loop."""

    def __init__(self) -> None:
        self.newest = 0
        self._waiters: list[tuple[asyncio.Future[None], Set[str] | None]] = []
        self._recent: list[Change] = []

    def advance(self, newest: int, changes: Sequence[Change] = ()) -> None:
        """There are changes up to `newest`; `changes`: those since the call before, if they are at hand."""
        if newest <= self.newest:
            return
        at_hand = bool(changes) and changes[0].seq == self.newest + 1
        if not at_hand:
            self._recent.clear()
        self._recent.extend(changes)
        if len(self._recent) > 2 * KEPT:
            del self._recent[:-KEPT]
        self.newest = newest
        # Of what is not at hand nobody can tell which tables it concerns.
        touched = {c.table for c in changes} if at_hand and changes[-1].seq == newest else None
        left: list[tuple[asyncio.Future[None], Set[str] | None]] = []
        for waiter, tables in self._waiters:
            if waiter.done():
                continue  # given up meanwhile
            if tables is None or touched is None or not tables.isdisjoint(touched):
                waiter.set_result(None)
            else:
                left.append((waiter, tables))
        self._waiters = left

    def recent(self, after: int, limit: int) -> Sequence[Change] | None:
        """Changes after a number, oldest first; None if they are not kept here."""
        if after >= self.newest:
            return []
        if not self._recent or after + 1 < self._recent[0].seq:
            return None
        first = after + 1 - self._recent[0].seq  # numbers have no gaps
        return self._recent[first : first + limit]

    async def wait_beyond(self, after: int, tables: Set[str] | None = None) -> int:
        """Return the newest number as soon as it is greater than `after`, and a record of one of the tables changed
        (if some are given)."""
        while not (self.newest > after and self._touches(after, tables)):
            after = max(after, self.newest)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((waiter, tables))
            await waiter
        return self.newest

    def _touches(self, after: int, tables: Set[str] | None) -> bool:
        if tables is None:
            return True
        changes = self.recent(after, 2 * KEPT)
        return changes is None or any(c.table in tables for c in changes)
