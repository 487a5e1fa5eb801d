"""The read-only part of EC2 that ECS's tools look at: VPCs, subnets, security groups, interfaces, zones."""

import ipaddress
from typing import Any

from hutch.api.aws.ec2.filters import Field, filtered, member
from hutch.api.aws.ec2.snapshots import SnapshotHandlers
from hutch.api.gateway.operation import Coverage, Operation, Request, Service
from hutch.api.gateway.paging import Paging
from hutch.base.errors import HutchError, Invalid, NotFound, NotServed, Unavailable
from hutch.control.ops.disk_snapshots import DiskSnapshotOps
from hutch.control.ops.vpc import RESERVED_FIRST
from hutch.model.network import AddressLease, SecurityGroup, Subnet, Vpc
from hutch.store import tables
from hutch.store.contract import Reader, Store

Shape = dict[str, Any]
_INERT = {"DryRun": "reading changes nothing anyway"}


class Ec2Handlers:
    """The EC2 operations that hutch serves."""

    def __init__(self, store: Store, paging: Paging, region: str, account_id: str) -> None:
        self._store = store
        self._paging = paging
        self._region = region
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        def op(name: str, handler: Any, ids: str, refused: dict[str, str] | None = None) -> Operation:
            enforced = ("Filters", ids, "MaxResults", "NextToken")
            return Operation(
                name=name,
                handler=handler,
                coverage=Coverage(enforced=enforced, inert=_INERT, refused=refused or {}),
            )

        return (
            op("DescribeVpcs", self.vpcs, "VpcIds"),
            op("DescribeSubnets", self.subnets, "SubnetIds"),
            op("DescribeSecurityGroups", self.groups, "GroupIds", {"GroupNames": "use a group-name filter"}),
            op("DescribeNetworkInterfaces", self.interfaces, "NetworkInterfaceIds"),
            Operation(
                name="DescribeAvailabilityZones",
                handler=self.zones,
                coverage=Coverage(
                    enforced=("Filters", "ZoneNames", "ZoneIds"),
                    inert={**_INERT, "AllAvailabilityZones": "all zones are available"},
                ),
            ),
        )

    async def vpcs(self, request: Request) -> Shape:
        with self._store.read() as reader:
            found = [self._vpc(v) for v in reader.scan(tables.VPCS)]
        return self._answer(
            request, "Vpcs", found, "VpcId", "VpcIds", _VPC_FILTERS, "InvalidVpcID.NotFound", "vpc ID"
        )

    async def subnets(self, request: Request) -> Shape:
        with self._store.read() as reader:
            found = [self._subnet(reader, s) for s in reader.scan(tables.SUBNETS)]
        return self._answer(
            request,
            "Subnets",
            found,
            "SubnetId",
            "SubnetIds",
            _SUBNET_FILTERS,
            "InvalidSubnetID.NotFound",
            "subnet ID",
        )

    async def groups(self, request: Request) -> Shape:
        with self._store.read() as reader:
            found = [self._group(g) for g in reader.scan(tables.SECURITY_GROUPS)]
        return self._answer(
            request, "SecurityGroups", found, "GroupId", "GroupIds", _GROUP_FILTERS, "InvalidGroup.NotFound",
            "security group",
        )  # fmt: skip

    async def interfaces(self, request: Request) -> Shape:
        with self._store.read() as reader:
            found = [self._interface(reader, a) for a in reader.scan(tables.ADDRESS_LEASES)]
        return self._answer(
            request, "NetworkInterfaces", found, "NetworkInterfaceId", "NetworkInterfaceIds", _ENI_FILTERS,
            "InvalidNetworkInterfaceID.NotFound", "networkInterface ID",
        )  # fmt: skip

    async def zones(self, request: Request) -> Shape:
        with self._store.read() as reader:
            pairs = sorted(
                {(s.availability_zone, s.availability_zone_id) for s in reader.scan(tables.SUBNETS)}
            )
        found = [
            {
                "ZoneName": name,
                "ZoneId": zone_id,
                "State": "available",
                "RegionName": self._region,
                "GroupName": self._region,
                "NetworkBorderGroup": self._region,
                "ZoneType": "availability-zone",
                "OptInStatus": "opt-in-not-required",
                "Messages": [],
            }
            for name, zone_id in pairs
        ]
        given = request.input
        for ids, field in (("ZoneNames", "ZoneName"), ("ZoneIds", "ZoneId")):
            if wanted := given.get(ids):
                unknown = [w for w in wanted if w not in {f[field] for f in found}]
                if unknown:
                    raise Invalid(f"Invalid availability zone: [{unknown[0]}]")
                found = [f for f in found if f[field] in wanted]
        return {"AvailabilityZones": filtered(found, given.get("Filters", ()), _ZONE_FILTERS)}

    def _answer(
        self,
        request: Request,
        member: str,
        found: list[Shape],
        id_field: str,
        ids_member: str,
        filters: dict[str, Field],
        missing_code: str,
        noun: str,
    ) -> Shape:
        """By ids, filters and page."""
        given = request.input
        if wanted := given.get(ids_member):
            unknown = [w for w in wanted if w not in {f[id_field] for f in found}]
            if unknown:
                raise NotFound(f"The {noun} '{unknown[0]}' does not exist", code=missing_code)
            found = [f for f in found if f[id_field] in wanted]
        found = filtered(found, given.get("Filters", ()), filters)
        found.sort(key=lambda f: str(f[id_field]))
        token = given.get("NextToken")
        scope = request.operation
        if token:
            after = self._paging.decode_token(scope, token)[0]
            found = [f for f in found if f[id_field] > after]
        limit = given.get("MaxResults", len(found))
        answer: Shape = {member: found[:limit]}
        if limit < len(found):
            answer["NextToken"] = self._paging.encode_token(scope, (found[limit - 1][id_field],))
        return answer

    def _vpc(self, vpc: Vpc) -> Shape:
        return {
            "VpcId": vpc.vpc_id,
            "CidrBlock": vpc.cidr,
            "State": "available",
            "IsDefault": vpc.is_default,
            "InstanceTenancy": "default",
            "OwnerId": self._account_id,
            "CidrBlockAssociationSet": [
                {
                    "AssociationId": vpc.vpc_id.replace("vpc-", "vpc-cidr-assoc-"),
                    "CidrBlock": vpc.cidr,
                    "CidrBlockState": {"State": "associated"},
                }
            ],
            "Tags": _tags(vpc.tags),
        }

    def _subnet(self, reader: Reader, subnet: Subnet) -> Shape:
        size = ipaddress.ip_network(subnet.cidr).num_addresses - RESERVED_FIRST - 1
        used = reader.count(tables.ADDRESS_LEASES, subnet.subnet_id, index="by_subnet")
        return {
            "SubnetId": subnet.subnet_id,
            "VpcId": subnet.vpc_id,
            "CidrBlock": subnet.cidr,
            "State": "available",
            "AvailabilityZone": subnet.availability_zone,
            "AvailabilityZoneId": subnet.availability_zone_id,
            "AvailableIpAddressCount": size - used,
            "DefaultForAz": subnet.is_default,
            "MapPublicIpOnLaunch": False,
            "OwnerId": self._account_id,
            "SubnetArn": f"arn:aws:ec2:{self._region}:{self._account_id}:subnet/{subnet.subnet_id}",
            "Tags": _tags(subnet.tags),
        }

    def _group(self, group: SecurityGroup) -> Shape:
        everywhere = [{"CidrIp": "0.0.0.0/0"}]
        members = [{"GroupId": group.group_id, "UserId": self._account_id}]
        return {
            "GroupId": group.group_id,
            "GroupName": group.name,
            "Description": group.description,
            "VpcId": group.vpc_id,
            "OwnerId": self._account_id,
            "IpPermissions": [{"IpProtocol": "-1", "UserIdGroupPairs": members, "IpRanges": []}],
            "IpPermissionsEgress": [{"IpProtocol": "-1", "IpRanges": everywhere, "UserIdGroupPairs": []}],
            "Tags": _tags(group.tags),
        }

    def _interface(self, reader: Reader, lease: AddressLease) -> Shape:
        subnet = reader.get(tables.SUBNETS, lease.subnet_id)
        groups = [reader.get(tables.SECURITY_GROUPS, g) for g in lease.security_group_ids]
        return {
            "NetworkInterfaceId": lease.eni_id,
            "SubnetId": lease.subnet_id,
            "VpcId": subnet.vpc_id if subnet else "",
            "AvailabilityZone": subnet.availability_zone if subnet else "",
            "Description": f"task {lease.task_id}",
            "InterfaceType": "interface",
            "MacAddress": lease.mac,
            "PrivateIpAddress": lease.address,
            "PrivateIpAddresses": [{"PrivateIpAddress": lease.address, "Primary": True}],
            "OwnerId": self._account_id,
            "RequesterManaged": True,
            "Status": "in-use",
            "Groups": [{"GroupId": g.group_id, "GroupName": g.name} for g in groups if g],
            "Attachment": {"AttachmentId": lease.attachment_id, "Status": "attached", "DeviceIndex": 1},
            "TagSet": [],
        }


def _tags(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": k, "Value": v} for k, v in tags.items()]


_VPC_FILTERS: dict[str, Field] = {
    "vpc-id": member("VpcId"),
    "cidr": member("CidrBlock"),
    "cidr-block": member("CidrBlock"),
    "is-default": member("IsDefault"),
    "isDefault": member("IsDefault"),
    "state": member("State"),
    "owner-id": member("OwnerId"),
}
_SUBNET_FILTERS: dict[str, Field] = {
    "subnet-id": member("SubnetId"),
    "vpc-id": member("VpcId"),
    "cidr-block": member("CidrBlock"),
    "cidr": member("CidrBlock"),
    "availability-zone": member("AvailabilityZone"),
    "availability-zone-id": member("AvailabilityZoneId"),
    "default-for-az": member("DefaultForAz"),
    "defaultForAz": member("DefaultForAz"),
    "map-public-ip-on-launch": member("MapPublicIpOnLaunch"),
    "state": member("State"),
    "owner-id": member("OwnerId"),
    "subnet-arn": member("SubnetArn"),
}
_GROUP_FILTERS: dict[str, Field] = {
    "group-id": member("GroupId"),
    "group-name": member("GroupName"),
    "vpc-id": member("VpcId"),
    "description": member("Description"),
    "owner-id": member("OwnerId"),
}
_ENI_FILTERS: dict[str, Field] = {
    "network-interface-id": member("NetworkInterfaceId"),
    "subnet-id": member("SubnetId"),
    "vpc-id": member("VpcId"),
    "availability-zone": member("AvailabilityZone"),
    "mac-address": member("MacAddress"),
    "private-ip-address": member("PrivateIpAddress"),
    "addresses.private-ip-address": member("PrivateIpAddress"),
    "status": member("Status"),
    "description": member("Description"),
    "group-id": lambda s: [g["GroupId"] for g in s["Groups"]],
    "attachment.attachment-id": lambda s: s["Attachment"]["AttachmentId"],
}
_ZONE_FILTERS: dict[str, Field] = {
    "zone-name": member("ZoneName"),
    "zone-id": member("ZoneId"),
    "state": member("State"),
    "region-name": member("RegionName"),
    "zone-type": member("ZoneType"),
    "opt-in-status": member("OptInStatus"),
    "group-name": member("GroupName"),
}


def service(
    store: Store, paging: Paging, snapshots: DiskSnapshotOps, *, region: str, account_id: str
) -> Service:
    """The EC2 operations on this store."""
    return Service(
        name="ec2",
        operations=(
            *Ec2Handlers(store, paging, region, account_id).operations(),
            *SnapshotHandlers(snapshots, paging, account_id).operations(),
        ),
        faults=(
            (NotServed, "UnsupportedOperation"),
            (Unavailable, "Unavailable"),
            (HutchError, "InvalidParameterValue"),
        ),
    )
