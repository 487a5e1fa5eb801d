"""Answers leave in one write.

uvicorn writes the head of an answer, then its body. Each write wakes the client up, which then runs instead of the server
(with two CPUs, at a fifth of the server's time). So what is written in one round of the event loop is gathered here: all
answers of a round, a commit's for instance, are complete before the first client sees one.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_GATHERED_BYTES = 64 * 1024
"""More is written at once, so that the transport's own bounds are felt by whoever writes."""
MAX_HEAD_BYTES = 128 * 1024
"""Of a request's line and headers, beyond what came with its first bytes."""


class GatheringTransport(asyncio.Transport):
    """A transport that writes once in a round of the event loop; all else is the one below's."""

    def __init__(self, below: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._below = below
        self._loop = loop
        self._parts: list[bytes] = []
        self._bytes = 0

    def write(self, data: Any) -> None:
        """Send, this round of the loop."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(bytes(data))
        self._bytes += len(data)
        if self._bytes > MAX_GATHERED_BYTES:
            self.flush()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """As `write` of each."""
        for data in list_of_data:
            self.write(data)

    def flush(self) -> None:
        """Hand what is written to the transport below now. If that one closed by itself (the client went away), it is lost:
        there is nobody to get it, and writing there is an error."""
        if self._parts:
            parts, self._parts, self._bytes = self._parts, [], 0
            if not self._below.is_closing():
                self._below.write(b"".join(parts))

    def close(self) -> None:
        """Send what is written, then close."""
        self.flush()
        self._below.close()

    def abort(self) -> None:
        """Close at once; what is written is lost."""
        self._parts, self._bytes = [], 0
        self._below.abort()

    def write_eof(self) -> None:
        """Send what is written, then that there is no more."""
        self.flush()
        self._below.write_eof()

    def can_write_eof(self) -> bool:
        """As below."""
        return self._below.can_write_eof()

    def is_closing(self) -> bool:
        """As below."""
        return self._below.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As below."""
        return self._below.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As below."""
        return self._below.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As below."""
        self._below.set_protocol(protocol)

    def is_reading(self) -> bool:
        """As below."""
        return self._below.is_reading()

    def pause_reading(self) -> None:
        """As below."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """As below."""
        self._below.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As below."""
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As below."""
        return self._below.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """What the one below holds, and what it is to get."""
        return self._below.get_write_buffer_size() + self._bytes


class GatheringHttpProtocol(HttpToolsProtocol):
    """uvicorn's, over a `GatheringTransport`; so are the WebSockets that it hands its connection to."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        self._in_head = self._began = False
        self._head_bytes = 0
        super().connection_made(GatheringTransport(transport, self.loop))

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, which would take in a head without an end."""
        goes_on, self._began = self._in_head, False
        super().data_received(data)
        if goes_on and self._in_head and not self._began:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    b"431 Request Header Fields Too Large", f"More than {MAX_HEAD_BYTES} bytes of headers."
                )

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._in_head = self._began = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The last byte of its head."""
        self._in_head = False
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """As uvicorn's, which leaves whom its library does not understand without an answer."""
        super().handle_websocket_upgrade()
        if not getattr(self.transport.get_protocol(), "handshake_initiated", True):
            self._refuse(b"400 Bad Request", "Invalid WebSocket handshake.")

    def _refuse(self, status: bytes, message: str) -> None:
        head = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(message)}\r\nconnection: close\r\n\r\n"
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + (head + message).encode("ascii"))
        self.transport.close()

    def eof_received(self) -> None:
        """The client sends no more, and the transport is about to close: what is written goes before that."""
        self.transport.flush()  # type: ignore[attr-defined]
        super().eof_received()
