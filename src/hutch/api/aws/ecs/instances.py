"""Container instance operations: shape in, one use case, shape out."""

from typing import Any

import msgspec

from hutch.api.aws.ecs.common import Arns, page_size, page_start, tag_list
from hutch.api.gateway.operation import Coverage, Operation, Request, operation
from hutch.api.gateway.paging import Paging
from hutch.base.clock import iso_time
from hutch.base.errors import Invalid
from hutch.control.ops.instances import InstanceOps, InstanceView, Registration
from hutch.model.host import ContainerInstance, Host
from hutch.rules.arns import short_name
from hutch.rules.attributes import all_attributes
from hutch.rules.tags import tags_from_list

_REGISTER = Coverage(
    enforced=("cluster", "instanceIdentityDocument", "containerInstanceArn", "attributes", "tags"),
    inert={
        "instanceIdentityDocumentSignature": "the request's own signature says who asks",
        "totalResources": "hutch's host agent measures and reports them",
        "versionInfo": "hutch's host agent reports its own version",
    },
    refused={"platformDevices": "hutch offers no GPUs"},
)
"""AWS's agent calls it; hutch's hosts join by themselves. Here it brings back what was deregistered."""


class InstanceHandlers:
    """The container instance operations of ECS."""

    def __init__(self, ops: InstanceOps, arns: Arns, paging: Paging) -> None:
        self._ops = ops
        self._arns = arns
        self._paging = paging

    def operations(self) -> tuple[Operation, ...]:
        return (
            operation(
                "DescribeContainerInstances",
                self.describe,
                "cluster",
                "containerInstances",
                "include",
            ),
            operation(
                "ListContainerInstances",
                self.list_instances,
                "cluster",
                "filter",
                "nextToken",
                "maxResults",
                "status",
            ),
            operation(
                "UpdateContainerInstancesState", self.update, "cluster", "containerInstances", "status"
            ),
            operation("PutAttributes", self.put_attributes, "cluster", "attributes"),
            operation("DeleteAttributes", self.delete_attributes, "cluster", "attributes"),
            operation(
                "ListAttributes",
                self.list_attributes,
                "cluster",
                "targetType",
                "attributeName",
                "attributeValue",
                "nextToken",
                "maxResults",
            ),
            operation(
                "DeregisterContainerInstance", self.deregister, "cluster", "containerInstance", "force"
            ),
            Operation(name="RegisterContainerInstance", handler=self.register, coverage=_REGISTER),
        )

    async def describe(self, request: Request) -> dict[str, Any]:
        given = request.input
        cluster = given.get("cluster", "")
        found, missing = self._ops.describe(cluster, given["containerInstances"])
        include = given.get("include", ())
        with_tags = "TAGS" in include
        shapes = [instance_shape(self._arns, v, with_tags=with_tags) for v in found]
        if "CONTAINER_INSTANCE_HEALTH" in include:
            shapes = [s | {"healthStatus": _health(v.host)} for s, v in zip(shapes, found, strict=True)]
        return {
            "containerInstances": shapes,
            "failures": [{"arn": self._arn(cluster, r), "reason": "MISSING"} for r in missing],
        }

    async def list_instances(self, request: Request) -> dict[str, Any]:
        given = request.input
        page, more = self._ops.page(
            given.get("cluster", ""),
            given.get("status", ""),
            given.get("filter", ""),
            page_start(self._paging, "ListContainerInstances", given),
            page_size(given),
        )
        answer: dict[str, Any] = {
            "containerInstanceArns": [
                self._arns.of("container-instance", f"{i.cluster}/{i.instance_id}") for i in page
            ]
        }
        if more:
            key = (page[-1].cluster, page[-1].instance_id)
            answer["nextToken"] = self._paging.encode_token("ListContainerInstances", key)
        return answer

    async def update(self, request: Request) -> dict[str, Any]:
        given = request.input
        cluster = given.get("cluster", "")
        found, failures = await self._ops.set_status(
            request.cause, cluster, given["containerInstances"], given["status"]
        )
        return {
            "containerInstances": [instance_shape(self._arns, v, with_tags=False) for v in found],
            "failures": [{"arn": self._arn(cluster, r), "reason": why} for r, why in failures],
        }

    async def register(self, request: Request) -> dict[str, Any]:
        given = request.input
        wanted = Registration(
            host_id=_host_in(given.get("instanceIdentityDocument", "")),
            instance_id=short_name(given.get("containerInstanceArn", "")),
            attributes={a["name"]: a.get("value", "") for a in given.get("attributes", ())},
            tags=tags_from_list(given.get("tags", ())),
        )
        view = await self._ops.register(request.cause, given.get("cluster", ""), wanted)
        return {"containerInstance": instance_shape(self._arns, view, with_tags=True)}

    async def deregister(self, request: Request) -> dict[str, Any]:
        given = request.input
        view = await self._ops.deregister(
            request.cause,
            given.get("cluster", ""),
            given["containerInstance"],
            force=given.get("force", False),
        )
        return {"containerInstance": instance_shape(self._arns, view, with_tags=True)}

    async def put_attributes(self, request: Request) -> dict[str, Any]:
        given = request.input
        attributes = [{"value": "", **a} for a in given["attributes"]]
        changed = await self._ops.put_attributes(request.cause, given.get("cluster", ""), attributes)
        return {"attributes": self._with_targets(given["attributes"], changed)}

    async def delete_attributes(self, request: Request) -> dict[str, Any]:
        given = request.input
        names = [{k: v for k, v in a.items() if k != "value"} for a in given["attributes"]]
        changed = await self._ops.put_attributes(request.cause, given.get("cluster", ""), names)
        return {"attributes": self._with_targets(given["attributes"], changed)}

    async def list_attributes(self, request: Request) -> dict[str, Any]:
        given = request.input
        start = page_start(self._paging, "ListAttributes", given)
        page, more = self._ops.attributes(
            given.get("cluster", ""),
            given.get("attributeName", ""),
            given.get("attributeValue"),
            start,
            page_size(given),
        )
        shapes = [{"name": n, "value": v} if v else {"name": n} for _, n, v in page]
        answer: dict[str, Any] = {"attributes": self._with_targets(shapes, [i for i, _, _ in page])}
        if more:
            last, name, _ = page[-1]
            answer["nextToken"] = self._paging.encode_token("ListAttributes", (last.instance_id, name))
        return answer

    def _with_targets(
        self, attributes: list[dict[str, str]], instances: list[ContainerInstance]
    ) -> list[dict[str, str]]:
        """Attributes as AWS answers them: their target by its ARN."""
        return [
            {
                **attribute,
                "targetType": "container-instance",
                "targetId": self._arn(instance.cluster, instance.instance_id),
            }
            for attribute, instance in zip(attributes, instances, strict=True)
        ]

    def _arn(self, cluster: str, reference: str) -> str:
        if reference.startswith("arn:"):
            return reference
        name = cluster.rpartition("/")[2] or "default"
        return self._arns.of("container-instance", f"{name}/{reference}")


def instance_shape(arns: Arns, view: InstanceView, *, with_tags: bool) -> dict[str, Any]:
    """A `ContainerInstance`."""
    instance, host = view.instance, view.host
    left_cpu = host.cpu_units - view.reservation.cpu_units
    left_memory = host.memory_mib - view.reservation.memory_mib
    return {
        "containerInstanceArn": arns.of("container-instance", f"{instance.cluster}/{instance.instance_id}"),
        "ec2InstanceId": host.host_id,
        "version": instance.version,
        "versionInfo": {"agentVersion": host.agent_version},
        "registeredResources": _resources(host.cpu_units, host.memory_mib),
        "remainingResources": _resources(left_cpu, left_memory),
        "status": instance.status,
        "agentConnected": host.connected,
        **_away(host),
        "runningTasksCount": view.running,
        "pendingTasksCount": view.pending,
        "attributes": [{"name": k, "value": v} for k, v in all_attributes(instance, host).items()],
        "registeredAt": instance.registered_at,
        "attachments": [],
        "tags": tag_list(instance.tags) if with_tags else [],
    }


def _health(host: Host) -> dict[str, Any]:
    """Whether what runs containers on a host is well: all of its drivers, as its agent last said."""
    well = "OK" if all(d.healthy for d in host.drivers) else "IMPAIRED"
    status = well if host.connected else "INSUFFICIENT_DATA"
    return {"overallStatus": status, "details": [{"type": "CONTAINER_RUNTIME", "status": status}]}


def _away(host: Host) -> dict[str, str]:
    """Why an instance's agent is not connected, as far as that is known."""
    if host.connected or not host.last_seen_at:
        return {}
    return {
        "statusReason": f"The host agent is not connected, last heard of at {iso_time(host.last_seen_at)}."
    }


def _host_in(document: str) -> str:
    """The `instanceId` of an EC2 instance identity document; "" if none is given. Raises `Invalid`."""
    if not document:
        return ""
    try:
        return msgspec.json.decode(document, type=_IdentityDocument).instanceId
    except msgspec.MsgspecError:
        raise Invalid("instanceIdentityDocument is not a JSON document with an instanceId.") from None


class _IdentityDocument(msgspec.Struct):
    instanceId: str


def _resources(cpu_units: int, memory_mib: int) -> list[dict[str, Any]]:
    return [
        {"name": "CPU", "type": "INTEGER", "integerValue": cpu_units},
        {"name": "MEMORY", "type": "INTEGER", "integerValue": memory_mib},
    ]
