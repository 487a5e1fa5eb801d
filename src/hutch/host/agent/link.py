"""The host's connection to the control plane, as those see it who send over it."""

import asyncio

from hutch.wire import fleet as wire
from hutch.wire.codec import MessageWriter


class ControlLink:
    """There is a connection, or there is none just now."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._messages: MessageWriter | None = None
        self.welcomed = asyncio.Event()
        """Set from the control plane's welcome to the end of the connection."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, welcomed or not."""
        return self._writer is not None

    def opened(self, writer: asyncio.StreamWriter) -> None:
        """There is a connection."""
        self._writer = writer
        self._messages = MessageWriter(writer)

    def ended(self) -> None:
        """It is no more."""
        self._writer = self._messages = None
        self.welcomed.clear()

    def send(self, message: wire.FromHost) -> None:
        """Queue a message; without a connection it is dropped."""
        if self._messages is not None:
            self._messages.send(message)

    async def drain(self) -> None:
        """Wait until most of what is queued is with the kernel."""
        if self._writer is not None and self._messages is not None:
            self._messages.flush()
            await self._writer.drain()
