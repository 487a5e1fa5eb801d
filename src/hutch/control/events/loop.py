"""Follows the change feed and turns its notes into the event log.

The feed is the outbox: a note is written with the change that it tells of. How far the feed is used up is written with
what was made of it, so each note becomes an event once, wherever the control plane is killed.
"""

import asyncio

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.events.publishing import Publisher
from hutch.control.events.shapes import TASK
from hutch.control.ops.instances import instance_view
from hutch.control.rounds import is_done
from hutch.model.event import EventCursor, LogEntry
from hutch.model.notes import decode_host_note, decode_instance_note
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Change, Reader, Store, Tx

log = get_logger(__name__)

GATHER_S, GATHER_BUSY_S = 0.02, 0.25
"""Changes come in bursts: those of a burst are written down together. The longer wait is for when there is no end of
them: each round costs a commit, which the requests would feel."""
BUSY_NOTES = 16
"""So many in one round are no single task's."""
MAX_CHANGES = 2000
MAX_UNSAVED = 20_000
"""Changes without notes after which the position is saved nevertheless; far less than the feed keeps."""
_NOTED = frozenset(t.name for t in tables.ALL_TABLES if t.journal is not None)


class EventLoop:
    """One per platform."""

    def __init__(self, store: Store, publisher: Publisher, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._ids = ids
        self._seen = -1
        self._saved = 0
        self._busy = False

    async def run(self) -> None:
        """For ever."""
        while True:
            if not await is_done(self._catch_up, "the event log"):
                continue
            await self._store.wait_for_change(self._seen, _NOTED)
            await asyncio.sleep(GATHER_BUSY_S if self._busy else GATHER_S)

    async def _catch_up(self) -> None:
        while await self.once():
            pass

    async def once(self) -> bool:
        """One round; whether there may be more to do at once."""
        if self._seen < 0:
            with self._store.read() as reader:
                cursor = reader.get(tables.EVENT_CURSOR, "events")
            self._seen = self._saved = cursor.feed_seq if cursor else 0
        changes = self._store.changes(self._seen, MAX_CHANGES)
        if changes is None:
            if self._seen > 0:
                log.error(
                    "events were lost: the change feed no longer reaches back to where they were left off"
                )
            # Otherwise the platform is from before there were events.
            self._seen = self._store.last_seq()
            await self._write([], self._seen)
            return False
        if not changes:
            return False
        noted = [c for c in changes if c.note]
        self._busy = len(noted) >= BUSY_NOTES
        newest = changes[-1].seq
        if noted or newest - self._saved > MAX_UNSAVED:
            await self._write(noted, newest)
        self._seen = newest
        return len(changes) == MAX_CHANGES

    async def _write(self, noted: list[Change], newest: int) -> None:
        now = self._clock.now()
        cause = Cause(id=self._ids.uuid(), actor="controller:events", action="publish")

        def work(tx: Tx) -> None:
            cursor = tx.get(tables.EVENT_CURSOR, "events") or EventCursor()
            entries = [e for c in noted if c.seq > cursor.feed_seq for e in self._entries(tx, c, now)]
            self._publisher.publish(tx, entries, feed_seq=newest)

        await self._store.write(cause, work)
        self._saved = newest

    def _entries(self, reader: Reader, change: Change, now: float) -> list[LogEntry]:
        if change.table == tables.TASKS.name:
            return [LogEntry(TASK, "", now, change.key[1], change.note)]
        if change.table == tables.CONTAINER_INSTANCES.name:
            instances = [decode_instance_note(change.note).instance]
        else:
            host_id = decode_host_note(change.note).host_id
            instances = reader.scan(tables.CONTAINER_INSTANCES, host_id, index="by_host")
        shapes = self._publisher.shapes
        return [
            shapes.instance_entry(self._ids.uuid(), instance_view(reader, i), now, change.seq)
            for i in instances
        ]
