"""What answers a task at 169.254.170.2: the credentials of its role.

Who asks is told by the address that a request comes from, which the bridge's rules let no other task use; and the path holds
an id that only the task's environment has. So another task's credentials can neither be asked for nor guessed.
"""

import asyncio
import contextlib
import hmac
import socket
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from hutch.base.errors import HutchError, Unavailable
from hutch.base.log import get_logger
from hutch.host.agent.credentials import RoleCredentials, RoleRefused
from hutch.wire.fleet import CredentialsGiven, TaskSpec

log = get_logger(__name__)

CREDENTIALS_PATH = "/v2/credentials/"
MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_OF_ONE = 16
REQUEST_TIMEOUT_S = 15.0
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class TaskEndpoint:
    """A small HTTP/1.1 server. `task_at` finds the running task of an address."""

    def __init__(self, task_at: Callable[[str], TaskSpec | None], credentials: RoleCredentials) -> None:
        self._task_at = task_at
        self._credentials = credentials
        self._server: asyncio.Server | None = None
        self._connections: Counter[str] = Counter()
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Serve on a socket that listens already."""
        self._server = await asyncio.start_server(self._accept, sock=listening, limit=MAX_HEAD_BYTES)

    @property
    def is_serving(self) -> bool:
        return self._server is not None

    async def close(self) -> None:
        """Answer nobody from now on."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        full = (
            self._connections.total() >= MAX_CONNECTIONS
            or self._connections[address] >= MAX_CONNECTIONS_OF_ONE
        )
        self._connections[address] += 1
        try:
            if not full:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    writer.write(await self._answer(reader, address))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever does not speak HTTP, or goes away, gets no answer
        finally:
            self._connections[address] -= 1
            if not self._connections[address]:
                del self._connections[address]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, address: str) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        try:
            return _response(200, await self._credentials_for(head, address))
        except _Refused as refused:
            return _response(refused.status, {"code": refused.code, "message": refused.message})

    async def _credentials_for(self, head: bytes, address: str) -> dict[str, str]:
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if not rest.startswith("/"):
            raise _Refused(400, "InvalidRequest", "This is no HTTP request.")
        if method != "GET":
            raise _Refused(405, "InvalidMethod", "Use GET.")
        task = self._task_at(address)
        wanted = path.removeprefix(CREDENTIALS_PATH).encode()
        if (
            task is None
            or not task.credentials_id
            or not path.startswith(CREDENTIALS_PATH)
            or not hmac.compare_digest(wanted, task.credentials_id.encode())
        ):
            raise _Refused(404, "NotFound", f"Nothing is served at {path[:100]}.")
        try:
            return _shape(await self._credentials.get(task.task_id))
        except RoleRefused as error:
            raise _Refused(403, "AccessDenied", error.message) from None
        except Unavailable as error:
            raise _Refused(503, "Unavailable", error.message) from None
        except HutchError as error:
            log.error("credentials not served", task=task.task_id, reason=error.message)
            raise _Refused(503, "Unavailable", "The credentials can't be served; try again.") from None


def _shape(given: CredentialsGiven) -> dict[str, str]:
    """As SDKs read it."""
    return {
        "RoleArn": given.role_arn,
        "AccessKeyId": given.access_key_id,
        "SecretAccessKey": given.secret_access_key,
        "Token": given.session_token,
        "Expiration": datetime.fromtimestamp(given.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _response(status: int, body: dict[str, str]) -> bytes:
    data = msgspec.json.encode(body)
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
