"""The awslogs driver's options: from lines to log events. Pure; the clock comes with the lines.

Options: reference B.10. A multi-line event begins at a line that matches; it is bounded, and ended after a while of
silence by the caller (`flush`).
"""

import re
from collections.abc import Mapping

import msgspec

from hutch.base.errors import Invalid
from hutch.base.units import GIB, KIB, MIB
from hutch.rules.regex import LinearPattern, linear_pattern

MAX_EVENT_BYTES = 256 * KIB
DEFAULT_BUFFER_BYTES = 10 * MIB
MAX_PATTERN_LENGTH = 512
MAX_MATCHED_CHARACTERS = 1024
_DIRECTIVES = {
    "%a": r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)",
    "%A": r"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)",
    "%b": r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)",
    "%B": r"(?:January|February|March|April|May|June|July|August|September|October|November|December)",
    "%d": r"\d{2}",
    "%e": r"[ \d]\d",
    "%f": r"\d{1,9}",
    "%H": r"\d{2}",
    "%I": r"\d{2}",
    "%j": r"\d{3}",
    "%L": r"\.\d{3}",
    "%m": r"\d{2}",
    "%M": r"\d{2}",
    "%p": r"[AP]M",
    "%S": r"\d{2}",
    "%w": r"\d",
    "%y": r"\d{2}",
    "%Y": r"\d{4}",
    "%z": r"[+-]\d{4}",
    "%Z": r"[A-Z]{1,4}T?",
    "%%": r"%",
}
_SIZES = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB}


class AwslogsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one container's log driver."""

    group: str
    create_group: bool = False
    start: LinearPattern | None = None
    """What the first line of an event looks like; None: each line is one."""
    blocking: bool = False
    buffer_bytes: int = DEFAULT_BUFFER_BYTES


def parse_options(options: Mapping[str, str]) -> AwslogsOptions:
    """The options of a task definition. Raises `Invalid`."""
    if not options.get("awslogs-group"):
        raise Invalid("Log driver awslogs requires options: awslogs-region, awslogs-group")
    return AwslogsOptions(
        group=options["awslogs-group"],
        create_group=options.get("awslogs-create-group", "false").lower() == "true",
        start=start_pattern(options),
        blocking=options.get("mode", "non-blocking") == "blocking",
        buffer_bytes=parse_size(options["max-buffer-size"])
        if "max-buffer-size" in options
        else DEFAULT_BUFFER_BYTES,
    )


def start_pattern(options: Mapping[str, str]) -> LinearPattern | None:
    """What the first line of an event looks like, if the options say so. Raises `Invalid` naming the option."""
    for option, translate in (
        ("awslogs-datetime-format", datetime_pattern),
        ("awslogs-multiline-pattern", str),
    ):
        given = options.get(option, "")
        if len(given) > MAX_PATTERN_LENGTH:
            raise Invalid(f"{option} can have at most {MAX_PATTERN_LENGTH} characters")
        if given:
            try:
                return linear_pattern(translate(given))
            except Invalid as error:
                raise Invalid(f"{option} is {error.message}") from None
    return None


def parse_size(text: str) -> int:
    """Bytes from "25m" (k, m, g: powers of 1,024). Raises `Invalid`."""
    match = re.fullmatch(r"([0-9]{1,12})([bkmg]?)", text.lower())
    if match is None:
        raise Invalid(f"{text!r} is not a size such as 25m")
    return int(match.group(1)) * _SIZES[match.group(2)]


def datetime_pattern(template: str) -> str:
    """A regular expression for a strftime template such as "%Y-%m-%d %H:%M:%S"."""
    parts = re.split(r"(%.)", template)
    return "".join(_DIRECTIVES.get(p, re.escape(p)) for p in parts)


class LineJoiner:
    """Lines in, events out: (milliseconds since the epoch, message)."""

    def __init__(self, start: LinearPattern | None) -> None:
        self._start = start
        self._lines: list[str] = []
        self._bytes = 0
        self._timestamp_ms = 0

    def feed(self, timestamp_ms: int, line: str) -> list[tuple[int, str]]:
        """The events that this line completes. Empty lines are no events, as in Docker."""
        if self._start is None:
            return [(timestamp_ms, part) for part in _split(line) if part.strip()]
        events: list[tuple[int, str]] = []
        if self._start.search(line[:MAX_MATCHED_CHARACTERS]) or self._bytes > MAX_EVENT_BYTES:
            events = self.flush()
        if not self._lines:
            self._timestamp_ms = timestamp_ms
        self._lines.append(line)
        self._bytes += len(line) + 1
        return events

    def flush(self) -> list[tuple[int, str]]:
        """The event that is under way, if there is one."""
        lines, self._lines, self._bytes = self._lines, [], 0
        text = "\n".join(lines)
        return [(self._timestamp_ms, part) for part in _split(text)] if text.strip() else []

    @property
    def is_waiting(self) -> bool:
        """Whether an event is under way."""
        return bool(self._lines)


def _split(text: str) -> list[str]:
    """In pieces that an event may have (bytes of UTF-8, never in the middle of a character); most often one."""
    if len(text) * 4 <= MAX_EVENT_BYTES:
        return [text]
    data, pieces = text.encode("utf-8", "replace"), []
    while data:
        end = min(len(data), MAX_EVENT_BYTES)
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(data[:end].decode())
        data = data[end:]
    return pieces
