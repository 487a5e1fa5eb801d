"""The format of container log files on a host: the CRI's, one record a line, as conmon writes it.

    2026-01-02T03:04:05.123456789+00:00 stdout F the line
    2026-01-02T03:04:05.123456789+00:00 stderr P the beginning of a longer line
"""

from datetime import UTC, datetime

import msgspec

MAX_LINE_BYTES = 16 * 1024
_STREAMS = {1: b"stdout", 2: b"stderr"}


class CriLine(msgspec.Struct, frozen=True, kw_only=True):
    """A record: `partial` lines are continued by the next one of the same stream."""

    time_ns: int
    stream: str
    partial: bool
    text: bytes


class CriEncoder:
    """Bytes as a container writes them to records; remembers per stream what has no newline yet."""

    def __init__(self) -> None:
        self._rest: dict[int, bytes] = {}

    def encode(self, time_ns: int, stream: int, data: bytes) -> bytes:
        """The records that these bytes complete. A line without an end is held back up to `MAX_LINE_BYTES`."""
        out = bytearray()
        head = _head(time_ns, stream)
        *lines, rest = (self._rest.pop(stream, b"") + data).split(b"\n")
        for line in lines:
            for start in range(0, max(len(line) - 1, 0) // MAX_LINE_BYTES * MAX_LINE_BYTES, MAX_LINE_BYTES):
                out += head + b"P " + line[start : start + MAX_LINE_BYTES] + b"\n"
            tail = max(len(line) - 1, 0) // MAX_LINE_BYTES * MAX_LINE_BYTES
            out += head + b"F " + line[tail:] + b"\n"
        while len(rest) >= MAX_LINE_BYTES:
            out += head + b"P " + rest[:MAX_LINE_BYTES] + b"\n"
            rest = rest[MAX_LINE_BYTES:]
        if rest:
            self._rest[stream] = rest
        return bytes(out)

    def finish(self, time_ns: int) -> bytes:
        """What was held back, as full records: the container has ended."""
        rest, self._rest = self._rest, {}
        return b"".join(_head(time_ns, stream) + b"F " + data + b"\n" for stream, data in rest.items())


def _head(time_ns: int, stream: int) -> bytes:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    stamp = datetime.fromtimestamp(min(seconds, 253402300799), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return b"%s.%09d+00:00 %s " % (stamp.encode(), nanoseconds, _STREAMS[stream])


def parse_line(line: bytes) -> CriLine | None:
    """A record without its newline; None if it is none (a file that was damaged)."""
    stamp, _, rest = line.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    if stream not in (b"stdout", b"stderr") or tag not in (b"F", b"P"):
        return None
    try:
        base, _, fraction = stamp.decode("ascii").partition(".")
        zone = fraction[9:] or "+00:00"
        seconds = datetime.fromisoformat(base + zone.replace("Z", "+00:00")).timestamp()
        nanoseconds = int(fraction[:9] or 0)
    except (ValueError, UnicodeDecodeError):
        return None
    return CriLine(
        time_ns=int(seconds) * 1_000_000_000 + nanoseconds,
        stream=stream.decode(),
        partial=tag == b"P",
        text=text,
    )
