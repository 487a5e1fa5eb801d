"""The control end of the hosts' connections: who is connected, and what reaches which host.

Every connected host has a `HostSession`; what is said to a host goes through it. The fleet tells the sessions, record by
record, about the tasks that the change feed tells of.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable
from typing import Any

import msgspec

from hutch.base.errors import HutchError, Invalid, Unavailable
from hutch.base.log import get_logger
from hutch.control.host_session import FleetContext, HostSession
from hutch.control.host_streams import HostStream, StreamDesk
from hutch.control.rounds import is_done
from hutch.model.exec import ExecSpec
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.contract import Change, Reader
from hutch.wire import fleet as wire
from hutch.wire.codec import read_message

log = get_logger(__name__)

HOST_ARRIVAL_S = 10.0


class Fleet:
    """All connected hosts of this control plane."""

    def __init__(self, context: FleetContext) -> None:
        self._context = context
        self._sessions: dict[str, HostSession] = {}
        self._newest: dict[str, HostSession] = {}
        """The newest connection of each host, from its hello on: the end of an older one says nothing about the host."""
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Event()
        self._streams = StreamDesk()

    async def listen(self, socket_path: str) -> None:
        """Serve host agents on a unix socket (mode 0600: only our own uid can connect)."""
        bound = socket.socket(socket.AF_UNIX)
        # Not a chmod afterwards: nobody else may connect in between either.
        before = os.umask(0o177)
        try:
            bound.bind(socket_path)
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._serve, sock=bound)

    async def close(self) -> None:
        """End all sessions; tasks are not touched."""
        if self._server:
            self._server.close()
        for session in list(self._sessions.values()):
            session.close()
        self._streams.close()
        if self._server:
            await self._server.wait_closed()

    @property
    def connected_host_ids(self) -> tuple[str, ...]:
        return tuple(self._sessions)

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Ask a host to do something; its result. Raises what the host answered, or `Unavailable`."""
        with contextlib.suppress(TimeoutError):
            # A platform that has just been started: its host is about to connect.
            async with asyncio.timeout(HOST_ARRIVAL_S):
                while not (host_id in self._sessions or (not host_id and self._sessions)):
                    self._arrived.clear()
                    await self._arrived.wait()
        session = self._sessions.get(host_id) if host_id else next(iter(self._sessions.values()), None)
        if session is None:
            raise Unavailable(f"host {host_id or '(any)'} is not connected; `hutch doctor` says why")
        return await session.request(verb, arguments)

    async def open_stream(self, host_id: str, task_id: str, container: str, spec: ExecSpec) -> HostStream:
        """Have a host run a process in a container of a task; its streams. Raises what the host answers, or
        `Unavailable`."""
        stream_id = self._context.ids.hex(64)
        expected = self._streams.expect(host_id, stream_id)
        taken = False
        try:
            request = {"stream_id": stream_id, "task_id": task_id, "container": container}
            await self.request(host_id, "task.exec", request | {"spec": msgspec.to_builtins(spec)})
            stream = await self._streams.wait(stream_id, expected)
            taken = True
            return stream
        finally:
            if not taken:
                self._streams.forget(stream_id)

    async def dispatch_changes(self) -> None:
        """For ever: tell hosts about task records that changed."""
        store = self._context.store
        seen = store.last_seq()
        while True:
            await store.wait_for_change(seen, {tables.TASKS.name})
            changes = store.changes(seen)
            if changes is None:
                seen = store.last_seq()
                for session in list(self._sessions.values()):
                    session.send_all()
                continue
            seen = changes[-1].seq if changes else seen
            latest = {c.key: c for c in changes if c.table == tables.TASKS.name and c.version}
            with store.read() as reader:
                for change in latest.values():
                    self._dispatch(reader, change)

    def _dispatch(self, reader: Reader, change: Change) -> None:
        task = change.record or reader.get(tables.TASKS, *change.key)
        if isinstance(task, Task) and (owner := self._sessions.get(task.host_id)):
            owner.send_task(reader, task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: HostSession | None = None
        try:
            hello = await asyncio.wait_for(read_message(reader, wire.FromHost), 10)
            if isinstance(hello, wire.StreamHello):
                await self._streams.attach(hello, reader, writer)
                return
            if not isinstance(hello, wire.Hello) or hello.protocol != wire.PROTOCOL_VERSION:
                log.warning("host refused", reason="no hello of protocol version 1")
                return
            session = HostSession(self._context, hello, reader, writer)
            if old := self._newest.get(hello.host_id):
                old.close()
            self._newest[hello.host_id] = session
            await session.welcome()
            self._sessions[hello.host_id] = session
            self._arrived.set()
            session.send_all()
            await session.run()
        except (
            TimeoutError,
            asyncio.IncompleteReadError,
            ConnectionError,
            msgspec.DecodeError,
            Invalid,
        ) as error:
            log.info("host connection ended", reason=str(error) or type(error).__name__)
        except HutchError as error:
            log.error("host session failed", reason=error.message)
        finally:
            writer.close()
            if session and self._sessions.get(session.host_id) is session:
                del self._sessions[session.host_id]
            if session and self._newest.get(session.host_id) is session:
                del self._newest[session.host_id]
                await self._record_end(session)
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _record_end(self, session: HostSession) -> None:
        """The host is not connected any more: recorded as soon as the state can be written, unless it is back by then."""
        host_id, hosts = session.host_id, self._context.hosts

        def record() -> Awaitable[None]:
            return hosts.disconnected(host_id, session.silent_s)

        try:
            while host_id not in self._newest and not await is_done(
                record, f"the end of {host_id}'s connection"
            ):
                pass
        except HutchError as error:
            log.error("end of a host's connection not recorded", host=host_id, reason=error.message)
