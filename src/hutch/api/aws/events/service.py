"""EventBridge: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.events.access import EventAccess
from hutch.api.aws.events.targets import target_record, target_shape
from hutch.api.gateway.operation import Coverage, Operation, Request, RunAccess, Service, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import (
    AlreadyExists,
    HutchError,
    LimitExceeded,
    NotFound,
    NotServed,
    StaleWrite,
    Unavailable,
)
from hutch.control.ops.events import EventOps
from hutch.model.event import DISABLED, ENABLED, EventBus, EventRule
from hutch.rules.events.targets import ECS_MEMBERS, check_target
from hutch.rules.tags import tags_from_list

MAX_PAGE = 100
_ROLE = "hutch delivers itself; the caller must be allowed to pass the role, and to run the tasks"
_NO_QUEUE = "hutch has no SQS; what is given up is logged and counted (`hutch schedule runs`)"
_TARGETS = Coverage(
    enforced=(
        "Rule",
        "EventBusName",
        "Targets.Id",
        "Targets.Arn",
        "Targets.Input",
        "Targets.InputPath",
        "Targets.InputTransformer",
        "Targets.RetryPolicy",
        *(f"Targets.EcsParameters.{m}" for m in ECS_MEMBERS),
        "Targets.HttpParameters.HeaderParameters",
        "Targets.HttpParameters.QueryStringParameters",
    ),
    inert={
        "Targets.RoleArn": _ROLE,
        "Targets.EcsParameters.ReferenceId": "shown by AWS to nobody; accepted for compatibility",
    },
    refused={
        "Targets.DeadLetterConfig": _NO_QUEUE,
        "Targets.HttpParameters.PathParameterValues": "hutch's targets are whole URLs",
        "Targets.KinesisParameters": "hutch has no Kinesis",
        "Targets.RunCommandParameters": "hutch has no Run Command",
        "Targets.BatchParameters": "hutch has no Batch",
        "Targets.SqsParameters": "hutch has no SQS",
        "Targets.RedshiftDataParameters": "hutch has no Redshift",
        "Targets.SageMakerPipelineParameters": "hutch has no SageMaker",
        "Targets.AppSyncParameters": "hutch has no AppSync",
    },
)


class EventHandlers:
    """The operations of EventBridge."""

    def __init__(self, ops: EventOps, paging: Paging) -> None:
        self._ops = ops
        self._paging = paging
        self._bus_prefix = f"arn:aws:events:{ops.region}:{ops.account_id}:event-bus/"

    def operations(self) -> tuple[Operation, ...]:
        rule = ("Name", "EventBusName")
        page = ("NextToken", "Limit", "EventBusName")
        unserved_bus = {
            "EventSourceName": "hutch has no partner event sources",
            "KmsKeyIdentifier": "hutch has no KMS",
            "DeadLetterConfig": _NO_QUEUE,
            "LogConfig": "hutch logs what it could not deliver, always",
        }
        return (
            operation(
                "PutRule",
                self.put_rule,
                *rule,
                "ScheduleExpression",
                "EventPattern",
                "State",
                "Description",
                "Tags",
                inert={"RoleArn": _ROLE},
            ),
            operation("DescribeRule", self.describe_rule, *rule),
            operation("DeleteRule", self.delete_rule, *rule, inert={"Force": "hutch has no managed rules"}),
            operation("EnableRule", self.enable_rule, *rule),
            operation("DisableRule", self.disable_rule, *rule),
            operation("ListRules", self.list_rules, "NamePrefix", *page),
            operation("ListRuleNamesByTarget", self.list_by_target, "TargetArn", *page),
            Operation(name="PutTargets", handler=self.put_targets, coverage=_TARGETS),
            operation("ListTargetsByRule", self.list_targets, "Rule", *page),
            operation(
                "RemoveTargets",
                self.remove_targets,
                "Rule",
                "EventBusName",
                "Ids",
                inert={"Force": "hutch has no managed rules"},
            ),
            operation(
                "PutEvents",
                self.put_events,
                *(
                    f"Entries.{m}"
                    for m in ("Time", "Source", "Resources", "DetailType", "Detail", "EventBusName")
                ),
                inert={"Entries.TraceHeader": "hutch has no X-Ray"},
                refused={"EndpointId": "hutch has no global endpoints"},
            ),
            operation("TestEventPattern", self.test_pattern, "EventPattern", "Event"),
            operation("CreateEventBus", self.create_bus, "Name", "Description", "Tags", refused=unserved_bus),
            operation("DescribeEventBus", self.describe_bus, "Name"),
            operation("DeleteEventBus", self.delete_bus, "Name"),
            operation("ListEventBuses", self.list_buses, "NamePrefix", "NextToken", "Limit"),
            operation("TagResource", self.tag, "ResourceARN", "Tags"),
            operation("UntagResource", self.untag, "ResourceARN", "TagKeys"),
            operation("ListTagsForResource", self.list_tags, "ResourceARN"),
        )

    # -- rules

    async def put_rule(self, request: Request) -> dict[str, Any]:
        given = request.input
        state = given.get("State", ENABLED)
        if state not in (ENABLED, DISABLED):
            raise NotServed(f"hutch has no CloudTrail: State is {ENABLED} or {DISABLED}.")
        rule = EventRule(
            bus=self._bus(given),
            name=given["Name"],
            pattern=given.get("EventPattern", ""),
            schedule=given.get("ScheduleExpression", ""),
            state=state,
            description=given.get("Description", ""),
            role_arn=given.get("RoleArn", ""),
            tags=_tags(given),
            created_at=0.0,
        )
        return {"RuleArn": self._ops.rule_arn(await self._ops.put_rule(request.cause, rule))}

    async def describe_rule(self, request: Request) -> dict[str, Any]:
        rule = self._ops.rule(self._bus(request.input), request.input["Name"])
        return {**self._rule_shape(rule), "CreatedBy": request.account_id}

    async def delete_rule(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_rule(request.cause, self._bus(request.input), request.input["Name"])
        return {}

    async def enable_rule(self, request: Request) -> dict[str, Any]:
        await self._ops.set_state(request.cause, self._bus(request.input), request.input["Name"], ENABLED)
        return {}

    async def disable_rule(self, request: Request) -> dict[str, Any]:
        await self._ops.set_state(request.cause, self._bus(request.input), request.input["Name"], DISABLED)
        return {}

    async def list_rules(self, request: Request) -> dict[str, Any]:
        given = request.input
        after, limit = self._page(request)
        rules, more = self._ops.rules(self._bus(given), given.get("NamePrefix", ""), after, limit)
        answer: dict[str, Any] = {"Rules": [self._rule_shape(r) for r in rules]}
        return self._with_token(request, answer, (rules[-1].bus, rules[-1].name) if more else None)

    async def list_by_target(self, request: Request) -> dict[str, Any]:
        given = request.input
        after, limit = self._page(request)
        rules, more = self._ops.rules_of_target(self._bus(given), given["TargetArn"], after, limit)
        answer: dict[str, Any] = {"RuleNames": [r.name for r in rules]}
        return self._with_token(request, answer, (rules[-1].bus, rules[-1].name) if more else None)

    def _rule_shape(self, rule: EventRule) -> dict[str, Any]:
        shape = {
            "Name": rule.name,
            "Arn": self._ops.rule_arn(rule),
            "EventPattern": rule.pattern,
            "ScheduleExpression": rule.schedule,
            "State": rule.state,
            "Description": rule.description,
            "RoleArn": rule.role_arn,
            "EventBusName": rule.bus,
        }
        return {k: v for k, v in shape.items() if v}

    # -- targets

    async def put_targets(self, request: Request) -> dict[str, Any]:
        given = request.input
        targets = [target_record(t) for t in given["Targets"]]
        for target in targets:
            check_target(target, region=self._ops.region, account_id=self._ops.account_id)
        await self._ops.put_targets(request.cause, self._bus(given), given["Rule"], targets)
        return {"FailedEntryCount": 0, "FailedEntries": []}

    async def list_targets(self, request: Request) -> dict[str, Any]:
        given = request.input
        after, limit = self._page(request)
        rule = self._ops.rule(self._bus(given), given["Rule"])
        found = sorted(rule.targets, key=lambda t: t.target_id)
        left = [t for t in found if after is None or t.target_id > after[0]]
        answer: dict[str, Any] = {"Targets": [target_shape(t) for t in left[:limit]]}
        return self._with_token(request, answer, (left[limit - 1].target_id,) if len(left) > limit else None)

    async def remove_targets(self, request: Request) -> dict[str, Any]:
        given = request.input
        missing = await self._ops.remove_targets(request.cause, self._bus(given), given["Rule"], given["Ids"])
        failed = [
            {
                "TargetId": i,
                "ErrorCode": "ResourceNotFoundException",
                "ErrorMessage": f"Rule {given['Rule']} has no target {i}.",
            }
            for i in missing
        ]
        return {"FailedEntryCount": len(failed), "FailedEntries": failed}

    # -- events

    async def put_events(self, request: Request) -> dict[str, Any]:
        results = await self._ops.put_events(request.cause, request.input["Entries"])
        shapes = [
            {"EventId": r.event_id} if r.event_id else {"ErrorCode": r.code, "ErrorMessage": r.message}
            for r in results
        ]
        return {"FailedEntryCount": sum(1 for r in results if not r.event_id), "Entries": shapes}

    async def test_pattern(self, request: Request) -> dict[str, Any]:
        given = request.input
        return {"Result": self._ops.test_pattern(given["EventPattern"], given["Event"])}

    # -- buses and tags

    async def create_bus(self, request: Request) -> dict[str, Any]:
        given = request.input
        bus = await self._ops.create_bus(
            request.cause, given["Name"], given.get("Description", ""), _tags(given)
        )
        shape = {"EventBusArn": self._bus_prefix + bus.name, "Description": bus.description}
        return {k: v for k, v in shape.items() if v}

    async def describe_bus(self, request: Request) -> dict[str, Any]:
        return self._bus_shape(self._ops.bus(self._ops.bus_name(request.input.get("Name", ""))))

    async def delete_bus(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_bus(request.cause, self._ops.bus_name(request.input["Name"]))
        return {}

    async def list_buses(self, request: Request) -> dict[str, Any]:
        after, limit = self._page(request)
        found = [
            b
            for b in self._ops.buses(request.input.get("NamePrefix", ""))
            if after is None or b.name > after[0]
        ]
        answer: dict[str, Any] = {"EventBuses": [self._bus_shape(b) for b in found[:limit]]}
        return self._with_token(request, answer, (found[limit - 1].name,) if len(found) > limit else None)

    def _bus_shape(self, bus: EventBus) -> dict[str, Any]:
        shape: dict[str, Any] = {
            "Name": bus.name,
            "Arn": self._bus_prefix + bus.name,
            "Description": bus.description or None,
            "CreationTime": bus.created_at or None,
            "LastModifiedTime": bus.created_at or None,
        }
        return {k: v for k, v in shape.items() if v is not None}

    async def tag(self, request: Request) -> dict[str, Any]:
        await self._ops.change_tags(request.cause, request.input["ResourceARN"], _tags(request.input))
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(request.cause, given["ResourceARN"], {}, given["TagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        tags = self._ops.tags(request.input["ResourceARN"])
        return {"Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}

    # -- what they share

    def _bus(self, given: dict[str, Any]) -> str:
        return self._ops.bus_name(given.get("EventBusName", ""))

    def _page(self, request: Request) -> tuple[tuple[str, ...] | None, int]:
        token = request.input.get("NextToken")
        after = self._paging.decode_token(request.operation, token) if token else None
        return after, request.input.get("Limit", MAX_PAGE)

    def _with_token(
        self, request: Request, answer: dict[str, Any], last: tuple[str, ...] | None
    ) -> dict[str, Any]:
        if last is not None:
            answer["NextToken"] = self._paging.encode_token(request.operation, last)
        return answer


def _tags(given: dict[str, Any]) -> dict[str, str]:
    return tags_from_list({"key": t.get("Key"), "value": t.get("Value")} for t in given.get("Tags", ()))


def service(ops: EventOps, paging: Paging, running: RunAccess) -> Service:
    """EventBridge, on these use cases. `running`: what it takes to run a task."""
    access = EventAccess(ops, running)
    return Service(
        name="events",
        operations=EventHandlers(ops, paging).operations(),
        faults=(
            (NotFound, "ResourceNotFoundException"),
            (AlreadyExists, "ResourceAlreadyExistsException"),
            (LimitExceeded, "LimitExceededException"),
            (StaleWrite, "ConcurrentModificationException"),
            (Unavailable, "InternalException"),
            (HutchError, "ValidationException"),
        ),
        access=access.rules(),
        tags_of=access.tags_of,
    )
