"""Fleet messages on a byte stream: a length (u32, big-endian), then a MessagePack document. Both ends use this."""

import asyncio
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.wire.fleet import MAX_MESSAGE_BYTES, FromHost, ToHost

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {
    FromHost: msgspec.msgpack.Decoder(FromHost),
    ToHost: msgspec.msgpack.Decoder(ToHost),
}


async def read_message(reader: asyncio.StreamReader, kind: Any) -> Any:
    """The next message, a member of `kind` (`FromHost` or `ToHost`).

    Raises `asyncio.IncompleteReadError` at the end, `Invalid` if it is too long, `msgspec.DecodeError` (or its
    `ValidationError`) if it is none.
    """
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise Invalid(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")
    return _decoders[kind].decode(await reader.readexactly(length))


def write_message(writer: asyncio.StreamWriter, message: FromHost | ToHost) -> None:
    """Queue a message for sending."""
    body = _encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise Invalid(f"a message of {len(body)} bytes is longer than {MAX_MESSAGE_BYTES}")
    writer.write(len(body).to_bytes(4, "big") + body)
