"""Reading the event log: what happened, and what happens next."""

import asyncio
from typing import Any

from hutch.control.events.shapes import EVENT, EventShapes
from hutch.model.event import EventBatch, EventCursor
from hutch.store import tables
from hutch.store.contract import Reader, Store

MAX_PAGE = 1000
_BATCHES = 20


class EventReader:
    """The event log, for hutch's own tools."""

    def __init__(self, store: Store, shapes: EventShapes) -> None:
        self._store = store
        self._shapes = shapes

    def newest(self, limit: int, task: str = "") -> tuple[list[dict[str, Any]], int]:
        """The last events, oldest first (of one task, if its id is given), and the number to go on after."""
        with self._store.read() as reader:
            end = _end(reader)
            events: list[dict[str, Any]] = []
            after: tuple[str, ...] | None = None
            while len(events) < limit:
                batches = reader.scan(tables.EVENT_LOG, after=after, limit=_BATCHES, reverse=True)
                for batch in batches:
                    events[:0] = self._of(batch, task, 0)
                if len(batches) < _BATCHES:
                    break
                after = (f"{batches[-1].first:020d}",)
        return events[-limit:], end - 1

    def findings(self, task: str, limit: int) -> list[dict[str, Any]]:
        """The newest findings of threat detection about a task, newest first."""
        found: list[dict[str, Any]] = []
        after: tuple[str, ...] | None = None
        with self._store.read() as reader:
            while len(found) < limit:
                batches = reader.scan(tables.EVENT_LOG, after=after, limit=_BATCHES, reverse=True)
                # Whole events that are about a task are findings: its changes are kept as notes.
                entries = (e for b in batches for e in reversed(b.entries) if e.kind == EVENT)
                found += [self._shapes.events(e)[0] for e in entries if e.subject == task]
                if len(batches) < _BATCHES:
                    break
                after = (f"{batches[-1].first:020d}",)
        return found[:limit]

    def after(self, number: int, task: str = "") -> tuple[list[dict[str, Any]], int, bool]:
        """Events of entries after a number, a part at a time; the number to go on after; whether there are more."""
        with self._store.read() as reader:
            end = _end(reader)
            holds_it = reader.scan(tables.EVENT_LOG, after=(f"{number + 2:020d}",), limit=1, reverse=True)
            start = (f"{holds_it[0].first - 1:020d}",) if holds_it else None
            batches = reader.scan(tables.EVENT_LOG, after=start, limit=_BATCHES)
        events = [e for batch in batches for e in self._of(batch, task, number)]
        reached = batches[-1].first + len(batches[-1].entries) - 1 if batches else end - 1
        return events, max(number, reached), reached + 1 < end

    async def wait_after(self, number: int, task: str, timeout_s: float) -> tuple[list[dict[str, Any]], int]:
        """As `after`, as soon as there is something, or with nothing after a time."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    seen = self._store.last_seq()
                    events, number, more = self.after(number, task)
                    if events:
                        return events, number
                    if not more:
                        await self._store.wait_for_change(seen, {tables.EVENT_LOG.name})
                    else:
                        await asyncio.sleep(0)
        except TimeoutError:
            return [], number

    def _of(self, batch: EventBatch, task: str, after: int) -> list[dict[str, Any]]:
        return [
            event
            for number, entry in enumerate(batch.entries, batch.first)
            if number > after and (not task or entry.subject == task)
            for event in self._shapes.events(entry)
        ]


def _end(reader: Reader) -> int:
    return (reader.get(tables.EVENT_CURSOR, "events") or EventCursor()).next_number
