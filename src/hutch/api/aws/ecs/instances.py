"""Container instance operations: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.ecs.common import Arns, cause_of, page_size, page_start, tag_list
from hutch.api.gateway.operation import Coverage, Operation, Request
from hutch.api.gateway.paging import Paging
from hutch.control.ops.clusters import InstanceOps, InstanceView


class InstanceHandlers:
    """The container instance operations of ECS."""

    def __init__(self, ops: InstanceOps, arns: Arns, paging: Paging) -> None:
        self._ops = ops
        self._arns = arns
        self._paging = paging

    def operations(self) -> tuple[Operation, ...]:
        def op(name: str, handler: Any, *enforced: str) -> Operation:
            return Operation(name=name, handler=handler, coverage=Coverage(enforced=enforced))

        return (
            op(
                "DescribeContainerInstances",
                self.describe,
                "cluster",
                "containerInstances",
                "include",
            ),
            op(
                "ListContainerInstances",
                self.list_instances,
                "cluster",
                "filter",
                "nextToken",
                "maxResults",
                "status",
            ),
            op("UpdateContainerInstancesState", self.update, "cluster", "containerInstances", "status"),
            op("PutAttributes", self.put_attributes, "cluster", "attributes"),
            op("DeleteAttributes", self.delete_attributes, "cluster", "attributes"),
        )

    async def describe(self, request: Request) -> dict[str, Any]:
        given = request.input
        cluster = given.get("cluster", "")
        found, missing = self._ops.describe(cluster, given["containerInstances"])
        with_tags = "TAGS" in given.get("include", ())
        return {
            "containerInstances": [self._shape(v, with_tags=with_tags) for v in found],
            "failures": self._missing(cluster, missing),
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
        found, missing = await self._ops.set_status(
            cause_of(request), cluster, given["containerInstances"], given["status"]
        )
        return {
            "containerInstances": [self._shape(v, with_tags=False) for v in found],
            "failures": self._missing(cluster, missing),
        }

    async def put_attributes(self, request: Request) -> dict[str, Any]:
        given = request.input
        attributes = [{"value": "", **a} for a in given["attributes"]]
        await self._ops.put_attributes(cause_of(request), given.get("cluster", ""), attributes)
        return {"attributes": given["attributes"]}

    async def delete_attributes(self, request: Request) -> dict[str, Any]:
        given = request.input
        names = [{k: v for k, v in a.items() if k != "value"} for a in given["attributes"]]
        await self._ops.put_attributes(cause_of(request), given.get("cluster", ""), names)
        return {"attributes": given["attributes"]}

    def _missing(self, cluster: str, references: list[str]) -> list[dict[str, str]]:
        name = cluster.rpartition("/")[2] or "default"
        return [
            {
                "arn": r if r.startswith("arn:") else self._arns.of("container-instance", f"{name}/{r}"),
                "reason": "MISSING",
            }
            for r in references
        ]

    def _shape(self, view: InstanceView, *, with_tags: bool) -> dict[str, Any]:
        instance, host = view.instance, view.host
        attributes = {
            "ecs.availability-zone": host.availability_zone,
            "ecs.cpu-architecture": host.architecture,
            "ecs.os-type": "linux",
            **host.attributes,
            **instance.attributes,
        }
        left_cpu = host.cpu_units - view.reservation.cpu_units
        left_memory = host.memory_mib - view.reservation.memory_mib
        return {
            "containerInstanceArn": self._arns.of(
                "container-instance", f"{instance.cluster}/{instance.instance_id}"
            ),
            "ec2InstanceId": host.host_id,
            "versionInfo": {"agentVersion": host.agent_version},
            "registeredResources": _resources(host.cpu_units, host.memory_mib),
            "remainingResources": _resources(left_cpu, left_memory),
            "status": instance.status,
            "agentConnected": host.connected,
            "runningTasksCount": view.running,
            "pendingTasksCount": view.pending,
            "attributes": [{"name": k, "value": v} for k, v in attributes.items()],
            "registeredAt": instance.registered_at,
            "attachments": [],
            "tags": tag_list(instance.tags) if with_tags else [],
        }


def _resources(cpu_units: int, memory_mib: int) -> list[dict[str, Any]]:
    return [
        {"name": "CPU", "type": "INTEGER", "integerValue": cpu_units},
        {"name": "MEMORY", "type": "INTEGER", "integerValue": memory_mib},
    ]
