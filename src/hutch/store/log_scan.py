"""Reading the events of many streams in order of time, a bounded piece at a time.

Each stream's events are in order on disk. They are merged lazily: a stream is opened when the merge comes to its first
event, and no more events are read than asked for, in number and in bytes.
"""

import heapq
import sqlite3
from collections.abc import Iterable, Iterator

Position = tuple[int, int]
Row = tuple[int, int, int, int, str]
"""Timestamp in ms, seq, stream id, ingestion time in ms, message."""
_ROWS_AT_ONCE = 100


def stream_rows(
    db: sqlite3.Connection,
    stream: int,
    start_ms: int,
    end_ms: int,
    after: Position | None,
    *,
    reverse: bool = False,
) -> Iterator[Row]:
    """Events of a stream with start <= timestamp < end, by (timestamp, seq), after (reverse: before) a position."""
    low, high = (start_ms, -1), (end_ms, -1)
    if after is not None and reverse:
        high = min(high, after)
    elif after is not None:
        low = max(low, after)
    sql = (
        "SELECT ts, seq, stream, ingested_ms, message FROM events WHERE stream=? AND (ts,seq)>(?,?) AND (ts,seq)<(?,?) "
        f"ORDER BY ts {'DESC' if reverse else 'ASC'}, seq {'DESC' if reverse else 'ASC'}"
    )
    cursor = db.execute(sql, (stream, *low, *high))
    cursor.arraysize = _ROWS_AT_ONCE
    try:
        yield from cursor
    finally:
        cursor.close()


def merged_rows(
    db: sqlite3.Connection,
    streams: Iterable[tuple[int, int]],
    start_ms: int,
    end_ms: int,
    after: Position | None,
) -> Iterator[Row]:
    """Events of many streams, by (timestamp, seq). `streams`: (at least the first timestamp, stream id), ascending."""
    waiting = iter(streams)
    upcoming = next(waiting, None)
    heap: list[tuple[Row, Iterator[Row]]] = []
    try:
        while heap or upcoming is not None:
            while upcoming is not None and (not heap or upcoming[0] <= heap[0][0][0]):
                rows = stream_rows(db, upcoming[1], start_ms, end_ms, after)
                if (row := next(rows, None)) is not None:
                    heapq.heappush(heap, (row, rows))
                upcoming = next(waiting, None)
            if not heap:
                continue
            row, rows = heap[0]
            yield row
            following = next(rows, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following, rows))
    finally:
        for _, rows in heap:
            rows.close()  # type: ignore[attr-defined]
