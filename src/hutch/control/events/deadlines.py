"""Stops tasks that have run for as long as they may (`hutch:maxRuntime`)."""

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.ops.placing import store_stopped
from hutch.control.rounds import run_when_due
from hutch.model.record import Cause
from hutch.rules import lifecycle
from hutch.rules.deadline import MAX_RUNTIME_TAG
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

MAX_AT_ONCE = 100
GATHER_S = 0.5
"""Tasks change all the time, and few have a deadline: how often they are looked at, and how late a stop may be."""


class DeadlineLoop:
    """Level-triggered: deadlines are in the task records, so those that passed while we were away count too."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def run(self) -> None:
        """For ever: asleep until the next deadline, or until a task changes."""
        await run_when_due(
            self._store,
            self._clock,
            self.once,
            "the end of tasks whose time is up",
            tables={tables.TASKS.name},
            next_at=_next,
            gather_s=GATHER_S,
        )

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


def _next(reader: Reader) -> float | None:
    """When the first task's time is up."""
    first = reader.scan(tables.TASKS, index="by_deadline", limit=1)
    return first[0].deadline if first else None
