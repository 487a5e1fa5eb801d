"""The frames of a process's streams, as they go over a connection of their own: between control plane and host agent, and
between `hutch exec` and the API (there each is a binary WebSocket message).

A frame is `kind: u8`, then its content. On a byte stream `length: u32` (of both, big-endian) comes before it.

| kind | frame | content |
|---|---|---|
| 0 | input | bytes; none: the end of input |
| 1, 2 | output | bytes of stdout, stderr |
| 3 | resize | `rows: u16, columns: u16` |
| 4 | signal | `number: u8` |
| 5 | exited | `exit code: u8` |
| 6 | failed | JSON: `kind`, `message` |
"""

import asyncio
import struct

import msgspec

from hutch.base.errors import Invalid
from hutch.model.exec import (
    MAX_CHUNK_BYTES,
    MAX_TERMINAL_SIZE,
    STDERR,
    STDOUT,
    Exited,
    Failed,
    FromProcess,
    Input,
    Output,
    Resize,
    Signal,
    ToProcess,
)

INPUT_KIND, RESIZE_KIND, SIGNAL_KIND, EXITED_KIND, FAILED_KIND = 0, 3, 4, 5, 6
MAX_FRAME_BYTES = MAX_CHUNK_BYTES + 1
MAX_MESSAGE_CHARACTERS = 4096
_SIZE = struct.Struct(">HH")


def encode_frame(frame: ToProcess | FromProcess) -> bytes:
    """A frame's kind and content."""
    match frame:
        case Input(data):
            return bytes((INPUT_KIND,)) + data
        case Output(stream, data):
            return bytes((stream,)) + data
        case Resize(rows, cols):
            return bytes((RESIZE_KIND,)) + _SIZE.pack(rows, cols)
        case Signal(number):
            return bytes((SIGNAL_KIND, number))
        case Exited(exit_code):
            return bytes((EXITED_KIND, exit_code))
        case Failed(kind, message):
            short = Failed(kind[:MAX_MESSAGE_CHARACTERS], message[:MAX_MESSAGE_CHARACTERS])
            return bytes((FAILED_KIND,)) + msgspec.json.encode(short)


def decode_to_process(data: bytes) -> ToProcess:
    """A frame for a process. Raises `Invalid`."""
    kind, content = _split(data)
    if kind == INPUT_KIND:
        return Input(content)
    if kind == RESIZE_KIND and len(content) == _SIZE.size:
        rows, cols = _SIZE.unpack(content)
        if 0 < rows <= MAX_TERMINAL_SIZE and 0 < cols <= MAX_TERMINAL_SIZE:
            return Resize(rows, cols)
    if kind == SIGNAL_KIND and len(content) == 1 and 1 <= content[0] <= 64:
        return Signal(content[0])
    raise Invalid(f"a frame of kind {kind} with {len(content)} bytes is not one for a process")


def decode_from_process(data: bytes) -> FromProcess:
    """A frame from a process. Raises `Invalid`."""
    kind, content = _split(data)
    if kind in (STDOUT, STDERR):
        return Output(kind, content)
    if kind == EXITED_KIND and len(content) == 1:
        return Exited(content[0])
    if kind == FAILED_KIND:
        try:
            return msgspec.json.decode(content, type=Failed)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    raise Invalid(f"a frame of kind {kind} with {len(content)} bytes is not one from a process")


def _split(data: bytes) -> tuple[int, bytes]:
    if not 1 <= len(data) <= MAX_FRAME_BYTES:
        raise Invalid(f"a frame of {len(data)} bytes; they have 1 to {MAX_FRAME_BYTES}")
    return data[0], data[1:]


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame; None at the end of the connection, wherever that comes. Raises `Invalid` if it is too long."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if not 1 <= length <= MAX_FRAME_BYTES:
            raise Invalid(f"a frame of {length} bytes; they have 1 to {MAX_FRAME_BYTES}")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def write_frame(writer: asyncio.StreamWriter, frame: ToProcess | FromProcess) -> None:
    """Send a frame; returns when the other end has taken enough of what was sent before. Raises `ConnectionError`."""
    data = encode_frame(frame)
    writer.write(len(data).to_bytes(4, "big") + data)
    await writer.drain()
