"""Facts of tasks, told until the control plane says that it has them.

Facts are whole, so newer ones of a task replace older ones that wait. Numbers are not kept on disk: see `welcomed`.
"""

import asyncio
import contextlib

from hutch.host.agent.link import ControlLink
from hutch.wire import fleet as wire
from hutch.wire.facts import TaskFacts

PAUSE_PER_REPORT_S = 0.002
MAX_PAUSE_S = 0.020
"""Rounds begin so far apart, after many reports: tasks that are launched by the dozen are on their way to their next state."""


class Reports:
    """All that is on its way from this host."""

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self._seq = 0
        self._is_numbered = False
        self._unacked: dict[int, wire.Report] = {}
        self._unsent: set[int] = set()
        self._newest: dict[str, int] = {}
        """Task ids to the number of their newest report."""
        self._reported = asyncio.Event()
        self._acked = asyncio.Event()

    def report(self, facts: TaskFacts) -> None:
        """To be told until it is acknowledged; an older report of the same task goes."""
        self._seq += 1
        old = self._newest.get(facts.task_id)
        if old is not None:
            self._unacked.pop(old, None)
            self._unsent.discard(old)
        self._newest[facts.task_id] = self._seq
        self._unacked[self._seq] = wire.Report(seq=self._seq, facts=facts)
        self._unsent.add(self._seq)
        self._reported.set()

    def welcomed(self, acked_seq: int) -> None:
        """A control plane said what it has. At the first welcome of this process's life that is of an earlier process:
        all that waits here is newer, and is numbered on from there."""
        if self._is_numbered:
            self.acknowledged(acked_seq)
            return
        self._is_numbered = True
        waiting = [r.facts for r in self._unacked.values()]
        self._unacked.clear()
        self._unsent.clear()
        self._newest.clear()
        self._seq = max(self._seq, acked_seq)
        for facts in waiting:
            self.report(facts)

    def acknowledged(self, seq: int) -> None:
        """All up to this number are durable at the other end."""
        for number in [s for s in self._unacked if s <= seq]:
            task_id = self._unacked.pop(number).facts.task_id
            if self._newest.get(task_id) == number:
                del self._newest[task_id]
        self._acked.set()

    def send_all_again(self) -> None:
        """What an earlier connection took may never have arrived."""
        self._unsent = set(self._unacked)
        self._reported.set()

    async def keep_sending(self) -> None:
        """For as long as a connection lasts: send what is not sent yet, as fast as the other end makes it durable. While
        a round is under way newer facts replace older ones, so a busy control plane gets fewer reports and not later ones."""
        loop = asyncio.get_running_loop()
        not_before = 0.0
        while True:
            await self._reported.wait()
            await self._link.welcomed.wait()
            if (early_s := not_before - loop.time()) > 0:
                await asyncio.sleep(early_s)
            self._reported.clear()
            not_before = loop.time() + min(len(self._unsent) * PAUSE_PER_REPORT_S, MAX_PAUSE_S)
            for seq in sorted(self._unsent):
                report = self._unacked.get(seq)
                if report is not None:
                    self._link.send(report)
            self._unsent.clear()
            # Before anything is awaited: what is reported from here on is not in this round, and gets no answer in it.
            last = self._seq
            await self._link.drain()
            while any(seq <= last for seq in self._unacked):
                self._acked.clear()
                await self._acked.wait()

    def disconnected(self) -> None:
        """Nobody waits for an answer over that connection any more."""
        self._acked.set()

    async def until_acknowledged(self, timeout_s: float) -> None:
        """Until nothing waits any more, there is no connection, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._unacked and self._link.is_open:
                    self._acked.clear()
                    await self._acked.wait()
