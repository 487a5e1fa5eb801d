"""One WebSocket, as ASGI has it, with less ceremony."""

import contextlib

from hutch.api.gateway.http import Receive, Scope, Send

NORMAL = 1000
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011


class Socket:
    """A WebSocket that a client wants to open. One task receives; several may send."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self._receive = receive
        self._send = send
        self.is_open = False

    async def accept(self) -> None:
        """Say yes."""
        message = await self._receive()
        if message["type"] == "websocket.connect":
            await self._send({"type": "websocket.accept"})
            self.is_open = True

    async def receive(self) -> str | bytes | None:
        """The next message; None when the client is gone. What is not received makes the client wait."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self.is_open = False
            return None
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return text if text is not None else data

    async def send(self, data: bytes) -> None:
        """Send a binary message; waits while the client does not take it. To a client that is gone: nothing happens."""
        if self.is_open:
            try:
                await self._send({"type": "websocket.send", "bytes": data})
            except OSError:
                self.is_open = False

    async def close(self, code: int, reason: str = "") -> None:
        """End it. `reason`: at most 120 bytes of it are sent."""
        if self.is_open:
            self.is_open = False
            short = reason.encode()[:120].decode("utf-8", "ignore")
            # It may go away at the same moment.
            with contextlib.suppress(OSError, RuntimeError):
                await self._send({"type": "websocket.close", "code": code, "reason": short})
