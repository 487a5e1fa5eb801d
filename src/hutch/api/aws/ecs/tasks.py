"""RunTask, StartTask, StopTask, DescribeTasks, ListTasks: shape in, one use case, shape out."""

from typing import Any

import msgspec

from hutch.api.aws.ecs.task_shapes import TaskShapes
from hutch.api.gateway.operation import Coverage, Operation, Request
from hutch.api.gateway.paging import Paging
from hutch.base.errors import Conflict, Invalid
from hutch.control.ops.launch import LaunchRequest
from hutch.control.ops.tasks import Failure, TaskFilter, TaskOps
from hutch.rules.tags import tags_from_list

MAX_PAGE = 100

_NOT_YET = {
    "volumeConfigurations.managedEBSVolume.kmsKeyId": "hutch has no KMS",
    "volumeConfigurations.managedEBSVolume.volumeInitializationRate": "a volume is whole when its task starts",
    "overrides.inferenceAcceleratorOverrides": "Elastic Inference was retired by AWS",
    "overrides.containerOverrides.resourceRequirements": "hutch offers no GPUs",
}
_INERT = {
    "volumeConfigurations.managedEBSVolume.iops": "a volume is as fast as the host's disk",
    "volumeConfigurations.managedEBSVolume.throughput": "a volume is as fast as the host's disk",
    "volumeConfigurations.managedEBSVolume.tagSpecifications": "EC2's volumes are not served; the task shows its own",
    "referenceId": "shown by AWS to nobody; accepted for compatibility",
}
_LAUNCH = (
    "cluster",
    "enableECSManagedTags",
    "enableExecuteCommand",
    "group",
    "networkConfiguration",
    "overrides",
    "propagateTags",
    "startedBy",
    "tags",
    "taskDefinition",
    "volumeConfigurations.name",
    *(
        f"volumeConfigurations.managedEBSVolume.{m}"
        for m in (
            "encrypted",
            "snapshotId",
            "filesystemType",
            "roleArn",
            "sizeInGiB",
            "terminationPolicy",
            "volumeType",
        )
    ),
)


class TaskHandlers:
    """The task operations of ECS."""

    def __init__(self, ops: TaskOps, shapes: TaskShapes, paging: Paging) -> None:
        self._ops = ops
        self._shapes = shapes
        self._paging = paging

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                name="RunTask",
                handler=self.run_task,
                coverage=Coverage(
                    enforced=(
                        *_LAUNCH,
                        "capacityProviderStrategy",
                        "clientToken",
                        "count",
                        "launchType",
                        "placementConstraints",
                        "placementStrategy",
                        "platformVersion",
                    ),
                    inert=_INERT,
                    refused=_NOT_YET,
                ),
            ),
            Operation(
                name="StartTask",
                handler=self.start_task,
                coverage=Coverage(enforced=(*_LAUNCH, "containerInstances"), inert=_INERT, refused=_NOT_YET),
            ),
            Operation(
                name="StopTask",
                handler=self.stop_task,
                coverage=Coverage(enforced=("cluster", "task", "reason")),
            ),
            Operation(
                name="DescribeTasks",
                handler=self.describe_tasks,
                coverage=Coverage(enforced=("cluster", "tasks", "include")),
            ),
            Operation(
                name="ListTasks",
                handler=self.list_tasks,
                coverage=Coverage(
                    enforced=(
                        "cluster",
                        "containerInstance",
                        "family",
                        "startedBy",
                        "serviceName",
                        "desiredStatus",
                        "launchType",
                        "maxResults",
                        "nextToken",
                    ),
                    refused={"daemonName": "daemons come with a later version"},
                ),
            ),
        )

    async def run_task(self, request: Request) -> dict[str, Any]:
        given = request.input
        try:
            tasks, failures = await self._ops.run(
                request.cause, given.get("cluster", ""), given["taskDefinition"], _launch(given), given
            )
        except Conflict as conflict:
            arns = tuple(f"{self._shapes.arn_prefix}:task/{t}" for t in conflict.resource_ids)
            raise Conflict(conflict.message, resource_ids=arns, code=conflict.code) from None
        return {
            "tasks": [self._shapes.task(t, with_tags=True) for t in tasks],
            "failures": [_failure(f) for f in failures],
        }

    async def start_task(self, request: Request) -> dict[str, Any]:
        given = request.input
        tasks, failures = await self._ops.start(
            request.cause,
            given.get("cluster", ""),
            given["taskDefinition"],
            given["containerInstances"],
            _launch(given),
        )
        return {
            "tasks": [self._shapes.task(t, with_tags=True) for t in tasks],
            "failures": [_failure(self._of_instance(given, f)) for f in failures],
        }

    def _of_instance(self, given: dict[str, Any], failure: Failure) -> Failure:
        """A failure that names an instance, by its ARN."""
        if not failure.arn or failure.arn.startswith("arn:"):
            return failure
        cluster = given.get("cluster", "default").rpartition("/")[2]
        arn = f"{self._shapes.arn_prefix}:container-instance/{cluster}/{failure.arn}"
        return msgspec.structs.replace(failure, arn=arn)

    async def stop_task(self, request: Request) -> dict[str, Any]:
        given = request.input
        task = await self._ops.stop(
            request.cause, given.get("cluster", ""), given["task"], given.get("reason", "")
        )
        return {"task": self._shapes.task(task, with_tags=False)}

    async def describe_tasks(self, request: Request) -> dict[str, Any]:
        given = request.input
        found, missing = self._ops.describe(given.get("cluster", ""), given["tasks"])
        with_tags = "TAGS" in given.get("include", ())
        return {
            "tasks": [self._shapes.task(t, with_tags=with_tags) for t in found],
            "failures": [_failure(Failure(arn=self._arn(given, m), reason="MISSING")) for m in missing],
        }

    def _arn(self, given: dict[str, Any], name: str) -> str:
        if name.startswith("arn:"):
            return name
        cluster = given.get("cluster", "default").rpartition("/")[2]
        return f"{self._shapes.arn_prefix}:task/{cluster}/{name}"

    async def list_tasks(self, request: Request) -> dict[str, Any]:
        given = request.input
        limit = given.get("maxResults", MAX_PAGE)
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid(f"maxResults must be between 1 and {MAX_PAGE}.")
        wanted = TaskFilter(
            family=given.get("family", ""),
            started_by=given.get("startedBy", ""),
            service_name=given.get("serviceName", ""),
            launch_type=given.get("launchType", ""),
            desired_status=given.get("desiredStatus", "RUNNING"),
            container_instance=given.get("containerInstance", ""),
        )
        token = given.get("nextToken")
        after = self._paging.decode_token("ListTasks", token) if token else None
        tasks, more = self._ops.page(given.get("cluster", ""), wanted, after, limit)
        answer: dict[str, Any] = {"taskArns": [self._shapes.task_arn(t) for t in tasks]}
        if more:
            last = tasks[-1]
            key = (last.cluster, wanted.desired_status, last.cluster, last.task_id)
            answer["nextToken"] = self._paging.encode_token("ListTasks", key)
        return answer


def _failure(failure: Failure) -> dict[str, Any]:
    shape = {"arn": failure.arn, "reason": failure.reason, "detail": failure.detail}
    return {k: v for k, v in shape.items() if v}


def _launch(given: dict[str, Any]) -> LaunchRequest:
    return LaunchRequest(
        volume_configurations=tuple(given.get("volumeConfigurations", ())),
        count=given.get("count", 1),
        launch_type=given.get("launchType", ""),
        capacity_provider_strategy=tuple(given.get("capacityProviderStrategy", ())),
        platform_version=given.get("platformVersion", ""),
        overrides=given.get("overrides", {}),
        group=given.get("group", ""),
        started_by=given.get("startedBy", ""),
        tags=tags_from_list(given.get("tags", ())),
        propagate_tags=given.get("propagateTags", ""),
        managed_tags=given.get("enableECSManagedTags", False),
        enable_execute_command=given.get("enableExecuteCommand", False),
        awsvpc=given.get("networkConfiguration", {}).get("awsvpcConfiguration"),
        placement_constraints=tuple(given.get("placementConstraints", ())),
        placement_strategy=tuple(given.get("placementStrategy", ())),
        client_token=given.get("clientToken", ""),
    )
