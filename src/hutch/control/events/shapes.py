"""Entries of the event log as EventBridge's events."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from hutch.base.clock import iso_time
from hutch.control.ops.instances import InstanceView
from hutch.model.event import LogEntry
from hutch.model.notes import decode_task_note
from hutch.model.task import Task
from hutch.rules.events.task_changes import snapshots

TASK, EVENT = "task", "event"


class EcsShapes(Protocol):
    """ECS's own shapes; the API knows them."""

    def task(self, task: Task) -> dict[str, Any]:
        """As DescribeTasks shows it; times are epoch seconds."""
        ...

    def instance(self, view: InstanceView) -> dict[str, Any]:
        """As DescribeContainerInstances shows it."""
        ...


class EventShapes:
    """Makes events of one platform."""

    def __init__(self, ecs: EcsShapes, *, region: str, account_id: str) -> None:
        self._ecs = ecs
        self.region = region
        self.account_id = account_id

    def events(self, entry: LogEntry) -> list[dict[str, Any]]:
        """The events of an entry, oldest first. The same entry always gives the same, ids included."""
        if entry.kind == EVENT:
            return [msgspec.json.decode(entry.body)]
        made = []
        for task, entered_at in snapshots(decode_task_note(entry.body)):
            at = entered_at or entry.at
            detail = self._detail(self._ecs.task(task), at)
            event_id = _event_id(task)
            made.append(
                self.event(event_id, "aws.ecs", "ECS Task State Change", at, [detail["taskArn"]], detail)
            )
        return made

    def instance_entry(self, event_id: str, view: InstanceView, at: float, version: int) -> LogEntry:
        """An entry that tells of a container instance. `version` rises with each."""
        detail = self._detail({**self._ecs.instance(view), "version": version}, at)
        detail["clusterArn"] = f"arn:aws:ecs:{self.region}:{self.account_id}:cluster/{view.instance.cluster}"
        arns = [detail["containerInstanceArn"]]
        event = self.event(event_id, "aws.ecs", "ECS Container Instance State Change", at, arns, detail)
        return LogEntry(EVENT, event_id, at, "", msgspec.json.encode(event))

    def event(
        self,
        event_id: str,
        source: str,
        detail_type: str,
        at: float,
        resources: list[str],
        detail: Mapping[str, Any],
    ) -> dict[str, Any]:
        """An event in EventBridge's envelope."""
        return {
            "version": "0",
            "id": event_id,
            "detail-type": detail_type,
            "source": source,
            "account": self.account_id,
            "time": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": self.region,
            "resources": resources,
            "detail": detail,
        }

    @staticmethod
    def _detail(shape: dict[str, Any], at: float) -> dict[str, Any]:
        """EventBridge writes times as text, where the API has numbers."""
        detail = {
            k: iso_time(v) if k.endswith("At") and isinstance(v, float) else v for k, v in shape.items()
        }
        detail["updatedAt"] = iso_time(at)
        return detail


def _event_id(task: Task) -> str:
    """The id of a task's event, in the form of a UUID: the same whenever it is made of the same change."""
    h = hashlib.sha256(f"{task.task_id}/{task.event_version}".encode()).hexdigest()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:32]}"
