"""A small client of Firecracker's API: HTTP on a unix socket. What answers may have been taken over by its guest, so
answers are bounded in size and time."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httptools
import msgspec

from hutch.base.errors import HutchError
from hutch.host.guestlink.unix import connect_unix
from hutch.host.kernel.inotify import FileWatcher

REQUEST_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
_LISTEN_TRIES = 50
_LISTEN_WAIT_S = 0.002


class FirecrackerError(HutchError):
    """Firecracker refused a request (`message` has its words), did not answer in time, or is gone."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request to the API. `timeout_s`: how long its work may take."""

    method: str
    path: str
    body: dict[str, Any]
    timeout_s: float = REQUEST_TIMEOUT_S


class _Answer:
    """Collects one answer, for httptools."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class FirecrackerApi:
    """The API of one Firecracker process. A connection for each request: there are less than ten in a VM's life."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    async def wait_until_there(self) -> None:
        """Return when the process, which was just started, has made its socket."""
        watcher = FileWatcher()
        try:
            watch = watcher.watch(self._path.parent)
            while not self._path.is_socket():
                await watch.changed.wait()
                watch.changed.clear()
        finally:
            watcher.close()

    async def send(self, request: Request) -> dict[str, Any]:
        """Send a request; the answer's document, {} if it has none. Raises `FirecrackerError`."""
        what = f"{request.method} {request.path}"
        try:
            async with asyncio.timeout(request.timeout_s):
                status, body = await self._exchange(request)
        except TimeoutError:
            raise FirecrackerError(
                f"Firecracker did not answer {what} within {request.timeout_s:g} s"
            ) from None
        except (OSError, httptools.HttpParserError) as error:
            raise FirecrackerError(f"Firecracker's API broke during {what}: {error}"[:500]) from None
        document = _document(body)
        if not 200 <= status < 300:
            reason = str(document.get("fault_message", ""))[:1000] or f"status {status}"
            raise FirecrackerError(f"Firecracker refused {what}: {reason}")
        return document

    async def send_all(self, requests: tuple[Request, ...]) -> None:
        """Send requests in their order, until one fails. Raises `FirecrackerError`."""
        for request in requests:
            await self.send(request)

    async def _exchange(self, request: Request) -> tuple[int, bytes]:
        reader, writer = await self._connect()
        try:
            body = msgspec.json.encode(request.body) if request.method != "GET" else b""
            head = (
                f"{request.method} {request.path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode("ascii") + body)
            answer = _Answer()
            parser = httptools.HttpResponseParser(answer)
            count = 0
            while not answer.complete:
                data = await reader.read(_READ_BYTES)
                count += len(data)
                if not data or count > MAX_ANSWER_BYTES:
                    raise ConnectionError("the answer is cut off" if not data else "the answer is too long")
                parser.feed_data(data)
            return int(parser.get_status_code()), answer.body
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(_LISTEN_TRIES):
            try:
                return await connect_unix(self._path, limit=_READ_BYTES)
            except ConnectionRefusedError:
                # The socket is there a moment before somebody listens on it, and nobody tells when that moment is over.
                await asyncio.sleep(_LISTEN_WAIT_S)
        return await connect_unix(self._path, limit=_READ_BYTES)


def _document(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"fault_message": body[:200].decode("utf-8", "replace")}
