"""The loop that places tasks that wait for room.

Level-triggered: it looks at the state, not at what led to it, so one that was killed anywhere does no
harm when it runs again.
"""

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.ops.placing import PlacementLimits, commit_plan, plan_for
from hutch.control.rounds import is_done
from hutch.model.host import ContainerInstance, Host, Reservation
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.contract import Change, IndexKey, Reader, Store, Tx, ordering_key

MAX_QUEUE_PER_PLAN = 500
_ROOM_TABLES = {t.name for t in (tables.HOSTS, tables.CONTAINER_INSTANCES, tables.RESERVATIONS)}
_WAKES_PLACEMENT = _ROOM_TABLES | {tables.TASKS.name}


class PlacementLoop:
    """Places what waits, as soon as something changes that could matter to it.

    A new task is tried once; the whole queue again only when a host may have more room than before.
    """

    def __init__(self, store: Store, clock: Clock, ids: IdSource, limits: PlacementLimits) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._seen = -1
        self._rooms: dict[str, _Room] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            if await is_done(self.once, "placement"):
                await self._store.wait_for_change(self._seen, _WAKES_PLACEMENT)
            else:
                # Room that this round found is found again by the next.
                self._seen = -1
                self._rooms.clear()

    async def once(self) -> int:
        """One round; how many tasks were placed."""
        newest = self._store.last_seq()
        if self._seen >= 0 and not self._somebody_waits():
            # What room there is matters to nobody; who waits next finds all of it to be more than was known.
            self._rooms.clear()
            self._seen = newest
            return 0
        changes = self._store.changes(self._seen) if self._seen >= 0 else None
        touched = {c.table for c in changes} if changes is not None else _WAKES_PLACEMENT
        placed = 0
        if touched & _ROOM_TABLES and self._room_grew(changes):
            placed = await self._place("unplaced")
        elif tables.TASKS.name in touched:
            placed = await self._place("untried")
        # Only now: a round that failed is done again.
        self._seen = newest if not changes else changes[-1].seq
        return placed

    def _somebody_waits(self) -> bool:
        with self._store.read() as reader:
            return bool(reader.scan(tables.TASKS, index="unplaced", limit=1))

    async def _place(self, index: str) -> int:
        """Go through the queue in its order; a record is written only when its task is placed or its reason changes."""
        after: IndexKey | None = None
        placed = 0
        while True:
            with self._store.read() as reader:
                queue = reader.scan(tables.TASKS, index=index, after=after, limit=MAX_QUEUE_PER_PLAN)
                plan = plan_for(reader, queue, self._limits) if queue else None
            if plan is None:
                return placed
            after = ordering_key(tables.TASKS, queue[-1], index)
            concerned = [p.task for p in plan.placements]
            concerned += [w.task for w in plan.waiting if w.task.waiting_reason != w.reason]
            if concerned:
                placed += await self._commit(concerned)
            else:
                await asyncio.sleep(0)  # a long queue is looked through in slices

    async def _commit(self, tasks: list[Task]) -> int:
        cause = Cause(id=self._ids.uuid(), actor="controller:placement", action="place")

        def work(tx: Tx) -> int:
            # Planned again on what holds now, so that no room is given out twice.
            plan = plan_for(tx, tasks, self._limits)
            return commit_plan(tx, plan, self._limits, self._ids, self._clock)

        return await self._store.write(cause, work)

    def _room_grew(self, changes: Sequence[Change] | None) -> bool:
        """Whether a host came, changed, or has promised less than when we last looked."""
        hosts = None if changes is None else {host for c in changes if (host := _host_of(c)) is not None}
        grew = False
        with self._store.read() as reader:
            if hosts is None or "" in hosts:
                hosts = {h.host_id for h in reader.scan(tables.HOSTS)}
                self._rooms = {k: v for k, v in self._rooms.items() if k in hosts}
            for host_id in hosts:
                room = _room(reader, host_id)
                grew |= room.is_more_than(self._rooms.get(host_id))
                self._rooms[host_id] = room
        return grew


class _Room(msgspec.Struct, frozen=True):
    """What decides which tasks fit on a host."""

    host: Host | None
    """Without the members that change with every report."""
    instances: tuple[ContainerInstance, ...]
    promised: Reservation

    def is_more_than(self, before: "_Room | None") -> bool:
        if before is None or (self.host, self.instances) != (before.host, before.instances):
            return True
        now, then = self.promised, before.promised
        return (
            now.memory_mib < then.memory_mib
            or now.cpu_units < then.cpu_units
            or now.task_count < then.task_count
        )


def _room(reader: Reader, host_id: str) -> _Room:
    host = reader.get(tables.HOSTS, host_id)
    return _Room(
        replace(host, version=0) if host else None,
        tuple(reader.scan(tables.CONTAINER_INSTANCES, host_id, index="by_host")),
        reader.get(tables.RESERVATIONS, host_id) or Reservation(host_id=host_id),
    )


def _host_of(change: Change) -> str | None:
    """The host whose room a change may concern; "" for any, None for none."""
    if change.table in (tables.HOSTS.name, tables.RESERVATIONS.name):
        return change.key[0]
    return "" if change.table == tables.CONTAINER_INSTANCES.name else None
