"""The binary event stream that some operations answer with (application/vnd.amazon.eventstream).

A message: total length u32, headers length u32, CRC32 of these eight bytes, headers, payload, CRC32 of all
before.
A header: name length u8, name, type u8 (7: string), value length u16, value. Big-endian throughout.
"""

import struct
import zlib
from typing import Any

import msgspec

_MOST_HEADER_BYTES = 1000


def encode_event(event_type: str, payload: dict[str, Any], *, exception: bool = False) -> bytes:
    """One event (or an exception that the stream's model has) as bytes."""
    kind = "exception" if exception else "event"
    headers = _header(f":{kind}-type", event_type) + _header(":content-type", "application/json")
    return _message(headers + _header(":message-type", kind), msgspec.json.encode(payload))


def encode_error(code: str, message: str) -> bytes:
    """An error that the stream's model does not have; the last message of a stream."""
    headers = _header(":message-type", "error") + _header(":error-code", code)
    return _message(headers + _header(":error-message", message[:_MOST_HEADER_BYTES]), b"")


def _message(headers: bytes, body: bytes) -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(encoded)) + encoded
