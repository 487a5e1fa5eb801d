"""Waiting for the change feed to grow: one event for all who wait, set by whoever made a change durable."""

import asyncio


class FeedSignal:
    """The newest durable sequence number, and a way to wait for a newer one. Used from one event loop."""

    def __init__(self) -> None:
        self.newest = 0
        self._waiters: list[asyncio.Future[None]] = []

    def advance(self, newest: int) -> None:
        """There are changes up to `newest`."""
        if newest <= self.newest:
            return
        self.newest = newest
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_beyond(self, after: int) -> int:
        """Return the newest number as soon as it is greater than `after`."""
        while self.newest <= after:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return self.newest
