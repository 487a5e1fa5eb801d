"""Frames between a client's WebSocket and its process, as they are; both directions make the other side wait."""

import asyncio

from hutch.api.sessions.socket import NORMAL, Socket
from hutch.base.errors import HutchError
from hutch.control.exec_sessions import ExecSession, ExecSessions
from hutch.control.host_streams import HostStream, decode_to_process, encode_frame
from hutch.model.exec import Exited, Failed


async def relay(socket: Socket, sessions: ExecSessions, session: ExecSession) -> None:
    """Run the session's process and carry its streams until it has ended or the client is gone. Raises `Invalid` for
    what is no frame."""
    session.served = socket
    try:
        try:
            stream = await sessions.start(session, session.spec)
        except HutchError as error:
            await socket.send(encode_frame(Failed(error.code or type(error).__name__, error.message)))
            await socket.close(NORMAL)
            return
        session.end = stream.close
        await _carry(socket, stream)
    finally:
        sessions.forget(session)


async def _carry(socket: Socket, stream: HostStream) -> None:
    down = asyncio.create_task(_to_client(socket, stream))
    up = asyncio.create_task(_to_process(socket, stream))
    try:
        await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
        if down.done():
            await socket.close(NORMAL)
        else:
            up.result()
    finally:
        for part in (down, up):
            part.cancel()
        await asyncio.gather(down, up, return_exceptions=True)
        stream.close()


async def _to_client(socket: Socket, stream: HostStream) -> None:
    while True:
        frame = await stream.receive()
        await socket.send(encode_frame(frame))
        if isinstance(frame, Exited | Failed):
            return


async def _to_process(socket: Socket, stream: HostStream) -> None:
    while (data := await socket.receive()) is not None:
        if isinstance(data, bytes):
            await stream.send(decode_to_process(data))
