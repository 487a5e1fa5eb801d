"""Threat detection on this host: judges what sandboxes tell of their processes, and hands the findings on.

There is one desk per agent, and without rules it does nothing. What waits for the control plane is bounded; what there is
no room for is counted, and told as a finding of its own.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.contract import Capabilities, ProcessFacts, WatchSpec
from hutch.rules.threats.document import ThreatRules
from hutch.rules.threats.fields import Subject
from hutch.rules.threats.findings import SUPPRESSED, Finding, Judge
from hutch.wire.facts import FindingFact
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)

MAX_WAITING = 1000
MAX_BATCH = 50
SendFindings = Callable[[str, tuple[FindingFact, ...]], Awaitable[None]]
"""Task id and findings; returns when they are durable."""


class ThreatDesk:
    """Judges for all tasks of a host."""

    def __init__(self, rules: ThreatRules | None, clock: Clock, send: SendFindings) -> None:
        """`rules` None: threat detection is off."""
        self._rules = rules
        self._clock = clock
        self._send = send
        self._judges: dict[str, Judge] = {}
        self._waiting: deque[tuple[str, FindingFact]] = deque()
        self._lost: dict[str, int] = {}
        self._told = 0
        self._news = asyncio.Event()

    def watch(self, capabilities: Capabilities) -> WatchSpec | None:
        """What a new sandbox is to tell; None: nothing."""
        if self._rules is None or not self._rules.sources or not capabilities.tells_facts:
            return None
        return WatchSpec(sources=self._rules.sources, directories=self._rules.directories)

    def judge(self, spec: TaskSpec, runtime_ids: dict[str, str], told: ProcessFacts) -> None:
        """Take in what processes of a task did. Facts of containers that the task does not have are left out."""
        if self._rules is None:
            return
        judge = self._judges.get(spec.task_id)
        if judge is None:
            judge = self._judges[spec.task_id] = Judge(self._rules)
        containers = {c.name: c for c in spec.containers}
        subjects: list[Subject] = [
            {
                **msgspec.structs.asdict(fact),
                "container_id": runtime_ids.get(fact.container, ""),
                "image": containers[fact.container].image,
                "privileged": containers[fact.container].privileged,
                "task": spec.task_id,
                "family": spec.family,
            }
            for fact in told.facts
            if fact.container in containers
        ]
        for finding in judge.take(subjects, told.dropped, self._clock.now()):
            self._keep(spec.task_id, finding)

    def forget(self, task_id: str) -> None:
        """The task has ended; what it left to be told is still told."""
        self._judges.pop(task_id, None)

    def _keep(self, task_id: str, finding: Finding) -> None:
        log.warning("threat found", task=task_id, rule=finding.rule, container=finding.container)
        if len(self._waiting) >= MAX_WAITING:
            self._lost[task_id] = self._lost.get(task_id, 0) + 1
            return
        self._waiting.append((task_id, self._fact(task_id, finding)))
        self._news.set()

    def _fact(self, task_id: str, finding: Finding) -> FindingFact:
        self._told += 1
        # The same for every sending of the same finding, so that who gets it twice can see that.
        seed = f"{task_id}/{finding.rule}/{finding.at}/{self._clock.now()}/{self._told}"
        h = hashlib.sha256(seed.encode()).hexdigest()
        return FindingFact(
            finding_id=f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:32]}",
            **msgspec.structs.asdict(finding),
        )

    async def run(self) -> None:
        """For ever: hand on what was found, of one task at a time, in order."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                task_id = self._waiting[0][0]
                batch: list[FindingFact] = []
                for owner, fact in self._waiting:
                    if owner != task_id or len(batch) == MAX_BATCH:
                        break
                    batch.append(fact)
                await self._send(task_id, tuple(batch))
                for _ in batch:
                    self._waiting.popleft()
                self._tell_lost()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, {}
        for task_id, count in lost.items():
            text = f"{count} findings were not told: the control plane was away for too long"
            now = self._clock.now()
            self._keep(task_id, Finding(rule=SUPPRESSED, priority="WARNING", text=text, at=now, count=count))
