"""Cluster, capacity provider, account setting and tag operations: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.ecs.common import Arns, page_of, page_size, page_start, tag_list, without_none
from hutch.api.gateway.operation import Coverage, Operation, Request
from hutch.api.gateway.paging import Paging
from hutch.base.errors import Invalid
from hutch.control.ops.clusters import (
    AWS_MANAGED_SETTINGS,
    AccountSettingOps,
    ClusterCounts,
    ClusterOps,
)
from hutch.control.ops.tagging import TagOps
from hutch.model.cluster import AccountSetting, Cluster
from hutch.rules.tags import tags_from_list

_SHOWN = {
    "configuration": "kept and shown; ECS Exec and managed storage come with a later version",
    "serviceConnectDefaults": "kept and shown; Service Connect comes with a later version",
    "settings": "kept and shown; Container Insights come with a later version",
}


def _op(name: str, handler: Any, *enforced: str, inert: dict[str, str] | None = None) -> Operation:
    return Operation(name=name, handler=handler, coverage=Coverage(enforced=enforced, inert=inert or {}))


class ClusterHandlers:
    """The cluster operations of ECS."""

    def __init__(self, ops: ClusterOps, arns: Arns, paging: Paging) -> None:
        self._ops = ops
        self._arns = arns
        self._paging = paging

    def operations(self) -> tuple[Operation, ...]:
        providers = ("capacityProviders", "defaultCapacityProviderStrategy")
        return (
            _op("CreateCluster", self.create, "clusterName", "tags", *providers, inert=_SHOWN),
            _op("DescribeClusters", self.describe, "clusters", "include"),
            _op("ListClusters", self.list_clusters, "nextToken", "maxResults"),
            _op("DeleteCluster", self.delete, "cluster"),
            _op("UpdateCluster", self.update, "cluster", inert=_SHOWN),
            _op("UpdateClusterSettings", self.update, "cluster", inert={"settings": _SHOWN["settings"]}),
            _op("PutClusterCapacityProviders", self.update, "cluster", *providers),
            _op(
                "DescribeCapacityProviders",
                self.describe_providers,
                "capacityProviders",
                "include",
                "maxResults",
                "nextToken",
                "cluster",
            ),
        )

    async def create(self, request: Request) -> dict[str, Any]:
        given = request.input
        cluster, counts = await self._ops.create(
            request.cause,
            given.get("clusterName", "default"),
            given,
            tags_from_list(given.get("tags", ())),
        )
        return {"cluster": self._shape(cluster, counts, ("TAGS", "SETTINGS", "CONFIGURATIONS"))}

    async def describe(self, request: Request) -> dict[str, Any]:
        given = request.input
        include = tuple(given.get("include", ()))
        found, missing = self._ops.describe(given.get("clusters", ()), by_launch_type="STATISTICS" in include)
        return {
            "clusters": [self._shape(c, counts, include) for c, counts in found],
            "failures": [
                {"arn": m if m.startswith("arn:") else self._arns.of("cluster", m), "reason": "MISSING"}
                for m in missing
            ],
        }

    async def list_clusters(self, request: Request) -> dict[str, Any]:
        given = request.input
        start = page_start(self._paging, "ListClusters", given)
        page, more = self._ops.page(start, page_size(given))
        answer: dict[str, Any] = {"clusterArns": [self._arns.of("cluster", c.name) for c in page]}
        if more:
            answer["nextToken"] = self._paging.encode_token("ListClusters", (page[-1].name,))
        return answer

    async def delete(self, request: Request) -> dict[str, Any]:
        cluster = await self._ops.delete(request.cause, request.input["cluster"])
        return {"cluster": self._shape(cluster, ClusterCounts(running=0, pending=0, instances=0), ())}

    async def update(self, request: Request) -> dict[str, Any]:
        cluster, counts = await self._ops.update(request.cause, request.input["cluster"], request.input)
        return {"cluster": self._shape(cluster, counts, ("SETTINGS", "CONFIGURATIONS"))}

    async def describe_providers(self, request: Request) -> dict[str, Any]:
        given = request.input
        found, missing = self._ops.providers(given.get("capacityProviders", ()), given.get("cluster", ""))
        page, token = page_of(self._paging, "DescribeCapacityProviders", found, given, 10)
        answer: dict[str, Any] = {
            "capacityProviders": [
                {
                    "capacityProviderArn": self._arns.of("capacity-provider", n),
                    "name": n,
                    "status": "ACTIVE",
                    "type": n,
                    "tags": [],
                }
                for n in page
            ],
            "failures": [
                {"arn": self._arns.of("capacity-provider", n), "reason": "MISSING"} for n in missing
            ],
        }
        return answer | token

    def _shape(self, cluster: Cluster, counts: ClusterCounts, include: tuple[str, ...]) -> dict[str, Any]:
        return without_none(
            {
                "clusterArn": self._arns.of("cluster", cluster.name),
                "clusterName": cluster.name,
                "status": cluster.status,
                "registeredContainerInstancesCount": counts.instances,
                "runningTasksCount": counts.running,
                "pendingTasksCount": counts.pending,
                "activeServicesCount": 0,
                "statistics": _statistics(counts) if "STATISTICS" in include else [],
                "tags": tag_list(cluster.tags) if "TAGS" in include else [],
                "settings": (
                    [
                        {"name": n, "value": cluster.settings.get(n, "disabled")}
                        for n in ("containerInsights",)
                    ]
                    if "SETTINGS" in include
                    else []
                ),
                "configuration": (cluster.configuration or None) if "CONFIGURATIONS" in include else None,
                "capacityProviders": list(cluster.capacity_providers),
                "defaultCapacityProviderStrategy": list(cluster.default_capacity_provider_strategy),
                "serviceConnectDefaults": cluster.service_connect_defaults or None,
            }
        )


def _statistics(counts: ClusterCounts) -> list[dict[str, str]]:
    """What there is of each launch type, in AWS's names."""
    tasks = {
        f"{state}{word}TasksCount": counts.by_launch_type.get((state, launch_type), 0)
        for state in ("running", "pending")
        for word, launch_type in (("EC2", "EC2"), ("Fargate", "FARGATE"))
    }
    services = {f"{s}{w}ServiceCount": 0 for s in ("active", "draining") for w in ("EC2", "Fargate")}
    return [{"name": k, "value": str(v)} for k, v in (tasks | services).items()]


class AccountHandlers:
    """Account settings and tags."""

    def __init__(self, settings: AccountSettingOps, tags: TagOps, paging: Paging, account_id: str) -> None:
        self._settings = settings
        self._tags = tags
        self._paging = paging
        self._root = f"arn:aws:iam::{account_id}:root"

    def operations(self) -> tuple[Operation, ...]:
        shown = {
            "value": "kept and shown; hutch always uses long ARNs",
            "principalArn": "one principal so far",
        }
        return (
            _op("PutAccountSetting", self.put_setting, "name", inert=shown),
            _op("PutAccountSettingDefault", self.put_default, "name", inert={"value": shown["value"]}),
            _op("DeleteAccountSetting", self.delete_setting, "name", "principalArn"),
            _op(
                "ListAccountSettings",
                self.list_settings,
                "name",
                "value",
                "principalArn",
                "effectiveSettings",
                "nextToken",
                "maxResults",
            ),
            _op("TagResource", self.tag, "resourceArn", "tags"),
            _op("UntagResource", self.untag, "resourceArn", "tagKeys"),
            _op("ListTagsForResource", self.list_tags, "resourceArn"),
        )

    async def put_setting(self, request: Request) -> dict[str, Any]:
        given = request.input
        setting = await self._settings.put(
            request.cause, self._principal(request), given["name"], given["value"]
        )
        return {"setting": self._setting(setting)}

    async def put_default(self, request: Request) -> dict[str, Any]:
        given = request.input
        setting = await self._settings.put(request.cause, "", given["name"], given["value"])
        return {"setting": self._setting(setting)}

    async def delete_setting(self, request: Request) -> dict[str, Any]:
        setting = await self._settings.delete(request.cause, self._principal(request), request.input["name"])
        return {"setting": self._setting(setting)}

    async def list_settings(self, request: Request) -> dict[str, Any]:
        given = request.input
        if given.get("value") and not given.get("name"):
            raise Invalid("A value can only be given together with a name.")
        found = self._settings.list(
            self._principal(request), given.get("name", ""), effective=given.get("effectiveSettings", False)
        )
        wanted = {s.name: s for s in found if given.get("value") in (None, s.value)}
        page, token = page_of(self._paging, "ListAccountSettings", list(wanted), given, 10)
        return {"settings": [self._setting(wanted[n]) for n in page], **token}

    def _principal(self, request: Request) -> str:
        """Whose settings are meant; "" for root, whose settings are the account's."""
        arn: str = request.input.get("principalArn", request.principal.arn)
        return "" if arn == self._root else arn

    def _setting(self, setting: AccountSetting) -> dict[str, Any]:
        return {
            "name": setting.name,
            "value": setting.value,
            "principalArn": setting.principal_arn or self._root,
            "type": "aws_managed" if setting.name in AWS_MANAGED_SETTINGS else "user",
        }

    async def tag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._tags.tag(request.cause, given["resourceArn"], tags_from_list(given["tags"]))
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        await self._tags.untag(request.cause, request.input["resourceArn"], request.input["tagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        return {"tags": tag_list(self._tags.list(request.input["resourceArn"]))}
