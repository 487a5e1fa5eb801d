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


def encode_lines(time_ns: int, stream: int, data: bytes) -> bytes:
    """Bytes as a container wrote them, as records: `F` ends a line, `P` is a piece that a later record goes
    on with.

    Nothing is held back, so what was encoded can be acknowledged. `stream` is 1 (stdout) or 2 (stderr).
    """
    head = _head(time_ns, stream)
    *whole, rest = data.split(b"\n")
    out = bytearray()
    for line in whole:
        *pieces, last = _pieces(line)
        out += b"".join(b"%sP %s\n" % (head, piece) for piece in pieces)
        out += b"%sF %s\n" % (head, last)
    if rest:
        out += b"".join(b"%sP %s\n" % (head, piece) for piece in _pieces(rest))
    return bytes(out)


def _pieces(line: bytes) -> list[bytes]:
    return [line[start : start + MAX_LINE_BYTES] for start in range(0, len(line) or 1, MAX_LINE_BYTES)]


def end_of_line(time_ns: int, stream: int) -> bytes:
    """The record that ends a line whose pieces were written before."""
    return b"%sF \n" % _head(time_ns, stream)


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
