"""The VPC: subnets, security groups, addresses in use."""

import msgspec

from hutch.model.record import Record


class Vpc(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An address range; the default one is made on first start."""

    vpc_id: str
    cidr: str
    is_default: bool = False
    tags: dict[str, str] = {}


class Subnet(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a VPC's range, in one availability zone. Its first address is the gateway on the bridge."""

    subnet_id: str
    vpc_id: str
    cidr: str
    availability_zone: str
    availability_zone_id: str
    is_default: bool = False
    tags: dict[str, str] = {}


class SecurityGroup(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A named set of rules; the default group lets everything out and its own members in."""

    group_id: str
    vpc_id: str
    name: str
    description: str
    is_default: bool = False
    tags: dict[str, str] = {}


class AddressLease(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An address in use, by whom. The key is the address, so that it can't be leased twice."""

    address: str
    subnet_id: str
    eni_id: str
    mac: str
    task_id: str
    attachment_id: str
    security_group_ids: tuple[str, ...] = ()
    created_at: float


class AddressCursor(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Where the search for a subnet's next free address begins."""

    subnet_id: str
    offset: int = 0


class PortLease(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A host port published for a task. The key is host and port, so that it can't be leased twice."""

    host_id: str
    host_port: int
    protocol: str = "tcp"
    task_id: str
    container_port: int


class PlatformIdentity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What makes this platform itself; made once, on first start."""

    platform_id: str
    """8 hex digits; part of every name made on a host, so that platforms never touch each other's things."""
    region: str
    account_id: str
    created_at: float
    token_key: str = msgspec.field(default="")
    """Key that authenticates the opaque pagination tokens; 64 hex digits."""
