"""The WebSocket edge: who brings the token of a session is connected to its process.

    /v1/data-channel/SESSION    the Systems Manager protocol, for session-manager-plugin
    /hutch/v1/exec/SESSION      plain frames, for `hutch exec`

The token is in the first message and not in the address, so that it is in nobody's log.
"""

import asyncio

import msgspec

from hutch.api.gateway.http import Receive, Scope, Send
from hutch.api.sessions.data_channel import SsmSession
from hutch.api.sessions.relay import relay
from hutch.api.sessions.socket import INTERNAL_ERROR, POLICY_VIOLATION, Socket
from hutch.base.clock import Clock
from hutch.base.errors import AccessDenied, HutchError
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.exec_sessions import ExecSession, ExecSessions

log = get_logger(__name__)

DATA_CHANNEL_PATH = "/v1/data-channel/"
NATIVE_PATH = "/hutch/v1/exec/"
MAX_MESSAGE_BYTES = 128 * 1024
TOKEN_TIMEOUT_S = 10.0
MAX_UNPROVEN = 256


class _OpenDataChannel(msgspec.Struct):
    """The first message."""

    token: str = msgspec.field(name="TokenValue")


class SessionSockets:
    """The ASGI application for WebSockets."""

    def __init__(self, sessions: ExecSessions, clock: Clock, ids: IdSource) -> None:
        self._sessions = sessions
        self._clock = clock
        self._ids = ids
        self._unproven = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket to its end."""
        socket = Socket(scope, receive, send)
        await socket.accept()
        try:
            session = await self._session_of(socket)
            if session is None:
                await socket.close(POLICY_VIOLATION, "no valid token for a session came")
            elif socket.path.startswith(NATIVE_PATH):
                await relay(socket, self._sessions, session)
            else:
                await self._data_channel(socket, session)
        except HutchError as error:
            await socket.close(POLICY_VIOLATION, error.message)
        except Exception:
            log.exception("internal error in a session", path=socket.path[:200])
            await socket.close(INTERNAL_ERROR, "internal error")

    async def _session_of(self, socket: Socket) -> ExecSession | None:
        """The session that the first message has the token of. The token is of one protocol's session only: each is
        named after the protocol."""
        native = socket.path.startswith(NATIVE_PATH)
        if self._unproven >= MAX_UNPROVEN or not (native or socket.path.startswith(DATA_CHANNEL_PATH)):
            return None
        session_id = socket.path.removeprefix(NATIVE_PATH if native else DATA_CHANNEL_PATH)
        if session_id.startswith("hutch-exec-") is not native:
            return None
        self._unproven += 1
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_S):
                first = await socket.receive()
            if first is None:
                return None
            return self._sessions.claim(session_id, msgspec.json.decode(first, type=_OpenDataChannel).token)
        except (TimeoutError, msgspec.DecodeError, UnicodeDecodeError, AccessDenied):
            return None
        finally:
            self._unproven -= 1

    async def _data_channel(self, socket: Socket, session: ExecSession) -> None:
        if not isinstance(session.served, SsmSession):
            session.served = SsmSession(self._sessions, session, self._clock, self._ids)
        await session.served.serve(socket)
