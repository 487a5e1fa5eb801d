"""Frames of the guest protocol, version 1: the host's end. See docs/design/guest-protocol.md.

A frame is COBS-encoded and ended by a zero byte, so that a reader that starts in the middle loses one frame
at most.
"""

import re
import struct
import zlib

import msgspec

PROTOCOL_VERSION = 1
PORT_NAME = "hutch.agent"
MAX_FRAME_BYTES = 64 * 1024
CONTROL = 1
LOG = 2
STREAM_DATA = 3
STREAM_CREDIT = 4
STREAM_WINDOW_BYTES = 64 * 1024
"""How much of each direction of a stream may be on its way without further credit."""
_MAX_ENCODED_BYTES = MAX_FRAME_BYTES + MAX_FRAME_BYTES // 254 + 16
_RUN_OF_ZEROS = re.compile(rb"\0\0+")
_HEAD = struct.Struct(">BI")
_LOG_HEAD = struct.Struct(">QQB")


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded frame."""

    kind: int
    channel: int
    payload: bytes


class LogRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a log frame: bytes as the container wrote them."""

    seq: int
    time_ns: int
    stream: int
    """1: stdout, 2: stderr."""
    data: bytes


def encode_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame as bytes on the wire, its final zero included."""
    body = _HEAD.pack(kind, channel) + payload
    raw = body + zlib.crc32(body).to_bytes(4, "big")
    if len(raw) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(raw)} bytes is longer than {MAX_FRAME_BYTES}")
    return cobs_encode(raw) + b"\0"


def cobs_encode(data: bytes) -> bytes:
    """The data without zero bytes: runs of up to 254 others, each with its length before it."""
    out = bytearray()
    for part in data.split(b"\0"):
        start = 0
        while len(part) - start >= 254:
            out += b"\xff" + part[start : start + 254]
            start += 254
        out.append(len(part) - start + 1)
        out += part[start:]
    return bytes(out)


def cobs_decode(data: bytes) -> bytes | None:
    """The data again; None if it is not COBS."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        code = data[at]
        stop = at + code
        if code == 0 or stop > end:
            return None
        out += data[at + 1 : stop]
        at = stop
        if code < 0xFF and at < end:
            out.append(0)
    return bytes(out)


class FrameDecoder:
    """Takes bytes in any pieces, gives whole and intact frames; the rest is dropped and counted. Bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._overlong = False
        self.dropped = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        frames: list[Frame] = []
        # Empty frames mean nothing; a flood of them must cost nothing either.
        pieces = _RUN_OF_ZEROS.sub(b"\0", data).split(b"\0")
        for piece in pieces[:-1]:
            self._take(piece)
            encoded, overlong = bytes(self._buffer), self._overlong
            self._buffer.clear()
            self._overlong = False
            if not encoded and not overlong:
                continue
            frame = None if overlong else _parse(encoded)
            if frame is None:
                self.dropped += 1
            else:
                frames.append(frame)
        self._take(pieces[-1])
        return frames

    def _take(self, piece: bytes) -> None:
        if len(self._buffer) + len(piece) > _MAX_ENCODED_BYTES:
            self._overlong = True
            self._buffer.clear()
        elif not self._overlong:
            self._buffer += piece


def _parse(encoded: bytes) -> Frame | None:
    raw = cobs_decode(encoded)
    if raw is None or not 9 <= len(raw) <= MAX_FRAME_BYTES:
        return None
    if zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
        return None
    kind, channel = _HEAD.unpack_from(raw)
    return Frame(kind=kind, channel=channel, payload=raw[_HEAD.size : -4])


def parse_log(payload: bytes) -> LogRecord | None:
    """The payload of a log frame; None if it is malformed."""
    if len(payload) < _LOG_HEAD.size:
        return None
    seq, time_ns, stream = _LOG_HEAD.unpack_from(payload)
    if stream not in (1, 2):
        return None
    return LogRecord(seq=seq, time_ns=time_ns, stream=stream, data=payload[_LOG_HEAD.size :])
