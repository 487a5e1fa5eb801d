"""Reads the binary event stream (application/vnd.amazon.eventstream) of operations such as StartLiveTail.

The format is described in `hutch.api.gateway.eventstream`, which writes it.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from hutch.client.errors import AwsError, Unreachable

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_STRING = 7


class Readable(Protocol):
    """What a response body must offer."""

    def read(self, size: int, /) -> bytes: ...


def read_events(body: Readable, request_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(event name, event) pairs until the stream ends. Raises `AwsError`, `Unreachable`."""
    while prelude := _exactly(body, 12, may_end=True):
        total, header_bytes, checksum = struct.unpack(">III", prelude)
        if zlib.crc32(prelude[:8]) != checksum or not 16 + header_bytes <= total <= MAX_MESSAGE_BYTES:
            raise Unreachable("the event stream is damaged")
        rest = _exactly(body, total - 12)
        if zlib.crc32(prelude + rest[:-4]) != struct.unpack(">I", rest[-4:])[0]:
            raise Unreachable("the event stream is damaged")
        headers = _headers(rest[:header_bytes])
        payload = rest[header_bytes:-4]
        kind = headers.get(":message-type")
        if kind == "error":
            code = headers.get(":error-code", "")
            raise AwsError(code, headers.get(":error-message", ""), request_id, 200)
        event = msgspec.json.decode(payload) if payload else {}
        if kind == "exception":
            raise AwsError(headers.get(":exception-type", ""), event.get("message", ""), request_id, 200)
        name = headers.get(":event-type", "")
        if name != "initial-response":
            yield name, event


def _exactly(body: Readable, size: int, *, may_end: bool = False) -> bytes:
    data = b""
    while len(data) < size:
        chunk = body.read(size - len(data))
        if not chunk:
            if may_end and not data:
                return b""
            raise Unreachable("hutch closed the event stream in the middle of an event")
        data += chunk
    return data


def _headers(data: bytes) -> dict[str, str]:
    headers = {}
    at = 0
    try:
        while at < len(data):
            name_end = at + 1 + data[at]
            kind, length = struct.unpack_from(">BH", data, name_end)
            if kind != _STRING:
                raise Unreachable(f"the event stream has a header of the unknown type {kind}")
            value = data[name_end + 3 : name_end + 3 + length]
            headers[data[at + 1 : name_end].decode()] = value.decode()
            at = name_end + 3 + length
    except (struct.error, UnicodeDecodeError, IndexError):
        raise Unreachable("the event stream is damaged") from None
    return headers
