"""Waiting for a moment, or for a change that may bring it nearer."""

import asyncio
from collections.abc import Set

from hutch.base.clock import Clock
from hutch.store.contract import Store

LONGEST_S = 60.0
"""The wall clock may be set while we sleep, which wakes nobody: nothing is later than this because of it."""


async def wait_until(store: Store, tables: Set[str], seen: int, moment: float | None, clock: Clock) -> None:
    """Return at `moment` (epoch seconds; None: never), or as soon as a record of one of the tables changes after
    `seen`."""
    while True:
        timeout = None if moment is None else min(LONGEST_S, max(0.0, moment - clock.now()))
        try:
            async with asyncio.timeout(timeout):
                await store.wait_for_change(seen, tables)
                return
        except TimeoutError:
            if moment is not None and clock.now() >= moment:
                return
