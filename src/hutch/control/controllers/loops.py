"""The loops that carry decisions out: placement and retention. Each wakes on what it waits for, and on nothing else.

All are level-triggered: they look at the state, not at what led to it, so one that was killed anywhere does no harm
when it runs again.
"""

import asyncio

from hutch.base.clock import Clock
from hutch.base.errors import StaleWrite, StorageFull
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.ops.hosts import HostOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.placing import PlacementLimits, commit_plan, plan_for
from hutch.control.ops.tasks import stopped_before
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store, Tx

log = get_logger(__name__)

MAX_QUEUE_PER_PLAN = 500
TOKEN_LIFE_S = 24 * 3600.0
RETENTION_ROUND_S = 600.0
RETRY_AFTER_STORAGE_FULL_S = 5.0
_WAKES_PLACEMENT = frozenset(
    t.name for t in (tables.TASKS, tables.HOSTS, tables.CONTAINER_INSTANCES, tables.RESERVATIONS)
)


class PlacementLoop:
    """Places what waits, as soon as something changes that could matter to it."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, limits: PlacementLimits) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._limits = limits

    async def run(self) -> None:
        """For ever."""
        seen = -1
        while True:
            newest = self._store.last_seq()
            changes = self._store.changes(seen) if seen >= 0 else None
            if changes is None or any(c.table in _WAKES_PLACEMENT for c in changes):
                try:
                    await self.once()
                except StaleWrite:
                    continue
                except StorageFull as error:
                    log.error("placement waits", reason=error.message)
                    await asyncio.sleep(RETRY_AFTER_STORAGE_FULL_S)
                    continue
            seen = newest
            await self._store.wait_for_change(seen)

    async def once(self) -> int:
        """One round; how many tasks were placed. A waiting task's record is written only when its reason changes."""
        with self._store.read() as reader:
            queue = reader.scan(tables.TASKS, index="unplaced", limit=MAX_QUEUE_PER_PLAN)
            if not queue:
                return 0
            plan = plan_for(reader, queue, self._limits)
        reasons = {t.task_id: t.waiting_reason for t in queue}
        if not plan.placements and all(reasons[w.task.task_id] == w.reason for w in plan.waiting):
            return 0
        cause = Cause(id=self._ids.uuid(), actor="controller:placement", action="place")

        def work(tx: Tx) -> int:
            return len(
                commit_plan(tx, plan_for(tx, queue, self._limits), self._limits, self._ids, self._clock)
            )

        return await self._store.write(cause, work)


class RetentionLoop:
    """Drops what has outlived its time: stopped tasks, idempotency tokens, log events."""

    def __init__(
        self, store: Store, logs: LogOps, clock: Clock, ids: IdSource, *, stopped_task_retention_s: float
    ) -> None:
        self._store = store
        self._logs = logs
        self._clock = clock
        self._ids = ids
        self._retention_s = stopped_task_retention_s

    async def run(self) -> None:
        """For ever, each `RETENTION_ROUND_S` seconds: what is dropped here is old by hours at least."""
        while True:
            try:
                await self.once()
            except StorageFull as error:
                log.error("retention waits", reason=error.message)
            await asyncio.sleep(RETENTION_ROUND_S)

    async def once(self) -> int:
        """One round; how many records were dropped."""
        cause = Cause(id=self._ids.uuid(), actor="controller:retention", action="expire")

        def work(tx: Tx) -> int:
            old = stopped_before(tx, self._clock.now() - self._retention_s, 1000)
            for task in old:
                tx.delete(tables.TASKS, task.cluster, task.task_id)
            tokens = tx.scan(tables.IDEMPOTENCY_TOKENS, index="by_age", limit=1000)
            expired = [t for t in tokens if t.created_at < self._clock.now() - TOKEN_LIFE_S]
            for token in expired:
                tx.delete(tables.IDEMPOTENCY_TOKENS, token.scope, token.token)
            return len(old) + len(expired)

        dropped = await self._store.write(cause, work)
        await self._logs.expire()
        return dropped


class MembershipLoop:
    """Lets hosts join clusters that come into being."""

    def __init__(self, store: Store, hosts: HostOps) -> None:
        self._store = store
        self._hosts = hosts

    async def run(self) -> None:
        """For ever."""
        seen = self._store.last_seq()
        while True:
            await self._store.wait_for_change(seen)
            newest = self._store.last_seq()
            changes = self._store.changes(seen) or ()
            seen = newest
            for name in {c.key[0] for c in changes if c.table == tables.CLUSTERS.name and c.version}:
                with self._store.read() as reader:
                    cluster = reader.get(tables.CLUSTERS, name)
                if cluster and cluster.status == "ACTIVE":
                    await self._hosts.join_cluster(name)
