"""The VPC: made on first start; addresses and host ports are leased from it, one record each."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import Invalid, LimitExceeded
from hutch.base.ids import IdSource
from hutch.model.network import AddressCursor, AddressLease, PortLease, SecurityGroup, Subnet, Vpc
from hutch.model.task import NetworkInterface
from hutch.rules.netplan import check_vpc_cidr, default_subnets, mac_of
from hutch.store import tables
from hutch.store.contract import Reader, Tx

RESERVED_FIRST = 4
"""AWS keeps the first four addresses of a subnet (network, router, DNS, future) and the last."""
PROBES_BEFORE_COUNTING = 64
MAX_SUBNETS = 16
MAX_SECURITY_GROUPS = 5


class NetworkExhausted(LimitExceeded):
    """No address or port is left of what was asked for. `kind` and `fix` as in a cause."""

    def __init__(self, kind: str, message: str, *, fix: str) -> None:
        super().__init__(f"{message}; {fix}")
        self.kind = kind
        self.text = message
        self.fix = fix


def ensure_default_vpc(tx: Tx, cidr: str, region: str, ids: IdSource) -> Vpc:
    """The default VPC, its subnets and security group; made if there is none. Raises `Invalid`."""
    for vpc in tx.scan(tables.VPCS):
        if vpc.is_default:
            return vpc
    cidr = check_vpc_cidr(cidr)
    vpc = tx.put(tables.VPCS, Vpc(vpc_id=f"vpc-{ids.hex(17)}", cidr=cidr, is_default=True))
    for subnet_cidr, zone, zone_id in default_subnets(cidr, region):
        tx.put(
            tables.SUBNETS,
            Subnet(
                subnet_id=f"subnet-{ids.hex(17)}",
                vpc_id=vpc.vpc_id,
                cidr=subnet_cidr,
                availability_zone=zone,
                availability_zone_id=zone_id,
                is_default=True,
            ),
        )
    tx.put(
        tables.SECURITY_GROUPS,
        SecurityGroup(
            group_id=f"sg-{ids.hex(17)}",
            vpc_id=vpc.vpc_id,
            name="default",
            description="default VPC security group",
            is_default=True,
        ),
    )
    return vpc


def resolve_awsvpc(
    reader: Reader, subnets: Sequence[str], groups: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The subnets and security groups of a request; without any those of the default VPC. Raises AWS's words."""
    if len(subnets) > MAX_SUBNETS:
        raise Invalid(f"subnets can have at most {MAX_SUBNETS} items.")
    if len(groups) > MAX_SECURITY_GROUPS:
        raise Invalid(f"securityGroups can have at most {MAX_SECURITY_GROUPS} items.")
    vpcs = set()
    for name in subnets:
        subnet = reader.get(tables.SUBNETS, name)
        if subnet is None:
            raise Invalid(
                f"Error retrieving subnet information for [{name}]: The subnet ID '{name}' does not exist "
                f"(ErrorCode: InvalidSubnetID.NotFound)"
            )
        vpcs.add(subnet.vpc_id)
    if not subnets:
        defaults = [s for s in reader.scan(tables.SUBNETS) if s.is_default]
        subnets = [s.subnet_id for s in sorted(defaults, key=lambda s: s.availability_zone)]
        vpcs.update(s.vpc_id for s in defaults)
    if len(vpcs) > 1:
        raise Invalid("Subnets must be in the same VPC.")
    for name in groups:
        group = reader.get(tables.SECURITY_GROUPS, name)
        if group is None or group.vpc_id not in vpcs:
            raise Invalid(
                f"Error retrieving security group information for [{name}]: The security group '{name}' does "
                f"not exist (ErrorCode: InvalidGroup.NotFound)"
            )
    if not groups:
        groups = [
            g.group_id for g in reader.scan(tables.SECURITY_GROUPS) if g.is_default and g.vpc_id in vpcs
        ]
    return tuple(subnets), tuple(groups)


@lru_cache(1024)
def _range_of(cidr: str) -> tuple[int, int]:
    """The first address of a range, and how many it has."""
    network = ipaddress.IPv4Network(cidr)
    return int(network.network_address), network.num_addresses


def _dotted(address: int) -> str:
    return ".".join(map(str, address.to_bytes(4, "big")))


def lease_address(
    tx: Tx, task_id: str, subnet_id: str, groups: tuple[str, ...], ids: IdSource, clock: Clock
) -> NetworkInterface:
    """An address for a task's network interface. Raises `LimitExceeded` if the subnet is full.

    The search goes on where the last one ended, so that it does not walk over all that is in use, and an address is
    given out again as late as possible after its task ended.
    """
    subnet = tx.get(tables.SUBNETS, subnet_id)
    if subnet is None:
        raise LimitExceeded(f"subnet {subnet_id} was deleted before the task could be placed")
    first, size = _range_of(subnet.cidr)
    usable = size - RESERVED_FIRST - 1
    cursor = tx.get(tables.ADDRESS_CURSORS, subnet_id) or AddressCursor(subnet_id=subnet_id)
    for step in range(usable):
        # Look whether it is full before walking over all of it.
        if step == PROBES_BEFORE_COUNTING and (
            tx.count(tables.ADDRESS_LEASES, subnet_id, index="by_subnet") >= usable
        ):
            break
        offset = (cursor.offset + step) % usable
        address = _dotted(first + RESERVED_FIRST + offset)
        if tx.get(tables.ADDRESS_LEASES, address) is not None:
            continue
        lease = AddressLease(
            address=address,
            subnet_id=subnet_id,
            eni_id=f"eni-{ids.hex(17)}",
            mac=mac_of(address),
            task_id=task_id,
            attachment_id=ids.uuid(),
            security_group_ids=groups,
            created_at=clock.now(),
        )
        tx.put(tables.ADDRESS_LEASES, lease)
        tx.put(tables.ADDRESS_CURSORS, replace(cursor, offset=offset + 1))
        return NetworkInterface(
            attachment_id=lease.attachment_id,
            eni_id=lease.eni_id,
            subnet_id=subnet_id,
            security_group_ids=groups,
            mac=lease.mac,
            private_ipv4=address,
        )
    raise NetworkExhausted(
        "SubnetFull",
        f"subnet {subnet_id} ({subnet.cidr}) has no free address; all {usable} are in use",
        fix="stop tasks that are in it, or name another subnet",
    )


def full_subnets(reader: Reader, subnet_ids: Sequence[str]) -> list[str]:
    """Those of the subnets in which no task gets an address any more."""
    found = []
    for subnet_id in subnet_ids:
        subnet = reader.get(tables.SUBNETS, subnet_id)
        usable = _range_of(subnet.cidr)[1] - RESERVED_FIRST - 1 if subnet else 0
        if reader.count(tables.ADDRESS_LEASES, subnet_id, index="by_subnet") >= usable:
            found.append(subnet_id)
    return found


def release_address(tx: Tx, task_id: str, address: str) -> None:
    """Give back the task's address. Idempotent."""
    lease = tx.get(tables.ADDRESS_LEASES, address)
    if lease is not None and lease.task_id == task_id:
        tx.delete(tables.ADDRESS_LEASES, address)


def lease_port(
    tx: Tx, host_id: str, wanted: int, among: tuple[int, int], task_id: str, container_port: int
) -> int:
    """A host port for a published container port: the wanted one, or (0) a free one. Raises `LimitExceeded`."""
    if wanted:
        candidates: Sequence[int] = (wanted,)
    else:
        first, last = among
        start = int(task_id[:8], 16) % (last - first + 1)
        candidates = [first + (start + i) % (last - first + 1) for i in range(last - first + 1)]
    for port in candidates:
        if tx.get(tables.PORT_LEASES, host_id, "tcp", f"{port:05d}") is None:
            tx.put(
                tables.PORT_LEASES,
                PortLease(host_id=host_id, host_port=port, task_id=task_id, container_port=container_port),
            )
            return port
    holder = tx.get(tables.PORT_LEASES, host_id, "tcp", f"{wanted:05d}") if wanted else None
    what = f"host port {wanted} is published by task {holder.task_id}" if holder else "no host port is free"
    raise NetworkExhausted("PortInUse", what, fix="stop that task, or publish on another port")


def release_ports(tx: Tx, task_id: str) -> None:
    """Give back the task's host ports. Idempotent."""
    for lease in tx.scan(tables.PORT_LEASES, task_id, index="by_task"):
        tx.delete(tables.PORT_LEASES, lease.host_id, lease.protocol, f"{lease.host_port:05d}")
