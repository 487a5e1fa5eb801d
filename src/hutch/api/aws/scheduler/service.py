"""EventBridge Scheduler: shape in, one use case, shape out."""

from collections.abc import Mapping, Sequence
from typing import Any

from hutch.api.gateway.operation import (
    Access,
    AccessRule,
    Coverage,
    Operation,
    Request,
    RunAccess,
    Service,
    operation,
)
from hutch.api.gateway.paging import Paging
from hutch.base.errors import (
    AlreadyExists,
    HutchError,
    Invalid,
    LimitExceeded,
    NotFound,
    NotServed,
    Unavailable,
)
from hutch.control.ops.schedules import DEFAULT_GROUP, ScheduleOps
from hutch.model.event import ENABLED, MAX_EVENT_AGE_S, MAX_RETRIES, Schedule, ScheduleGroup, Target
from hutch.rules.events.targets import BUS, ECS_MEMBERS, check_target, overrides_in
from hutch.rules.tags import tags_from_list

MAX_PAGE = 100
SCHEDULER_SERVICE = "scheduler.amazonaws.com"
_SCHEDULE = Coverage(
    enforced=(
        "Name",
        "GroupName",
        "ScheduleExpression",
        "ScheduleExpressionTimezone",
        "StartDate",
        "EndDate",
        "Description",
        "State",
        "FlexibleTimeWindow",
        "ActionAfterCompletion",
        "ClientToken",
        "Target.Arn",
        "Target.Input",
        "Target.RetryPolicy",
        "Target.EventBridgeParameters",
        *(f"Target.EcsParameters.{m}" for m in ECS_MEMBERS),
    ),
    inert={
        "Target.RoleArn": "hutch delivers itself; the caller must be allowed to pass the role, and to run the tasks",
        "Target.EcsParameters.ReferenceId": "shown by AWS to nobody; accepted for compatibility",
    },
    refused={
        "KmsKeyArn": "hutch has no KMS",
        "Target.DeadLetterConfig": "hutch has no SQS; what is given up is logged and counted (`hutch schedule runs`)",
        "Target.KinesisParameters": "hutch has no Kinesis",
        "Target.SageMakerPipelineParameters": "hutch has no SageMaker",
        "Target.SqsParameters": "hutch has no SQS",
    },
)


class SchedulerHandlers:
    """The operations of EventBridge Scheduler."""

    def __init__(self, ops: ScheduleOps, paging: Paging, *, region: str, account_id: str) -> None:
        self._ops = ops
        self._paging = paging
        self._region = region
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        token = {"ClientToken": "the operation is safe to repeat"}
        page = ("NamePrefix", "NextToken", "MaxResults")
        return (
            Operation(name="CreateSchedule", handler=self.create, coverage=_SCHEDULE),
            Operation(name="UpdateSchedule", handler=self.update, coverage=_SCHEDULE),
            operation("GetSchedule", self.get, "Name", "GroupName"),
            operation("DeleteSchedule", self.delete, "Name", "GroupName", inert=token),
            operation("ListSchedules", self.list_schedules, "GroupName", "State", *page),
            operation("CreateScheduleGroup", self.create_group, "Name", "Tags", inert=token),
            operation("GetScheduleGroup", self.get_group, "Name"),
            operation("DeleteScheduleGroup", self.delete_group, "Name", inert=token),
            operation("ListScheduleGroups", self.list_groups, *page),
            operation("TagResource", self.tag, "ResourceArn", "Tags"),
            operation("UntagResource", self.untag, "ResourceArn", "TagKeys"),
            operation("ListTagsForResource", self.list_tags, "ResourceArn"),
        )

    # -- schedules

    async def create(self, request: Request) -> dict[str, Any]:
        schedule = await self._ops.create(request.cause, self._wanted(request))
        return {"ScheduleArn": self._ops.arn(schedule)}

    async def update(self, request: Request) -> dict[str, Any]:
        schedule = await self._ops.update(request.cause, self._wanted(request))
        return {"ScheduleArn": self._ops.arn(schedule)}

    def _wanted(self, request: Request) -> Schedule:
        given = request.input
        window = given["FlexibleTimeWindow"]
        flexible = window["Mode"] == "FLEXIBLE"
        minutes = window.get("MaximumWindowInMinutes", 0)
        if flexible != bool(minutes):
            raise Invalid("MaximumWindowInMinutes is given with the mode FLEXIBLE, and with no other.")
        target = self._target(given["Target"])
        return Schedule(
            group=given.get("GroupName", DEFAULT_GROUP),
            name=given["Name"],
            expression=given["ScheduleExpression"],
            time_zone=given.get("ScheduleExpressionTimezone", "UTC"),
            start_at=given.get("StartDate"),
            end_at=given.get("EndDate"),
            description=given.get("Description", ""),
            state=given.get("State", ENABLED),
            window_minutes=minutes,
            delete_when_done=given.get("ActionAfterCompletion") == "DELETE",
            target=target,
            client_token=given.get("ClientToken", ""),
            created_at=0.0,
            modified_at=0.0,
            anchor=0.0,
        )

    def _target(self, given: dict[str, Any]) -> Target:
        retry = given.get("RetryPolicy", {})
        if given["Arn"].startswith("arn:aws:scheduler:::aws-sdk:"):
            raise NotServed(f"hutch does not serve universal targets such as {given['Arn'][:100]}.")
        target = Target(
            arn=given["Arn"],
            role_arn=given["RoleArn"],
            constant=given.get("Input"),
            parameters=given.get("EcsParameters") or given.get("EventBridgeParameters") or {},
            max_retries=retry.get("MaximumRetryAttempts", MAX_RETRIES),
            max_age_s=retry.get("MaximumEventAgeInSeconds", MAX_EVENT_AGE_S),
        )
        kind = check_target(target, region=self._region, account_id=self._account_id)
        if (kind == BUS) != ("EventBridgeParameters" in given):
            raise Invalid("EventBridgeParameters are for targets that are event buses, and needed there.")
        return target

    async def get(self, request: Request) -> dict[str, Any]:
        schedule = self._ops.get(request.input.get("GroupName", DEFAULT_GROUP), request.input["Name"])
        window: dict[str, Any] = {"Mode": "OFF"}
        if schedule.window_minutes:
            window = {"Mode": "FLEXIBLE", "MaximumWindowInMinutes": schedule.window_minutes}
        shape = {
            "Arn": self._ops.arn(schedule),
            "GroupName": schedule.group,
            "Name": schedule.name,
            "ScheduleExpression": schedule.expression,
            "ScheduleExpressionTimezone": schedule.time_zone,
            "StartDate": schedule.start_at,
            "EndDate": schedule.end_at,
            "Description": schedule.description or None,
            "State": schedule.state,
            "CreationDate": schedule.created_at,
            "LastModificationDate": schedule.modified_at,
            "Target": _target_shape(schedule.target),
            "FlexibleTimeWindow": window,
            "ActionAfterCompletion": "DELETE" if schedule.delete_when_done else "NONE",
        }
        return {k: v for k, v in shape.items() if v is not None}

    async def delete(self, request: Request) -> dict[str, Any]:
        group = request.input.get("GroupName", DEFAULT_GROUP)
        await self._ops.delete(request.cause, group, request.input["Name"])
        return {}

    async def list_schedules(self, request: Request) -> dict[str, Any]:
        given = request.input
        after, limit = self._page(request)
        found, more = self._ops.page(
            given.get("GroupName", ""), given.get("NamePrefix", ""), given.get("State", ""), after, limit
        )
        answer: dict[str, Any] = {
            "Schedules": [
                {
                    "Arn": self._ops.arn(s),
                    "Name": s.name,
                    "GroupName": s.group,
                    "State": s.state,
                    "CreationDate": s.created_at,
                    "LastModificationDate": s.modified_at,
                    "Target": {"Arn": s.target.arn},
                }
                for s in found
            ]
        }
        if more:
            last = (found[-1].group, found[-1].name)
            answer["NextToken"] = self._paging.encode_token(request.operation, last)
        return answer

    # -- groups

    async def create_group(self, request: Request) -> dict[str, Any]:
        group = await self._ops.create_group(request.cause, request.input["Name"], _tags(request.input))
        return {"ScheduleGroupArn": self._group_arn(group)}

    async def get_group(self, request: Request) -> dict[str, Any]:
        return self._group_shape(self._ops.group(request.input["Name"]))

    async def delete_group(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_group(request.cause, request.input["Name"])
        return {}

    async def list_groups(self, request: Request) -> dict[str, Any]:
        after, limit = self._page(request)
        found = [
            g
            for g in self._ops.groups(request.input.get("NamePrefix", ""))
            if after is None or g.name > after[0]
        ]
        answer: dict[str, Any] = {"ScheduleGroups": [self._group_shape(g) for g in found[:limit]]}
        if len(found) > limit:
            last = (found[limit - 1].name,)
            answer["NextToken"] = self._paging.encode_token(request.operation, last)
        return answer

    def _group_arn(self, group: ScheduleGroup) -> str:
        return f"{self._ops.arn_prefix}schedule-group/{group.name}"

    def _group_shape(self, group: ScheduleGroup) -> dict[str, Any]:
        return {
            "Arn": self._group_arn(group),
            "Name": group.name,
            "State": "ACTIVE",
            "CreationDate": group.created_at,
            "LastModificationDate": group.modified_at,
        }

    async def tag(self, request: Request) -> dict[str, Any]:
        await self._ops.change_tags(request.cause, request.input["ResourceArn"], _tags(request.input))
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(request.cause, given["ResourceArn"], {}, given["TagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        tags = self._ops.tags(request.input["ResourceArn"])
        return {"Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}

    def _page(self, request: Request) -> tuple[tuple[str, ...] | None, int]:
        token = request.input.get("NextToken")
        after = self._paging.decode_token(request.operation, token) if token else None
        return after, request.input.get("MaxResults", MAX_PAGE)


class SchedulerAccess:
    """What Scheduler's operations need permission for."""

    def __init__(self, prefix: str, running: RunAccess) -> None:
        self._prefix = prefix
        self._running = running

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        rules: dict[str, AccessRule] = dict.fromkeys(
            ["CreateSchedule", "UpdateSchedule", "GetSchedule", "DeleteSchedule"], self._schedule
        )
        rules |= dict.fromkeys(
            ["CreateScheduleGroup", "GetScheduleGroup", "DeleteScheduleGroup"], self._group
        )
        return rules | dict.fromkeys(["TagResource", "UntagResource", "ListTagsForResource"], self._by_arn)

    def _schedule(self, request: Request) -> Sequence[Access]:
        """Whoever lets a schedule run tasks must be allowed to run them, and to pass its role."""
        given = request.input
        found = [
            Access(
                resources=(f"{self._prefix}schedule/{given.get('GroupName', DEFAULT_GROUP)}/{given['Name']}",)
            )
        ]
        target = given.get("Target", {})
        if role := target.get("RoleArn"):
            context = {"iam:passedtoservice": (SCHEDULER_SERVICE,)}
            found.append(Access(action="iam:PassRole", resources=(role,), context=context))
        if "EcsParameters" in target:
            definition = target["EcsParameters"]["TaskDefinitionArn"]
            overrides = overrides_in(target.get("Input"))
            found += self._running("ecs:RunTask", definition, target["Arn"], overrides)
        return found

    def _group(self, request: Request) -> Sequence[Access]:
        return (Access(resources=(f"{self._prefix}schedule-group/{request.input['Name']}",)),)

    def _by_arn(self, request: Request) -> Sequence[Access]:
        return (Access(resources=(request.input["ResourceArn"],)),)


def _target_shape(target: Target) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "Arn": target.arn,
        "RoleArn": target.role_arn,
        "RetryPolicy": {
            "MaximumRetryAttempts": target.max_retries,
            "MaximumEventAgeInSeconds": target.max_age_s,
        },
    }
    if target.constant is not None:
        shape["Input"] = target.constant
    if target.parameters:
        kind = "EcsParameters" if "TaskDefinitionArn" in target.parameters else "EventBridgeParameters"
        shape[kind] = target.parameters
    return shape


def _tags(given: dict[str, Any]) -> dict[str, str]:
    return tags_from_list({"key": t.get("Key"), "value": t.get("Value")} for t in given.get("Tags", ()))


def service(ops: ScheduleOps, paging: Paging, running: RunAccess, *, region: str, account_id: str) -> Service:
    """EventBridge Scheduler, on these use cases. `running`: what it takes to run a task."""
    return Service(
        name="scheduler",
        operations=SchedulerHandlers(ops, paging, region=region, account_id=account_id).operations(),
        faults=(
            (NotFound, "ResourceNotFoundException"),
            (AlreadyExists, "ConflictException"),
            (LimitExceeded, "ServiceQuotaExceededException"),
            (Unavailable, "InternalServerException"),
            (HutchError, "ValidationException"),
        ),
        access=SchedulerAccess(ops.arn_prefix, running).rules(),
    )
