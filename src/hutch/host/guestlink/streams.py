"""The host's end of an exec'ed process's streams in a guest: credit in both directions, and bounds for a hostile guest.

What the guest sends beyond the credit that it was given ends the stream; the session and its other streams go on.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from hutch.base.errors import HutchError
from hutch.model.exec import STDERR, STDOUT
from hutch.wire.guest import STREAM_CREDIT, STREAM_DATA, STREAM_WINDOW_BYTES

CHUNK_BYTES = 16 * 1024
_INPUT = b"\0"


class StreamBroken(HutchError):
    """The guest did not keep to the protocol on this stream."""


class GuestStream:
    """One process. Made by `GuestSession.open_stream`."""

    def __init__(
        self,
        number: int,
        answer: asyncio.Future[msgspec.Raw],
        send: Callable[[int, int, bytes], None],
        tell: Callable[..., object],
    ) -> None:
        """`send` queues a frame (kind, channel, payload), `tell` a request without an answer; both drop what they are
        given once the channel is closed."""
        self.number = number
        self.answer = answer
        """Of the request that opened it: comes when the process has ended, after all its output."""
        self._send = send
        self._tell = tell
        self._credit = STREAM_WINDOW_BYTES
        self._granted = STREAM_WINDOW_BYTES
        """What the guest may still send."""
        self._owed = 0
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._writing = asyncio.Lock()
        answer.add_done_callback(lambda _: self._wake())

    def take(self, kind: int, payload: bytes) -> None:
        """A frame from the guest. Raises `StreamBroken`."""
        if kind == STREAM_CREDIT:
            if len(payload) != 4:
                raise StreamBroken("a stream's credit is not a number")
            self._credit = min(self._credit + int.from_bytes(payload, "big"), STREAM_WINDOW_BYTES)
            self._room.set()
            return
        size = len(payload) - 1
        if size < 1 or payload[0] not in (STDOUT, STDERR):
            raise StreamBroken("a stream's data is not what the protocol says")
        if size > self._granted:
            raise StreamBroken("the guest sent more than it was given credit for")
        self._granted -= size
        self._arrived.append((payload[0], payload[1:]))
        self._news.set()

    async def write(self, data: bytes) -> None:
        """Input; returns when the guest has given credit for all of it, or the process has ended."""
        async with self._writing:
            while data and not self.answer.done():
                if not self._credit:
                    self._room.clear()
                    await self._room.wait()
                    continue
                size = min(self._credit, CHUNK_BYTES)
                self._credit -= min(size, len(data))
                self._send(STREAM_DATA, self.number, _INPUT + data[:size])
                data = data[size:]

    async def taken(self) -> None:
        """Return when the guest has given credit for all input so far, or the process has ended."""
        while self._credit < STREAM_WINDOW_BYTES and not self.answer.done():
            self._room.clear()
            await self._room.wait()

    async def close_input(self) -> None:
        """The end of input."""
        async with self._writing:
            if not self.answer.done():
                self._send(STREAM_DATA, self.number, _INPUT)

    def tell(self, operation: str, **members: Any) -> None:
        """Say something about the process (`exec_resize`, `exec_signal`, `exec_close`)."""
        if not self.answer.done():
            self._tell(operation, stream=self.number, **members)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What the process writes. Credit for it is given when the caller comes for more."""
        while True:
            self._news.clear()
            while self._arrived:
                stream, data = self._arrived.popleft()
                yield stream, data
                self._give_credit(len(data))
            if self.answer.done():
                return
            await self._news.wait()

    def _give_credit(self, size: int) -> None:
        self._owed += size
        if self._owed * 2 >= STREAM_WINDOW_BYTES and not self.answer.done():
            self._granted += self._owed
            self._send(STREAM_CREDIT, self.number, self._owed.to_bytes(4, "big"))
            self._owed = 0

    def _wake(self) -> None:
        self._room.set()
        self._news.set()
