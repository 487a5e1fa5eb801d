"""Outbound HTTP calls, bounded in every direction: one request on one connection, no redirects, a small answer."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import msgspec

from hutch import __version__
from hutch.base.errors import HutchError, Invalid, Unavailable
from hutch.rules.events.targets import check_headers

TIMEOUT_S = 10.0
"""For the whole call."""
MAX_HEAD_BYTES = 16 * 1024


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the other end said."""

    status: int


class WebhookClient:
    """Calls URLs. `trusted`: TLS roots, by default those of the system."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S, trusted: ssl.SSLContext | None = None) -> None:
        self._timeout_s = timeout_s
        self._trusted = trusted

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], query: Mapping[str, str], delivery_id: str
    ) -> Answer:
        """POST a JSON body. Raises `Invalid` for what can't be called at all, `Unavailable` for what may work later."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        head = _head(url, body, headers, query, delivery_id)
        try:
            async with asyncio.timeout(self._timeout_s):
                address = await _resolve(parts.hostname or "", port)
                reader, writer = await asyncio.open_connection(
                    address,
                    port,
                    ssl=self._context() if secure else None,
                    server_hostname=parts.hostname if secure else None,
                    limit=MAX_HEAD_BYTES,
                )
                try:
                    writer.write(head + body)
                    await writer.drain()
                    return Answer(status=await _status(reader))
                finally:
                    writer.close()
                    with contextlib.suppress(OSError, ssl.SSLError):
                        await writer.wait_closed()
        except TimeoutError:
            raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise Unavailable(f"TLS: {error.reason or error}") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Unavailable(f"{error or type(error).__name__}") from None

    def _context(self) -> ssl.SSLContext:
        if self._trusted is None:
            self._trusted = ssl.create_default_context()
        return self._trusted


async def _resolve(host: str, port: int) -> str:
    """An address of the host. Link-local ones are not called: that is where machines keep their credentials."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified:
            raise Invalid(f"{host} is {text}, an address that hutch calls for nobody")
    return addresses[0]


def _head(
    url: str, body: bytes, headers: Mapping[str, str], query: Mapping[str, str], delivery_id: str
) -> bytes:
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~")
    pairs = [parts.query] if parts.query else []
    pairs += [f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in query.items()]
    host = parts.netloc
    lines = {
        "host": host,
        "user-agent": f"hutch/{__version__}",
        "content-type": "application/json; charset=utf-8",
        "content-length": str(len(body)),
        "connection": "close",
        "x-hutch-delivery": delivery_id,
    }
    check_headers(headers)
    lines |= {k.lower(): v for k, v in headers.items()}
    target = f"{path}?{'&'.join(pairs)}" if pairs else path
    text = f"POST {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    return text.encode("latin-1")


async def _status(reader: asyncio.StreamReader) -> int:
    """The status code of an answer; the rest of it is left unread."""
    while True:
        line = (await reader.readuntil(b"\n")).split(None, 2)
        if len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not line[1].isdigit():
            raise Unavailable("the answer is not HTTP/1.1")
        status = int(line[1])
        if status >= 200:
            return status
        read = 0
        while (skipped := await reader.readuntil(b"\n")).strip():
            read += len(skipped)
            if read > MAX_HEAD_BYTES:
                raise Unavailable("the answer's head is too long")


def refusal_of(answer: Answer) -> HutchError | None:
    """What an answer that is no success means: `Unavailable` is worth another try, `Invalid` is not."""
    if 200 <= answer.status < 300:
        return None
    if answer.status >= 500 or answer.status in (408, 409, 425, 429):
        return Unavailable(f"HTTP {answer.status}")
    return Invalid(f"HTTP {answer.status}" + (" (redirects are not followed)" if answer.status < 400 else ""))
