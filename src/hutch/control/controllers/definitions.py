"""The loop that finishes DeleteTaskDefinitions: a revision goes when no task that is not stopped is made of it.

A revision that still has a task is remembered with that task as its witness, and looked at again only when the
witness changes: with a full fleet, the many other changes cost nothing.
"""

from hutch.base.ids import IdSource
from hutch.control.ops.taskdefs import DELETE_IN_PROGRESS, remove_unused
from hutch.control.rounds import is_done
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Change, Store

MAX_CHANGES = 1000
"""Of the feed, read at once; when there are more, the state itself is looked at instead."""

_WATCHED = {tables.TASK_DEFINITIONS.name, tables.TASKS.name}


class DefinitionLoop:
    """Removes task definition revisions whose deletion was asked for."""

    def __init__(self, store: Store, ids: IdSource) -> None:
        self._store = store
        self._ids = ids
        self._witnesses: frozenset[tuple[str, ...]] = frozenset()

    async def run(self) -> None:
        """For ever."""
        seen = -1
        while True:
            newest = self._store.last_seq()
            changes = self._store.changes(seen, MAX_CHANGES) if seen >= 0 else None
            looks = changes is None or len(changes) == MAX_CHANGES or any(self._matters(c) for c in changes)
            if looks and not await is_done(self.once, "removal of task definitions"):
                continue
            seen = newest
            await self._store.wait_for_change(seen, _WATCHED)

    def _matters(self, change: Change) -> bool:
        if change.table == tables.TASK_DEFINITIONS.name:
            return change.version != 0
        return change.table == tables.TASKS.name and change.key in self._witnesses

    async def once(self) -> int:
        """One round; how many revisions were removed."""
        with self._store.read() as reader:
            waiting = reader.count(tables.TASK_DEFINITIONS, DELETE_IN_PROGRESS, index="by_status")
        if not waiting:
            self._witnesses = frozenset()
            return 0
        cause = Cause(id=self._ids.uuid(), actor="controller:definitions", action="remove")
        removed, self._witnesses = await self._store.write(cause, remove_unused)
        return removed
