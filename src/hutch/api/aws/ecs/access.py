"""What ECS's operations need permission for. Those that are not here need theirs on all resources, as in AWS."""

from collections.abc import Mapping, Sequence
from typing import Any

from hutch.api.gateway.access import last_part, on
from hutch.api.gateway.operation import Access, AccessRule, Request
from hutch.base.errors import HutchError
from hutch.control.ops.tagging import TagOps
from hutch.control.ops.taskdefs import find_task_definition
from hutch.rules.iam.arns import entity_arn
from hutch.store.contract import Store

TASKS_SERVICE = "ecs-tasks.amazonaws.com"
_ROLE_MEMBERS = ("taskRoleArn", "executionRoleArn")
_IN_CLUSTER = {"ecs__cluster": "cluster/{cluster=default}"}

_RULES: dict[str, AccessRule] = {
    "DescribeClusters": on("cluster/{clusters=default}"),
    **dict.fromkeys(
        ("UpdateCluster", "UpdateClusterSettings", "DeleteCluster", "PutClusterCapacityProviders"),
        on("cluster/{cluster=default}"),
    ),
    **dict.fromkeys(
        (
            "RegisterContainerInstance",
            "DeregisterContainerInstance",
            "ListContainerInstances",
            "ListAttributes",
            "SubmitTaskStateChange",
            "SubmitContainerStateChange",
            "SubmitAttachmentStateChanges",
        ),
        on("cluster/{cluster=default}", **_IN_CLUSTER),
    ),
    **dict.fromkeys(
        ("DescribeContainerInstances", "UpdateContainerInstancesState"),
        on("container-instance/{cluster=default}/{containerInstances}", **_IN_CLUSTER),
    ),
    "ListTasks": on("container-instance/{cluster=default}/{containerInstance}", **_IN_CLUSTER),
    **dict.fromkeys(
        ("DescribeTasks", "GetTaskProtection", "UpdateTaskProtection"),
        on("task/{cluster=default}/{tasks}", **_IN_CLUSTER),
    ),
    **dict.fromkeys(("StopTask", "ExecuteCommand"), on("task/{cluster=default}/{task}", **_IN_CLUSTER)),
    "CreateService": on(
        "service/{cluster=default}/{serviceName}",
        **_IN_CLUSTER,
        ecs__task_definition="task-definition/{taskDefinition}",
    ),
    **dict.fromkeys(
        ("UpdateService", "DeleteService", "UpdateServicePrimaryTaskSet"),
        on("service/{cluster=default}/{service}", **_IN_CLUSTER),
    ),
    "DescribeServices": on("service/{cluster=default}/{services}", **_IN_CLUSTER),
    "ListServices": on("*", **_IN_CLUSTER),
    "CreateTaskSet": on("task-set/{cluster=default}/{service}/*", **_IN_CLUSTER),
    "DescribeTaskSets": on("task-set/{cluster=default}/{service}/{taskSets}", **_IN_CLUSTER),
    **dict.fromkeys(
        ("UpdateTaskSet", "DeleteTaskSet"),
        on("task-set/{cluster=default}/{service}/{taskSet}", **_IN_CLUSTER),
    ),
    **dict.fromkeys(("UpdateCapacityProvider", "CreateCapacityProvider"), on("capacity-provider/{name}")),
    "DeleteCapacityProvider": on("capacity-provider/{capacityProvider}"),
    "DescribeCapacityProviders": on("capacity-provider/{capacityProviders}"),
    "DeleteTaskDefinitions": on("task-definition/{taskDefinitions}"),
}


class EcsAccess:
    """The rules of ECS's operations."""

    def __init__(self, store: Store, tags: TagOps, region: str, account_id: str) -> None:
        self._store = store
        self._tags = tags
        self._prefix = f"arn:aws:ecs:{region}:{account_id}:"
        self._account_id = account_id

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        attributes = dict.fromkeys(("PutAttributes", "DeleteAttributes"), self._attributes)
        tagging = dict.fromkeys(("TagResource", "UntagResource", "ListTagsForResource"), self._tagging)
        running = dict.fromkeys(("RunTask", "StartTask"), self._running)
        return _RULES | attributes | tagging | running | {"RegisterTaskDefinition": self._registering}

    def tags_of(self, arn: str) -> Mapping[str, str]:
        """The tags of a resource; none for what is not there or has none."""
        try:
            return self._tags.list(arn)
        except HutchError:
            return {}

    def _registering(self, request: Request) -> Sequence[Access]:
        return self.registering("", request.input)

    def registering(self, action: str, given: Mapping[str, Any]) -> Sequence[Access]:
        """What RegisterTaskDefinition needs permission for; `action` as in `running`."""
        own = Access(action=action, resources=(f"{self._prefix}task-definition/{given['family']}:*",))
        return (own, *self._passing(given))

    def _running(self, request: Request) -> Sequence[Access]:
        given = request.input
        cluster = given.get("cluster") or "default"
        return self.running("", given["taskDefinition"], cluster, given.get("overrides", {}))

    def running(
        self, action: str, reference: str, cluster: str, overrides: Mapping[str, Any]
    ) -> Sequence[Access]:
        """The revision that would run; and its roles, or those that override them, must be the caller's to pass."""
        with self._store.read() as reader:
            found = find_task_definition(reader, reference)
        name = found.name if found else last_part(reference)
        own = Access(
            action=action,
            resources=(f"{self._prefix}task-definition/{name}",),
            context={"ecs:cluster": (f"{self._prefix}cluster/{last_part(cluster)}",)},
        )
        return (own, *self._passing((found.document if found else {}) | dict(overrides)))

    def _passing(self, given: Mapping[str, Any]) -> list[Access]:
        """PassRole for the roles that are given."""
        roles = [str(given[m]) for m in _ROLE_MEMBERS if given.get(m)]
        return [
            Access(
                action="iam:PassRole",
                resources=(r if r.startswith("arn:") else entity_arn(self._account_id, "role", "/", r),),
                context={"iam:passedtoservice": (TASKS_SERVICE,)},
            )
            for r in dict.fromkeys(roles)
        ]

    def _attributes(self, request: Request) -> Sequence[Access]:
        cluster = last_part(request.input.get("cluster") or "default")
        names = [last_part(a.get("targetId", "*")) for a in request.input.get("attributes", [])]
        arns = tuple(f"{self._prefix}container-instance/{cluster}/{n}" for n in names)
        return (
            Access(resources=arns or ("*",), context={"ecs:cluster": (f"{self._prefix}cluster/{cluster}",)}),
        )

    def _tagging(self, request: Request) -> Sequence[Access]:
        """The resource here that the ARN means, whatever region and account it says."""
        parts = request.input["resourceArn"].split(":", 5)
        return (Access(resources=(self._prefix + parts[5] if len(parts) == 6 else "*",)),)
