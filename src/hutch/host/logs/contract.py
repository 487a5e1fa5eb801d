"""What a log back end must do: take a container's output, batch by batch, without ever holding up a task.

A sink that can't deliver tries again, for ever, with growing delays; meanwhile output waits in the container's file, and
what of it is dropped is decided and counted by the shipper. Rules for all sinks, checked by the contract suite:

- `send` returns "" when the batch is the back end's, as far as its protocol tells; with an error text if it never will be.
- A connection that is refused, hangs or breaks in the middle is `problem`, and is tried again.
- What was sent whole before a connection broke is not sent again; a batch that was not may arrive twice.
- Nothing raises on purpose but `CancelledError`, and no text holds a secret.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A line, or an event of several. `stream` is stdout or stderr; of several lines, that of the last."""

    time_ns: int
    stream: str
    text: str


class LogSink(Protocol):
    """A back end, for one container. Used by one shipper, one batch at a time."""

    max_batch_bytes: int

    async def send(self, entries: tuple[LogEntry, ...]) -> str:
        """Hand a batch over; see the module."""
        ...

    @property
    def problem(self) -> str:
        """Why nothing gets through just now; "" while it does."""
        ...

    @property
    def stuck(self) -> asyncio.Event:
        """Set while there is a problem."""
        ...

    async def close(self) -> None:
        """Let go of connections. No error if it is done twice."""
        ...


class Connection(Protocol):
    """A stream to a back end."""

    async def write(self, data: bytes) -> None:
        """Returns when all of it has left this host, as far as can be told. Raises `OSError` once it is broken."""
        ...

    async def read(self, limit: int) -> bytes:
        """What the other end says; b"" when it has hung up. Raises `OSError`."""
        ...

    async def close(self) -> None: ...


Dial = Callable[[], Awaitable[Connection]]
"""Open a connection. Raises `OSError` or `HutchError` with what is wrong."""
