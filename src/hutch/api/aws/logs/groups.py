"""Log groups and their tags."""

from typing import Any

from hutch.api.aws.logs.shapes import LogShapes
from hutch.api.gateway.operation import Operation, Request, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import HutchError, Invalid, LimitExceeded
from hutch.control.ops.logs import LogOps
from hutch.rules.tags import tags_from_list

_ONE_ACCOUNT = {
    "includeLinkedAccounts": "hutch has one account",
    "accountIdentifiers": "hutch has one account",
    "dataSources": "hutch has no data sources",
    "fieldIndexNames": "hutch has no field indexes",
    "logGroupTags": "list groups by name",
}


FaultTable = tuple[tuple[type[HutchError], str], ...]
_TOO_MANY_TAGS: FaultTable = ((LimitExceeded, "TooManyTagsException"),)


class GroupHandlers:
    """The operations on log groups."""

    def __init__(self, ops: LogOps, paging: Paging, shapes: LogShapes) -> None:
        self._ops = ops
        self._paging = paging
        self._shapes = shapes

    def operations(self) -> tuple[Operation, ...]:
        return (*self._of_groups(), *self._of_tags())

    def _of_groups(self) -> tuple[Operation, ...]:
        return (
            operation(
                "CreateLogGroup",
                self.create_group,
                "logGroupName",
                "tags",
                "logGroupClass",
                "deletionProtectionEnabled",
                refused={"kmsKeyId": "hutch has no KMS"},
            ),
            operation(
                "DescribeLogGroups",
                self.describe_groups,
                "logGroupNamePrefix",
                "logGroupNamePattern",
                "nextToken",
                "limit",
                "logGroupClass",
            ),
            operation(
                "ListLogGroups",
                self.list_groups,
                "logGroupNamePattern",
                "logGroupClass",
                "nextToken",
                "limit",
                refused=_ONE_ACCOUNT,
            ),
            operation("DeleteLogGroup", self.delete_group, "logGroupName"),
            operation("PutRetentionPolicy", self.put_retention, "logGroupName", "retentionInDays"),
            operation("DeleteRetentionPolicy", self.delete_retention, "logGroupName"),
        )

    def _of_tags(self) -> tuple[Operation, ...]:
        return (
            operation("TagResource", self.tag, "resourceArn", "tags", faults=_TOO_MANY_TAGS),
            operation("UntagResource", self.untag, "resourceArn", "tagKeys"),
            operation("ListTagsForResource", self.list_tags, "resourceArn"),
            operation("TagLogGroup", self.tag_group, "logGroupName", "tags"),
            operation("UntagLogGroup", self.untag_group, "logGroupName", "tags"),
            operation("ListTagsLogGroup", self.list_tags_of_group, "logGroupName"),
        )

    async def create_group(self, request: Request) -> dict[str, Any]:
        given = request.input
        if given.get("deletionProtectionEnabled"):
            raise Invalid("hutch does not support deletionProtectionEnabled.")
        tags = _checked(given.get("tags", {}))
        await self._ops.create_group(given["logGroupName"], given.get("logGroupClass", "STANDARD"), tags)
        return {}

    async def describe_groups(self, request: Request) -> dict[str, Any]:
        given = request.input
        if given.get("logGroupNamePrefix") and given.get("logGroupNamePattern"):
            raise Invalid("logGroupNamePattern and logGroupNamePrefix can't be given together.")
        limit = given.get("limit", 50)
        token = given.get("nextToken")
        after = self._paging.decode_token("DescribeLogGroups", token)[0] if token else ""
        page, more = self._ops.groups(
            given.get("logGroupNamePrefix", ""), given.get("logGroupNamePattern", ""), after, limit
        )
        wanted = given.get("logGroupClass")
        answer: dict[str, Any] = {
            "logGroups": [self._shapes.group(g) for g in page if wanted in (None, g.log_class)]
        }
        if more:
            answer["nextToken"] = self._paging.encode_token("DescribeLogGroups", (page[-1].name,))
        return answer

    async def list_groups(self, request: Request) -> dict[str, Any]:
        given = request.input
        token = given.get("nextToken")
        page, more = self._ops.groups_like(
            given.get("logGroupNamePattern", ""),
            given.get("logGroupClass", ""),
            self._paging.decode_token("ListLogGroups", token)[0] if token else "",
            given.get("limit", 50),
        )
        answer: dict[str, Any] = {
            "logGroups": [
                {
                    "logGroupName": g.name,
                    "logGroupArn": self._shapes.group_arn(g.name),
                    "logGroupClass": g.log_class,
                }
                for g in page
            ]
        }
        if more:
            answer["nextToken"] = self._paging.encode_token("ListLogGroups", (page[-1].name,))
        return answer

    async def delete_group(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_group(request.input["logGroupName"])
        return {}

    async def put_retention(self, request: Request) -> dict[str, Any]:
        await self._ops.set_retention(request.input["logGroupName"], request.input["retentionInDays"])
        return {}

    async def delete_retention(self, request: Request) -> dict[str, Any]:
        await self._ops.set_retention(request.input["logGroupName"], None)
        return {}

    async def tag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(self._tagged(given["resourceArn"]), _checked(given["tags"]))
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(self._tagged(given["resourceArn"]), {}, given["tagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        return {"tags": self._ops.tags(self._tagged(request.input["resourceArn"]))}

    async def tag_group(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(given["logGroupName"], _checked(given["tags"]))
        return {}

    async def untag_group(self, request: Request) -> dict[str, Any]:
        await self._ops.change_tags(request.input["logGroupName"], {}, request.input["tags"])
        return {}

    async def list_tags_of_group(self, request: Request) -> dict[str, Any]:
        return {"tags": self._ops.tags(request.input["logGroupName"])}

    def _tagged(self, arn: str) -> str:
        """The group that a tag operation names, which takes ARNs only."""
        if not arn.startswith("arn:"):
            raise Invalid("The specified resourceArn is not an ARN.")
        return self._shapes.group_of(arn)


def _checked(tags: dict[str, str]) -> dict[str, str]:
    return tags_from_list({"key": k, "value": v} for k, v in tags.items())
