"""What is to be told of a VM: events in their order, each acknowledged to the guest when whoever listens has dealt with it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from hutch.host.drivers.contract import ContainerExited, ProcessFacts, SandboxEvent, SandboxExited
from hutch.wire.guest_facts import RuntimeFactsEvent

MAX_FACT_BATCHES = 8
"""The guest may have four under way."""


class EventQueue:
    """The events of one VM that nobody has taken yet. All verbs from one event loop."""

    def __init__(
        self,
        may_be_told: Callable[[ContainerExited], bool],
        acknowledge: Callable[[SandboxEvent, int], None],
    ) -> None:
        """`may_be_told`: an exit for which it is false holds up all that comes after it, until `look_again`. `acknowledge`:
        called with an event, and the number that the guest gave it, when it was dealt with."""
        self._may_be_told = may_be_told
        self._acknowledge = acknowledge
        self._waiting: deque[tuple[SandboxEvent, int]] = deque()
        self._facts_seq = 0
        self._facts_waiting = 0
        self._news = asyncio.Event()
        self._closed = False

    def tell(self, event: SandboxEvent, seq: int) -> None:
        """Add an event; `seq` is the guest's number of it, 0 if it has none."""
        self._waiting.append((event, seq))
        self._news.set()

    def take_facts(self, event: RuntimeFactsEvent) -> None:
        """Add what processes did; a guest that sends more than it may is not listened to."""
        if event.seq <= self._facts_seq or self._facts_waiting >= MAX_FACT_BATCHES:
            return
        self._facts_seq = event.seq
        self._facts_waiting += 1
        self.tell(ProcessFacts(facts=event.facts, dropped=event.dropped), event.seq)

    def look_again(self) -> None:
        """What `may_be_told` says may have changed."""
        self._news.set()

    def close(self) -> None:
        """Whoever iterates comes to the end."""
        self._closed = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[SandboxEvent]:
        """Events in order, up to the VM's own end; one is acknowledged when the caller comes for the next."""
        while not self._closed:
            self._news.clear()
            while self._waiting:
                event, seq = self._waiting[0]
                if isinstance(event, ContainerExited) and not self._may_be_told(event):
                    break
                self._waiting.popleft()
                yield event
                if isinstance(event, SandboxExited):
                    return
                if isinstance(event, ProcessFacts):
                    self._facts_waiting -= 1
                if seq:
                    self._acknowledge(event, seq)
            if self._waiting or not self._closed:
                await self._news.wait()
