"""A task's clean-up on this host: all that its set-up may have made goes.

It works alone: every step runs even if an earlier one fails, and does no harm if the set-up never came to it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.host.agent.context import RunnerContext
from hutch.host.agent.record import TaskRecord
from hutch.host.agent.tasklogs import TaskLogs
from hutch.host.drivers.contract import Driver
from hutch.model.task import CauseLink
from hutch.rules.containers import has_failed

log = get_logger(__name__)

STEP_LIMIT_S = 120.0
LOG_DRAIN_S = 5.0
TRIES = 3


class CleanUp:
    """Endpoint, sandbox, network, images and logs of one task."""

    def __init__(
        self, context: RunnerContext, driver: Driver | None, record: TaskRecord, logs: TaskLogs
    ) -> None:
        """`driver` None: the task never had a sandbox."""
        self._context = context
        self._driver = driver
        self._record = record
        self._spec = record.spec
        self._logs = logs

    async def run(self) -> list[CauseLink]:
        """Do all of it, whatever happens to one step; what could not be removed."""
        left = []
        for name, step in (
            ("ingress", partial(self._context.ingress.withdraw, self._spec.task_id)),
            ("sandbox", self._destroy),
            ("network", partial(self._context.network.detach, self._spec)),
            ("images", self._release),
            ("logs", partial(self._logs.drain, LOG_DRAIN_S)),
        ):
            if (error := await self._try(step)) is not None:
                log.error("clean-up step failed", task=self._spec.task_id, step=name, reason=str(error))
                text = f"the task's {name} could not be removed from the host: {error}"
                left.append(
                    CauseLink(kind="CleanUpFailed", text=text, fix="the next start of hutch tries again")
                )
        return left

    async def _try(self, step: Callable[[], Awaitable[object]]) -> Exception | None:
        delays = backoff_seconds(0.2, 2.0, Random(self._spec.task_id))
        for attempt in range(TRIES):
            try:
                async with asyncio.timeout(STEP_LIMIT_S):
                    await step()
                return None
            except Exception as error:  # noqa: BLE001 (the other steps must run; what is left is told)
                if attempt + 1 == TRIES:
                    return error
            await asyncio.sleep(next(delays))
        return None

    async def _destroy(self) -> None:
        if self._driver is None:
            return
        if self._record.file.handle is not None:
            try:
                is_failure = has_failed(self._record.seen.machine)
                await self._context.kept.keep(self._driver, self._record.file, is_failure=is_failure)
            finally:
                await self._driver.destroy(self._record.file.handle)
        else:
            await self._driver.destroy_leftovers(str(self._record.directory), self._spec.task_id)

    async def _release(self) -> None:
        if not self._context.kept.has(self._spec.task_id):
            self._context.images.release(self._spec.task_id)
