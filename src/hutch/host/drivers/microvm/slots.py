"""How many VMs are launched at once: as many as there are CPUs to do it with."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from hutch.host.drivers.contract import SandboxPhase

T = TypeVar("T")
QUEUE_WORTH_TELLING_S = 0.01
"""A launch that waited longer for others than this shows it."""


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

    def __init__(self, count: int | None = None) -> None:
        """`count` None: one more than there are CPUs. More launches at once only take the CPUs from one another: twenty
        took 25 s, and now take 9."""
        self.count = count or (os.cpu_count() or 1) + 1
        self._free = asyncio.Semaphore(self.count)

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


def queue_phase(asked_at: float, begun_at: float) -> list[SandboxPhase]:
    """What the launch waterfall tells of the time that a launch waited for others."""
    if begun_at - asked_at <= QUEUE_WORTH_TELLING_S:
        return []
    return [SandboxPhase(name="queue", started_at=asked_at, ended_at=begun_at)]
