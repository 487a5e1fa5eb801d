"""EFS: shape in, one use case, shape out. File systems are directories of the host, which microVMs share (ADR 0024)."""

from collections.abc import Mapping, Sequence
from typing import Any

from hutch.api.gateway.access import last_part
from hutch.api.gateway.operation import Access, AccessRule, Coverage, Operation, Request, Service
from hutch.api.gateway.paging import Paging
from hutch.base.errors import (
    AccessDenied,
    AlreadyExists,
    HutchError,
    InUse,
    LimitExceeded,
    NotFound,
    NotServed,
    Unavailable,
)
from hutch.control.ops.filesystems import FileSystemOps, check_root
from hutch.model.filesystem import AccessPoint, FileSystem, MountTarget
from hutch.model.record import Cause
from hutch.rules.tags import tags_from_list

MAX_PAGE = 100
_NO_KMS = "hutch has no KMS; keep the data directory encrypted"
_ONE_SPEED = "shown; a file system is as fast as the host's disk"


class FileSystemHandlers:
    """The operations of EFS that hutch serves."""

    def __init__(self, ops: FileSystemOps, paging: Paging, *, account_id: str) -> None:
        self._ops = ops
        self._paging = paging
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        def op(name: str, handler: Any, *enforced: str, **more: Any) -> Operation:
            return Operation(name=name, handler=handler, coverage=Coverage(enforced=enforced, **more))

        marked = ("MaxItems", "Marker")
        return (
            op(
                "CreateFileSystem",
                self.create,
                *("CreationToken", "Tags", "Encrypted", "Backup"),
                inert={"PerformanceMode": _ONE_SPEED, "ThroughputMode": _ONE_SPEED},
                refused={
                    "KmsKeyId": _NO_KMS,
                    "ProvisionedThroughputInMibps": "hutch reserves no throughput",
                    "AvailabilityZoneName": "a file system is in no zone",
                },
            ),
            op("DescribeFileSystems", self.describe, "CreationToken", "FileSystemId", *marked),
            op("DeleteFileSystem", self.delete, "FileSystemId"),
            op("DescribeLifecycleConfiguration", self.lifecycle, "FileSystemId"),
            op(
                "CreateAccessPoint",
                self.create_point,
                *("ClientToken", "FileSystemId", "Tags", "RootDirectory"),
                refused={
                    "PosixUser": "hutch does not change who a task's users are; let the container run as them"
                },
            ),
            op(
                "DescribeAccessPoints",
                self.points,
                *("AccessPointId", "FileSystemId", "MaxResults", "NextToken"),
            ),
            op("DeleteAccessPoint", self.delete_point, "AccessPointId"),
            op(
                "CreateMountTarget",
                self.create_target,
                *("FileSystemId", "SubnetId", "SecurityGroups"),
                refused=dict.fromkeys(
                    ("IpAddress", "Ipv6Address", "IpAddressType"),
                    "file systems have no addresses: only tasks mount them",
                ),
            ),
            op(
                "DescribeMountTargets",
                self.targets,
                *("FileSystemId", "MountTargetId", *marked),
                refused={"AccessPointId": "ask for those of the file system"},
            ),
            op("DescribeMountTargetSecurityGroups", self.target_groups, "MountTargetId"),
            op("DeleteMountTarget", self.delete_target, "MountTargetId"),
            op("TagResource", self.tag, "ResourceId", "Tags"),
            op("UntagResource", self.untag, "ResourceId", "TagKeys"),
            op("ListTagsForResource", self.list_tags, "ResourceId", "MaxResults", "NextToken"),
        )

    # -- file systems

    async def create(self, request: Request) -> dict[str, Any]:
        given = request.input
        if given.get("Encrypted"):
            raise NotServed(f"Encrypted file systems are not served: {_NO_KMS}.")
        if given.get("Backup"):
            raise NotServed("hutch makes no backups of file systems: back up its data directory.")
        wanted = FileSystem(
            file_system_id="",
            token=given["CreationToken"],
            performance_mode=given.get("PerformanceMode", "generalPurpose"),
            throughput_mode=given.get("ThroughputMode", "bursting"),
            tags=_tags(given),
            created_at=0.0,
        )
        return self._file_system(await self._ops.create(_cause(request), wanted), {})

    async def describe(self, request: Request) -> dict[str, Any]:
        given = request.input
        found = self._ops.file_systems(
            last_part(given.get("FileSystemId", "")), given.get("CreationToken", "")
        )
        page, following = self._page(request, found, lambda f: f.file_system_id, "MaxItems", "Marker")
        sizes = await self._ops.sizes([f.file_system_id for f in page])
        answer: dict[str, Any] = {"FileSystems": [self._file_system(f, sizes) for f in page]}
        return answer | ({"NextMarker": following} if following else {})

    def _file_system(self, found: FileSystem, sizes: Mapping[str, int]) -> dict[str, Any]:
        targets = self._ops.mount_targets(found.file_system_id)
        name = found.tags.get("Name")
        return {
            "OwnerId": self._account_id,
            "CreationToken": found.token,
            "FileSystemId": found.file_system_id,
            "FileSystemArn": f"{self._ops.arn_prefix}file-system/{found.file_system_id}",
            "CreationTime": found.created_at,
            "LifeCycleState": "deleting" if found.deleting else "available",
            "NumberOfMountTargets": len(targets),
            "SizeInBytes": {"Value": sizes.get(found.file_system_id, 0)},
            "PerformanceMode": found.performance_mode,
            "ThroughputMode": found.throughput_mode,
            "Encrypted": False,
            "Tags": _tag_list(found.tags),
            **({"Name": name} if name else {}),
        }

    async def delete(self, request: Request) -> dict[str, Any]:
        await self._ops.delete(_cause(request), last_part(request.input["FileSystemId"]))
        return {}

    async def lifecycle(self, request: Request) -> dict[str, Any]:
        self._ops.file_systems(last_part(request.input["FileSystemId"]))
        return {"LifecyclePolicies": []}

    # -- access points

    async def create_point(self, request: Request) -> dict[str, Any]:
        given = request.input
        root = given.get("RootDirectory", {})
        path = root.get("Path", "/")
        check_root(path)
        owner = None
        if info := root.get("CreationInfo"):
            owner = (info["OwnerUid"], info["OwnerGid"], int(info["Permissions"], 8))
        wanted = AccessPoint(
            access_point_id="",
            file_system_id=last_part(given["FileSystemId"]),
            token=given["ClientToken"],
            path=path,
            owner=owner,
            tags=_tags(given),
            created_at=0.0,
        )
        return self._point(await self._ops.create_access_point(_cause(request), wanted))

    async def points(self, request: Request) -> dict[str, Any]:
        given = request.input
        found = self._ops.access_points(
            last_part(given.get("FileSystemId", "")), last_part(given.get("AccessPointId", ""))
        )
        page, following = self._page(request, found, lambda p: p.access_point_id, "MaxResults", "NextToken")
        answer: dict[str, Any] = {"AccessPoints": [self._point(p) for p in page]}
        return answer | ({"NextToken": following} if following else {})

    def _point(self, point: AccessPoint) -> dict[str, Any]:
        root: dict[str, Any] = {"Path": point.path}
        if point.owner is not None:
            user, group, permissions = point.owner
            root["CreationInfo"] = {"OwnerUid": user, "OwnerGid": group, "Permissions": f"{permissions:04o}"}
        name = point.tags.get("Name")
        return {
            "ClientToken": point.token,
            "AccessPointId": point.access_point_id,
            "AccessPointArn": f"{self._ops.arn_prefix}access-point/{point.access_point_id}",
            "FileSystemId": point.file_system_id,
            "RootDirectory": root,
            "OwnerId": self._account_id,
            "LifeCycleState": "available",
            "Tags": _tag_list(point.tags),
            **({"Name": name} if name else {}),
        }

    async def delete_point(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_access_point(_cause(request), last_part(request.input["AccessPointId"]))
        return {}

    # -- mount targets

    async def create_target(self, request: Request) -> dict[str, Any]:
        given = request.input
        wanted = MountTarget(
            mount_target_id="",
            file_system_id=last_part(given["FileSystemId"]),
            subnet_id=given["SubnetId"],
            security_group_ids=tuple(given.get("SecurityGroups", ())),
            created_at=0.0,
        )
        return self._target(await self._ops.create_mount_target(_cause(request), wanted))

    async def targets(self, request: Request) -> dict[str, Any]:
        given = request.input
        if ("FileSystemId" in given) == ("MountTargetId" in given):
            raise HutchError("Name a file system or a mount target, and not both.")
        found = self._ops.mount_targets(
            last_part(given.get("FileSystemId", "")), given.get("MountTargetId", "")
        )
        page, following = self._page(request, found, lambda t: t.mount_target_id, "MaxItems", "Marker")
        answer: dict[str, Any] = {"MountTargets": [self._target(t) for t in page]}
        return answer | ({"NextMarker": following} if following else {})

    def _target(self, target: MountTarget) -> dict[str, Any]:
        return {
            "OwnerId": self._account_id,
            "MountTargetId": target.mount_target_id,
            "FileSystemId": target.file_system_id,
            "SubnetId": target.subnet_id,
            "LifeCycleState": "available",
            **self._ops.subnet_facts(target.subnet_id),
        }

    async def target_groups(self, request: Request) -> dict[str, Any]:
        (target,) = self._ops.mount_targets(mount_target_id=request.input["MountTargetId"])
        return {"SecurityGroups": list(target.security_group_ids)}

    async def delete_target(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_mount_target(_cause(request), request.input["MountTargetId"])
        return {}

    # -- tags

    async def tag(self, request: Request) -> dict[str, Any]:
        await self._ops.change_tags(
            _cause(request), last_part(request.input["ResourceId"]), _tags(request.input)
        )
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        resource = last_part(request.input["ResourceId"])
        await self._ops.change_tags(_cause(request), resource, {}, request.input["TagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        return {"Tags": _tag_list(self._ops.tags(last_part(request.input["ResourceId"])))}

    def _page(
        self, request: Request, found: Sequence[Any], key_of: Any, size_member: str, token_member: str
    ) -> tuple[list[Any], str]:
        """A page of records, which are in order of their keys, and the token of the next one."""
        token = request.input.get(token_member)
        after = self._paging.decode_token(request.operation, token)[0] if token else ""
        limit = request.input.get(size_member, MAX_PAGE)
        rest = [r for r in sorted(found, key=key_of) if key_of(r) > after]
        page = rest[:limit]
        more = len(rest) > limit
        return page, self._paging.encode_token(request.operation, (key_of(page[-1]),)) if more else ""


def _access(prefix: str) -> Mapping[str, AccessRule]:
    """What the operations need permission for."""

    def on(kind: str, member: str) -> AccessRule:
        def rule(request: Request) -> Sequence[Access]:
            given = request.input.get(member)
            return (Access(resources=(f"{prefix}{kind}/{last_part(given)}" if given else "*",)),)

        return rule

    def tagged(request: Request) -> Sequence[Access]:
        resource = last_part(request.input["ResourceId"])
        kind = "access-point" if resource.startswith("fsap-") else "file-system"
        return (Access(resources=(f"{prefix}{kind}/{resource}",)),)

    names = (
        "DescribeFileSystems DeleteFileSystem DescribeLifecycleConfiguration CreateAccessPoint CreateMountTarget "
        "DescribeMountTargets"
    )
    rules: dict[str, AccessRule] = dict.fromkeys(names.split(), on("file-system", "FileSystemId"))
    rules |= dict.fromkeys(("DescribeAccessPoints", "DeleteAccessPoint"), on("access-point", "AccessPointId"))
    return rules | dict.fromkeys(("TagResource", "UntagResource", "ListTagsForResource"), tagged)


def _cause(request: Request) -> Cause:
    action = f"{request.service}:{request.operation}"
    return Cause(id=request.request_id, actor=request.principal.arn, action=action)


def _tags(given: dict[str, Any]) -> dict[str, str]:
    return tags_from_list({"key": t.get("Key"), "value": t.get("Value")} for t in given.get("Tags", ()))


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": k, "Value": v} for k, v in tags.items()]


def service(ops: FileSystemOps, paging: Paging, *, account_id: str) -> Service:
    """EFS, on these use cases."""
    return Service(
        name="efs",
        operations=FileSystemHandlers(ops, paging, account_id=account_id).operations(),
        faults=(
            (NotFound, "FileSystemNotFound"),
            (AlreadyExists, "FileSystemAlreadyExists"),
            (InUse, "FileSystemInUse"),
            (LimitExceeded, "FileSystemLimitExceeded"),
            (AccessDenied, "AccessDeniedException"),
            (Unavailable, "InternalServerError"),
            (HutchError, "BadRequest"),
        ),
        access=_access(ops.arn_prefix),
    )
