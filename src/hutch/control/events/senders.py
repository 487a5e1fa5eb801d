"""Handing a delivery to its target."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid, NotFound, Unavailable
from hutch.control.events.publishing import Publisher
from hutch.control.events.shapes import EVENT
from hutch.control.events.webhook import WebhookClient, refusal_of
from hutch.control.ops.launch import LaunchRequest
from hutch.control.ops.logs import LogOps
from hutch.control.ops.tasks import RUN_TASK_SCOPE, TaskOps
from hutch.model.event import Delivery, LogEntry
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.rules.events.targets import BUS, ECS, LOGS, concurrency_policy, overrides_in, target_name
from hutch.rules.tags import tags_from_list
from hutch.store import tables
from hutch.store.contract import Store

DELIVERED, SKIPPED = "DELIVERED", "SKIPPED"
MAX_STARTED_BY = 128


class Senders:
    """Knows every kind of target."""

    def __init__(
        self,
        store: Store,
        tasks: TaskOps,
        logs: LogOps,
        publisher: Publisher,
        webhooks: WebhookClient,
        clock: Clock,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._logs = logs
        self._publisher = publisher
        self._webhooks = webhooks
        self._clock = clock

    async def send(self, delivery: Delivery) -> tuple[str, str]:
        """(outcome, detail). Sending the same delivery twice is harmless where the target can tell.

        Raises `Unavailable` if another try may help, any other `HutchError` if none would.
        """
        shapes = self._publisher.shapes
        kind, name = target_name(delivery.target.arn, region=shapes.region, account_id=shapes.account_id)
        if kind == ECS:
            return await self._run_tasks(delivery, name)
        if kind == LOGS:
            return await self._log(delivery, name)
        if kind == BUS:
            return await self._put_event(delivery, name)
        return await self._call(delivery, name)

    async def _call(self, delivery: Delivery, url: str) -> tuple[str, str]:
        given = delivery.target.parameters
        answer = await self._webhooks.post(
            url,
            delivery.payload.encode(),
            given.get("HeaderParameters", {}),
            given.get("QueryStringParameters", {}),
            delivery.delivery_id,
        )
        refusal = refusal_of(answer)
        if refusal is not None:
            raise refusal
        return DELIVERED, f"HTTP {answer.status}"

    async def _log(self, delivery: Delivery, group: str) -> tuple[str, str]:
        stream = delivery.owner.replace(":", "-").replace("*", "-")
        line = [(int(self._clock.now() * 1000), delivery.payload)]
        try:
            await self._logs.put(group, stream, line)
        except NotFound:
            # The stream is made on first use; a group that is not there is the user's to make.
            await self._logs.create_stream(group, stream)
            await self._logs.put(group, stream, line)
        return DELIVERED, f"{group} {stream}"

    async def _put_event(self, delivery: Delivery, bus: str) -> tuple[str, str]:
        given = delivery.target.parameters
        if "Source" in given:
            event = self._publisher.shapes.event(
                delivery.delivery_id,
                given["Source"],
                given["DetailType"],
                self._clock.now(),
                [],
                _object(delivery.payload or "{}"),
            )
        else:
            event = _object(delivery.payload)
            if not {"source", "detail-type", "detail"} <= event.keys():
                raise Invalid("what a rule sends to another bus must still be an event")
        cause = Cause(id=delivery.delivery_id, actor="events.amazonaws.com", action="events:PutEvents")
        entry = LogEntry(EVENT, event["id"], self._clock.now(), "", msgspec.json.encode(event), bus)
        await self._store.write(cause, lambda tx: self._publisher.publish(tx, [entry]))
        return DELIVERED, bus

    async def _run_tasks(self, delivery: Delivery, cluster: str) -> tuple[str, str]:
        given = _ecs(delivery.target.parameters)
        tags = tags_from_list(given.get("tags", ()))
        started_by = ("chronos-schedule/" if delivery.owner.startswith("schedule/") else "events-rule/") + (
            delivery.owner.rpartition("/")[2]
        )
        actor = delivery.target.role_arn or "events.amazonaws.com"
        cause = Cause(id=delivery.delivery_id, actor=actor, action=f"events:{delivery.owner}")
        policy = concurrency_policy(tags)
        if policy != "Allow" and not self._was_run(delivery.delivery_id):
            running = self._running(cluster, started_by)
            if running and policy == "Forbid":
                return SKIPPED, f"task {running[0].task_id} of an earlier run still runs"
            for task in running:
                await self._tasks.stop(
                    cause, cluster, task.task_id, f"Replaced by the next run of {delivery.owner}"
                )
        request = LaunchRequest(
            count=given.get("taskCount", 1),
            launch_type=given.get("launchType", ""),
            capacity_provider_strategy=tuple(given.get("capacityProviderStrategy", ())),
            platform_version=given.get("platformVersion", ""),
            overrides=_overrides(delivery),
            group=given.get("group", ""),
            started_by=started_by[:MAX_STARTED_BY],
            tags=tags,
            propagate_tags=given.get("propagateTags", ""),
            managed_tags=given.get("enableECSManagedTags", False),
            enable_execute_command=given.get("enableExecuteCommand", False),
            awsvpc=given.get("networkConfiguration", {}).get("awsvpcConfiguration"),
            placement_constraints=tuple(given.get("placementConstraints", ())),
            placement_strategy=tuple(given.get("placementStrategy", ())),
            client_token=delivery.delivery_id,
        )
        tasks, failures = await self._tasks.run(
            cause, cluster, given["taskDefinitionArn"], request, {"overrides": request.overrides, **given}
        )
        if not tasks and failures:
            raise Unavailable(failures[0].detail or failures[0].reason)
        return DELIVERED, " ".join(t.task_id for t in tasks)

    def _was_run(self, token: str) -> bool:
        with self._store.read() as reader:
            return reader.get(tables.IDEMPOTENCY_TOKENS, RUN_TASK_SCOPE, token) is not None

    def _running(self, cluster: str, started_by: str) -> list[Task]:
        with self._store.read() as reader:
            wanted = reader.scan(tables.TASKS, cluster, "RUNNING", index="by_desired")
            return [t for t in wanted if t.started_by == started_by]


def _overrides(delivery: Delivery) -> dict[str, Any]:
    """What an event says must not choose a role: nobody was asked whether it may be passed."""
    found = overrides_in(delivery.payload)
    if delivery.target.constant is None and found.keys() & {"taskRoleArn", "executionRoleArn"}:
        raise Invalid("only a constant Input can override a task's roles, not what is made of an event")
    return found


def _ecs(given: Any) -> Any:
    """EcsParameters with RunTask's spelling: each service writes its first letters its own way."""
    if isinstance(given, Mapping):
        return {k[:1].lower() + k[1:]: _ecs(v) for k, v in given.items()}
    return [_ecs(v) for v in given] if isinstance(given, list | tuple) else given


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Invalid("the input of this target must be a JSON object")
    return found
