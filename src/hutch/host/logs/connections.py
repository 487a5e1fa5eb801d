"""Connections of the host to log back ends: TCP, TLS, UDP, and a unix socket that a container made."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import stat
from typing import Any

from hutch.host.logs.contract import Connection
from hutch.rules.logdrivers.options import Address


class StreamConnection:
    """TCP, TLS or a unix stream; implements `Connection`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # What is written has left us, or is waited for: nothing to be lost stays in our own buffers.
        writer.transport.set_write_buffer_limits(high=0)

    async def write(self, data: bytes) -> None:
        """Send; raises `OSError` when the other end has hung up."""
        if self._reader.at_eof() or self._writer.is_closing():
            raise ConnectionResetError("the other end has hung up")
        self._writer.write(data)
        await self._writer.drain()

    async def read(self, limit: int) -> bytes:
        """What the other end says."""
        return await self._reader.read(limit)

    async def close(self) -> None:
        """Hang up, without waiting for a peer that does not answer."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class DatagramConnection:
    """UDP: each write is a datagram; implements `Connection`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def write(self, data: bytes) -> None:
        """Send one datagram. Raises `OSError`, also for what the kernel heard of earlier ones."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self, limit: int) -> bytes:
        """Nobody answers."""
        return b""

    async def close(self) -> None:
        """Close the socket."""
        self._socket.close()


async def dial(address: Address, *, verify: bool = True) -> Connection:
    """Connect to a back end. Raises `OSError` (also for a name that is not known, or a certificate that is not trusted)."""
    where = await _look_up(address)
    if address.transport == "udp":
        return await _dial_udp(where)
    context: ssl.SSLContext | None = None
    if address.transport == "tls":
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    name = address.host if context is not None else None
    reader, writer = await asyncio.open_connection(
        str(where[0]), address.port, ssl=context, server_hostname=name
    )
    return StreamConnection(reader, writer)


async def _look_up(address: Address) -> tuple[Any, ...]:
    """Where a name leads. A cloud's metadata, and what else is on the host's own link only, is no log server."""
    found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for *_, where in found:
        if not ipaddress.ip_address(str(where[0]).partition("%")[0]).is_link_local:
            return where
    raise PermissionError("link-local addresses are refused")


async def _dial_udp(where: tuple[Any, ...]) -> DatagramConnection:
    family = socket.AF_INET6 if ":" in str(where[0]) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return DatagramConnection(sock)


async def dial_container_socket(path: str) -> StreamConnection:
    """Connect to a unix socket in a directory that a container can write to: to this very socket, never to one of the
    host's that a link there leads to. Raises `OSError`."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError("it is not a socket")
        return StreamConnection(*await asyncio.open_unix_connection(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
