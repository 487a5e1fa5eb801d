"""Batches of log events, each sent until the control plane says that it has it."""

import asyncio

from hutch.host.agent.link import ControlLink
from hutch.rules.awslogs import parse_options
from hutch.wire import fleet as wire
from hutch.wire.facts import LogEvent
from hutch.wire.taskspec import ContainerSpec, TaskSpec


class LogBatches:
    """Those of all tasks of this host."""

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self._number = 0
        self._waits: dict[int, asyncio.Future[str]] = {}

    async def send(self, task: TaskSpec, container: ContainerSpec, events: tuple[LogEvent, ...]) -> str:
        """Hand a batch over; returns when it is durable, however often the connection breaks meanwhile. The text says why it
        was refused; it is empty if it was not."""
        options = parse_options(container.log.options)
        while True:
            await self._link.welcomed.wait()
            self._number += 1
            wait: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self._waits[self._number] = wait
            self._link.send(
                wire.LogBatch(
                    batch=self._number,
                    task_id=task.task_id,
                    container=container.name,
                    group=options.group,
                    stream=container.log.stream,
                    create_group=options.create_group,
                    events=events,
                )
            )
            try:
                return await wait
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise

    def acknowledged(self, answer: wire.LogAck) -> None:
        """The control plane has one, or refuses it."""
        wait = self._waits.pop(answer.batch, None)
        if wait is not None and not wait.done():
            wait.set_result(answer.error)

    def disconnected(self) -> None:
        """What is not acknowledged is sent again over the next connection."""
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()
