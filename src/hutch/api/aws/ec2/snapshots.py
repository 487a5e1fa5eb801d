"""EC2's snapshots, of the volumes that ECS made for tasks: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.ec2.filters import Field, filtered, member
from hutch.api.gateway.operation import Coverage, Operation, Request
from hutch.api.gateway.paging import Paging
from hutch.base.errors import Invalid, NotFound
from hutch.control.ops.disk_snapshots import DiskSnapshotOps
from hutch.model.disk import COMPLETED, DiskSnapshot
from hutch.model.record import Cause
from hutch.rules.tags import tags_from_list

MIN_PAGE, MAX_PAGE = 5, 1000
MAX_DESCRIPTION = 255
_NO_DRY_RUN = {"DryRun": "hutch has no dry runs"}


class SnapshotHandlers:
    """CreateSnapshot, DescribeSnapshots, DeleteSnapshot."""

    def __init__(self, ops: DiskSnapshotOps, paging: Paging, account_id: str) -> None:
        self._ops = ops
        self._paging = paging
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        def op(name: str, handler: Any, *enforced: str, **more: Any) -> Operation:
            return Operation(name=name, handler=handler, coverage=Coverage(enforced=enforced, **more))

        return (
            op(
                "CreateSnapshot",
                self.create,
                *("VolumeId", "Description", "TagSpecifications"),
                refused={
                    **_NO_DRY_RUN,
                    "OutpostArn": "hutch has no outposts",
                    "Location": "snapshots are where volumes are",
                },
            ),
            op(
                "DescribeSnapshots",
                self.describe,
                *("SnapshotIds", "Filters", "MaxResults", "NextToken", "OwnerIds"),
                inert={"DryRun": "reading changes nothing anyway"},
                refused={"RestorableByUserIds": "a platform has one account"},
            ),
            op("DeleteSnapshot", self.delete, "SnapshotId", refused=_NO_DRY_RUN),
        )

    async def create(self, request: Request) -> dict[str, Any]:
        given = request.input
        description = given.get("Description", "")
        if len(description) > MAX_DESCRIPTION:
            raise Invalid(f"A description can have at most {MAX_DESCRIPTION} characters.")
        tags: dict[str, str] = {}
        for item in given.get("TagSpecifications", ()):
            if item.get("ResourceType") != "snapshot":
                raise Invalid("The tags of a snapshot have the resource type snapshot.")
            tags |= tags_from_list(
                {"key": t.get("Key"), "value": t.get("Value")} for t in item.get("Tags", ())
            )
        return self._shape(await self._ops.create(_cause(request), given["VolumeId"], description, tags))

    async def describe(self, request: Request) -> dict[str, Any]:
        given = request.input
        found = [self._shape(s) for s in self._ops.all()]
        if wanted := given.get("SnapshotIds"):
            known = {s["SnapshotId"] for s in found}
            if unknown := [w for w in wanted if w not in known]:
                raise NotFound(
                    f"The snapshot '{unknown[0][:60]}' does not exist.", code="InvalidSnapshot.NotFound"
                )
            found = [s for s in found if s["SnapshotId"] in wanted]
        owners = given.get("OwnerIds")
        if owners and not {"self", self._account_id} & set(owners):
            found = []
        found = filtered(found, given.get("Filters", ()), _FILTERS)
        if token := given.get("NextToken"):
            after = self._paging.decode_token(request.operation, token)[0]
            found = [s for s in found if s["SnapshotId"] > after]
        limit = min(given.get("MaxResults", MAX_PAGE), MAX_PAGE)
        if limit < MIN_PAGE:
            raise Invalid(f"MaxResults must be at least {MIN_PAGE}.", code="InvalidParameterValue")
        answer: dict[str, Any] = {"Snapshots": found[:limit]}
        if limit < len(found):
            last = str(found[limit - 1]["SnapshotId"])
            answer["NextToken"] = self._paging.encode_token(request.operation, (last,))
        return answer

    async def delete(self, request: Request) -> dict[str, Any]:
        await self._ops.delete(_cause(request), request.input["SnapshotId"])
        return {}

    def _shape(self, snapshot: DiskSnapshot) -> dict[str, Any]:
        shape = {
            "SnapshotId": snapshot.snapshot_id,
            "VolumeId": snapshot.volume_id,
            "State": snapshot.state,
            "Progress": "100%" if snapshot.state == COMPLETED else "0%",
            "StartTime": snapshot.created_at,
            "CompletionTime": snapshot.completed_at,
            "OwnerId": self._account_id,
            "Description": snapshot.description,
            "VolumeSize": snapshot.size_gib,
            "Encrypted": False,
            "StorageTier": "standard",
            "Tags": [{"Key": k, "Value": v} for k, v in snapshot.tags.items()],
        }
        return {k: v for k, v in shape.items() if v is not None}


_FILTERS: dict[str, Field] = {
    "snapshot-id": member("SnapshotId"),
    "volume-id": member("VolumeId"),
    "volume-size": member("VolumeSize"),
    "status": member("State"),
    "description": member("Description"),
    "owner-id": member("OwnerId"),
    "encrypted": member("Encrypted"),
    "storage-tier": member("StorageTier"),
}


def _cause(request: Request) -> Cause:
    action = f"{request.service}:{request.operation}"
    return Cause(id=request.request_id, actor=request.principal.arn, action=action)
