"""The rounds of loops that carry decisions out: run again when they failed, and begun when something is due."""

import asyncio
from collections.abc import Awaitable, Callable, Set

from hutch.base.clock import Clock
from hutch.base.errors import StaleWrite, StorageFull
from hutch.base.log import get_logger
from hutch.store.contract import Reader, Store

log = get_logger(__name__)

RETRY_AFTER_STORAGE_FULL_S = 5.0
LONGEST_SLEEP_S = 60.0
"""The wall clock may be set while we sleep, which wakes nobody: nothing is later than this because of it."""


async def is_done(one_round: Callable[[], Awaitable[object]], what: str) -> bool:
    """Run one round. False: it is to be run again, because what it was decided from has changed meanwhile or, after a
    pause, because the disk was full. `what` says in the log what waits for that."""
    try:
        await one_round()
    except StaleWrite:
        return False
    except StorageFull as error:
        log.error("the state can't be written", waits=what, reason=error.message)
        await asyncio.sleep(RETRY_AFTER_STORAGE_FULL_S)
        return False
    return True


async def run_when_due(
    store: Store,
    clock: Clock,
    one_round: Callable[[], Awaitable[object]],
    what: str,
    *,
    tables: Set[str],
    next_at: Callable[[Reader], float | None],
    gather_s: float = 0.0,
) -> None:
    """For ever: a round whenever the next moment (epoch seconds; None: there is none) has come, and between these asleep
    until a record of one of the tables changes. Changes of `gather_s` seconds are looked at together."""
    while True:
        seen = store.last_seq()
        with store.read() as reader:
            moment = next_at(reader)
        if moment is not None and moment <= clock.now():
            await is_done(one_round, what)
            continue
        await wait_until(store, tables, seen, moment, clock)
        if gather_s:
            await asyncio.sleep(gather_s)


async def wait_until(store: Store, tables: Set[str], seen: int, moment: float | None, clock: Clock) -> None:
    """Return at `moment` (epoch seconds; None: never), or as soon as a record of one of the tables changes after
    `seen`."""
    while True:
        timeout = None if moment is None else min(LONGEST_SLEEP_S, max(0.0, moment - clock.now()))
        try:
            async with asyncio.timeout(timeout):
                await store.wait_for_change(seen, tables)
                return
        except TimeoutError:
            if moment is not None and clock.now() >= moment:
                return
