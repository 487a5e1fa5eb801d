"""The loop that drops what has outlived its time: stopped tasks, idempotency tokens, log events."""

import asyncio

from hutch.base.clock import Clock
from hutch.base.errors import StorageFull
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.ops.logs import LogOps
from hutch.control.ops.tasks import stopped_before
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store, Tx

log = get_logger(__name__)

TOKEN_LIFE_S = 24 * 3600.0
ROUND_S = 600.0


class RetentionLoop:
    """Level-triggered: a round looks at what is old by now, whatever came before."""

    def __init__(
        self, store: Store, logs: LogOps, clock: Clock, ids: IdSource, *, stopped_task_retention_s: float
    ) -> None:
        self._store = store
        self._logs = logs
        self._clock = clock
        self._ids = ids
        self._retention_s = stopped_task_retention_s

    async def run(self) -> None:
        """For ever, each `ROUND_S` seconds: what is dropped here is old by hours at least."""
        while True:
            try:
                await self.once()
            except StorageFull as error:
                log.error("retention waits", reason=error.message)
            await asyncio.sleep(ROUND_S)

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
