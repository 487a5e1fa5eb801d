"""How many VMs are launched at once: as many as there are CPUs to do it with."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class LaunchSlot:
    """The right to launch a VM now."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self.held = True

    async def lend(self, work: Awaitable[T]) -> T:
        """Do something that takes its time and not this launch's CPU: others launch meanwhile. The slot is held again
        when this returns or raises; unless it is cancelled, then nobody launches with it any more."""
        self._free.release()
        self.held = False
        (outcome,) = await asyncio.gather(work, return_exceptions=True)
        await self._free.acquire()
        self.held = True
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class LaunchSlots:
    """Launches wait for one another in the order in which they came."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[LaunchSlot]:
        """For as long as a launch takes."""
        await self._free.acquire()
        slot = LaunchSlot(self._free)
        try:
            yield slot
        finally:
            if slot.held:
                self._free.release()
