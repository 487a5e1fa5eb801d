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


def encode_message(message: FromHost | ToHost) -> bytes:
    """The message as it is sent. Raises `Invalid` if it is too long."""
    body = _encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise Invalid(f"a message of {len(body)} bytes is longer than {MAX_MESSAGE_BYTES}")
    return len(body).to_bytes(4, "big") + body


def write_message(writer: asyncio.StreamWriter, message: FromHost | ToHost) -> None:
    """Queue a message for sending. Raises `Invalid` if it is too long."""
    writer.write(encode_message(message))


class MessageWriter:
    """Sends messages over a stream; those of one round of the event loop in one write. Each write may wake the other end up,
    which then runs instead of the writer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        """The stream stays its owner's to close, after `flush`."""
        self._writer = writer
        self._parts: list[bytes] = []

    def send(self, message: FromHost | ToHost) -> None:
        """Queue a message; over a connection that is closing it is dropped. Raises `Invalid` if it is too long."""
        if self._writer.is_closing():
            return
        data = encode_message(message)
        if not self._parts:
            asyncio.get_running_loop().call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        """Hand what is queued to the stream now."""
        parts, self._parts = self._parts, []
        if parts and not self._writer.is_closing():
            self._writer.write(b"".join(parts))
