"""What the gateway needs of ASGI: reading bodies within limits, answering, and the answer that streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from hutch.api.gateway.faults import Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooLarge(Exception):
    """A body beyond its limit."""


class Disconnected(Exception):
    """The client went away before its request was complete; there is nobody to answer."""


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers by lower-case name; one that is given several times, joined by commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `Disconnected`."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


async def read_body(receive: Receive, headers: MutableMapping[str, str], limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises `TooLarge`, `Disconnected`."""
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdecimal() and (len(length) > 15 or int(length) > limit):
        raise TooLarge
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise TooLarge
        return body
    return await _read_parts(message, receive, limit)


async def _read_parts(first: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    if first["type"] == "http.disconnect":
        raise Disconnected
    parts: list[bytes] = [first.get("body", b"")]
    size = len(parts[0])
    if size > limit:
        raise TooLarge
    async for chunk in chunks(receive):
        size += len(chunk)
        if size > limit:
            raise TooLarge
        parts.append(chunk)
    return b"".join(parts)


async def respond(send: Send, response: Response, request_id: str) -> None:
    """Send a whole answer. An answer to HEAD says itself how long what it has not got is."""
    status, headers, body = response
    headers = [*headers, (b"x-amzn-requestid", request_id.encode())]
    if not any(name == b"content-length" for name, _ in headers):
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(
    send: Send, receive: Receive, content_type: bytes, messages: AsyncIterator[bytes], request_id: str
) -> None:
    """Send messages as they come, until they end or the client goes away; then the iterator is closed."""
    headers = [(b"content-type", content_type), (b"x-amzn-requestid", request_id.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    sending = asyncio.create_task(_send_all(send, messages))
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        if not sending.done():
            sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    if not watching.done() or watching.cancelled():
        await send({"type": "http.response.body", "body": b""})


async def _send_all(send: Send, messages: AsyncIterator[bytes]) -> None:
    try:
        async for message in messages:
            await send({"type": "http.response.body", "body": message, "more_body": True})
    finally:
        close = getattr(messages, "aclose", None)
        if close is not None:
            await close()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
