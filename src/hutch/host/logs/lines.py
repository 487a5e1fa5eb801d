"""From the records of a log file to whole lines and events, remembering where the oldest unfinished one begins."""

from typing import Protocol

from hutch.host.criformat import parse_line
from hutch.host.logs.contract import LogEntry
from hutch.rules.awslogs import LineJoiner

MAX_LINE_BYTES = 256 * 1024


class Assembler(Protocol):
    """Makes entries of lines."""

    @property
    def is_waiting(self) -> bool:
        """Whether an entry is under way."""
        ...

    def feed(self, time_ns: int, stream: str, line: str) -> list[LogEntry]:
        """The entries that this line completes."""
        ...

    def flush(self) -> list[LogEntry]:
        """The entry that is under way."""
        ...


class PlainLines:
    """Each line is an entry."""

    is_waiting = False

    def feed(self, time_ns: int, stream: str, line: str) -> list[LogEntry]:
        """The line."""
        return [LogEntry(time_ns=time_ns, stream=stream, text=line)]

    def flush(self) -> list[LogEntry]:
        """Nothing is ever under way."""
        return []


class JoinedLines:
    """Events as the awslogs driver joins them."""

    def __init__(self, joiner: LineJoiner) -> None:
        self._joiner = joiner

    @property
    def is_waiting(self) -> bool:
        """Whether an event is under way."""
        return self._joiner.is_waiting

    def feed(self, time_ns: int, stream: str, line: str) -> list[LogEntry]:
        """The events that this line completes."""
        return _entries(self._joiner.feed(time_ns // 1_000_000, line), stream)

    def flush(self) -> list[LogEntry]:
        """The event that is under way."""
        return _entries(self._joiner.flush(), "stdout")


def _entries(events: list[tuple[int, str]], stream: str) -> list[LogEntry]:
    return [LogEntry(time_ns=at * 1_000_000, stream=stream, text=text) for at, text in events]


class RecordReader:
    """Takes records in the order of the file."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._partial: dict[str, list[bytes]] = {}
        self.held_from: int | None = None
        """Where the oldest record begins that was read but is part of no finished entry yet; None: there is none."""

    @property
    def is_waiting(self) -> bool:
        """Whether an entry of several lines is under way."""
        return self._assembler.is_waiting

    def moved(self) -> None:
        """The records that follow are another file's."""
        self.held_from = 0 if self.held_from is not None else None

    def take(self, at: int, record: bytes) -> list[LogEntry]:
        """The entries that a record, which begins at this place of the file, completes."""
        line = parse_line(record)
        if line is None:
            return []
        parts = self._partial.setdefault(line.stream, [])
        parts.append(line.text)
        if self.held_from is None:
            self.held_from = at
        if line.partial and sum(map(len, parts)) < MAX_LINE_BYTES:
            return []
        text = b"".join(parts).decode("utf-8", "replace")
        parts.clear()
        entries = self._assembler.feed(line.time_ns, line.stream, text)
        if not any(self._partial.values()):
            # An assembler that still waits holds at most what began with this very record.
            waits = self._assembler.is_waiting
            self.held_from = (at if entries or self.held_from is None else self.held_from) if waits else None
        return entries

    def flush(self) -> list[LogEntry]:
        """The entry of several lines that is under way."""
        entries = self._assembler.flush()
        if entries and not any(self._partial.values()):
            self.held_from = None
        return entries
