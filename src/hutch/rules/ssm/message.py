"""The binary messages of a session's data channel: one WebSocket message each, integers big-endian.

| offset | bytes | field |
|---|---|---|
| 0 | 4 | header length: 116, what comes before the payload's length |
| 4 | 32 | message type, filled up with spaces |
| 36 | 4 | schema version: 1 |
| 40 | 8 | created: milliseconds since the epoch |
| 48 | 8 | sequence number, from 0 in each direction |
| 56 | 8 | flags: 1 first, 2 last |
| 64 | 16 | message id: a UUID, its second half first |
| 80 | 32 | SHA-256 of the payload |
| 112 | 4 | payload type |
| 116 | 4 | payload length |
| 120 | | payload |
"""

import hashlib
import struct
from typing import Any

import msgspec

from hutch.base.errors import Invalid

INPUT = "input_stream_data"
OUTPUT = "output_stream_data"
ACKNOWLEDGE = "acknowledge"
CHANNEL_CLOSED = "channel_closed"

PAYLOAD_OUTPUT = 1
PAYLOAD_SIZE = 3
PAYLOAD_HANDSHAKE_REQUEST = 5
PAYLOAD_HANDSHAKE_RESPONSE = 6
PAYLOAD_HANDSHAKE_COMPLETE = 7
PAYLOAD_FLAG = 10
FLAG_TERMINATE_SESSION = 2

SCHEMA_VERSION = 1
HEADER_BYTES = 116
MAX_PAYLOAD_BYTES = 64 * 1024
_HEADER = struct.Struct(">I32sIQqQ16s32sII")
_BOTH_ENDS = 3


class ClientMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message. `message_id` is a UUID's usual text form, in lower case."""

    message_type: str
    message_id: str
    created_ms: int
    sequence: int = 0
    flags: int = 0
    payload_type: int = 0
    payload: bytes = b""


class Acknowledged(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of an acknowledgement."""

    message_type: str = msgspec.field(name="AcknowledgedMessageType")
    message_id: str = msgspec.field(name="AcknowledgedMessageId")
    sequence: int = msgspec.field(name="AcknowledgedMessageSequenceNumber")
    is_sequential: bool = msgspec.field(name="IsSequentialMessage", default=True)


def encode_message(message: ClientMessage) -> bytes:
    """A message as bytes."""
    first, second = _halves(message.message_id)
    head = _HEADER.pack(
        HEADER_BYTES,
        message.message_type.encode("ascii").ljust(32),
        SCHEMA_VERSION,
        message.created_ms,
        message.sequence,
        message.flags,
        second + first,
        hashlib.sha256(message.payload).digest(),
        message.payload_type,
        len(message.payload),
    )
    return head + message.payload


def decode_message(data: bytes) -> ClientMessage:
    """A message again. Raises `Invalid` for what is none, or has a payload that is not what its digest says."""
    if not _HEADER.size <= len(data) <= _HEADER.size + MAX_PAYLOAD_BYTES:
        raise Invalid(f"a session message can't have {len(data)} bytes")
    length, kind, _, created, sequence, flags, identity, digest, payload_type, size = _HEADER.unpack_from(
        data
    )
    payload = data[_HEADER.size :]
    if length != HEADER_BYTES or size != len(payload):
        raise Invalid("a session message has another length than it says")
    if hashlib.sha256(payload).digest() != digest:
        raise Invalid("a session message's payload does not have the digest that it says")
    try:
        name = kind.rstrip(b" \0").decode("ascii")
    except UnicodeDecodeError:
        raise Invalid("a session message's type is not text") from None
    return ClientMessage(
        message_type=name,
        message_id=_uuid(identity[8:] + identity[:8]),
        created_ms=created,
        sequence=sequence,
        flags=flags,
        payload_type=payload_type,
        payload=payload,
    )


def acknowledgement(message: ClientMessage, message_id: str, now_ms: int) -> bytes:
    """The message that acknowledges another."""
    content = Acknowledged(
        message_type=message.message_type, message_id=message.message_id, sequence=message.sequence
    )
    return encode_message(
        ClientMessage(
            message_type=ACKNOWLEDGE,
            message_id=message_id,
            created_ms=now_ms,
            flags=_BOTH_ENDS,
            payload=msgspec.json.encode(content),
        )
    )


def channel_closed(session_id: str, text: str, message_id: str, now_ms: int) -> bytes:
    """The message that ends a session; the client shows `text`, if there is any."""
    content: dict[str, Any] = {
        "MessageId": message_id,
        "CreatedDate": str(now_ms),
        "DestinationId": session_id,
        "SessionId": session_id,
        "MessageType": CHANNEL_CLOSED,
        "SchemaVersion": SCHEMA_VERSION,
        "Output": text,
    }
    return encode_message(
        ClientMessage(
            message_type=CHANNEL_CLOSED,
            message_id=message_id,
            created_ms=now_ms,
            flags=_BOTH_ENDS,
            payload=msgspec.json.encode(content),
        )
    )


def decode_acknowledgement(payload: bytes) -> Acknowledged:
    """Raises `Invalid`."""
    try:
        return msgspec.json.decode(payload, type=Acknowledged)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Invalid("an acknowledgement that does not say what it acknowledges") from None


def _halves(identity: str) -> tuple[bytes, bytes]:
    raw = bytes.fromhex(identity.replace("-", ""))
    return raw[:8], raw[8:]


def _uuid(raw: bytes) -> str:
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
