"""Stops tasks that have run for as long as they may (`hutch:maxRuntime`)."""

import asyncio

from hutch.base.clock import Clock
from hutch.base.errors import StaleWrite, StorageFull
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.events.waiting import wait_until
from hutch.control.ops.placing import store_stopped
from hutch.model.record import Cause
from hutch.rules import lifecycle
from hutch.rules.deadline import MAX_RUNTIME_TAG
from hutch.store import tables
from hutch.store.contract import Store, Tx

log = get_logger(__name__)

MAX_AT_ONCE = 100
GATHER_S = 0.5
"""Tasks change all the time, and few have a deadline: how often they are looked at, and how late a stop may be."""
RETRY_AFTER_STORAGE_FULL_S = 5.0


class DeadlineLoop:
    """Level-triggered: deadlines are in the task records, so those that passed while we were away count too."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def run(self) -> None:
        """For ever: asleep until the next deadline, or until a task changes."""
        while True:
            seen = self._store.last_seq()
            with self._store.read() as reader:
                first = reader.scan(tables.TASKS, index="by_deadline", limit=1)
            next_at = first[0].deadline if first else None
            if next_at is None or next_at > self._clock.now():
                await wait_until(self._store, {tables.TASKS.name}, seen, next_at, self._clock)
                await asyncio.sleep(GATHER_S)
                continue
            try:
                await self.once()
            except StaleWrite:
                continue
            except StorageFull as error:
                log.error("deadlines wait", reason=error.message)
                await asyncio.sleep(RETRY_AFTER_STORAGE_FULL_S)

    async def once(self) -> int:
        """Ask for the end of every task whose time is up; how many."""
        cause = Cause(id=self._ids.uuid(), actor="controller:deadlines", action="stop")

        def work(tx: Tx) -> int:
            now, count = self._clock.now(), 0
            for task in tx.scan(tables.TASKS, index="by_deadline", limit=MAX_AT_ONCE):
                if task.deadline is None or task.deadline > now:
                    break
                after = lifecycle.stop_requested(
                    task,
                    lifecycle.USER_INITIATED,
                    f"The task ran for its longest time of {task.max_runtime_s} s (tag {MAX_RUNTIME_TAG})",
                    "controller:deadlines",
                    now,
                    kind="MaxRuntimeExceeded",
                )
                store_stopped(tx, task, after)
                count += 1
            return count

        return await self._store.write(cause, work)
