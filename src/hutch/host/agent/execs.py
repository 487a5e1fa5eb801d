"""Further processes in this host's containers, for whoever the control plane lets: each on a connection of its own.

The control plane asks over the fleet connection; the host runs the process, then dials the fleet's socket once more and
says which stream it brings. From there on the kernel's buffers are the backpressure: a stream that nobody reads stops its
process, and never the fleet connection. The process ends with the connection, whoever ends that.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.background import Background
from hutch.base.errors import HutchError, Invalid
from hutch.base.log import get_logger
from hutch.host.drivers.contract import ExecStream, HostFault
from hutch.model.exec import (
    MAX_CHUNK_BYTES,
    MAX_TERMINAL_SIZE,
    ExecSpec,
    Exited,
    Failed,
    Input,
    Output,
    Resize,
    Signal,
)
from hutch.wire.codec import write_message
from hutch.wire.fleet import StreamHello
from hutch.wire.streams import decode_to_process, read_frame, write_frame

log = get_logger(__name__)

MAX_EXECS = 1024
MAX_COMMAND_BYTES = 32 * 1024
EndpointOf = Callable[[str, str, ExecSpec], Awaitable[ExecStream]]
"""(task id, container, what to run) to the process. Raises `HostFault`."""


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of the verb `task.exec`."""

    stream_id: str
    task_id: str
    container: str
    spec: ExecSpec


class TaskExecs:
    """All of one host agent."""

    def __init__(self, host_id: str, control_socket: Path, start: EndpointOf) -> None:
        self._host_id = host_id
        self._control_socket = control_socket
        self._start = start
        self._serving = Background(lambda error: log.error("exec session failed", reason=repr(error)))

    async def open(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run a process and connect its streams; returns when both are done. Raises `HutchError`, `OSError`."""
        try:
            request = msgspec.convert(arguments, ExecRequest)
        except msgspec.ValidationError as error:
            raise Invalid(f"not a request to exec: {error}") from None
        check_spec(request.spec)
        if len(self._serving) >= MAX_EXECS:
            raise HostFault("TooManyExecs", f"there are {MAX_EXECS} exec sessions on this host already")
        stream = await self._start(request.task_id, request.container, request.spec)
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._control_socket))
            write_message(writer, StreamHello(host_id=self._host_id, stream_id=request.stream_id))
        except BaseException:
            await stream.close()
            raise
        self._serving.start(_serve(stream, reader, writer))
        return {}

    async def close(self) -> None:
        """End all of them."""
        await self._serving.end()


def check_spec(spec: ExecSpec) -> None:
    """Raises `Invalid` for what is out of bounds."""
    if not spec.command or not spec.command[0]:
        raise Invalid("the command is empty")
    if sum(len(word.encode()) for word in spec.command) > MAX_COMMAND_BYTES:
        raise Invalid(f"the command can have at most {MAX_COMMAND_BYTES} bytes")
    if any("\0" in word for word in (*spec.command, spec.user)):
        raise Invalid("the command can't hold a zero byte")
    if not (0 < spec.rows <= MAX_TERMINAL_SIZE and 0 < spec.cols <= MAX_TERMINAL_SIZE):
        raise Invalid("the terminal's size is out of bounds")


async def _serve(stream: ExecStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until the process has ended and all it wrote is sent, or the connection is gone."""
    output = asyncio.create_task(_send_output(stream, writer))
    listening = asyncio.create_task(_take_input(stream, reader))
    whole = False
    try:
        await asyncio.wait({output, listening}, return_when=asyncio.FIRST_COMPLETED)
        if output.done():
            output.result()
            # The other end hangs up when it has read all. Not we: a socket that is closed with something unread in it takes
            # what the other end has not read yet with it.
            await listening
            whole = True
    except ConnectionError:
        pass  # whoever asked has gone
    finally:
        for part in (output, listening):
            part.cancel()
        await asyncio.gather(output, listening, return_exceptions=True)
        await stream.close()
        if not whole:
            # What is on its way may never be read.
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _send_output(stream: ExecStream, writer: asyncio.StreamWriter) -> None:
    try:
        async for kind, data in stream.output():
            for start in range(0, len(data), MAX_CHUNK_BYTES):
                await write_frame(writer, Output(kind, data[start : start + MAX_CHUNK_BYTES]))
        await write_frame(writer, Exited(await stream.wait() & 255))
    except HostFault as fault:
        text = f"{fault.message}; {fault.fix}" if fault.fix else fault.message
        await write_frame(writer, Failed(fault.kind, text))


async def _take_input(stream: ExecStream, reader: asyncio.StreamReader) -> None:
    while (data := await read_frame(reader)) is not None:
        try:
            frame = decode_to_process(data)
        except HutchError as error:
            log.error("exec session ended", reason=error.message)
            return
        match frame:
            case Input(b""):
                await stream.close_input()
            case Input(given):
                await stream.write(given)
            case Resize(rows, cols):
                await stream.resize(rows, cols)
            case Signal(number):
                await stream.signal(number)
