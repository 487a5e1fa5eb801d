"""Stand-ins for log back ends, with dials: a server takes logs, hangs, refuses, or resets connections in the middle."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

import msgspec

TAKES, HANGS, REFUSES, RESETS = "takes", "hangs", "refuses", "resets"


class LogServer:
    """A stream server; what arrived is in `got`. Subclasses know a protocol. `ways`: RESETS ends a connection after its
    first bytes, once; then it takes."""

    def __init__(self) -> None:
        self.way = TAKES
        self.got: list[str] = []
        self.port = 0
        self.connections = 0
        self.context: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._news = asyncio.Condition()

    async def listen(self, *, path: str = "") -> None:
        """On a port of the loopback interface (the same one again), or on a unix socket."""
        if path:
            # By way of its directory: paths of sockets are short.
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
            name = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
            self._server = await asyncio.start_unix_server(self._serve, name)
            os.close(directory)
        else:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, ssl=self.context, limit=1 << 20
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def become(self, way: str) -> None:
        """From now on it behaves like this."""
        self.way = way
        if way == REFUSES:
            await self.close()
        elif self._server is None:
            await self.listen()
        for writer in list(self._writers):
            writer.transport.abort()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(holds)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        async with self._news:
            self._news.notify_all()
        try:
            if self.way == HANGS:
                # Nothing is read: the transport takes a little, then the sender's kernel is full.
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await writer.wait_closed()
            elif self.way == RESETS:
                await reader.read(10)
                self.way = TAKES
                async with self._news:
                    self._news.notify_all()
                raw = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
            else:
                await self.converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def took(self, texts: list[str]) -> None:
        self.got += texts
        async with self._news:
            self._news.notify_all()


class ForwardServer(LogServer):
    """fluentd's protocol: the router's or the server's end. `records` are (tag, time, record)."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, Any, dict[str, str]]] = []

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        while part := await reader.read(1 << 16):
            data += part
            try:
                tag, entries, option = msgspec.msgpack.decode(data)
            except msgspec.DecodeError:
                continue
            data = b""
            self.records += [(tag, time, record) for time, record in entries]
            if "chunk" in option:
                writer.write(msgspec.msgpack.encode({"ack": option["chunk"]}))
            await self.took([record["log"] for _, record in entries])


class SyslogServer(LogServer):
    """Lines over TCP or TLS. `lines` are as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[bytes] = []

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()).endswith(b"\n"):
            self.lines.append(line)
            await self.took([line.decode().rstrip("\n").partition(": ")[2]])
