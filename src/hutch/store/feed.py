"""The change feed's newest end in memory: several loops follow it, and each would decode the same rows."""

import asyncio
from collections.abc import Sequence

from hutch.store.contract import Change

KEPT = 4096


class FeedSignal:
    """The newest durable sequence number, a way to wait for a newer one, and the latest changes. Used from one event
    loop."""

    def __init__(self) -> None:
        self.newest = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._recent: list[Change] = []

    def advance(self, newest: int, changes: Sequence[Change] = ()) -> None:
        """There are changes up to `newest`; `changes`: those since the call before, if they are at hand."""
        if newest <= self.newest:
            return
        if not changes or changes[0].seq != self.newest + 1:
            self._recent.clear()
        self._recent.extend(changes)
        if len(self._recent) > 2 * KEPT:
            del self._recent[:-KEPT]
        self.newest = newest
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def recent(self, after: int, limit: int) -> Sequence[Change] | None:
        """Changes after a number, oldest first; None if they are not kept here."""
        if after >= self.newest:
            return []
        if not self._recent or after + 1 < self._recent[0].seq:
            return None
        first = after + 1 - self._recent[0].seq  # numbers have no gaps
        return self._recent[first : first + limit]

    async def wait_beyond(self, after: int) -> int:
        """Return the newest number as soon as it is greater than `after`."""
        while self.newest <= after:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return self.newest
