"""Batches of findings, each sent until the control plane says that it has it."""

import asyncio

from hutch.host.agent.link import ControlLink
from hutch.wire import fleet as wire
from hutch.wire.facts import FindingFact


class FindingBatches:
    """Those of all tasks of this host."""

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self._number = 0
        self._waits: dict[int, asyncio.Future[None]] = {}

    async def send(self, task_id: str, findings: tuple[FindingFact, ...]) -> None:
        """Hand a batch over; returns when it is durable, however often the connection breaks meanwhile."""
        while True:
            await self._link.welcomed.wait()
            self._number += 1
            wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waits[self._number] = wait
            self._link.send(wire.FindingBatch(batch=self._number, task_id=task_id, findings=findings))
            try:
                return await wait
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise

    def acknowledged(self, answer: wire.FindingsAck) -> None:
        """The control plane has one."""
        wait = self._waits.pop(answer.batch, None)
        if wait is not None and not wait.done():
            wait.set_result(None)

    def disconnected(self) -> None:
        """What is not acknowledged is sent again over the next connection."""
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()
