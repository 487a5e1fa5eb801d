"""New log events as they come (live tail)."""

import asyncio

from hutch.store.log_records import StoredEvent

MAX_SUBSCRIBER_EVENTS = 5000


class Subscription:
    """New events for one reader; the oldest are dropped (and counted) if it is too slow."""

    def __init__(self, groups: frozenset[str], registry: set["Subscription"]) -> None:
        self._groups = groups
        self._registry = registry
        self._events: asyncio.Queue[StoredEvent] = asyncio.Queue(MAX_SUBSCRIBER_EVENTS)
        self.dropped = 0

    def offer(self, event: StoredEvent) -> None:
        """Queue the event if it is of one of the groups."""
        if event.group not in self._groups:
            return
        if self._events.full():
            self._events.get_nowait()
            self.dropped += 1
        self._events.put_nowait(event)

    def take(self, most: int) -> list[StoredEvent]:
        """What is there now, at most so many."""
        taken: list[StoredEvent] = []
        while len(taken) < most and not self._events.empty():
            taken.append(self._events.get_nowait())
        return taken

    def close(self) -> None:
        """No more events."""
        self._registry.discard(self)
