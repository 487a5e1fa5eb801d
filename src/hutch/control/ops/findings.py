"""Findings of threat detection: what hosts tell of their tasks becomes events, as GuardDuty's do."""

from collections.abc import Sequence
from typing import Any

import msgspec

from hutch.base.clock import Clock, iso_time
from hutch.base.log import get_logger
from hutch.control.events.publishing import Publisher
from hutch.control.events.shapes import EVENT
from hutch.model.event import LogEntry
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.contract import Store, Tx
from hutch.wire.facts import FindingFact
from hutch.wire.fleet import FindingBatch

log = get_logger(__name__)

SOURCE, DETAIL_TYPE = "hutch.threats", "Runtime finding"
_SEVERITIES = {
    "EMERGENCY": 9.5,
    "ALERT": 9.0,
    "CRITICAL": 8.0,
    "ERROR": 7.0,
    "WARNING": 5.0,
    "NOTICE": 3.0,
    "INFORMATIONAL": 1.0,
    "DEBUG": 0.5,
}
"""GuardDuty's scale: high from 7, medium from 4."""


class FindingOps:
    """Writes findings to the event log."""

    def __init__(self, store: Store, publisher: Publisher, clock: Clock) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock

    async def record(self, host_id: str, batches: Sequence[FindingBatch]) -> None:
        """Make findings durable, in one unit of work. Those of a task that is not this host's are left out."""
        cause = Cause(id=f"{host_id}/{batches[-1].batch}", actor=f"host:{host_id}", action="findings")

        def work(tx: Tx) -> None:
            entries: list[LogEntry] = []
            for batch in batches:
                found = tx.scan(tables.TASKS, batch.task_id, index="by_id")
                if not found or found[0].host_id != host_id:
                    log.warning(
                        "findings of a task that is not the host's", host=host_id, task=batch.task_id[:64]
                    )
                    continue
                entries += [self._entry(found[0], host_id, f) for f in batch.findings]
            if entries:
                self._publisher.publish(tx, entries)

        await self._store.write(cause, work)

    def _entry(self, task: Task, host_id: str, finding: FindingFact) -> LogEntry:
        shapes = self._publisher.shapes
        prefix = f"arn:aws:ecs:{shapes.region}:{shapes.account_id}"
        task_arn = f"{prefix}:task/{task.cluster}/{task.task_id}"
        detail: dict[str, Any] = {
            "id": finding.finding_id,
            "type": f"Runtime:{finding.rule}",
            "rule": finding.rule,
            "priority": finding.priority,
            "severity": _SEVERITIES.get(finding.priority, 5.0),
            "title": finding.text,
            "description": finding.description,
            "tags": list(finding.tags),
            "taskArn": task_arn,
            "clusterArn": f"{prefix}:cluster/{task.cluster}",
            "taskDefinitionArn": f"{prefix}:task-definition/{task.family}:{task.revision}",
            "hostId": host_id,
            "containerName": finding.container,
            "eventType": finding.event,
            "eventTime": iso_time(_sane(finding.at, self._clock.now())),
            "count": finding.count,
            "process": finding.process,
        }
        at = self._clock.now()
        event = shapes.event(finding.finding_id, SOURCE, DETAIL_TYPE, at, [task_arn], detail)
        return LogEntry(EVENT, finding.finding_id, at, task.task_id, msgspec.json.encode(event))


def _sane(at: float, now: float) -> float:
    """A time that a guest said: not in the future, and not before there was hutch."""
    return at if 1.5e9 <= at <= now else now
