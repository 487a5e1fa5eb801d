"""What answers a task at 169.254.170.2: what is known of it, what it uses, and the credentials of its role.

Who asks is told by the address that a request comes from, which the bridge's rules let no other task use; and the path holds
an id that only the task's environment has. So another task's credentials and metadata can neither be asked for nor guessed.
"""

import asyncio
import contextlib
import hmac
import socket
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Unavailable
from hutch.base.log import get_logger
from hutch.host.agent import agent_api
from hutch.host.agent.credentials import RoleCredentials, RoleRefused
from hutch.host.agent.dockerstats import Sample, Samples, docker_stats
from hutch.host.agent.metadata import TaskView, container_document, docker_id, task_document
from hutch.wire.fleet import CredentialsGiven
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)

CREDENTIALS_PATH = "/v2/credentials/"
AGENT_API_PATH = "/api/"
METADATA_VERSIONS = ("v3", "v4")
STATS_TIMEOUT_S = 5.0
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

    def __init__(
        self, task_at: Callable[[str], TaskView | None], credentials: RoleCredentials, clock: Clock
    ) -> None:
        self._task_at = task_at
        self._credentials = credentials
        self._samples = Samples(clock)
        self._server: asyncio.Server | None = None
        self._connections: Counter[str] = Counter()
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Serve on a socket that listens already."""
        self._server = await asyncio.start_server(self._accept, sock=listening, limit=MAX_HEAD_BYTES)

    @property
    def is_serving(self) -> bool:
        return self._server is not None

    def forget(self, task_id: str) -> None:
        """The task is gone."""
        self._samples.forget(task_id)

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
            method, path = _request_line(head)
            if path.startswith(AGENT_API_PATH):
                body = await reader.readexactly(_body_length(head)) if method != "GET" else b""
                return _response(*self._agent_api(method, path, body, address))
            if method != "GET":
                raise _Refused(405, "InvalidMethod", "Use GET.")
            return _response(200, await self._document(path, address))
        except _Refused as refused:
            return _response(refused.status, {"code": refused.code, "message": refused.message})

    def _agent_api(self, method: str, path: str, body: bytes, address: str) -> tuple[int, Any]:
        view = self._task_at(address)
        metadata_id, _, what = path.removeprefix(AGENT_API_PATH).partition("/")
        if view is not None and _container_at(view, metadata_id) is not None:
            found = agent_api.answer(view, method, what, body)
            if found is not None:
                return found
        raise _Refused(404, "NotFound", f"Nothing is served at {path[:100]} for {method[:10]}.")

    async def _document(self, path: str, address: str) -> Any:
        """What the task at an address finds at a path."""
        view = self._task_at(address)
        if view is not None:
            if path.startswith(CREDENTIALS_PATH):
                wanted = path.removeprefix(CREDENTIALS_PATH)
                if view.spec.credentials_id and _same(wanted, view.spec.credentials_id):
                    return await self._credentials_of(view.spec.task_id)
            else:
                version, _, rest = path.removeprefix("/").partition("/")
                metadata_id, _, what = rest.partition("/")
                container = _container_at(view, metadata_id)
                if version in METADATA_VERSIONS and container is not None:
                    return await self._metadata(view, container, version, what.rstrip("/"))
        raise _Refused(404, "NotFound", f"Nothing is served at {path[:100]}.")

    async def _credentials_of(self, task_id: str) -> dict[str, str]:
        try:
            return _shape(await self._credentials.get(task_id))
        except RoleRefused as error:
            raise _Refused(403, "AccessDenied", error.message) from None
        except Unavailable as error:
            raise _Refused(503, "Unavailable", error.message) from None
        except HutchError as error:
            log.error("credentials not served", task=task_id, reason=error.message)
            raise _Refused(503, "Unavailable", "The credentials can't be served; try again.") from None

    async def _metadata(self, view: TaskView, container: ContainerSpec, version: str, what: str) -> Any:
        if what == "":
            return container_document(view, container, version)
        if what in ("task", "taskWithTags"):
            wants_disk = version == "v4" and view.spec.launch_type == "FARGATE"
            disk_bytes = await self._disk_bytes(view, container) if wants_disk else None
            return task_document(view, version, tags=what == "taskWithTags", disk_bytes=disk_bytes)
        if what in ("stats", "task/stats"):
            now, before = await self._sample(view, container)
            of = {c.name: docker_id(view, c) for c in view.spec.containers}
            if what == "stats":
                return docker_stats(view.spec, container, of[container.name], now, before)
            return {
                of[c.name]: docker_stats(view.spec, c, of[c.name], now, before) for c in view.spec.containers
            }
        raise _Refused(
            404,
            "NotFound",
            "Of a container there are its path itself, /stats, /task, /task/stats, /taskWithTags.",
        )

    async def _sample(self, view: TaskView, container: ContainerSpec) -> tuple[Sample, Sample | None]:
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await self._samples.get(
                    view.spec.task_id, container.name, view.take_stats, view.take_traffic
                )
        except HutchError as error:
            raise _Refused(
                503, "Unavailable", f"What the task uses can't be told: {error.message}."
            ) from None
        except TimeoutError:
            raise _Refused(
                503, "Unavailable", "What the task uses can't be told in time; try again."
            ) from None

    async def _disk_bytes(self, view: TaskView, container: ContainerSpec) -> int | None:
        """What the task's disk takes; None where that is not known, which spoils nothing else."""
        try:
            now, _ = await self._sample(view, container)
        except _Refused:
            return None
        return now.stats.disk_bytes


def _request_line(head: bytes) -> tuple[str, str]:
    """Method and path."""
    method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    if not rest.startswith("/"):
        raise _Refused(400, "InvalidRequest", "This is no HTTP request.")
    return method, rest.partition(" ")[0].partition("?")[0]


def _body_length(head: bytes) -> int:
    """How many bytes follow. Chunks are not taken: no client sends so little in chunks."""
    lengths = [
        v
        for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        if k.lower() == b"content-length"
    ]
    text = lengths[0].strip() if lengths else b"0"
    if len(lengths) > 1 or not text.isdigit() or len(text) > 6 or int(text) > agent_api.MAX_BODY_BYTES:
        raise _Refused(
            400,
            "InvalidRequest",
            f"The body must have a Content-Length of at most {agent_api.MAX_BODY_BYTES}.",
        )
    return int(text)


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _container_at(view: TaskView, metadata_id: str) -> ContainerSpec | None:
    """The container that a path names; all are compared, each in constant time."""
    found = [c for c in view.spec.containers if c.metadata_id and _same(metadata_id, c.metadata_id)]
    return found[0] if found else None


def _shape(given: CredentialsGiven) -> dict[str, str]:
    """As SDKs read it."""
    return {
        "RoleArn": given.role_arn,
        "AccessKeyId": given.access_key_id,
        "SecretAccessKey": given.secret_access_key,
        "Token": given.session_token,
        "Expiration": datetime.fromtimestamp(given.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _response(status: int, body: Any) -> bytes:
    data = msgspec.json.encode(body)
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
