"""The awslogs sink: batches go to the control plane, which keeps CloudWatch Logs."""

import asyncio
from collections.abc import Awaitable, Callable

from hutch.host.logs.contract import LogEntry
from hutch.wire.facts import LogEvent

SendEvents = Callable[[tuple[LogEvent, ...]], Awaitable[str]]
"""Returns when the events are durable, with "" or why they never will be."""


class AwslogsSink:
    """One container's stream; implements `LogSink`."""

    max_batch_bytes = 900_000
    problem = ""

    def __init__(self, send: SendEvents) -> None:
        self._send = send
        self.stuck = asyncio.Event()

    async def send(self, entries: tuple[LogEntry, ...]) -> str:
        """Hand events over."""
        return await self._send(
            tuple(LogEvent(timestamp_ms=e.time_ns // 1_000_000, message=e.text) for e in entries)
        )

    async def close(self) -> None:
        """Nothing is held."""
