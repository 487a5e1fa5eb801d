"""The parts of events and schedules, put together; for the control plane, and for the tests' servers."""

from collections.abc import Coroutine
from typing import Any

import msgspec

from hutch.api.aws.ecs.access import EcsAccess
from hutch.api.aws.ecs.event_shapes import EcsEventShapes
from hutch.api.aws.events import service as events_api
from hutch.api.aws.scheduler import service as scheduler_api
from hutch.api.gateway.native import NativeRoute
from hutch.api.gateway.operation import Service
from hutch.api.gateway.paging import Paging
from hutch.api.native_events import EventApi
from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.events.deadlines import DeadlineLoop
from hutch.control.events.delivery import DeliveryLoop
from hutch.control.events.loop import EventLoop
from hutch.control.events.publishing import Publisher
from hutch.control.events.reading import EventReader
from hutch.control.events.scheduling import ScheduleLoop
from hutch.control.events.senders import Senders
from hutch.control.events.shapes import EVENT, EventShapes
from hutch.control.events.webhook import WebhookClient
from hutch.control.ops.events import EventOps
from hutch.control.ops.findings import FindingOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.schedules import ScheduleOps
from hutch.control.ops.tagging import TagOps
from hutch.control.ops.tasks import TaskOps
from hutch.model.event import LogEntry
from hutch.model.record import Cause
from hutch.store.contract import Store


class EventParts:
    """All that a control plane has for events."""

    def __init__(
        self,
        store: Store,
        tasks: TaskOps,
        logs: LogOps,
        clock: Clock,
        ids: IdSource,
        *,
        region: str,
        account_id: str,
        webhooks: WebhookClient | None = None,
    ) -> None:
        self._store, self._clock, self._ids = store, clock, ids
        self._where = {"region": region, "account_id": account_id}
        shapes = EventShapes(EcsEventShapes(region, account_id), region=region, account_id=account_id)
        publisher = self._publisher = Publisher(shapes, clock, ids)
        self.events = EventOps(store, publisher, clock, ids)
        self.schedules = ScheduleOps(store, clock, region=region, account_id=account_id)
        self.findings = FindingOps(store, publisher, clock)
        self._reader = EventReader(store, shapes)
        self._tasks = tasks
        self._running = EcsAccess(store, TagOps(store), region, account_id).running
        senders = Senders(store, tasks, logs, publisher, webhooks or WebhookClient(), clock)
        self._loops = (
            EventLoop(store, publisher, clock, ids),
            DeliveryLoop(store, senders, clock, ids),
            ScheduleLoop(store, publisher, clock, ids),
            DeadlineLoop(store, clock, ids),
        )

    def services(self, paging: Paging) -> list[Service]:
        """EventBridge, and EventBridge Scheduler."""
        return [
            events_api.service(self.events, paging, self._running),
            scheduler_api.service(self.schedules, paging, self._running, **self._where),
        ]

    def routes(self) -> tuple[NativeRoute, ...]:
        """hutch's own routes."""
        return EventApi(self._reader, self.events, self.schedules, self._tasks).routes()

    async def tell(self, detail_type: str, detail: dict[str, Any], resource: str) -> None:
        """Publish an event of hutch's own, about a resource (ARN)."""
        now, event_id = self._clock.now(), self._ids.uuid()
        event = self._publisher.shapes.event(event_id, "hutch", detail_type, now, [resource], detail)
        entry = LogEntry(EVENT, event_id, now, "", msgspec.json.encode(event))
        cause = Cause(id=event_id, actor="controller:events", action="publish")
        await self._store.write(cause, lambda tx: self._publisher.publish(tx, [entry]))

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for ever."""
        return [loop.run() for loop in self._loops]
