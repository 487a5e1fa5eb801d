"""A session over the Systems Manager protocol: the pure channel of `rules.ssm`, a WebSocket that may come and go, and the
process behind it.

Messages are never left unread, since acknowledgements come the same way as input: input that the process does not take is
not acknowledged instead, and the client sends it again.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from msgspec.structs import replace

from hutch.api.sessions.socket import NORMAL, Socket
from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Invalid
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.exec_sessions import ExecSession, ExecSessions
from hutch.control.host_streams import HostStream
from hutch.model.exec import Exited, Failed, Input, Output, Resize, ToProcess
from hutch.rules.ssm.channel import DataChannel, Event, HandshakeDone, Terminate
from hutch.rules.ssm.message import channel_closed

log = get_logger(__name__)

MAX_WAITING_INPUT = 256
FIRST_SIZE_TIMEOUT_S = 1.0
"""Clients tell their terminal's size right after the handshake; the process starts with it."""
LAST_ACKNOWLEDGEMENTS_S = 5.0
RESUME_S = 60.0
"""How long a client whose connection broke may take to come back."""


class SsmSession:
    """Serves one session, over one WebSocket after another."""

    def __init__(self, sessions: ExecSessions, session: ExecSession, clock: Clock, ids: IdSource) -> None:
        self._sessions = sessions
        self._session = session
        self._clock = clock
        self._ids = ids
        self._channel = DataChannel(ids.uuid)
        self._socket: Socket | None = None
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._ending = False
        self._waiting: asyncio.Queue[ToProcess] = asyncio.Queue()
        self._size: asyncio.Future[Resize] = asyncio.get_running_loop().create_future()
        self._stream: HostStream | None = None
        self._works: set[asyncio.Task[None]] = set()
        session.end = lambda: self._begin(self._finish("The session was terminated."))

    async def serve(self, socket: Socket) -> None:
        """Serve a WebSocket until it closes. An earlier one is closed."""
        earlier, self._socket = self._socket, socket
        self._changed.set()
        if earlier is not None:
            await earlier.close(NORMAL, "the session was resumed elsewhere")
        if not self._works:
            self._channel.greet(self._clock.monotonic(), self._now_ms())
            self._begin(self._send_again())
        else:
            self._channel.outbox = self._channel.again(self._clock.monotonic())
        await self._flush()
        while not self._over.is_set() and (data := await socket.receive()) is not None:
            if isinstance(data, bytes):
                await self._take(data)
        if self._socket is socket:
            self._socket = None
            if not self._over.is_set():
                self._begin(self._wait_for_return())

    async def _take(self, data: bytes) -> None:
        try:
            events = self._channel.receive(
                data,
                self._clock.monotonic(),
                self._now_ms(),
                takes_input=self._waiting.qsize() < MAX_WAITING_INPUT,
            )
        except Invalid as error:
            log.info("session ended", session=self._session.session_id, reason=error.message)
            self._begin(self._finish(error.message))
            return
        for event in events:
            self._obey(event)
        self._changed.set()
        await self._flush()

    def _obey(self, event: Event) -> None:
        match event:
            case HandshakeDone():
                self._begin(self._run_process())
            case Terminate():
                self._begin(self._finish(""))
            case Resize():
                if not self._size.done():
                    self._size.set_result(event)
                self._waiting.put_nowait(event)
            case Input():
                self._waiting.put_nowait(event)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._work_ended)

    def _work_ended(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session failed", session=self._session.session_id, reason=repr(error))
            self._let_go()

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)

    async def _flush(self) -> None:
        """Send what is to be sent; while the client is away it is kept where it is not acknowledged."""
        async with self._sending:
            while self._channel.outbox:
                message = self._channel.outbox.pop(0)
                if self._socket is not None:
                    await self._socket.send(message)

    # -- the process

    async def _run_process(self) -> None:
        spec = self._session.spec
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SIZE_TIMEOUT_S):
                size = await asyncio.shield(self._size)
                spec = replace(spec, rows=size.rows, cols=size.cols)
        try:
            self._stream = await self._sessions.start(self._session, spec)
        except HutchError as error:
            await self._finish(error.message)
            return
        if self._over.is_set():
            self._stream.close()
            return
        self._begin(self._feed(self._stream))
        await self._finish(await self._show(self._stream))

    async def _feed(self, stream: HostStream) -> None:
        while True:
            await stream.send(await self._waiting.get())

    async def _show(self, stream: HostStream) -> str:
        """Send the process's output as the client takes it; what to say at its end."""
        while True:
            frame = await stream.receive()
            match frame:
                case Output(_, data):
                    while not self._channel.has_room:
                        self._changed.clear()
                        await self._changed.wait()
                    self._channel.send_output(data, self._clock.monotonic(), self._now_ms())
                    self._changed.set()
                    await self._flush()
                case Exited(exit_code):
                    return f"The command ended with exit code {exit_code}." if exit_code else ""
                case Failed(_, message):
                    return message

    # -- its end

    async def _send_again(self) -> None:
        """For ever: send again what is overdue."""
        while True:
            at = self._channel.resend_at()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else max(0.01, at - self._clock.monotonic())):
                    await self._changed.wait()
            message = self._channel.overdue(self._clock.monotonic())
            if message is not None and self._socket is not None:
                async with self._sending:
                    await self._socket.send(message)

    async def _wait_for_return(self) -> None:
        """The client is away: let its session go if it does not come back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUME_S):
                while self._socket is None and not self._over.is_set():
                    self._changed.clear()
                    await self._changed.wait()
        if self._socket is None:
            self._let_go()

    async def _finish(self, text: str) -> None:
        """Say that it is over, once the client has all output, and let go."""
        if self._ending:
            return
        self._ending = True
        if self._stream is not None:
            self._stream.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ACKNOWLEDGEMENTS_S):
                while not self._channel.all_acknowledged:
                    self._changed.clear()
                    await self._changed.wait()
        socket = self._socket
        if socket is not None:
            await socket.send(
                channel_closed(self._session.session_id, text, self._ids.uuid(), self._now_ms())
            )
            await socket.close(NORMAL)
        self._let_go()

    def _let_go(self) -> None:
        self._over.set()
        self._changed.set()
        self._sessions.forget(self._session)
        if self._stream is not None:
            self._stream.close()
        current = asyncio.current_task()
        for work in self._works:
            if work is not current:
                work.cancel()
