"""What the log store holds, as its readers see it."""

import msgspec

from hutch.store.log_scan import Position


class LogGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group; times in milliseconds since the epoch."""

    name: str
    created_ms: int
    retention_days: int | None
    log_class: str
    tags: dict[str, str]
    stored_bytes: int


class LogStream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of a group."""

    stream_id: int
    group: str
    name: str
    created_ms: int
    first_ms: int | None
    last_ms: int | None
    ingested_ms: int | None


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event; (timestamp_ms, seq) orders the events of a stream."""

    stream: str
    timestamp_ms: int
    seq: int
    ingested_ms: int
    message: str
    group: str = ""


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a search: what was read, and where the next piece begins (None at the end)."""

    events: list[StoredEvent]
    next: Position | None
