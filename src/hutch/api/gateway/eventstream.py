"""The binary event stream that some operations answer with (application/vnd.amazon.eventstream).

A message: total length u32, headers length u32, CRC32 of these eight bytes, headers, payload, CRC32 of all before.
A header: name length u8, name, type u8 (7: string), value length u16, value. Big-endian throughout.
"""

import struct
import zlib
from typing import Any

import msgspec


def encode_event(event_type: str, payload: dict[str, Any], *, exception: bool = False) -> bytes:
    """One event (or, in the stream, an exception) as bytes."""
    kind = "exception" if exception else "event"
    headers = _header(f":{kind}-type", event_type) + _header(":content-type", "application/json")
    headers += _header(":message-type", kind)
    body = msgspec.json.encode(payload)
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(encoded)) + encoded
